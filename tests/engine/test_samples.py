"""Batches that no memory holds are refused; a lack of memory is not blamed on a file."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.structures import BaseDataElement, PixelData
from PIL import Image
from torch.utils.data import BatchSampler

from mmvars.engine.samples import CheckedPipeline
from mmvars.engine.strict import StrictRunner
from mmvars.errors import InputError


class Data:
    """Samples of 1 MB, whose making draws random numbers."""

    def __init__(self, length: int = 10, test_mode: bool = False) -> None:
        self.length, self.test_mode = length, test_mode

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict:
        random.random(), np.random.rand(), torch.rand(1)
        labels = PixelData(data=torch.zeros(500, 500, dtype=torch.uint8))
        sample = BaseDataElement(gt_sem_seg=labels)
        return dict(inputs=torch.zeros(3, 500, 500, dtype=torch.uint8), data_samples=sample)


def _build(data: Any, batch_size: int, sampler: str = 'InfiniteSampler', **options: Any) -> None:
    StrictRunner.build_dataloader(
        dict(dataset=data, batch_size=batch_size, sampler=dict(type=sampler), **options), seed=0
    )


def test_a_batch_that_the_machine_cannot_hold_is_refused() -> None:
    said = r'batch_size 99999999 of train_dataloader: .* takes about 200,000 GB.* set it to \d+ at'
    with pytest.raises(InputError, match=said):
        _build(Data(), 99999999)
    with pytest.raises(InputError, match='of train_dataloader'):
        _build(Data(), 99999999, batch_sampler=dict(type=BatchSampler, drop_last=False))
    with pytest.raises(InputError, match='of val_dataloader or test_dataloader'):
        _build(Data(99999999, test_mode=True), 99999999, 'DefaultSampler')
    _build(Data(), 99999999, 'DefaultSampler')  # ten samples are all that a batch can have
    _build(Data(), 100)


def test_the_size_of_a_sample_costs_no_random_numbers() -> None:
    drawn = []
    for is_built in (False, True):
        random.seed(0), np.random.seed(0), torch.manual_seed(0)
        if is_built:
            _build(Data(), 2)
        drawn.append((random.random(), np.random.rand(), float(torch.rand(1))))
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize(
    'error',
    [MemoryError(), RuntimeError("[enforce] DefaultCPUAllocator: can't allocate memory: 12 bytes")],
)
@pytest.mark.parametrize('where', ['pipeline', 'file'])
def test_a_lack_of_memory_is_not_blamed_on_the_file(error, where, tmp_path, monkeypatch) -> None:
    path = str(tmp_path / 'a.png')
    Image.new('RGB', (4, 4)).save(path)

    def fail(*args: Any) -> None:
        raise error if where == 'pipeline' else ValueError('what a transform says')

    if where == 'file':
        monkeypatch.setattr(Image.Image, 'load', lambda image: (_ for _ in ()).throw(error))
    said = 'no memory to load' if where == 'pipeline' else 'cannot be loaded: ValueError: what'
    with pytest.raises(InputError, match=said) as caught:
        CheckedPipeline(Compose([fail]).transforms)(dict(img_path=path))
    assert 'damaged' not in str(caught.value)
