"""Half spectra as complex numbers, and as pairs of real numbers where a graph is exported."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmvars.layers import TokenGrid, build_mixer, fourier

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
SPECTRAL = {
    'vars_s': ('vars_s', dict(sparsity=0.1)),
    'vars_s_thesis': ('vars_s', dict(preset='thesis')),
    'vars_sd_thesis': ('vars_sd', dict(preset='thesis')),
    'global_filter': ('global_filter', {}),
}


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.add(func.overloadpacket.__name__)
        return func(*args, **kwargs or {})


def relative(output: torch.Tensor, expected: torch.Tensor) -> float:
    return ((output - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', [(7, 7), (8, 8), (4, 9), (1, 6), (5, 1), (1, 1), (2, 3)])
def test_the_matrices_are_fourier_transforms(size, dtype, monkeypatch):
    maps = torch.randn(2, 3, *size, dtype=dtype)
    pairs = torch.randn(2, 3, size[0], size[1] // 2 + 1, 2, dtype=dtype)  # not Hermitian
    spectrum = torch.fft.rfft2(maps)
    inverse = fourier.from_spectrum(torch.view_as_complex(pairs), size)
    torch.testing.assert_close(fourier.from_spectrum(spectrum, size), maps)
    monkeypatch.setattr(fourier, 'is_exporting', lambda: True)
    assert relative(fourier.to_spectrum(maps), torch.view_as_real(spectrum)) < TOLERANCE[dtype]
    assert relative(fourier.from_spectrum(pairs, size), inverse) < TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('grid', [TokenGrid(4, 6), TokenGrid(5, 3)])
@pytest.mark.parametrize('kind', SPECTRAL)
def test_pairs_of_real_numbers_are_complex_numbers(kind, grid, dtype, monkeypatch):
    name, options = SPECTRAL[kind]
    mixer = build_mixer(name, 12, 2, (4, 6), **options).eval().to(dtype)
    x = torch.randn(2, grid.num_patches, 12, dtype=dtype)
    weight = mixer.proj.weight if hasattr(mixer, 'proj') else mixer.complex_weight
    expected = mixer(x, grid)
    (expected_grad,) = torch.autograd.grad(expected.square().sum(), weight)
    monkeypatch.setattr(fourier, 'is_exporting', lambda: True)
    with Operators() as operators:
        output = mixer(x, grid)
    assert relative(output, expected) < TOLERANCE[dtype]
    assert not [name for name in operators.seen if 'fft' in name or 'complex' in name]
    (grad,) = torch.autograd.grad(output.square().sum(), weight)
    assert relative(grad, expected_grad) < 10 * TOLERANCE[dtype]


@pytest.mark.skipif(
    not hasattr(torch.compiler, 'is_exporting'),
    reason='torch before 2.7 does not say that it exports: the graph has complex numbers',
)
@pytest.mark.parametrize(
    'kind',
    [pytest.param(kind, marks=() if kind == 'vars_s' else pytest.mark.slow) for kind in SPECTRAL],
)
def test_an_exported_graph_has_no_complex_numbers(kind):
    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            name, options = SPECTRAL[kind]
            self.mixer = build_mixer(name, 12, 2, (4, 6), **options)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.mixer(x, TokenGrid(4, 6))

    module, x = Call().eval(), torch.randn(2, 24, 12)
    program = torch.export.export(module, (x,))
    parts = [part for part in program.graph_module.modules() if hasattr(part, 'graph')]
    names = [
        str(node.target)
        for part in parts
        for node in part.graph.nodes
        if node.op == 'call_function'
    ]
    assert any('matmul' in name for name in names)
    assert not [name for name in names if 'fft' in name or 'complex' in name]
    assert relative(program.module()(x), module(x)) < 1e-5


@pytest.mark.parametrize(
    'kind',
    [pytest.param(kind, marks=pytest.mark.slow) if 'thesis' in kind else kind for kind in SPECTRAL],
)
@pytest.mark.parametrize('recorded', [True, False])
def test_an_empty_batch_gives_an_empty_output(kind, recorded):
    name, options = SPECTRAL[kind]
    mixer = build_mixer(name, 12, 2, (4, 5), **options).eval()
    with torch.set_grad_enabled(recorded):
        assert mixer(torch.randn(0, 20, 12), TokenGrid(4, 5)).shape == (0, 20, 12)
