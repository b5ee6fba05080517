"""Laws of the maps: constant in, constant out; the right place; no padding; no prefix."""

import numpy as np
import pytest
import torch

from mmvars.layers import TokenGrid
from mmvars.visualization.maps import (
    attention_map,
    half_shares,
    suppress_below,
    token_norm_map,
    upsample_map,
)

GRIDS = [TokenGrid(3, 5, 1), TokenGrid(5, 3, 4), TokenGrid(1, 7, 0)]


def num_tokens(grid):
    return grid.num_prefix + grid.height * grid.width


@pytest.mark.parametrize('grid', GRIDS)
def test_equal_tokens_give_a_constant_map_of_their_norm(grid):
    token = torch.tensor([3.0, 0.0, 4.0])
    maps = token_norm_map(token.expand(2, num_tokens(grid), 3), grid)
    assert maps.shape == (2, grid.height, grid.width)
    torch.testing.assert_close(maps, torch.full_like(maps, 5.0))


@pytest.mark.parametrize('grid', GRIDS)
def test_one_long_token_lights_up_at_its_row_and_column(grid):
    row, col = 0, grid.width - 1
    tokens = torch.ones(1, num_tokens(grid), 4)
    tokens[0, grid.num_prefix + row * grid.width + col] = 9.0
    maps = token_norm_map(tokens, grid)
    assert divmod(int(maps[0].argmax()), grid.width) == (row, col)
    assert (maps[0] > 10).sum() == 1


def test_prefix_tokens_are_left_out():
    grid = TokenGrid(2, 3, 2)
    tokens = torch.ones(1, 8, 4)
    tokens[:, :2] = 1000.0
    assert token_norm_map(tokens, grid).max() == 2


def test_norms_of_half_precision_tokens_are_float32():
    grid = TokenGrid(1, 2, 0)
    tokens = torch.full(
        (1, 2, 400), 300.0, dtype=torch.float16
    )  # the norm, 6000, squared overflows
    torch.testing.assert_close(token_norm_map(tokens, grid), torch.full((1, 1, 2), 6000.0))


def test_a_row_of_attention_is_averaged_over_the_heads():
    row = torch.rand(1, 3, 1, 5).softmax(-1)
    maps = attention_map(row, TokenGrid(2, 2, 1))
    torch.testing.assert_close(maps.flatten(), row[0, :, 0, 1:].mean(0))


def test_a_constant_map_stays_constant_when_enlarged():
    maps = upsample_map(torch.full((2, 3, 5), 7.0), 4, (11, 18))
    assert maps.shape == (2, 11, 18)
    torch.testing.assert_close(maps, torch.full_like(maps, 7.0))


@pytest.mark.parametrize('row,col', [(0, 0), (1, 3), (2, 4)])
def test_a_bright_patch_lights_up_over_its_own_pixels(row, col):
    patch = 8
    maps = torch.zeros(1, 3, 5)
    maps[0, row, col] = 1
    big = upsample_map(maps, patch, (24, 40))[0]
    y, x = divmod(int(big.argmax()), 40)
    assert (y // patch, x // patch) == (row, col)
    inside = big[row * patch : (row + 1) * patch, col * patch : (col + 1) * patch]
    assert inside.min() > 0.2 and big.sum() > 0


def test_the_padded_border_is_cut_not_squeezed():
    # 20x12 pixels in patches of 8 are padded to 24x16; the map of the visible part must be the top
    # left corner of the padded map, pixel by pixel.
    maps = torch.rand(1, 3, 2)
    whole = upsample_map(maps, 8, (24, 16))
    torch.testing.assert_close(upsample_map(maps, 8, (20, 12)), whole[:, :20, :12])


@pytest.mark.parametrize('offset', [0.0, 10.0])
def test_suppression_keeps_what_is_over_the_threshold_of_the_map(offset):
    values = np.array([[0.0, 5.0], [8.0, 10.0]]) + offset
    np.testing.assert_array_equal(
        suppress_below(values, 0.7), [[offset, offset], [8.0 + offset, 10.0 + offset]]
    )
    np.testing.assert_array_equal(suppress_below(values, 0.0), values)


@pytest.mark.parametrize(
    'size,seam', [((32, 64), 32), ((32, 64), 20), ((25, 50), 31), ((32, 60), 1), ((8, 64), 63)]
)
def test_a_flat_map_gives_the_areas_whatever_seam_and_padding(size, seam):
    shares = half_shares(torch.full((2, 4), 3.0), 16, size, seam)
    assert shares['left'] == pytest.approx(seam / size[1])
    assert sum(shares.values()) == pytest.approx(1)


def test_a_patch_counts_on_each_side_of_the_seam_by_its_area_there():
    tokens = torch.tensor([[1.0, 4.0, 0.0, 5.0]])
    shares = half_shares(tokens, 16, (16, 64), 28)
    assert shares['left'] == pytest.approx((1 + 4 * 12 / 16) / 10)
    cut = half_shares(tokens, 16, (16, 52), 28)  # a quarter of the last patch is in the image
    assert cut['left'] == pytest.approx(4 / 6.25)


def test_padding_has_no_say_in_mass_or_threshold():
    tokens = torch.tensor([[1.0, 4.0, 2.0, 9.0], [100.0, 100.0, 100.0, 100.0]])
    assert half_shares(tokens, 16, (16, 48), 32)['left'] == pytest.approx(5 / 7)
    # Of 1, 4, 2 within the image only 4 is above 1 + 0.7 * 3.
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.7)['left'] == 1
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.3)['left'] == pytest.approx(4 / 6)
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.0)['left'] == pytest.approx(5 / 7)


def test_a_map_of_zeros_has_no_shares_and_the_argument_stays():
    tokens = torch.zeros(2, 2)
    assert half_shares(tokens, 16, (32, 32), 16) is None
    tokens = torch.arange(4.0).double().reshape(2, 2)  # needs no conversion, so no copy by chance
    half_shares(tokens, 16, (32, 32), 16, threshold=0.7)
    assert tokens.flatten().tolist() == [0, 1, 2, 3]
