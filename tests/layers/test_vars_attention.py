"""VARS-D and VARS-SD: the equations of both presets written out, fuse(), and their laws."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.layers import TokenGrid, VARSStaticDynamic, build_mixer
from mmvars.layers.performer import positive_features
from mmvars.layers.sparse_coding import gelu_threshold, soft_threshold

GRID = TokenGrid(4, 6)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
DENSE = ['vars_d-release', 'vars_sd-release', 'vars_d-thesis', 'vars_sd-thesis']


def build(kind: str, **options) -> torch.nn.Module:
    """A mixer whose learned numbers are not those of the start. VARS-SD has free atoms in both."""
    name, preset = kind.split('-')
    options = dict(preset=preset) | options
    if name == 'vars_sd':
        mixer = VARSStaticDynamic(12, 2, GRID[:2], **options)
    else:
        mixer = build_mixer(name, 12, 2, GRID[:2], **options)
    with torch.no_grad():
        # Not symmetric, so that the sides matter.
        mixer.gram_modulation.add_(0.2 * torch.randn_like(mixer.gram_modulation))
        mixer.sparsity_scale.fill_(0.8)
        mixer.step_scale.fill_(1.7)
    return mixer.eval()


def equations(mixer: torch.nn.Module, x: Tensor, top_down: Tensor | None = None) -> Tensor:
    """VARS-D and -SD as printed or released, in as many operations."""
    release = mixer.preset == 'release'
    query, weight, bias = mixer.qv(x)[..., :12], mixer.qv.weight, mixer.qv.bias
    value = F.linear(x, weight[12:], bias[12:]) if release else x
    if top_down is not None:
        value = value + (F.linear(top_down, weight[12:], bias[12:]) if release else top_down)
    query, value = (t.unflatten(2, (2, 6)).transpose(1, 2) for t in (query, value))
    query = F.normalize(query, dim=-1) if release else query / 6**0.25
    omega = mixer.random_features
    atoms = torch.exp(query @ omega - query.square().sum(-1, keepdim=True) / 2) / math.sqrt(12)
    if hasattr(mixer, 'static_atoms'):
        atoms = torch.cat([atoms, mixer.static_atoms.expand(len(x), -1, -1, -1)], dim=-1)
    if release:
        atoms = F.normalize(atoms, dim=2)
    gram, gamma = atoms.mT @ atoms, mixer.gram_modulation
    constant = gram.abs().sum(-1).amax(-1) + 1 if release else torch.linalg.svdvals(gram)[..., 0]
    scale = mixer.step_scale
    step = (scale if release else 1 / scale) / constant[..., None, None]
    shrink, left = (gelu_threshold, gamma) if release else (soft_threshold, gamma.T)
    sparsity, target = mixer.sparsity * mixer.sparsity_scale, atoms.mT @ value
    code = shrink(target, sparsity) if release else target
    for _ in range(mixer.num_steps):
        code = shrink(code - step * (left @ (gram @ (gamma @ code)) - target), sparsity * step)
    out = atoms @ code if release else atoms @ code + value
    return mixer.proj(out.transpose(1, 2).flatten(2))


def relative(output: Tensor, expected: Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('steered', [False, True])
@pytest.mark.parametrize('kind', DENSE)
def test_the_equations_written_out(kind, steered, batch, dtype):
    mixer, x = build(kind).to(dtype), torch.randn(batch, 24, 12, dtype=dtype)
    torch.nn.init.zeros_(mixer.qv.bias[:12])
    x[0, 5] = 0  # a query of length zero
    top_down = torch.randn_like(x) if steered else None
    expected = equations(mixer, x, top_down)
    assert relative(mixer(x, GRID, top_down), expected) < TOLERANCE[dtype]
    with torch.no_grad():
        assert relative(mixer(x, GRID, top_down), expected) < TOLERANCE[dtype]


def test_the_constants_of_the_presets():
    steps_and_sparsity = {kind: (build(kind).num_steps, build(kind).sparsity) for kind in DENSE}
    assert steps_and_sparsity == {
        'vars_d-release': (5, 0.3),
        'vars_sd-release': (5, 0.3),
        'vars_d-thesis': (3, 0.6),
        'vars_sd-thesis': (3, 0.6),
    }


def test_convolutional_atoms_are_dense_atoms_written_out():
    """VARS-SD of the thesis against Eq. 1.12 with one matrix of random features and translations.

    Two prefix tokens, of which the filters know nothing.
    """
    grid, mixer = TokenGrid(3, 4, 2), build_mixer('vars_sd', 8, 2, (3, 4), 2, preset='thesis')
    mixer = mixer.double()
    with torch.no_grad():
        for modulation in (mixer.gram_modulation, mixer.static_modulation):
            modulation.add_(0.1 * torch.randn_like(modulation))
        mixer.sparsity_scale.fill_(0.8)
        mixer.step_scale.fill_(1.7)
    x = torch.randn(1, 14, 8, dtype=torch.double)
    features = mixer.trace(x, grid).atoms[0]
    kernels = torch.fft.irfft2(torch.view_as_complex(mixer.dictionary), s=(3, 4))  # (8, 3, 3, 4)
    # Encoding convolves: the code at place p is sum_q kernel[p - q] x[q].
    largest_filter = torch.view_as_complex(mixer.dictionary).abs().square().sum(1).amax()
    out = torch.empty(14, 8, dtype=torch.double)
    for channel in range(8):
        head, signal = channel // 4, x[0, :, channel]
        rows = torch.zeros(3 * 12, 14, dtype=torch.double)
        for atom in range(3):
            for y in range(3):
                for z in range(4):
                    kernel = kernels[channel, atom].flip(0, 1).roll((y + 1, z + 1), dims=(0, 1))
                    rows[12 * atom + 4 * y + z, 2:] = kernel.flatten()
        matrix = torch.cat([features[head], rows.T], dim=1)
        gamma = torch.block_diag(
            mixer.gram_modulation,
            torch.kron(mixer.static_modulation, torch.eye(12, dtype=torch.double)),
        )
        dense = features[head]
        constant = torch.linalg.eigvalsh(dense.T @ dense)[-1] + largest_filter
        step, code = 1 / (1.7 * constant), matrix.T @ signal
        for _ in range(3):
            gradient = gamma.T @ matrix.T @ matrix @ gamma @ code - matrix.T @ signal
            code = soft_threshold(code - step * gradient, 0.6 * 0.8 * step)
        out[:, channel] = matrix @ code + signal
    torch.testing.assert_close(mixer(x, grid)[0], mixer.proj(out))


@pytest.mark.parametrize('num_heads', [1, 3])
def test_one_step_without_sparsity_is_kernel_attention(num_heads):
    """VARS-D without sparsity and updates is Eq. 1.14, one Euler step (of length 1) of Eq. 1.15."""
    mixer = build_mixer(
        'vars_d', 12, num_heads, (6, 4), preset='thesis', sparsity=0, num_steps=0
    ).double()
    torch.nn.init.eye_(mixer.proj.weight)
    torch.nn.init.zeros_(mixer.proj.bias)
    x, grid = torch.randn(2, 24, 12, dtype=torch.double), TokenGrid(6, 4)
    features = mixer.trace(x, grid).atoms
    query = mixer.qv(x).unflatten(2, (num_heads, -1)).transpose(1, 2)
    torch.testing.assert_close(features, positive_features(query, mixer.random_features, False))
    heads = x.unflatten(2, (num_heads, -1)).transpose(1, 2)
    kernel = features @ features.mT
    assert kernel.shape == (2, num_heads, 24, 24)
    euler = heads + 1.0 * (-heads + kernel @ heads + heads)
    torch.testing.assert_close(mixer(x, grid), euler.transpose(1, 2).flatten(2))
    mixer.num_steps = 1
    assert (mixer(x, grid) - euler.transpose(1, 2).flatten(2)).abs().max() > 0.1


# fuse()


def test_fuse_stores_the_static_gram_matrix():
    mixer, plain = build('vars_sd-release'), build('vars_sd-release')
    plain.load_state_dict(mixer.state_dict())
    x, elsewhere = torch.randn(2, 24, 12), torch.randn(2, 15, 12)
    mixer.fuse()
    static = mixer.static_atoms[0]
    torch.testing.assert_close(mixer.fused['static_gram'], static.mT @ static)
    assert mixer.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, GRID), plain(x, GRID))
        torch.testing.assert_close(
            mixer(elsewhere, TokenGrid(5, 3)), plain(elsewhere, TokenGrid(5, 3))
        )
        mixer.fused['static_gram'].zero_()  # it is used at the training grid, and there alone
        assert relative(mixer(x, GRID), plain(x, GRID)) > 1e-3
        assert relative(mixer(elsewhere, TokenGrid(5, 3)), plain(elsewhere, TokenGrid(5, 3))) < 1e-5
    assert relative(mixer(x, GRID), plain(x, GRID)) < 1e-5  # gradients are recorded


def test_fused_products_are_never_stale():
    mixer, x = build('vars_sd-release').fuse(), torch.randn(2, 24, 12)
    with torch.no_grad():
        mixer.static_atoms.mul_(torch.rand(12))
        with pytest.raises(InputError, match='fuse'):
            mixer(x, GRID)
    expected = mixer.unfuse()(x, GRID)
    with torch.no_grad():
        torch.testing.assert_close(mixer.fuse()(x, GRID), expected)
        other = build('vars_sd-release')
        mixer.load_state_dict(other.state_dict())
        assert not mixer.is_fused
        torch.testing.assert_close(mixer(x, GRID), other(x, GRID))
    assert not mixer.fuse().train().is_fused


# The mask over tokens, traces


@pytest.mark.parametrize('name', ['vars_d', 'vars_sd'])
def test_without_steps_the_code_is_the_shrunk_projection(name):
    mixer = build(f'{name}-release', num_steps=0)
    x = torch.randn(2, 24, 12)
    trace = mixer.trace(x, GRID)
    values = trace.signal.unflatten(2, (2, 6)).transpose(1, 2)
    code = gelu_threshold(trace.atoms.mT @ values, 0.8 * mixer.sparsity)
    torch.testing.assert_close(trace.codes, (code,))
    expected = mixer.proj((trace.atoms @ code).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, GRID), expected)


@pytest.mark.parametrize('name', ['vars_d', 'vars_sd'])
def test_released_atoms_have_unit_length(name):
    atoms = build(f'{name}-release').trace(torch.randn(2, 24, 12), GRID).atoms
    torch.testing.assert_close(atoms.norm(dim=2), torch.ones(2, 2, atoms.shape[-1]))


def test_scale_aware_sparsity_has_no_effect_at_the_training_grid_and_grows_with_tokens():
    for preset, factor in (('release', 2), ('thesis', 4)):
        mixer = build(f'vars_d-{preset}', scale_aware_sparsity=True)
        assert mixer.sparsity_at(GRID) == mixer.sparsity
        assert mixer.sparsity_at(TokenGrid(8, 12)) == pytest.approx(factor * mixer.sparsity)


# Queries and keys with a dictionary each (Eq. 2.3-2.4)


@pytest.mark.parametrize('injection', ['value', 'qkv'])
@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_the_keys_find_the_code_and_the_queries_decode_it(preset, injection):
    """A mixer whose queries are the keys has the code; its atoms of the queries are the readout."""
    options = dict(injection=injection, double_value_bias=False)
    mixer = build(f'vars_d-{preset}', separate_keys=True, **options).double()
    queries, keys = (build(f'vars_d-{preset}', **options).double() for _ in range(2))
    state = mixer.state_dict()
    weight, bias = state.pop('k.weight'), state.pop('k.bias')
    queries.load_state_dict(state)
    keys.load_state_dict(state)
    keys.qv.weight.data[:12], keys.qv.bias.data[:12] = weight, bias
    x, t = torch.randn(2, 2, 24, 12, dtype=torch.double)
    readout, trace = queries.trace(x, GRID, t).atoms, keys.trace(x, GRID, t)
    heads = readout @ trace.codes[-1]
    assert relative(trace.reconstructions[-1], heads.transpose(1, 2).flatten(2)) > 0.1
    expected = heads.transpose(1, 2).flatten(2)
    if preset == 'thesis':
        expected = expected + trace.signal
    torch.testing.assert_close(mixer(x, GRID, t), mixer.proj(expected))
    # Of the reconstruction of the value, the keys' dictionary has all (Eq. 2.3).
    for one, other in zip(mixer.trace(x, GRID, t), trace, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_keys_that_are_the_queries_change_nothing(preset):
    mixer, plain = build(f'vars_d-{preset}', separate_keys=True), build(f'vars_d-{preset}')
    state = mixer.state_dict()
    rows = slice(None, 12)
    state['k.weight'].copy_(state['qv.weight'][rows])
    state['k.bias'].copy_(state['qv.bias'][rows])
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith('k.')})
    x = torch.randn(2, 24, 12)
    torch.testing.assert_close(mixer(x, GRID), plain(x, GRID))
    torch.testing.assert_close(
        mixer.attention_steps(x, GRID), plain.attention_steps(x, GRID), atol=1e-6, rtol=1e-4
    )


@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_a_loss_reaches_queries_and_keys(preset):
    mixer = build(f'vars_d-{preset}', separate_keys=True).double()
    mixer(torch.randn(1, 24, 12, dtype=torch.double), GRID).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())


@pytest.mark.parametrize(
    ('name', 'preset'), [('vars_sd', 'release'), ('vars_sd', 'thesis'), ('vars_s', 'release')]
)
def test_only_random_features_have_keys(name, preset):
    with pytest.raises(InputError, match='takes no option separate_keys'):
        build_mixer(name, 12, 2, GRID[:2], preset=preset, separate_keys=True)
    with pytest.raises(InputError, match='separate_keys must be True or False'):
        build_mixer('vars_d', 12, 2, GRID[:2], separate_keys='no')
