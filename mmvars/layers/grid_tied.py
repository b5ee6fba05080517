"""Tensors that are made for one patch grid, at any other."""

import torch
from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.layers.kept import Kept, can_keep
from mmvars.layers.tokens import TokenGrid
from mmvars.layers.tracing import same_grid

__all__ = ['GridTied']

Grid = tuple[int, int]


class GridTied(nn.Module):
    """Base of modules some of whose tensors belong to one patch grid.

    Such a tensor is used as it is at the grid it was made for, and resampled (differentiably) at
    any other. A state dict of another grid is resampled when it is loaded, whichever way that
    happens. The *grids* are compared, never the number of tokens: 2x8 is not 4x4.

    A tensor's length does not tell 2x8 from 4x4, so a module for a grid that is not square keeps
    the grid in its state dict, as the buffer ``trained_grid`` (height, width).

    A subclass calls :meth:`tie_to_grid` in its constructor, once torch's has run.

    Attributes:
        grid: ``(height, width)`` the tensors are made for; ``None`` while nothing is tied.
        grid_tied: Names of the tied tensors.
        resamples_exactly: Whether :meth:`resample` to the same grid computes the same numbers: then
            one traced graph serves all grids, else the trained one gets a graph of its own.
    """

    grid: Grid | None = None
    grid_tied: tuple[str, ...] = ()
    resamples_exactly = True

    def tie_to_grid(self, grid: Grid) -> None:
        """Declare that the tensors of :attr:`grid_tied` are for ``grid``, (height, width)."""
        self.grid = (int(grid[0]), int(grid[1]))
        self._resampled: dict[str, tuple[Grid, Kept]] = {}
        if self.grid[0] != self.grid[1]:
            self.register_buffer('trained_grid', torch.tensor(self.grid))

    def resample(self, name: str, tensor: Tensor, from_grid: Grid, to_grid: Grid) -> Tensor:
        """``tensor``, the contents of ``name`` for ``from_grid``, as it is for ``to_grid``.

        Differentiable; the argument itself where the grids are equal.
        """
        raise NotImplementedError

    def stored_grid(self, name: str, tensor: Tensor) -> Grid:
        """The square grid that contents of ``name`` with the shape of ``tensor`` were made for.

        Raises:
            InputError: If no square grid gives such a shape.
        """
        raise NotImplementedError

    def follow_resampling(self, entries: dict[str, Tensor]) -> None:
        """Bring up to date what depends on resampled tensors.

        Args:
            entries: The module's entries of a state dict, by name; changed in place.
        """

    def at_grid(self, name: str, grid: TokenGrid | Grid) -> Tensor:
        """The tensor ``name`` for the grid of an input.

        In eval mode without gradients, on the CPU, the result is kept for the next input of the
        same grid, as long as the tensor it was made from has the same contents.
        """
        tensor, to_grid = getattr(self, name), (grid[0], grid[1])
        if same_grid(to_grid, self.grid) or not self.resamples_exactly and to_grid == self.grid:
            return tensor
        if self.training or not can_keep(tensor):
            return self.resample(name, tensor, self.grid, to_grid)
        # Only the last grid is kept: a test set has hundreds of them.
        kept_grid, kept = self._resampled.get(name, (None, None))
        if kept_grid != to_grid:
            kept = Kept(exact=True)
            self._resampled[name] = to_grid, kept
        return kept.get([tensor], lambda: self.resample(name, tensor, self.grid, to_grid))

    def train(self, mode: bool = True) -> 'GridTied':
        self._forget()
        return super().train(mode)

    def _apply(self, fn, recurse: bool = True) -> 'GridTied':
        # ``to(memory_format=torch.channels_last)`` is meant for convolutions: tied tensors keep
        # their layout. (Half spectra have five axes, which torch takes for a 3d convolution's.)
        tied = [tensor for name in self.grid_tied
                if isinstance(tensor := getattr(self, name, None), Tensor)]
        tied += [tensor.grad for tensor in tied if tensor.grad is not None]

        def keeping_layout(tensor: Tensor) -> Tensor:
            if not any(tensor is one for one in tied) or not tensor.is_contiguous():
                return fn(tensor)
            return fn(tensor.flatten()).view(tensor.shape)

        return super()._apply(keeping_layout, recurse)

    def _forget(self) -> None:
        if self.grid is not None:
            self._resampled.clear()

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs) -> None:
        if self.grid is not None:
            self._forget()
            self._resample_entries(state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @torch.no_grad()  # nobody differentiates loading, and transforms round as they do in eval
    def _resample_entries(self, state_dict: dict, prefix: str) -> None:
        recorded, resampled = state_dict.pop(prefix + 'trained_grid', None), False
        for name in self.grid_tied:
            tensor, own = state_dict.get(prefix + name), getattr(self, name, None)
            if tensor is None or own is None or tensor.ndim != own.ndim:
                continue  # missing, unexpected and misshapen entries are torch's to report
            try:
                grid = self.stored_grid(name, tensor) if recorded is None else recorded.tolist()
            except InputError as error:
                raise InputError(f'{prefix}{name}: {error}') from None
            state_dict[prefix + name] = self.resample(name, tensor, tuple(grid), self.grid)
            resampled = resampled or tuple(grid) != self.grid
        if resampled:
            entries = {key.removeprefix(prefix): entry for key, entry in state_dict.items()
                       if key.startswith(prefix)}
            self.follow_resampling(entries)
            state_dict.update({prefix + name: entry for name, entry in entries.items()})
        if hasattr(self, 'trained_grid'):
            state_dict[prefix + 'trained_grid'] = torch.tensor(self.grid)
