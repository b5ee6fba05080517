"""The laws of sparse coding in the mixers that do it: VARS-D, -SD and -S."""

import pytest
import torch

from mmvars.layers import TokenGrid, build_mixer
from mmvars.layers.dictionaries import SpectralDictionary
from mmvars.layers.performer import positive_features
from mmvars.layers.sparse_coding import SHRINKAGES
from mmvars.layers.spectral import as_complex
from mmvars.layers.vars_static import running_bound

GRID = TokenGrid(6, 4)


@pytest.mark.parametrize('num_heads', [1, 3])
def test_one_step_without_sparsity_is_kernel_attention(num_heads):
    """VARS-D without sparsity and updates is Eq. 1.14, one Euler step (of length 1) of Eq. 1.15."""
    mixer = build_mixer('vars_d', 12, num_heads, (6, 4), preset='thesis', sparsity=0,
                        num_steps=0).double()
    torch.nn.init.eye_(mixer.proj.weight)
    torch.nn.init.zeros_(mixer.proj.bias)
    x = torch.randn(2, 24, 12, dtype=torch.double)
    features = mixer.trace(x, GRID).atoms
    query = mixer.qv(x).unflatten(2, (num_heads, -1)).transpose(1, 2)
    expected_features = positive_features(query, mixer.random_features.double(), unit_length=False)
    torch.testing.assert_close(features, expected_features)

    heads = x.unflatten(2, (num_heads, -1)).transpose(1, 2)
    kernel = features @ features.mT
    assert kernel.shape == (2, num_heads, 24, 24)
    attention = (kernel @ heads + heads).transpose(1, 2).flatten(2)
    torch.testing.assert_close(mixer(x, GRID), attention)
    euler = heads + 1. * (-heads + kernel @ heads + heads)
    torch.testing.assert_close(mixer(x, GRID), euler.transpose(1, 2).flatten(2))
    # No sparsity: shrinking softly at 0 changes nothing, updates do.
    mixer.start = 'shrunk'
    torch.testing.assert_close(mixer(x, GRID), attention)
    mixer.num_steps = 1
    assert (mixer(x, GRID) - attention).abs().max() > .1


@pytest.mark.parametrize('shrinkage', ['soft', 'gelu'])
@pytest.mark.parametrize('name', ['vars_d', 'vars_sd'])
def test_zero_steps_are_plain_shrinkage(name, shrinkage):
    mixer = build_mixer(name, 12, 3, (6, 4), num_steps=0, shrinkage=shrinkage)
    x = torch.randn(2, 24, 12)
    trace = mixer.trace(x, GRID)
    values = trace.signal.unflatten(2, (3, 4)).transpose(1, 2)
    code = SHRINKAGES[shrinkage](trace.atoms.mT @ values, mixer.sparsity)
    torch.testing.assert_close(trace.codes, (code, ))
    expected = mixer.proj((trace.atoms @ code).transpose(1, 2).flatten(2))
    torch.testing.assert_close(mixer(x, GRID), expected)


MIXERS = [('vars_d', dict(shrinkage='soft')),
          ('vars_d', dict(shrinkage='soft', step_bound='spectral', start='projection')),
          ('vars_sd', dict(shrinkage='soft')), ('vars_s', dict(step_bound='running')),
          ('vars_s', dict(step_bound='spectral')), ('vars_d', dict(preset='thesis')),
          ('vars_sd', dict(preset='thesis')), ('vars_s', dict(preset='thesis'))]


def untrained(name: str, **options) -> torch.nn.Module:
    """A mixer in float64 whose Gram operator is P'P; that of the released VARS-S is not quite."""
    exact = dict(hermitian_filters=True) if name == 'vars_s' else {}
    return build_mixer(name, 12, 3, (6, 4), **options | exact).double().eval()


@pytest.mark.parametrize(('name', 'options'), MIXERS)
def test_the_energy_never_rises_in_a_mixer(name, options):
    mixer = untrained(name, **options | dict(num_steps=25, sparsity=.3))
    trace = mixer.trace(2 * torch.randn(8, 24, 12, dtype=torch.double), GRID)
    energies = torch.stack([
        (rebuilt - trace.signal).square().flatten(1).sum(1) / 2 + .3 * code.abs().flatten(1).sum(1)
        for code, rebuilt in zip(trace.codes, trace.reconstructions, strict=True)])
    assert energies.shape == (26, 8)
    assert (energies.diff(dim=0) <= 1e-12 * energies[0]).all()
    assert (energies[-1] < .99 * energies[0]).all()


def test_the_code_of_vars_s_is_optimal_at_convergence():
    mixer = untrained('vars_s', sparsity=1., step_bound='spectral')
    mixer.num_steps = 4000  # more than a mixer may be built with
    trace = mixer.trace(2 * torch.randn(1, 24, 12, dtype=torch.double), GRID)
    error = GRID.to_map(trace.signal - trace.reconstructions[-1])
    correlation = SpectralDictionary(as_complex(mixer.dictionary), (6, 4)).encode(error).detach()
    code = trace.codes[-1]
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(correlation[used], code[used].sign(), atol=1e-6, rtol=0)
    assert correlation[~used].abs().max() <= 1 + 1e-6


def test_the_running_bound_is_too_small_by_two_at_most():
    """Dropping the imaginary part loses up to half: 1 / bound stays below 2 / L, so it descends."""
    filters = torch.randn(50, 3, 6, 3, 2, dtype=torch.double)
    exact = filters.square().sum(dim=(1, 4)).amax(dim=(1, 2))
    ratio = running_bound(filters) / exact
    assert .5 <= ratio.min() < .9 and ratio.max() <= 1
    single = torch.randn(4, 1, 6, 3, 2)  # one atom a channel: K K^H is real, nothing is dropped
    torch.testing.assert_close(running_bound(single), single.square().sum(dim=(1, 4)).amax((1, 2)))
