"""Figures: equal cells of the image's shape, right pixels in the right place, texts that fit."""

import os

import numpy as np
import pytest

from mmvars.errors import InputError
from mmvars.visualization.figure import (
    HeatMap,
    LabelMap,
    Panel,
    Picture,
    Row,
    SideBySide,
    TopClasses,
    blend,
    draw_figure,
    figure_to_array,
    save_figure,
)

SIZES = [(60, 60), (48, 96), (40, 200), (150, 60)]
CLASSES = ('road', 'sky, heavens', 'a class with quite a long name')
PALETTE = [[128, 64, 128], [70, 130, 180], [0, 0, 142]]


def image_of(size):
    return np.random.default_rng(0).integers(0, 255, (*size, 3), dtype=np.uint8)


def rows_of(size, prediction='labels', count=2):
    image = image_of(size)
    values = np.linspace(0, 1, size[0] * size[1]).reshape(size)
    labels = (values * 2.99).astype(int)
    last = (
        LabelMap(labels, image, CLASSES, PALETTE)
        if prediction == 'labels'
        else TopClasses(np.array([0.2, 0.5, 0.3]), CLASSES)
    )
    return [
        Row(
            [
                Picture(image),
                HeatMap(values, image, title='Bottom-up attention', note='note'),
                last,
            ],
            label=f'alpha = {i}',
        )
        for i in range(count)
    ]


def image_axes(figure):
    return [axes for axes in figure.axes if axes.images and axes.images[0].get_array().ndim == 3]


@pytest.mark.parametrize('size', SIZES)
def test_all_cells_have_the_shape_of_the_image_and_one_size(size):
    figure = draw_figure(rows_of(size), size)
    boxes = [axes.get_window_extent() for axes in image_axes(figure)]
    assert len(boxes) == 6
    for box in boxes:
        assert box.width == pytest.approx(boxes[0].width)
        assert box.height / box.width == pytest.approx(size[0] / size[1], rel=1e-3)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('prediction', ['labels', 'classes'])
def test_no_text_leaves_the_figure_and_no_two_overlap(size, prediction):
    figure = draw_figure(rows_of(size, prediction), size, footer='picture.jpg')
    assert_no_text_overlaps(figure, image_axes(figure))


def texts_of(figure):
    """All texts that are drawn: titles, notes, labels, color bars, legends, footer."""
    texts = list(figure.texts)
    for axes in figure.axes:
        texts += [axes.title, axes.yaxis.label, *axes.texts]
        texts += axes.get_legend().get_texts() if axes.get_legend() else []
    return [text for text in texts if text.get_text()]


def assert_no_text_overlaps(figure, pictures):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in texts_of(figure)]
    assert len(boxes) > 10
    width, height = canvas.get_width_height()
    for i, (text, box) in enumerate(boxes):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height, text
        for other, other_box in boxes[i + 1 :]:
            assert not box.overlaps(other_box), f'{text!r} runs into {other!r}'
        for axes in pictures:
            assert not box.overlaps(axes.get_window_extent()), f'{text!r} runs into a picture'


@pytest.mark.parametrize('size', SIZES[2:])
def test_rows_with_titles_of_their_own_show_them_and_nothing_overlaps(size):
    image = image_of(size)
    values = np.linspace(0, 1, size[0] * size[1]).reshape(size)
    rows = [
        Row(
            [
                Picture(image),
                *(
                    HeatMap(
                        values,
                        image,
                        title=f'channel 1{r}{c}, atom 4',
                        note='near zero 100%, energy 0.123',
                    )
                    for c in range(8)
                ),
            ],
            label='dynamic atoms',
        )
        for r in range(2)
    ]
    rows[1].panels[-1] = Panel()
    figure = draw_figure(rows, size, footer='picture.jpg')
    shown = [text.get_text() for text in texts_of(figure)]
    assert [shown.count(f'channel 1{r}{c}, atom 4') for r in range(2) for c in (0, 6, 7)] == [
        1,
        1,
        1,
        1,
        1,
        0,
    ]
    assert_no_text_overlaps(figure, image_axes(figure))


def test_many_columns_share_the_width_and_few_keep_their_size():
    def widths(count):
        figure = draw_figure([Row([Picture(image_of((48, 96)))] * count)], (48, 96))
        return figure.get_size_inches()[0], image_axes(figure)[0].get_window_extent().width

    (_, few), (total, many), (_, least) = widths(4), widths(8), widths(12)
    assert total < 17.2 and least < many < few


def test_a_map_on_no_image_is_drawn_in_its_colors_alone():
    panel = HeatMap(np.array([[0.0, 1.0]]), None, title='filter', color_map='bwr', strength=0.5)
    shown = image_axes(draw_figure([Row([panel])], (20, 40)))[0].images[0].get_array()
    np.testing.assert_allclose(shown, [[[0, 0, 1], [1, 0, 0]]], atol=1e-6)


def test_a_bright_patch_lights_up_at_its_place_in_the_picture():
    size = 48, 96
    values = np.zeros(size)
    values[32:40, 8:16] = 1
    figure = draw_figure([Row([HeatMap(values, np.zeros((*size, 3), np.uint8))])], size)
    pixels = figure_to_array(figure).astype(int)
    box = image_axes(figure)[0].get_window_extent()
    top = pixels.shape[0] - box.y1
    cell = pixels[round(top) : round(pixels.shape[0] - box.y0), round(box.x0) : round(box.x1)]
    inside = cell[4:-4, 4:-4].sum(-1)
    ys, xs = np.nonzero(inside > (int(inside.min()) + int(inside.max())) / 2)
    assert (ys.mean() + 4) / cell.shape[0] == pytest.approx(36 / 48, abs=0.02)
    assert (xs.mean() + 4) / cell.shape[1] == pytest.approx(12 / 96, abs=0.02)
    assert np.ptp(ys) / cell.shape[0] == pytest.approx(8 / 48, abs=0.02)


@pytest.mark.parametrize('noise', [0.0, 1e-6])
def test_a_map_that_is_constant_up_to_rounding_is_drawn_in_one_color(noise):
    image = np.full((20, 20, 3), 100, np.uint8)
    values = 3.0 + noise * np.eye(20)
    figure = draw_figure([Row([HeatMap(values, image)])], (20, 20))
    shown = image_axes(figure)[0].images[0].get_array()
    assert np.ptp(shown.reshape(-1, 3), axis=0).max() <= 5e4 * noise
    assert np.isfinite(shown).all()


def test_the_color_bar_says_the_range_that_was_drawn():
    image = image_of((20, 20))
    figure = draw_figure(
        [
            Row(
                [
                    HeatMap(np.linspace(2, 8, 400).reshape(20, 20), image),
                    HeatMap(np.zeros((20, 20)), image, limits=(0, 1)),
                ]
            )
        ],
        (20, 20),
    )
    texts = [text.get_text() for text in texts_of(figure)]
    assert texts == ['2', '8', '0', '1']


def legend_of(figure):
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


def test_the_legend_lists_the_largest_classes_first_and_says_what_it_leaves_out():
    labels = np.repeat([0, 1, 1, 1, 2, 2], 10).reshape(6, 10)
    panel = LabelMap(labels, image_of((6, 10)), CLASSES, PALETTE)
    names = legend_of(draw_figure([Row([panel])], (6, 10)))
    assert names == ['sky 50%', 'a class with quite… 33%', 'road 17%']
    many = LabelMap(
        np.arange(40).reshape(4, 10),
        image_of((4, 10)),
        tuple(f'class {i}' for i in range(40)),
        [[i, i, i] for i in range(40)],
    )
    texts = legend_of(draw_figure([Row([many])], (4, 10)))
    assert texts[-1] == f'and {40 - len(texts) + 1} more' and len(texts) > 3


def test_the_overlay_keeps_the_map_colors_and_grays_the_image():
    image = np.array([[[200, 0, 0]]], np.uint8)
    top = np.array([[[0.0, 1.0, 0.0]]])
    gray = 0.299 * 200 / 255
    np.testing.assert_allclose(
        blend(top, image, 0.5), [[[gray / 2, 0.5 + gray / 2, gray / 2]]], atol=1e-6
    )
    np.testing.assert_allclose(blend(top, image, 1.0), top)


def test_a_figure_is_written_whole_or_not_at_all(tmp_path):
    figure = draw_figure(rows_of((20, 20)), (20, 20))
    path = tmp_path / 'new' / 'picture.png'
    save_figure(figure, str(path))
    assert path.read_bytes().startswith(b'\x89PNG')
    assert os.listdir(path.parent) == ['picture.png']
    (tmp_path / 'file').write_text('in the way')
    with pytest.raises(InputError, match='cannot write the picture .*in the way|cannot write'):
        save_figure(figure, str(tmp_path / 'file' / 'picture.png'))
    assert (tmp_path / 'file').read_text() == 'in the way'


def test_rows_must_be_as_long_as_each_other():
    with pytest.raises(ValueError, match='shorter'):
        draw_figure([Row([Picture(image_of((8, 8)))] * n) for n in (2, 1)], (8, 8))


def test_the_seam_and_both_texts_are_drawn_that_of_the_prior_in_bold():
    image = np.zeros((60, 120, 3), np.uint8)
    halves = SideBySide(0.25, ('12%', '88%'), 'right')
    bare, panel = (HeatMap(np.zeros((60, 120)), image, halves=h) for h in (None, halves))
    figure = draw_figure([Row([Picture(image), panel])], (60, 120))
    texts = {text.get_text(): text for text in texts_of(figure)}
    assert texts['88%'].get_weight() == 'bold' and texts['12%'].get_weight() == 'normal'
    assert [texts[word].get_position()[0] for word in ('12%', '88%')] == [0.125, 0.625]
    plain = figure_to_array(draw_figure([Row([Picture(image), bare])], (60, 120)))
    changed = np.abs(figure_to_array(figure).astype(int) - plain).max(axis=(0, 2)) > 100
    box = figure.axes[1].get_window_extent()
    assert changed[round(box.x0 + box.width / 4)] and not changed[: round(box.x0)].any()


def test_long_labels_are_broken_to_the_height_of_their_row():
    image = np.zeros((40, 200, 3), np.uint8)
    label = 'prior: a class with quite a long name (right)\nα = 10'
    figure = draw_figure([Row([Picture(image)] * 6, label)] * 2, (40, 200))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = [
        text.get_window_extent(renderer) for text in texts_of(figure) if 'prior' in text.get_text()
    ]
    assert len(boxes) == 2 and boxes[0].y0 >= boxes[1].y1 and boxes[0].x0 >= 0
    assert boxes[0].x1 <= figure.axes[0].get_window_extent().x0


def test_requested_classes_are_shown_in_any_case_and_others_as_there_is_room():
    panel = TopClasses(
        np.array([0.4, 0.3, 0.2, 0.05, 0.03, 0.02]), tuple('abcdef'), highlight=5, others=(4, 0)
    )
    assert panel.visible(5) == [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6)]
    assert panel.visible(2) == [(0, 1), (4, 5), (5, 6)]


def test_each_row_has_the_shape_of_its_images():
    image = np.zeros((20, 40, 3), np.uint8)
    rows = [
        Row([Picture(image), HeatMap(image[..., 0], image, caption='said')], size=(20, 40)),
        Row([Picture(image), HeatMap(image[..., 0], image)], size=(40, 30)),
        Row([Picture(image), Panel()]),
    ]
    figure = draw_figure(rows, (30, 30))
    boxes = [axes.get_window_extent() for axes in figure.axes]
    shapes = [box.height / box.width for box in boxes]
    np.testing.assert_allclose(shapes, [0.5, 0.5, 4 / 3, 4 / 3, 1, 1], rtol=1e-3)
    assert boxes[0].width == pytest.approx(boxes[4].width)
    for above, below in zip(boxes[::2], boxes[2::2], strict=False):
        assert above.y0 - below.y1 == pytest.approx(boxes[0].y0 - boxes[2].y1)
    words = [text.get_text() for text in figure.axes[1].texts]
    assert 'said' in words and '0' not in words  # in place of the range
    assert '0' in [text.get_text() for text in figure.axes[3].texts]


def test_a_long_title_fits_its_cell():
    image = np.zeros((20, 40, 3), np.uint8)
    names = ['short', 'a_config_whose_name_is_rather_long_indeed_for_a_title']
    figure = draw_figure([Row([Picture(image, title=name) for name in names])], (20, 40))
    figure.canvas.draw()
    for axes in figure.axes:
        assert axes.title.get_window_extent().width <= axes.get_window_extent().width * 1.05
    assert figure.axes[0].title.get_fontsize() > figure.axes[1].title.get_fontsize()
