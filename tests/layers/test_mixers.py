"""The contract that all token mixers keep, their options, and mixers of other authors."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import MIXERS, TokenGrid, build_mixer, resolve_mixer_cfg
from mmvars.layers.fourier import as_complex, from_spectrum
from mmvars.layers.performer import num_features, positive_features

GRID = TokenGrid(4, 6)
RECONSTRUCTING = ('vars_s', 'vars_d', 'vars_sd')
BUILDS = [
    (name, preset)
    for name in MIXERS
    for preset in ('release', 'thesis')
    if name in RECONSTRUCTING or preset == 'release'
]


def build(name, **options):
    if name == 'vars_s':  # the release's 3.5 codes nothing of tokens as small as those here
        options = dict(sparsity=0.1) | options
    return build_mixer(name, 12, 2, GRID[:2], **options).eval()


@pytest.mark.parametrize(('name', 'preset'), BUILDS)
def test_shapes_and_saving(name, preset):
    mixer, twin = build(name, preset=preset), build(name, preset=preset)
    x = torch.randn(2, 24, 12)
    assert mixer(x, GRID).shape == x.shape
    twin.load_state_dict(mixer.state_dict(), strict=True)
    assert torch.equal(twin(x, GRID), mixer(x, GRID))
    assert mixer.train() is mixer


def value_of(mixer: nn.Module, x: Tensor) -> Tensor:
    """What a mixer makes its value from, projected."""
    if getattr(mixer, 'preset', 'release') == 'thesis':
        return x
    linear = next(getattr(mixer, name) for name in ('qkv', 'qv', 'value') if hasattr(mixer, name))
    return linear(x)[..., -12:]


@pytest.mark.parametrize('double_value_bias', [True, False])
@pytest.mark.parametrize('injection', ['value', 'qkv', 'mask'])
@pytest.mark.parametrize(('name', 'preset'), [b for b in BUILDS if b[0] in RECONSTRUCTING])
def test_where_a_top_down_input_enters(name, preset, injection, double_value_bias):
    mixer = build(name, preset=preset, injection=injection, double_value_bias=double_value_bias)
    x, t = torch.randn(2, 24, 12), torch.randn(2, 24, 1 if injection == 'mask' else 12)
    plain, steered = mixer.trace(x, GRID), mixer.trace(x, GRID, t)
    torch.testing.assert_close(plain.signal, value_of(mixer, x))
    expected = (
        value_of(mixer, x) * t
        if injection == 'mask'
        else (
            value_of(mixer, x) + value_of(mixer, t) if double_value_bias else value_of(mixer, x + t)
        )
    )
    torch.testing.assert_close(steered.signal, expected)
    if plain.atoms is not None:  # random features of the queries
        assert torch.equal(plain.atoms, steered.atoms) == (injection != 'qkv')
    assert not torch.allclose(mixer(x, GRID, t), mixer(x, GRID))


def test_a_mixer_without_a_value_path_refuses_a_top_down_input():
    with pytest.raises(InputError, match='no value path'):
        build('global_filter')(torch.randn(1, 24, 12), GRID, torch.randn(1, 24, 12))


@pytest.mark.parametrize('name', ['performer', *RECONSTRUCTING])
def test_linear_layers_are_called_where_they_are_not_plain(name):
    """A hook that doubles what a projection gives has the effect of doubled weights."""
    mixer, doubled = build(name), build(name)
    doubled.load_state_dict(mixer.state_dict())
    for key, module in mixer.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda module, args, output: 2 * output)
            doubled.get_submodule(key).weight.data.mul_(2)
            doubled.get_submodule(key).bias.data.mul_(2)
    x, t = torch.randn(2, 24, 12), torch.randn(2, 24, 12)
    for top_down in (None, t):
        torch.testing.assert_close(mixer(x, GRID, top_down), doubled(x, GRID, top_down))


@pytest.mark.parametrize(('name', 'preset'), [b for b in BUILDS if b[0] in RECONSTRUCTING])
def test_without_steps_what_trains_is_what_a_loss_reaches(name, preset):
    mixer = build(name, preset=preset, num_steps=0)
    mixer(torch.randn(2, 24, 12), GRID).square().sum().backward()
    assert {n for n, p in mixer.named_parameters() if p.grad is not None} == {
        n for n, p in mixer.named_parameters() if p.requires_grad
    }


@pytest.mark.parametrize('name', RECONSTRUCTING)
@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_the_trace_tells_what_the_forward_does(name, preset):
    mixer, x = build(name, preset=preset), torch.randn(2, 24, 12)
    trace = mixer.trace(x, GRID)
    assert len(trace.codes) == len(trace.reconstructions) == mixer.num_steps + 1
    out = trace.reconstructions[-1]
    if preset == 'thesis':
        out = out + trace.signal
    elif name == 'vars_s':
        filtered = torch.fft.rfft2(GRID.to_map(out)) * as_complex(mixer.output_filter)
        out = mixer.norm(from_spectrum(filtered, (4, 6)).flatten(2).transpose(1, 2))
    else:
        heads = trace.atoms @ trace.codes[-1]
        torch.testing.assert_close(out, heads.transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer.proj(out), mixer(x, GRID))


def test_performer_is_the_explicit_kernel_matrix():
    mixer, x = build('performer'), torch.randn(2, 24, 12)
    q, k, v = (part.unflatten(2, (2, 6)).transpose(1, 2) for part in mixer.qkv(x).chunk(3, -1))
    kernel = positive_features(q, mixer.random_features) @ positive_features(
        k, mixer.random_features
    ).transpose(-2, -1)
    out = F.normalize(kernel, p=1, dim=-1) @ v
    torch.testing.assert_close(mixer.proj(out.transpose(1, 2).flatten(2)), mixer(x, GRID))


@pytest.mark.parametrize(
    ('name', 'options', 'message'),
    [
        ('vars_d', dict(sparsity=-1), 'sparsity'),
        ('vars_d', dict(sparsity=float('nan')), 'sparsity'),
        ('vars_s', dict(num_steps=-1), 'num_steps'),
        ('vars_sd', dict(num_steps=1.5), 'num_steps'),
        ('vars_d', dict(feature_ratio=0.1), 'at least one feature'),
        ('performer', dict(feature_ratio=-2), 'feature_ratio'),
        ('vars_s', dict(atoms_per_channel=0), 'atoms_per_channel'),
        ('vars_s', dict(num_steps=10_000), 'num_steps'),
        ('vars_d', dict(sparsity=1e9), 'sparsity'),
        ('vars_d', dict(injection='x'), 'value, qkv, mask'),
        ('vars_sd', dict(atoms_per_channel=3), 'takes no option atoms_per_channel'),
        ('vars_d', dict(lam=0.3), 'takes no option lam'),
        ('vars', {}, 'vars_sd'),
        ('vars_d', dict(preset='paper'), 'release, thesis'),
        ('vars_s', dict(num_prefix=1), 'class'),
        ('global_filter', dict(num_prefix=1), 'class'),
        ('masked_attention', dict(num_prefix=1), 'RVT'),
        (
            'vars_sd',
            dict(preset='thesis', scale_aware_sparsity=True),
            'takes no option scale_aware',
        ),
        ('vars_d', dict(scale_aware_sparsity='no'), 'scale_aware_sparsity must be True or False'),
    ],
)
def test_bad_options_are_named(name, options, message):
    with pytest.raises(InputError, match=message):
        build(name, **options)


@pytest.mark.parametrize(
    ('name', 'option'),
    [
        ('vars_d', 'shrinkage'),
        ('vars_d', 'step_bound'),
        ('vars_sd', 'static_atoms'),
        ('vars_s', 'norm'),
        ('vars_s', 'output_filter'),
        ('vars_s', 'value'),
    ],
)
def test_what_the_preset_decides_is_no_option(name, option):
    with pytest.raises(InputError, match=f'takes no option {option}: the preset decides it'):
        resolve_mixer_cfg(name, **{option: True})


def test_an_option_of_a_parameter_s_name_is_no_option():
    with pytest.raises(InputError, match='takes no option name'):
        resolve_mixer_cfg('vars_d', **dict(name=3))


@pytest.mark.parametrize('head_dim', [1, 3, 7, 12, 32, 1000])
def test_the_least_feature_ratio_of_the_message_makes_a_feature(head_dim):
    with pytest.raises(InputError, match='use at least') as error:
        num_features(1e-6, head_dim)
    assert num_features(float(str(error.value).rsplit(' ', 1)[1]), head_dim) == 1


@pytest.mark.parametrize(
    'name', ['self_attention', 'masked_attention', 'performer', 'vars_d', 'vars_sd']
)
def test_heads_must_divide_the_width(name):
    with pytest.raises(InputError, match='divisible by num_heads'):
        build_mixer(name, 12, 5, (2, 2))


def test_options_are_complete_and_explicit_ones_win():
    thesis = dict(
        preset='thesis', num_steps=7, sparsity=0.6, feature_ratio=2.0, atoms_per_channel=3
    )
    assert resolve_mixer_cfg('vars_sd', 'thesis', num_steps=7, sparsity=None) == thesis
    assert resolve_mixer_cfg('vars_sd') == dict(
        preset='release', num_steps=5, sparsity=0.3, feature_ratio=2.0, scale_aware_sparsity=False
    )
    assert resolve_mixer_cfg('vars_s') == dict(
        preset='release', num_steps=3, sparsity=3.5, atoms_per_channel=5
    )
    assert resolve_mixer_cfg('performer', 'thesis') == dict(feature_ratio=2.0)
    for preset in ('release', 'thesis'):
        for name in MIXERS:
            options = resolve_mixer_cfg(name, preset)
            assert resolve_mixer_cfg(name, **options) == options


class StrangersMixer(nn.Module):
    """A mixer to the documented contract, which knows nothing of injection and biases."""

    def __init__(self, embed_dim, num_heads, grid, num_prefix=0, qkv_bias=True, gain=1.0):
        super().__init__()
        self.gain, self.proj = gain, nn.Linear(embed_dim, embed_dim, bias=qkv_bias)

    def forward(self, x, grid, top_down=None):
        value = x if top_down is None else x + top_down
        return self.gain * self.proj(value.mean(dim=1, keepdim=True).expand_as(x))


def test_a_stranger_s_mixer_is_built_from_the_table(monkeypatch):
    monkeypatch.setitem(MIXERS, 'mean', StrangersMixer)
    assert resolve_mixer_cfg('mean', preset='thesis') == dict(gain=1.0)
    mixer = build_mixer('mean', 12, 2, (4, 6), gain=2.0)
    assert mixer(torch.randn(2, 24, 12), GRID, torch.randn(2, 24, 12)).shape == (2, 24, 12)
    with pytest.raises(InputError, match='takes no option num_steps; it takes gain'):
        build_mixer('mean', 12, 2, (4, 6), num_steps=3)
    with pytest.raises(InputError, match="no argument injection, .* the design 'absvit'"):
        build_mixer('mean', 12, 2, (4, 6), injection='qkv')
    assert build_mixer('mean', 12, 2, (4, 6), double_value_bias=False).gain == 1  # it counts once


def test_an_option_without_default_is_asked_for(monkeypatch):
    class Needy(StrangersMixer):
        def __init__(self, embed_dim, num_heads, grid, num_prefix=0, qkv_bias=True, *, window):
            super().__init__(embed_dim, num_heads, grid)

    monkeypatch.setitem(MIXERS, 'needy', Needy)
    with pytest.raises(InputError, match='needs the option window'):
        build_mixer('needy', 12, 2, (4, 6))


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'),
    reason='torch before 2.7 does not export for free sizes where there are Fourier transforms',
)
@pytest.mark.parametrize(
    ('name', 'preset'),
    [
        # With the other constants the mixers are exported in tests/compile.
        pytest.param(*build, marks=() if build == ('vars_sd', 'thesis') else pytest.mark.slow)
        for build in BUILDS
    ],
)
def test_an_exported_graph_takes_any_batch(name, preset):
    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = build(name, preset=preset)

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x, GRID)

    module, shapes = Call().eval(), dict(x={0: torch.export.Dim('batch', min=2, max=64)})
    with torch.no_grad():
        program = torch.export.export(
            module, (torch.randn(2, 24, 12),), dynamic_shapes=shapes, strict=False
        ).module()
        for batch in (2, 5):
            x = torch.randn(batch, 24, 12)
            torch.testing.assert_close(program(x), module(x), rtol=1e-4, atol=1e-5)
