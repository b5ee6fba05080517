"""The protocol on planted models: what is known of them must come out, controls included."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmvars.steerability.asking import Subject
from mmvars.steerability.photos import Photo, collage
from mmvars.steerability.protocol import Plan, measure, num_steps
from mmvars.steerability.report import Report, comparison

SIZE, CLASSES = (16, 24), 6


class Photos:
    """Images whose labels are vertical stripes of four of six classes; the last column has none."""

    def __init__(self, count: int = 6, stripes: int = 4) -> None:
        self.photos = []
        for index in range(count):
            rng = np.random.default_rng(index)
            row = np.repeat(rng.permutation(CLASSES)[:stripes], SIZE[1] // stripes)
            labels = np.tile(row, (SIZE[0], 1))
            labels[:, -1] = -1
            pixels = rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            self.photos.append(Photo(f'{index}.png', pixels, labels))

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, index: int) -> Photo:
        return self.photos[index]


class Planted(Subject):
    """Answers by a function of (labels, prior, random numbers); see :func:`planted`."""

    num_classes, has_head, takes_prior, segments, own_alpha = CLASSES, True, True, True, 1.0

    def __init__(self, answer, askable=range(CLASSES)) -> None:
        self.answer, self.askable = answer, np.array(askable)
        self.left_out = tuple(k for k in range(CLASSES) if k not in askable)
        self.priors = {k: np.eye(CLASSES, dtype=np.float32)[k] for k in askable}
        self.rng = np.random.default_rng(0)

    def set_image(self, photo):
        self.labels = photo.labels
        self.plain = self.prediction(None)
        return self.plain

    def ask(self, priors, alpha=None):
        return [self.prediction(prior, alpha) for prior in priors]

    def prediction(self, prior, alpha=None):
        answer = self.answer(self.labels, prior, self.rng).astype(np.float32)
        labels = np.where(self.labels < 0, 0, self.labels)  # the truth
        if alpha == 4.0:
            labels = np.zeros_like(labels)
        first = np.ones(labels.shape, np.float32)
        return SimpleNamespace(
            labels=labels,
            heatmap=answer,
            token_weights=answer,
            attention=first + answer,
            bottom_up=first,
            prior=None if prior is None else np.ones(3),
            probabilities=np.moveaxis(np.eye(CLASSES)[labels], -1, 0),
        )


def oracle(labels, prior, rng):
    return labels == prior if isinstance(prior, int) else np.zeros(labels.shape)


def numbers_of(subject, photos=None, **options):
    photos = photos or Photos()
    plan = Plan(range(len(photos)), **options)
    results = measure(subject, photos, plan)
    return Report(
        'x', results, True, subject.takes_prior, 1.0, 'norms', tuple('abcdef'), [[0] * 3] * 6, 0
    )


def value(report, section, table, row, column):
    return report.numbers[section][table][row][column].value


def test_an_oracle_is_right_in_all_and_its_controls_are_not() -> None:
    report = numbers_of(Planted(oracle))
    for column in ('answer', 'weights', 'attention', 'change'):
        assert value(report, 'images', 'flip', 'its prior', column) == 1
        assert value(report, 'images', 'auc', 'its prior', column) == 1
        for row in ('shuffled priors', 'absent class', 'random prior', 'center'):
            assert value(report, 'images', 'flip', row, column) == 0
            expected = 0.5 if row != 'shuffled priors' else pytest.approx(0.35, abs=0.05)
            assert value(report, 'images', 'auc', row, column) == expected
    assert value(report, 'images', 'iou', 'its prior', 'answer at 0.5') == 1
    assert value(report, 'images', 'iou', 'shuffled priors', 'answer at 0.5') == 0
    assert value(report, 'images', 'iou', 'absent class', 'answer at 0.5') == 0
    assert value(report, 'images', 'iou', 'no prior', 'labels') == 1
    assert value(report, 'images', 'iou', 'whole image', 'labels') == pytest.approx(0.25, abs=0.02)
    assert value(report, 'images', 'marked', 'absent class', 'answer at 0.5') == 0
    assert value(report, 'images', 'marked', 'its prior', 'answer at 0.5') == pytest.approx(
        value(report, 'images', 'marked', 'true', 'share')
    )
    assert value(report, 'images', 'share', 'its prior', 'answer') == 1
    assert value(report, 'images', 'share', 'whole image', 'answer') == pytest.approx(
        0.25, abs=0.02
    )
    assert value(report, 'images', 'flip', 'no prior', 'class probability') == 1


def test_an_oracle_attends_to_the_named_tile() -> None:
    report = numbers_of(Planted(oracle), Photos(24))
    for section in ('pairs', 'squares'):
        assert value(report, section, 'share', 'its prior', 'answer') == 1
        assert value(report, section, 'auc', 'its prior', 'answer') > 0.6
        assert value(report, section, 'share', 'its prior', 'attention') > value(
            report, section, 'share', 'no prior', 'attention'
        )
        gain = report.numbers[section]['share']['its prior less none']['attention']
        assert gain.value == pytest.approx(
            value(report, section, 'share', 'its prior', 'attention')
            - value(report, section, 'share', 'no prior', 'attention')
        )
        assert 0 < gain.low <= gain.value <= gain.high
        assert value(report, section, 'auc', 'random prior', 'answer') == 0.5
    assert value(report, 'pairs', 'auc', 'absent class', 'answer') == 0.5
    assert value(report, 'pairs', 'flip', 'its prior', 'answer') == 1
    assert value(report, 'pairs', 'share', 'no prior', 'attention') == pytest.approx(0.5)
    assert value(report, 'squares', 'share', 'no prior', 'attention') == pytest.approx(0.25)


@pytest.mark.parametrize(
    'answer',
    [
        lambda labels, prior, rng: np.full(labels.shape, 0.7),
        lambda labels, prior, rng: np.linspace(0, 1, labels.size).reshape(labels.shape),
        lambda labels, prior, rng: labels == 2,
    ],
)
def test_what_ignores_the_prior_never_follows(answer) -> None:
    report = numbers_of(Planted(answer))
    for row, columns in report.numbers['images']['flip'].items():
        for column in ('answer', 'weights', 'attention', 'change'):
            if row != 'no prior' or column == 'attention':
                assert columns[column].low == columns[column].high == 0


def test_random_answers_follow_in_a_quarter_of_the_pairs() -> None:
    report = numbers_of(Planted(lambda labels, prior, rng: rng.random(labels.shape)), Photos(20))
    flip = report.numbers['images']['flip']['its prior']['answer']
    assert flip.low < 0.25 < flip.high and flip.count == 20 * 6
    assert value(report, 'images', 'auc', 'its prior', 'answer') == pytest.approx(0.5, abs=0.02)


def test_a_model_that_takes_no_prior_gives_one_answer() -> None:
    subject = Planted(oracle)
    subject.takes_prior, subject.own_alpha = False, None
    report = numbers_of(subject)
    answers = {
        columns['answer at 0.5'].value
        for row, columns in report.numbers['images']['iou'].items()
        if row in ('its prior', 'random prior', 'center')
    }
    assert answers == {0}
    assert all(
        columns['answer'].value == 0 for columns in report.numbers['images']['flip'].values()
    )
    assert not report.results.alphas and 'takes no prior' in report.render()


def test_the_sweep_finds_the_alpha_that_spoils_the_labels() -> None:
    sweep = numbers_of(Planted(oracle)).numbers['images']['sweep']
    assert list(sweep) == ['no prior', '0', '0.5', '1', '2', '4']
    for row in ('0', '0.5', '1', '2'):
        assert sweep[row]['gain named'].value == sweep[row]['loss miou'].value == 0
    assert sweep['4']['loss miou'].value > 0.8 > 0 > sweep['4']['gain named'].value
    assert sweep['no prior']['miou'].value == 1


class Halves(Planted):
    """Labels that are wrong in the upper half, but for the class that is asked for."""

    def prediction(self, prior, alpha=None):
        prediction = super().prediction(prior, alpha)
        wrong = self.labels[:8] != (prior if isinstance(prior, int) else -1)
        prediction.labels[:8] = (prediction.labels[:8] + wrong) % CLASSES
        return prediction


def test_the_gain_of_the_sweep_has_controls() -> None:
    sweep = numbers_of(Halves(oracle)).numbers['images']['sweep']['2']
    assert sweep['gain named'].value > 0.3 > abs(sweep['gain shuffled'].value)
    assert sweep['gain random'].low == sweep['gain random'].high == 0


def test_alpha_0_loses_nothing_where_an_image_has_no_class_to_ask_for() -> None:
    """An image of one class alone, whose IoU is another, counts at every alpha or at none."""
    photos = Photos(3)
    photos.photos[0].labels[:] = 2

    class Wrong(Planted):
        def prediction(self, prior, alpha=None):
            prediction = super().prediction(prior, alpha)
            prediction.labels[:8] = (prediction.labels[:8] + 1) % CLASSES
            return prediction

    sweep = numbers_of(Wrong(oracle), photos).numbers['images']['sweep']
    for row in ('0', '0.5', '1', '2'):
        assert sweep[row]['loss miou'].value == 0


def test_a_control_that_is_missing_is_said_to_be() -> None:
    note = 'No control by an absent class: no image lacks a class that can be asked for.'
    report = numbers_of(Planted(oracle), Photos(2, stripes=CLASSES))
    assert 'absent class' not in report.numbers['images']['flip'] and note in report.render()
    assert report.as_json()['sections']['images']['notes'] == [note]
    assert not numbers_of(Planted(oracle), Photos(2)).as_json()['sections']['images']['notes']


def test_shuffled_priors_that_are_missing_are_said_to_be() -> None:
    """All tiles show the same two classes but one, whose tile alone has a name."""
    photos = Photos(4, stripes=2)
    for photo, left in zip(photos.photos, (2, 0, 0, 0), strict=True):
        photo.labels[:, :12], photo.labels[:, 12:] = left, 1
    report = numbers_of(Planted(oracle, askable=(1, 2, 3)), photos)
    note = 'No control by shuffled priors: no image has two regions to ask for.'
    sections = report.as_json()['sections']
    assert 'shuffled priors' not in sections['squares']['auc']
    assert sections['squares']['notes'] == [note] and not sections['images']['notes']


def test_classes_without_a_prior_are_not_asked_for() -> None:
    report = numbers_of(Planted(oracle, askable=(0, 1, 2)))
    assert report.results.left_out == (3, 4, 5)
    assert 'their prior is zero: d, e, f' in report.render()
    asked = {k for example in report.results.examples for k in example.classes}
    assert asked <= {0, 1, 2} and len(report.results.examples) == 4


def test_a_seed_repeats_and_another_does_not() -> None:
    def answer(labels, prior, rng):
        tilt = np.linspace(0, prior[0] if isinstance(prior, np.ndarray) else 0, SIZE[1])
        tilt = np.resize(tilt, labels.shape)
        return np.clip(oracle(labels, prior, rng) * 0.4 + tilt, 0, 1)

    def numbers(seed):
        return numbers_of(Planted(answer), Photos(2), seed=seed).as_json()['sections']

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_progress_counts_every_image_and_collage() -> None:
    steps = []
    measure(Planted(oracle), Photos(9), Plan(range(9)), lambda: steps.append(1))
    assert len(steps) == num_steps(9, True) == 9 + 2 + 2


def test_the_comparison_names_models_side_by_side() -> None:
    reports = [numbers_of(Planted(oracle)), numbers_of(Planted(oracle, (0, 1, 2)))]
    reports[1].name = 'y'
    text = comparison(reports)
    assert 'images: flip, answer, its prior' in text and text.count('100.0 [100.0, 100.0]') > 4


@pytest.mark.parametrize('layout, size', [('square', (16, 16)), ('side', (16, 48))])
def test_collages_of_two(layout, size) -> None:
    photos = Photos(2).photos
    photo, regions = collage(photos, layout)
    assert photo.labels.shape == photo.image.shape[:2] == size
    assert (regions[0] ^ regions[1]).all() and regions[0].sum() == regions[1].sum()
    if layout == 'square':
        middles = np.hstack([each.image[:, 8:16] for each in photos])
        np.testing.assert_array_equal(photo.image, middles)
    else:
        np.testing.assert_array_equal(photo.image, np.hstack([each.image for each in photos]))
        np.testing.assert_array_equal(photo.labels, np.hstack([each.labels for each in photos]))


def test_collages_of_four_shrink_their_images() -> None:
    photos = Photos(4).photos
    photo, regions = collage(photos, 'square')
    assert photo.labels.shape == SIZE and sum(map(np.sum, regions)) == photo.labels.size
    for region, each in zip(regions, photos, strict=True):
        tile = photo.labels[region].reshape(8, 12)
        assert set(np.unique(tile)) <= set(np.unique(each.labels))
        np.testing.assert_array_equal(tile[0, 1:9:3], each.labels[0, 3:18:6])
