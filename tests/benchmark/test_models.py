"""Networks as contenders: which, of what weights, and that those which should agree do."""

import pytest
import torch

from mmvars import cli
from mmvars.benchmark.models import model_cases, parse_model
from mmvars.benchmark.priors import prior_cases
from mmvars.benchmark.textbook import TextbookAbSViT
from mmvars.benchmark.timing import Settings, measure_case
from mmvars.errors import InputError

TINY = dict(embed_dim=24, depth=4, num_heads=2)
FAST = Settings(rounds=1, warmup=0, min_seconds=0)
TRAINING = Settings(rounds=1, warmup=0, min_seconds=0, mode='training')
ABSVIT = ('absvit_tiny', 'textbook/absvit_tiny')


def case_of(*names, size=(32, 64), batch=1, task='auto', training=False):
    [case] = model_cases([parse_model(name) for name in names], [size], [batch], task, training,
                         TINY)
    return case


def measured(*names, settings=FAST, **kwargs):
    found = measure_case(case_of(*names, training=settings.mode == 'training', **kwargs), settings)
    return {one.name: one for one in found}


@pytest.mark.parametrize('text, library, name, options', [
    ('absvit_tiny', 'mmvars', 'absvit_tiny_patch16', {}),
    ('absvit_tiny_patch8_gap', 'mmvars', 'absvit_tiny_patch8_gap', {}),
    ('timm/vit_base', 'timm', 'vit_base_patch16', {}),
    ('rvt_tiny:mixer=vars_d', 'mmvars', 'rvt_tiny', dict(mixer='vars_d')),
    ('vit_tiny:grad_checkpointing=True:depth=3', 'mmvars', 'vit_tiny_patch16',
     dict(grad_checkpointing=True, depth=3)),
])
def test_a_contender_is_one_word(text, library, name, options):
    spec = parse_model(text)
    assert (spec.text, spec.library, spec.name, spec.options) == (text, library, name, options)


def test_who_should_agree():
    def twins(name):
        return parse_model(name).twins

    assert twins('absvit_tiny') == twins('textbook/absvit_tiny') == twins(
        'absvit_tiny:grad_checkpointing=True:plain=True')
    assert twins('vit_tiny') == twins('timm/vit_tiny') == twins('mmseg/vit_tiny')
    different = {twins(name) for name in ('vit_tiny', 'absvit_tiny', 'vit_small', 'rvt_tiny',
                                          'vit_tiny:mixer=vars_d', 'absvit_tiny:restart_block=4')}
    assert len(different) == 6


@pytest.mark.parametrize('names', [('timm/vit_tiny', 'vit_tiny', 'mmseg/vit_tiny'),
                                   (*ABSVIT, 'absvit_tiny:plain=True')])
def test_twins_agree_in_their_maps(names):
    if any(name.startswith('mmseg/') for name in names):
        pytest.importorskip('mmseg.models')
    case = case_of(*names)
    assert case.details == dict(image_size=[32, 64], batch_size=1, task='features')
    found = measured(*names)
    assert [one.name for one in found.values()] == list(names)
    torch.manual_seed(0)
    images = torch.randn(1, 3, 32, 64)
    for contender in case.contenders:
        torch.manual_seed(0)
        maps = contender.build().eval()(images)
        assert [tuple(one.shape) for one in maps] == [(1, 24, 2, 4)] * 4
        assert len({one.double().abs().mean().item() for one in maps}) == 4


def test_class_scores_at_224_and_maps_elsewhere():
    assert case_of('vit_tiny', size=(224, 224)).details['task'] == 'logits'
    assert case_of('vit_tiny', size=(224, 256)).details['task'] == 'features'
    case = case_of('vit_tiny', size=(32, 32), batch=2, task='classify')
    contender = case.contenders[0]
    assert contender.build()(*contender.inputs()).shape == (2, 1000)


@pytest.mark.parametrize('name', ['rvt_tiny', 'gfnet_tiny', 'fan_tiny', 'deit_convstem_tiny'])
def test_other_trunks_give_four_maps(name):
    spec = parse_model(name)
    depth = {'rvt_tiny': dict(embed_dim=(24, 24), depth=(3, 1), num_heads=(2, 2))}.get(name, TINY)
    [case] = model_cases([spec], [(64, 64)], [1], overrides=depth)
    contender = case.contenders[0]
    assert len(contender.build().eval()(*contender.inputs())) == 4


@pytest.mark.parametrize('settings', [FAST, TRAINING], ids=['forward', 'training'])
def test_twins_that_differ_are_not_timed(settings, monkeypatch):
    monkeypatch.setattr(TextbookAbSViT, '_modulate', lambda model, z: z)
    with pytest.raises(InputError, match='absvit_tiny and textbook/absvit_tiny should give the'):
        measured(*ABSVIT, settings=settings, task='classify')


def test_twins_must_agree_in_their_gradients_too(monkeypatch):
    found = measured(*ABSVIT, settings=TRAINING)
    assert found['absvit_tiny'].output_rms > 1
    reconstruction = TextbookAbSViT._reconstruction
    monkeypatch.setattr(TextbookAbSViT, '_reconstruction',
                        lambda model, states: 30 * reconstruction(model, states).detach()
                        - 29 * reconstruction(model, states))
    with pytest.raises(InputError, match='differ by'):
        measured(*ABSVIT, settings=TRAINING)


def test_training_counts_memory_and_both_passes():
    checkpointed = 'absvit_tiny:grad_checkpointing=True'
    found = measured('timm/vit_tiny', 'absvit_tiny', 'textbook/absvit_tiny', checkpointed,
                     settings=TRAINING, size=(64, 64))
    saved = {name: one.saved_bytes for name, one in found.items()}
    assert saved[checkpointed] < saved['absvit_tiny'] < saved['textbook/absvit_tiny']
    assert 0 < saved['timm/vit_tiny'] < saved['absvit_tiny']
    forward = measured('timm/vit_tiny', size=(64, 64), task='classify')['timm/vit_tiny']
    assert forward.saved_bytes is None
    # Forward, weights and inputs; images take no gradient, and neither does the embedding's input.
    embedding = 16 * 24 * 3 * 16 * 16
    linear = found['timm/vit_tiny'].macs.linear + found['timm/vit_tiny'].macs.products
    attention = 4 * 17 * 17 * 24 * 4 // 4
    assert linear == 3 * forward.macs.all - embedding + attention * 1
    assert found[checkpointed].macs.all > found['absvit_tiny'].macs.all


def test_the_textbook_multiplies_what_the_equations_say():
    tokens, width, depth = 1 + 2 * 4, 24, 4
    block = 12 * tokens * width**2 + 2 * tokens**2 * width
    embedding = 8 * width * 3 * 16 * 16
    # A second pass has two decoder products, and three more where its signal meets the attention.
    both = 2 * depth * block + 5 * depth * tokens * width**2
    found = measured('textbook/absvit_tiny')['textbook/absvit_tiny'].macs.all
    assert found == both + embedding
    found = measured('textbook/absvit_tiny', task='classify')['textbook/absvit_tiny'].macs.all
    assert found == both + 2 * embedding + depth * tokens * width**2 + 2 * width * 1000


def test_one_look_saves_the_first_pass_of_all_priors_but_one():
    [case] = prior_cases([parse_model('absvit_tiny')], 4, [(32, 64)], [1], overrides=TINY)
    calls, look = (one.macs.all for one in measure_case(case, FAST))
    first = measured('vit_tiny')['vit_tiny'].macs.all
    assert calls - look == 3 * first


def test_options_that_change_the_maths_cost_less():
    options = ['', ':restart_block=2', ':first_pass_scale=0.5', ':share_query_key=True',
               ':feedback_rank=3', ':carry_over=True']
    found = measured(*(f'absvit_tiny{option}' for option in options), size=(64, 64))
    exact, *cheaper = (one.macs.all for one in found.values())
    assert max(cheaper) < exact
    assert found['absvit_tiny:carry_over=True'].macs.all < .65 * exact


@pytest.mark.parametrize('argv, words', [
    (['--models', 'vit_huge'], 'network name'),
    (['--models', 'jax/vit_tiny'], "the library of 'jax/vit_tiny' must be one of mmvars, timm"),
    (['--models', 'timm/absvit_tiny'], 'timm has vit_tiny'),
    (['--models', 'textbook/vit_tiny'], 'textbook has absvit_tiny'),
    (['--models', 'textbook/absvit_tiny_patch8_gap'], 'textbook has'),
    (['--models', 'mmseg/vit_tiny'], 'maps only'),
    (['--models', 'vit_tiny:depth'], 'NAME=VALUE'),
    (['--models', 'vit_tiny:size=3'], 'no argument size'),
    (['--models', 'timm/vit_tiny:depth=2'], 'only networks of mmvars take options'),
    (['--models', 'vit_tiny', 'vit_tiny'], 'more than once'),
    (['--sizes', '224x'], '--sizes takes'),
    (['--sizes', '0'], '--sizes takes'),
    (['--sizes', '100'], 'multiples of 32'),
    (['--sizes', '64', '64x64'], 'more than once'),
    (['--batch-sizes', '0'], '--batch-sizes'),
    (['--batch-sizes', '2', '2'], 'more than once'),
    (['--mode', 'training', '--task', 'features'], '--task features has none'),
    (['--mode', 'training', '--models', 'absvit_tiny:carry_over=True'], 'carry_over'),
    (['--cuda-graph'], '--cuda-graph needs --device cuda'),
    (['--reference', 'vit_base'], '--reference must be one of timm/vit_tiny'),
    (['--suite', 'priors', '--models', 'vit_tiny'], 'that take a prior'),
    (['--suite', 'priors', '--models', 'textbook/absvit_tiny'], 'networks of ours'),
    (['--suite', 'priors', '--models', 'absvit_tiny', '--priors', '0'], '--priors'),
    (['--suite', 'priors', '--models', 'absvit_tiny', '--mode', 'training'], 'inference'),
    (['--suite', 'mixers', '--batch-sizes', '1', '2'], 'one batch size'),
])
def test_bad_input_is_one_line(argv, words, capsys, monkeypatch):
    monkeypatch.setattr('mmvars.benchmark.suites.measure_case',
                        lambda *_: pytest.fail('measured all the same'))
    assert cli.main(['benchmark', '--suite', 'models', *argv]) == 2
    message = capsys.readouterr().err
    assert words in message and message.count('\n') == 1


@pytest.mark.parametrize('suite, extra', [
    ('models', ['--models', 'vit_tiny:depth=1', 'absvit_tiny:depth=1']),
    ('models', ['--mode', 'training', '--models', 'vit_tiny:depth=1', 'fan_tiny:depth=1']),
    ('priors', ['--priors', '2', '--models', 'absvit_tiny:depth=1']),
])
def test_the_report(suite, extra, capsys):
    assert cli.main(['benchmark', '--suite', suite, '--sizes', '32', '--batch-sizes', '1', '2',
                     '--rounds', '1', '--warmup', '0', '--min-seconds', '0', *extra]) == 0
    out = capsys.readouterr().out
    assert out.count('## ') == 2 and 'load' in out and 'GMAC' in out
    lines = [line for line in out.splitlines() if line.startswith('|')]
    assert len({line.count('|') for line in lines}) == 1
    assert ('saved MiB' in out) == ('training' in extra)
    names = ['2 calls', 'one look'] if suite == 'priors' else extra[-2:]
    for name in names:
        assert out.count(f'| {name} ') == 2


@pytest.mark.slow
def test_compiled_contenders():
    pytest.importorskip('torch._inductor')
    settings = Settings(rounds=1, warmup=0, min_seconds=0, compiled=True)
    found = measured('absvit_tiny:depth=1', 'absvit_tiny:depth=1:plain=True', settings=settings)
    assert all(one.output_rms > 0 for one in found.values())
