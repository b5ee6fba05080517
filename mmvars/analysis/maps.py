"""From tokens to maps: one number per patch, and its way back to the pixels."""

from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import TokenGrid

__all__ = ['attention_from_class_token', 'attention_row', 'kept_above', 'suppress_below',
           'token_mask_map', 'token_norm_map', 'upsample_map']


def token_norm_map(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Attention as the thesis draws it: the l2 norm of every patch token (Figures 2.4 to 2.8).

    Tokens of pass 1 give bottom-up attention, those of pass 2 top-down attention. Take them
    *before* the final layer norm, which makes the norms of all tokens nearly equal.

    Args:
        tokens: ``(B, N, C)``.
        grid: Layout of the N tokens; class and prompt tokens are left out.

    Returns:
        ``(B, h, w)``, float32.

    Raises:
        InputError: If N does not fit the grid.
    """
    _check_tokens('tokens', tokens, grid)
    return grid.to_map(tokens.float().norm(dim=-1, keepdim=True)).squeeze(1)


def token_mask_map(token_mask: Tensor, grid: TokenGrid) -> Tensor:
    """The weights ``(B, N, 1)`` of the prior modulation, clamped cosines, as ``(B, h, w)``.

    Raises:
        InputError: If N does not fit the grid.
    """
    _check_tokens('token_mask', token_mask, grid)
    return grid.to_map(token_mask.float()).squeeze(1)


def attention_from_class_token(probabilities: Tensor, grid: TokenGrid) -> Tensor:
    """What the class token looks at: its row of the attention matrix, averaged over the heads.

    Args:
        probabilities: ``(B, heads, N, N)``, rows are queries. The first row alone,
            ``(B, heads, 1, N)``, is enough.
        grid: Layout of the N keys.

    Returns:
        ``(B, h, w)``: the share that each patch gets. They sum to one less the prefix's share.

    Raises:
        InputError: If N does not fit the grid, or the grid has no class token.
    """
    if grid.num_prefix < 1:
        raise InputError('the network has no class token, so there is no attention from it')
    return attention_row(probabilities[:, :, :1], grid)


def attention_row(row: Tensor, grid: TokenGrid) -> Tensor:
    """One row of an attention matrix, averaged over the heads, as a map.

    The mean of all rows is the attention of the average token, by which the thesis compares
    softmax attention (RVT*) with VARS in Table 1.4: averaging what the queries receive gives each
    value the mean of its column, so that is what the mean of the output tokens looks at.

    Args:
        row: ``(B, heads, 1, N)``.
        grid: Layout of the N keys.

    Returns:
        ``(B, h, w)``: the share that each patch gets. They sum to one less the prefix's share.

    Raises:
        InputError: If N does not fit the grid.
    """
    share = row[:, :, 0].float().mean(dim=1).unsqueeze(-1)
    _check_tokens('probabilities', share, grid)
    return grid.to_map(share).squeeze(1)


def suppress_below(maps: Tensor, fraction: float = 0.7) -> Tensor:
    """Set everything under ``min + fraction * (max - min)`` of its map to that map's minimum.

    The authors' demonstration of controllable attention cuts at 0.7 max + 0.3 min.

    Args:
        maps: ``(B, h, w)``.
        fraction: Between 0 (keep all) and 1 (keep the maximum alone).

    Raises:
        InputError: If ``fraction`` is outside 0..1.
    """
    return maps.where(kept_above(maps, fraction), maps.amin((-2, -1), keepdim=True))


def kept_above(maps: Tensor, fraction: float) -> Tensor:
    """Where a map is at least ``min + fraction * (max - min)``: booleans ``(B, h, w)``.

    Raises:
        InputError: If ``fraction`` is outside 0..1.
    """
    if not 0 <= fraction <= 1:
        raise InputError(f'threshold must be between 0 and 1, got {fraction}')
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    return maps >= low + fraction * (high - low)


def upsample_map(maps: Tensor, patch_size: int, image_size: tuple[int, int]) -> Tensor:
    """Bring maps of patches to the pixels of the image, without the padded border.

    The network pads an image at the bottom and right to whole patches, so a map covers
    ``(h P, w P)`` pixels: it is enlarged to that (bilinear), then cut to the image.

    Args:
        maps: ``(B, h, w)``.
        patch_size: Side P of a patch in pixels; in the later stages of a pyramid, the pixels from
            one token to the next.
        image_size: ``(H, W)`` of the image before padding.

    Returns:
        ``(B, H, W)``.

    Raises:
        InputError: If the image is larger than the patches cover.
    """
    covered = maps.shape[-2] * patch_size, maps.shape[-1] * patch_size
    height, width = image_size
    if height > covered[0] or width > covered[1]:
        raise InputError(f'image_size {height}x{width} is larger than the {covered[0]}x'
                         f'{covered[1]} pixels that a {maps.shape[-2]}x{maps.shape[-1]} grid of '
                         'patches covers')
    enlarged = F.interpolate(maps.unsqueeze(1), size=covered, mode='bilinear', align_corners=False)
    return enlarged.squeeze(1)[:, :height, :width]


def _check_tokens(name: str, tokens: Tensor, grid: TokenGrid) -> None:
    expected = grid.num_prefix + grid.num_patches
    if tokens.ndim != 3 or tokens.shape[1] != expected:
        raise InputError(f'{name} must have shape (B, {expected}, C) for a {grid.height}x'
                         f'{grid.width} grid with {grid.num_prefix} prefix tokens, got '
                         f'{tuple(tokens.shape)}')
