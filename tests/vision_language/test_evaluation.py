"""Answers and retrieval against the official definitions, by hand, and in loops."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch.utils.data import Dataset

from mmvars.errors import InputError
from mmvars.vision_language.evaluation import VQAMetric, recall_at

ANSWERS = ('yes', 'no', '2', 'dog')


def _sample(label: int, given: list[str] | None, **fields) -> dict:
    sample = dict(pred_label=torch.tensor([label]), pred_score=torch.zeros(len(ANSWERS)), **fields)
    if given is not None:
        sample['gt_answer'] = list(dict.fromkeys(given))
        sample['gt_answer_weight'] = [given.count(a) / len(given) for a in sample['gt_answer']]
    return sample


def _evaluate(metric: VQAMetric, samples: list[dict]) -> dict[str, float]:
    metric.dataset_meta = dict(classes=ANSWERS)
    metric.process(None, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize('count', range(11))
def test_accuracy_is_the_official_one(count):
    """The mean over all choices of nine of the ten, of min(1, how many of them agree / 3)."""
    given = ['dog'] * count + ['cat'] * (10 - count)
    official = np.mean([min(1, n.count('dog') / 3) for n in itertools.combinations(given, 9)])
    metrics = _evaluate(VQAMetric(), [_sample(3, given, question_id=1)])
    assert metrics == {'VQA/acc': pytest.approx(100 * official)}
    from mmpretrain.evaluation import VQAAcc

    stock = VQAAcc()
    stock.process(None, [dict(_sample(3, given), pred_answer='dog')])
    default = stock.evaluate(1)['VQA/acc']
    assert (default > 100 * official + 1) == (count in (1, 2, 3))


def test_answers_are_normalized_and_counted_by_type():
    samples = [
        _sample(2, ['Two'] * 4 + ['three'] * 6, question_id=1, answer_type='number'),
        _sample(3, ['a dog.'] * 10, question_id=2, answer_type='other'),
        _sample(0, ['no'] * 10, question_id=3, answer_type='other'),
    ]
    assert _evaluate(VQAMetric(), samples) == {
        'VQA/acc': pytest.approx(200 / 3),
        'VQA/acc_number': 100,
        'VQA/acc_other': 50,
    }


def test_a_submission_has_what_evalai_takes(tmp_path):
    path = tmp_path / 'answers.json'
    samples = [_sample(3, None, question_id=7), _sample(1, None, question_id=9)]
    assert _evaluate(VQAMetric(out_file=str(path)), samples) == {}
    assert json.loads(path.read_text()) == [
        dict(question_id=7, answer='dog'),
        dict(question_id=9, answer='no'),
    ]
    with pytest.raises(InputError, match='--out FILE.json'):
        _evaluate(VQAMetric(), samples)
    other = dict(samples[0], pred_score=torch.zeros(3))
    with pytest.raises(InputError, match='model tells 3 answers apart, and answer_file .* has 4'):
        _evaluate(VQAMetric(out_file=str(path)), [other])


OWNERS = np.array([0, 0, 1, 2, 2])
SCORES = np.array(
    [
        # 0    0    1    2    2
        [0.1, 0.9, 0.8, 0.3, 0.2],  # its second caption is the best
        [0.5, 0.1, 0.4, 0.6, 0.1],  # its only one is third
        [0.9, 0.2, 0.5, 0.5, 0.5],  # own ones tie with a foreign one behind the best: third
    ]
)


def test_recall_by_hand():
    """Ranks of the images' captions: 1, 3, 3. Of the captions' images: 3, 1, 3, 2, 1."""
    assert recall_at(SCORES, OWNERS, (1, 2, 3)) == {
        'TR@1': pytest.approx(100 / 3),
        'TR@2': pytest.approx(100 / 3),
        'TR@3': 100,
        'IR@1': 40,
        'IR@2': 60,
        'IR@3': 100,
    }
    assert recall_at(np.zeros((3, 5)), OWNERS, (1, 2)) == dict.fromkeys(
        ('TR@1', 'TR@2', 'IR@1', 'IR@2'), 0
    )


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers_find_nothing(value):
    """No caption is better than NaN, so that the own one would be the best."""
    scores = np.where(SCORES == 0.9, value, SCORES)
    with pytest.raises(InputError, match='2 of 15 scores .*NaN or infinite.*half precision'):
        recall_at(scores, OWNERS, (1,))
    sample = _sample(0, ['yes'] * 10, question_id=1)
    sample['pred_score'][2] = value
    with pytest.raises(InputError, match='1 of 4 scores .*NaN or infinite'):
        _evaluate(VQAMetric(), [sample])


class _Captions(Dataset):
    """Images that know their row, in the form of mmvars.Flickr30K in tests."""

    captions = ('a', 'b', 'c', 'd', 'e')
    metainfo: dict = {}  # noqa: RUF012

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict:
        sample = BaseDataElement()
        sample.set_field(np.flatnonzero(OWNERS == index).tolist(), 'gt_text_id')
        return dict(inputs=torch.tensor([float(index)]), data_samples=sample)


class _Scorer(BaseModel):
    """Gives the matrix above; the texts are encoded by weights that change."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.encoded: list[tuple] = []

    def data_preprocessor(self, data: dict, training: bool) -> dict:
        return dict(images=data['inputs'], data_samples=data['data_samples'])

    def text_backbone(self, texts) -> torch.Tensor:
        assert not self.training and not torch.is_grad_enabled()
        self.encoded.append(tuple(texts))
        return float(self.weight) * torch.arange(len(texts))

    def score(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        columns = (texts / self.weight).long()
        return torch.tensor(SCORES)[images[:, 0].long()][:, columns]

    def forward(self, *inputs, mode: str):
        raise AssertionError('the loop calls score')


def _runner(tmp_path) -> Runner:
    loader = dict(
        dataset=_Captions(),
        batch_size=2,
        num_workers=0,
        sampler=dict(type='DefaultSampler', shuffle=False),
        collate_fn=dict(type='default_collate'),
    )
    evaluator = dict(type='mmvars.RetrievalMetric', topk=(1, 2, 3))
    return Runner(
        model=_Scorer(),
        work_dir=str(tmp_path),
        val_dataloader=loader,
        val_cfg=dict(type='mmvars.RetrievalValLoop'),
        val_evaluator=evaluator,
        test_dataloader=loader,
        test_cfg=dict(type='mmvars.RetrievalTestLoop'),
        test_evaluator=evaluator,
        log_level='ERROR',
    )


def test_loops_score_every_image_with_every_caption(tmp_path):
    runner = _runner(tmp_path)
    expected = {f'retrieval/{k}': v for k, v in recall_at(SCORES, OWNERS, (1, 2, 3)).items()}
    for _ in range(2):  # the second time with other weights
        runner.model.train()
        assert runner.val() == expected
        runner.model.weight.data += 1
    assert runner.test() == expected
    assert runner.model.encoded == [_Captions.captions] * 3  # once a run, not once a batch


@pytest.mark.slow
def test_two_processes_give_what_one_gives(tmp_path):
    """Three images: one process has one twice, which must not count twice."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    common = dict(os.environ, WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port))
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, str(tmp_path)],
            env=dict(common, RANK=rank, LOCAL_RANK=rank),
        )
        for rank in '01'
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    expected = _runner(tmp_path / 'one').val()
    for rank in (0, 1):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == expected


if __name__ == '__main__':  # one of the two processes
    torch.distributed.init_process_group('gloo')
    found = _runner(Path(sys.argv[1])).val()
    Path(sys.argv[1], f'{os.environ["RANK"]}.json').write_text(json.dumps(found))
    torch.distributed.destroy_process_group()
