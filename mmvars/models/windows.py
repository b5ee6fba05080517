"""Sliding windows: where they lie, several in one forward, and their average.

What a head makes of the windows is kept in one of two forms. Both give logits of full size for a
few classes at a time, :meth:`Logits.part`, so that nobody needs to hold all of them:

- :class:`CoarseWindows`: every window's logits as the head made them, a few dozen times smaller
  than the image, enlarged when asked for;
- :class:`WindowSum`: their sum in full size, for heads whose logits are no smaller.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ['CoarseWindows', 'Logits', 'WholeLogits', 'Window', 'WindowSum', 'collect_windows',
           'sliding_windows', 'window_logits']

Resize = Callable[[Tensor], Tensor]
"""Enlarges logits ``(b, k, h, w)`` of any k of the classes to the size of what the head was shown.
"""


class Window(NamedTuple):
    """Rows and columns of one window in its image."""

    rows: slice
    columns: slice

    def of(self, images: Tensor) -> Tensor:
        """This part of ``(..., H, W)``, a view."""
        return images[..., self.rows, self.columns]


class Logits(Protocol):
    """Logits of a batch of images, in whatever form.

    Attributes:
        channels: Channels C of the head: classes, or 1.
        size: Height and width H, W of the images, in pixels.
    """

    channels: int
    size: tuple[int, int]

    def part(self, image: int, classes: slice) -> Tensor:
        """Logits ``(1, k, H, W)`` of one image and of some classes, in full size."""


def sliding_windows(size: tuple[int, int], crop: tuple[int, int],
                    stride: tuple[int, int]) -> list[Window]:
    """Windows that cover an image, row by row, as mmseg lays them.

    All have the same size: ``crop``, or the image's where that is smaller. The last one of a row
    or column is moved back inside.

    Args:
        size: Height and width of the image, in pixels.
        crop: Of a window.
        stride: From one window to the next, at most ``crop``.
    """
    axes = []
    for length, side, step in zip(size, crop, stride, strict=True):
        count = max(length - side + step - 1, 0) // step + 1
        ends = [min(i * step + side, length) for i in range(count)]
        axes.append([slice(max(end - side, 0), end) for end in ends])
    return [Window(rows, columns) for rows in axes[0] for columns in axes[1]]


def window_logits(images: Tensor, windows: list[Window], forward: Callable[[Tensor], Tensor],
                  batch: int) -> Iterator[tuple[Window, Tensor]]:
    """Each window with its logits ``(B, C, h, w)``, in order.

    Args:
        images: ``(B, 3, H, W)``.
        windows: Of one size.
        forward: Crops ``(b, 3, h, w)`` -> logits ``(b, C, ...)``.
        batch: Windows in one forward, so up to ``batch * B`` crops.
    """
    for start in range(0, len(windows), batch):
        group = windows[start:start + batch]
        # A single window stays a view: the very tensor that mmseg gives to the network.
        crops = torch.cat([window.of(images) for window in group]) if len(group) > 1 else (
            group[0].of(images))
        yield from zip(group, forward(crops).split(len(images)), strict=True)


class WholeLogits:
    """Logits of images that were shown in one piece.

    Args:
        logits: ``(B, C, h, w)``, of any size.
        resize: Takes a part of them to the size of the images.
        size: Of the images.
    """

    def __init__(self, logits: Tensor, resize: Resize, size: tuple[int, int]) -> None:
        self.channels, self.size = logits.shape[1], size
        self._logits, self._resize = logits, resize

    def part(self, image: int, classes: slice) -> Tensor:
        return self._resize(self._logits[image:image + 1, classes])


class _Windows:
    """What both forms know: how many windows see each pixel."""

    def __init__(self, images: Tensor, windows: list[Window], channels: int,
                 resize: Resize) -> None:
        self.channels, self.size = channels, tuple(images.shape[-2:])
        self._resize = resize
        self._images = images.new_empty(0)  # remembers device and type
        self._counts = images.new_zeros((1, 1, *self.size))
        for window in windows:
            window.of(self._counts).add_(1)


class CoarseWindows(_Windows):
    """The logits of all windows as the head made them."""

    def __init__(self, images: Tensor, windows: list[Window], channels: int,
                 resize: Resize) -> None:
        super().__init__(images, windows, channels, resize)
        self._kept: list[tuple[Window, Tensor]] = []

    def add(self, window: Window, logits: Tensor) -> None:
        """Keep ``logits (B, C, h, w)`` of one window."""
        self._kept.append((window, logits))

    def part(self, image: int, classes: slice) -> Tensor:
        count = len(range(*classes.indices(self.channels)))
        total = self._images.new_zeros((1, count, *self.size))
        for window, logits in self._kept:
            window.of(total).add_(self._resize(logits[image:image + 1, classes]))
        return total.div_(self._counts)


class WindowSum(_Windows):
    """The sum of all windows' logits in the size of the images.

    Args:
        images: ``(B, 3, H, W)``.
        windows: All of them.
        channels: Of the head.
        resize: Takes a window's logits to the size of the window.
        device: Where the sum is kept; ``None``: with the images.
        dtype: In which type; ``None``: that of the images.
    """

    def __init__(self, images: Tensor, windows: list[Window], channels: int, resize: Resize,
                 device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        super().__init__(images, windows, channels, resize)
        self._total = images.new_zeros((len(images), channels, *self.size), device=device,
                                       dtype=dtype)

    def add(self, window: Window, logits: Tensor) -> None:
        """Add ``logits (B, C, h, w)`` of one window, and keep nothing of them."""
        window.of(self._total).add_(self._resize(logits).to(self._total.device))

    def part(self, image: int, classes: slice) -> Tensor:
        return self._total[image:image + 1, classes].to(self._images) / self._counts

    def mean(self) -> Tensor:
        """All logits ``(B, C, H, W)``, in the memory of the sum, which is spent."""
        return self._total.div_(self._counts.to(self._total.device))


def collect_windows(images: Tensor, windows: list[Window], forward: Callable[[Tensor], Tensor],
                    resize: Resize, batch: int, device: torch.device | None,
                    dtype: torch.dtype | None) -> Logits:
    """Show all windows to the network, and keep its logits in the smaller of the two forms.

    Args:
        images: ``(B, 3, H, W)``.
        windows: Of one size.
        forward: Crops ``(b, 3, h, w)`` -> logits ``(b, C, ...)``.
        resize: Takes those to the size of a window.
        batch: Windows in one forward.
        device: Where a sum is kept; ``None``: with the images.
        dtype: In which type; ``None``: that of the images.
    """
    kept = None
    for window, logits in window_logits(images, windows, forward, batch):
        if kept is None:
            coarse = len(windows) * logits[0, 0].numel() < images[0, 0].numel()
            parts = (images, windows, logits.shape[1], resize)
            kept = CoarseWindows(*parts) if coarse else WindowSum(*parts, device, dtype)
        kept.add(window, logits)
    return kept
