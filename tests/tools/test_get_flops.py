"""Tables 1.2, 2.2 and 2.3: rows as printed, counts as known, agreement as stated."""

import json
import re
from functools import cache

import pytest
import timm
import torch
from get_flops import (
    agreements,
    count_parameters,
    main,
    measure_reading,
    measure_row,
    read_published,
    render,
    select_rows,
)

from mmvars.cli import run_tool
from mmvars.layers import PRESETS
from mmvars.networks import MODELS, TOP_DOWN_DESIGNS

TABLES = read_published()
TABLE_1_2 = {
    'RegNetY-4GF': (20.6, 4.0),
    'ResNet50': (25.6, 4.1),
    'ResNeXt50-32x4d': (25.0, 4.3),
    'InceptionV3': (27.2, 5.7),
    'PiT-Ti': (4.9, 0.7),
    'ConViT': (5.7, 1.4),
    'PVT': (13.2, 1.9),
    'DeiT': (5.7, 1.3),
    'GFNet': (7.5, 1.3),
    'RVT': (8.6, 1.3),
    'DeiT*': (5.7, 1.3),
    'DeiT* w/ VARS-S': (6.8, 1.0),
    'DeiT* w/ VARS-D': (5.4, 1.4),
    'DeiT* w/ VARS-SD': (5.8, 1.4),
    'GFNet-Ti*': (7.5, 1.3),
    'GFNet-Ti* w/ VARS-S': (7.5, 1.3),
    'GFNet-Ti* w/ VARS-D': (9.8, 1.9),
    'GFNet-Ti* w/ VARS-SD': (10.4, 1.9),
    'RVT*': (8.6, 1.3),
    'RVT* w/ VARS-S': (9.2, 1.0),
    'RVT* w/ VARS-D': (8.0, 1.2),
    'RVT* w/ VARS-SD': (9.2, 1.5),
}
TABLE_2_2 = {
    'PiT-Ti': (5, 0.7),
    'ConViT-Ti': (6, 1.4),
    'PVT-Ti': (13, 1.9),
    'GFNet-Ti': (8, 1.3),
    'ViT-Ti': (6, 1.3),
    'ViT-Ti w/ AbS': (7, 2.6),
    'RVT-Ti': (9, 1.3),
    'RVT-Ti w/ AbS': (11, 2.7),
    'FAN-Ti': (7, 1.3),
    'FAN-Ti w/ AbS': (9, 2.9),
    'PiT-S': (24, 2.9),
    'PVT-S': (25, 3.8),
    'Swin-T': (28, 4.5),
    'ConvNext-T': (29, 4.5),
    'ViT-S': (22, 4.2),
    'ViT-S w/ AbS': (26, 9.8),
    'RVT-S': (22, 4.3),
    'RVT-S w/ AbS': (26, 10.4),
    'FAN-S': (28, 5.3),
    'FAN-S w/ AbS': (32, 11.4),
    'PiT-B': (74, 12.5),
    'PVT-L': (61, 9.8),
    'Swin-B': (88, 15.4),
    'ConvNext-B': (89, 15.4),
    'ViT-B': (87, 17.2),
    'ViT-B w/ AbS': (99, 38.9),
    'RVT-B': (86, 17.7),
    'RVT-B w/ AbS': (100, 39.5),
    'FAN-B': (54, 10.4),
    'FAN-B w/ AbS': (62, 21.8),
}
TABLE_2_3 = [
    f'{trunk}{rival}'
    for trunk in ('ViT-Ti', 'RVT-Ti')
    for rival in ('', ' w/ PerceiverIO', ' w/ Feedback', ' w/ MaskAtt', ' w/ AbS')
]
# AbS on each trunk -> M; G of the released design: lin+conv with the signal through the whole
# projection, the same through its value rows only, all products with these; and lin+conv with the
# reconstructions, where it was released. Counted on the released code and on prototypes built from
# the released trunks, which print as many digits as stand here.
KNOWN_ABS = {
    'ViT-Ti': ('6.602', '2.585', '2.411', '2.769', '2.760'),
    'ViT-S': ('25.590', '10.225', '9.528', '10.244', '10.923'),
    'ViT-B': ('100.724', '40.669', '37.880', '39.311', '43.457'),
    'RVT-Ti': ('10.64', '2.73', '2.56', '2.86'),
    'RVT-S': ('25.69', '10.32', '9.62', '10.33'),
    'RVT-B': ('100.38', '40.50', '37.73', '39.14'),
    'FAN-Ti': ('8.20', '2.94', '2.86', '3.21'),
    'FAN-S': ('31.88', '11.60', '11.25', '11.96'),
    'FAN-B': ('61.58', '22.91', '22.20', '23.44'),
}
# network, mixer, options -> M all, M trainable, G all here, G FFT here, G all and FFT as released.
# The released code's numbers were counted on that code itself.
KNOWN = [
    ('rvt_tiny', 'performer', {}, 8.818, 8.646, 1.240, 0, 1.413, 0),
    ('rvt_tiny', 'vars_d', dict(num_steps=3), 8.201, 8.029, 1.256, 0, 1.256, 0),
    ('rvt_tiny', 'vars_d', {}, 8.201, 8.029, 1.278, 0, 1.278, 0),
    ('rvt_tiny', 'vars_sd', {}, 9.177, 9.005, 1.910, 0, 1.963, 0),
    ('rvt_tiny', 'vars_s', {}, 10.155, 10.152, 0.960, 0.214, 0.960, 0.274),
    ('rvt_base', 'performer', {}, 87.403, 86.224, 17.711, 0, 18.307, 0),
    ('rvt_small', 'vars_sd', {}, 23.557, 22.967, 9.142, 0, 9.373, 0),
]


def named(table: str, name: str) -> dict:
    return next(row for row in TABLES[table] if row['name'] == name)


def measured(table: str, name: str):
    """The size of the first reading of a row."""
    return measure_once(json.dumps(named(table, name)['built_as'][0]))


@cache
def measure_once(reading: str):
    """The size of a reading, which many tests look at."""
    return measure_reading(**json.loads(reading))


def test_the_rows_are_those_of_the_thesis():
    for table, expected in (('1.2', TABLE_1_2), ('2.2', TABLE_2_2)):
        assert {row['name']: (row['params'], row['gflops']) for row in TABLES[table]} == expected
    assert [row['name'] for row in TABLES['2.3']] == TABLE_2_3
    assert {(row['params'], row['gflops']) for row in TABLES['2.3']} == {(None, None)}
    assert {type(row['params']) for row in TABLES['1.2']} == {float}  # printed with one digit
    assert {type(row['params']) for row in TABLES['2.2']} == {int}


def test_every_reading_can_be_named_and_every_row_is_explained():
    readings = [reading for rows in TABLES.values() for row in rows for reading in row['built_as']]
    assert len(readings) >= 86
    ours = {reading['arch'] for reading in readings if 'timm' not in reading}
    theirs = {reading['timm'] for reading in readings if 'timm' in reading}
    assert ours <= set(MODELS) and len(ours) >= 12
    assert len(theirs) >= 11 and all(timm.is_model(name) for name in theirs)
    assert {r.get('top_down') for r in readings} == {None, *TOP_DOWN_DESIGNS} - {'absvit_qkv'}
    presets = {reading.get('mixer_cfg', {}).get('preset') for reading in readings}
    assert presets == {None, *PRESETS}
    for rows in TABLES.values():
        assert len({row['name'] for row in rows}) == len(rows)
        for row in rows:
            assert len(row['remark']) > 10
            assert len({reading['label'] for reading in row['built_as']}) == len(row['built_as'])


@pytest.mark.parametrize('known', KNOWN, ids=lambda known: '-'.join(map(str, known[:3])))
def test_known_counts(known):
    network, mixer, options, *numbers = known
    size = measure_reading(arch=network, mixer=mixer, mixer_cfg=options)
    found = (
        size.parameters / 1e6,
        size.trainable / 1e6,
        size.executed.all / 1e9,
        size.executed.fourier / 1e9,
        size.released.all / 1e9,
        size.released.fourier / 1e9,
    )
    assert [round(number, 3) for number in found] == pytest.approx(numbers, abs=0.0011)


@pytest.mark.parametrize('trunk', KNOWN_ABS)
def test_known_counts_of_abs(trunk):
    size = measured('2.2', f'{trunk} w/ AbS')
    parts = size.second_pass
    full = size.released.linear
    values = full - parts.other_rows
    found = [
        size.parameters / 1e6,
        full / 1e9,
        values / 1e9,
        (values + size.executed.products) / 1e9,
        (full + parts.reconstruction) / 1e9,
    ]
    known = KNOWN_ABS[trunk]
    digits = len(known[0].partition('.')[2])
    assert [f'{number:.{digits}f}' for number in found[: len(known)]] == list(known)
    assert size.trainable == size.parameters
    assert full - size.executed.linear == (
        parts.embedding + parts.classifier + parts.value_rows + parts.other_rows
    )
    assert not size.executed.fourier
    remark = named('2.2', f'{trunk} w/ AbS')['remark']
    for number in re.findall(r'\d+\.\d\d+(?! M)', remark):  # costs, but for parameters
        assert number in {f'{count:.2f}' for count in found}


@pytest.mark.parametrize(
    'name, parameters, linear, everything',
    [
        ('FAN-Ti', '7.320', '1.298', '1.564'),
        ('FAN-S', '28.345', '5.104', '5.637'),
        ('FAN-B', '54.350', '10.037', '10.968'),
    ],
)
def test_known_counts_of_the_released_fan(name, parameters, linear, everything):
    size = measured('2.2', name)
    released = size.released
    assert (
        f'{size.parameters / 1e6:.3f}',
        f'{released.linear / 1e9:.3f}',
        f'{released.all / 1e9:.3f}',
    ) == (parameters, linear, everything)
    assert released.all > size.executed.all


@pytest.mark.parametrize(
    'trunk, width', [pytest.param('ViT-Ti', 192, marks=pytest.mark.slow), ('RVT-Ti', 384)]
)
def test_rivals_cost_what_their_parts_cost(trunk, width):
    plain, perceiver, feedback, mask, full = (
        measured('2.3', row['name']) for row in TABLES['2.3'] if row['name'].split(' ')[0] == trunk
    )
    assert perceiver.parameters == mask.parameters == plain.parameters + width
    assert feedback.parameters == full.parameters - width
    assert perceiver.executed == plain.executed
    assert feedback.executed == full.executed and feedback.released == full.released
    # a mask needs no decoders: a second run of the blocks, and no more
    parts, crossing = full.second_pass, full.executed.linear - mask.executed.linear
    assert mask.executed.linear == (2 * plain.executed.linear - parts.embedding - parts.classifier)
    assert crossing - parts.reconstruction == (trunk == 'RVT-Ti') * 49 * 9 * 384 * 192
    assert mask.executed.products == full.executed.products == 2 * plain.executed.products
    assert mask.released is perceiver.released is None
    assert mask.second_pass is perceiver.second_pass is plain.second_pass is None


def test_what_is_not_saved_is_no_parameter():
    module = torch.nn.Module()
    module.register_buffer('kept', torch.zeros(3))
    module.register_buffer('made', torch.zeros(5), persistent=False)
    assert count_parameters(module) == (3, 0)


def test_what_was_never_released_has_no_released_count():
    size = measure_reading(arch='rvt_tiny', mixer='vars_d', mixer_cfg=dict(preset='thesis'))
    assert size.released is None
    for design in ('absvit_qkv', 'perceiver_io', 'mask_attention'):
        size = measure_reading(arch='vit_tiny_patch16', top_down=design)
        assert size.released is size.second_pass is None
    size = measure_reading(arch='rvt_tiny', mixer='vars_d', top_down='absvit')
    assert size.released is size.second_pass is None
    assert measure_reading(timm='pit_ti_224').released is None


@pytest.mark.parametrize(
    'table, name, label, agrees',
    [
        ('1.2', 'RVT', 'bottom-up', ['params', 'all']),
        ('1.2', 'RVT* w/ VARS-D', '3 steps', ['params trainable']),
        ('1.2', 'RVT* w/ VARS-SD', '3 steps', ['params all']),
        ('1.2', 'RVT* w/ VARS-S', 'r = 5 atoms a channel, as released', ['all']),
        (
            '1.2',
            'RVT* w/ VARS-S',
            'r = 3 atoms a channel',
            ['params all', 'params trainable', 'all'],
        ),
        ('1.2', 'RVT*', 'Performer', ['params trainable']),
        ('2.2', 'ViT-S', 'bottom-up', ['params', 'lin+conv']),
        ('2.2', 'ViT-Ti w/ AbS', 'two passes', ['params', 'release lin+conv']),
        ('2.2', 'ViT-S w/ AbS', 'two passes', ['params', 'all']),
        ('2.2', 'ViT-B w/ AbS', 'two passes', []),
        ('2.2', 'FAN-Ti w/ AbS', 'two passes', ['release lin+conv']),
        ('2.2', 'PiT-S', 'pit_s_224 of timm', ['all']),
        ('1.2', 'ResNet50', 'resnet50 of timm', ['params', 'all']),
        ('2.3', 'ViT-Ti w/ AbS', 'two passes', []),
    ],
)
def test_agreement_is_computed(table, name, label, agrees):
    row = named(table, name)
    reading = next(reading for reading in row['built_as'] if reading['label'] == label)
    assert agreements(row, measure_once(json.dumps(reading))) == agrees


def test_rows_are_chosen_by_part_or_pattern():
    def names(*patterns):
        return [row['name'] for row in select_rows(TABLES, '1.2', patterns)]

    assert names() == list(TABLE_1_2)
    assert names('gfnet-ti*') == ['GFNet-Ti*']
    assert names('gfnet-ti*w*') == [name for name in TABLE_1_2 if name.startswith('GFNet-Ti* w')]
    assert names('*vars-d', 'DeiT') == ['DeiT'] + [
        name for name in TABLE_1_2 if name.endswith('VARS-D')
    ]
    assert len(names('vars')) == 9


def test_the_table_is_markdown_and_json(tmp_path, capsys):
    file = tmp_path / 'sizes.json'
    assert run_tool(main, ['--rows', 'RVT* w/ VARS-S', '--json', str(file)]) == 0
    out = capsys.readouterr().out
    assert r'RVT\* w/ VARS-S' in out and 'PUBLISHED' in out and '10.155' in out
    lines = [line for line in out.splitlines() if line.startswith('|')]
    assert len({line.replace(r'\|', '').count('|') for line in lines}) == 1
    result = json.loads(file.read_text())
    assert set(result) == {'convention', 'image_size', 'torch', 'rows'}
    row = result['rows'][0]
    assert row['published'] == dict(params_m=9.2, gflops=1.0)
    assert row['readings'][0]['second_pass'] is None and 'two passes' not in out
    assert row['readings'][0]['parameters'] == dict(all=10155112, trainable=10152424)
    assert set(row['readings'][0]['multiply_adds']) == {'linear', 'products', 'all', 'fourier'}
    assert render(result) in out


def test_two_passes_and_rows_without_code(tmp_path, capsys):
    file = tmp_path / 'sizes.json'
    rows = ['PVT-Ti', 'ViT-Ti w/ AbS', 'ConvNext-T']
    assert run_tool(main, ['--rows', *rows, '--json', str(file)]) == 0
    out = capsys.readouterr().out
    tables = [part.splitlines() for part in out.split('## ')[1:]]
    assert [lines[0] for lines in tables] == ['Table 2.2', 'Table 2.3']
    cells = [
        [cell.strip() for cell in line.strip('|').split('|')]
        for line in tables[0]
        if line.startswith('|')
    ]
    assert cells[0] == [
        'row',
        'built as',
        'params M',
        'G lin+conv',
        'G all',
        'release: G lin+conv',
        'G all',
        'PUBLISHED: M',
        'G',
        'agrees',
    ]
    assert cells[2] == ['PVT-Ti', 'not ours, not counted', *'-----', '13', '1.9', '-']
    assert cells[3][2:] == [
        '6.602',
        '2.295',
        '2.653',
        '2.585',
        '2.943',
        '7',
        '2.6',
        'params, release lin+conv',
    ]
    assert cells[4][:2] == ['ConvNext-T', 'convnext_tiny of timm']
    assert 'both passes embed the patches' in out
    unknown, ours, _, again = json.loads(file.read_text())['rows']
    assert unknown['readings'] == [] and again['published']['params_m'] is None
    reading = ours['readings'][0]
    assert set(reading['second_pass']) == {
        'embedding',
        'classifier',
        'value_rows',
        'other_rows',
        'reconstruction',
    }
    assert (reading['top_down'], reading['arch']) == ('absvit', 'vit_tiny')


def test_bad_input_is_one_line(tmp_path, capsys):
    (tmp_path / 'kept.json').write_text('kept')
    for argv, words in [
        (['--rows', 'Mamba'], "'Mamba' fits no row"),
        (['--table', '9'], '--table must be one of 1.2, 2.2, 2.3'),
        (['--table', '2.3', '--rows', 'FAN'], "'FAN' fits no row"),
        (['--json', str(tmp_path / 'kept.json')], '--overwrite'),
        (['--json', str(tmp_path / 'gone' / 'x.json')], 'does not exist'),
    ]:
        assert run_tool(main, [*argv]) == 2
        message = capsys.readouterr().err
        assert words in message and message.count('\n') == 1
    assert (tmp_path / 'kept.json').read_text() == 'kept'


@pytest.mark.slow
def test_the_whole_table():
    rows = [measure_row(row) for table in TABLES.values() for row in table]
    assert [row['name'] for row in rows] == [*TABLE_1_2, *TABLE_2_2, *TABLE_2_3]
    unexplained = {
        row['name']
        for row in rows
        if row['table'] == '1.2'
        and row['readings']
        and not any(
            agrees.startswith('params')
            for reading in row['readings']
            for agrees in reading['agrees']
        )
    }
    assert unexplained == {
        row['name'] for row in TABLES['1.2'] if 'Not reproduced' in row['remark']
    }
    for row in rows:
        ours = row['table'] == '1.2' and 'arch' in row['readings'][0] if row['readings'] else True
        if row['table'] == '2.3' or ours and row['table'] == '1.2' or not row['readings']:
            continue
        names = row['readings'][0]['agrees']
        remark = row['remark']
        params = any(name.startswith('params') for name in names)
        assert params == ('Both agree' in remark or 'Parameters agree' in remark), row['name']
        if 'chance' not in remark:
            cost = any(not name.startswith('params') for name in names)
            assert cost == ('Both' in remark or 'cost agrees' in remark), row['name']
