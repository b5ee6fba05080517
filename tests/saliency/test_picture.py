"""The pictures of ``mmvars attention``: what is drawn, and that its numbers are those measured."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.cli import run_tool
from mmvars.saliency import cli
from mmvars.saliency.cli import main
from mmvars.saliency.measures import at_pixels
from mmvars.saliency.objects import Overlap, mass_accuracy
from mmvars.saliency.picture import _spoken
from mmvars.saliency.subject import NORMS, load_subject


@pytest.fixture
def draw(tmp_path, monkeypatch, capsys):
    """The figure that a command writes, its axes in rows, and the measures of each image."""

    def call(*arguments):
        figures, out = [], tmp_path / 'out'
        monkeypatch.setattr(cli, 'save_figure', lambda figure, path: figures.append((figure, path)))
        options = ['--size', '32', '--device', 'cpu', '--out', str(out), '--blocks', '1']
        status = run_tool(main, [*map(str, arguments), *options])
        captured = capsys.readouterr()
        assert status == 0, captured.err
        ((figure, path),) = figures
        assert path == str(out / 'attention.png') and '.png' in captured.out
        figure.canvas.draw()
        (file,) = out.glob('rows/*/images_00000.json')
        images = {each['name']: each for each in json.loads(file.read_text())['images']}
        return figure, rows_of(figure), images

    return call


def rows_of(figure) -> list[list]:
    """Axes from the top to the bottom, from left to right."""
    rows: dict = {}
    for axes in figure.axes:
        rows.setdefault(round(axes.get_position().y0, 3), []).append(axes)
    ordered = [rows[key] for key in sorted(rows, reverse=True)]
    return [sorted(row, key=lambda axes: axes.get_position().x0) for row in ordered]


def named(model: tuple[str, str]) -> str:
    """As the titles name it: folder and config."""
    return f'{Path(model[0]).parent.name}/config'


def texts(axes) -> set[str]:
    return {text.get_text() for text in axes.texts}


def test_fixations_beside_the_maps_of_two_models(draw, write_model, data) -> None:
    model, other = write_model('absvit'), write_model('foreign')
    figure, rows, images = draw(
        *(*model, '--on', data, '--figure', 2),
        *('--against', *other, '--maps', 'mean', 'class'),
    )
    assert len(rows) == 2 and len(rows[0]) == 2 + 4 + 2  # both passes of ours
    for row, name in zip(rows, ('0', '2'), strict=True):
        scores = images[name]['maps']
        assert row[0].get_ylabel() == name
        assert f'{images[name]["points"]} fixations' in texts(row[0])
        assert f'center: NSS {scores["center"][0]:.2f}' in texts(row[1])
        kinds = [
            f'block 1, {stage}, {kind} attention'
            for kind in ('mean', 'class')
            for stage in ('bottom-up', 'top-down')
        ]
        for axes, kind in zip(row[2:6], kinds, strict=True):
            assert f'NSS {scores[kind][0]:.2f}' in texts(axes)
            assert row is rows[1] or kind in texts(axes)
        shape = row[0].get_window_extent()
        assert shape.width / shape.height == pytest.approx((56 + int(name)) / 40, rel=0.01)
    titles = [axes.get_title() for axes in rows[0]]
    assert titles == ['Image', 'People', *[named(model)] * 4, *[named(other)] * 2]
    points = json.loads((data / 'fixations.json').read_text())['0']
    inside = [point for observer in points for point in observer if min(point) >= 0]
    np.testing.assert_allclose(rows[0][0].collections[0].get_offsets() + 0.5, inside)
    assert 'NSS' in figure.texts[0].get_text()


def test_objects_and_their_priors(draw, segmentor, write_model, data, tmp_path) -> None:
    (config, checkpoint), vars_model = segmentor, write_model('vars')
    state = torch.load(checkpoint)['state_dict']
    other = {k: torch.randn_like(v) if 'blocks' in k else v for k, v in state.items()}
    torch.save(dict(state_dict=other), tmp_path / 'other.pth')
    _, rows, images = draw(
        *(config, checkpoint, '--on', 'test', '--objects', 'square', 'corner', '--maps', 'norms'),
        *('--figure', '1.png', '--against', config, tmp_path / 'other.pth'),
        *('--against', *vars_model),
    )
    name = next(each for each in images if each.endswith('1.png'))
    assert len(rows) == 3  # one for each model
    first, second, third = rows
    assert len(first) == len(third) == 2 + 1 + 2
    assert {'square, corner'} <= texts(first[1])
    overlap = Overlap(*images[name]['foreground']['block 1, bottom-up, token norms'])
    shares = overlap.false_positive_share, overlap.false_negative_share
    said = f'IoU {overlap.iou:.2f}, FP {shares[0]:.2f}, FN {shares[1]:.2f}'
    assert said in texts(first[2])
    objects = images[name]['objects']  # by the numbers of their labels: square, corner
    digits = {'square': '.1%', 'corner': '.2%'}  # the latter is below one percent
    for axes, (prior, form), scores in zip(first[3:], digits.items(), objects, strict=True):
        assert axes.get_title() == f'prior: {prior}'
        mass = scores['block 1, top-down, token norms, class prior'][1]
        before = scores['block 1, bottom-up, token norms'][1]
        assert f'mass {mass:{form}}, bottom-up {before:{form}}' in texts(axes)
        assert 'block 1, top-down, token norms' in texts(axes)
    subject = load_subject(config, str(tmp_path / 'other.pth'), torch.device('cpu'))
    with Image.open(data / 'images' / '1.png') as image:
        view = subject.view(image, 32, None)
    (values,) = (v for k, v in subject.own_maps(view.pixels, [1]).items() if k.kind == NORMS)
    labels = np.asarray(Image.open(data / 'masks' / '1.png'))
    before = mass_accuracy(at_pixels(values, view), labels == 2, labels != 255)
    assert any(text.endswith(f', bottom-up {before:.1%}') for text in texts(second[3]))
    assert f'{before:.1%}' not in ' '.join(texts(first[3]))
    assert not second[0].has_data() and not third[3].has_data()
    assert third[2].get_title() == f'{Path(vars_model[0]).parent.name}/model'


def test_wide_figures_leave_maps_out(draw, segmentor) -> None:
    figure, ((*first, last),), _ = draw(*segmentor, '--on', 'test', '--figure', 1)
    assert len([*first, last]) == 2 + 1 + 3  # norms alone, of three objects too; of all kinds 17
    assert 'block 1, top-down, token norms' in texts(last)
    (footer,) = (text.get_text() for text in figure.texts)
    footer = ' '.join(footer.split())
    assert 'left out to be legible: mean attention, class attention, token weights;' in footer
    assert 'IoU' not in ' '.join([footer, *texts(first[0]), *texts(first[2])])  # no background


def test_masks_without_priors_stand_in_one_row(draw, write_model, masks) -> None:
    model = write_model('vars')
    _, rows, images = draw(*model, '--on', masks, '--figure', 3, '--maps', 'mean', '--steps')
    assert len(rows) == 3 and len(rows[0]) == 2 + 3
    assert [axes.get_title() for axes in rows[0][2:]] == [
        'config, step 0',
        'config, step 1',
        'config',
    ]
    assert 'label 2, label 5' in texts(rows[0][1])
    center = Overlap(*images['0']['foreground']['center'])
    assert any(text.startswith(f'center: IoU {center.iou:.2f}') for text in texts(rows[0][0]))


def test_only_some_maps_are_shown(write_model, data, tmp_path, capsys) -> None:
    model = write_model('foreign')

    def table(*options: str) -> tuple[int, dict, str]:
        out = tmp_path / 'out'
        arguments = [*model, '--on', str(data), '--size', '32', '--out', str(out)]
        status = run_tool(main, [*map(str, arguments), *options])
        content = json.loads((out / 'attention.json').read_text())
        return status, *content['tables'].values(), capsys.readouterr().err

    _, whole, _ = table('--blocks', '0')
    status, part, _ = table('--maps', 'class', '--blocks', '0')
    assert status == 0
    kept = ['center', 'random', 'block 0, bottom-up, class attention']
    assert part == {name: whole[name] for name in kept} and len(whole) == 5
    for blocks in ('0', '1'):  # of the former all rows are there
        status, _, error = table('--maps', 'weights', '--blocks', blocks)
        assert status == 2
        assert 'no token weights in these blocks: give norms, mean, class' in error
    assert len([*tmp_path.glob('out/rows/*/*.json')]) == 1 + 2  # rows of 0, and both run.json


def test_names_of_wordnet_are_spoken() -> None:
    assert _spoken('golden_retriever.n.01') == 'golden retriever'
    assert _spoken('tv.monitor') == 'tv.monitor'
