"""Laws of the predictor: what it gives is what the model itself gives."""

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import BATCHED, NUM_CLASSES, SLIDE, WIDTH, by_the_model, pattern, segmentor
from torch import Tensor

import mmvars
import mmvars.steering
from mmvars.errors import InputError
from mmvars.predictor import run_files
from mmvars.priors import PriorVectors
from mmvars.text import embed


@pytest.mark.parametrize(
    ('design', 'test_cfg'),
    [
        ('absvit', None),
        ('absvit', SLIDE),
        ('absvit', BATCHED),
        ('feedback', SLIDE),
        ('mask_attention', BATCHED),
        ('perceiver_io', BATCHED),
        ('none', BATCHED),
    ],
)
def test_without_a_prompt_it_is_the_model_itself(
    make: Callable, picture: np.ndarray, design: str, test_cfg: dict | None
) -> None:
    predictor = make(segmentor(design, test_cfg=test_cfg))
    predictor.set_image(picture)
    result = predictor.predict()
    logits = by_the_model(predictor, picture).seg_logits.data
    assert np.array_equal(result.labels, logits.argmax(dim=0).numpy())
    assert np.array_equal(result.probabilities, logits.softmax(dim=0).numpy())
    assert result.labels.shape == result.attention.shape == result.bottom_up.shape == (75, 130)
    assert not result.shift.pixels.any() and not result.shift.classes.any()
    assert (result.heatmap is None) == (design in ('feedback', 'none'))
    if design in ('perceiver_io', 'none'):
        return
    assert not np.array_equal(result.attention, result.bottom_up)


@pytest.mark.parametrize(
    ('options', 'test_cfg'),
    [
        ({}, None),
        ({}, SLIDE),
        ({}, BATCHED),
        (dict(num_passes=3), SLIDE),
        (dict(first_pass_scale=0.5), BATCHED),
        (dict(design='mask_attention'), None),
        (dict(design='perceiver_io'), BATCHED),
    ],
)
def test_an_image_with_two_prompts_is_two_forwards(
    make: Callable, picture: np.ndarray, options: dict, test_cfg: dict | None
) -> None:
    predictor = make(segmentor(test_cfg=test_cfg, **options))
    predictor.set_image(picture)
    plain = by_the_model(predictor, picture).seg_logits.data.softmax(dim=0).numpy()
    for prior in torch.randn(2, WIDTH):
        result = predictor.predict(prior)
        logits = by_the_model(predictor, picture, prior).seg_logits.data
        change = logits.softmax(dim=0).numpy() - plain
        assert np.array_equal(result.probabilities, logits.softmax(dim=0).numpy())
        assert np.allclose(result.shift.pixels, np.abs(change).sum(0) / 2, atol=1e-6)
        assert np.allclose(result.shift.classes, change.mean((1, 2)), atol=1e-6)
        assert result.shift.pixels.max() > 0
        assert np.array_equal(result.prior, prior.numpy())


def test_the_first_pass_runs_once(make: Callable, picture: np.ndarray, monkeypatch: Any) -> None:
    predictor = make(segmentor(test_cfg=SLIDE))
    calls = []
    block = predictor.model.backbone.trunk.blocks[0]
    block.register_forward_hook(lambda *args: calls.append(1))
    predictor.set_image(picture)
    windows = len(calls)
    assert windows > 1
    predictor.predict((3, 4))
    predictor.predict((5, 6), alpha=2.0)
    assert len(calls) == 3 * windows


def test_what_is_without_a_prompt_is_not_computed_anew_for_a_shift(
    make: Callable, picture: np.ndarray
) -> None:
    predictor = make(segmentor())
    predictor.set_image(picture)
    calls = []
    predictor.model.backbone.register_forward_hook(lambda *args: calls.append(1))
    plain, asked = predictor.predict(), predictor.predict((3, 4))
    change = (asked.probabilities - plain.probabilities).reshape(len(plain.probabilities), -1)
    assert np.array_equal(asked.shift.classes, [each.mean() for each in change])
    assert len(calls) == 2
    predictor.set_image(picture)
    assert np.array_equal(predictor.predict((3, 4)).shift.classes, asked.shift.classes)
    assert len(calls) == 4


@pytest.mark.parametrize('test_cfg', [None, SLIDE])
def test_a_frame_takes_the_tokens_of_the_one_before(
    make: Callable, picture: np.ndarray, test_cfg: dict | None, tmp_path: Path
) -> None:
    predictor = make(segmentor(test_cfg=test_cfg))
    prior = torch.randn(WIDTH)
    predictor.set_image(picture)
    first = predictor.predict(prior)
    predictor.set_image(np.ascontiguousarray(picture[::-1]), previous=first)
    second = predictor.predict(prior)
    with pytest.raises(InputError, match='without previous'):
        predictor.save_state(tmp_path / 'state.safetensors')
    if test_cfg is None:
        with torch.no_grad():
            inputs = predictor._state.inputs
            feats, _ = predictor.model.backbone.forward_frame(inputs, first._passes[0], prior)
            logits = predictor.model.decode_head.predict(feats, [dict(img_shape=(64, 96))], None)
        small = torch.nn.functional.interpolate(logits[..., :55, :96], (75, 130), mode='bilinear')
        assert np.allclose(second.probabilities, small[0].softmax(dim=0), atol=1e-6)
    predictor.set_image(np.ascontiguousarray(picture[::-1]))
    assert not np.array_equal(predictor.predict(prior).probabilities, second.probabilities)
    with pytest.raises(InputError, match='frame has 40x50 .* previous 75x130'):
        predictor.set_image(pattern(40, 50), previous=first)
    plain = make(segmentor('none'))
    plain.set_image(picture)
    with pytest.raises(InputError, match='needs a model with a second pass'):
        plain.set_image(picture, previous=plain.predict())


def test_alpha_zero_is_the_plain_trunk_of_timm(make: Callable, picture: np.ndarray) -> None:
    predictor = make(segmentor(timm=True))
    predictor.set_image(picture)
    prompted = predictor.predict((60, 40), alpha=0.0)
    features = predictor.model.backbone.trunk(predictor._state.inputs)
    head = predictor.model.decode_head
    maps = [features.grid.to_map(features.tokens)]
    small = head.forward(maps)
    assert predictor.predict((60, 40), alpha=5.0).shift.pixels.max() > 1e-5
    size = predictor._state.inputs.shape[2:]
    full = torch.nn.functional.interpolate(small, size, mode='bilinear')
    full = torch.nn.functional.interpolate(full[..., :55, :96], (75, 130), mode='bilinear')
    assert np.allclose(prompted.probabilities, full[0].softmax(dim=0).detach(), atol=1e-5)
    assert prompted.alpha == 0 and prompted.heatmap.any()


@pytest.mark.parametrize('scale', [1.0, 0.5])
def test_a_point_is_the_token_of_its_patch_and_a_box_the_mean(make: Callable, scale: float) -> None:
    cfg = segmentor(first_pass_scale=scale)
    predictor = make(cfg)
    predictor.set_image(pattern(128, 192))  # resized to 64 x 96: patches of 32 pixels
    output = predictor._state.passes[0].output
    tokens = output.grid.to_map(output.tokens)[0]
    if scale == 1.0:
        assert torch.equal(predictor.prior_vector((33, 70)), tokens[:, 2, 1])
        assert torch.equal(predictor.prior_vector((191.5, 0)), tokens[:, 0, 5])
        box = predictor.prior_vector(mmvars.Box(0, 32, 64, 96))
        assert torch.allclose(box, tokens[:, 1:3, 0:2].mean((1, 2)), atol=1e-6)
    else:  # patches of 64 pixels
        assert torch.equal(predictor.prior_vector((65, 64)), tokens[:, 1, 1])
    mask = np.zeros((128, 192), dtype=bool)
    mask[32:96, 0:64] = True
    ways = [mmvars.Box(0, 32, 64, 96), mask, mmvars.Mask(mask * 255), torch.from_numpy(mask)]
    ways += [mmvars.Example(pattern(128, 192), mask)]
    vectors = [predictor.prior_vector(way) for way in ways]
    assert all(torch.equal(vectors[0], vector) for vector in vectors)
    both = predictor.prior_vector(mmvars.Points([(3, 4), (190, 100)], labels=[1, 0]))
    difference = predictor.prior_vector((3, 4)) - predictor.prior_vector((190, 100))
    assert torch.allclose(both, difference, atol=1e-6)
    whole = predictor.prior_vector(mmvars.Example(pattern(128, 192)))
    assert torch.allclose(whole, tokens.mean((1, 2)), atol=1e-6)


def test_priors_are_differences_from_the_center_and_regions_are_whitened(
    make: Callable, picture: np.ndarray
) -> None:
    predictor = make(segmentor(timm=True))
    prior = predictor._engine.network.prior
    torch.nn.init.normal_(prior.whitening)
    predictor.set_image(picture)
    output, center = predictor._state.passes[0].output, prior.center
    assert center.any()
    tokens = output.grid.to_map(output.tokens)[0]
    expected = tokens[:, 0, 0] - center
    assert torch.allclose(predictor.prior_vector((0, 0)), expected, atol=1e-5)
    box = predictor.prior_vector(mmvars.Box(0, 0, 4, 4))  # inside the first patch
    assert torch.allclose(box, expected @ prior.whitening, atol=1e-4)
    both = predictor.prior_vector(mmvars.Points([(0, 0), (129, 74)], labels=[1, 0]))
    expected = tokens[:, 0, 0] - tokens[:, 3, -1]
    assert torch.allclose(both, expected, atol=1e-5)


def test_a_place_has_the_tokens_of_all_windows_that_see_it(make: Callable) -> None:
    predictor = make(segmentor(test_cfg=BATCHED))
    predictor.set_image(pattern(64, 96))  # windows of 48 pixels at 0, 16 and 0, 32, 48
    at = {
        (rows.start, columns.start): first.output.grid.to_map(first.output.tokens)[index]
        for group, first in zip(predictor._state.groups, predictor._state.passes, strict=True)
        for index, (_, rows, columns) in enumerate(group)
    }
    assert len(at) == 6
    # (40, 20): right of 32 and below 16, in the four windows of the two first columns.
    expected = [
        at[top, left][:, (20 - top) // 16, (40 - left) // 16] for top in (0, 16) for left in (0, 32)
    ]
    vector = predictor.prior_vector((40, 20))
    assert torch.allclose(vector, torch.stack(expected).mean(dim=0), atol=1e-6)


@pytest.mark.parametrize('test_cfg', [None, SLIDE])
def test_places_survive_resize_padding_and_rotation(
    make: Callable, tmp_path: Path, test_cfg: dict | None
) -> None:
    """A point asks for its patch, wherever that went: weights are greatest in its middle."""
    predictor = make(segmentor(test_cfg=test_cfg))
    upright = pattern(190, 130)
    stored = Image.fromarray(np.rot90(upright).copy())  # 130 x 190, shown turned to the right
    exif = stored.getexif()
    exif[0x0112] = 6
    stored.save(tmp_path / 'turned.png', exif=exif)
    with Image.open(tmp_path / 'turned.png') as opened:
        opened.load()
        results = []
        for image in (upright, tmp_path / 'turned.png', opened):
            predictor.set_image(image)
            assert np.array_equal(predictor.image, upright)
            assert predictor.image_size == (190, 130)
            results.append(predictor.predict((30, 70)))
    assert np.array_equal(results[0].probabilities, results[1].probabilities)
    assert np.array_equal(results[0].probabilities, results[2].probabilities)
    row, column = np.unravel_index(results[0].token_weights.argmax(), (190, 130))
    # The point is in patch 2 from above and 0 from the left, of 16 / 0.495 pixels each.
    assert abs(row - 40 / 0.495) < 3 and column < 18
    assert results[0].token_weights[row, column] > 0.9


def test_a_batch_is_one_by_one(make: Callable) -> None:
    predictor = make(segmentor())
    images = [pattern(75, 130), pattern(90, 60)[::-1]]
    priors = [(10, 20), torch.randn(WIDTH)]
    predictor.set_image_batch(images)
    with pytest.raises(InputError, match='predict_batch'):
        predictor.predict()
    with pytest.raises(InputError, match='one for each of the 2 images, got 1'):
        predictor.predict_batch([None])
    together = predictor.predict_batch(priors, alpha=2.0)
    assert [result.labels.shape for result in predictor.predict_batch()] == [(75, 130), (90, 60)]
    for image, prior, result in zip(images, priors, together, strict=True):
        predictor.set_image(image)
        alone = predictor.predict(prior, alpha=2.0)
        assert np.array_equal(alone.probabilities, result.probabilities)
        assert np.array_equal(alone.heatmap, result.heatmap)
    many = predictor.predict_batch([None, priors[1]], alpha=2.0)
    assert np.array_equal(many[1].probabilities, together[1].probabilities)


@pytest.mark.parametrize(
    'options',
    [
        {},
        dict(num_passes=3, out_indices=(0, -1)),
        pytest.param(dict(first_pass_scale=0.5), marks=pytest.mark.slow),
        pytest.param(dict(design='mask_attention'), marks=pytest.mark.slow),
        dict(design='perceiver_io'),
        pytest.param(dict(timm=True), marks=pytest.mark.slow),
        dict(test_cfg=SLIDE),
    ],
)
def test_priors_of_one_image_share_a_forward(
    make: Callable, picture: np.ndarray, monkeypatch: Any, options: dict
) -> None:
    predictor = make(segmentor(**options))
    predictor.set_image(picture)
    priors = [(10, 20), None, *torch.randn(3, predictor.model.backbone.embed_dims)]
    alone = [predictor.predict(prior) for prior in priors]
    monkeypatch.setattr(mmvars.steering, 'BATCH_PIXELS', 2 * 64 * 96)  # two of what it sees
    sizes = []
    predictor.model.backbone.register_forward_hook(lambda *args: sizes.append(len(args[2][0])))
    together = predictor.predict_batch(priors)
    if 'test_cfg' in options:
        assert set(sizes) == {1}
    else:
        assert sizes == [1, 1, 2, 1]
    for one, other in zip(alone, together, strict=True):
        for name in ('probabilities', 'token_weights', 'attention', 'bottom_up', 'heatmap'):
            np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=2e-5)
        assert (one.prior is None) == (other.prior is None)
        assert len(one._passes) == len(other._passes)
        for first, second in zip(one._passes, other._passes, strict=True):
            torch.testing.assert_close(first.tokens, second.tokens, atol=2e-5, rtol=1e-4)
    assert np.array_equal(together[1].probabilities, alone[1].probabilities)
    assert len({result.probabilities.tobytes() for result in together}) == len(priors)


def test_what_is_kept_for_shifts_is_bounded(
    make: Callable, picture: np.ndarray, monkeypatch: Any
) -> None:
    """Of all images of a model together; what is gone is computed again, with the same result."""
    first = make(segmentor())
    people = [first, first.clone(), first.clone()]
    for number, person in enumerate(people):
        person.set_image(np.roll(picture, number, axis=1))
        person.predict()
    expected = [person.predict((3, 4)).shift.pixels for person in people]
    size = 4 * NUM_CLASSES * 75 * 130
    assert sum(kept.nbytes for kept in first._kept.values()) == 3 * size
    monkeypatch.setattr(mmvars.predictor, 'KEPT_BYTES', 2 * size)
    for _ in range(2):
        for person, shift in zip(people, expected, strict=True):
            assert np.array_equal(person.predict((3, 4)).shift.pixels, shift)
            assert sum(kept.nbytes for kept in first._kept.values()) <= 2 * size
    monkeypatch.setattr(mmvars.predictor, 'KEPT_BYTES', 1)
    assert np.array_equal(first.predict((3, 4)).shift.pixels, expected[0])
    assert [*first._kept] == [first._state]  # of one image always
    first.reset_image()
    assert not first._kept


def test_classes_by_name_and_number(make: Callable, picture: np.ndarray) -> None:
    prior = dict(type='class_prototype', num_classes=NUM_CLASSES)
    predictor = make(segmentor(prior=prior))
    predictor.set_image(picture)
    assert predictor.is_steerable and predictor.classes[3] == 'wall' and len(predictor.palette) == 5
    assert predictor.prior_classes == dict(enumerate(predictor.classes))
    by_name, by_number = predictor.predict('Wall'), predictor.predict(np.int64(3))
    by_id = by_the_model(predictor, picture, 3).seg_logits.data.softmax(dim=0).numpy()
    assert np.array_equal(by_name.probabilities, by_id)
    assert np.array_equal(by_number.probabilities, by_id)
    assert not predictor.predict().token_weights.any()  # asks for nothing
    with pytest.raises(InputError, match="no class is called 'wal'; did you mean 'wall'"):
        predictor.predict('wal')
    with pytest.raises(InputError, match='class 5 does not exist: .* 0 to 4'):
        predictor.predict(5)
    predictor._engine.network.prior.prototypes[3] = 0
    assert 3 not in predictor.prior_classes
    with pytest.raises(InputError, match="'wall' has no prototype"):
        predictor.predict('wall')


def test_text_where_no_class_has_the_name(make: Callable, picture: np.ndarray) -> None:
    class Encoder:
        def encode(self, texts: list[str]) -> Tensor:
            return torch.tensor([[len(text), text.count('a'), 1.0] for text in texts])

    predictor = make(
        segmentor(prior=dict(type='class_prototype', num_classes=NUM_CLASSES)), text=Encoder()
    )
    predictor.set_image(picture)
    table = predictor._engine.network.prior.prototypes
    assert torch.equal(predictor.prior_vector('wall'), table[3])
    assert predictor.prior_vector('a lamp').shape == (WIDTH,)
    assert predictor.predict('a lamp').shift.pixels.max() > 0


class Letters:
    """A text encoder."""

    def __init__(self, letters: str = 'aelort') -> None:
        self.letters = letters

    def encode(self, texts: list[str]) -> Tensor:
        return torch.tensor(
            [[text.count(letter) + 0.1 for letter in self.letters] for text in texts]
        )


def test_a_map_from_text_takes_names_words_and_places(make: Callable, picture: np.ndarray) -> None:
    prior = dict(type='text', text_dim=6, num_classes=NUM_CLASSES)
    predictor = make(segmentor(prior=prior))
    names, network = predictor.classes, predictor._engine.network
    predictor.set_image(picture)
    by_id = by_the_model(predictor, picture, 3).seg_logits.data.softmax(dim=0).numpy()
    assert np.array_equal(predictor.predict('wall').probabilities, by_id)  # no encoder is needed
    assert predictor.prior_classes == dict(enumerate(names))
    with pytest.raises(InputError, match="no class is called 'a lamp'"):
        predictor.predict('a lamp')

    def with_text(encoder: Letters) -> PriorVectors:
        return PriorVectors(predictor.model, predictor._engine.table, None, encoder)

    with pytest.raises(InputError, match='another than the text prior .* was trained with'):
        with_text(Letters())
    with pytest.raises(InputError, match='have width 4, and the text prior of the network takes 6'):
        with_text(Letters('abcd'))
    network.prior.texts[:, 0] = embed(Letters(), names)
    for text in ('a lamp', 'wall'):
        expected = network.prior.projection(embed(Letters(), [text]).float())[0]
        torch.testing.assert_close(with_text(Letters()).vector(text, None, None), expected)
    place = predictor.predict((40, 30))  # a mean token, which is no text
    assert place.prior.shape == (WIDTH,) and place.shift.pixels.max() > 0
    assert by_the_model(predictor, picture, torch.randn(6)) is not None  # still takes texts


def test_the_prompt_head_makes_the_heatmap(make: Callable, picture: np.ndarray) -> None:
    cfg = segmentor(prior=dict(type='learned_classes', num_classes=NUM_CLASSES), test_cfg=SLIDE)
    cfg.model.update(
        prior_sampler=dict(type='mmvars.PriorSampler'), prompt_head=dict(type='mmvars.PromptHead')
    )
    predictor = make(cfg)
    predictor.set_image(picture)
    result = predictor.predict('road')
    assert not np.array_equal(result.heatmap, result.token_weights)
    assert 0 < result.heatmap.min() and result.heatmap.max() < 1
    torch.nn.init.zeros_(predictor.model.prompt_head.layers[2].weight)
    torch.nn.init.constant_(predictor.model.prompt_head.layers[2].bias, 2.0)
    assert np.allclose(predictor.predict('road').heatmap, 1 / (1 + np.exp(-2)))
    plain = predictor.predict()
    assert np.array_equal(plain.heatmap, plain.token_weights)


NO_PROMPTS = [
    ((130, 3), r'point \(130, 3\) lies outside of the image, whose x goes from 0 to 129'),
    ((-0.5, 3), 'lies outside'),
    (mmvars.Points([(1, 2), (3, 75)]), r'\(3, 75\) lies outside'),
    (mmvars.Box(131, 0, 140, 5), 'box .* lies outside of the image of 130 x 75'),
    (np.ones((130, 75), dtype=bool), 'mask has 130x75 pixels .* image 75x130'),
    (np.zeros(24, dtype=np.float32)[:5], r'shape \(24,\), the width of the tokens; got \(5,\)'),
    (torch.full((24,), torch.nan), 'NaN or infinite'),
    (torch.zeros(24), 'is zero, which asks for nothing'),
    (torch.ones(24, dtype=torch.int64), 'prior must be None, the name or number'),
    (True, 'prior must be None, the name or number'),
    (['road'], 'prior must be None, the name or number'),
    (object(), 'prior must be None, the name or number'),
    ('road', 'mmvars prototypes CONFIG CHECKPOINT'),
]


def test_what_is_no_prompt(make: Callable, picture: np.ndarray) -> None:
    predictor = make(segmentor())
    predictor.set_image(picture)
    for prior, message in NO_PROMPTS:
        with pytest.raises(InputError, match=message):
            predictor.predict(prior)


@pytest.mark.parametrize(
    ('build', 'message'),
    [
        (lambda: mmvars.Points([]), 'list of pairs'),
        (lambda: mmvars.Points((3, 4)), 'list of pairs'),
        (lambda: mmvars.Points([(3, 4, 5)]), 'list of pairs'),
        (lambda: mmvars.Points([(3, 'x')]), 'list of pairs'),
        (lambda: mmvars.Points([(3, np.inf)]), 'finite'),
        (lambda: mmvars.Points([(3, 4)], labels=[0]), 'at least one with label 1'),
        (lambda: mmvars.Points([(3, 4)], labels=[1, 0]), 'for each of the 1 points'),
        (lambda: mmvars.Points([(3, 4)], labels=[2]), 'must be 1'),
        (lambda: mmvars.Box(5, 5, 5, 9), 'x0 < x1'),
        (lambda: mmvars.Box(5, 5, np.nan, 9), 'four finite numbers'),
        (lambda: mmvars.Mask(np.zeros((3, 4), dtype=bool)), 'mask is empty'),
        (lambda: mmvars.Mask(np.ones(3)), r'shape \(H, W\)'),
        (lambda: mmvars.Mask(np.arange(12).reshape(3, 4)), 'compare first'),
        (lambda: mmvars.Mask([['a']]), 'must be bool'),
        (lambda: mmvars.Example('a.png', region='dog'), 'region of an Example'),
    ],
)
def test_what_is_no_place(build: Callable, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


def test_what_is_no_image_leaves_the_one_before(
    make: Callable, picture: np.ndarray, tmp_path: Path
) -> None:
    predictor = make(segmentor())
    with pytest.raises(InputError, match='no image is set: call set_image'):
        predictor.predict()
    with pytest.raises(InputError, match='no image is set'):
        predictor.prior_vector((3, 4))
    assert predictor.prior_vector(torch.ones(WIDTH)).shape == (WIDTH,)
    assert predictor.image_size is None
    predictor.set_image(picture)
    (tmp_path / 'text.png').write_text('no image')
    for image, message in (
        (tmp_path / 'none.png', 'does not exist'),
        (tmp_path / 'text.png', 'not an image'),
        (picture.astype(np.float32), r'float32 \(75, 130, 3\)'),
        (picture[..., 0], 'uint8 array'),
        (Image.fromarray(picture[..., 0]), r"convert\('RGB'\)"),
        (None, 'got NoneType'),
    ):
        with pytest.raises(InputError, match=message):
            predictor.set_image(image)
    with pytest.raises(InputError, match='list of at least one image'):
        predictor.set_image_batch([])
    assert np.array_equal(predictor.image, picture)
    for alpha in (np.nan, 'much', True):
        with pytest.raises(InputError, match='alpha must be a number'):
            predictor.predict(alpha=alpha)
    predictor.reset_image()
    with pytest.raises(InputError, match='no image is set'):
        predictor.predict()


@pytest.mark.parametrize(
    ('design', 'arguments', 'message'),
    [
        ('none', dict(prior=(3, 4)), 'no feedback: give prior=None'),
        ('none', dict(alpha=1.0), 'no feedback: give alpha=None'),
        ('feedback', dict(prior=(3, 4)), "design='feedback'"),
        ('mask_attention', dict(alpha=1.0), "design='mask_attention'"),
        ('absvit', dict(alpha=-1), 'alpha must be a number of at least 0, got -1'),
    ],
)
def test_what_a_network_has_no_use_for(
    make: Callable, picture: np.ndarray, design: str, arguments: dict, message: str
) -> None:
    predictor = make(segmentor(design))
    predictor.set_image(picture)
    assert predictor.is_steerable == (design in ('absvit', 'mask_attention'))
    with pytest.raises(InputError, match=message):
        predictor.predict(**arguments)


def test_alpha_scales_nothing_without_a_prior(make: Callable, picture: np.ndarray) -> None:
    for prior in ('given', dict(type='class_prototype', num_classes=NUM_CLASSES)):
        predictor = make(segmentor(prior=prior))
        assert not predictor.scales_without_prior
        predictor.set_image(picture)
        with pytest.raises(InputError, match='has no prior of its own: give one, or give alpha='):
            predictor.predict(alpha=2.0)
        for alpha in (2.0, np.float32(2), np.int64(2)):
            assert predictor.predict((3, 4), alpha).alpha == 2
    predictor = make(segmentor(design='feedback'))  # feeds back without one
    assert predictor.scales_without_prior
    predictor.set_image(picture)
    assert predictor.predict(alpha=2.0).shift.pixels.any()


def test_a_config_without_weights_says_how_to_give_them(tmp_path: Path) -> None:
    segmentor().dump(tmp_path / 'config.py')
    with pytest.raises(InputError, match=r'checkpoint=FILE \(--checkpoint FILE\)'):
        mmvars.Predictor(tmp_path / 'config.py')


def test_a_model_that_hands_no_prior_on(make: Callable, picture: np.ndarray) -> None:
    cfg = segmentor(prior='learned_query')
    cfg.model.type = 'mmseg.EncoderDecoder'
    cfg.model.decode_head.in_channels = WIDTH
    predictor = make(cfg)
    predictor.set_image(picture)
    logits = by_the_model(predictor, picture).seg_logits.data
    assert np.array_equal(predictor.predict().probabilities, logits.softmax(dim=0).numpy())
    assert not predictor.is_steerable
    with pytest.raises(InputError, match="type='mmvars.EncoderDecoder'"):
        predictor.predict((3, 4))


def test_a_clone_has_an_image_of_its_own(make: Callable, picture: np.ndarray) -> None:
    predictor = make(segmentor())
    predictor.set_image(picture)
    other = predictor.clone()
    with pytest.raises(InputError, match='no image is set'):
        other.predict()
    other.set_image(picture[:, ::-1])
    assert other.model is predictor.model
    with ThreadPoolExecutor(4) as pool:  # they wait for each other
        both = [predictor, other] * 4
        results = [*pool.map(lambda each: each.predict((9, 9)).probabilities, both)]
    for index in (0, 1):
        alone = both[index].predict((9, 9)).probabilities
        assert all(np.array_equal(result, alone) for result in results[index::2])


def test_the_example_of_the_readme_runs(
    make: Callable, repo: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    page = (repo / 'tools' / 'README.md').read_text()
    (code,) = (
        block
        for block in re.findall(r'```python\n(.*?)```', page, re.DOTALL)
        if 'set_image' in block
    )
    make(segmentor(prior=dict(type='class_prototype', num_classes=NUM_CLASSES)))
    run = tmp_path / 'work_dirs' / 'run'
    run.mkdir(parents=True)
    for name in ('config.py', 'weights.pth'):
        (tmp_path / name).rename(run / name)
    monkeypatch.chdir(tmp_path)
    for name in ('street.jpg', 'other.jpg'):
        Image.fromarray(pattern(270, 430)).save(name)
    code = code.replace("'car'", "'wall'")
    scope: dict[str, Any] = {}
    exec(code.replace('plain.labels == 1', 'plain.labels == plain.labels[0, 0]'), scope)
    assert scope['result'].shift.pixels.any()
    assert (tmp_path / 'street.safetensors').is_file()


def test_a_given_prior_may_be_left_out(make: Callable, picture: np.ndarray) -> None:
    predictor = make(segmentor(prior='given'))
    predictor.set_image(picture)
    assert not predictor.predict().token_weights.any()


@pytest.mark.parametrize('files', [[], ['a.py', 'b.py'], ['a.py']])
def test_a_folder_that_is_no_run(tmp_path: Path, files: list[str]) -> None:
    for name in files:
        (tmp_path / name).write_text('')
    with pytest.raises(InputError, match='must hold one config|holds no checkpoint'):
        run_files(tmp_path)


def test_a_run_folder_gives_its_best_checkpoint_else_its_last(tmp_path: Path) -> None:
    for name in ('config.py', 'iter_1.pth', 'iter_2.pth'):
        (tmp_path / name).write_text('')
    (tmp_path / 'last_checkpoint').write_text('/moved/since/iter_1.pth\n')
    assert run_files(tmp_path)[1] == tmp_path / 'iter_1.pth'
    (tmp_path / 'best_mIoU_iter_1.pth').write_text('')
    assert run_files(tmp_path)[1] == tmp_path / 'best_mIoU_iter_1.pth'
