"""What METER saves by sharing the first pass of an image among its captions.

    python tools/benchmark/shared_first_pass.py --captions 16

The same weights compute the same outputs (in training: gradients) once as METER does, with one
first pass an image, and once with the image repeated for every caption. Both are measured in one
process in turns, in CPU time, and compared round by round. The weights are random: no cost depends
on them. The text backbone is left out, which costs both sides the same.

encoder: The vision backbone alone. A plain ViT has no second pass, so one pass is all it needs.
whole: With fusion and head, the scores of the captions.
"""

import argparse
import functools
from collections.abc import Callable
from typing import Any

import torch
from timing import Case, Contender, Settings, measure_case, paired_ratio
from torch import Tensor, nn

import mmvars.models  # noqa: F401  registers
from mmvars.registry import MODELS
from mmvars.vision_language import METER, TextFeatures

TEXT_DIM = 768
BACKBONES: dict[str, dict[str, Any]] = {
    'AbSViT': dict(type='mmvars.AbSViT', prior=dict(type='text', text_dim=TEXT_DIM)),
    'ViT': dict(type='mmvars.ViT'),
}


class Captions(nn.Module):
    """METER for captions that are encoded already.

    Args:
        backbone: Config of the vision backbone.
        fusion: Arguments of the fusion.
        shared: Whether the captions of an image share its first pass.
        whole: Whether fusion and head follow.
    """

    def __init__(self, backbone: dict, fusion: dict, shared: bool, whole: bool) -> None:
        super().__init__()
        text = nn.Identity()
        text.embed_dims = TEXT_DIM  # type: ignore[assignment]
        head = dict(type='mmvars.RetrievalHead')
        backbone = MODELS.build(dict(backbone, out_type='featmap_cls_token'))
        self.meter = METER(backbone, text, head, dict(fusion, dropout=0.0))
        self.shared, self.whole = shared, whole

    def forward(self, images: Tensor, tokens: Tensor) -> Tensor:
        """Scores ``(B k,)``, or the class tokens ``(B k, C)``.

        Args:
            images: ``(B, 3, H, W)``.
            tokens: Of captions ``(B k, L, D)``.
        """
        captions = len(tokens) // len(images)
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        text = TextFeatures(tokens, mask, tokens[:, 0])
        if not self.shared:
            images = images.repeat_interleave(captions, dim=0)
        if self.whole:
            return self.meter.head(self.meter.extract_feat(images, text))
        first = self.meter.backbone.forward_first_pass(images)
        class_tokens = self.meter._second_pass(first, text, len(images))[-1][1]
        return class_tokens.repeat_interleave(len(tokens) // len(class_tokens), dim=0)

    def fuse(self) -> None:
        """See :meth:`mmvars.models.base.Backbone.fuse`."""
        self.meter.backbone.fuse()


def compare(
    part: str,
    name: str,
    backbone: dict,
    fusion: dict,
    shape: tuple[int, int, int],
    mode: str,
    rounds: int,
) -> None:
    """Measure a backbone both ways and print a row.

    Args:
        part: ``'encoder'`` or ``'whole'``.
        name: Of the backbone.
        backbone, fusion: See :class:`Captions`.
        shape: Pixels of a side, captions of an image, tokens of a caption.
        mode: ``'forward'`` or ``'training'``.
        rounds: Samples of each.
    """
    side, captions, length = shape

    def inputs() -> tuple[Tensor, ...]:
        return torch.randn(1, 3, side, side), torch.randn(captions, length, TEXT_DIM)

    builders: dict[str, Callable[[], nn.Module]] = {
        kind: functools.partial(Captions, backbone, fusion, kind == 'shared', part == 'whole')
        for kind in ('shared', 'repeated')
    }
    contenders = tuple(
        Contender(kind, build, inputs, function=part, input_gradients=False)
        for kind, build in builders.items()
    )
    # What comes before the clock starts, such as the comparison of outputs, warms them up.
    settings = Settings(mode=mode, rounds=rounds, warmup=0, min_seconds=0.0)
    shared, repeated = measure_case(Case(name, side, contenders), settings)
    ratio = paired_ratio(shared.seconds, repeated.seconds)
    memory = ''
    if shared.saved_bytes and repeated.saved_bytes:
        memory = f', kept for backward {shared.saved_bytes / repeated.saved_bytes:.2f}'
    print(
        f'{name} {mode}, {part}: shared {sorted(shared.seconds)[rounds // 2]:.2f} s, repeated '
        f'{sorted(repeated.seconds)[rounds // 2]:.2f} s; ratio {ratio.median:.2f} '
        f'[{ratio.low:.2f}, {ratio.high:.2f}], multiply-adds '
        f'{shared.macs.all / repeated.macs.all:.2f}{memory}',
        flush=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure both backbones in inference and training."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('--arch', default='base', help='size of the backbones')
    parser.add_argument('--side', type=int, default=224, help='pixels')
    parser.add_argument('--captions', type=int, default=16, help='of an image')
    parser.add_argument('--length', type=int, default=20, help='tokens of a caption')
    parser.add_argument('--layers', type=int, default=6, help='of the fusion, for each stream')
    parser.add_argument('--width', type=int, default=768, help='of the fusion')
    parser.add_argument(
        '--parts', nargs='+', choices=('encoder', 'whole'), default=['encoder', 'whole']
    )
    parser.add_argument('--modes', nargs='+', choices=('forward', 'training'))
    parser.add_argument('--rounds', type=int, default=3)
    parser.add_argument('--threads', type=int, default=1, help='of the CPU')
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    fusion = dict(num_layers=args.layers, hidden_dim=args.width, num_heads=args.width // 64)
    for mode in args.modes or ('forward', 'training'):
        for name, backbone in BACKBONES.items():
            shape = args.side, args.captions, args.length
            backbone = dict(backbone, arch=args.arch, img_size=args.side)
            for part in args.parts:
                compare(part, name, backbone, fusion, shape, mode, args.rounds)
    return 0


if __name__ == '__main__':
    raise SystemExit(main())
