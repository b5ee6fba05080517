"""Mixers and their constants in files: what tensors show, what the meta says, what is refused."""

import json
from argparse import Namespace

import pytest
import torch
from safetensors import safe_open

from mmvars.checkpoints import (
    CheckpointError,
    convert_checkpoint,
    convert_state_dict,
    load_pretrained,
)
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.key_mapping import mixers_seen
from mmvars.checkpoints.report import Status
from mmvars.errors import InputError
from mmvars.layers import MIXERS, PRESETS, resolve_mixer_cfg
from mmvars.networks import create_model

FAMILIES = {
    'deit_convstem_tiny': ('self_attention', 'performer', 'vars_s', 'vars_d', 'vars_sd'),
    'rvt_tiny': ('self_attention', 'performer', 'vars_s', 'vars_d', 'vars_sd', 'masked_attention'),
    'gfnet_tiny': ('global_filter', 'performer', 'vars_s', 'vars_d', 'vars_sd'),
}
SIZE = dict(embed_dim=(24, 48), depth=(2, 1))
HEADS = dict(num_heads=(2, 4))
PIXELS = dict(img_size=96)


def _network(mixer, arch='rvt_tiny', img_size=96, num_classes=7, **options):
    return create_model(
        arch,
        mixer=mixer,
        mixer_cfg=options,
        num_classes=num_classes,
        img_size=img_size,
        **SIZE,
        **HEADS,
    )


def _named(network):
    return {f'backbone.network.{name}': value for name, value in network.state_dict().items()}


def _released(mixer, **options):
    """Tensors of a released file with these constants."""
    return convert_state_dict(
        _named(_network(mixer, **options)), 'rvt_tiny', to='release', mixer_cfg=options, **SIZE
    ).tensors


@pytest.fixture
def converted(golden, tmp_path):
    """The recorded VARS-D, converted with 3 steps and sparsity 0.2."""
    torch.save(dict(model=golden('rvt_vars_d')['state_dict']), tmp_path / 'release.pth')
    constants = dict(num_steps=3, sparsity=0.2)
    convert_checkpoint(
        tmp_path / 'release.pth', tmp_path / 'mmvars.pth', 'rvt_tiny', mixer_cfg=constants, **SIZE
    )
    return tmp_path / 'mmvars.pth'


@pytest.mark.parametrize(
    ('arch', 'mixer'), [(arch, mixer) for arch, mixers in FAMILIES.items() for mixer in mixers]
)
@pytest.mark.parametrize('preset', PRESETS)
def test_every_mixer_is_seen_in_the_names_of_its_tensors(arch, mixer, preset):
    with torch.device('meta'):
        network = create_model(arch, mixer=mixer, mixer_cfg=dict(preset=preset))
    assert mixers_seen(network.state_dict()) == {mixer: 12}


@pytest.mark.parametrize(
    ('attention', 'mixer'),
    [
        ('vars_sd', 'vars_d'),
        ('vars_d', 'vars_sd'),
        ('vars_d', 'vars_s'),
        ('perf', 'self_attention'),
        ('self-att', 'performer'),
        ('vars_s', 'vars_sd'),
    ],
)
def test_a_file_of_another_mixer_names_the_one_that_fits(layout, light, attention, mixer):
    true = {'self-att': 'self_attention', 'perf': 'performer'}.get(attention, attention)
    with pytest.raises(InputError) as caught:
        convert_state_dict(light(layout('rvt_tiny', attention=attention)), 'rvt_tiny', mixer=mixer)
    assert f'mixes tokens with {true}, the network with {mixer}. Build' in str(caught.value)
    assert (
        'embed_dim 192 384, depth 10 2, as --arch rvt_tiny or rvt_tiny_plus. Nothing was '
        'written' in str(caught.value)
    )


def test_masks_belong_to_the_plus_sizes(layout, light):
    size = 'embed_dim 192 384, depth 10 2, as --arch rvt_tiny or rvt_tiny_plus'
    with pytest.raises(CheckpointError, match=f'UNEXPECTED(?s:.*)att_mask(?s:.*){size}'):
        convert_state_dict(light(layout('rvt_tiny_plus')), 'rvt_tiny')
    with pytest.raises(CheckpointError, match=f'MISSING(?s:.*)attention_mask(?s:.*){size}'):
        convert_state_dict(light(layout('rvt_tiny')), 'rvt_tiny_plus')


def test_sizes_of_stages_are_told_where_no_name_fits(golden):
    with pytest.raises(
        CheckpointError, match='embed_dim 24 48, depth 2 1, which no named size has.*--embed-dim'
    ):
        convert_state_dict(golden('rvt_vars_sd')['state_dict'], 'rvt_tiny')


@pytest.mark.parametrize(
    ('mixer', 'option', 'made', 'default'),
    [
        ('vars_d', 'feature_ratio', 4, '2.0'),
        ('performer', 'feature_ratio', 1, '2.0'),
        ('vars_sd', 'feature_ratio', 0.5, '2.0'),
        ('vars_s', 'atoms_per_channel', 3, '5'),
    ],
)
def test_sizes_of_dictionaries_name_the_option(mixer, option, made, default):
    source = _released(mixer, **{option: made})
    with pytest.raises(
        InputError,
        match=f'show {option}={made}, but the network has '
        f'{option}={default}.*--mixer-cfg {option}={made}',
    ):
        convert_state_dict(source, 'rvt_tiny', **SIZE)
    found = convert_state_dict(source, 'rvt_tiny', mixer_cfg={option: made}, **SIZE)
    assert len(found.report.of(Status.USED)) == len(found.tensors)


def test_a_projection_of_keys_names_the_option():
    source = _named(_network('vars_d', separate_keys=True))
    with pytest.raises(InputError, match='show separate_keys=True.*--mixer-cfg separate_keys=True'):
        convert_state_dict(source, 'rvt_tiny', **SIZE)
    options = dict(mixer_cfg=dict(separate_keys=True), **SIZE)
    assert convert_state_dict(source, 'rvt_tiny', **options).tensors.keys()
    with pytest.raises(InputError, match='the released code computes with separate_keys=False'):
        convert_state_dict(source, 'rvt_tiny', to='release', **options)


def test_the_same_number_of_features_is_the_same_ratio():
    source = _released('vars_d', feature_ratio=1.5)  # 18 features of 12 channels
    convert_state_dict(source, 'rvt_tiny', mixer_cfg=dict(feature_ratio=1.54), **SIZE)


@pytest.mark.parametrize('mixer', ['vars_d', 'vars_sd', 'vars_s'])
def test_the_preset_that_tensors_show_is_named(mixer):
    source = _named(_network(mixer, preset='thesis'))
    with pytest.raises(
        InputError,
        match="show preset='thesis'.*network has preset='release'.*--mixer-cfg preset=thesis",
    ):
        convert_state_dict(source, 'rvt_tiny', mixer=mixer, **SIZE)
    convert_state_dict(source, 'rvt_tiny', mixer_cfg=dict(preset='thesis'), **SIZE)


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_file_says_its_constants(converted, tmp_path, suffix):
    path = tmp_path / f'again{suffix}'
    convert_checkpoint(converted, path, 'rvt_tiny', **SIZE)  # they come from the file
    network = _network('vars_d')
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with pytest.raises(InputError) as caught:
        load_pretrained(network, path)
    assert 'made with num_steps=3 (network: 5), sparsity=0.2 (network: 0.3)' in str(caught.value)
    assert 'mixer_cfg=dict(num_steps=3, sparsity=0.2)' in str(caught.value)
    assert "allow_constants=('num_steps', 'sparsity')" in str(caught.value)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(InputError, match=r'made with sparsity=0.2 \(network: 0.3\). '):
        load_pretrained(network, path, allow_constants=('num_steps',))
    report = load_pretrained(network, path, allow_constants=('num_steps', 'sparsity'))
    assert 'num_steps=5, sparsity=0.3 instead of num_steps=3, sparsity=0.2' in report.summary()
    assert not load_pretrained(_network('vars_d', num_steps=3, sparsity=0.2), path).remarks[2:]


def test_constants_are_complete_and_plain(converted, tmp_path):
    meta = read_checkpoint(converted)['meta']
    assert meta['mixer'] == 'vars_d' and meta['arch'] == 'rvt_tiny'
    assert json.loads(meta['mixer_cfg']) == resolve_mixer_cfg('vars_d', num_steps=3, sparsity=0.2)
    convert_checkpoint(converted, tmp_path / 'x.safetensors', 'rvt_tiny', **SIZE)
    with safe_open(tmp_path / 'x.safetensors', 'pt') as file:
        assert file.metadata()['mixer_cfg'] == meta['mixer_cfg']


def test_what_the_user_says_must_not_contradict_the_file(converted, tmp_path):
    for options in (dict(num_steps=5), dict(preset='release')):
        with pytest.raises(
            InputError,
            match=r'made with num_steps=3 \(network: 5\).*'
            '--mixer-cfg num_steps=3',
        ):
            convert_checkpoint(converted, tmp_path / 'x.pth', 'rvt_tiny', mixer_cfg=options, **SIZE)
    assert not (tmp_path / 'x.pth').exists()
    convert_checkpoint(
        converted, tmp_path / 'x.pth', 'rvt_tiny', mixer_cfg=dict(num_steps=3), **SIZE
    )


def test_options_of_the_released_script_count_where_a_file_kept_them(golden, tmp_path):
    args = Namespace(attention='vars_d', num_step=4, lam=0.1, rand_feat_dim_ratio=2, lr=1e-3)
    torch.save(dict(model=golden('rvt_vars_d')['state_dict'], args=args), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'b.pth', 'rvt_tiny', **SIZE)
    network = _network('vars_d', num_steps=4, sparsity=0.1)
    load_pretrained(network, tmp_path / 'b.pth')
    with pytest.raises(InputError, match=r'made with num_steps=4 \(network: 5\)'):
        convert_checkpoint(
            tmp_path / 'a.pth', tmp_path / 'c.pth', 'rvt_tiny', mixer_cfg=dict(num_steps=5), **SIZE
        )
    # VARS-S takes no notice of them
    args.attention = 'vars_s'
    torch.save(dict(model=golden('rvt_vars_s')['state_dict'], args=args), tmp_path / 'a.pth')
    convert_checkpoint(tmp_path / 'a.pth', tmp_path / 'd.pth', 'rvt_tiny', **SIZE)
    load_pretrained(_network('vars_s'), tmp_path / 'd.pth')


def test_damaged_constants_are_told(converted, tmp_path):
    content = read_checkpoint(converted)
    for damage in ('{"num_steps": 3', '[3]', 5):
        content['meta']['mixer_cfg'] = damage
        torch.save(content, tmp_path / 'x.pth')
        with pytest.raises(InputError, match='mixer_cfg of its meta are damaged'):
            load_pretrained(_network('vars_d'), tmp_path / 'x.pth')


def test_a_runner_says_no_constants_and_that_is_remarked(tmp_path):
    torch.save(dict(state_dict=_named(_network('vars_d')), meta=dict(epoch=3)), tmp_path / 'x.pth')
    report = load_pretrained(_network('vars_d', num_steps=2), tmp_path / 'x.pth')
    assert (
        "does not say its constants; the network has preset='release', num_steps=2"
        in report.summary()
    )


@pytest.mark.parametrize('allow', [('num_step',), ('num_steps', 'atoms_per_channel')])
def test_constants_to_allow_must_exist(converted, allow):
    with pytest.raises(
        InputError,
        match=f'allow_constants names {allow[-1]}; the constants of '
        "mixer 'vars_d' are preset, num_steps, ",
    ):
        load_pretrained(_network('vars_d'), converted, allow_constants=allow)


def test_a_network_of_another_mixer_is_left_alone(converted):
    with pytest.raises(InputError, match='mixes tokens with vars_d, the network with vars_sd'):
        load_pretrained(_network('vars_sd'), converted)


def test_the_release_has_no_option_for_most_constants(golden, converted):
    source = golden('rvt_vars_d')['state_dict']
    with pytest.raises(
        InputError,
        match='computes with scale_aware_sparsity=False and has no '
        'option for it, so scale_aware_sparsity=True is not poss',
    ):
        convert_state_dict(source, 'rvt_tiny', mixer_cfg=dict(scale_aware_sparsity=True), **SIZE)
    with pytest.raises(InputError, match="preset='release'.*so preset='thesis' is not possible"):
        convert_state_dict(
            _named(_network('vars_d', preset='thesis')),
            'rvt_tiny',
            to='release',
            mixer_cfg=dict(preset='thesis'),
            **SIZE,
        )
    report = convert_checkpoint(
        converted, converted.with_name('back.pth'), 'rvt_tiny', to='release', **SIZE
    )
    assert (
        "no file of the release says its constants: preset='release', num_steps=3, "
        'sparsity=0.2' in report.render()
    )


@pytest.mark.parametrize('to', ['release', 'timm'])
def test_no_release_has_vars_in_deit(to):
    network = create_model('deit_convstem_tiny', mixer='vars_s', num_classes=0, depth=1)
    with pytest.raises(CheckpointError, match=rf'attn\.dictionary(?s:.*)--to {to} has no name'):
        convert_state_dict(_named(network), 'deit_convstem_tiny', to=to, depth=1)
    back = convert_state_dict(_named(network), 'deit_convstem_tiny', depth=1)
    assert all(torch.equal(back.tensors[key], value) for key, value in _named(network).items())
    assert back.meta['mixer'] == 'vars_s'


def test_unusable_tensors_of_a_mixer(golden):
    source = dict(golden('rvt_vars_sd')['state_dict'])
    source['transformers.0.blocks.0.attn.L'] = torch.full((2,), float('nan'))  # dead: no matter
    convert_state_dict(source, 'rvt_tiny', **SIZE)
    source['transformers.0.blocks.1.attn.rand_matrix'] = torch.full((2, 12, 24), float('inf'))
    source['transformers.0.blocks.1.attn.kernel'] = torch.zeros(1, 2, 35, 24)
    del source['transformers.1.blocks.0.attn.learned_L']
    with pytest.raises(CheckpointError) as caught:
        convert_state_dict(source, 'rvt_tiny', **SIZE)
    for part in (
        '576 infinite of 576',
        '35 patch positions, which is no square grid',
        'step_scale  1',
    ):
        assert part in str(caught.value)
    assert len(caught.value.report.problems) == 3


def test_an_axis_that_should_have_length_one(golden):
    source = dict(golden('rvt_vars_s')['state_dict'])
    source['transformers.0.blocks.1.kernel'] = torch.zeros(24, 5, 2, 6, 4, 2)
    with pytest.raises(CheckpointError, match='24x5x2x6x4x2 -> 24x5x6x4x2'):
        convert_state_dict(source, 'rvt_tiny', **SIZE)


def test_known_mixers():
    assert set(MIXERS) == {mixer for mixers in FAMILIES.values() for mixer in mixers}
