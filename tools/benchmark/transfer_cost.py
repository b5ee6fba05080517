"""Cost of top-down attention on a trunk of timm: inference, and training steps by what trains.

    python tools/benchmark/transfer_cost.py --sizes 224 518

All backbones of a mode are measured in one process in turns, and compared with the plain ones. The
weights are random: no cost depends on them. A head of one 1x1 convolution reads the last map.
"""

import argparse
from typing import Any

import torch
from timing import Case as Comparison
from timing import Contender, Settings, measure_case, paired_ratio
from torch import Tensor, nn

from mmvars.models import AbSViT, ViT

INFERENCE = {'plain': (ViT, {}), 'top-down': (AbSViT, {})}
TRAINING = {
    'plain, end2end': (ViT, {}),
    'plain, linear': (ViT, dict(transfer='linear')),
    'top-down, frozen': (AbSViT, dict(transfer='top-down')),
    'top-down, end2end': (AbSViT, {}),
}
"""Name -> backbone and its arguments. Plain ones are what the others are compared with."""


class Segmentor(nn.Module):
    """A backbone with open gates, and a head of 19 classes."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.out_channels[-1], 19, 1)
        for name, parameter in backbone.named_parameters():
            if name.endswith('.gate'):
                nn.init.constant_(parameter, 0.3)

    def forward(self, images: Tensor) -> Tensor:
        """``(B, 3, H, W)`` to class scores ``(B, 19, h, w)``."""
        return self.head(self.backbone(images)[-1])

    def fuse(self) -> None:
        """See :meth:`mmvars.models.base.Backbone.fuse`."""
        self.backbone.fuse()


def compare(arch: str, side: int, batch_size: int, mode: str, rounds: int) -> None:
    """Measure the backbones of a mode at one size, and print a row for each pair."""

    def contender(name: str, kind: Any, arguments: dict[str, Any]) -> Contender:
        return Contender(
            name,
            lambda: Segmentor(kind(arch=arch, **arguments)),
            lambda: (torch.randn(batch_size, 3, side, side),),
            input_gradients=False,
        )

    entries = TRAINING if mode == 'training' else INFERENCE
    contenders = tuple(contender(name, *entry) for name, entry in entries.items())
    settings = Settings(mode=mode, rounds=rounds, min_seconds=0.0)
    measured = {
        each.name: each for each in measure_case(Comparison('', side, contenders), settings)
    }
    for name, ours in measured.items():
        saved = f', {ours.saved_bytes / 2**20:.0f} MiB for backward' if ours.saved_bytes else ''
        print(f'{side} {mode}: {name}: {sorted(ours.seconds)[len(ours.seconds) // 2]:.3f} s{saved}')
    for name in (name for name in measured if name.startswith('top-down')):
        for plain in (plain for plain in measured if plain.startswith('plain')):
            ratio = paired_ratio(measured[name].seconds, measured[plain].seconds)
            print(
                f'{side} {mode}: {name} / {plain}: {ratio.median:.2f} '
                f'[{ratio.low:.2f}, {ratio.high:.2f}]',
                flush=True,
            )


def main(argv: list[str] | None = None) -> int:
    """Measure inference and training at every size."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--arch', default='timm/vit_small_patch14_dinov2', help='trunk')
    parser.add_argument('--sizes', type=int, nargs='+', default=[224, 518], help='pixels')
    parser.add_argument('--batch-size', type=int, default=1)
    parser.add_argument('--modes', nargs='+', choices=('forward', 'training'))
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--threads', type=int, default=1, help='of the CPU')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    for side in args.sizes:
        for mode in args.modes or ('forward', 'training'):
            compare(args.arch, side, args.batch_size, mode, args.rounds)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
