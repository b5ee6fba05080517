"""The benchmark's frame: what is measured and reported. Times themselves are nobody's test."""

import json

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mmvars import cli
from mmvars.benchmark import timing
from mmvars.benchmark.contenders import Case, Contender, mixer_cases, parse_tokens
from mmvars.benchmark.memory import memory_source, peak_memory, saved_for_backward
from mmvars.benchmark.timing import Settings, measure_case
from mmvars.errors import InputError
from mmvars.layers import MIXERS

CPU = torch.device('cpu')
FAST = ['--rounds', '2', '--warmup', '0', '--min-seconds', '0', '--widths', '12x2']
ALL = ['self_attention', 'performer', 'vars_d', 'vars_sd', 'vars_s']


def contender(name: str, module: nn.Module) -> Contender:
    return Contender(name, lambda: module, lambda: (torch.randn(2, 5, 4), ))


@pytest.mark.parametrize('text, grid', [('196', (14, 14)), ('400', (20, 20)), ('8100', (90, 90)),
                                        ('8192', (64, 128)), ('12', (3, 4)), ('2x16', (2, 16)),
                                        ('7X3', (7, 3)), ('1', (1, 1))])
def test_tokens_become_a_grid(text, grid):
    assert parse_tokens(text) == grid


@pytest.mark.parametrize('text, words', [('0', 'got'), ('x', 'got'), ('14x', 'got'), ('-4', 'got'),
                                         ('0x3', 'got'), ('197', '196'), ('1.5', 'got')])
def test_tokens_that_are_no_grid(text, words):
    with pytest.raises(InputError, match=f'--tokens.*{words}'):
        parse_tokens(text)


def test_every_mixer_is_a_contender():
    cases = mixer_cases(list(MIXERS), [(12, 2), (24, 3)], [(4, 6), (2, 3)], num_steps=1)
    assert [(case.group, case.size) for case in cases] == [
        ('dim 12, 2 heads', 6), ('dim 12, 2 heads', 24),
        ('dim 24, 3 heads', 6), ('dim 24, 3 heads', 24)]
    for found in measure_case(cases[0], Settings(rounds=1, warmup=0, min_seconds=0)):
        assert found.output_rms > 0
        assert len(found.seconds) == 1
    vars_d = next(one for one in cases[0].contenders if one.name == 'vars_d')
    assert vars_d.build().mixer.num_steps == 1


def test_contenders_take_turns(monkeypatch):
    calls = []

    class Noting(nn.Linear):

        def __init__(self, name: str) -> None:
            super().__init__(4, 4)
            self.name = name

        def forward(self, x):
            calls.append(self.name)
            return super().forward(x)

    case = Case('g', 5, tuple(contender(name, Noting(name)) for name in 'ABC'))
    prepare = timing._Run.prepare

    def prepare_unheard(run):
        prepare(run)
        calls.clear()

    monkeypatch.setattr(timing._Run, 'prepare', prepare_unheard)
    found = measure_case(case, Settings(rounds=3, warmup=1, min_seconds=0))
    assert ''.join(calls) == 'ABC' * 4
    assert [len(one.seconds) for one in found] == [3, 3, 3]
    assert found[0].macs.linear == 2 * 5 * 4 * 4


def test_training_reaches_weights_and_inputs():
    layer = nn.Linear(4, 4)
    reached = []
    layer.weight.register_hook(lambda grad: reached.append(grad.isfinite().all().item()))
    case = Case('g', 5, (contender('linear', layer), ))
    measure_case(case, Settings(mode='training', rounds=1, warmup=0, min_seconds=0))
    assert reached and all(reached)
    assert layer.weight.grad is None and layer.training


def test_half_precision_runs_under_autocast():
    seen = []
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    measure_case(Case('g', 5, (contender('linear', layer), )),
                 Settings(dtype='bfloat16', rounds=1, warmup=0, min_seconds=0))
    assert torch.bfloat16 in seen and layer.weight.dtype == torch.float32


class Broken(nn.Module):

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x):
        return {'finite': x / 0, 'zeros': x * 0, 'another output': torch.rand_like(x)}[self.how]


@pytest.mark.parametrize('how', ['finite', 'zeros', 'another output'])
def test_nonsense_is_not_timed(how):
    with pytest.raises(InputError, match=f'^broken gives.*{how}'):
        measure_case(Case('g', 5, (contender('broken', Broken(how)), )), Settings(rounds=1))


@pytest.mark.skipif(memory_source(CPU) is None, reason='the system does not tell')
def test_peak_memory_sees_what_is_freed_again():
    size = 64 * 2**20

    def call(parts: int) -> None:
        for _ in range(3):
            torch.ones(parts * size // 4)

    for parts in (1, 3, 1):  # a peak before does not hide a smaller one after
        assert peak_memory(lambda n=parts: call(n), CPU) == pytest.approx(parts * size, rel=.1)


def test_saved_memory_is_what_autograd_keeps():
    x = torch.randn(3, 5, requires_grad=True)
    weight = torch.randn(5, 7, requires_grad=True)

    def saved(function):
        return saved_for_backward(lambda: function().sum().backward(), [weight])

    size = 3 * 5 * 4
    assert saved(lambda: x.exp()) == size
    assert saved(lambda: x @ weight) == size  # its input, and a weight, which is there anyway
    assert saved(lambda: x.exp() * x[:1]) == 2 * size  # a view keeps the whole, once
    assert saved(lambda: x + 1) == 0
    assert saved(lambda: checkpoint(lambda y: y.exp().sin().exp(), x, use_reentrant=False)) == size
    assert saved(lambda: x.exp().sin().exp()) == 2 * size  # the sine keeps what exp kept
    assert x.grad.isfinite().all()


def test_a_system_that_does_not_tell_is_no_failure(monkeypatch, tmp_path):
    monkeypatch.setattr('mmvars.benchmark.memory._RESET', tmp_path / 'gone' / 'file')
    assert memory_source(CPU) is None
    assert peak_memory(lambda: None, CPU) is None


@pytest.mark.parametrize('mode', ['forward', 'training'])
def test_the_report_is_a_table_and_json(mode, tmp_path, capsys):
    file = tmp_path / 'times.json'
    argv = ['benchmark', *FAST, '--tokens', '9', '4x6', '--json', str(file), '--mode', mode]
    assert cli.main(argv) == 0
    out = capsys.readouterr().out
    assert '## dim 12, 2 heads' in out and 'overtakes self_attention' in out
    result = json.loads(file.read_text())
    assert set(result) == {'suite', 'size_name', 'settings', 'cases', 'growth'}
    assert [case['size'] for case in result['cases']] == [9, 24]
    assert result['cases'][1]['grid'] == [4, 6]
    for case in result['cases']:
        assert [row['name'] for row in case['contenders']] == ALL
        for row in case['contenders']:
            assert len(row['seconds']) == 2 and min(row['seconds']) >= 0
            assert set(row['time']) == set(row['ratio']) == {'low', 'median', 'high'}
            assert row['multiply_adds']['all'] > 0 and row['time']['median'] >= 0
        assert case['contenders'][0]['ratio'] == dict(low=1, median=1, high=1)
    assert {(entry['name'], entry['time_exponent']) for entry in result['growth']} == {
        (name, None) for name in ALL}  # 9 and 24 tokens are below the range of the fit
    settings = result['settings']
    assert (settings['reference'], settings['mode'], settings['threads']) == (
        'self_attention', mode, 1)
    assert settings['torch'] == torch.__version__


def test_linear_mixers_have_linear_counts():
    settings = Settings(rounds=1, warmup=0, min_seconds=0)
    small, large = ({found.name: found.macs.all for found in measure_case(case, settings)}
                    for case in mixer_cases(ALL[:4], [(12, 2)], [(4, 4), (8, 8)]))
    growth = {name: large[name] / small[name] for name in small}
    assert growth.pop('self_attention') > 4 >= max(growth.values())


@pytest.mark.parametrize('argv, words', [
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
    (['--num-steps', '-1'], 'num_steps'),
    (['--min-seconds', '-1'], '--min-seconds'),
    (['--device', 'tpu'], '--device must be'),
    (['--device', 'cuda:99'], '--device cuda:99 is not there'),
    (['--json', 'gone/x.json'], 'does not exist'),
])
def test_bad_input_is_one_line(argv, words, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr('mmvars.benchmark.suites.measure_case',
                        lambda *_: pytest.fail('measured all the same'))
    assert cli.main(['benchmark', *argv]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1


def test_a_file_is_kept(tmp_path, capsys):
    file = tmp_path / 'times.json'
    file.write_text('kept')
    assert cli.main(['benchmark', *FAST, '--tokens', '4', '--json', str(file)]) == 2
    assert file.read_text() == 'kept'
    assert '--overwrite' in capsys.readouterr().err
