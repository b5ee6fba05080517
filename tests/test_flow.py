"""How many files and functions a reader must follow through one forward."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import mmvars

pytest.importorskip('mmseg.models', exc_type=ImportError)
from mmengine.registry import MODELS  # noqa: E402

ROOT = str(Path(mmvars.__file__).parent)
ARCH = dict(embed_dims=48, num_layers=2, num_heads=3)
# Backbone -> files, functions and changes of file; timm's ViT with two blocks has (5, 11, 13).
LIMITS = {
    'ViT': (dict(type='mmvars.ViT', arch=dict(ARCH, patch_size=16)), (6, 16, 22)),
    'AbSViT': (dict(type='mmvars.AbSViT', arch=dict(ARCH, patch_size=16)), (8, 25, 40)),
    'VARS-SD in RVT': (
        dict(type='mmvars.VARS', arch=dict(ARCH, trunk='rvt'), mixer='vars_sd'),
        (10, 32, 50),
    ),
}


class Flow(NamedTuple):
    """Python frames of the package in one call: distinct files and functions, and how often a
    frame is in another file than the frame before it."""

    files: int
    functions: int
    changes: int


def measure_flow(call: Callable[[], object]) -> Flow:
    """Count every frame that is entered, in the order of the calls."""
    frames = []

    def profile(frame, event, arg):
        if event == 'call' and frame.f_code.co_filename.startswith(ROOT):
            frames.append(
                (
                    frame.f_code.co_filename,
                    frame.f_code.co_qualname
                    if hasattr(frame.f_code, 'co_qualname')
                    else f'{frame.f_code.co_firstlineno} {frame.f_code.co_name}',
                )
            )

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    files = [file for file, _ in frames]
    changes = sum(one != other for one, other in zip(files, files[1:], strict=False))
    return Flow(len(set(files)), len(set(frames)), changes)


@pytest.mark.parametrize('name', LIMITS)
def test_a_forward_can_be_followed(name):
    cfg, limits = LIMITS[name]
    backbone = MODELS.build(dict(cfg, img_size=64)).eval()
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        flow = measure_flow(lambda: backbone(images))
    print(f'{name}: {flow}')  # shown by pytest -rP
    assert all(count <= limit for count, limit in zip(flow, limits, strict=True)), (
        f'{name}: {flow}, at most {limits}'
    )


def test_the_count_sees_files_functions_and_changes():
    from mmvars.errors import check_flag, check_number
    from mmvars.resources import resource_root

    def call():
        check_flag('a', True)
        resource_root()
        check_number('b', 1)
        check_number('b', 1)

    assert measure_flow(call) == (2, 3, 2)
