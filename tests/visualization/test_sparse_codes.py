"""Sparse codes, recorded: the maps, the atoms and the numbers."""

import pytest
import torch

from mmvars.layers import TokenGrid, build_mixer
from mmvars.layers.fourier import as_complex, conjugate, from_spectrum, times, to_spectrum
from mmvars.layers.sparse_coding import SparseTrace, energy
from mmvars.networks import create_model
from mmvars.visualization.maps import (
    atom_counts,
    atom_sets,
    energy_shares,
    key_trace,
    most_used_atoms,
    near_zero_share,
    sparsity_weight,
    spatial_atoms,
    token_norm_map,
)
from mmvars.visualization.recorder import recording

RVT = dict(img_size=(64, 96), embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4), num_classes=3)
VARS = ['vars_d', 'vars_sd', 'vars_s']


def rvt(mixer, **options):
    if mixer == 'vars_s':  # the release's 3.5 leaves no code at these widths
        options = dict(sparsity=0.3) | options
    return create_model('rvt_tiny', mixer=mixer, mixer_cfg=options, **RVT).eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 70, 100)  # a 5x7 grid, then 3x4


def record(network, images, layer=0, **arguments):
    """The traces of all passes, the mixer, and its grid."""
    block = getattr(network, 'trunk', network).blocks[layer]
    watched = dict(
        traces=(block.attn, lambda mixer, args, output: mixer.trace(*args[:3])),
        grids=(block, lambda block, args, output: args[1]),
    )
    with torch.no_grad(), recording(network, watched, **arguments) as records:
        network(images)
    return records['traces'], block.attn, records['grids'][-1]


@pytest.mark.parametrize('mixer', ['vars_d', 'vars_sd'])
def test_the_last_reconstruction_is_what_the_block_hands_on(mixer, images):
    network, outputs = rvt(mixer), []
    network.blocks[2].attn.register_forward_hook(lambda m, a, out: outputs.append(out))
    (trace,), attention, grid = record(network, images, 2)
    assert grid == TokenGrid(3, 4) and len(outputs) == 1
    torch.testing.assert_close(attention.proj(trace.reconstructions[-1]), outputs[0])


@pytest.mark.parametrize('mixer', VARS)
def test_there_is_a_map_for_the_start_and_each_step(mixer, images):
    (trace,), _, grid = record(rvt(mixer, num_steps=4), images)
    maps = [token_norm_map(tokens, grid) for tokens in trace.reconstructions]
    assert [m.shape for m in maps] == [(2, 5, 7)] * 5
    expected = trace.reconstructions[3][1].norm(dim=-1).reshape(5, 7)
    torch.testing.assert_close(maps[3][1], expected)
    assert (maps[0] - maps[4]).abs().max() > 1e-3


def test_prefix_tokens_are_in_no_map(images):
    network = create_model(
        'deit_convstem_tiny',
        mixer='vars_d',
        img_size=64,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=3,
    ).eval()
    (trace,), mixer, grid = record(network, images, 1)
    assert trace.reconstructions[0].shape == (2, 36, 24)
    (dynamic,) = atom_sets(trace, mixer, grid)
    assert dynamic.maps.shape == (2, 24, 5, 7)


def test_the_codes_of_the_two_passes_differ(images):
    network = create_model(
        'absvit_tiny_patch16',
        mixer='vars_d',
        img_size=64,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=0,
    ).eval()
    with torch.no_grad():
        for parameter in network.feedback.parameters():
            parameter.mul_(20)
    (first, second), _, _ = record(network, images, 1, alpha=10.0)
    assert first.codes[-1].shape == (2, 2, 24, 12)
    assert (first.codes[-1] - second.codes[-1]).abs().max() > 1e-3


def test_the_energy_is_that_of_the_equation(images):
    (trace,), _, _ = record(rvt('vars_d'), images)
    shares = energy_shares(trace, 0.3)
    signal = trace.signal.unflatten(2, (2, -1)).transpose(1, 2)
    for code, share in zip(trace.codes, shares, strict=True):
        exact = energy(trace.atoms, code, signal, 0.3).sum(dim=(1, 2))
        torch.testing.assert_close(share, exact / signal.square().sum(dim=(1, 2, 3)) * 2)
    nothing = SparseTrace(
        (torch.zeros_like(trace.codes[0]),),
        (torch.zeros_like(trace.signal),),
        trace.signal,
        trace.atoms,
    )
    assert energy_shares(nothing, 0.3).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize('mixer', VARS)
def test_the_energy_falls_where_the_steps_are_those_of_the_equation(mixer, images):
    (trace,), attention, grid = record(rvt(mixer, preset='thesis', num_steps=6), images)
    shares = energy_shares(trace, sparsity_weight(attention, grid))
    assert (shares.diff(dim=0) <= 1e-6).all() and (shares[0] - shares[-1] > 1e-3).all()


def test_the_weight_of_sparsity_has_its_learned_scale_and_that_of_the_grid():
    mixer, grid = rvt('vars_d', scale_aware_sparsity=True).blocks[0].attn, TokenGrid(8, 12)
    with torch.no_grad():
        mixer.sparsity_scale.fill_(3.0)
    assert sparsity_weight(mixer, grid) == pytest.approx(0.3 * 3 * 2)  # 4 times the tokens of 4x6
    assert sparsity_weight(rvt('vars_s').blocks[0].attn, grid) == 0.3


def test_zeros_and_nearly_zeros_are_counted_for_each_image():
    code = torch.tensor([[0.0, 0.5, -0.01, 1.0], [0.0, 0.0, 0.0, -2.0]])
    assert near_zero_share(code).tolist() == [0.5, 0.75]
    assert near_zero_share(code, tolerance=0).tolist() == [0.25, 0.75]
    assert near_zero_share(torch.zeros(1, 4)).tolist() == [1.0]


def test_atoms_are_shared_out_by_the_energy_of_their_codes(images):
    (trace,), mixer, grid = record(rvt('vars_sd'), images)
    dynamic, static = atom_sets(trace, mixer, grid)
    assert (dynamic.kind, static.kind) == ('dynamic', 'static')
    assert dynamic.on_image and static.on_image and atom_counts(mixer) == {'head': (2, 24)}
    part = (trace.atoms[0, 1, :, 30:31] @ trace.codes[-1][0, 1, 30:31]).square().sum()
    whole = sum(
        (trace.atoms[0, h, :, m : m + 1] @ trace.codes[-1][0, h, m : m + 1]).square().sum()
        for h in range(2)
        for m in range(48)
    )
    torch.testing.assert_close(static.shares[1, 6], part / whole)
    torch.testing.assert_close(dynamic.maps[0, 3].flatten(), trace.atoms[0, 0, :, 3])
    torch.testing.assert_close(static.maps[0, 3].flatten(), trace.atoms[0, 0, :, 27])


@pytest.mark.parametrize('mixer', ['vars_d', 'vars_sd'])
def test_atoms_of_the_release_have_unit_length(mixer, images):
    """Masks are positive (Figures A.2 to A.4); static atoms are free vectors."""
    (trace,), attention, grid = record(rvt(mixer), images, 1)
    torch.testing.assert_close(trace.atoms.norm(dim=-2), torch.ones(2, 2, atom_count(attention)))
    dynamic, *static = atom_sets(trace, attention, grid)
    assert (dynamic.maps > 0).all() and all((each.maps < 0).any() for each in static)


def atom_count(mixer) -> int:
    return mixer.atom_sets * mixer.random_features.shape[-1]


def test_rows_of_the_performer_are_sums_of_its_atoms():
    """Out is Phi(Q) times the code (Eq. 2.2), so an attention row is a sum of columns of Phi(K)."""
    mixer = build_mixer('performer', 24, 2, (5, 8), feature_ratio=1.0)
    x = torch.randn(1, 40, 24)
    trace = key_trace(mixer, x)
    atoms = trace.atoms.double()
    rows = mixer.attention_probabilities(x).transpose(-2, -1).double()
    weights = torch.linalg.lstsq(atoms, rows).solution
    torch.testing.assert_close(atoms @ weights, rows, rtol=0, atol=1e-6)
    torch.testing.assert_close(trace.atoms.norm(dim=-2), torch.ones(1, 2, 12))
    _, values = mixer.keys_values(x)
    torch.testing.assert_close(trace.codes[0], trace.atoms.transpose(-2, -1) @ values)


def test_atoms_of_softmax_attention_are_features_of_its_keys():
    mixer, x = build_mixer('self_attention', 24, 2, (5, 8)), 30 * torch.randn(1, 40, 24)
    trace = key_trace(mixer, x)
    keys = mixer.qkv(x)[0, :, 24:48].unflatten(1, (2, 12)).transpose(0, 1).double()
    drawn = torch.randn(
        (2, 12, 64), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    exponent = keys @ drawn / 12**0.25 - keys.square().sum(-1, keepdim=True) / 2 / 12**0.5
    expected = (exponent - exponent.amax(dim=1, keepdim=True)).exp()  # of keys that are long
    expected = expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(trace.atoms[0].double(), expected, rtol=1e-4, atol=1e-6)
    assert exponent.max() < -90  # which float32 does not have


@pytest.mark.parametrize(
    'mixer,options,kinds',
    [
        ('vars_d', {}, ['dynamic']),
        ('vars_sd', {}, ['dynamic', 'static']),
        ('vars_s', {}, ['static']),
        ('vars_sd', dict(preset='thesis'), ['dynamic', 'static']),
    ],
)
def test_shares_of_all_atoms_sum_to_one(mixer, options, kinds, images):
    (trace,), attention, grid = record(rvt(mixer, **options), images)
    sets = atom_sets(trace, attention, grid)
    assert [s.kind for s in sets] == kinds
    torch.testing.assert_close(sum(s.shares.sum() for s in sets), torch.tensor(1.0))
    counts = atom_counts(attention)
    assert [tuple(s.shares.shape) for s in sets] == [
        counts['head' if s.on_image else 'channel'] for s in sets
    ]
    assert all(s.maps.shape == (*s.shares.shape, 5, 7) for s in sets)


@pytest.mark.parametrize('mixer,options', [('vars_s', {}), ('vars_sd', dict(preset='thesis'))])
def test_a_filter_alone_has_the_whole_share(mixer, options, images):
    (trace,), attention, grid = record(rvt(mixer, **options), images)
    last = torch.zeros_like(trace.codes[-1])
    if mixer == 'vars_s':
        last[0, 7, 1, 2, 3] = 1.0
    else:  # channel 7 is the eighth of the first head; filter 1, row 2, column 3
        last[0, 0, trace.atoms.shape[-1] + 35 + 2 * 7 + 3, 7] = 1.0
    *_, static = atom_sets(trace._replace(codes=(last,)), attention, grid)
    assert most_used_atoms(static.shares, 1) == [(7, 1, 1.0)]


@pytest.mark.parametrize('size', [(5, 6), (4, 7)])
def test_a_template_is_what_one_entry_of_the_code_adds(size):
    height, width = size
    spectra = torch.randn(2, 3, height, width // 2 + 1, 2)
    templates = spatial_atoms(spectra, width)
    assert templates.shape == (2, 3, height, width)
    code = torch.zeros(2, 3, height, width)
    code[1, 2, height // 2, width // 2] = 1.0  # in the middle, where a template has its origin
    products = times(to_spectrum(code), conjugate(as_complex(spectra)))
    decoded = from_spectrum(products, size).sum(dim=1)  # P u, as VARS-S computes it
    torch.testing.assert_close(decoded[1], templates[1, 2])


def test_nothing_is_shared_out_where_the_code_is_zero(images):
    (trace,), attention, grid = record(rvt('vars_s', sparsity=1e3), images)
    (static,) = atom_sets(trace, attention, grid)
    assert not static.shares.any()
    assert energy_shares(trace, 1e3).tolist() == [[1.0, 1.0]] * 4


def test_the_most_used_atoms_come_first():
    shares = torch.tensor([[0.1, 0.3, 0.05], [0.2, 0.15, 0.2]])
    assert [use[:2] for use in most_used_atoms(shares, 4)] == [(0, 1), (1, 0), (1, 2), (1, 1)]
    uses = most_used_atoms(shares, 2, group=1)
    assert [use[:2] for use in uses] == [(1, 0), (1, 2)]
    assert uses[0][2] == pytest.approx(0.2)
