"""`tools/benchmark/steer_collages.py`: what is measured. No test is about steering itself."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.cli import run_tool

pytestmark = pytest.mark.slow  # timm's data loading takes seconds to import

ARGS = '--arch timm/test_vit --pretrained none --tile 32 --steps 1 2 --collages 4'.split()
ARGS += '--batch-size 2 --prototype-photos 2'.split()


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    """Six classes, each of another color with noise: four photographs to train, two held out."""
    folder = tmp_path_factory.mktemp('photos')
    rng = np.random.default_rng(0)
    for label, color in enumerate(rng.integers(50, 200, (6, 3))):
        for split, count in (('train', 4), ('val', 2)):
            (folder / split / f'class{label}').mkdir(parents=True)
            for index in range(count):
                pixels = color + rng.integers(-50, 50, (40, 48, 3))
                path = folder / split / f'class{label}' / f'{index}.png'
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return folder


def test_tables_and_pictures(photos, tmp_path):
    from steer_collages import COLUMNS, main

    assert main([str(photos), *ARGS, '--seeds', '0', '1', '--out', str(tmp_path)]) == 0
    results = json.loads((tmp_path / 'steer.json').read_text())['seeds']
    assert len(results) == 2 and results[0] != results[1]
    for result in results:
        assert len(result['pair']) == len(result['square']) + 2 == 11  # one mark, one random prior
        assert {*result['pair']['feedback, 2 steps']} == {*COLUMNS}
        for layout, part in dict(photo=1, pair=1 / 2, square=1 / 4).items():
            without_prior = result[layout]['first pass']
            assert without_prior['change'] == 0
            assert without_prior['share'] == pytest.approx(part)
            assert without_prior['largest'] == pytest.approx(part)
        assert result['pair']['feedback, 1 steps'] != result['pair']['feedback, 2 steps']
        assert result['pair']['feedback, 2 steps']['change'] > 0
        assert result['largest change at alpha 0'] < 1e-5
        assert max(map(abs, result['tanh of the gates'])) > 0
    assert ' ± ' in (tmp_path / 'steer.md').read_text()
    assert {path.name for path in tmp_path.glob('*.png')} == {'steer_0.png', 'steer_1.png'}


def test_columns_of_a_known_reader():
    """A reader that knows where each class is gets full marks, and one that errs gets none."""
    from steer_collages import Collages, Reading, Task, measure

    from mmvars.layers import TokenGrid
    from mmvars.networks import FirstPassOutput, TrunkOutput

    labels = torch.tensor([[0, 1, 2, 3], [4, 2, 1, 0]])
    tiles = torch.arange(4).reshape(2, 2).repeat_interleave(2, 0).repeat_interleave(3, 1)
    classes = labels[:, tiles.flatten()]  # (2, 24), of each patch
    grid = TokenGrid(4, 6, 1)
    tokens = torch.nn.functional.one_hot(classes, 6).float()
    tokens = torch.cat([torch.zeros(2, 1, 6), tokens], dim=1)
    first = FirstPassOutput(TrunkOutput(tokens, grid), tokens, grid)
    collages = Collages(torch.zeros(2, 3, 8, 12), labels, torch.full((2, 4), 5), first, (2, 2))
    task = Task(torch.eye(6), torch.eye(6), torch.zeros(6))

    def knows(first, prior):
        is_there = (grid.patch_tokens(first.output.tokens) * prior[:, None]).sum(dim=-1)
        return Reading(prior, is_there, torch.ones(len(prior)))

    def errs(first, prior):
        reading = knows(first, prior)
        return reading._replace(features=1 - prior, map=1 - reading.map)

    perfect = dict(answer=1, all=1, prior=1, margin=1, share=1, largest=1, change=1)
    assert measure(task, knows, collages, 'tile') == pytest.approx(perfect)
    wrong = dict(answer=0, all=0, prior=0, margin=-1, share=0, largest=0, change=1)
    assert measure(task, errs, collages, 'tile') == pytest.approx(wrong, abs=1e-6)
    absent = measure(task, knows, collages, 'absent')  # names it, and finds it nowhere
    expected = dict(answer=0, all=0, prior=1, margin=0, share=1 / 4, largest=1 / 4, change=1)
    assert absent == pytest.approx(expected)


def test_bad_input(photos, tmp_path, capsys):
    from steer_collages import main

    for words, message in (
        ([str(photos / 'train'), *ARGS], 'DATA needs train/CLASS/* and val/CLASS/*'),
        ([str(photos), *ARGS, '--prototype-photos', '4'], 'smallest class has 4 photographs'),
        ([str(photos), *ARGS, '--steps', '0'], '--steps'),
    ):
        assert run_tool(main, [*words, '--out', str(tmp_path)]) == 2
        assert message in capsys.readouterr().err
