"""From recorded tensors to maps and numbers: token norms, attention rows, sparse codes, shares."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.layers import TokenGrid
from mmvars.layers.attention import merge_heads
from mmvars.layers.performer import positive_features
from mmvars.layers.sparse_coding import SparseTrace

__all__ = [
    'AtomSet',
    'atom_counts',
    'atom_sets',
    'attention_map',
    'energy_shares',
    'half_shares',
    'key_trace',
    'map_at_grid',
    'most_used_atoms',
    'near_zero_share',
    'sparsity_weight',
    'spatial_atoms',
    'suppress_below',
    'token_norm_map',
    'upsample_map',
]


def token_norm_map(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Attention as the thesis draws it: the l2 norm of every patch token (Figures 2.4 to 2.8).

    ``(B, N, C) -> (B, h, w)``, float32, without prefix tokens. Tokens of pass 1 give bottom-up
    attention, those of pass 2 top-down attention. Take them *before* the final layer norm, which
    makes the norms of all tokens nearly equal.
    """
    return grid.to_map(tokens.float().norm(dim=-1, keepdim=True)).squeeze(1)


def attention_map(row: Tensor, grid: TokenGrid) -> Tensor:
    """A row of an attention matrix, averaged over the heads: ``(B, heads, 1, N) -> (B, h, w)``.

    The class token's row is what that token looks at. The mean of all rows, ``mean_attention`` of
    any mixer, is the attention of the average token, by which the thesis compares softmax attention
    (RVT*) with VARS in Table 1.4. Of an attention matrix the shares of the patches sum to one less
    the prefix tokens' share.
    """
    return grid.to_map(row.float().mean(dim=1).transpose(1, 2)).squeeze(1)


def map_at_grid(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Maps ``(B, h, w)`` at the patches of ``grid``: a first pass may have a coarser one."""
    return _resize(maps, (grid.height, grid.width))


def upsample_map(maps: Tensor, stride: int, image_size: tuple[int, int]) -> Tensor:
    """Bring maps of tokens to the pixels of the image: ``(B, h, w) -> (B, H, W)``.

    The network pads an image at the bottom and right to whole patches, so a map covers
    ``(h stride, w stride)`` pixels: it is enlarged to that (bilinear), then cut to the image.
    ``stride`` is pixels from one token to the next, ``image_size`` is without padding.
    """
    covered = maps.shape[-2] * stride, maps.shape[-1] * stride
    return _resize(maps, covered)[:, : image_size[0], : image_size[1]]


def _resize(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps[:, None], size=size, mode='bilinear', align_corners=False)[:, 0]


def suppress_below(values: np.ndarray, fraction: float, low: float | None = None) -> np.ndarray:
    """Set what is under ``min + fraction (max - min)`` of a map ``(H, W)`` to ``low``.

    ``None`` is the minimum. The authors' demonstration of controllable attention has a fraction of
    0.7.
    """
    limit = values.min() + fraction * (values.max() - values.min())
    return np.where(values >= limit, values, values.min() if low is None else low)


def half_shares(
    tokens: Tensor,
    stride: int,
    image_size: tuple[int, int],
    seam: int,
    threshold: float | None = None,
) -> dict[str, float] | None:
    """How the mass of a map of tokens is divided between left and right of a seam.

    A token's mass (its norm, for attention maps) is spread evenly over the pixels of its patch, so
    a patch that the seam or the border of the image cuts counts on each side by its area there, and
    padding counts nothing.

    Args:
        tokens: ``(h, w)``, not negative.
        stride, image_size: As for :func:`upsample_map`.
        seam: Column where the right half begins, in pixels.
        threshold: Count only tokens that :func:`suppress_below` leaves of the map within the image.

    Returns:
        Shares of ``'left'`` and ``'right'``, which sum to 1; ``None`` where there is no mass.
    """
    values = tokens.double().cpu().numpy().repeat(stride, 0).repeat(stride, 1)
    values = values[: image_size[0], : image_size[1]]
    if threshold is not None:
        values = suppress_below(values, threshold, low=0)
    left, total = float(values[:, :seam].sum()), float(values.sum())
    return {'left': left / total, 'right': 1 - left / total} if total > 0 else None


def near_zero_share(code: Tensor, tolerance: float = 0.01) -> Tensor:
    """Share of the entries of a code that are at most ``tolerance`` times the largest of its image.

    ``(B, ...) -> (B,)``. The soft threshold makes exact zeros, the smooth one of the released
    VARS-D and -SD small entries of the other sign.
    """
    size = code.abs().flatten(1).float()
    return (size <= tolerance * size.amax(dim=1, keepdim=True)).float().mean(dim=1)


def energy_shares(trace: SparseTrace, sparsity: float) -> Tensor:
    """The energy of Eq. 1.10 after each step over that of zeros: ``(num_steps + 1, B)``.

    ``(1/2 ||P u - x||^2 + sparsity ||u||_1) / (1/2 ||x||^2)``, summed over all columns. It need
    not fall from step to step where the steps are scaled by learned numbers (Eq. 1.12).
    """
    signal = trace.signal.flatten(1).float()
    zeros = signal.square().sum(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
    shares = []
    for code, reconstruction in zip(trace.codes, trace.reconstructions, strict=True):
        error = (reconstruction.flatten(1).float() - signal).square().sum(dim=1)
        shares.append((error + 2 * sparsity * code.flatten(1).float().abs().sum(dim=1)) / zeros)
    return torch.stack(shares)


def sparsity_weight(mixer: Any, grid: TokenGrid) -> float:
    """The weight of ``||u||_1`` that a mixer works with at a grid: ``sparsity * w1`` (Eq. 1.12)."""
    scale = getattr(mixer, 'sparsity_scale', None)  # the released VARS-S has none
    return mixer.sparsity_at(grid) * (1.0 if scale is None else float(scale.detach()))


KEY_FEATURES = 64
"""Atoms of a head of softmax attention, which has no features of its own."""


class AtomSet(NamedTuple):
    """Atoms of one kind, and how much the code of one image used them."""

    kind: str  # 'dynamic' (computed from the image), 'static', or 'key' (see key_trace)
    shares: Tensor  # (G, M) of the code energy of all sets; G heads or channels
    maps: Tensor  # (G, M, h, w): masks on the image, or filters
    on_image: bool  # whether they are masks; a filter stands for all its translations instead


def atom_counts(mixer: Any) -> dict[str, tuple[int, int]]:
    """Groups and atoms a group: ``'head'`` for atoms that are masks, ``'channel'`` for filters."""
    counts = {}
    if hasattr(mixer, 'random_features'):
        counts['head'] = mixer.random_features.shape[0], mixer.random_features.shape[-1]
    elif hasattr(mixer, 'keys_values'):
        counts['head'] = mixer.num_heads, KEY_FEATURES
    if hasattr(mixer, 'dictionary'):
        counts['channel'] = tuple(mixer.dictionary.shape[:2])
    return counts


@torch.no_grad()
def key_trace(
    mixer: Any, x: Tensor, grid: TokenGrid | None = None, top_down: Tensor | None = None
) -> SparseTrace:
    """Softmax attention and the Performer as the first step of a sparse code (Eq. 1.14, 2.2).

    The atoms of a head are the columns of ``Phi(K)``, positive random features of its keys, of unit
    length over the tokens; the code is ``P'v``. The Performer has features of its own. Those of
    softmax attention are :data:`KEY_FEATURES`, drawn with one seed, of keys over ``D^1/4``: with
    many of them ``Phi(Q) Phi(K)'`` is its kernel, but for what a network adds to the logits, or
    multiplies them with.

    Args:
        mixer: With ``keys_values``.
        x, grid, top_down: As for its forward.
    """
    keys, values = (each.double() for each in mixer.keys_values(x, grid, top_down))
    own = getattr(mixer, 'random_features', None)
    if own is None:
        generator = torch.Generator().manual_seed(0)
        shape = (keys.shape[1], keys.shape[-1], KEY_FEATURES)
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64).to(keys.device)
        features = positive_features(keys, drawn, unit_length=False)
    else:
        features = positive_features(keys, own.double())
    atoms = F.normalize(features, dim=-2, eps=torch.finfo(torch.float64).tiny).float()
    values = values.float()
    code = atoms.transpose(-2, -1) @ values
    return SparseTrace((code,), (merge_heads(atoms @ code),), merge_heads(values), atoms)


@torch.no_grad()
def atom_sets(trace: SparseTrace, mixer: Any, grid: TokenGrid) -> list[AtomSet]:
    """The atoms that the last code of the first image chose from, dynamic ones before static ones.

    The share of atom m is ``||P_m||^2 sum_d u_md^2`` over the sum of all atoms: what the atom would
    contribute to ``||P u||^2`` if atoms were orthogonal. Prefix tokens have a part in the shares,
    but are left out of the maps.
    """
    sets, code = [], trace.codes[-1][0].float()
    if trace.atoms is not None:
        atoms = trace.atoms[0].float()
        num_atoms = atoms.shape[-1]
        num_dynamic = atom_counts(mixer)['head'][1]
        name = 'key' if hasattr(mixer, 'keys_values') else 'dynamic'
        energy = code[:, :num_atoms].square().sum(dim=-1) * atoms.square().sum(dim=-2)
        maps = grid.to_map(atoms).cpu()
        for kind, part in ((name, slice(num_dynamic)), ('static', slice(num_dynamic, None))):
            if energy[:, part].numel():
                sets.append(AtomSet(kind, energy[:, part], maps[:, part], on_image=True))
        code = code[:, num_atoms:]  # of filters, where there are any: (h, r h w, D)
        code = code.unflatten(1, (-1, grid.height, grid.width)).movedim(-1, 1).flatten(0, 1)
    if hasattr(mixer, 'dictionary'):
        filters = spatial_atoms(mixer.resized('dictionary', grid), grid.width)
        energy = code.square().sum(dim=(-2, -1)) * filters.square().sum(dim=(-2, -1))
        sets.append(AtomSet('static', energy, filters.cpu(), on_image=False))
    total = max(float(sum(s.shares.sum() for s in sets)), torch.finfo(torch.float32).tiny)
    return [s._replace(shares=s.shares.cpu() / total) for s in sets]


def most_used_atoms(
    shares: Tensor, count: int, group: int | None = None
) -> list[tuple[int, int, float]]:
    """Group, number and share of the ``count`` atoms with the largest of ``shares (G, M)``.

    Only of one group, or of all.
    """
    candidates = (shares if group is None else shares[group : group + 1]).flatten()
    order = candidates.argsort(descending=True, stable=True)[:count].tolist()
    return [
        ((group or 0) + i // shares.shape[1], i % shares.shape[1], float(candidates[i]))
        for i in order
    ]


def spatial_atoms(spectra: Tensor, width: int) -> Tensor:
    """The filters of VARS-S as templates ``(C, r, H, W)``: what one code entry adds to the map.

    The half spectra ``(C, r, H, W // 2 + 1, 2)`` are those of the filters that *look for* the
    template; it has the conjugate spectrum. Its origin is in the middle, at ``(H // 2, W // 2)``.
    """
    conjugate = torch.view_as_complex(spectra.float().contiguous()).conj()
    # A learned half spectrum need not be that of a real map: the transform along y comes first, as
    # in the mixer, and the one along x drops the imaginary part.
    templates = torch.fft.irfft(torch.fft.ifft(conjugate, dim=-2), n=width, dim=-1)
    return torch.fft.fftshift(templates, dim=(-2, -1))
