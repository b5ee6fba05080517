"""``mmvars export``: a trained model as an ONNX file or an exported program of torch."""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch

from mmvars import __version__
from mmvars.checkpoints.files import check_destination
from mmvars.engine.launch import add_cfg_options
from mmvars.engine.safe_load import check_checkpoint_file
from mmvars.errors import InputError, check_number
from mmvars.export.check import check_sizes, difference, open_file, random_images
from mmvars.export.wrap import PARTS, ExportedPart, check_predicts_as
from mmvars.export.write import SUFFIXES, traced, write_program
from mmvars.visualization.model import build_model, read_config

__all__ = ['main']

_NEEDED = {'.onnx': ('onnx', 'onnxscript', 'onnxruntime'), '.pt2': ()}
_EPILOG = """\
examples:
  mmvars export CONFIG CHECKPOINT --output model.onnx --size 512x1024
  mmvars export CONFIG CHECKPOINT --output model.onnx --size 512 --dynamic --labels --normalise
  mmvars export CONFIG CHECKPOINT --output backbone.pt2 --size 224 --part backbone

The batch size is always free, height and width with --dynamic. Input: images (B, C, H, W) in
float32, normalised as the config's data_preprocessor does unless --normalise is given. A segmentor
is exported for whole images; where the config tests with sliding windows, the file is for one
window. The file is run, in onnxruntime or torch, and compared with the model before it gets its
name: it stands for a model whose outputs it has been seen to give."""


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says, and compare the file with the model.

    Args:
        argv: Arguments; None means the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: On what cannot be used or exported; no file is left then.
    """
    args = _parser().parse_args(argv)
    check_number('--tolerance', args.tolerance, 0)
    if args.opset is not None:
        check_number('--opset', args.opset, 18, whole=True)
    path = check_destination(args.output, args.checkpoint, args.overwrite, SUFFIXES)
    _check_packages(path)
    check_checkpoint_file(args.checkpoint, 'checkpoint')
    cfg = read_config(args.config, args.cfg_options)
    model, _ = build_model(cfg, args.checkpoint, torch.device('cpu'),
                           heads=args.part == 'model')
    part = ExportedPart(model, args.part, args.labels, args.normalise).eval()
    channels = model.backbone.network.trunk.patch_embed.in_chans
    images = random_images(2, channels, args.size, part)
    check_predicts_as(part, images)
    program = traced(part, images, args.dynamic)
    partial = path.with_name(f'.{path.stem}.unchecked{path.suffix}')
    meta = dict(made_by=f'mmvars {__version__}', config=Path(args.config).name,
                checkpoint=Path(args.checkpoint).name, part=part.task,
                input='pixels 0 to 255' if args.normalise else 'normalised images')
    try:
        write_program(program, partial, part, args.opset, meta, True, args.dynamic)
        worst = _compared(part, partial, channels, args)
        check_destination(path, args.checkpoint, args.overwrite, SUFFIXES)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    _report(path, part, cfg, args, worst)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description='Export a model of a config and a checkpoint to ONNX (.onnx) or to a program '
                    'of torch.export (.pt2), and compare the file with the model.',
        epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file, or the name of one that mmvars ships')
    parser.add_argument('checkpoint', help='checkpoint of a model of this config')
    parser.add_argument('--output', required=True, metavar='FILE', help='.onnx or .pt2 to write')
    parser.add_argument('--size', required=True, type=_size, metavar='N|HxW',
                        help='pixels of the images: side, or height x width')
    parser.add_argument('--dynamic', action='store_true',
                        help='images of any size, not of --size alone; not every model can')
    parser.add_argument('--part', choices=PARTS, default='model',
                        help='the whole model (default), or the features of its backbone')
    parser.add_argument('--labels', action='store_true', help='class numbers in place of logits')
    parser.add_argument('--normalise', action='store_true',
                        help='put mean, std and channel order into the file: it then takes pixels '
                        'from 0 to 255 as the config loads them (BGR where it turns them to RGB)')
    parser.add_argument('--opset', type=int, metavar='N',
                        help="version of ONNX's operators, 18 or more; default: the exporter's")
    parser.add_argument('--tolerance', type=float, default=1e-4, metavar='T',
                        help='greatest difference from the model, relative to the greatest output '
                        '(default 1e-4)')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')
    add_cfg_options(parser)
    return parser


def _size(text: str) -> tuple[int, int]:
    sides = [int(side) if side.isdecimal() else 0 for side in text.lower().split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f'--size takes N or HEIGHTxWIDTH, got {text!r}')
    return sides[0], sides[-1]


def _check_packages(path: Path) -> None:
    missing = [name for name in _NEEDED[path.suffix] if find_spec(name) is None]
    if missing:
        raise InputError(f'{", ".join(missing)} must be installed to write and check {path.suffix} '
                         'files: pip install "mmvars[export]"; a .pt2 file needs torch alone')


def _compared(part: ExportedPart, path: Path, channels: int, args: argparse.Namespace) -> float:
    """Greatest relative difference over images of several sizes."""
    run, worst = open_file(path), 0.
    for batch, *size in check_sizes(args.size, args.dynamic):
        try:
            found = difference(part, run, random_images(batch, channels, tuple(size), part))
        except InputError:
            raise
        except Exception as error:  # whatever the runtime makes of the file
            remedy = ('; leave out --dynamic and export one file for each size'
                      if args.dynamic else '')
            raise InputError(f'the exported file does not run for {batch} images of '
                             f'{size[0]}x{size[1]} ({str(error).splitlines()[0][:200]}); nothing '
                             f'was written{remedy}') from error
        if not found <= args.tolerance:  # NaN too
            raise InputError(f'the exported file differs from the model by {found:.1e} of the '
                             f'greatest output (--tolerance {args.tolerance:g}) for {batch} images '
                             f'of {size[0]}x{size[1]}; nothing was written')
        worst = max(worst, found)
    return worst


def _report(path: Path, part: ExportedPart, cfg, args: argparse.Namespace, worst: float) -> None:
    height, width = args.size
    sizes = 'any size' if args.dynamic else f'{height}x{width}'
    test_cfg = cfg.model.get('test_cfg') or {}
    if part.task == 'segmentor' and test_cfg.get('mode') == 'slide':
        print(f'note: the config tests with sliding windows of {test_cfg.get("crop_size")}; the '
              'file holds what is done with one of them')
    print(f'{path}: {part.task}, images of {sizes} in batches of any size, outputs '
          f'{", ".join(part.output_names)}; {path.stat().st_size / 2**20:.1f} MiB')
    where = 'onnxruntime' if path.suffix == '.onnx' else 'torch.export'
    print(f'run in {where}: at most {worst:.1e} of the greatest output from the model')
