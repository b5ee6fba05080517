"""RVT, DeiT* and GFNet with every mixer; the numbers themselves are held by tests/parity."""

import pytest
import torch

from mmvars.errors import InputError
from mmvars.layers import MIXERS, PRESETS
from mmvars.networks import ARCH_ZOO, create_model

PARAMETERS = {  # counted from the released models: all that is trained
    ('rvt_tiny', None): 8_646_376,
    ('rvt_small', None): 22_148_392,
    ('rvt_base', None): 86_223_784,
    ('rvt_tiny_plus', None): 10_951_336,
    ('rvt_small_plus', None): 23_300_872,
    ('rvt_base_plus', None): 88_528_744,
    ('gfnet_tiny', None): 7_511_784,
    ('rvt_tiny', 'performer'): 8_646_376,
}
RELEASED_TOTALS = {  # trained and frozen tensors together, in millions (variants of Table 1.2)
    ('rvt_tiny', 'vars_d'): 8.201,
    ('rvt_tiny', 'vars_sd'): 9.177,
    ('rvt_tiny', 'vars_s'): 10.155,
    ('rvt_small', 'vars_d'): 21.161,
    ('rvt_base', 'vars_sd'): 84.716,
}
SMALL = {
    'rvt_tiny': dict(embed_dim=(24, 48), depth=(2, 1), num_heads=(2, 4)),
    'deit_convstem_tiny': dict(embed_dim=24, depth=2, num_heads=2),
    'vit_tiny_patch16': dict(embed_dim=24, depth=2, num_heads=2),
    'gfnet_tiny': dict(embed_dim=24, depth=2, num_heads=2),
}
DYNAMIC = ('performer', 'vars_d', 'vars_sd')
CELLS = [
    (trunk, mixer)
    for trunk, mixers in {
        'rvt_tiny': ('self_attention', 'vars_s', *DYNAMIC, 'masked_attention'),
        'deit_convstem_tiny': ('self_attention', 'vars_s', *DYNAMIC),
        'vit_tiny_patch16': ('self_attention', *DYNAMIC),
        'gfnet_tiny': ('global_filter', 'vars_s', *DYNAMIC),
    }.items()
    for mixer in mixers
]


def small(trunk, mixer=None, **options):
    return create_model(
        trunk, mixer=mixer, **dict(img_size=64, num_classes=5) | SMALL[trunk] | options
    )


@pytest.mark.parametrize(('name', 'mixer'), PARAMETERS)
def test_number_of_parameters(name, mixer):
    with torch.device('meta'):
        network = create_model(name, mixer=mixer)
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name, mixer]


@pytest.mark.parametrize(('name', 'mixer'), RELEASED_TOTALS)
def test_number_of_all_released_numbers(name, mixer):
    with torch.device('meta'):
        network = create_model(name, mixer=mixer)
    frozen = sum(
        b.numel()
        for key, b in network.named_buffers()
        if key.endswith(('random_features', 'lipschitz'))
    )
    count = sum(p.numel() for p in network.parameters()) + frozen
    assert count / 1e6 == pytest.approx(RELEASED_TOTALS[name, mixer], abs=6e-4)


@pytest.mark.parametrize(('trunk', 'mixer'), CELLS)
def test_every_cell_runs_forward_and_backward_at_any_size(trunk, mixer):
    # The first block of an untrained RVT codes nothing with the release's sparsity of 3.5.
    mixer_cfg = dict(sparsity=0.1) if mixer == 'vars_s' else {}
    network = small(trunk, mixer, mixer_cfg=mixer_cfg)
    for size in ((64, 64), (50, 100)):
        network.zero_grad()
        output = network(torch.randn(2, 3, *size), out_indices=(0, 1))
        network.forward_head(output).square().sum().backward()
        for name, parameter in network.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
            assert parameter.grad.abs().max() > 0, name
        assert [g.num_patches + g.num_prefix for g in output.grids] == [
            t.shape[1] for t in output.intermediates
        ]


@pytest.mark.parametrize(
    ('trunk', 'mixer'),
    [
        ('rvt_tiny', 'vars_d'),
        ('gfnet_tiny', 'vars_s'),
        ('rvt_tiny', 'vars_sd'),
        ('deit_convstem_tiny', 'vars_sd'),
    ],
)
def test_the_thesis_preset_runs_in_a_trunk(trunk, mixer):
    network = small(trunk, mixer, mixer_cfg=dict(preset='thesis'))
    network.forward_head(network(torch.randn(2, 3, 48, 80))).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert network.mixer_cfg['num_steps'] == 3


def test_the_matrix_is_as_large_as_it_should_be():
    assert len(set(CELLS)) == 20
    assert {mixer for _, mixer in CELLS} <= set(MIXERS)
    assert set(PRESETS) == {'release', 'thesis'}


@pytest.mark.parametrize(
    ('trunk', 'mixer', 'reason'),
    [
        ('rvt_tiny', 'global_filter', 'single skip connection'),
        ('gfnet_tiny', 'self_attention', 'linear in the number of tokens'),
        ('gfnet_tiny', 'masked_attention', "RVT's maps"),
        ('vit_tiny_patch16', 'vars_s', 'such as rvt_tiny or deit_convstem_tiny'),
        ('deit_convstem_tiny', 'global_filter', 'single skip connection'),
        ('rvt_tiny_plus', 'vars_d', 'position-aware mask'),
        ('rvt_tiny', 'vars', 'vars_sd'),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_reason(trunk, mixer, reason):
    with pytest.raises(InputError, match=reason) as error:
        create_model(trunk, mixer=mixer)
    assert mixer in str(error.value)


@pytest.mark.parametrize(
    'arguments',
    [
        dict(embed_dim=(24, 48), depth=2),
        dict(embed_dim=(24, 40), depth=(1, 1), num_heads=(2, 4)),
        dict(num_masked_blocks=11),
        dict(mlp='convolutional'),
        dict(patch_size=8),
        dict(drop_path_rate=1),
        dict(img_size=8),
    ],
)
def test_rvt_refuses_what_it_cannot_build(arguments):
    with pytest.raises(InputError):
        create_model('rvt_tiny', **arguments)


def test_deit_with_vars_s_has_no_class_token_and_a_square_of_positions():
    trunk = small('deit_convstem_tiny', 'vars_s')
    assert trunk.cls_token is None and trunk.pos_embed.shape == (1, 16, 24)
    with pytest.raises(InputError, match='global_pool'):
        small('deit_convstem_tiny', 'vars_d', class_token=False)


@pytest.mark.parametrize('trunk', ['deit_convstem_tiny', 'gfnet_tiny'])
def test_vars_s_outside_of_rvt_starts_alive(trunk):
    network = small(trunk, 'vars_s')
    network.forward_head(network(torch.randn(2, 3, 64, 64))).square().sum().backward()
    assert all(block.attn.dictionary.grad.abs().max() > 0 for block in network.blocks)
    dead = small(trunk, 'vars_s', mixer_cfg=dict(preset='release'))
    dead.forward_head(dead(torch.randn(2, 3, 64, 64))).square().sum().backward()
    assert not any(block.attn.dictionary.grad.any() for block in dead.blocks)


def test_stages_halve_the_grid_and_change_the_width():
    network = small('rvt_tiny')
    output = network(torch.randn(1, 3, 80, 112), out_indices=(0, 1, 2))
    assert [tuple(g[:2]) for g in output.grids] == [(5, 7), (5, 7), (3, 4)]
    assert [t.shape[2] for t in output.intermediates] == [24, 24, 48]
    assert network.widths == (24, 24, 48) and network.strides == (16, 16, 32)
    assert len(network.blocks) == network.depth == 3


def test_every_parameter_of_a_trunk_has_its_block():
    trunk = create_model('rvt_tiny')
    layers = {trunk.layer_id(name) for name, _ in trunk.named_parameters()}
    assert layers == {None, *range(12)}
    assert trunk.layer_id('pools.0.conv.weight') == 10
    assert trunk.stage_modules(10) == [trunk.pools[0], trunk.stages[1].blocks[0]]


@pytest.mark.parametrize('mixer', ['performer', 'vars_s'])
def test_recomputed_blocks_count_a_batch_once(mixer):
    plain, twin = small('rvt_tiny', mixer), small('rvt_tiny', mixer, grad_checkpointing=True)
    twin.load_state_dict(plain.state_dict())
    images = torch.randn(3, 3, 64, 64)
    for network in (plain, twin):
        network.forward_head(network(images)).square().sum().backward()
    for (name, a), b in zip(plain.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)
    for (name, a), b in zip(plain.named_parameters(), twin.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b[1].grad, msg=name)


def test_all_names_build():
    with torch.device('meta'):
        for name in ARCH_ZOO:
            network = create_model(name)
            assert network.mixer in MIXERS
            assert isinstance(network, ARCH_ZOO[name][0])
