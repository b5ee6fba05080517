"""The table of targets: what it reads, what it says, and where it is written."""

import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch

from mmvars import cli
from mmvars.benchmark import target_runs
from mmvars.benchmark.import_time import import_seconds, imports_entry, render_imports
from mmvars.benchmark.models import model_cases, parse_model
from mmvars.benchmark.statistics import Spread, growth_interval
from mmvars.benchmark.target_report import (BEGIN, END, check_section, kept_rows, merge_rows,
                                            render_targets, replace_section)
from mmvars.benchmark.target_runs import measure_targets, select_targets
from mmvars.benchmark.targets import EXPERIMENTS, QUANTITIES, Experiment, Target
from mmvars.benchmark.timing import Settings
from mmvars.errors import InputError

FAST = Settings(rounds=2, warmup=0, min_seconds=0)
README = Path(__file__).parents[2] / 'README.md'


def tiny_experiment(*targets, training=False):
    names = ['timm/vit_tiny', 'vit_tiny', 'vit_tiny:grad_checkpointing=True']
    return Experiment(targets, lambda: model_cases(
        [parse_model(name) for name in names], [(32, 32), (64, 64)], [1], 'classify', training,
        dict(embed_dim=12, depth=2, num_heads=2)), dict(mode='training') if training else {})


def row(text, median, limit=2., at_least=False):
    settings = dict(torch='t', device_name='d', dtype='f', threads=1, rounds=7, clock='process',
                    measured_at='2000-01-01 00:00', load_before=1., load_after=2.)
    return target_runs._row(Target(text, limit, 'a', 'b', at_least=at_least),
                            Spread(median, median, median), settings=settings)


def test_every_target_reads_what_is_measured(monkeypatch):
    for place in ('models', 'priors'):  # only names matter here: nothing of this size is built
        monkeypatch.setattr(f'mmvars.benchmark.{place}.build_ours', lambda *_: MagicMock())
    targets = [target for experiment in EXPERIMENTS for target in experiment.targets]
    assert len(targets) == len({target.text for target in targets}) == 28
    for experiment in EXPERIMENTS:
        cases = experiment.cases() if experiment.cases else []
        for target in experiment.targets:
            assert target.quantity in QUANTITIES
            read = [case for case in cases if target.reads(case.group, case.size)]
            if target.quantity == 'growth':
                assert [case.size for case in read] == [1024, 2025, 4096, 8100]
            elif target.quantity == 'seconds':
                assert not read and target.contender.startswith('mmvars')
                continue
            else:
                assert len(read) == 1
            for case in read:
                names = {contender.name for contender in case.contenders}
                assert {target.contender, target.reference or target.contender} <= names
            assert (target.quantity == 'saved') <= (experiment.settings.get('mode') == 'training')


@pytest.mark.parametrize('median, at_least, reached', [
    (1.9, False, True), (2., False, True), (2.1, False, False), (2., True, True),
    (2.1, True, True), (1.9, True, False)])
def test_reached_or_missed(median, at_least, reached):
    found = row('x', median, at_least=at_least)
    assert found['reached'] is reached
    table = render_targets([found])
    assert ('| reached |' in table) == reached and ('| missed |' in table) != reached
    assert f'{median:.3f}' in table and ('>= 2' in table) == at_least


def test_targets_are_measured(capsys):
    time = Target('time', 1e9, 'vit_tiny', 'timm/vit_tiny', group='32x32, batch 1')
    never = Target('never', 0, 'vit_tiny', 'timm/vit_tiny', group='64x64, batch 1', size=4096)
    growth = Target('growth', 9, 'vit_tiny', quantity='growth')
    saved = Target('saved', 1, 'vit_tiny:grad_checkpointing=True', 'vit_tiny', 'saved',
                   group='64x64, batch 1')
    steps = []
    selection = select_targets([], [tiny_experiment(time, never, growth),
                                    tiny_experiment(saved, training=True)])
    rows = measure_targets(selection, FAST, 1, lambda rows: steps.append(len(rows)))
    assert steps == [3, 4]
    assert [one['reached'] for one in rows] == [True, False, True, True]
    assert [len(one['cases']) for one in rows] == [1, 1, 2, 1]
    assert rows[1]['cases'][0]['size'] == 4096
    assert 0 < rows[3]['measured']['median'] < 1
    assert rows[3]['settings']['mode'] == 'training' and rows[0]['settings']['mode'] == 'forward'
    assert {'torch', 'threads', 'dtype', 'load_before', 'wall_seconds'} <= set(rows[0]['settings'])
    json.dumps(rows)
    assert 'measuring: time; never; growth' in capsys.readouterr().err


def test_only_the_cases_that_are_read_are_measured(monkeypatch):
    measured = []
    real = target_runs.measure_case
    monkeypatch.setattr(target_runs, 'measure_case',
                        lambda case, settings: measured.append(case.group) or real(case, settings))
    target = Target('one', 1, 'vit_tiny', 'timm/vit_tiny', group='32x32, batch 1')
    measure_targets([(tiny_experiment(target), [target])], FAST, 1, lambda rows: None)
    assert measured == ['32x32, batch 1']


def test_no_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    [found] = measure_targets(select_targets(['on a gpu']), FAST, 1, lambda rows: None)
    assert found['reached'] is found['measured'] is None
    table = render_targets([found])
    assert 'not measured |' in table and 'no CUDA device' in table and '1 not measured.' in table


def test_rows_are_chosen_by_words():
    texts = [target.text for _, targets in select_targets(['vars-s at', 'import mmvars`'])
             for target in targets]
    assert len(texts) == 3 and texts[0].startswith('VARS-S at N = 4096, width 192')
    assert sum(len(targets) for _, targets in select_targets([])) == 28
    with pytest.raises(InputError, match="'quantum' is in no target"):
        select_targets(['VARS', 'quantum'])


def test_earlier_rows_are_kept_in_order():
    kept = [row('c', 1.), row('a', 1.), row('gone', 1.)]
    merged = merge_rows(['a', 'b', 'c'], kept, [row('b', 3.), row('c', 3.)])
    assert [(one['target'], one['measured']['median']) for one in merged] == [
        ('a', 1.), ('b', 3.), ('c', 3.)]
    assert 'Of 3 targets 1 are reached, 2 missed.' in render_targets(merged)


def test_a_section_is_replaced(tmp_path):
    file = tmp_path / 'x.md'
    file.write_text(f'before\n{BEGIN}\nold\n{END}\nafter\n')
    assert replace_section(file, 'new') == f'before\n{BEGIN}\nnew\n{END}\nafter\n'
    for text in ('nothing', BEGIN, f'{END}{BEGIN}', f'{BEGIN}{BEGIN}{END}'):
        file.write_text(text)
        with pytest.raises(InputError, match='needs one line'):
            check_section(file)


def test_the_readme_has_the_section():
    check_section(README)
    shown = README.read_text().partition(BEGIN)[2].partition(END)[0]
    for experiment in EXPERIMENTS:
        for target in experiment.targets:
            assert target.text in shown


def test_the_command_writes_the_table(tmp_path, monkeypatch, capsys):
    target = EXPERIMENTS[0].targets[0]
    small = replace(target, contender='vit_tiny', group='32x32, batch 1')
    monkeypatch.setattr('mmvars.benchmark.suites.select_targets',
                        lambda patterns: [(tiny_experiment(small), [small])])
    markdown, kept, file = (tmp_path / name for name in ('x.md', 'kept.json', 'new.json'))
    markdown.write_text(f'{BEGIN}{END}')
    other = EXPERIMENTS[1].targets[0].text
    kept.write_text(json.dumps(dict(targets=[row(other, 1.)])))
    assert cli.main(['benchmark', '--suite', 'readme', '--rounds', '1', '--warmup', '0',
                     '--min-seconds', '0', '--update', str(markdown), '--keep', str(kept),
                     '--json', str(file)]) == 0
    assert [one['target'] for one in json.loads(file.read_text())['targets']] == [
        target.text, other]
    text = markdown.read_text()
    assert text.startswith(BEGIN) and text.endswith(END) and target.text in text and other in text
    assert capsys.readouterr().out.strip() in text


@pytest.mark.parametrize('argv, words', [
    (['--rows', 'quantum'], 'in no target'),
    (['--compile'], 'row by row'),
    (['--mode', 'training'], 'row by row'),
    (['--dtype', 'bfloat16'], 'row by row'),
    (['--update', 'gone.md'], 'gone.md'),
    (['--update', 'here.md'], 'needs one line'),
    (['--keep', 'here.md'], 'is no file that'),
    (['--keep', 'list.json'], 'is no file that'),
    (['--json', 'list.json'], '--overwrite'),
])
def test_bad_input_is_one_line(argv, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(target_runs, '_measure', lambda *_: pytest.fail('measured all the same'))
    Path('here.md').write_text('nothing')
    Path('list.json').write_text('{"targets": [{}]}')
    assert cli.main(['benchmark', '--suite', 'readme', *argv]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1


def test_kept_rows_are_those_written(tmp_path):
    file = tmp_path / 'x.json'
    file.write_text(json.dumps(dict(targets=[row('a', 1.)])))
    assert kept_rows(file)[0]['target'] == 'a'


def test_imports_are_timed_in_fresh_processes():
    found = import_seconds(['colorsys', 'json'], rounds=2)
    assert list(found) == ['colorsys', 'json'] and all(len(times) == 2 for times in found.values())
    assert all(time >= 0 for times in found.values() for time in times)
    assert '| colorsys |' in render_imports(imports_entry(found))
    with pytest.raises(InputError, match='importing nothing_like_it failed: ModuleNotFound'):
        import_seconds(['nothing_like_it'], rounds=1)


def test_growth_has_an_interval():
    sizes = [100, 1024, 2048, 4096]
    exact = [[size * 1e-3] * 3 for size in sizes]
    assert growth_interval(sizes, exact, 1024, 8192) == pytest.approx((1, 1, 1))
    noisy = [[size * factor for factor in (.8, 1, 1.3)] for size in sizes]
    low, median, high = growth_interval(sizes, noisy, 1024, 8192)
    assert low < median < high and median == pytest.approx(1)
    assert growth_interval([100], [[1]], 1024, 8192) is None
