"""The same laws for classifiers, whose images are cropped around the center."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import WIDTH, by_the_model, classifier, pattern

import mmvars
from mmvars.errors import InputError


@pytest.mark.parametrize('design', ['absvit', 'mask_attention', 'perceiver_io', 'none'])
def test_without_a_prompt_it_is_the_model_itself(make: Callable, design: str) -> None:
    predictor = make(classifier(design))
    picture = pattern(75, 130)
    predictor.set_image(picture)
    result = predictor.predict()
    own = by_the_model(predictor, picture)
    assert np.array_equal(result.probabilities, own.pred_score.numpy())
    assert result.labels == int(own.pred_label) and isinstance(result.labels, int)
    assert result.attention.shape == (75, 130)
    assert predictor.classes == ('cat', 'dog', 'horse', 'cow')


def test_prompts(make: Callable) -> None:
    predictor = make(classifier())
    picture = pattern(75, 130)
    predictor.set_image(picture)
    prior = torch.randn(WIDTH)
    result = predictor.predict(prior)
    own = by_the_model(predictor, picture, prior)
    assert np.array_equal(result.probabilities, own.pred_score.numpy())
    change = result.probabilities - predictor.predict().probabilities
    assert np.allclose(result.shift.classes, change) and change.any()
    assert np.isclose(result.shift.pixels, np.abs(change).sum() / 2)
    row = predictor.model.head.fc.weight[1].detach().numpy()
    assert np.array_equal(predictor.predict('dog').prior, row)


@pytest.mark.parametrize('design', ['absvit', 'perceiver_io'])
def test_places_in_the_crop(make: Callable, design: str) -> None:
    predictor = make(classifier(design))
    predictor.set_image(pattern(160, 320))  # to 80 x 160, and rows 8 to 72, columns 48 to 112
    first: Any = predictor._state.passes[0]
    output = getattr(first, 'output', first)
    tokens = output.grid.to_map(output.tokens)[0]
    for (x, y), (row, column) in {
        (96, 16): (0, 0),
        (223, 143): (3, 3),
        (127, 48): (1, 0),
        (128, 47): (0, 1),
    }.items():
        assert torch.equal(predictor.prior_vector((x, y)), tokens[:, row, column])
    for place in ((95, 16), (96, 15), (224, 100), (0, 0)):
        with pytest.raises(InputError, match='does not see this place'):
            predictor.predict(place)
    points = mmvars.Points([(100, 100), (0, 0)], labels=[1, 0])
    with pytest.raises(InputError, match='does not see this place'):  # not left out
        predictor.predict(points)
    partly = predictor.prior_vector(mmvars.Box(0, 0, 128, 48))
    assert torch.allclose(partly, tokens[:, 0, 0], atol=1e-6)
    weights = predictor.predict((100, 20)).token_weights
    assert not weights[:14].any() and not weights[:, :94].any() and weights[32:128].any()
