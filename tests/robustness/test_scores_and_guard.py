"""Scores of images against hand-worked ones, and what is read of a training without running it."""

import itertools

import numpy as np
import pytest
import torch

from mmvars.errors import InputError
from mmvars.robustness.guard import check_classes, compare, preparation
from mmvars.robustness.scores import ImageScores, Scores, draw_weights
from mmvars.robustness.training import Training, parse_config, read_training


def sample(prediction, label) -> dict:
    def pixels(values):
        return dict(data=torch.tensor([values]))

    return dict(pred_sem_seg=pixels(prediction), gt_sem_seg=pixels(label), img_path='a.png')


def evaluated(*samples, num_classes=3) -> Scores:
    metric = ImageScores(num_classes)
    metric.process(None, samples)
    metric.evaluate(len(samples))
    return Scores.from_row(metric.row, num_classes)


def test_pixels_by_hand() -> None:
    scores = evaluated(
        sample([[0, 0, 1, 1]], [[0, 1, 1, 255]]), sample([[1, 1, 1, 1]], [[1, 1, 0, 0]])
    )
    # Class 0: 1 of 2 pixels, then 0 of 2; class 1: 1 of 2, then 2 of 4; class 2 is nowhere.
    np.testing.assert_array_equal(scores.numerators, [[1, 1, 0], [0, 2, 0]])
    np.testing.assert_array_equal(scores.denominators, [[2, 2, 0], [2, 4, 0]])
    draws = scores.value(np.array([[1, 1], [2, 0], [0, 2]]))
    np.testing.assert_allclose(draws, [(1 / 4 + 3 / 6) / 2, 1 / 2, (0 + 1 / 2) / 2])
    np.testing.assert_array_equal(scores.by_class(3), [1 / 4, 3 / 6, np.nan])


def test_a_class_that_a_draw_lacks_keeps_its_iou() -> None:
    scores = evaluated(sample([[0, 0]], [[0, 0]]), sample([[1, 0]], [[1, 1]]))
    # Class 1: 1 of 2 pixels, in the second image alone.
    np.testing.assert_allclose(scores.value(np.array([[2, 0]])), [(1 + 1 / 2) / 2])


def test_labels_by_hand() -> None:
    scores = [[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]]
    result = evaluated(
        *(
            dict(pred_score=torch.tensor(score), gt_label=torch.tensor([label]))
            for score, label in zip(scores, (1, 1, 0), strict=True)
        ),
        num_classes=2,
    )
    assert result.value(np.ones((1, 3))) == pytest.approx(2 / 3)
    np.testing.assert_array_equal(result.by_class(2), [1, 1 / 2])


def test_labels_are_refused_that_cannot_be_scored() -> None:
    with pytest.raises(InputError, match=r"the label 3 of 'a.png'.*0 to 2"):
        evaluated(sample([[0]], [[3]]))
    with pytest.raises(InputError, match='have no labels'):
        ImageScores(2).process(None, [dict(img_path='a.png')])
    with pytest.raises(InputError, match='has 2 labels'):
        ImageScores(2).process(None, [dict(gt_label=torch.tensor([0, 1]))])


def test_draws_are_of_as_many_images() -> None:
    weights = draw_weights(6)
    assert weights.shape == (1001, 6) and (weights.sum(1) == 6).all() and (weights[0] == 1).all()
    at_once = np.random.default_rng(0).multinomial(6, np.full(6, 1 / 6), 1000)
    np.testing.assert_array_equal(weights[1:], at_once)
    counts = np.array([[3, 0], [2, 1], [0, 0], [1, 1], [0, 4], [5, 5]])
    expected = (weights.astype(float) @ counts) / (weights.astype(float) @ (counts + 1))
    np.testing.assert_array_equal(Scores(counts, counts + 1).value(weights), expected.mean(1))


TRAINING = """
import os
model = dict(data_preprocessor=dict(mean=[1, 2.5], std=(3, -4), bgr_to_rgb=True))
bad = os.system('touch PATH')
val_dataloader = dict(dataset=dict(type=mmseg.datasets.ADE, pipeline=[
    dict(type='LoadImageFromFile'), {'type': 'mmseg.Resize', 'scale': (8, 4)},
    dict(type='LoadAnnotations'), dict(type='PackSegInputs')]))
custom = dict(dict({'a.b': 1}), c=2)
test_dataloader = val_dataloader
"""


def test_a_recorded_config_is_read_and_never_run(tmp_path) -> None:
    cfg = parse_config(TRAINING.replace('PATH', str(tmp_path / 'ran')))
    assert not (tmp_path / 'ran').exists()
    assert cfg['custom'] == {'a.b': 1, 'c': 2}
    assert cfg['test_dataloader'] == cfg['val_dataloader']
    found = preparation(cfg)
    assert found == {
        'mean': [1, 2.5],
        'std': [3, -4],
        'channel order': 'RGB',
        'steps of the test pipeline': [
            ('LoadImageFromFile', {}),
            ('Resize', dict(scale=[8, 4])),
        ],
    }
    assert compare(found, found, 'x') == [] == compare(found, {}, 'x')
    assert parse_config('no python(') == {}


def test_the_config_beside_a_checkpoint_is_found(tmp_path) -> None:
    file = str(tmp_path / 'a.pth')
    torch.save(dict(state_dict=dict(a=torch.zeros(1))), file)
    (tmp_path / 'setup.py').write_text('a = 1')
    (tmp_path / 'tested.py').write_text('model = dict(b=1)')
    tested = str(tmp_path / 'tested.py')
    assert read_training(file, tested) == Training(log=str(tmp_path))
    training = read_training(file, 'shipped-name')
    assert (training.cfg, training.source) == (dict(model=dict(b=1)), tested)
    (tmp_path / '2026' / 'vis_data').mkdir(parents=True)
    (tmp_path / '2026' / 'vis_data' / 'config.py').write_text('model = dict(b=2)')
    assert read_training(file, tested).cfg == dict(model=dict(b=2))
    torch.save(dict(meta=dict(cfg='model = dict(b=3)', CLASSES=('x',))), file)
    training = read_training(file, tested)
    assert training.cfg['model'] == dict(b=3) and list(training.classes) == ['x']
    assert training.source == 'the config in the checkpoint'


def test_classes_in_another_order_are_found() -> None:
    assert check_classes(2, ('cat', 'dog'), ('cat', 'dog')) == []
    (problem,) = check_classes(2, ('cat', 'dog'), ('dog', 'cat'))
    assert "0 is 'cat', was 'dog'" in problem
    (problem,) = check_classes(1000, ['x'] * 200, None)
    assert '200 in the test data' in problem and '1000 in the head' in problem
    assert '--protocol imagenet-a or imagenet-r, with --data DIR' in problem
    (problem,) = check_classes(150, ['x'] * 19, None)
    assert '--protocol' not in problem


def test_the_worst_case_is_never_above_an_attack() -> None:
    """Of the whole, not of each image: their best choice is found by trying all."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        unions = rng.integers(1, 50, (3, 4, 3)).astype(float)
        attacks = [Scores(rng.integers(0, u + 1).astype(float), u) for u in unions]
        once = np.ones((1, 4))
        worst = Scores.worst(attacks).value(once)[0]
        assert worst <= min(each.value(once)[0] for each in attacks) + 1e-12
        pairs = [[(a.numerators[i], a.denominators[i]) for a in attacks] for i in range(4)]
        mixed = [np.array(each) for each in itertools.product(*pairs)]
        best = min(Scores(each[:, 0], each[:, 1]).value(once)[0] for each in mixed)
        assert best - 1e-12 <= worst <= best + 0.02
    right = [Scores(np.array(r, float)[:, None], np.ones((3, 1))) for r in ([1, 0, 1], [1, 1, 0])]
    assert Scores.worst(right).numerators[:, 0].tolist() == [1, 0, 0]
