"""Laws of the maps: constant in, constant out; the right place; no padding; no prefix."""

import pytest
import torch

from mmvars.analysis import (attention_from_class_token, suppress_below, token_mask_map,
                             token_norm_map, upsample_map)
from mmvars.errors import InputError
from mmvars.layers import TokenGrid

GRIDS = [TokenGrid(3, 5, 1), TokenGrid(5, 3, 4), TokenGrid(1, 7, 0)]


def num_tokens(grid):
    return grid.num_prefix + grid.height * grid.width


@pytest.mark.parametrize('grid', GRIDS)
def test_equal_tokens_give_a_constant_map_of_their_norm(grid):
    token = torch.tensor([3., 0., 4.])
    maps = token_norm_map(token.expand(2, num_tokens(grid), 3), grid)
    assert maps.shape == (2, grid.height, grid.width)
    torch.testing.assert_close(maps, torch.full_like(maps, 5.))


@pytest.mark.parametrize('grid', GRIDS)
def test_one_long_token_lights_up_at_its_row_and_column(grid):
    row, col = 0, grid.width - 1
    tokens = torch.ones(1, num_tokens(grid), 4)
    tokens[0, grid.num_prefix + row * grid.width + col] = 9.
    maps = token_norm_map(tokens, grid)
    assert divmod(int(maps[0].argmax()), grid.width) == (row, col)
    assert (maps[0] > 10).sum() == 1


def test_prefix_tokens_are_left_out():
    grid = TokenGrid(2, 3, 2)
    tokens = torch.ones(1, 8, 4)
    tokens[:, :2] = 1000.
    assert token_norm_map(tokens, grid).max() == 2
    mask = torch.arange(8.).reshape(1, 8, 1)
    assert token_mask_map(mask, grid).tolist() == [[[2., 3., 4.], [5., 6., 7.]]]


def test_norms_of_half_precision_tokens_are_float32():
    grid = TokenGrid(1, 2, 0)
    tokens = torch.full((1, 2, 400), 300., dtype=torch.float16)  # the norm, 6000, squared overflows
    torch.testing.assert_close(token_norm_map(tokens, grid), torch.full((1, 1, 2), 6000.))


@pytest.mark.parametrize('function', [token_norm_map, token_mask_map])
def test_tokens_that_do_not_fit_the_grid_are_refused(function):
    with pytest.raises(InputError, match=r'shape \(B, 7, C\) for a 2x3 grid .* got \(1, 6, 1\)'):
        function(torch.ones(1, 6, 1), TokenGrid(2, 3, 1))


def test_attention_from_the_class_token_is_its_row_and_heads_are_averaged():
    grid = TokenGrid(2, 2, 1)
    probabilities = torch.rand(1, 3, 5, 5).softmax(-1)
    maps = attention_from_class_token(probabilities, grid)
    torch.testing.assert_close(maps.flatten(), probabilities[0, :, 0, 1:].mean(0))
    row_only = attention_from_class_token(probabilities[:, :, :1], grid)
    torch.testing.assert_close(maps, row_only)


def test_attention_from_the_class_token_needs_one():
    with pytest.raises(InputError, match='no class token'):
        attention_from_class_token(torch.ones(1, 1, 4, 4), TokenGrid(2, 2, 0))


def test_a_constant_map_stays_constant_when_enlarged():
    maps = upsample_map(torch.full((2, 3, 5), 7.), 4, (11, 18))
    assert maps.shape == (2, 11, 18)
    torch.testing.assert_close(maps, torch.full_like(maps, 7.))


@pytest.mark.parametrize('row,col', [(0, 0), (1, 3), (2, 4)])
def test_a_bright_patch_lights_up_over_its_own_pixels(row, col):
    patch = 8
    maps = torch.zeros(1, 3, 5)
    maps[0, row, col] = 1
    big = upsample_map(maps, patch, (24, 40))[0]
    y, x = divmod(int(big.argmax()), 40)
    assert (y // patch, x // patch) == (row, col)
    inside = big[row * patch:(row + 1) * patch, col * patch:(col + 1) * patch]
    assert inside.min() > 0.2 and big.sum() > 0


def test_the_padded_border_is_cut_not_squeezed():
    # 20x12 pixels in patches of 8 are padded to 24x16; the map of the visible part must be the top
    # left corner of the padded map, pixel by pixel.
    maps = torch.rand(1, 3, 2)
    whole = upsample_map(maps, 8, (24, 16))
    torch.testing.assert_close(upsample_map(maps, 8, (20, 12)), whole[:, :20, :12])


def test_an_image_larger_than_its_patches_is_refused():
    with pytest.raises(InputError, match='25x16 is larger than the 24x16 pixels'):
        upsample_map(torch.rand(1, 3, 2), 8, (25, 16))


def test_suppression_keeps_what_is_over_the_threshold_of_each_map():
    maps = torch.tensor([[[0., 5., 8., 10.]], [[10., 15., 18., 20.]]])
    expected = torch.tensor([[[0., 0., 8., 10.]], [[10., 10., 18., 20.]]])
    torch.testing.assert_close(suppress_below(maps, 0.7), expected)
    torch.testing.assert_close(suppress_below(maps, 0.), maps)


def test_a_threshold_outside_its_range_is_refused():
    with pytest.raises(InputError, match='threshold must be between 0 and 1, got 1.5'):
        suppress_below(torch.rand(1, 2, 2), 1.5)
