"""Sparse codes seen from outside: the recorder, the maps, the atoms and the numbers."""

import pytest
import torch

from mmvars.analysis import (SparseCodeRecorder, atom_counts, atom_sets, energy_shares,
                             most_used_atoms, near_zero_share, sparsity_weight, spatial_atoms,
                             step_maps)
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.layers.dictionaries import SpectralDictionary
from mmvars.layers.sparse_coding import SparseTrace, energy
from mmvars.layers.spectral import as_complex
from mmvars.networks import build_network

RVT = dict(img_size=(64, 96), embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4), num_classes=3)
VARS = ['vars_d', 'vars_sd', 'vars_s']
THESIS_SD = dict(preset='thesis', static_atoms='convolution')


def rvt(mixer, **options):
    torch.manual_seed(0)
    if mixer == 'vars_s':  # the release's 3.5 leaves no code at these widths
        options = dict(sparsity=.3) | options
    return build_network('rvt_tiny', mixer=mixer, mixer_options=options, **RVT).eval()


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.randn(2, 3, 70, 100)  # a 5x7 grid, then 3x4


def record(network, images, layer=0):
    with torch.no_grad(), SparseCodeRecorder(network, layer) as recorder:
        network(images)
    return recorder


@pytest.mark.parametrize('mixer', ['vars_d', 'vars_sd'])
def test_the_last_reconstruction_is_what_the_block_hands_on(mixer, images):
    network, outputs = rvt(mixer), []
    network.trunk.blocks[2].attn.register_forward_hook(lambda m, a, out: outputs.append(out))
    recorder = record(network, images, 2)
    trace, = recorder.traces
    assert recorder.grid == TokenGrid(3, 4) and len(outputs) == 1
    torch.testing.assert_close(recorder.mixer.proj(trace.reconstructions[-1]), outputs[0])


@pytest.mark.parametrize('mixer', VARS)
def test_there_is_a_map_for_the_start_and_each_step(mixer, images):
    recorder = record(rvt(mixer, num_steps=4), images)
    maps = step_maps(recorder.traces[0], recorder.grid)
    assert [m.shape for m in maps] == [(2, 5, 7)] * 5
    expected = recorder.traces[0].reconstructions[3][1].norm(dim=-1).reshape(5, 7)
    torch.testing.assert_close(maps[3][1], expected)
    assert (maps[0] - maps[4]).abs().max() > 1e-3


def test_prefix_tokens_are_in_no_map(images):
    network = build_network('deit_convstem_tiny', mixer='vars_d', img_size=64, embed_dim=24,
                            depth=2, num_heads=2, num_classes=3).eval()
    recorder = record(network, images, 1)
    norms = recorder.traces[0].reconstructions[0].norm(dim=-1)
    assert norms.shape == (2, 36)
    torch.testing.assert_close(step_maps(recorder.traces[0], recorder.grid)[0].flatten(1),
                               norms[:, 1:])
    dynamic, = atom_sets(recorder.traces[0], recorder.mixer, recorder.grid)
    assert dynamic.maps.shape == (2, 24, 5, 7)


def test_both_passes_are_recorded_and_a_new_forward_starts_afresh(images):
    network = build_network('absvit_tiny_patch16', mixer='vars_d', img_size=64, embed_dim=24,
                            depth=2, num_heads=2, num_classes=0).eval()
    with torch.no_grad():
        for parameter in network.feedback.parameters():
            parameter.mul_(20)
        with SparseCodeRecorder(network, 1) as recorder:
            network(images, alpha=10.)
            network(images[:1], alpha=10.)
    first, second = recorder.traces
    assert first.codes[-1].shape == (1, 2, 24, 12)
    assert (first.codes[-1] - second.codes[-1]).abs().max() > 1e-3


def test_the_backward_pass_of_gradient_checkpointing_is_no_second_pass(images):
    network = build_network('rvt_tiny', mixer='vars_d', **RVT, grad_checkpointing=True).train()
    with SparseCodeRecorder(network, 1) as recorder:
        network(images).final.tokens.sum().backward()
    assert len(recorder.traces) == 1


@pytest.mark.parametrize('mixer', VARS)
def test_recording_changes_no_output_and_leaves_nothing_behind(mixer, images):
    network = rvt(mixer)
    state = {name for m in network.modules() for name in vars(m)}
    with torch.no_grad():
        expected = network(images).final.tokens
        with SparseCodeRecorder(network, 1):
            recorded = network(images).final.tokens
    assert torch.equal(recorded, expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())
    assert {name for m in network.modules() for name in vars(m)} == state


def test_the_energy_is_that_of_the_equation(images):
    recorder = record(rvt('vars_d'), images)
    trace = recorder.traces[0]
    shares = energy_shares(trace, 0.3)
    signal = trace.signal.unflatten(2, (2, -1)).transpose(1, 2)
    for code, share in zip(trace.codes, shares, strict=True):
        exact = energy(trace.atoms, code, signal, 0.3).sum(dim=(1, 2))
        torch.testing.assert_close(share, exact / signal.square().sum(dim=(1, 2, 3)) * 2)
    nothing = SparseTrace((torch.zeros_like(trace.codes[0]), ),
                          (torch.zeros_like(trace.signal), ), trace.signal, trace.atoms)
    assert energy_shares(nothing, 0.3).tolist() == [[1., 1.]]


@pytest.mark.parametrize('mixer', VARS)
def test_the_energy_falls_where_the_steps_are_those_of_the_equation(mixer, images):
    options = dict(start='projection', num_steps=6, step_bound='spectral')
    if mixer != 'vars_s':
        options |= dict(shrinkage='soft')
    recorder = record(rvt(mixer, **options), images)
    shares = energy_shares(recorder.traces[0], sparsity_weight(recorder.mixer, recorder.grid))
    assert (shares.diff(dim=0) <= 1e-6).all() and (shares[0] - shares[-1] > 1e-3).all()


def test_the_weight_of_sparsity_has_its_learned_and_its_grid_s_scale():
    mixer, grid = rvt('vars_d', scale_aware_sparsity=True).trunk.blocks[0].attn, TokenGrid(8, 12)
    with torch.no_grad():
        mixer.sparsity_scale.fill_(3.)
    assert sparsity_weight(mixer, grid) == pytest.approx(0.3 * 3 * 2)  # 4 times the tokens of 4x6
    assert sparsity_weight(rvt('vars_s').trunk.blocks[0].attn, grid) == .3


def test_zeros_and_what_is_as_good_as_zero_are_counted_for_each_image():
    code = torch.tensor([[0., 0.5, -0.01, 1.], [0., 0., 0., -2.]])
    assert near_zero_share(code).tolist() == [0.5, 0.75]
    assert near_zero_share(code, tolerance=0).tolist() == [0.25, 0.75]
    assert near_zero_share(torch.zeros(1, 4)).tolist() == [1.]


def test_atoms_are_shared_out_by_the_energy_of_their_codes(images):
    recorder = record(rvt('vars_sd', normalise_atoms=False), images)
    trace = recorder.traces[0]
    dynamic, static = atom_sets(trace, recorder.mixer, recorder.grid)
    assert (dynamic.kind, static.kind) == ('dynamic', 'static')
    assert dynamic.on_image and static.on_image and atom_counts(recorder.mixer) == {'head': (2, 24)}
    part = (trace.atoms[0, 1, :, 30:31] @ trace.codes[-1][0, 1, 30:31]).square().sum()
    whole = sum((trace.atoms[0, h, :, m:m + 1] @ trace.codes[-1][0, h, m:m + 1]).square().sum()
                for h in range(2) for m in range(48))
    torch.testing.assert_close(static.shares[1, 6], part / whole)
    torch.testing.assert_close(dynamic.maps[0, 3].flatten(), trace.atoms[0, 0, :, 3])
    torch.testing.assert_close(static.maps[0, 3].flatten(), trace.atoms[0, 0, :, 27])


@pytest.mark.parametrize('mixer,options,kinds', [
    ('vars_d', {}, ['dynamic']), ('vars_sd', {}, ['dynamic', 'static']), ('vars_s', {}, ['static']),
    ('vars_sd', THESIS_SD, ['dynamic', 'static'])])
def test_shares_of_all_atoms_sum_to_one(mixer, options, kinds, images):
    recorder = record(rvt(mixer, **options), images)
    sets = atom_sets(recorder.traces[0], recorder.mixer, recorder.grid)
    assert [s.kind for s in sets] == kinds
    torch.testing.assert_close(sum(s.shares.sum() for s in sets), torch.tensor(1.))
    counts = atom_counts(recorder.mixer)
    assert [tuple(s.shares.shape) for s in sets] == \
        [counts['head' if s.on_image else 'channel'] for s in sets]
    assert all(s.maps.shape == (*s.shares.shape, 5, 7) for s in sets)


@pytest.mark.parametrize('mixer,options', [('vars_s', {}), ('vars_sd', THESIS_SD)])
def test_a_filter_s_share_is_its_own_when_it_is_used_alone(mixer, options, images):
    recorder = record(rvt(mixer, **options), images)
    trace, last = recorder.traces[0], torch.zeros_like(recorder.traces[0].codes[-1])
    if mixer == 'vars_s':
        last[0, 7, 1, 2, 3] = 1.
    else:  # channel 7 is the eighth of the first head; filter 1, row 2, column 3
        last[0, 0, trace.atoms.shape[-1] + 35 + 2 * 7 + 3, 7] = 1.
    *_, static = atom_sets(trace._replace(codes=(last, )), recorder.mixer, recorder.grid)
    assert most_used_atoms(static.shares, 1) == [(7, 1, 1.)]


def test_a_template_is_what_one_entry_of_the_code_adds():
    torch.manual_seed(0)
    spectra = torch.randn(2, 3, 5, 4, 2)
    templates = spatial_atoms(spectra, 6)
    assert templates.shape == (2, 3, 5, 6)
    code = torch.zeros(1, 2, 3, 5, 6)
    code[0, 1, 2, 2, 3] = 1.  # in the middle, where a template has its origin
    decoded = SpectralDictionary(as_complex(spectra), (5, 6)).decode(code)
    torch.testing.assert_close(decoded[0, 1], templates[1, 2])


def test_nothing_is_shared_out_where_the_code_is_zero(images):
    recorder = record(rvt('vars_s', sparsity=1e3), images)
    static, = atom_sets(recorder.traces[0], recorder.mixer, recorder.grid)
    assert not static.shares.any()
    assert energy_shares(recorder.traces[0], 1e3).tolist() == [[1., 1.]] * 4


def test_the_most_used_atoms_come_first():
    shares = torch.tensor([[.1, .3, .05], [.2, .15, .2]])
    assert [(use.group, use.atom) for use in most_used_atoms(shares, 4)] == \
        [(0, 1), (1, 0), (1, 2), (1, 1)]
    uses = most_used_atoms(shares, 2, group=1)
    assert [(use.group, use.atom) for use in uses] == [(1, 0), (1, 2)]
    assert uses[0].share == pytest.approx(.2)


@pytest.mark.parametrize('name,mixer,message', [
    ('rvt_tiny', 'self_attention', 'block 1 mixes tokens with SelfAttention, which is a single'),
    ('rvt_tiny', 'performer', 'Performer'), ('gfnet_tiny', None, 'GlobalFilter.* no sparse code')])
def test_a_mixer_without_codes_is_refused_with_the_reason(name, mixer, message):
    sizes = RVT if name == 'rvt_tiny' else dict(img_size=64, embed_dim=24, depth=2, num_classes=3)
    with pytest.raises(InputError, match=message + '.*vars_s, vars_d or vars_sd'):
        SparseCodeRecorder(build_network(name, mixer=mixer, **sizes), 1)


def test_a_layer_that_does_not_exist_is_refused():
    with pytest.raises(InputError, match='layer must be .* 0 to 2 .* got 3'):
        SparseCodeRecorder(rvt('vars_d'), 3)
