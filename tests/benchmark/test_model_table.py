"""Table 1.2: rows as printed, counts as known, agreement as stated."""

import json

import pytest

from mmvars import cli
from mmvars.benchmark.model_table import agreements, model_table, render, select_rows
from mmvars.benchmark.published import TABLES, Reading
from mmvars.benchmark.sizes import measure_reading
from mmvars.errors import InputError
from mmvars.layers import PRESETS
from mmvars.networks import VARIANTS

TABLE_1_2 = {
    'DeiT': (5.7, 1.3), 'GFNet': (7.5, 1.3), 'RVT': (8.6, 1.3),
    'DeiT*': (5.7, 1.3), 'DeiT* w/ VARS-S': (6.8, 1.0), 'DeiT* w/ VARS-D': (5.4, 1.4),
    'DeiT* w/ VARS-SD': (5.8, 1.4),
    'GFNet-Ti*': (7.5, 1.3), 'GFNet-Ti* w/ VARS-S': (7.5, 1.3), 'GFNet-Ti* w/ VARS-D': (9.8, 1.9),
    'GFNet-Ti* w/ VARS-SD': (10.4, 1.9),
    'RVT*': (8.6, 1.3), 'RVT* w/ VARS-S': (9.2, 1.0), 'RVT* w/ VARS-D': (8.0, 1.2),
    'RVT* w/ VARS-SD': (9.2, 1.5),
}
# network, mixer, options -> M all, M trainable, G all here, G FFT here, G all and FFT as released.
# The released code's numbers were counted on that code itself.
KNOWN = [
    ('rvt_tiny', 'performer', {}, 8.818, 8.646, 1.240, 0, 1.413, 0),
    ('rvt_tiny', 'vars_d', dict(num_steps=3), 8.201, 8.029, 1.256, 0, 1.256, 0),
    ('rvt_tiny', 'vars_d', {}, 8.201, 8.029, 1.278, 0, 1.278, 0),
    ('rvt_tiny', 'vars_sd', {}, 9.177, 9.005, 1.910, 0, 1.963, 0),
    ('rvt_tiny', 'vars_s', {}, 10.155, 10.152, .960, .214, .960, .274),
    ('rvt_base', 'performer', {}, 87.403, 86.224, 17.711, 0, 18.307, 0),
    ('rvt_small', 'vars_sd', {}, 23.557, 22.967, 9.142, 0, 9.373, 0),
]


def test_the_rows_are_those_of_the_thesis():
    assert {row.name: (row.params, row.gflops) for row in TABLES['1.2']} == TABLE_1_2


def test_every_reading_can_be_named_and_every_row_is_explained():
    readings = [reading for rows in TABLES.values() for row in rows for reading in row.readings]
    assert len(readings) >= 40
    assert {reading.network for reading in readings} <= set(VARIANTS)
    assert {r.options['preset'] for r in readings if 'preset' in r.options} == set(PRESETS)
    for rows in TABLES.values():
        assert len({row.name for row in rows}) == len(rows)
        for row in rows:
            assert len(row.remark) > 10
            assert len({reading.label for reading in row.readings}) == len(row.readings)


@pytest.mark.parametrize('known', KNOWN, ids=lambda known: '-'.join(map(str, known[:3])))
def test_known_counts(known):
    network, mixer, options, *numbers = known
    size = measure_reading(Reading('', network, mixer, options))
    found = (size.parameters / 1e6, size.trainable / 1e6, size.executed.all / 1e9,
             size.executed.fourier / 1e9, size.released.all / 1e9, size.released.fourier / 1e9)
    assert [round(number, 3) for number in found] == pytest.approx(numbers, abs=.0011)


def test_what_was_never_released_has_no_released_count():
    size = measure_reading(Reading('', 'rvt_tiny', 'vars_d', dict(preset='thesis')))
    assert size.released is None
    assert measure_reading(Reading('', 'absvit_tiny_patch16')).released is None


@pytest.mark.parametrize('name, label, agrees', [
    ('RVT', 'RVT-Ti', ['params', 'all']),
    ('RVT* w/ VARS-D', '3 steps', ['params trainable']),
    ('RVT* w/ VARS-SD', '3 steps', ['params all']),
    ('RVT* w/ VARS-S', 'r = 5 atoms a channel, as released', ['all']),
    ('RVT* w/ VARS-S', 'r = 3 atoms a channel', ['params all', 'params trainable', 'all']),
    ('RVT*', 'Performer', ['params trainable']),
])
def test_agreement_is_computed(name, label, agrees):
    row = next(row for row in TABLES['1.2'] if row.name == name)
    reading = next(reading for reading in row.readings if reading.label == label)
    assert agreements(row, measure_reading(reading)) == agrees


def test_rows_are_chosen_by_part_or_pattern():
    def names(*patterns):
        return [row.name for _, row in select_rows('1.2', patterns)]

    assert names() == list(TABLE_1_2)
    assert names('gfnet-ti*') == ['GFNet-Ti*']
    assert names('gfnet-ti*w*') == [name for name in TABLE_1_2 if name.startswith('GFNet-Ti* w')]
    assert names('*vars-d', 'DeiT') == ['DeiT'] + [
        name for name in TABLE_1_2 if name.endswith('VARS-D')]
    assert len(names('vars')) == 9


def test_the_table_is_markdown_and_json(tmp_path, capsys):
    file = tmp_path / 'sizes.json'
    assert cli.main(['table', '--rows', 'RVT* w/ VARS-S', '--json', str(file)]) == 0
    out = capsys.readouterr().out
    assert r'RVT\* w/ VARS-S' in out and 'PUBLISHED' in out and '10.155' in out
    lines = [line for line in out.splitlines() if line.startswith('|')]
    assert len({line.replace(r'\|', '').count('|') for line in lines}) == 1
    result = json.loads(file.read_text())
    assert set(result) == {'convention', 'image_size', 'torch', 'rows'}
    row = result['rows'][0]
    assert row['published'] == dict(params_m=9.2, gflops=1.0)
    assert row['readings'][0]['parameters'] == dict(all=10155112, trainable=10152424)
    assert set(row['readings'][0]['multiply_adds']) == {'linear', 'products', 'all', 'fourier'}
    assert render(result) in out


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / 'kept.json').write_text('kept')
    for argv, words in [(['--rows', 'Swin'], "'Swin' fits no row"),
                        (['--table', '9'], '--table must be one of 1.2'),
                        (['--json', str(tmp_path / 'kept.json')], '--overwrite'),
                        (['--json', str(tmp_path / 'gone' / 'x.json')], 'does not exist')]:
        assert cli.main(['table', *argv]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count('\n') == 1
    assert (tmp_path / 'kept.json').read_text() == 'kept'


def test_an_unknown_row_is_refused_before_anything_is_built():
    with pytest.raises(InputError, match='fits no row'):
        select_rows(None, ['x'])


@pytest.mark.slow
def test_the_whole_table():
    result = model_table(select_rows())
    assert [row['name'] for row in result['rows']] == list(TABLE_1_2)
    unexplained = {row['name'] for row in result['rows'] if not any(
        agrees.startswith('params') for reading in row['readings'] for agrees in reading['agrees'])}
    assert unexplained == {row.name for row in TABLES['1.2'] if 'Not reproduced' in row.remark}
