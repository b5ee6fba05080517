"""Sparse codes seen from outside: their steps, the atoms they use, and numbers that sum them up."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from mmvars.analysis.maps import token_norm_map
from mmvars.analysis.recorder import Recorder, mixes_by_attention, resolve_layer
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.layers.sparse_coding import SparseTrace
from mmvars.layers.spectral import as_complex, from_spectrum

__all__ = ['AtomSet', 'AtomUse', 'SparseCodeRecorder', 'atom_counts', 'atom_sets',
           'check_sparse_codes', 'energy_shares', 'most_used_atoms', 'near_zero_share',
           'sparsity_weight', 'spatial_atoms', 'step_maps']


class AtomUse(NamedTuple):
    """One atom, and the share of the code energy that goes through it, 0 to 1.

    ``group`` is a head, or a channel where the atoms are filters; ``atom`` counts within it.
    """

    group: int
    atom: int
    share: float


class AtomSet(NamedTuple):
    """Atoms of one kind, and how much the code of one image used them.

    Attributes:
        kind: ``'dynamic'`` (made from the image) or ``'static'``.
        shares: ``(G, M)``, share of the code energy of all sets, 0 where there is none; G heads or
            channels.
        maps: ``(G, M, h, w)``, or ``(C, r, h, w)`` filters.
        on_image: Whether a map lies on the image, as a mask; a filter stands for all its
            translations instead.
    """

    kind: str
    shares: Tensor
    maps: Tensor
    on_image: bool


class SparseCodeRecorder(Recorder):
    """Records how one block's sparse code came about in a forward, both passes apart.

    The block's forward is unchanged; the steps are computed beside it, for the pictures only.

    Example::

        with SparseCodeRecorder(net, layer=0) as codes:
            net(images)
        maps = step_maps(codes.traces[0], codes.grid)

    Args:
        network: The :class:`~mmvars.networks.TopDown` network.
        layer: Block to look into (see :func:`resolve_layer`).

    Attributes:
        layer: Index of the block.
        mixer: Its mixer.
        traces: One :class:`~mmvars.layers.sparse_coding.SparseTrace` a pass.
        grid: Layout of the block's tokens; ``None`` before the first forward.

    Raises:
        InputError: If there is no such block, or it mixes tokens without a sparse code.
    """

    def __init__(self, network: nn.Module, layer: int | None = None) -> None:
        super().__init__(network)
        self.layer = check_sparse_codes(network, layer)
        self.mixer = network.trunk.blocks[self.layer].attn
        self._clear()

    def _attach(self) -> None:
        self._hook(self.mixer, self._record)

    def _record(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        if self._inside:
            with torch.no_grad():
                self.traces += (module.trace(*args), )
            self.grid = args[1]

    def _clear(self) -> None:
        self.traces: tuple[SparseTrace, ...] = ()
        self.grid: TokenGrid | None = None


def check_sparse_codes(network: nn.Module, layer: int | None) -> int:
    """The index of block ``layer``, whose mixer has a sparse code to look at.

    Raises:
        InputError: If there is no such block, or its mixer has no code; with the reason.
    """
    index = resolve_layer(layer, len(network.trunk.blocks))
    mixer = network.trunk.blocks[index].attn
    if not callable(getattr(mixer, 'trace', None)):
        reason = 'has no sparse code'
        if mixes_by_attention(mixer):
            reason = 'is a single step without sparsity (Eq. 1.14)'
        raise InputError(f'there are no steps and no atoms to draw: block {index} mixes tokens '
                         f'with {type(mixer).__name__}, which {reason}. Take a model with the '
                         'mixer vars_s, vars_d or vars_sd')
    return index


def sparsity_weight(mixer: nn.Module, grid: TokenGrid) -> float:
    """The weight of ``||u||_1`` that a mixer works with at a grid: ``sparsity * w1`` (Eq. 1.12)."""
    weight = mixer.sparsity_at(grid)
    return float(weight * mixer.sparsity_scale.detach() if mixer.learned else weight)


def step_maps(trace: SparseTrace, grid: TokenGrid) -> list[Tensor]:
    """The attention map after the start and each recurrent step (Figures 1.5 and A.1).

    The map is ``||P u||`` at each patch, over the channels of all heads: how much of the input the
    code of that step gives back there. The thesis does not say how its maps were made. This one is
    chosen because P u is all that VARS hands on (Eq. 1.11), because it is defined alike for all
    dictionaries and steps, and because the norm of a token is what the thesis draws elsewhere
    (Figures 2.4 to 2.8), so that it can be put beside those.

    Args:
        trace: Of one pass.
        grid: Layout of its tokens; class and prompt tokens are left out.

    Returns:
        ``num_steps + 1`` maps ``(B, h, w)``, float32.
    """
    return [token_norm_map(reconstruction, grid) for reconstruction in trace.reconstructions]


def near_zero_share(code: Tensor, tolerance: float = 0.01) -> Tensor:
    """Share of the entries of a code that are zero, or as good as: ``(B, ...) -> (B,)``.

    The soft threshold makes exact zeros; the smoothed shrinkage of the released VARS-D and -SD
    makes small entries of the other sign, so anything up to ``tolerance`` times the largest entry
    (in absolute value) of its image counts.
    """
    size = code.abs().flatten(1).float()
    return (size <= tolerance * size.amax(dim=1, keepdim=True)).float().mean(dim=1)


def energy_shares(trace: SparseTrace, sparsity: float) -> Tensor:
    """The energy of Eq. 1.10 after each step, as a share of the energy of the code of zeros.

    ``(1/2 ||P u - x||^2 + sparsity ||u||_1) / (1/2 ||x||^2)``, summed over all columns. At 1
    nothing is explained, or the price of the code eats up what is. It needs not fall from step to
    step where the steps are scaled by learned numbers (Eq. 1.12): these minimise another energy.

    Returns:
        ``(num_steps + 1, B)``, float32.
    """
    signal = trace.signal.flatten(1).float()
    nothing = signal.square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    shares = []
    for code, reconstruction in zip(trace.codes, trace.reconstructions, strict=True):
        error = (reconstruction.flatten(1).float() - signal).square().sum(dim=1)
        shares.append((error + 2 * sparsity * code.flatten(1).float().abs().sum(dim=1)) / nothing)
    return torch.stack(shares)


def atom_counts(mixer: nn.Module) -> dict[str, tuple[int, int]]:
    """How many atoms :func:`atom_sets` will find, as (groups, atoms a group) by ``'GROUP'``.

    The key is what a group is: ``'head'`` for atoms that are masks, ``'channel'`` for filters.
    """
    counts = {}
    if hasattr(mixer, 'random_features'):
        counts['head'] = mixer.random_features.shape[0], mixer.random_features.shape[-1]
    if 'dictionary' in mixer.grid_tied:
        counts['channel'] = tuple(mixer.dictionary.shape[:2])
    return counts


@torch.no_grad()
def atom_sets(trace: SparseTrace, mixer: nn.Module, grid: TokenGrid) -> list[AtomSet]:
    """The atoms that a code chose from, and how much it used each: of the first image of a batch.

    The share of atom m is ``||P_m||^2 sum_d u_md^2``, in the last code, over the sum of all atoms:
    what the atom would contribute to ``||P u||^2`` if atoms were orthogonal.

    Args:
        trace: Of one pass.
        mixer: The mixer that gave it.
        grid: Layout of its tokens; class and prompt tokens have a part in the shares, but are left
            out of the maps.

    Returns:
        The dynamic atoms (VARS-D, -SD) and the static ones (VARS-S, -SD).
    """
    sets, code = [], trace.codes[-1][0].float()
    if trace.atoms is not None:
        atoms = trace.atoms[0].float()
        num_atoms = atoms.shape[-1]
        energy = code[:, :num_atoms].square().sum(dim=-1) * atoms.square().sum(dim=-2)
        maps = grid.to_map(atoms).cpu()
        num_dynamic = mixer.random_features.shape[-1]
        for kind, part in (('dynamic', slice(num_dynamic)), ('static', slice(num_dynamic, None))):
            if energy[:, part].numel():
                sets.append(AtomSet(kind, energy[:, part], maps[:, part], on_image=True))
        code = code[:, num_atoms:]
        code = code.unflatten(1, (-1, grid.height, grid.width)).movedim(-1, 1).flatten(0, 1)
    if 'dictionary' in mixer.grid_tied:
        filters = spatial_atoms(mixer.at_grid('dictionary', grid), grid.width)
        energy = code.square().sum(dim=(-2, -1)) * filters.square().sum(dim=(-2, -1))
        sets.append(AtomSet('static', energy, filters.cpu(), on_image=False))
    total = max(float(sum(s.shares.sum() for s in sets)), torch.finfo(torch.float32).tiny)
    return [s._replace(shares=s.shares.cpu() / total) for s in sets]


def most_used_atoms(shares: Tensor, count: int, group: int | None = None) -> list[AtomUse]:
    """The ``count`` atoms with the largest share, first the most used.

    Args:
        shares: ``(G, M)``, see :class:`AtomSet`.
        count: How many; no more than there are.
        group: Only those of this group; ``None``: of all.
    """
    candidates = shares if group is None else shares[group:group + 1]
    order = candidates.flatten().argsort(descending=True, stable=True)[:count].tolist()
    first = group or 0
    return [AtomUse(first + i // shares.shape[1], i % shares.shape[1],
                    float(candidates.flatten()[i])) for i in order]


def spatial_atoms(spectra: Tensor, width: int) -> Tensor:
    """The convolutional dictionary of VARS-S as templates: what one code entry adds to the map.

    The dictionary is kept as spectra K of the filters that *look for* the template; the template
    has the conjugate spectrum, the filter turned by 180 degrees.

    Args:
        spectra: ``(C, r, H, W // 2 + 1, 2)``, real and imaginary parts.
        width: W of the grid.

    Returns:
        ``(C, r, H, W)``, the origin in the middle, at ``(H // 2, W // 2)``.
    """
    templates = from_spectrum(as_complex(spectra).conj(), (spectra.shape[-3], width))
    return torch.fft.fftshift(templates, dim=(-2, -1))
