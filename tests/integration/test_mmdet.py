"""MMDetection: the ViTDet of configs/README.md trains, frozen and end to end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

REPO = Path(__file__).parents[2]
NAMES = {'class SimpleFPN': 'simple_fpn.py', "'mmdet::": 'vitdet.py'}
TINY = """
_base_ = 'vitdet.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.AbSViT',
        arch=dict(trunk='timm/vit_small_patch16_dinov3.lvd1689m', num_layers=2),
        transfer='{transfer}',
    ),
    neck=dict(in_channels=384),
    roi_head=dict(bbox_head=dict(num_classes=2), mask_head=dict(num_classes=2)),
)
dataset = dict(
    data_root='',
    ann_file='labels.json',
    data_prefix=dict(img='images'),
    metainfo=dict(classes=('dark', 'light')),
    pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', scale=(128, 96), keep_ratio=True),
        dict(type='PackDetInputs'),
    ],
)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dataset)
val_dataloader = test_dataloader = val_evaluator = test_evaluator = None
val_cfg = test_cfg = None
train_cfg = dict(max_epochs=2)
"""
RUNNER = """
from mmengine.config import Config
from mmengine.runner import Runner
import mmvars
cfg = Config.fromfile('tiny.py')
cfg.work_dir = 'out'
Runner.from_cfg(cfg).train()
"""


def _write_data(folder: Path) -> None:
    """Two images with a rectangle each, in the layout of COCO."""
    (folder / 'images').mkdir()
    images, annotations = [], []
    for index, (width, height) in enumerate([(120, 80), (90, 90)]):
        pixels = np.full((height, width, 3), 60, dtype=np.uint8)
        pixels[20:60, 30:80] = 200 * index
        Image.fromarray(pixels).save(folder / 'images' / f'{index}.png')
        images.append(dict(id=index, file_name=f'{index}.png', width=width, height=height))
        annotations.append(
            dict(
                id=index + 1,
                image_id=index,
                category_id=index + 1,
                bbox=[30, 20, 50, 40],
                area=2000,
                iscrowd=0,
                segmentation=[[30, 20, 80, 20, 80, 60, 30, 60]],
            )
        )
    categories = [dict(id=1, name='dark'), dict(id=2, name='light')]
    labels = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'labels.json').write_text(json.dumps(labels))


def _write_readme_files(folder: Path) -> None:
    text = (REPO / 'configs' / 'README.md').read_text()
    blocks = re.findall(r'```python\n(.*?)```', text, re.DOTALL)
    for mark, name in NAMES.items():
        (block,) = [block for block in blocks if mark in block]
        (folder / name).write_text(block)


@pytest.mark.slow
@pytest.mark.parametrize(
    'transfer, command',
    [
        ('top-down', ['-m', 'mmvars.cli', 'train', 'tiny.py', '--work-dir', 'out']),
        ('end2end', ['-c', RUNNER]),
    ],
)
def test_vitdet_trains_two_iterations(transfer, command, tmp_path):
    pytest.importorskip('mmdet', reason='needs MMDetection: configs/README.md says how')
    _write_data(tmp_path)
    _write_readme_files(tmp_path)
    (tmp_path / 'tiny.py').write_text(TINY.replace('{transfer}', transfer))
    done = subprocess.run(
        [sys.executable, *command],
        cwd=tmp_path,
        env=os.environ | {'PYTHONPATH': f'{REPO}:{tmp_path}', 'OMP_NUM_THREADS': '1'},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        torch.load(tmp_path / 'out' / f'epoch_{epoch}.pth', weights_only=False)['state_dict']
        for epoch in (1, 2)
    )
    changed = {name for name, tensor in one.items() if not torch.equal(tensor, two[name])}
    parts = {name.split('.')[0] for name in changed}
    assert parts == {'backbone', 'neck', 'rpn_head', 'roi_head'}
    assert 'backbone.network.feedback.decoders.0.gate' in changed
    assert any('network.trunk' in name for name in changed) == (transfer == 'end2end')
