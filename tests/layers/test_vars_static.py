"""VARS-S: the equations of both presets, its filters and Lipschitz constants, and chunks."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmvars.errors import InputError
from mmvars.layers import TokenGrid, VARSStatic, build_mixer, vars_static
from mmvars.layers.fourier import as_complex, from_spectrum, to_spectrum
from mmvars.layers.sparse_coding import soft_threshold
from mmvars.layers.vars_static import lipschitz_estimate, new_filters, spectral_lipschitz

GRID = TokenGrid(4, 6)


def build(preset: str = 'release', grid: tuple[int, int] = GRID[:2], **options) -> VARSStatic:
    if preset == 'release':  # the release's 3.5 codes nothing of tokens as small as those here
        options = dict(sparsity=0.1) | options
    mixer = build_mixer('vars_s', 12, 2, grid, preset=preset, **options).eval()
    with torch.no_grad():
        if preset == 'thesis':
            mixer.gram_modulation.add_(0.2 * torch.randn_like(mixer.gram_modulation))
            mixer.sparsity_scale.fill_(0.8)
            mixer.step_scale.fill_(1.7)
    return mixer


@pytest.mark.parametrize('steered', [False, True])
@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_the_equations_written_out(preset, steered):
    """With an r x r Gram matrix at each frequency, as the release has it."""
    mixer, x = build(preset).double(), torch.randn(2, 24, 12, dtype=torch.double)
    top_down = torch.randn_like(x) if steered else None
    signal = x if top_down is None else x + top_down
    if preset == 'release':
        signal = mixer.value(x) if top_down is None else mixer.value(x) + mixer.value(top_down)
    maps = GRID.to_map(signal)
    filters = torch.view_as_complex(mixer.dictionary)
    if preset == 'release':
        gamma, step, sparsity = torch.eye(5).to(filters), 1 / mixer.lipschitz, 0.1
    else:
        filters = torch.fft.rfft2(torch.fft.irfft2(filters, s=(4, 6)))
        gamma = mixer.gram_modulation.to(filters)
        step = 1 / (1.7 * filters.abs().square().sum(1).amax((1, 2)))
        sparsity = 0.8 * 0.3
    step = step[:, None, None, None]
    gram = torch.einsum('ai,cahw,cbhw,bj->cijhw', gamma, filters, filters.conj(), gamma)
    target = from_spectrum(torch.fft.rfft2(maps)[:, :, None] * filters, (4, 6))
    code = soft_threshold(target, sparsity) if preset == 'release' else target
    for _ in range(3):
        product = torch.einsum('cijhw,bcjhw->bcihw', gram, torch.fft.rfft2(code))
        code = soft_threshold(
            code - step * (from_spectrum(product, (4, 6)) - target), sparsity * step
        )
    out = from_spectrum((torch.fft.rfft2(code) * filters.conj()).sum(2), (4, 6))
    if preset == 'release':
        second = torch.view_as_complex(mixer.output_filter)
        out = from_spectrum(torch.fft.rfft2(out) * second, (4, 6))
        expected = mixer.proj(mixer.norm(out.flatten(2).mT))
    else:
        expected = mixer.proj((out + maps).flatten(2).mT)
    torch.testing.assert_close(mixer(x, GRID, top_down), expected)


def test_filters_convolve_circularly_and_decoding_is_the_transpose():
    mixer = build('thesis', num_steps=0)
    x = torch.randn(1, 24, 12)
    trace = mixer.trace(x, GRID)
    kernels = torch.fft.irfft2(torch.view_as_complex(mixer.dictionary.detach()), s=(4, 6))
    maps = GRID.to_map(x)
    for channel, atom in ((0, 0), (5, 2)):
        expected = sum(
            kernels[channel, atom, i, j] * maps[0, channel].roll((i, j), dims=(0, 1))
            for i in range(4)
            for j in range(6)
        )
        torch.testing.assert_close(trace.codes[0][0, channel, atom], expected)
    # <P u, x> = <u, P'x> with u = P'x
    torch.testing.assert_close(
        (trace.reconstructions[0] * trace.signal).sum(), trace.codes[0].square().sum()
    )


@pytest.mark.parametrize('preset', ['release', 'thesis'])
def test_the_released_gram_operator_sees_more_than_real_filters(preset):
    """In column 0 and, for even W, the last: its updates are not quite a gradient step."""
    mixer, x = build(preset, num_steps=1, sparsity=0).double(), torch.randn(1, 24, 12).double()
    trace = mixer.trace(x, GRID)
    start, moved = trace.codes
    filters, constants = mixer._filters(GRID)
    step = 1 / (constants[:, None, None, None] * (1 if preset == 'release' else 1.7))
    with torch.no_grad():
        if preset == 'thesis':  # without Gamma
            mixer.gram_modulation.copy_(torch.eye(3))
            start, moved = mixer.trace(x, GRID).codes
    error = GRID.to_map(trace.reconstructions[0] - trace.signal)
    gradient = from_spectrum(to_spectrum(error)[:, :, None] * filters, (4, 6))
    assert torch.allclose(moved, start - step * gradient) == (preset == 'thesis')


# Lipschitz constants


def test_the_estimate_is_the_largest_singular_value_of_the_real_part():
    filters = new_filters(3, 5, (4, 6))
    spectrum = as_complex(filters).permute(0, 2, 3, 1)
    real = (spectrum[..., :, None] * spectrum[..., None, :].conj()).real
    expected = torch.linalg.svdvals(real)[..., 0].amax(dim=(1, 2))
    torch.testing.assert_close(lipschitz_estimate(filters), expected)


def test_the_estimate_is_too_small_by_two_at_most():
    """Dropping the imaginary part loses up to half: 1 / L stays below 2 over the true one."""
    filters = torch.randn(50, 3, 6, 3, 2, dtype=torch.double)
    exact = spectral_lipschitz(torch.view_as_complex(filters))
    torch.testing.assert_close(exact, filters.square().sum(dim=(1, 4)).amax(dim=(1, 2)))
    ratio = lipschitz_estimate(filters) / exact
    assert 0.5 <= ratio.min() < 0.9 and ratio.max() <= 1
    single = torch.randn(4, 1, 6, 3, 2)  # one atom a channel: K K^H is real, nothing is dropped
    torch.testing.assert_close(
        lipschitz_estimate(single), single.square().sum(dim=(1, 4)).amax((1, 2))
    )


def test_update_lipschitz_moves_the_buffer():
    mixer = build()
    torch.testing.assert_close(mixer.lipschitz, lipschitz_estimate(mixer.dictionary))
    old = mixer.lipschitz.clone()
    mixer.dictionary.data.mul_(2)
    mixer.update_lipschitz(0.25)
    torch.testing.assert_close(mixer.lipschitz, 0.75 * old + 0.25 * 4 * old)
    assert not mixer.lipschitz.requires_grad
    with pytest.raises(InputError, match='rate'):
        mixer.update_lipschitz(1.5)
    with pytest.raises(InputError, match="preset='release'"):
        build('thesis').update_lipschitz(0.1)


# How much is done, and in which order


class Operators(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.seen[name] = self.seen.get(name, 0) + 1
        return func(*args, **kwargs or {})


@pytest.mark.parametrize('preset', ['release', 'thesis'])
@pytest.mark.parametrize('steps', [0, 3])
def test_transforms_of_a_forward(preset, steps):
    """Signal, codes once an update and to decode; and the output filter, or the real filters."""
    mixer, x = build(preset), torch.randn(2, 24, 12)
    mixer.num_steps = steps
    with torch.no_grad(), Operators() as operators:
        mixer(x, GRID)
    assert operators.seen['_fft_r2c'] == operators.seen['_fft_c2r'] == 1 + steps + 1 + 1


@pytest.mark.parametrize('options', [dict(), dict(preset='thesis'), dict(num_steps=0)], ids=str)
@pytest.mark.parametrize('at_once', [1, 5, 12])
@pytest.mark.parametrize('grid', [GRID, TokenGrid(5, 3)])
def test_chunks_of_channels_change_nothing(options, at_once, grid, monkeypatch):
    mixer = build(**options)
    x = torch.randn(2, grid.num_patches, 12)
    expected = mixer(x, grid).detach()  # with gradients: all channels at once
    sizes, reconstruct = [], VARSStatic._reconstruct

    def counted(self, maps, *args):
        sizes.append(maps.shape[1])
        return reconstruct(self, maps, *args)

    monkeypatch.setattr(VARSStatic, '_reconstruct', counted)
    atoms = mixer.dictionary.shape[1]
    monkeypatch.setattr(
        vars_static, '_CHUNK_SIZE', at_once * 2 * atoms * grid.height * (grid.width // 2 + 1)
    )
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, grid), expected)
    assert sizes == [at_once] * (12 // at_once) + [12 % at_once] * (12 % at_once > 0)
    sizes.clear()
    mixer(x, grid).sum().backward()
    assert sizes == [12]


def test_the_code_is_optimal_at_convergence():
    mixer = build_mixer('vars_s', 12, 3, (6, 4), preset='thesis', sparsity=1.0).double().eval()
    mixer.num_steps, grid = 4000, TokenGrid(6, 4)  # more than a mixer may be built with
    trace = mixer.trace(2 * torch.randn(1, 24, 12, dtype=torch.double), grid)
    error = grid.to_map(trace.signal - trace.reconstructions[-1])
    filters = mixer._filters(grid)[0].detach()
    correlation = from_spectrum(to_spectrum(error)[:, :, None] * filters, (6, 4))
    code = trace.codes[-1]
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(correlation[used], code[used].sign(), atol=1e-6, rtol=0)
    assert correlation[~used].abs().max() <= 1 + 1e-6
