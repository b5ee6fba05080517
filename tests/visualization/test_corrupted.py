"""Models by corruptions, from the command line to the panels."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmvars.cli import run_tool
from mmvars.robustness import corrupt
from mmvars.visualization import cli
from mmvars.visualization.figure import HeatMap

NAMES = ['gaussian_noise', 'snow']


@pytest.fixture
def photo(tmp_path):
    folder = tmp_path / 'street'
    folder.mkdir()
    ramp = np.arange(70 * 90 * 3).reshape(70, 90, 3) % 251
    Image.fromarray(ramp.astype(np.uint8)).save(folder / 'a.png')
    return folder / 'a.png'


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Runs the command, all but the drawing; gives the exit status and the rows of the pictures."""
    drawn: list = []
    monkeypatch.setattr(cli, 'draw_figure', lambda rows, *args: drawn.append(rows) or Figure())

    def run(*words):
        drawn.clear()
        options = ['--device', 'cpu', '--out-dir', str(tmp_path / 'out')]
        return run_tool(cli.main, [*map(str, words), *options]), list(drawn)

    return run


def test_each_corruption_is_a_row_and_each_map_of_a_model_a_column(
    write_config, photo, draw, tmp_path
):
    ours, plain = write_config('classification'), write_config('classification', 'ViT')
    against = ['--against', *plain, '--corrupt', *NAMES]
    status, (rows,) = draw(*ours, photo, *against, '--severity', 5)
    assert status == 0 and (tmp_path / 'out' / 'a_corruptions.png').is_file()
    assert [row.label for row in rows] == [
        'clean',
        'gaussian noise, severity 5',
        'snow, severity 5',
    ]
    names = ['classification_AbSViT'] * 3 + ['classification_ViT']
    columns = list(zip(*(row.panels for row in rows), strict=True))
    assert [column[0].title for column in columns] == ['Input', *names]
    assert [column[0].note for column in columns[1:]] == [
        'token norms, block 0, pass 1',
        'cosine of pass-1 tokens with the prior',
        'token norms, block 0, pass 2',
        'token norms, block 0',
    ]
    for column in columns[1:]:
        assert all(np.array_equal(panel.image, columns[0][0].image) for panel in column)
        assert len({panel.limits for panel in column}) == 1
    assert columns[1][0].limits == columns[3][0].limits != columns[4][0].limits

    # What is drawn of a corrupted image is what is drawn of its file.
    stored = tmp_path / 'stored'
    stored.mkdir()
    for name in NAMES:
        pixels = corrupt(np.asarray(Image.open(photo)), name, 5, 'street/a.png')
        Image.fromarray(pixels).save(stored / f'{name}.png')
    _, pictures = draw(*ours, stored, '--corrupt', 'fog')
    for (clean, *_), row in zip(pictures, rows[1:], strict=True):
        np.testing.assert_array_equal(clean.panels[0].image, row.panels[0].image)
        for panel, expected in zip(clean.panels[1:], row.panels[1:4], strict=True):
            np.testing.assert_allclose(panel.values, expected.values, rtol=1e-6)


def test_ranges_and_models_that_see_other_shapes(write_config, photo, draw, capsys):
    ours, plain = write_config('segmentation'), write_config('segmentation', 'ViT')
    _, (rows,) = draw(*ours, photo, '--corrupt', 'fog', '--limits', 'own')
    maps = [panel for row in rows for panel in row.panels if isinstance(panel, HeatMap)]
    assert all(panel.limits is None for panel in maps if panel.kind == 'norms')
    plain[0].write_text(plain[0].read_text().replace('keep_ratio=True', 'keep_ratio=False'))
    status, pictures = draw(*ours, photo, '--corrupt', 'fog', '--against', *plain)
    assert status == 2 and not pictures and 'maps of different shapes' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('words', 'message'),
    [
        (['--corrupt', 'snwo'], "'snow'"),
        (['--corrupt', 'snow', '--severity', '0'], 'severity'),
        (['--corrupt', 'snow', '--prior', 'class:0'], 'without --prior'),
        (['--corrupt', 'snow', '--steps'], 'without --steps'),
        (['--against', 'other'], 'give --corrupt'),
        (['--severity', '3'], 'give --corrupt'),
        (['--corrupt', 'snow', '--against', 'a', 'b', 'c'], 'CONFIG CHECKPOINT; got 3'),
    ],
)
def test_mistakes(write_config, photo, draw, capsys, words, message):
    status, _ = draw(*write_config('classification'), photo, *words)
    assert status == 2 and message in capsys.readouterr().err
