"""Maps of people who answered questions, and the rank correlation with them."""

import numpy as np
import pytest
from PIL import Image

from mmvars.errors import InputError
from mmvars.states import Frame
from mmvars.vision_language.human_attention import rank_correlation, read_vqa_hat, seen_map

RNG = np.random.default_rng(0)


def test_ranks_alone_count():
    values = RNG.random((14, 14))
    assert rank_correlation(values, np.exp(5 * values)) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert abs(rank_correlation(values, RNG.permuted(values))) < 0.3
    assert np.isnan(rank_correlation(values, np.ones((14, 14))))


def test_it_is_spearmans_correlation_with_ties():
    stats = pytest.importorskip('scipy.stats')
    first, second = RNG.integers(0, 5, (2, 14, 14)).astype(float)
    expected = stats.spearmanr(first.ravel(), second.ravel()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected, abs=1e-12)


def test_places_are_averages_of_pixels():
    first, second = RNG.random((2, 28, 42))
    small = [each.reshape(14, 2, 14, 3).mean(axis=(1, 3)) for each in (first, second)]
    assert rank_correlation(first, second) == pytest.approx(rank_correlation(*small), abs=1e-12)


def test_the_map_of_a_person_is_seen_through_the_crop_of_the_network(tmp_path):
    """An image of 40x20 pixels, scaled to 20x10, of which the middle 10x10 are seen."""
    values = np.zeros((20, 40), dtype=np.uint8)
    values[:, 20:] = 200
    Image.fromarray(values).save(tmp_path / '1_1.png')
    frame = Frame(size=(20, 40), scaled=(10, 20), seen=(10, 10))
    seen = seen_map(str(tmp_path / '1_1.png'), frame)
    assert seen.shape == (10, 10)
    assert (seen[:, :5] == 0).all() and (seen[:, 5:] == 200).all()
    with pytest.raises(InputError, match='40x20 pixels, and its image 20x40: they must be of one'):
        seen_map(str(tmp_path / '1_1.png'), frame._replace(size=(40, 20)))


def test_questions_are_those_with_maps(tmp_path, write_vqa_hat):
    questions = [(11, 1, 'What?'), (12, 1, 'Who?'), (21, 2, 'Where?'), (31, 3, 'Why?')]
    data = read_vqa_hat(write_vqa_hat(tmp_path / 'hat', questions, {11: 3, 12: 1, 21: 2}))
    assert data.names == ['11', '12', '21']
    assert list(data.questions) == ['What?', 'Who?', 'Where?']
    assert [len(files) for files in data.human] == [3, 1, 2]
    assert data.paths[0] == data.paths[1] != data.paths[2]
    assert [data.other(index) for index in range(3)] == [1, 0, 0]  # of its image, if there is one


def test_missing_files_are_named_with_the_layout(tmp_path, write_vqa_hat):
    with pytest.raises(InputError, match=r'maps of 0 questions and no OpenEnded(.|\n)*laid out as'):
        read_vqa_hat(tmp_path)
    folder = write_vqa_hat(tmp_path / 'hat', [(11, 1, 'What?')], {11: 1, 99: 1})
    with pytest.raises(InputError, match='lacks the questions 99, which have maps'):
        read_vqa_hat(folder)
    (folder / 'vqahat_val' / '99_1.png').unlink()
    image = folder / 'val2014' / 'COCO_val2014_000000000001.jpg'
    image.unlink()
    with pytest.raises(InputError, match=r'lacks .*000000000001.jpg(.|\n)*It must be'):
        read_vqa_hat(folder)
    (folder / 'OpenEnded_mscoco_val2014_questions.json').write_text('{"questions": [{}]}')
    with pytest.raises(InputError, match=r"is not as it must be \(KeyError: 'question_id'\)"):
        read_vqa_hat(folder)
