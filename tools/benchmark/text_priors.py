"""Do text priors find classes whose names the map has not seen?

    python tools/benchmark/text_priors.py DATA --pretrained trunk.pth --depth 10 --text ENCODER

DATA holds `images/{train,val}/*.jpg`, `masks/{train,val}/*.png` (ids of classes, 0: none) and
`classes.yaml` (`classes: {id: name}`). Prototypes are those of `mmvars prototypes`,
over `train`. For each class in turn, the map from text to priors is fitted to all
other classes, and is given the name of this one. Measured is the AUC of the token mask inside the
region of the class, in every image of `val` where that has 1 % of the patches: 0.5 is chance.

right name: Of the class itself, which the map has not seen.
wrong names: Mean over the names of the classes that are not in the image, each by the map that has
    not seen it.
right - wrong: Their difference, class by class.
shuffled names: The right name, and a map to which the other names were dealt anew (five times).
mean prior: The mean of the other prototypes: what a text that tells the map nothing becomes.
prototype: Of the class itself, so not held out: what a text prior could be at best.

`mask` is the cosine clamped to [0, 1], as in the network; `cosine` is not clamped. The mean over
images is taken within each class, then over classes: mean, 5 to 95 % of it in a bootstrap over
classes, and standard deviation over classes.
"""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm.data
import torch
import yaml
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmvars.cli import run_tool
from mmvars.errors import InputError, check_number
from mmvars.networks import create_model
from mmvars.prototypes import ClassSums, patch_classes
from mmvars.text import RIDGE, SentenceEncoder, TextEncoder, TextPriors

ROWS = ('right name', 'wrong names', 'right - wrong', 'shuffled names', 'mean prior', 'prototype')
SHUFFLES = 5
LEAST_SHARE = 0.01

Images = Sequence[tuple[Tensor, Tensor]]
"""Of each image the patch tokens ``(n, C)`` and their classes ``(n,)``."""


def main(argv: list[str] | None = None) -> int:
    """Measure, and print the table.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If an argument or the data cannot be used.
    """
    args = parse_args(argv)
    encoder = Templates(SentenceEncoder(args.text), args.template)
    trunk: Any = create_model(
        args.arch, depth=args.depth, num_classes=0, pretrained=args.pretrained
    )
    trunk.eval().requires_grad_(False)
    names = read_names(args.data / 'classes.yaml')
    train, val = (load_images(trunk, args.data, split, names) for split in ('train', 'val'))
    sums = ClassSums(len(names), trunk.embed_dim)
    for tokens, classes in train:
        sums.add(tokens, classes)
    center = (sums.total / sums.total_count).float()
    known = sums.counts.nonzero().flatten()  # the others have no prototype
    numbers = torch.full((len(names) + 1,), len(known))
    numbers[known] = torch.arange(len(known))
    val = [(tokens - center, numbers[classes]) for tokens, classes in val]
    words = [list(names.values())[index] for index in known]
    prototypes = sums.prototypes(center, sums.whitening(center))[known]
    scores = measure(val, words, prototypes, encoder, args.ridge)
    print(render(scores))
    return 0


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Read and check the arguments."""
    parser = argparse.ArgumentParser(description=(__doc__ or '').partition('\n')[0])
    parser.add_argument('data', type=Path, help='folder with images, masks and classes.yaml')
    parser.add_argument('--text', required=True, help='folder of a sentence encoder')
    parser.add_argument('--arch', default='timm/vit_small_patch14_dinov2', help='trunk')
    parser.add_argument('--depth', type=int, help='blocks to keep, from the first on')
    parser.add_argument('--pretrained', default=True, metavar='FILE', help='weights of the trunk')
    parser.add_argument('--template', default='{}', help='text of a name (default: {} alone)')
    parser.add_argument('--ridge', type=float, default=RIDGE, help=f'of the map ({RIDGE})')
    args = parser.parse_args(argv)
    if not (args.data / 'classes.yaml').is_file():
        raise InputError(f'{args.data} has no classes.yaml: give a folder with images and masks')
    check_number('--ridge', args.ridge, 1e-12)
    return args


class Templates:
    """An encoder of names in a sentence, each of which is encoded once."""

    def __init__(self, encoder: TextEncoder, template: str) -> None:
        self.encoder, self.template = encoder, template
        self.cache: dict[str, Tensor] = {}

    def encode(self, texts: Sequence[str]) -> Tensor:
        new = [text for text in dict.fromkeys(texts) if text not in self.cache]
        if new:
            embeddings = self.encoder.encode([self.template.format(text) for text in new])
            self.cache |= dict(zip(new, embeddings, strict=True))
        return torch.stack([self.cache[text] for text in texts])


def read_names(path: Path) -> dict[int, str]:
    """Label -> name in words, without 0 and the suffixes that COCO gives to merged classes."""
    classes = yaml.safe_load(path.read_text())['classes']
    return {
        label: re.sub('-(other|merged|stuff)', '', name) for label, name in classes.items() if label
    }


def load_images(trunk: Any, data: Path, split: str, names: dict[int, str]) -> Images:
    """Tokens and classes of the patches of all images of a part of the data.

    Images are scaled to the nearest whole number of patches. Class ``len(names)`` stands for none.
    """
    config = timm.data.resolve_model_data_config(trunk.model)
    mean, std = (torch.tensor(config[key]).view(3, 1, 1) for key in ('mean', 'std'))
    numbers = torch.full((max(names) + 1,), len(names))
    numbers[list(names)] = torch.arange(len(names))
    images = []
    paths = sorted((data / 'images' / split).glob('*.jpg'))
    for count, path in enumerate(paths, start=1):
        picture = Image.open(path).convert('RGB')
        patch = trunk.strides[0]
        width, height = (max(round(side / patch), 1) * patch for side in picture.size)
        pixels = torch.from_numpy(np.array(picture.resize((width, height)))).permute(2, 0, 1)
        output = trunk(((pixels / 255 - mean) / std).unsqueeze(0))
        mask = Image.open(data / 'masks' / split / f'{path.stem}.png')
        mask = mask.resize((width, height), Image.Resampling.NEAREST)
        labels = numbers[torch.from_numpy(np.array(mask)).long()]
        classes = patch_classes(labels, len(names), (height, width), output.grid[:2])
        images.append((output.grid.patch_tokens(output.tokens)[0], classes))
        print(f'\r{split}: {count}/{len(paths)}', end='', file=sys.stderr)
    print(file=sys.stderr)
    return images


def measure(
    images: Images, names: Sequence[str], prototypes: Tensor, encoder: TextEncoder, ridge: float
) -> dict[str, dict[str, list[float]]]:
    """AUC of each class that an image has, by kind of mask and row.

    Args:
        images: Tokens less the mean token.
        names, prototypes, encoder, ridge: What the maps are fitted to, and how.
    """
    generator = torch.Generator().manual_seed(0)
    total = prototypes.sum(dim=0)
    right = held_out_priors(names, prototypes, encoder, ridge)
    controls = {
        'mean prior': [(total - prototypes) / (len(names) - 1)],
        'prototype': [prototypes],
        'shuffled names': [
            held_out_priors(names, prototypes, encoder, ridge, generator) for _ in range(SHUFFLES)
        ],
    }
    values: dict[tuple[str, str, int], list[float]] = {}
    for tokens, classes in images:
        shares = torch.bincount(classes, minlength=len(names) + 1)[:-1] / len(classes)
        cosines = cosine(right, tokens)
        for label in (shares >= LEAST_SHARE).nonzero().flatten().tolist():
            inside = classes == label
            if inside.all():
                continue
            for kind, smallest in (('mask', 0.0), ('cosine', -1.0)):
                scores = auc(cosines.clamp_min(smallest), inside)
                found = {'right name': scores[label], 'wrong names': scores[shares == 0].mean()}
                found['right - wrong'] = found['right name'] - found['wrong names']
                for row, tables in controls.items():
                    table = torch.stack([each[label] for each in tables])
                    found[row] = auc(cosine(table, tokens).clamp_min(smallest), inside).mean()
                for row, value in found.items():
                    values.setdefault((kind, row, label), []).append(value.item())
    result: dict[str, dict[str, list[float]]] = {'mask': {}, 'cosine': {}}
    for (kind, row, _), each in values.items():
        result[kind].setdefault(row, []).append(sum(each) / len(each))
    return result


def held_out_priors(
    names: Sequence[str],
    prototypes: Tensor,
    encoder: TextEncoder,
    ridge: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The prior ``(C,)`` of each name, by a map that was fitted to all others; ``(K, C)``.

    With a generator, each map is fitted to names that were dealt anew.
    """
    priors = []
    for index, name in enumerate(names):
        others = [other for other in range(len(names)) if other != index]
        table = prototypes[others]
        if generator is not None:
            table = table[torch.randperm(len(table), generator=generator)]
        priors.append(TextPriors(encoder, [names[other] for other in others], table, ridge)(name))
    return torch.stack(priors)


def cosine(priors: Tensor, tokens: Tensor) -> Tensor:
    """``(K, n)`` of ``(K, C)`` and ``(n, C)``."""
    return F.normalize(priors, dim=1) @ F.normalize(tokens, dim=1).T


def auc(scores: Tensor, inside: Tensor) -> Tensor:
    """Area under the ROC curve of each row of ``scores (K, n)``; ties count half.

    Args:
        scores: Of n patches.
        inside: ``(n,)``, the patches that should be above the others.
    """
    outside = scores[:, ~inside].sort(dim=1).values.contiguous()
    wanted = scores[:, inside].contiguous()
    below = torch.searchsorted(outside, wanted) + torch.searchsorted(outside, wanted, right=True)
    return below.double().mean(dim=1) / 2 / outside.shape[1]


def render(scores: dict[str, dict[str, list[float]]]) -> str:
    """The table in Markdown."""
    generator = torch.Generator().manual_seed(0)
    num_classes = len(scores['mask'][ROWS[0]])
    lines = [f'| AUC, {num_classes} classes | mask | cosine |', '|---|---|---|']
    for row in ROWS:
        cells = []
        for kind in ('mask', 'cosine'):
            values = torch.tensor(scores[kind][row])
            draws = torch.randint(num_classes, (2000, num_classes), generator=generator)
            low, high = values[draws].mean(dim=1).quantile(torch.tensor([0.05, 0.95])).tolist()
            cells.append(f'{values.mean():.3f} [{low:.3f}, {high:.3f}], sd {values.std():.2f}')
        lines.append(f'| {row} | {cells[0]} | {cells[1]} |')
    return '\n'.join(lines)


if __name__ == '__main__':
    sys.exit(run_tool(main))
