"""The forms of VARS that cost little: the same function as the plain ones, and how much they do."""

import copy
import math
from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mmvars.layers import TokenGrid, build_mixer, fourier
from mmvars.layers.dictionaries import DenseDictionary, JoinedDictionary, SpectralDictionary
from mmvars.layers.sparse_coding import SHRINKAGES

GRID = TokenGrid(4, 6)
FREE = dict(static_atoms='free')
DENSE = {'vars_d': ('vars_d', {}), 'vars_sd': ('vars_sd', {}),
         'vars_d_thesis': ('vars_d', dict(preset='thesis')),
         'vars_sd_thesis': ('vars_sd', dict(preset='thesis', **FREE))}
SPECTRAL = {'vars_s': ('vars_s', dict(sparsity=.1)),
            'vars_s_thesis': ('vars_s', dict(preset='thesis')),
            'vars_sd_filters': ('vars_sd', dict(preset='thesis')),
            'global_filter': ('global_filter', {})}
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}


class Operators(TorchDispatchMode):
    """How often each operator ran."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen[func.overloadpacket.__name__] += 1
        return func(*args, **kwargs or {})

    def products(self) -> int:
        """Matrix products that are no linear layer's."""
        return sum(self.seen[name] for name in ('mm', 'bmm', 'baddbmm', 'baddbmm_'))


def build(kind: str, grid: tuple[int, int] = GRID[:2]) -> torch.nn.Module:
    name, options = (DENSE | SPECTRAL)[kind]
    mixer = build_mixer(name, 12, 2, grid, **options).eval()
    with torch.no_grad():
        for key, parameter in mixer.named_parameters():
            if 'modulation' in key:  # not symmetric, so that the sides matter
                parameter.add_(.2 * torch.randn_like(parameter))
            elif key.endswith('scale'):
                parameter.fill_(.8)
    return mixer


def relative(found: Tensor, expected: Tensor) -> float:
    return ((found - expected).abs().max() / expected.abs().max()).item()


def plainly(mixer: torch.nn.Module, x: Tensor) -> Tensor:
    """VARS-D and -SD as the equations have them, in as many operations."""
    rows = mixer.qv(x).unflatten(2, (-1, 6)).transpose(1, 2)
    query, value = rows[:, :2], rows[:, 2:]
    if mixer.value == 'input':
        value = x.unflatten(2, (-1, 6)).transpose(1, 2)
    query = F.normalize(query, dim=-1) if mixer.normalise_queries else query / 6**.25
    omega = mixer.random_features
    atoms = torch.exp(query @ omega - query.square().sum(-1, keepdim=True) / 2) / math.sqrt(12)
    if hasattr(mixer, 'static_atoms'):
        atoms = torch.cat([atoms, mixer.static_atoms.expand(len(x), -1, -1, -1)], dim=-1)
    if mixer.normalise_atoms:
        atoms = F.normalize(atoms, dim=2)
    gram = atoms.mT @ atoms
    bound = (gram.abs().sum(-1).amax(-1) + 1 if mixer.step_bound == 'row_sum' else
             torch.linalg.eigvalsh(gram)[..., -1])[..., None, None]
    scale = mixer.step_scale if mixer.step_scaling == 'multiply' else 1 / mixer.step_scale
    step, shrink = scale / bound, SHRINKAGES[mixer.shrinkage]
    gamma = mixer.gram_modulation
    left = gamma.T if mixer.gram_transpose else gamma
    sparsity = mixer.sparsity * mixer.sparsity_scale
    target = atoms.mT @ value
    code = shrink(target, sparsity) if mixer.start == 'shrunk' else target
    for _ in range(mixer.num_steps):
        code = shrink(code - step * (left @ (gram @ (gamma @ code)) - target), sparsity * step)
    out = atoms @ code + (value if mixer.residual else 0)
    return mixer.proj(out.transpose(1, 2).flatten(2))


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize('kind', DENSE)
def test_the_plain_equations(kind, batch, dtype):
    mixer, x = build(kind).to(dtype), torch.randn(batch, 24, 12, dtype=dtype)
    torch.nn.init.zeros_(mixer.qv.bias)
    x[0, 5] = 0  # a query of length zero
    expected = plainly(mixer, x)
    assert relative(mixer(x, GRID), expected) < TOLERANCE[dtype]
    with torch.no_grad():
        for _ in range(2):  # the second time with what was kept
            assert relative(mixer(x, GRID), expected) < TOLERANCE[dtype]


@pytest.mark.parametrize('transpose', [True, False])
@pytest.mark.parametrize('modulated', [True, False])
@pytest.mark.parametrize('kind', ['dense', 'spectral', 'joined'])
def test_a_descent_is_a_step_against_the_gradient(kind, modulated, transpose):
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.double)

    def mixed(code: Tensor, matrices: list[Tensor]) -> Tensor:
        if kind == 'dense':
            return matrices[0] @ code
        if kind == 'spectral':
            return torch.einsum('ij,bcjhw->bcihw', matrices[1], code)
        maps = torch.einsum('ij,bhjnd->bhind', matrices[1], code[:, :, 5:].unflatten(2, (3, 24)))
        return torch.cat([matrices[0] @ code[:, :, :5], maps.flatten(2, 3)], dim=2)

    dictionary = spectral = SpectralDictionary(torch.fft.rfft2(random(8, 3, 4, 6)), (4, 6))
    signal, step = random(2, 8, 4, 6), random(8, 1, 1, 1)
    if kind != 'spectral':
        dictionary, signal = DenseDictionary(random(2, 2, 24, 5), True), random(2, 2, 24, 4)
        step = random(2, 2, 1, 1)
    if kind == 'joined':
        dictionary = JoinedDictionary(dictionary, spectral, (4, 6))
    gamma = [random(5, 5), random(3, 3)]
    target = dictionary.encode(signal)
    code, left = torch.randn_like(target), [m.T if transpose else m for m in gamma]
    asked = dict(dense=gamma[0], spectral=gamma[1], joined=gamma)[kind] if modulated else None
    product = dictionary.encode(dictionary.decode(mixed(code, gamma) if modulated else code))
    product = mixed(product, left) if modulated else product
    torch.testing.assert_close(dictionary.gram(asked, transpose)(code), product)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded):
            descend = dictionary.descent(signal, target, step, asked, transpose)
            before = code.clone()
            torch.testing.assert_close(descend(code), code - step * (product - target))
            assert code.equal(before)


@pytest.mark.parametrize('shrink', SHRINKAGES.values())
def test_shrinkage_in_place_is_shrinkage(shrink):
    code = torch.cat([torch.randn(50), torch.zeros(2)])
    before = code.clone()
    expected = shrink(code.clone().requires_grad_(), .3)
    with torch.no_grad():
        assert shrink(code, .3).equal(expected)
    assert code.equal(before) and (expected[50:] == 0).all()


# How much is done


@pytest.mark.parametrize(('kind', 'products'), [
    # features, Gram matrix, encoding, decoding; Gamma twice; an update each
    ('vars_d', 4 + 2 + 5), ('vars_d_thesis', 4 + 2 + 3),
    # static with dynamic atoms, encoding and decoding with static ones
    ('vars_sd', 4 + 3 + 2 + 5), ('vars_sd_thesis', 4 + 3 + 2 + 3)])
def test_matrix_products_of_a_forward(kind, products):
    mixer, x = build(kind), torch.randn(1, 24, 12)
    with torch.no_grad():
        mixer(x, GRID)  # makes what is kept
        with Operators() as counted:
            mixer(x, GRID)
    assert counted.products() == products
    assert counted.seen['addmm'] == 2  # projections
    with Operators() as counted:
        mixer(x, GRID)
    assert counted.products() == products + ('static_atoms' in dict(mixer.named_parameters()))


@pytest.mark.parametrize('kind', ['vars_s', 'vars_s_thesis'])
@pytest.mark.parametrize('steps', [0, 3])
def test_transforms_of_a_forward(kind, steps):
    """The signal once, codes once an update and to decode; back likewise; twice to filter again."""
    mixer, x, grid = build(kind, (10, 10)), torch.randn(2, 100, 12), TokenGrid(10, 10)
    mixer.num_steps = steps
    with torch.no_grad(), Operators() as counted:
        mixer(x, grid)
    filters, exact = mixer.output_filter is not None, mixer.hermitian_filters
    assert counted.seen['_fft_r2c'] == 1 + steps + 1 + filters + exact
    assert counted.seen['_fft_c2r'] == 1 + steps + 1 + filters + exact
    assert counted.seen['bmm'] <= 1  # Gamma mixes filters, not codes


# Never stale


@pytest.mark.parametrize('grid', [GRID, TokenGrid(5, 3)])
@pytest.mark.parametrize('name', ['vars_sd', 'vars_s', 'global_filter'])
def test_what_is_kept_is_never_stale(name, grid):
    options = dict(sparsity=.1) if name == 'vars_s' else {}
    mixer = build_mixer(name, 12, 2, GRID[:2], **options).eval()
    other = copy.deepcopy(mixer)
    tied, x = getattr(mixer, mixer.grid_tied[0]), torch.randn(2, grid.num_patches, 12)

    def step() -> None:
        optimiser = torch.optim.SGD(mixer.parameters(), lr=.5)
        mixer(x, grid).square().sum().backward()
        optimiser.step()

    def load() -> None:
        with torch.no_grad():
            getattr(other, other.grid_tied[0]).normal_()
        mixer.load_state_dict(other.state_dict())

    def assign(*numbers: float) -> None:
        tied.data.view(-1)[:4] = torch.tensor(numbers)

    # The last ones change no version counter, and the very last nothing but the order.
    for change in (step, load, mixer.double, mixer.float, lambda: tied.data.view(-1)[::5].mul_(3),
                   lambda: assign(5, -3, -4, 2), lambda: assign(-4, 2, 5, -3)):
        with torch.no_grad():
            before = mixer(x.to(tied.dtype), grid).float()
        change()
        expected = mixer(x.to(tied.dtype), grid).detach()  # with gradients, nothing is kept
        with torch.no_grad():
            assert relative(mixer(x.to(tied.dtype), grid), expected) < 1e-5
        moved = relative(expected.float(), before) > 1e-4
        assert moved or change in (mixer.double, mixer.float)
    twin = copy.deepcopy(mixer)
    with torch.no_grad():
        getattr(twin, twin.grid_tied[0]).normal_()
        kept = mixer(x, grid)
        assert relative(twin(x, grid), kept) > 1e-4 and mixer(x, grid).equal(kept)


# Transforms without FFT, spectra without complex numbers


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('size', [(7, 7), (8, 8), (4, 9), (1, 6), (5, 1), (1, 1), (2, 3)])
def test_transforms_by_matrices_are_fourier_s(size, dtype, monkeypatch):
    maps = torch.randn(2, 3, *size, dtype=dtype)
    numbers = torch.randn(2, 3, size[0], size[1] // 2 + 1, 2, dtype=dtype)  # not Hermitian
    spectrum, back = torch.fft.rfft2(maps), fourier.from_spectrum(torch.view_as_complex(numbers).
                                                                   requires_grad_(), size).detach()
    with torch.no_grad(), Operators() as counted:
        assert relative(fourier.to_spectrum(maps), spectrum) < TOLERANCE[dtype]
        assert relative(fourier.from_spectrum(torch.view_as_complex(numbers), size),
                        back) < TOLERANCE[dtype]
    assert not any('fft' in name for name in counted.seen)
    monkeypatch.setattr(fourier, 'in_pairs', lambda: True)
    assert relative(fourier.to_spectrum(maps), torch.view_as_real(spectrum)) < TOLERANCE[dtype]
    assert relative(fourier.from_spectrum(numbers, size), back) < TOLERANCE[dtype]


@pytest.mark.parametrize('dtype', TOLERANCE)
@pytest.mark.parametrize('grid', [GRID, TokenGrid(5, 3), TokenGrid(10, 9)])
@pytest.mark.parametrize('kind', SPECTRAL)
def test_pairs_of_real_numbers_are_complex_numbers(kind, grid, dtype, monkeypatch):
    mixer, x = build(kind).to(dtype), torch.randn(2, grid.num_patches, 12, dtype=dtype)
    expected = mixer(x, grid)
    (wanted, ) = torch.autograd.grad(expected.square().sum(), mixer.proj.weight
                                     if hasattr(mixer, 'proj') else mixer.complex_weight)
    monkeypatch.setattr(fourier, 'in_pairs', lambda: True)
    with Operators() as counted:
        found = mixer(x, grid)
    assert relative(found, expected) < TOLERANCE[dtype]
    assert not [name for name in counted.seen if 'fft' in name or 'complex' in name]
    assert counted.seen['mm'] + counted.seen['bmm'] > 0
    (gradient, ) = torch.autograd.grad(found.square().sum(), mixer.proj.weight
                                       if hasattr(mixer, 'proj') else mixer.complex_weight)
    assert relative(gradient, wanted) < 10 * TOLERANCE[dtype]


def test_an_exported_program_of_vars_s_has_no_transform():
    class Call(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mixer = build('vars_s')

        def forward(self, x: Tensor) -> Tensor:
            return self.mixer(x, GRID)

    module, x = Call().eval(), torch.randn(2, 24, 12)
    program = torch.export.export(module, (x, ))
    parts = [part for part in program.graph_module.modules() if hasattr(part, 'graph')]
    names = [str(node.target) for part in parts for node in part.graph.nodes]
    assert any('matmul' in name for name in names)
    assert not [name for name in names if 'fft' in name or 'complex' in name]
    assert relative(program.module()(x), module(x)) < 1e-5
