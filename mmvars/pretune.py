"""``mmvars pretune``: decoders for a frozen trunk from unlabeled images, in one pass."""

import argparse
import glob
import hashlib
import json
import os
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from mmengine.config import Config, ConfigDict
from mmengine.dist import get_dist_info, init_dist
from mmengine.registry import MODELS, init_default_scope
from mmengine.utils import ProgressBar
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Subset

from mmvars.checkpoints import (
    load_pretrained,
    read_checkpoint,
    trunk_record,
    write_checkpoint,
    write_partial,
)
from mmvars.checkpoints.io import read_meta
from mmvars.datasets.files import images_in
from mmvars.datasets.loading import CONVERTIBLE, LoadImageFromFile
from mmvars.engine.cpu import pick_device, setup_cpu
from mmvars.engine.errors import building, user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.engine.processes import end_with_parent
from mmvars.engine.runner import closing_process_group, load_config
from mmvars.errors import InputError, check_number
from mmvars.models.arguments import with_num_classes
from mmvars.models.base import Backbone
from mmvars.networks import Trunk
from mmvars.networks.regression import HELD_OUT, BlockFit, DecoderRegression
from mmvars.parsers.pretune import parse_args
from mmvars.visualization.model import init_backbone, swaps_channels
from mmvars.write import check_destination

__all__ = ['ImageFolder', 'Normalize', 'default_size', 'load_backbone', 'main', 'with_float64']

SAVE_SECONDS = 30
"""Between two states of a pass; a kill costs no more."""


def main(argv: Sequence[str] | None = None) -> int:
    """Pre-tune as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used. What was done until then
            is kept beside the output, and the next call goes on from it.
    """
    args, start = parse_args(argv), time.monotonic()
    check_number('--batch-size', args.batch_size, 1, whole=True)
    check_number('--num-workers', args.num_workers, 0, whole=True)
    if not os.path.isdir(args.images):
        what = 'is a file' if os.path.exists(args.images) else 'does not exist'
        raise InputError(f'--images {args.images!r} {what}: give a folder of images')
    paths = images_in(args.images)
    if args.output is None:
        args.output = os.path.join('work_dirs', Path(args.config).stem, 'decoders.pth')
        os.makedirs(os.path.dirname(args.output), exist_ok=True)
    output = check_destination(args.output, args.config, args.overwrite)
    cfg, _ = load_config(args.config, parse_cfg_options(args.cfg_options))
    device = _set_up(cfg, args)
    with closing_process_group():
        with user_errors():
            backbone = load_backbone(cfg, output)
            regression = DecoderRegression(backbone.network)
            images = ImageFolder(paths, args.images, args.size or default_size(cfg))
            _check_enough(images, backbone.trunk)
            normalize = Normalize(cfg)
        backbone.eval()
        for module in (backbone, normalize):
            module.to(device)
        regression.to(with_float64(device))
        is_main = get_dist_info()[0] == 0
        if is_main:
            print(
                f'trunk {backbone.trunk.name or type(backbone.trunk).__name__}, {images}, on '
                f'{device}',
                flush=True,
            )
        states = _State(output, args, backbone, images, normalize)
        _run_pass(args, regression, images, normalize, states)
        for value in regression.buffers() if dist.is_initialized() else ():
            dist.all_reduce(value)
        if is_main:
            fits = regression.solve()
            part = regression.apply_to_network(fits)
            meta = dict(
                pretuned_on=str(images),
                held_out_errors=json.dumps([round(fit.error, 6) for fit in fits]),
            )
            write_partial(output, backbone.network, part, meta, args.overwrite)
            _print_results(fits, output, backbone, time.monotonic() - start)
            states.remove()
    return 0


def _set_up(cfg: Config, args: argparse.Namespace) -> torch.device:
    """Scope, processes and device."""
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    end_with_parent()
    cfg.launcher = args.launcher
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    setup_cpu(cfg)
    if args.launcher != 'none' and not dist.is_initialized():
        init_dist(args.launcher)
    return pick_device(args.device)


def load_backbone(cfg: Config, output: Path) -> Backbone:
    """The backbone of a config with the weights that the config names, and no heads.

    Raises:
        InputError: If it is none of mmvars, or would keep its random weights.
    """
    backbone = ConfigDict(cfg.model.get('backbone') or {})
    config = dict(with_num_classes(backbone, cfg.model.get('decode_head') or {}))
    init_cfg = config.get('init_cfg') or []
    init_cfgs = [dict(each) for each in (init_cfg if isinstance(init_cfg, list) else [init_cfg])]
    # A config that loads the decoders that are now to be made is the usual one.
    config['init_cfg'] = [
        each
        for each in init_cfgs
        if 'checkpoint' not in each or os.path.abspath(each['checkpoint']) != str(output.absolute())
    ]
    with building('model.backbone'):
        backbone = MODELS.build(config)
    if not isinstance(backbone, Backbone):
        raise InputError(
            f'model.backbone is {type(backbone).__name__}, none of mmvars: pre-tuning is for '
            'mmvars.AbSViT'
        )
    load_from = cfg.get('load_from')
    if not (
        load_from
        or config.get('pretrained')
        or any(each.get('type') == 'Pretrained' for each in config['init_cfg'])
    ):
        raise InputError(
            'the config gives the trunk no trained weights, and decoders fit to random ones are of '
            "no use: set --cfg-options model.backbone.pretrained=FILE (or True, for timm's own), "
            'or model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE'
        )
    init_backbone(backbone)
    if load_from:
        load_pretrained(backbone, load_from)
    return backbone


def default_size(cfg: Config) -> tuple[int, int]:
    """Height and width of the images where the command line does not say it."""
    size = cfg.get('crop_size') or cfg.model.backbone.get('img_size') or 224
    return (size, size) if isinstance(size, int) else (size[0], size[1])


def with_float64(device: torch.device) -> torch.device:
    """The device itself, or the CPU if it has no numbers of 64 bits (Apple's GPUs)."""
    try:
        torch.zeros((), dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device('cpu')
    return device


class ImageFolder(Dataset):
    """Image files as ``(3, H, W)`` pixels in BGR order: scaled to cover the size, and cropped.

    A number that depends on its name alone says which process an image is for and whether it is
    held out, so that all others keep theirs when one is removed.
    """

    def __init__(self, paths: Sequence[str], folder: str, size: tuple[int, int]) -> None:
        self.paths, self.size = list(paths), size
        self.names = [os.path.relpath(path, folder) for path in paths]
        numbers = [zlib.crc32(name.encode()) for name in self.names]
        self.is_held_out = [number % HELD_OUT == 0 for number in numbers]
        rank, processes = get_dist_info()
        self.own = [i for i, n in enumerate(numbers) if n // HELD_OUT % processes == rank]
        self.load = LoadImageFromFile(allow=tuple(CONVERTIBLE))

    def __str__(self) -> str:
        height, width = self.size
        return f'{len(self)} images of {height}x{width} pixels (height x width)'

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, bool]:
        image = torch.from_numpy(self.load(self.paths[index])['img']).permute(2, 0, 1).float()
        scale = max(new / old for new, old in zip(self.size, image.shape[1:], strict=True))
        sides = [
            max(round(old * scale), new)
            for new, old in zip(self.size, image.shape[1:], strict=True)
        ]
        image = F.interpolate(image[None], sides, mode='bilinear', antialias=True)[0]
        top, left = ((old - new) // 2 for new, old in zip(self.size, sides, strict=True))
        image = image[:, top : top + self.size[0], left : left + self.size[1]]
        return image.contiguous(), self.is_held_out[index]


def _check_enough(images: ImageFolder, trunk: Trunk) -> None:
    """Refuse images with too few tokens in the last block, the widest, before they are read.

    Raises:
        InputError: Naming both numbers.
    """
    with torch.no_grad():
        _, grid = trunk.forward_embed(torch.zeros(1, 3, *images.size))
    last, held_out = trunk.block_grids(grid)[-1], sum(images.is_held_out)
    fitted = (len(images) - held_out) * (last.num_prefix + last.height * last.width)
    if not held_out or fitted < trunk.embed_dim:
        raise InputError(
            f'{images} are too few: {held_out} of them are held out (one of {HELD_OUT}, by their '
            f'names), and the others have {fitted} tokens to fit decoders of {trunk.embed_dim} '
            'channels: give more images'
        )


class Normalize(nn.Module):
    """Pixels ``(B, 3, H, W)`` as the data preprocessor of a config gives them to the backbone.

    Raises:
        InputError: If the config has no data preprocessor.
    """

    def __init__(self, cfg: Config) -> None:
        super().__init__()
        config = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
        if config is None:
            raise InputError(
                'the config has no data_preprocessor, so that mean and std of its images are not '
                'known: add model.data_preprocessor'
            )
        with building('model.data_preprocessor'):
            preprocessor = MODELS.build(dict(config))
        self.swaps_channels = swaps_channels(preprocessor)
        for name, default in (('mean', 0.0), ('std', 1.0)):
            value = getattr(preprocessor, name, torch.full((3, 1, 1), default))
            self.register_buffer(name, value.clone())

    def forward(self, images: Tensor) -> Tensor:
        return ((images.flip(1) if self.swaps_channels else images) - self.mean) / self.std


class _State:
    """The file from which this process goes on when it was stopped.

    What it holds belongs to a run (weights, sizes, processes) and to the images that are in its
    sums, which are the first ones of this process. The others may change.
    """

    def __init__(
        self,
        output: Path,
        args: argparse.Namespace,
        backbone: Backbone,
        images: ImageFolder,
        normalize: Normalize,
    ) -> None:
        self.output, self.overwrite = output, args.overwrite
        self.path = output.with_name(f'{output.stem}.state-{get_dist_info()[0]}.safetensors')
        self.names = [images.names[index] for index in images.own]
        self.run = _digest(
            trunk_record(backbone.network)['sha256'],
            images.size,
            normalize.swaps_channels,
            normalize.mean.tolist(),
            normalize.std.tolist(),
            args.batch_size,
            get_dist_info(),
        )

    def load(self, regression: DecoderRegression) -> int:
        """Fill the sums if there is a state; the number of images that are in them.

        Raises:
            InputError: If it is that of another run, and may not be overwritten.
        """
        if not self.path.exists():
            return 0
        content = read_checkpoint(self.path)
        meta = read_meta(self.path, content)
        count = int(meta.get('count', 0))
        if meta.items() >= self._meta(count).items():
            regression.load_state_dict(content)
            return count
        if self.overwrite:
            return 0
        raise InputError(
            f'{self.path} is the state of a run that was stopped, with other images, sizes, '
            'weights or processes: repeat that command line, or start anew with --overwrite'
        )

    def save(self, regression: DecoderRegression, count: int) -> None:
        sums = regression.state_dict()
        write_checkpoint(self.path, sums, meta=self._meta(count), overwrite=True)

    def remove(self) -> None:
        """Remove the states of all processes, those of an earlier run included."""
        for path in self.output.parent.glob(f'{glob.escape(self.output.stem)}.state-*.safetensors'):
            path.unlink()

    def _meta(self, count: int) -> dict[str, str]:
        return dict(run=self.run, count=str(count), images=_digest(self.names[:count]))


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _run_pass(
    args: argparse.Namespace,
    regression: DecoderRegression,
    images: ImageFolder,
    normalize: Normalize,
    state: _State,
) -> None:
    """Add all images of this process to the sums."""
    count, total = state.load(regression), len(images.own)
    if count:
        print(f'going on after {count} of {total} images, from {state.path}', flush=True)
    loader: DataLoader = DataLoader(
        Subset(images, images.own[count:]), args.batch_size, num_workers=args.num_workers
    )
    is_main = get_dist_info()[0] == 0
    bar = ProgressBar(total - count) if is_main and count < total else None
    saved = time.monotonic()
    for pixels, is_held_out in loader:
        regression.add(normalize(pixels.to(normalize.mean.device)), is_held_out)
        count += len(pixels)
        if bar is not None:
            bar.update(len(pixels))
        if time.monotonic() - saved > SAVE_SECONDS or count == total:
            state.save(regression, count)
            saved = time.monotonic()
    if bar is not None:
        print()


def _print_results(
    fits: Sequence[BlockFit], output: Path, backbone: Backbone, seconds: float
) -> None:
    print('held-out reconstruction error, relative to the variance of the input of the block:')
    print(f'{"block":>5} {"error":>9} {"no ridge":>9} {"identity":>9}  ridge')
    for index, fit in enumerate(fits):
        errors = (fit.error, fit.error_without_ridge, fit.error_of_identity)
        print(f'{index:>5} {" ".join(f"{error:9.4f}" for error in errors)}  {fit.ridge:g}')
    if backbone.transfer == 'end2end':
        print(
            "note: the trunk of this config trains (transfer='end2end'), so that these decoders "
            'are a start; reconstruction_loss_weight lets them follow it'
        )
    if any(fit.error > fit.error_of_identity for fit in fits):
        print(
            'note: where the error is above that of the identity there were too few images for '
            'the decoder of that block; pass more'
        )
    print(
        f'{output}: {len(fits)} decoders, {output.stat().st_size / 2**20:.1f} MiB, in '
        f'{seconds:.0f} s; start from them with --cfg-options model.backbone.init_cfg.type='
        f'Pretrained model.backbone.init_cfg.checkpoint={output}'
    )
