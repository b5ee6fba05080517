"""Object metrics by hand, with ties, pixels without a label, and planted mistakes."""

import numpy as np
import pytest

from mmvars.errors import InputError
from mmvars.saliency.objects import (
    best_jaccard,
    foreground_overlap,
    mass_accuracy,
    mass_masks,
    pointing_game,
    rank_accuracy,
)

MAP = np.array([[0, 1, 2], [3, 10, 3], [2, 1, 0]], dtype=float)
OBJECT = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0]], dtype=bool)
CONSTANT = np.full((3, 3), 0.7)


def test_table_1_4_by_hand() -> None:
    overlap = foreground_overlap(MAP, OBJECT)  # 3 is not larger than 0.3 of 10: one pixel
    assert overlap == (1, 0, 2, 9)
    overlap = foreground_overlap(MAP, OBJECT, threshold=0.25)  # three pixels, two of them right
    assert overlap == (2, 1, 1, 9)
    assert overlap.iou == 2 / 4
    assert overlap.false_positive_share == overlap.false_negative_share == 1 / 9
    # The identity by which FP and FN of the thesis are known to be shares of all pixels.
    share = OBJECT.mean()
    false_negative, false_positive = overlap.false_negative_share, overlap.false_positive_share
    assert overlap.iou == pytest.approx((share - false_negative) / (share + false_positive))
    # A map is scaled by its own range: a constant added or a factor changes nothing.
    assert foreground_overlap(5 * MAP + 40, OBJECT, threshold=0.25) == overlap
    assert foreground_overlap(CONSTANT, OBJECT) == (0, 0, 3, 9)
    assert np.isnan(foreground_overlap(CONSTANT, ~OBJECT & OBJECT).iou)


def test_what_has_no_label_does_not_count_but_scales_the_map() -> None:
    counted = MAP != 10
    assert foreground_overlap(MAP, OBJECT, counted, threshold=0.25) == (1, 1, 1, 8)
    assert pointing_game(MAP, OBJECT, counted) == 0.5
    assert mass_accuracy(MAP, OBJECT, counted) == 5 / 12
    assert rank_accuracy(MAP, OBJECT, counted) == 0.5
    assert best_jaccard([MAP > 2], OBJECT, counted) == 1 / 3


def test_60_percent_of_the_mass() -> None:
    # In rising order 0 0 1 1 2 2 3 3 10, sums 0 0 1 2 4 6 9 12 22: those above 0.4 x 22 = 8.8.
    np.testing.assert_array_equal(mass_masks(MAP), MAP >= 3)
    np.testing.assert_array_equal(mass_masks(np.stack([MAP, MAP.T]), 0.1)[1], MAP == 10)
    assert not mass_masks(np.zeros((3, 3))).any()
    assert mass_masks(np.ones((10, 10))).sum() == 60


def test_the_best_head_of_each_object() -> None:
    masks = np.stack([OBJECT, ~OBJECT, MAP >= 3])
    assert best_jaccard(masks, OBJECT) == 1
    assert best_jaccard(masks[1:], OBJECT) == 2 / 4
    assert best_jaccard(masks[:1], ~OBJECT) == 0


def test_pointing_mass_and_rank_by_hand() -> None:
    assert pointing_game(MAP, OBJECT) == 1
    assert pointing_game(-MAP, OBJECT) == 0
    assert mass_accuracy(MAP, OBJECT) == 15 / 22
    assert rank_accuracy(MAP, OBJECT) == 2 / 3  # 10, 3, 3: one 3 is beside the object
    # Of four places the last goes to one of two pixels of 2, of which one is on the object.
    four = OBJECT.copy()
    four[0, 1] = True
    assert rank_accuracy(MAP, four) == 2.5 / 4


def test_a_constant_map_knows_nothing() -> None:
    for measure in (pointing_game, mass_accuracy, rank_accuracy):
        assert measure(CONSTANT, OBJECT) == pytest.approx(3 / 9)
    assert mass_accuracy(0 * MAP, OBJECT) == 3 / 9


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda: foreground_overlap(MAP, OBJECT.astype(int)), 'bool'),
        (lambda: foreground_overlap(MAP, OBJECT, threshold=30), 'threshold'),
        (lambda: foreground_overlap(MAP[:2], OBJECT), 'size of the labels'),
        (lambda: foreground_overlap(MAP, OBJECT, MAP > 99), 'no pixel'),
        (lambda: foreground_overlap(MAP / 0, OBJECT), 'finite'),
        (lambda: mass_masks(-MAP), 'negative'),
        (lambda: mass_masks(MAP, 60), 'mass'),
        (lambda: mass_accuracy(MAP - 1, OBJECT), 'negative'),
        (lambda: pointing_game(MAP, MAP > 99), 'no pixel'),
        (lambda: best_jaccard([OBJECT], MAP > 99), 'no pixel'),
    ],
)
@pytest.mark.filterwarnings('ignore:.*(divide|invalid value)')
def test_what_cannot_be_measured_is_refused(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()
