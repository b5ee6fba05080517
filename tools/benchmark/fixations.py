"""CPU seconds of `mmvars attention --on mit1003` for as many images as MIT1003 has.

    python tools/benchmark/fixations.py --images 1003

The embedded photographs at MIT1003's usual size, in its published layout, with 104 invented
fixations each; random weights, since no cost depends on them. One thread. The command is run for
few images and for all: the difference is what an image costs, the rest what the start does. Of an
image the maps (files, both passes of the model) and the scores are shown apart.
"""

import argparse
import contextlib
import io
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import MODELS
from PIL import Image

from mmvars.data import photos_root
from mmvars.saliency import cli
from mmvars.visualization.model import read_config

FEW = 2


def write_data(root: Path, count: int, size: tuple[int, int]) -> None:
    """Images ``(width, height)``, every fourth upright, and the maps of their fixations."""
    photos = sorted(Path(photos_root(), 'images').rglob('*.jpg'))
    rng = np.random.default_rng(0)
    for folder in ('ALLSTIMULI', 'ALLFIXATIONMAPS'):
        (root / folder).mkdir()
    for index in range(count):
        shape = size if index % 4 else size[::-1]
        with Image.open(photos[index % len(photos)]) as photo:
            photo.resize(shape).save(root / 'ALLSTIMULI' / f'{index:04d}.jpeg')
        points = rng.normal(rng.uniform(0.3, 0.7, 2), 0.15, (104, 2)).clip(0, 0.999) * shape
        fixated = np.zeros(shape[::-1], dtype=np.uint8)
        fixated[tuple(points.astype(int).T[::-1])] = 255
        Image.fromarray(fixated).save(root / 'ALLFIXATIONMAPS' / f'{index:04d}_fixPts.jpg')


def cpu_seconds(root: Path, config: str, count: int) -> tuple[float, float]:
    """Of the whole command, and of its scores alone."""
    scores, measure = 0.0, cli.fixation_scores

    def timed(*args):
        nonlocal scores
        start = time.process_time()
        result = measure(*args)
        scores += time.process_time() - start
        return result

    cli.fixation_scores = timed
    start = time.process_time()
    options = ['--images', str(count), '--device', 'cpu', '--out', str(root / f'out_{count}')]
    with contextlib.redirect_stdout(io.StringIO()):
        cli.main(
            [config, str(root / 'model.pth'), '--on', 'mit1003', '--data-root', str(root), *options]
        )
    cli.fixation_scores = measure
    return time.process_time() - start, scores


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--images', type=int, default=1003)
    parser.add_argument('--size', type=int, nargs=2, default=(1024, 768), metavar=('W', 'H'))
    parser.add_argument('--config', default='absvit-tiny-p16_8xb128-coslr-300e_in1k')
    args = parser.parse_args()
    if args.images <= FEW:
        parser.error(f'--images must be more than {FEW}, got {args.images}')
    imports = time.process_time()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root, args.images, tuple(args.size))
        model = MODELS.build(dict(read_config(args.config).model))
        torch.save(dict(state_dict=model.state_dict()), root / 'model.pth')
        few, few_scores = cpu_seconds(root, args.config, FEW)
        whole, whole_scores = cpu_seconds(root, args.config, args.images)
    image = (whole - few) / (args.images - FEW)
    scores = (whole_scores - few_scores) / (args.images - FEW)
    print(f'{args.images} images of {args.size[0]}x{args.size[1]}, CPU seconds')
    print(f'start of Python and libraries  {imports:8.1f}')
    print(f'start of the command           {few - FEW * image:8.1f}')
    print(f'an image: maps                 {image - scores:8.3f}')
    print(f'an image: scores               {scores:8.3f}   {scores / (image - scores):.2f} x maps')
    total = imports + whole
    print(f'in all                         {total:8.1f}   {total / 60:.1f} min')


if __name__ == '__main__':
    main()
