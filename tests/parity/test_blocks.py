"""Single blocks of the released RVT, Performer and VARS models on their real grids."""

import pytest
import torch

from mmvars.layers import TokenGrid, build_block, build_mixer
from mmvars.layers.vars_static import lipschitz_estimate, normalized_filters

MIXERS = {
    'selfatt': 'self_attention',
    'perf': 'performer',
    'vars_d': 'vars_d',
    'vars_sd': 'vars_sd',
    'vars_s': 'vars_s',
    'rvtplus_mask': 'masked_attention',
}
NAMES = {
    'rand_matrix': 'random_features',
    'learned_k': 'gram_modulation',
    'learned_lam': 'sparsity_scale',
    'learned_L': 'step_scale',
    'kernel': 'static_atoms',
    'att_mask': 'attention_mask',
}
SPECTRAL = {'kernel': 'attn.dictionary', 'kernel2': 'attn.output_filter', 'L': 'attn.lipschitz'}


def close(result, expected, tolerance=2e-5):
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def our_name(key: str, mixer: str) -> str | None:
    """Our key of a released block's tensor; ``None`` for the dead ones."""
    if key in ('kernel_norm', 'attn.L'):
        return None
    if mixer == 'vars_s':
        if key.startswith('norm1.'):
            return key.replace('norm1.', 'attn.norm.')
        if key.startswith(('v.', 'proj.')):
            return 'attn.' + key.replace('v.', 'value.')
        return SPECTRAL.get(key, key)
    part, _, rest = key.partition('.')
    if part != 'attn':
        return key
    if mixer in ('vars_d', 'vars_sd'):
        rest = rest.replace('qkv.', 'qv.')
    return 'attn.' + NAMES.get(rest, rest)


@pytest.fixture(params=[*(f'block14_{name}' for name in MIXERS), 'block7_vars_s'])
def block(request, golden):
    """A recorded block as ours, with its grid and its record."""
    record = golden(request.param)
    hyper = record['meta']['hyper']
    grid = (hyper['grid'], hyper['grid'])
    name = MIXERS[request.param.split('_', 1)[1]]
    mixer = build_mixer(name, hyper['dim'], hyper['num_heads'], grid)
    ours = build_block(mixer, hyper['dim'], hyper['mlp_ratio'], 'conv', norm_eps=hyper['norm_eps'])
    state = {our_name(key, name): value for key, value in record['state_dict'].items()}
    state.pop(None, None)
    for key in ('attn.dictionary', 'attn.output_filter'):
        if key in state:
            value = state[key].squeeze(2 if key.endswith('dictionary') else 1)
            state[key] = value.squeeze(1) if key.endswith('filter') else value
    ours.load_state_dict(state, strict=True)
    return ours.eval(), TokenGrid(*grid), record


def test_output(block):
    ours, grid, record = block
    with torch.no_grad():
        close(ours(record['inputs']['tokens'], grid), record['outputs']['out'])


def test_parts(block):
    ours, grid, record = block
    outputs, compared = record['outputs'], 0
    with torch.no_grad():
        normed = ours.norm1(record['inputs']['tokens'])
        if 'attn.in' in outputs:
            close(normed, outputs['attn.in'])
            close(ours.attn(outputs['attn.in'], grid), outputs['attn.out'])
            compared += 1
        if 'code' in outputs:
            code = ours.attn.trace(normed, grid).codes[-1]
            if code.ndim == 5:  # (B, C, r, H, W), recorded as (B, C r, N)
                code = code.flatten(1, 2).flatten(2)
            close(code, outputs['code'])
            compared += 1
    assert compared


def test_step_bound_and_normalized_filters(block):
    ours, grid, record = block
    if 'L_after_update_0.1' not in record['outputs']:
        assert 'kernel' not in record['state_dict']
        return
    filters = normalized_filters(ours.attn.dictionary, grid[:2])
    close(filters, record['outputs']['kernel_normalised'].squeeze(2))
    before = ours.attn.lipschitz.clone()
    ours.attn.update_lipschitz(rate=0.1)
    close(ours.attn.lipschitz, record['outputs']['L_after_update_0.1'])
    ours.attn.update_lipschitz(rate=1.0)
    torch.testing.assert_close(ours.attn.lipschitz, lipschitz_estimate(ours.attn.dictionary))
    assert not torch.equal(before, ours.attn.lipschitz)
