import pytest
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import TokenGrid, infer_square_grid, patch_grid, resample_pos_embed
from mmvars.layers.embed import linear_stem


def test_tokens_are_row_major_patches():
    embed = linear_stem(4, 3, 8)
    images = torch.randn(2, 3, 8, 12)
    tokens, grid = embed(images)
    assert grid == (2, 3)
    row, column = 1, 2
    patch = images[:, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4].flatten(1)
    expected = patch @ embed.proj.weight.flatten(1).T + embed.proj.bias
    torch.testing.assert_close(tokens[:, row * 3 + column], expected)


@pytest.mark.parametrize('size', [(5, 9), (4, 13), (7, 4)])
def test_any_size_is_padded_with_zeros_at_bottom_and_right(size):
    embed = linear_stem(4, 3, 8)
    images = torch.randn(1, 3, *size)
    tokens, (height, width) = embed(images)
    padded = torch.zeros(1, 3, 4 * height, 4 * width)
    padded[:, :, : size[0], : size[1]] = images
    assert (height, width) == (-(-size[0] // 4), -(-size[1] // 4))
    torch.testing.assert_close(tokens, embed(padded)[0])


@pytest.mark.parametrize('shape', [(1, 3, 3, 8), (1, 3, 8, 3), (1, 1, 8, 8), (3, 8, 8)])
def test_images_that_cannot_be_embedded(shape):
    with pytest.raises(InputError, match='images'):
        linear_stem(4, 3, 8)(torch.zeros(shape))


def test_equal_area_grids_are_told_apart():
    """4x4 and 2x8 have as many tokens; the positions must still be resampled."""
    table = torch.randn(1, 17, 6)
    resampled = resample_pos_embed(table, (4, 4), (2, 8))
    assert resampled.shape == table.shape
    torch.testing.assert_close(resampled[:, :1], table[:, :1])
    maps = table[:, 1:].transpose(1, 2).reshape(1, 6, 4, 4)
    expected = F.interpolate(maps, (2, 8), mode='bicubic', align_corners=False)
    torch.testing.assert_close(resampled[:, 1:], expected.flatten(2).transpose(1, 2))
    assert (resampled - table).abs().max() > 0.1


def test_resampling_keeps_what_it_must():
    table = torch.randn(1, 17, 6)
    assert resample_pos_embed(table, (4, 4), (4, 4)) is table
    constant = torch.ones(1, 17, 6)
    torch.testing.assert_close(resample_pos_embed(constant, (4, 4), (7, 3)), torch.ones(1, 22, 6))
    table.requires_grad_()
    resample_pos_embed(table, (4, 4), (7, 3)).sum().backward()
    assert table.grad.abs().min() > 0


def test_grids():
    assert patch_grid(224, 16) == (14, 14)
    assert patch_grid((90, 50), 16) == (6, 4)
    assert infer_square_grid(196, 'table') == (14, 14)
    with pytest.raises(InputError, match='table has 32 patch positions, which is no square grid'):
        infer_square_grid(32, 'table')
    for bad in (8, (224,), (224, 8), 224.0, '224'):
        with pytest.raises(InputError, match='img_size'):
            patch_grid(bad, 16)


def test_grid_lays_tokens_out():
    grid = TokenGrid(2, 3, num_prefix=2)
    tokens = torch.arange(8.0).reshape(1, 8, 1)
    assert grid.num_patches == 6
    assert grid.to_map(tokens).tolist() == [[[[2, 3, 4], [5, 6, 7]]]]
