"""What all VARS mixers share: a value to reconstruct, and the unrolled solver (Eq. 1.12)."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mmvars.errors import check_choice, check_number
from mmvars.layers.dictionaries import Dictionary
from mmvars.layers.grid_tied import GridTied
from mmvars.layers.precision import full_precision, widened
from mmvars.layers.sparse_coding import SHRINKAGES, SparseTrace, shrunk_descent
from mmvars.layers.tokens import TokenGrid

__all__ = ['VALUES', 'SparseReconstruction']

STARTS = ('shrunk', 'projection')
STEP_SCALINGS = ('multiply', 'divide')
VALUES = ('projected', 'input')
_EPS = 1e-12
_ALL = slice(None)


class SparseReconstruction(GridTied):
    """Token mixing by sparse reconstruction: ``proj(P u*)`` with u* the sparse code of the value.

    A subclass says what the value and the dictionary P are. The learned numbers are w1
    (``sparsity_scale``), w2 (``step_scale``) and Gamma (``gram_modulation``) of Eq. 1.12; they
    start as the identity. With L the dictionary's bound,

        step = w2 / L,  u <- S(u - step (Gamma P'P Gamma u - P'x), sparsity w1 step).

    A top-down signal is added to the value; the dictionary never sees it.

    Differs from the thesis where the constants are those of the release: w2 multiplies the step
    instead of dividing it, Gamma is not transposed on the left, the first code is shrunk, nothing
    is added to the reconstruction, and the value is projected. Each is an argument.

    Args:
        embed_dim: Channels C.
        modulated_atoms: Side of ``gram_modulation``; 0 for no learned numbers at all.
        num_steps: Updates k. Figure 1.6 varies it from 1 to 7.
        sparsity: lambda of Eq. 1.10.
        shrinkage: ``'soft'``, or ``'gelu'`` for the smoothed one of the released VARS-D and -SD.
        step_scaling: Whether w2 multiplies the step (release) or ``'divide'`` s it (Eq. 1.12).
        gram_transpose: Gamma' P'P Gamma (Eq. 1.12) instead of Gamma P'P Gamma (release).
        start: First code: ``'projection'`` P'x (thesis), or ``'shrunk'`` S(P'x, sparsity w1).
        residual: Add the reconstructed signal to the output (Eq. 1.11 and 1.17); in the release
            the skip connection is the block's alone.

    Raises:
        InputError: On a value that cannot be used.
    """

    takes_top_down = True
    replaces_block_norms = False

    def __init__(self, embed_dim: int, modulated_atoms: int, num_steps: int, sparsity: float,
                 shrinkage: str, step_scaling: str, gram_transpose: bool, start: str,
                 residual: bool) -> None:
        super().__init__()
        check_number('num_steps', num_steps, 0, whole=True)
        check_number('sparsity', sparsity, 0)
        check_choice('shrinkage', shrinkage, SHRINKAGES)
        check_choice('step_scaling', step_scaling, STEP_SCALINGS)
        check_choice('start', start, STARTS)
        self.num_steps = num_steps
        self.sparsity = sparsity
        self.shrinkage = shrinkage
        self.step_scaling = step_scaling
        self.gram_transpose = gram_transpose
        self.start = start
        self.residual = residual
        self.proj = nn.Linear(embed_dim, embed_dim)
        self.learned = modulated_atoms > 0
        if self.learned:
            self.gram_modulation = nn.Parameter(torch.eye(modulated_atoms))
            self.sparsity_scale = nn.Parameter(torch.ones(1))
            self.step_scale = nn.Parameter(torch.ones(1))
            if num_steps == 0:  # no loss reaches what no step uses
                self.gram_modulation.requires_grad_(False)
                self.step_scale.requires_grad_(False)
                self.sparsity_scale.requires_grad_(start == 'shrunk')

    def forward(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> Tensor:
        """Mix ``x (B, N, C)``; ``top_down (B, N, C)`` or ``None``. Returns ``(B, N, C)``."""
        inputs = self._inputs(x, top_down)
        with full_precision(x):
            signal, dictionary, bound = self._dictionary(tuple(map(widened, inputs)), grid)
            out = self._to_tokens(self._reconstruct(signal, dictionary, bound, grid))
        return self.proj(self._normalised(out.to(inputs[-1].dtype)))

    @torch.no_grad()
    def trace(self, x: Tensor, grid: TokenGrid, top_down: Tensor | None = None) -> SparseTrace:
        """The codes and reconstructions after each step, for what :meth:`forward` gets.

        Args:
            x: ``(B, N, C)``.
            grid: Their layout.
            top_down: ``(B, N, C)`` or ``None``.
        """
        inputs = self._inputs(x, top_down)
        with full_precision(x):
            signal, dictionary, bound = self._dictionary(tuple(map(widened, inputs)), grid)
            codes = tuple(self._codes(signal, dictionary, bound, grid))
            decoded = tuple(self._to_tokens(dictionary.decode(code)) for code in codes)
            return SparseTrace(codes, decoded, self._to_tokens(signal),
                               getattr(dictionary, 'atoms', None))

    def _reconstruct(self, signal: Tensor, dictionary: Dictionary, bound: Tensor, grid: TokenGrid,
                     channels: slice = _ALL) -> Tensor:
        """The signal as the dictionary rebuilds it; all arguments hold these channels alone."""
        for code in self._codes(signal, dictionary, bound, grid):  # noqa: B007 the last one
            pass
        out = self._refined(dictionary.decode(code), grid, channels)
        return out + signal if self.residual else out

    def _inputs(self, x: Tensor, top_down: Tensor | None) -> tuple[Tensor, ...]:
        """What the tokens are projected to, each ``(B, N, C)``; the value is the last."""
        raise NotImplementedError

    def _dictionary(self, inputs: tuple[Tensor, ...],
                    grid: TokenGrid) -> tuple[Tensor, Dictionary, Tensor]:
        """Signal in the dictionary's layout, the dictionary, and its bound L."""
        raise NotImplementedError

    def _to_tokens(self, signal: Tensor) -> Tensor:
        """From the dictionary's layout to ``(B, N, C)``."""
        raise NotImplementedError

    def _refined(self, signal: Tensor, grid: TokenGrid, channels: slice) -> Tensor:
        """The reconstruction of these channels as it goes on, in the dictionary's layout."""
        del grid, channels
        return signal

    def _normalised(self, tokens: Tensor) -> Tensor:
        return tokens

    def _modulation(self) -> Tensor | tuple[Tensor, ...] | None:
        return widened(self.gram_modulation) if self.learned else None

    def sparsity_at(self, grid: TokenGrid) -> float:
        """lambda of Eq. 1.10 for tokens of this layout, before w1."""
        del grid
        return self.sparsity

    def _codes(self, signal: Tensor, dictionary: Dictionary, bound: Tensor,
               grid: TokenGrid) -> Iterator[Tensor]:
        shrink = SHRINKAGES[self.shrinkage]
        # A bound of 0 belongs to a dictionary of zeros, whose code is 0 with any step.
        threshold, step_size = self.sparsity_at(grid), 1 / bound.detach().clamp_min(_EPS)
        if self.learned:
            threshold = threshold * widened(self.sparsity_scale)
            scale = widened(self.step_scale)
            step_size = step_size * scale if self.step_scaling == 'multiply' else step_size / scale
        target = dictionary.encode(signal)
        start = target if self.start == 'projection' else shrink(target, threshold)
        descend = dictionary.descent(signal, target, step_size, self._modulation(),
                                     self.gram_transpose)
        return shrunk_descent(descend, start, threshold * step_size, self.num_steps, shrink)
