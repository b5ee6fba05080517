"""`mmvars benchmark`: what is measured and reported. No test is about times themselves."""

import json
import math

import benchmark
import pytest
import timing
import torch
from benchmark import main, make_settings, mixer_cases, model_cases, parse_args, parse_model
from reference_absvit import AbSViT
from timing import (
    Case,
    Contender,
    Settings,
    growth_exponent,
    measure_case,
    memory_source,
    paired_ratio,
    peak_memory,
    saved_for_backward,
    spread,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.layers import MIXERS
from mmvars.networks import ARCH_ZOO, VisionTransformer

CPU = torch.device('cpu')
ONCE = Settings(rounds=1, warmup=0, min_seconds=0)
TRAINING = Settings(rounds=1, warmup=0, min_seconds=0, mode='training')
FAST = ['--rounds', '2', '--warmup', '0', '--min-seconds', '0']
DEFAULT_MIXERS = ['self_attention', 'performer', 'vars_d', 'vars_sd', 'vars_s']


def contender(name: str, module: nn.Module) -> Contender:
    return Contender(name, lambda: module, lambda: (torch.randn(2, 5, 4),))


def mixers(*argv: str) -> list[Case]:
    return mixer_cases(parse_args(list(argv)))


def models(*argv: str) -> list[Case]:
    return model_cases(parse_args(['--suite', 'models', *argv]))


@pytest.fixture(autouse=True)
def _small_tiny(monkeypatch) -> None:
    """ViT-Ti and AbSViT-Ti in miniature: everything here is about the frame."""
    small = VisionTransformer, dict(embed_dim=24, depth=4, num_heads=2)
    monkeypatch.setitem(ARCH_ZOO, 'vit_tiny', small)


# Timing


def test_contenders_take_turns(monkeypatch):
    calls = []

    class Recorded(nn.Linear):
        def __init__(self, name: str) -> None:
            super().__init__(4, 4)
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return super().forward(x)

    prepare = timing._Run.prepare
    monkeypatch.setattr(timing._Run, 'prepare', lambda run: prepare(run) or calls.clear())
    case = Case('g', 5, tuple(contender(name, Recorded(name)) for name in 'ABC'))
    measurements = measure_case(case, Settings(rounds=3, warmup=1, min_seconds=0))
    assert ''.join(calls) == 'ABC' * 4
    assert [len(one.seconds) for one in measurements] == [3, 3, 3]
    assert measurements[0].macs.linear == 2 * 5 * 4 * 4


def test_training_reaches_weights_and_leaves_no_gradient():
    layer = nn.Linear(4, 4)
    finite = []
    layer.weight.register_hook(lambda grad: finite.append(grad.isfinite().all().item()))
    measure_case(Case('g', 5, (contender('linear', layer),)), TRAINING)
    assert finite and all(finite)
    assert layer.weight.grad is None and layer.training


def test_half_precision_runs_under_autocast():
    dtypes = []
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    measure_case(
        Case('g', 5, (contender('linear', layer),)),
        Settings(dtype='bfloat16', rounds=1, warmup=0, min_seconds=0),
    )
    assert torch.bfloat16 in dtypes and layer.weight.dtype == torch.float32


def test_fusing_is_for_inference():
    calls = []

    class Fusing(nn.Linear):
        def fuse(self) -> None:
            calls.append(self.training)

    for settings in (ONCE, TRAINING):
        measure_case(Case('g', 5, (contender('linear', Fusing(4, 4)),)), settings)
    assert calls == [False]


class Broken(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        return {'finite': x / 0, 'zeros': x * 0, 'another output': torch.rand_like(x)}[self.how]


@pytest.mark.parametrize('how', ['finite', 'zeros', 'another output'])
def test_nonsense_is_not_timed(how):
    with pytest.raises(InputError, match=f'^broken gives.*{how}'):
        measure_case(Case('g', 5, (contender('broken', Broken(how)),)), ONCE)


@pytest.mark.skipif(memory_source(CPU) is None, reason='the system does not say')
def test_peak_memory_counts_what_is_freed_again():
    size = 64 * 2**20

    def call(parts: int) -> None:
        for _ in range(3):
            torch.ones(parts * size // 4)

    for parts in (1, 3, 1):  # a peak before does not hide a smaller one after
        # The kernel sums resident pages over threads now and then: on a busy machine a page that
        # was freed may count once more, so the least of eight.
        peak = min(peak_memory(lambda n=parts: call(n), CPU) for _ in range(8))
        assert peak == pytest.approx(parts * size, rel=0.1)


def test_saved_memory_is_what_autograd_saves():
    x = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(5, 7, requires_grad=True)

    def saved(function):
        return saved_for_backward(lambda: function().sum().backward(), [weight])

    size = 3 * 5 * 4
    assert saved(lambda: x.exp()) == size
    assert saved(lambda: x @ weight) == size  # its input, and a weight, which is there anyway
    assert saved(lambda: x.exp() * x[:1]) == 2 * size  # a view holds the whole, once
    assert saved(lambda: x + 1) == 0
    assert saved(lambda: checkpoint(lambda y: y.exp().sin().exp(), x, use_reentrant=False)) == size
    assert saved(lambda: x.exp().sin().exp()) == 2 * size  # the sine shares with exp
    assert x.grad.isfinite().all()


def test_a_system_without_memory_counts(monkeypatch, tmp_path):
    monkeypatch.setattr(timing, '_RESET', tmp_path / 'gone' / 'file')
    assert memory_source(CPU) is None
    assert peak_memory(lambda: None, CPU) is None
    [one] = measure_case(Case('g', 5, (contender('linear', nn.Linear(4, 4)),)), ONCE)
    assert one.peak_bytes is None and one.seconds


# Statistics


@pytest.mark.parametrize('exponent', [0, 1, 1.5, 2])
def test_a_power_law_gives_its_exponent(exponent):
    sizes = [100, 1024, 2025, 4096, 8100, 100_000]
    times = [3e-6 * size**exponent for size in sizes]
    times[0] = times[-1] = 7.0  # out of the range of the fit
    assert growth_exponent(sizes, times) == pytest.approx(exponent, abs=1e-9)


@pytest.mark.parametrize(
    'sizes, values',
    [([1024], [1]), ([1024, 1024], [1, 2]), ([10, 20], [1, 2]), ([], []), ([1024, 2048], [0, 1])],
)
def test_no_growth_from_too_little(sizes, values):
    assert growth_exponent(sizes, values) is None


def test_ratios_are_paired():
    """A round that is slow for both says nothing about their ratio."""
    reference = [1, 10, 1, 3, 1, 1, 1]
    assert paired_ratio([2 * time for time in reference], reference) == (2, 2, 2)
    noisy = paired_ratio([2, 3, 2, 2, 1, 2, 2], [1] * 7)
    assert noisy.low <= noisy.median == 2 <= noisy.high
    assert paired_ratio([2, 3, 1], [1, 1, 1]) == paired_ratio([2, 3, 1], [1, 1, 1])
    assert spread([5, 1, 3, 2, 4]) == (2, 3, 4) and spread([7]) == (7, 7, 7)


# Mixers


@pytest.mark.parametrize(
    'text, grid',
    [
        ('196', (14, 14)),
        ('400', (20, 20)),
        ('8100', (90, 90)),
        ('8192', (64, 128)),
        ('12', (3, 4)),
        ('2x16', (2, 16)),
        ('7X3', (7, 3)),
        ('1', (1, 1)),
    ],
)
def test_tokens_become_a_grid(text, grid):
    assert benchmark.parse_tokens(text) == grid


@pytest.mark.parametrize(
    'text, words',
    [
        ('0', 'got'),
        ('x', 'got'),
        ('14x', 'got'),
        ('-4', 'got'),
        ('0x3', 'got'),
        ('197', '196'),
        ('1.5', 'got'),
    ],
)
def test_tokens_that_are_no_grid(text, words):
    with pytest.raises(InputError, match=f'--tokens.*{words}'):
        benchmark.parse_tokens(text)


def test_every_mixer_is_a_contender():
    cases = mixers(
        '--mixers', *MIXERS, '--widths', '12x2', '24x3', '--tokens', '24', '2x3', '--num-steps', '1'
    )
    assert [(case.group, case.size) for case in cases] == [
        ('width 12, 2 heads, batch 1', 6),
        ('width 12, 2 heads, batch 1', 24),
        ('width 24, 3 heads, batch 1', 6),
        ('width 24, 3 heads, batch 1', 24),
    ]
    assert [one.name for one in measure_case(cases[0], ONCE)] == list(MIXERS)
    vars_d = next(one for one in cases[0].contenders if one.name == 'vars_d')
    assert vars_d.build().mixer.num_steps == 1


def test_linear_mixers_have_linear_counts():
    small, large = (
        {one.name: one.macs.all for one in measure_case(case, ONCE)}
        for case in mixers(
            '--widths', '12x2', '--tokens', '16', '64', '--mixers', *DEFAULT_MIXERS[:4]
        )
    )
    growth = {name: large[name] / small[name] for name in small}
    assert growth.pop('self_attention') > 4 >= max(growth.values())


# Models


@pytest.mark.parametrize(
    'text, library, name, options',
    [
        ('absvit_tiny', 'mmvars', 'absvit_tiny', {}),
        ('absvit_tiny_patch8_gap', 'mmvars', 'absvit_tiny_patch8_gap', {}),
        ('timm/vit_base', 'timm', 'vit_base', {}),
        ('rvt_tiny:mixer=vars_d', 'mmvars', 'rvt_tiny', dict(mixer='vars_d')),
        (
            'vit_tiny:grad_checkpointing=True:depth=3',
            'mmvars',
            'vit_tiny',
            dict(grad_checkpointing=True, depth=3),
        ),
    ],
)
def test_a_contender_is_one_word(text, library, name, options):
    spec = parse_model(text)
    assert (spec.text, spec.library, spec.name, spec.options) == (text, library, name, options)


def test_who_should_agree():
    def function(name):
        return parse_model(name).function

    assert (
        function('absvit_tiny')
        == function('reference/absvit_tiny')
        == function('absvit_tiny:grad_checkpointing=True:fuse=False')
    )
    assert function('vit_tiny') == function('timm/vit_tiny')
    assert (
        len(
            {
                function(name)
                for name in ('vit_tiny', 'absvit_tiny', 'vit_small', 'rvt_tiny', 'vit_tiny:depth=3')
            }
        )
        == 5
    )


@pytest.mark.parametrize(
    'names',
    [
        ('timm/vit_tiny', 'vit_tiny'),
        ('absvit_tiny', 'reference/absvit_tiny', 'absvit_tiny:fuse=False'),
    ],
)
@pytest.mark.parametrize('size, shapes', [('32x64', [(1, 24, 2, 4)] * 4), ('224', [(1, 1000)])])
def test_libraries_agree(names, size, shapes):
    [case] = models('--models', *names, '--sizes', size)
    for one in case.contenders:
        module, inputs = one.build().eval(), one.inputs()
        with torch.no_grad():
            outputs = module(*inputs)
        outputs = [outputs] if isinstance(outputs, torch.Tensor) else outputs
        assert [tuple(output.shape) for output in outputs] == shapes
        assert len({output.double().abs().mean().item() for output in outputs}) == len(outputs)
    assert [one.name for one in measure_case(case, ONCE)] == list(names)  # compares the outputs


@pytest.mark.parametrize('name', ['rvt_tiny', 'gfnet_tiny', 'fan_tiny', 'deit_convstem_tiny'])
def test_other_trunks_give_four_maps(name):
    [case] = models('--models', name, '--sizes', '64')
    one = case.contenders[0]
    assert len(one.build().eval()(*one.inputs())) == 4


@pytest.mark.parametrize('settings', [ONCE, TRAINING], ids=['forward', 'training'])
def test_another_function_is_not_timed(settings, monkeypatch):
    decode = AbSViT.decode
    monkeypatch.setattr(AbSViT, 'decode', lambda model, z: decode(model, 30 * z))
    [case] = models(
        '--models', 'absvit_tiny', 'reference/absvit_tiny', '--sizes', '64', '--mode', settings.mode
    )
    with pytest.raises(InputError, match='absvit_tiny and reference/absvit_tiny should give the'):
        measure_case(case, settings)


def test_gradients_are_compared_too(monkeypatch):
    [case] = models(
        '--models', 'absvit_tiny', 'reference/absvit_tiny', '--sizes', '64', '--mode', 'training'
    )
    measure_case(case, TRAINING)
    loss = AbSViT.reconstruction_loss
    monkeypatch.setattr(
        AbSViT,
        'reconstruction_loss',
        lambda model, states: 30 * loss(model, states).detach() - 29 * loss(model, states),
    )
    with pytest.raises(InputError, match='differ by'):
        measure_case(case, TRAINING)


def test_training_counts_memory_and_both_passes():
    names = (
        'timm/vit_tiny',
        'absvit_tiny',
        'reference/absvit_tiny',
        'absvit_tiny:grad_checkpointing=True',
    )
    [case] = models('--models', *names, '--sizes', '64', '--mode', 'training')
    plain, ours, reference, checkpointed = measure_case(case, TRAINING)
    assert checkpointed.saved_bytes < ours.saved_bytes < reference.saved_bytes
    assert 0 < plain.saved_bytes < ours.saved_bytes
    assert checkpointed.macs.all > ours.macs.all
    [case] = models('--models', names[0], '--sizes', '64', '--task', 'classify')
    [forward] = measure_case(case, ONCE)
    assert forward.saved_bytes is None
    # Forward, weights and inputs; images take no gradient, and attention computes its scores again.
    embedding, attention = 16 * 24 * 3 * 16 * 16, 17 * 17 * 24 * 4
    assert plain.macs.all == 3 * forward.macs.all - embedding + attention


def test_the_reference_multiplies_what_the_equations_say():
    tokens, width, depth = 1 + 2 * 4, 24, 4
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    model = AbSViT(64, 16, width, depth, 2, 0).eval()
    with torch.no_grad():
        macs = timing.count_multiply_adds(lambda: model(torch.randn(1, 3, 32, 64)), [model])
    signal = tokens * (3 * width**2 + 2 * width**2)  # its projection, and two maps a decoder
    assert macs.all == 8 * width * 3 * 16 * 16 + depth * (2 * block + signal)


# The command


def checked_table(out: str) -> list[str]:
    lines = [line for line in out.splitlines() if line.startswith('|')]
    assert lines
    return lines


@pytest.mark.parametrize('mode', ['forward', 'training'])
def test_the_report_is_a_table_and_json(mode, tmp_path, capsys):
    file = tmp_path / 'times.json'
    assert (
        run_tool(
            main,
            [
                *FAST,
                '--widths',
                '12x2',
                '--tokens',
                '9',
                '4x6',
                '--json',
                str(file),
                '--mode',
                mode,
            ],
        )
        == 0
    )
    out = capsys.readouterr().out
    assert '## width 12, 2 heads' in out and 'GMAC' in out
    assert ('saved MiB' in out) == (mode == 'training')
    assert len({line.count('|') for line in checked_table(out)}) == 1
    result = json.loads(file.read_text())
    assert set(result) == {'suite', 'size_name', 'settings', 'cases', 'growth'}
    assert [case['size'] for case in result['cases']] == [9, 24]
    for case in result['cases']:
        assert [row['name'] for row in case['contenders']] == DEFAULT_MIXERS
        for row in case['contenders']:
            assert len(row['seconds']) == 2 and min(row['seconds']) >= 0
            assert set(row['time']) == set(row['ratio']) == {'low', 'median', 'high'}
            assert row['multiply_adds']['all'] > 0
        assert case['contenders'][0]['ratio'] == dict(low=1, median=1, high=1)
    # 9 and 24 tokens are below the range of the fit
    assert {(entry['name'], entry['time']) for entry in result['growth']} == {
        (name, None) for name in DEFAULT_MIXERS
    }
    settings = result['settings']
    assert (settings['reference'], settings['mode'], settings['threads']) == (
        'self_attention',
        mode,
        1,
    )
    assert settings['torch'] == torch.__version__


def test_growth_is_reported(capsys):
    assert (
        run_tool(
            main,
            [*FAST, '--widths', '12x2', '--tokens', '1024', '2025', '--mixers', 'self_attention'],
        )
        == 0
    )
    line = checked_table(capsys.readouterr().out)[-1]
    name, time, memory = (cell.strip() for cell in line.strip('|').split('|'))
    assert name == 'self_attention' and math.isfinite(float(time))


@pytest.mark.parametrize(
    'extra',
    [
        ['--models', 'vit_tiny:depth=1', 'absvit_tiny:depth=1'],
        ['--mode', 'training', '--models', 'vit_tiny:depth=1', 'fan_tiny:depth=1'],
    ],
)
def test_the_report_of_models(extra, capsys):
    assert (
        run_tool(
            main, ['--suite', 'models', '--sizes', '32', '--batch-sizes', '1', '2', *FAST, *extra]
        )
        == 0
    )
    out = capsys.readouterr().out
    assert out.count('## ') == 2 and 'load' in out
    for name in extra[-2:]:
        assert out.count(f'| {name} ') == 2


@pytest.mark.parametrize(
    'argv, words',
    [
        (['--tokens', 'many'], '--tokens takes a number'),
        (['--tokens', '4x6', '24'], '--tokens names 24 more than once'),
        (['--widths', '192'], '--widths takes CHANNELSxHEADS'),
        (['--widths', '192x5'], 'divisible'),
        (['--mixers', 'vars_x'], 'vars_d'),
        (['--mixers', 'vars_d', 'vars_d'], 'more than once'),
        (['--reference', 'vars_x'], '--reference must be one of'),
        (['--rounds', '0'], '--rounds'),
        (['--threads', '0'], '--threads'),
        (['--batch-size', '0'], 'batch size'),
        (['--batch-sizes', '1', '2'], 'one batch size'),
        (['--num-steps', '-1'], 'num_steps'),
        (['--min-seconds', '-1'], '--min-seconds'),
        (['--device', 'tpu'], '--device must be'),
        (['--device', 'cuda:99'], '--device cuda:99 is not there'),
        (['--json', 'gone/x.json'], 'does not exist'),
        (['--json', 'present.json'], '--overwrite'),
        (['--suite', 'models', '--models', 'vit_huge'], 'network name must be one of'),
        (['--suite', 'models', '--models', 'torch/vit_tiny'], 'the library of'),
        (['--suite', 'models', '--models', 'timm/rvt_tiny'], 'timm has vit_tiny'),
        (['--suite', 'models', '--models', 'reference/vit_tiny'], 'reference has absvit_tiny'),
        (['--suite', 'models', '--models', 'vit_tiny:depth'], 'NAME=VALUE'),
        (['--suite', 'models', '--models', 'vit_tiny:color=3'], 'takes no argument color'),
        (['--suite', 'models', '--models', 'timm/vit_tiny:depth=3'], 'only networks of mmvars'),
        (['--suite', 'models', '--models', 'vit_tiny', 'vit_tiny'], 'more than once'),
        (['--suite', 'models', '--sizes', 'x'], '--sizes takes SIDE'),
        (['--suite', 'models', '--sizes', '100'], 'multiples of 32'),
        (['--suite', 'models', '--sizes', '64', '64x64'], 'more than once'),
        (['--suite', 'models', '--batch-sizes', '0'], '--batch-sizes'),
        (['--suite', 'models', '--batch-sizes', '2', '2'], 'more than once'),
        (['--suite', 'models', '--mode', 'training', '--task', 'features'], 'features has none'),
        (
            ['--suite', 'models', '--reference', 'vit_base'],
            '--reference must be one of timm/vit_tiny',
        ),
    ],
)
def test_bad_input_is_one_line(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'present.json').write_text('present')
    monkeypatch.setattr(benchmark, 'measure_case', lambda *_: pytest.fail('was measured'))
    assert run_tool(main, argv) == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1
    assert (tmp_path / 'present.json').read_text() == 'present'


def test_the_clock_follows_the_threads():
    assert make_settings(parse_args([])).clock == 'process'
    assert make_settings(parse_args(['--threads', '2'])).clock == 'wall'


@pytest.mark.slow
def test_compiled_contenders():
    pytest.importorskip('torch._inductor')
    [case] = models(
        '--models', 'absvit_tiny:depth=1', 'absvit_tiny:depth=1:fuse=False', '--sizes', '64'
    )
    settings = Settings(rounds=1, warmup=0, min_seconds=0, compile=True)
    assert len(measure_case(case, settings)) == 2
