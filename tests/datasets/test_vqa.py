"""VQAv2: the fields of mmpretrain, the targets by hand, and what is refused."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config

from mmvars.datasets import VQAv2, check_data_roots
from mmvars.datasets.vqa import count_answers
from mmvars.errors import InputError

EXPECTED = (
    'expected in data_root:\n    answers.json\n    questions.json\n    annotations.json\n'
    r'    train2014/\*_NUMBER.jpg\n'
)
ANSWERS = ['yes', 'no', '2', 'dog']
OTHER = dict(question_id=10, answers=[dict(answer='yes')])
QUESTIONS = {  # question_id -> image_id, the answers of ten people
    10: (9, ['yes'] * 10),
    11: (9, ['dog'] * 3 + ['Dog', 'cat'] + ['yes'] * 4 + ['2']),
    12: (25, ['a cat'] * 9 + ['bird']),
    13: (25, ['no', 'no'] + [f'bird {n}' for n in range(8)]),
}


def _write(path: Path, **content) -> None:
    path.write_text(json.dumps(content))


@pytest.fixture
def root(tmp_path) -> Path:
    root = tmp_path / 'coco'
    (root / 'train2014').mkdir(parents=True)
    for image in (9, 25):
        (root / 'train2014' / f'COCO_train2014_{image:012d}.jpg').touch()
    ids = [dict(question_id=key, image_id=image) for key, (image, _) in QUESTIONS.items()]
    _write(root / 'questions.json', questions=[dict(i, question='what is it?') for i in ids])
    annotations = [
        dict(
            each,
            answers=[dict(answer=answer, answer_id=n) for n, answer in enumerate(given, 1)],
            multiple_choice_answer=given[0],
            answer_type='other',
        )
        for each, (_, given) in zip(ids, QUESTIONS.values(), strict=True)
    ]
    _write(root / 'annotations.json', annotations=annotations)
    (root / 'answers.json').write_text(json.dumps(ANSWERS))
    return root


def _config(root: Path, **changes) -> dict:
    names = dict(question_file='questions.json', answer_file='answers.json')
    return (
        dict(data_root=str(root), data_prefix='train2014', ann_file='annotations.json', **names)
        | changes
    )


def _samples(dataset) -> list[dict]:
    return [dataset.get_data_info(index) for index in range(len(dataset))]


def test_fields_are_those_of_mmpretrain(root):
    stock = pytest.importorskip('mmpretrain.datasets.coco_vqa').COCOVQA
    config = _config(root)
    del config['answer_file']
    theirs = _samples(stock(**config))
    ours = _samples(VQAv2(**_config(root), test_mode=True))
    assert len(theirs) == len(ours) == 4
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.pop('gt_score').shape == (4,)
        assert mine == other


def test_targets_are_the_official_accuracy_of_each_answer(root):
    """The mean over all choices of nine of the ten people, of min(1, how many gave it / 3)."""
    for sample in _samples(VQAv2(**_config(root), test_mode=True)):
        given = QUESTIONS[sample['question_id']][1]
        official = [
            np.mean([min(1, nine.count(answer) / 3) for nine in itertools.combinations(given, 9)])
            for answer in ANSWERS
        ]
        np.testing.assert_allclose(sample['gt_score'], official, atol=1e-6)
    sample = VQAv2(**_config(root))[1]
    np.testing.assert_allclose(sample['gt_score'], [1, 0, 0.3, 0.9], atol=1e-6)
    assert sample['gt_score'].dtype == np.float32


def test_questions_without_a_known_answer_are_dropped_in_training_alone(root):
    train, val = VQAv2(**_config(root)), VQAv2(**_config(root), test_mode=True)
    assert [sample['question_id'] for sample in _samples(train)] == [10, 11, 13]
    assert [sample['question_id'] for sample in _samples(val)] == [10, 11, 12, 13]
    assert train.metainfo['classes'] == tuple(ANSWERS)
    test = _samples(VQAv2(**_config(root, ann_file='')))
    assert [sample['question_id'] for sample in test] == [10, 11, 12, 13]
    assert 'gt_score' not in test[0] and 'gt_answer' not in test[0]


def test_the_vocabulary_is_counted_of_normalized_answers_in_their_order(tmp_path):
    first, second = tmp_path / 'train.json', tmp_path / 'val.json'
    for path, answers in (
        (first, ['the dog', 'Two', 'rare', 'dog']),
        (second, ['2', 'cat', 'cat']),
    ):
        _write(path, annotations=[dict(multiple_choice_answer=answer) for answer in answers])
    files = [str(first), str(second)]
    assert count_answers(files, 2) == ['dog', '2', 'cat']
    assert count_answers(files[::-1], 2) == ['2', 'cat', 'dog']
    with pytest.raises(InputError, match='lower --min-count'):
        count_answers(files)


@pytest.mark.parametrize(
    'break_it, message',
    [
        (lambda r: (r / 'answers.json').unlink(), r'vqa_answers\.py .*-o .*/coco/answers\.json'),
        (lambda r: (r / 'questions.json').unlink(), f'{EXPECTED}  found'),
        (lambda r: (r / 'annotations.json').unlink(), f'{EXPECTED}  found'),
        (
            lambda r: (r / 'train2014' / 'COCO_train2014_000000000025.jpg').unlink(),
            r"1 images of .* are not in '.*/train2014': \*000000000025\.jpg",
        ),
        (lambda r: _write(r / 'questions.json', images=[]), r'must be built like \{"questions"'),
        (lambda r: (r / 'questions.json').write_text('{'), 'is no JSON file'),
        (
            lambda r: _write(
                r / 'annotations.json',
                annotations=[dict(question_id=10, answers=[dict(answer='')])],
            ),
            '3 questions of .* are not in .*first question_id 11',
        ),
        (lambda r: (r / 'answers.json').write_text('["bus"]'), 'has no answer to any question'),
        (lambda r: (r / 'answers.json').write_text('["no", "no"]'), 'lists an answer twice'),
    ],
)
def test_what_is_missing_or_wrong_is_said_once_with_what_is_expected(root, break_it, message):
    break_it(root)
    loader = dict(dataset=dict(type='mmvars.VQAv2', pipeline=[], **_config(root)))
    with pytest.raises(InputError, match=message):
        check_data_roots(Config(dict(train_dataloader=loader)))
        VQAv2(**_config(root))
