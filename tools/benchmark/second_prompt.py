"""What a further prompt of mmvars.Predictor costs, over a whole forward with that prompt.

    python tools/benchmark/second_prompt.py --side 512 --rounds 9

Both are measured in one process in turns, in CPU time, and compared round by round. The weights are
random: no cost depends on them. Before the clock starts, both give the same probabilities.

whole: `predict` of the model with the prompt: both passes, heads, logits at the size of the image.
click: `predict` of the predictor with a point: second pass, heads, logits, labels and all maps.
click and shift: The same, and probabilities and `shift` on top.
set_image: What is paid once an image: preparation and first pass.
backbone: Second pass over both passes, without heads.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from timing import paired_ratio

import mmvars
import mmvars.models  # noqa: F401  registers
from mmvars.errors import InputError

LINEAR = dict(type='mmvars.LinearHead', in_index=0, norm_cfg=dict(type='BN'))
UPERNET = dict(
    type='mmseg.UPerHead',
    in_index=[0, 1, 2, 3],
    pool_scales=(1, 2, 3, 6),
    channels=512,
    norm_cfg=dict(type='BN'),
)
MODEL_ROWS: dict[str, tuple[Any, dict, Any]] = {
    'AbSViT-Ti, linear head': ('tiny', LINEAR, -1),
    'AbSViT-Ti, UperNet': ('tiny', UPERNET, (2, 5, 8, 11)),
    'DINOv2-S/14, linear head': ('timm/vit_small_patch14_dinov2', LINEAR, -1),
}
"""Name -> arch of mmvars.AbSViT, decode head, blocks that it reads."""


def config(arch: Any, head: dict, out_indices: Any, num_classes: int) -> Config:
    """A segmentor whose images are taken as they are."""
    pipeline = [dict(type='mmvars.LoadImageFromFile'), dict(type='mmseg.PackSegInputs')]
    return Config(
        dict(
            default_scope='mmseg',
            model=dict(
                type='mmvars.EncoderDecoder',
                data_preprocessor=dict(
                    type='mmseg.SegDataPreProcessor', mean=[120] * 3, std=[60] * 3, bgr_to_rgb=True
                ),
                backbone=dict(type='mmvars.AbSViT', arch=arch, out_indices=out_indices),
                decode_head=dict(
                    head, in_channels=None, num_classes=num_classes, align_corners=False
                ),
                test_cfg=dict(mode='whole'),
            ),
            test_dataloader=dict(dataset=dict(type='mmseg.BaseSegDataset', pipeline=pipeline)),
        )
    )


def predictor_of(cfg: Config) -> mmvars.Predictor:
    """With random weights, and with open gates where there are any."""
    init_default_scope(cfg.default_scope)
    model = MODELS.build(cfg.model)
    for name, parameter in model.named_parameters():
        if name.endswith('.gate'):
            torch.nn.init.constant_(parameter, 0.3)
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder, 'config.py'), Path(folder, 'weights.pth')
        cfg.dump(paths[0])
        torch.save(dict(state_dict=model.state_dict()), paths[1])
        return mmvars.Predictor(*paths, device='cpu')


@torch.no_grad()
def compare(name: str, cfg: Config, side: int, rounds: int) -> None:
    """Measure one model, and print its rows."""
    predictor = predictor_of(cfg)
    picture = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    predictor.set_image(picture)
    state, network = predictor._state, predictor.model.backbone.network
    point = (side // 3, side // 2)
    prior = predictor.prior_vector(point)

    def whole() -> Any:
        sample = type(state.sample)(metainfo=dict(state.sample.metainfo))
        sample.set_field(prior, 'prior')
        return predictor.model.predict(state.inputs, [sample])[0]

    def click_and_shift() -> None:
        assert predictor.predict(point).shift.classes.any()

    contenders: dict[str, Callable[[], Any]] = {
        'whole': whole,
        'click': lambda: predictor.predict(point),
        'click and shift': click_and_shift,
        'set_image': lambda: predictor.set_image(picture),
        'backbone': lambda: predictor.model.backbone(state.inputs, prior),
        'second pass': lambda: network.forward_second_pass(
            state.passes[0], prior, out_indices=predictor.model.backbone._raw_indices
        ),
    }
    expected = whole().seg_logits.data.softmax(dim=0)
    if not np.array_equal(predictor.predict(point).probabilities, expected.numpy()):
        raise InputError(f'{name}: the predictor computes another function than the model')
    seconds: dict[str, list[float]] = {entry: [] for entry in contenders}
    for number in range(rounds + 1):
        for entry, function in contenders.items():
            start = time.process_time()
            function()
            if number:  # the first round warms up
                seconds[entry].append(time.process_time() - start)
            if entry == 'set_image':
                predictor.predict(point).shift  # noqa: B018  the one without a prompt, for the next
    for entry in ('whole', 'set_image', 'click', 'click and shift'):
        print(f'{name}, {side} px: {entry}: {statistics.median(seconds[entry]):.3f} s')
    for one, other in (('click', 'whole'), ('second pass', 'backbone')):
        ratio = paired_ratio(seconds[one], seconds[other])
        print(
            f'{name}, {side} px: {one} / {other}: {ratio.median:.3f} '
            f'[{ratio.low:.3f}, {ratio.high:.3f}]',
            flush=True,
        )


def main(argv: list[str] | None = None) -> int:
    """Measure all models."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--side', type=int, default=512, help='pixels')
    parser.add_argument('--num-classes', type=int, default=19)
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--threads', type=int, default=1, help='of the CPU')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for name, row in MODEL_ROWS.items():
        compare(name, config(*row, args.num_classes), args.side, args.rounds)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
