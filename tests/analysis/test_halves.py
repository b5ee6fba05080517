"""Shares of two halves: by area where a map is flat, exact where the seam cuts a patch."""

import numpy as np
import pytest
import torch

from mmvars.analysis import (Halved, HeatMap, Picture, Row, TopClasses, draw_figure,
                             figure_to_array, half_shares)
from mmvars.errors import InputError


@pytest.mark.parametrize('size,seam', [((32, 64), 32), ((32, 64), 20), ((25, 50), 31),
                                       ((32, 60), 1), ((8, 64), 63)])
def test_a_flat_map_gives_the_areas_whatever_seam_and_padding(size, seam):
    shares = half_shares(torch.full((2, 4), 3.), 16, size, seam)
    assert shares.left == pytest.approx(seam / size[1]) and sum(shares) == pytest.approx(1)


def test_a_patch_counts_on_each_side_of_the_seam_by_its_area_there():
    tokens = torch.tensor([[1., 4., 0., 5.]])
    shares = half_shares(tokens, 16, (16, 64), 28)
    assert shares.left == pytest.approx((1 + 4 * 12 / 16) / 10)
    cut = half_shares(tokens, 16, (16, 52), 28)  # a quarter of the last patch is in the image
    assert cut.left == pytest.approx(4 / 6.25)


def test_padding_has_no_say_in_mass_or_threshold():
    tokens = torch.tensor([[1., 4., 2., 9.], [100., 100., 100., 100.]])
    assert half_shares(tokens, 16, (16, 48), 32).left == pytest.approx(5 / 7)
    # Of 1, 4, 2 within the image only 4 is above 1 + 0.7 * 3.
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.7).left == 1
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.3).left == pytest.approx(4 / 6)
    assert half_shares(tokens, 16, (16, 48), 32, threshold=0.).left == pytest.approx(5 / 7)


def test_a_map_of_zeros_has_no_shares_and_the_argument_stays():
    tokens = torch.zeros(2, 2)
    assert half_shares(tokens, 16, (32, 32), 16) is None
    tokens = torch.arange(4.).double().reshape(2, 2)  # needs no conversion, so no copy by chance
    half_shares(tokens, 16, (32, 32), 16, threshold=0.7)
    assert tokens.flatten().tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize('seam,threshold,message', [
    (0, None, 'seam must be a column .* from 1 to 31, got 0'), (32, None, 'got 32'),
    (16, 1.5, 'threshold must be between 0 and 1')])
def test_bad_arguments_are_refused(seam, threshold, message):
    with pytest.raises(InputError, match=message):
        half_shares(torch.ones(2, 2), 16, (32, 32), seam, threshold)


def test_the_seam_and_both_words_are_drawn_the_asked_one_in_bold():
    image = np.zeros((60, 120, 3), np.uint8)
    bare = HeatMap(np.zeros((60, 120)), image, 'Map', 'note')
    panel = Halved(bare, 30, 120, ('12%', '88%'), 'right')
    assert (panel.title, panel.note) == ('Map', 'note')
    figure = draw_figure([Row([Picture(image), panel])], (60, 120))
    texts = {text.get_text(): text for axes in figure.axes for text in axes.texts}
    assert texts['88%'].get_weight() == 'bold' and texts['12%'].get_weight() == 'normal'
    assert [texts[word].get_position()[0] for word in ('12%', '88%')] == [0.125, 0.625]
    plain = figure_to_array(draw_figure([Row([Picture(image), bare])], (60, 120)))
    changed = np.abs(figure_to_array(figure).astype(int) - plain).max(axis=(0, 2)) > 100
    box = figure.axes[3].get_window_extent()
    assert changed[round(box.x0 + box.width / 4)]
    assert Halved(bare, 30, 120).words == ('', '') and not changed[:round(box.x0)].any()


def test_long_labels_are_broken_to_the_height_of_their_row():
    image = np.zeros((40, 200, 3), np.uint8)
    label = 'prior: a class with quite a long name (right)\nα = 10'
    figure = draw_figure([Row([Picture(image)] * 6, label)] * 2, (40, 200))
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    renderer = FigureCanvasAgg(figure).get_renderer()
    boxes = [text.get_window_extent(renderer) for text in figure.texts if 'prior' in
             text.get_text()]
    assert len(boxes) == 2 and boxes[0].y0 >= boxes[1].y1 and boxes[0].x0 >= 0
    assert boxes[0].x1 <= figure.axes[0].get_window_extent().x0


def test_classes_asked_for_are_shown_in_any_case_and_others_as_there_is_room():
    panel = TopClasses(np.array([.4, .3, .2, .05, .03, .02]), tuple('abcdef'), highlight=5,
                       others=(4, 0))
    assert panel.shown() == [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)]
    assert panel.shown(2) == [(0, 1), (4, 5), (5, 6)]
