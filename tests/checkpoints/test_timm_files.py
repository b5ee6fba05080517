"""Published files in trunks of timm: by timm's own rules, strictly, and never by torch.load."""

import functools

import pytest
import torch
from torch import nn

from mmvars.checkpoints import CheckpointError, load_pretrained, load_timm_weights
from mmvars.checkpoints.report import Status
from mmvars.errors import InputError
from mmvars.networks import create_model

timm = pytest.importorskip('timm')
SIZE = dict(img_size=64, patch_size=16, embed_dim=24, depth=2, num_heads=3, num_classes=0)
DINOV3 = dict(
    use_abs_pos_emb=False, use_rot_pos_emb=True, num_reg_tokens=2, qkv_bias=True, init_values=1.0
)
HEADS = {'head.mlp.0.weight': torch.ones(2, 2)}
IMAGES = torch.randn(2, 3, 64, 64)


def _random_(module):
    with torch.no_grad():
        for parameter in module.parameters():
            nn.init.normal_(parameter, mean=0.05, std=0.2)
    module.eval()
    return module


def _network(family='vision_transformer', **arguments):
    from timm.models import eva, vision_transformer

    kind = eva.Eva if family == 'eva' else vision_transformer.VisionTransformer
    return _random_(kind(**SIZE | dict(dynamic_img_size=True, dynamic_img_pad=True) | arguments))


def _trunk(*args, **arguments):
    from mmvars.networks.timm_trunk import TimmTrunk

    return TimmTrunk(_network(*args, **arguments), 'timm/tiny')


@pytest.fixture
def saved(tmp_path):
    def save(content):
        torch.save(content, tmp_path / 'file.pth')
        return tmp_path / 'file.pth'

    return save


def _assert_same(trunk, model, images=IMAGES):
    with torch.no_grad():
        expected, found = model.forward_features(images), trunk(images).tokens
    assert expected.std(dim=0).max() > 1e-2 * expected.abs().max()
    assert torch.equal(found, expected)


def _renamed(state, *pairs):
    for old, new in pairs:
        state = {key.replace(old, new): value for key, value in state.items()}
    return state


def _prefixed(prefix, state):
    return {prefix + key: value for key, value in state.items()}


PUBLISHED = {
    'timm': lambda state: state,
    'DINO': lambda state: dict(
        teacher=_prefixed('backbone.', state) | HEADS,
        student=_prefixed('module.backbone.', state),
        epoch=3,
    ),
    'DINOv2': lambda state: state | dict(mask_token=torch.zeros(1, 24)),
    'DeiT III': lambda state: dict(
        model=_renamed(state, ('ls1.gamma', 'gamma_1'), ('ls2.gamma', 'gamma_2'))
    ),
    'DINOv2 in training': lambda state: dict(
        teacher=_prefixed('backbone.', _renamed(state, ('blocks.', 'blocks.0.')))
    ),
    'Lightning': lambda state: dict(
        state_dict=_prefixed('net.', state) | {'criterion.weight': torch.ones(1)}, callbacks={}
    ),
    'OpenCLIP': lambda state: (
        _prefixed('visual.trunk.', state) | {'text.positional_embedding': torch.ones(2, 2)}
    ),
    'FSDP': lambda state: dict(model=_prefixed('module._orig_mod.', state), optimizer={}),
}


@pytest.mark.parametrize('form', PUBLISHED)
def test_published_forms(saved, form):
    model, trunk = _network(init_values=1.0), _trunk(init_values=1.0)
    report = load_timm_weights(trunk, saved(PUBLISHED[form](model.state_dict())))
    _assert_same(trunk, model)
    assert len(report.of(Status.USED)) == len(model.state_dict())
    told = {entry.source for entry in report.entries}
    assert 'timm/tiny' in report.title
    if form == 'DINO':
        assert 'head.mlp.0.weight' in told
        assert any("after 'backbone.'" in remark for remark in report.remarks)


def test_registers_of_dinov2(saved):
    """Published with a position for the class token, which timm adds to the token itself."""
    model = _network(reg_tokens=2, no_embed_class=True)
    trunk, position = _trunk(reg_tokens=2, no_embed_class=True), torch.randn(1, 1, 24)
    state = _renamed(model.state_dict(), ('reg_token', 'register_tokens'))
    state['cls_token'] = state['cls_token'] - position
    state['pos_embed'] = torch.cat([position, state['pos_embed']], dim=1)
    report = load_timm_weights(trunk, saved(state | dict(mask_token=torch.zeros(1, 24))))
    with torch.no_grad():
        torch.testing.assert_close(trunk(IMAGES).tokens, model.forward_features(IMAGES))
    notes = {entry.source: entry.note for entry in report.of(Status.USED)}
    assert notes['cls_token'] == notes['pos_embed'] == 'adapted by timm'
    assert [entry.source for entry in report.of(Status.IGNORED)] == ['mask_token']


def test_names_of_dinov3(saved, capsys):
    model, trunk = _network('eva', **DINOV3), _trunk('eva', **DINOV3)
    for block in model.blocks:
        nn.init.zeros_(block.attn.k_bias)
    state = _renamed(
        model.state_dict(),
        ('reg_token', 'storage_tokens'),
        ('gamma_1', 'ls1.gamma'),
        ('gamma_2', 'ls2.gamma'),
    )
    for i in range(2):
        q_bias, v_bias = (state.pop(f'blocks.{i}.attn.{each}_bias') for each in 'qv')
        state[f'blocks.{i}.attn.qkv.bias'] = torch.cat([q_bias, torch.ones(24), v_bias])
    state['rope_embed.periods'] = torch.ones(4)
    load_timm_weights(trunk, saved(state))
    _assert_same(trunk, model)
    assert not capsys.readouterr().out


@pytest.mark.slow
def test_sizes_and_channels_are_adapted_as_timm_does(saved):
    """The oracle is timm's own loading of the same state dict."""
    state = timm.create_model('vit_tiny_patch16_224').state_dict()
    expected = timm.create_model(
        'vit_tiny_patch16_224',
        pretrained=True,
        pretrained_cfg_overlay=dict(state_dict=dict(state)),
        img_size=(64, 96),
        in_chans=1,
        num_classes=5,
    ).state_dict()
    trunk = create_model(
        'timm/vit_tiny_patch16_224',
        pretrained=saved(state),
        img_size=(64, 96),
        in_chans=1,
        num_classes=5,
    )
    found = trunk.model.state_dict()
    assert found.keys() == expected.keys()
    different = [key for key in expected if not torch.equal(found[key], expected[key])]
    assert different == ['head.weight']  # new in both


def test_what_the_network_has_no_place_for_is_said(saved):
    state = _network(num_classes=7).state_dict() | {'attn_pool.latent': torch.ones(1, 1, 24)}
    trunk = _trunk()
    trunk.model.blocks = trunk.model.blocks[:1]
    report = load_timm_weights(trunk, saved(state))
    notes = {entry.note for entry in report.of(Status.IGNORED)}
    assert notes == {
        'classifier of other classes than the network has',
        'attention pooling, which the network does not have',
        'beyond the first 1 blocks',
    }
    with pytest.raises(CheckpointError, match=r'UNEXPECTED(?s:.*)blocks\.1\.norm1\.weight'):
        load_timm_weights(_trunk(depth=1), saved(state))  # which is the whole network


def test_all_problems_are_listed_at_once_and_nothing_changes(saved):
    state, trunk = _network().state_dict(), _trunk()
    before = {key: value.clone() for key, value in trunk.state_dict().items()}
    del state['norm.weight']
    state |= {'blocks.0.norm1.bias': torch.ones(25), 'extra': torch.ones(1)}
    with pytest.raises(CheckpointError, match='network that arch names') as caught:
        load_timm_weights(trunk, saved(state))
    for problem in ('norm.weight', 'blocks.0.norm1.bias', '25 -> 24', 'extra', 'file.pth', 'tiny'):
        assert problem in str(caught.value)
    state['norm.bias'] = torch.full((24,), torch.nan)
    with pytest.raises(CheckpointError, match='norm.bias.*24 NaN'):
        load_timm_weights(trunk, saved(state))
    assert all(torch.equal(value, before[key]) for key, value in trunk.state_dict().items())


def test_a_file_on_which_timm_fails(saved):
    state = _network(reg_tokens=2, no_embed_class=True).state_dict()
    with pytest.raises(InputError, match='checkpoint_filter_fn of VisionTransformer fails .*arch'):
        load_timm_weights(_trunk(), saved(state | {'pos_embed': torch.ones(3)}))


def test_no_code_of_a_file_runs(saved, payload):
    with pytest.raises(InputError, match='file.pth'):
        load_timm_weights(_trunk(), saved(dict(model=payload)))
    assert not payload.trace.exists()


@pytest.mark.parametrize('side', [64, 96])
def test_own_checkpoints_of_such_networks(saved, side):
    """Positions of another size are resampled by timm; the rest is as in the file."""
    build = functools.partial(
        create_model, 'timm/vit_tiny_patch16_224', 'absvit', num_classes=0, depth=1
    )
    donor, network = build(img_size=64), build(img_size=side)
    for each in (donor, network):
        each.trunk.add_prompts(2)  # which are no part of timm's network
    _random_(donor)
    path = saved(dict(state_dict=_prefixed('backbone.network.', donor.state_dict()), meta={}))
    load_pretrained(network, path)
    found = network.state_dict()
    different = [key for key in found if not torch.equal(found[key], donor.state_dict()[key])]
    assert different == ([] if side == 64 else ['trunk.model.pos_embed'])
    if side != 64:
        assert found['trunk.model.pos_embed'].shape == (1, 37, 192)


@pytest.mark.parametrize('by', [torch.nn.Module.load_state_dict, load_pretrained])
def test_a_file_without_whitening_has_the_identity(saved, by):
    """Whole files of this version's first runs, for each of the loaders."""
    network = create_model('timm/vit_tiny_patch16_224', 'absvit', num_classes=0, depth=1)
    nn.init.normal_(network.prior.whitening)
    state = {key: value + 1 for key, value in network.state_dict().items()}
    del state['prior.whitening']
    by(network, state if by is not load_pretrained else saved(state))
    assert torch.equal(network.prior.center, state['prior.center'])
    assert torch.equal(network.prior.whitening, torch.eye(192))


def test_a_published_file_as_init_cfg(saved):
    model = timm.create_model('vit_tiny_patch16_224', num_classes=0)
    network = create_model('timm/vit_tiny_patch16_224', 'absvit', num_classes=0)
    path = saved(model.state_dict())
    with pytest.raises(CheckpointError, match='MISSING(?s:.*)prior.query'):
        load_pretrained(network, path)
    load_pretrained(network, path, allow_new=('prior', 'feedback'))
    assert torch.equal(network.trunk.model.pos_embed, model.pos_embed)


def test_weights_that_cannot_be_had(monkeypatch):
    """The download itself would retry for a minute before it says so."""
    import huggingface_hub

    def refuse():
        raise OSError('no route to host')

    monkeypatch.setattr(huggingface_hub, 'try_to_load_from_cache', lambda *_: None)
    monkeypatch.setattr(huggingface_hub.utils, 'get_session', refuse)
    monkeypatch.setattr(huggingface_hub, 'hf_hub_download', None)
    with pytest.raises(InputError, match='no route to host') as caught:
        create_model('timm/vit_tiny_patch16_224', pretrained=True)
    for part in (
        'huggingface.co/timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k/resolve/main/model.safetens',
        'pretrained=FILE',
    ):
        assert part in str(caught.value)


def test_weights_in_the_cache_need_no_network(monkeypatch, tmp_path):
    import huggingface_hub
    from safetensors.torch import save_file

    model = timm.create_model('vit_tiny_patch16_224')
    save_file(model.state_dict(), tmp_path / 'model.safetensors')
    monkeypatch.setattr(
        huggingface_hub, 'try_to_load_from_cache', lambda *_: str(tmp_path / 'model.safetensors')
    )
    monkeypatch.setattr(huggingface_hub.utils, 'get_session', None)
    trunk = create_model('timm/vit_tiny_patch16_224', pretrained=True, num_classes=0)
    assert torch.equal(trunk.model.pos_embed, model.pos_embed)


def test_a_name_without_weights():
    trunk = _trunk()
    trunk.model.pretrained_cfg = {}
    with pytest.raises(
        InputError, match='timm/tiny.*no weights of this name are known.*pretrained=FILE'
    ):
        load_timm_weights(trunk, True)


@pytest.mark.slow  # importing transformers takes ten seconds
@pytest.mark.parametrize('is_gated', [False, True])
def test_dinov3_of_hugging_face(tmp_path, is_gated):
    transformers = pytest.importorskip('transformers')
    config = transformers.DINOv3ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=64,
        patch_size=16,
        num_register_tokens=2,
        use_gated_mlp=is_gated,
        hidden_act='silu' if is_gated else 'gelu',
        pos_embed_rescale=None,
    )
    theirs = _random_(transformers.DINOv3ViTModel(config))
    theirs.save_pretrained(tmp_path)
    trunk = _trunk(
        'eva',
        **DINOV3
        | dict(
            embed_dim=48,
            mlp_ratio=2,
            swiglu_mlp=is_gated,
            swiglu_align_to=8,
            rope_type='dinov3',
            rope_temperature=100,
            rope_rotate_half=True,
            use_fc_norm=False,
            norm_layer=functools.partial(nn.LayerNorm, eps=1e-5),
        ),
    )
    load_timm_weights(trunk, tmp_path / 'model.safetensors')
    with torch.no_grad():
        found, expected = trunk(IMAGES).tokens, theirs(IMAGES).last_hidden_state
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
