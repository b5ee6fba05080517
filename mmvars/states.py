"""An image as it is shown, as a network sees it, and what is kept of its forward."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmvars.datasets.loading import LoadImageFromFile
from mmvars.errors import InputError
from mmvars.models.sliding_window import Window, window_mean
from mmvars.networks import FirstPassOutput, TrunkOutput
from mmvars.visualization.maps import upsample_map

__all__ = ['Frame', 'State', 'output_of', 'picture_of']


class Frame(NamedTuple):
    """From pixels of the image as it is shown to those that the network sees."""

    size: tuple[int, int]  # (H, W) of the image
    scaled: tuple[int, int]  # after the resize of the pipeline
    seen: tuple[int, int]  # after its center crop, without padding

    @classmethod
    def of(
        cls, size: tuple[int, int], packed: tuple[int, int], metainfo: Mapping[str, Any]
    ) -> 'Frame':
        """Of an image ``(H, W)`` that a pipeline made ``packed``.

        Raises:
            InputError: If it did more than resize, crop around the center, and pad below and right.
        """
        scale = np.broadcast_to(metainfo.get('scale_factor', 1.0), 2)[::-1]  # (height, width)
        scaled = int(round(size[0] * scale[0])), int(round(size[1] * scale[1]))
        padding = metainfo.get('img_padding_size', metainfo.get('padding_size', (0, 0, 0, 0)))
        if metainfo.get('flip') or padding[0] or padding[2]:
            raise InputError(
                'the test pipeline of the config flips images, or pads them at the left or the '
                'top, so that places in them cannot be followed: leave that step out'
            )
        seen = min(scaled[0], packed[0]), min(scaled[1], packed[1])
        return cls(size, scaled, seen)

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of ``scaled`` where ``seen`` begins, rounded as CenterCrop of mmcv."""
        rows, columns = self.scaled[0] - self.seen[0], self.scaled[1] - self.seen[1]
        return round(rows / 2.0), round(columns / 2.0)

    def to_network(self, pixels: np.ndarray) -> np.ndarray:
        """Columns and rows ``(n, 2)`` that the network sees, of those that it does see."""
        scale = np.divide(self.scaled, self.size)[::-1]
        places = np.floor((pixels + 0.5) * scale - self.corner[::-1]).astype(np.int64)
        inside = (places >= 0).all(axis=1) & (places < self.seen[::-1]).all(axis=1)
        return places[inside]

    def to_image(self, values: Tensor) -> np.ndarray:
        """``(H', W')`` that the network sees, with padding below and right, as ``(H, W)``.

        What a center crop leaves out is zero.
        """
        top, left = self.corner
        bottom, right = self.scaled[0] - top - self.seen[0], self.scaled[1] - left - self.seen[1]
        values = F.pad(values[: self.seen[0], : self.seen[1]], (left, right, top, bottom))
        if values.shape != self.size:
            values = F.interpolate(values[None, None], self.size, mode='bilinear')[0, 0]
        return values.float().cpu().numpy()


@dataclass(eq=False)
class State:
    """An image, and all of its forward that does not depend on a prompt.

    Attributes:
        picture: ``(H, W, 3)`` uint8, RGB, as it is shown.
        inputs: ``(1, 3, H', W')``, normalized and padded.
        sample: What the pipeline says of it, for the model.
        frame: From one to the other.
        groups: Windows of each forward of the network.
        passes: What is put in place of the first pass, of each forward: the output of
            ``forward_first_pass``; of the trunk, where there is one pass; empty of plain networks.
        norms: ``(n, h, w)``, norms of the tokens in each of these.
        is_carried: Whether the first pass is that of the frame before.
    """

    picture: np.ndarray
    inputs: Tensor
    sample: Any
    frame: Frame
    groups: list[list[Window]]
    passes: list[Any] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    is_carried: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether the network sees the image in one piece, without windows."""
        return len(self.groups) == len(self.groups[0]) == 1

    def mean_token(self, pixels: np.ndarray, stride: int) -> Tensor:
        """Mean output token ``(C,)`` of the first pass at columns and rows ``(n, 2)`` of the image.

        A pixel has the token of its patch, of ``stride`` pixels, in every window that sees it.

        Raises:
            InputError: If the network sees none of them.
        """
        places = self.frame.to_network(pixels)
        totals, count = [], 0
        for group, first in zip(self.groups, self.passes, strict=True):
            grid = output_of(first).grid
            tokens = grid.patch_tokens(output_of(first).tokens).float()
            for (_, rows, columns), each in zip(group, tokens, strict=True):
                x, y = places[:, 0] - columns.start, places[:, 1] - rows.start
                height, width = rows.stop - rows.start, columns.stop - columns.start
                seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                # A first pass at a smaller scale has fewer patches on the same pixels.
                row = y[seen] // stride * grid.height // -(-height // stride)
                column = x[seen] // stride * grid.width // -(-width // stride)
                shares = np.bincount(row * grid.width + column, minlength=grid.num_patches)
                totals.append(torch.as_tensor(shares, dtype=each.dtype, device=each.device) @ each)
                count += int(seen.sum())
        if not count:
            raise InputError(
                'the network does not see this place: the test pipeline of the config crops images '
                'around their center; give a place nearer to it'
            )
        return torch.stack(totals).sum(dim=0) / count

    def on_image(
        self,
        maps: Sequence[Tensor],
        stride: int,
        function: Callable[[Tensor], Tensor] | None = None,
    ) -> np.ndarray:
        """Maps ``(n, h, w)`` of each forward, ``stride`` pixels from one place to the next, as one
        map ``(H, W)`` of the image: where windows overlap, the mean of what ``function`` makes of
        them."""
        parts = []
        for group, each in zip(self.groups, maps, strict=True):
            height, width = self.inputs[group[0]].shape[-2:]
            large = upsample_map(each, stride, (height, width))
            if function is not None:
                large = function(large)
            parts += [*zip(group, large[:, None, None], strict=True)]
        total = self.inputs.new_zeros((1, 1, *self.inputs.shape[-2:]))
        return self.frame.to_image(window_mean(parts, total)[0, 0])


def picture_of(image: Any, transforms: Sequence[Any] = ()) -> np.ndarray:
    """An image as ``Predictor.set_image`` takes it: ``(H, W, 3)`` uint8, RGB, upright.

    Files are read by the LoadImageFromFile among the ``transforms``, else by a strict one.
    """
    if isinstance(image, str | Path):
        if '://' not in str(image) and (os.path.isdir(image) or not os.path.exists(image)):
            what = 'is a folder' if os.path.isdir(image) else 'does not exist'
            raise InputError(f'the image {str(image)!r} {what}')
        loaders = [step for step in transforms if isinstance(step, LoadImageFromFile)]
        loader = loaders[0] if loaders else LoadImageFromFile()
        bgr = loader.transform(dict(img_path=str(image)))['img']
        return np.ascontiguousarray(bgr[..., ::-1].astype(np.uint8))
    if isinstance(image, Image.Image):
        if image.mode != 'RGB':
            raise InputError(
                f"the image has mode {image.mode!r}: give image.convert('RGB'), if its colors are "
                'then what you want to show the model'
            )
        return np.array(ImageOps.exif_transpose(image))
    got = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image.copy()
        got = f'{image.dtype} {image.shape}'
    raise InputError(
        f'image must be a path, a PIL image, or a uint8 array (H, W, 3) in RGB order; got {got}'
    )


def output_of(first: FirstPassOutput | TrunkOutput) -> TrunkOutput:
    """The tokens of what is kept of a forward."""
    return first.output if isinstance(first, FirstPassOutput) else first
