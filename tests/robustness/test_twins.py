"""Two designs side by side: seeds of each, and the difference paired over the images."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from robustness_models import SHORT, run
from test_report import CLEAN, FOG, PREDICTIONS, SNOW, result

from mmvars.errors import InputError
from mmvars.robustness import cli
from mmvars.robustness.twins import find_runs, write_twins

RIGHT = [0, 1, 1, 0]


def test_seeds_and_difference_by_hand(tmp_path) -> None:
    def named(name: str, predictions: dict):
        made = result(tmp_path / name, predictions)
        made.about.update(protocol='own', images='4', preprocessing=f'of {name}')
        return made

    ours = [named('a', PREDICTIONS), named('b', {**PREDICTIONS, FOG: RIGHT, SNOW: RIGHT})]
    theirs = [named('c', {CLEAN: RIGHT, FOG: [1, 0, 0, 1], SNOW: [1, 0, 0, 1]})]
    text = write_twins(('x', 'y'), ours, theirs, tmp_path)
    # Fog: 3/4 and 4/4 less 0/4; snow: 2/4 and 4/4 less 0/4.
    lines = [line.split() for line in text.splitlines()]
    assert ['fog', '87.50', '±', '17.68', '0.00', '87.50', '[62.50,', '100.00]'] in lines
    assert ['snow', '75.00', '±', '35.36', '0.00', '75.00', '[50.00,', '100.00]'] in lines
    assert ['clean', '100.00', '±', '0.00', '100.00', '0.00', '[0.00,', '0.00]'] in lines
    assert 'seeds: 2 of x and 1 of y' in text and 'preprocessing of a<b>.py: of c' in text
    numbers = json.loads((tmp_path / 'twins.json').read_text())['numbers']
    assert numbers['corrupted']['x'] == [0.625, 1] and numbers['corrupted']['y'] == [0]
    assert numbers['corrupted']['difference']['value'] == 0.8125
    assert '| fog | 87.50 ± 17.68 | 0.00 |' in (tmp_path / 'twins.md').read_text()
    with pytest.raises(InputError, match=r'images \(4 and 3, or others\)'):
        write_twins(('x', 'y'), ours, [result(tmp_path / 'z', images=list('abc'))], tmp_path)


def test_what_is_no_twin_is_refused(tmp_path) -> None:
    (tmp_path / 'vit' / 'seed_1').mkdir(parents=True)
    (tmp_path / 'vit' / 'seed_0').mkdir()
    assert [path.name for path in find_runs(tmp_path, 'vit')] == ['seed_0', 'seed_1']
    record = tmp_path / 'vit' / 'seed_1' / 'run.json'
    record.write_text(json.dumps(dict(status='finished'), indent=1))
    assert len(find_runs(tmp_path, 'vit')) == 2
    record.write_text(json.dumps(dict(status='stopped'), indent=1))
    with pytest.raises(InputError, match='seed_1 is not finished'):
        find_runs(tmp_path, 'vit')
    record.unlink()
    with pytest.raises(InputError, match='--twins absvit: .* has no such folder; it has vit. Give'):
        cli.main([str(tmp_path), '--twins', 'absvit', 'vit'])
    with pytest.raises(InputError, match='give two designs'):
        cli.main([str(tmp_path), '--twins', 'vit', 'vit'])
    with pytest.raises(InputError, match='leave out CHECKPOINT, --against'):
        cli.main([str(tmp_path), 'x.pth', '--twins', 'vit', 'vit'])


def test_twins_of_two_kinds_are_refused_before_anything_is_measured(
    segmentor, classifier, tmp_path, monkeypatch
) -> None:
    for name, model in (('fcn', segmentor), ('resnet', classifier)):
        (tmp_path / name).mkdir()
        for file in model:
            shutil.copy(file, tmp_path / name)
    monkeypatch.setattr(cli, '_measure', None)
    with pytest.raises(InputError, match='--twins: fcn is a segmentor and resnet a classifier'):
        cli.main([str(tmp_path), '--twins', 'fcn', 'resnet'])


@pytest.mark.slow
def test_all_seeds_of_both_are_measured_in_one_call(segmentor, tmp_path, capsys) -> None:
    for number, name in enumerate(('ours/seed_0', 'ours/seed_1', 'plain')):
        folder = tmp_path / 'runs' / name
        folder.mkdir(parents=True)
        shutil.copy(segmentor[0], folder)
        checkpoint = torch.load(segmentor[1], weights_only=False)
        torch.manual_seed(number)
        for value in checkpoint['state_dict'].values():
            if value.ndim > 1:
                value += 0.1 * torch.randn_like(value)
        torch.save(checkpoint, folder / 'iter_1.pth')
    options = [*SHORT, '--images', '4']
    command = [str(tmp_path / 'runs'), '--twins', 'ours', 'plain', *options]
    cli.main([*command, '--out', str(tmp_path / 'out')])
    content = json.loads((tmp_path / 'out' / 'twins.json').read_text())
    alone = run((str(tmp_path / 'runs' / 'plain'),), tmp_path / 'alone', *options[len(SHORT) :])
    fog = content['numbers']['fog']
    assert fog['plain'] == [
        (alone['settings']['fog-1']['value'] + alone['settings']['fog-5']['value']) / 2
    ]
    assert len(fog['ours']) == 2 and fog['ours'][0] != fog['ours'][1]
    seed = json.loads(Path(tmp_path, 'out', 'ours', 'seed_1', 'robustness.json').read_text())
    assert seed['against']['fog']['value'] == pytest.approx(fog['ours'][1] - fog['plain'][0])
    capsys.readouterr()
    cli.main([*command, '--out', str(tmp_path / 'out')])
    assert capsys.readouterr().out.count('5 of them made earlier') == 3
