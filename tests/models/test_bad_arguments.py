"""Arguments that no backbone can use: refused by the name the user typed, not ignored, no hang."""

import inspect

import pytest
import torch

from mmvars.errors import InputError
from mmvars.models import FAN, RVT, VARS, AbSViT, GFNet, ViT
from mmvars.registry import MODELS

SIZES = dict(embed_dims=16, num_layers=2, num_heads=2)
FAN_ARCH, DEIT_ARCH = dict(SIZES, trunk='fan'), dict(SIZES, trunk='deit_convstem')


def refused(backbone, arguments, *words):
    with pytest.raises(InputError) as error:
        backbone(**dict(img_size=32) | arguments)
    message = str(error.value)
    assert all(word in message for word in words), message
    for inside in ('embed_dim ', 'depth', 'in_chans', 'top_down', 'num_prompt_tokens'):
        assert inside not in message, message


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(embed_dims=0), 'embed_dims must be a whole number in [1, 32768], got 0'),
        (dict(embed_dims=17), 'embed_dims (17) must be divisible by num_heads (2)'),
        (dict(num_layers=0), 'num_layers must be a whole number in [1, 1000], got 0'),
        (dict(num_layers=10**9), 'num_layers must be a whole number in [1, 1000]'),
        (dict(embed_dims=10**9), 'embed_dims must be a whole number in'),
        (dict(num_heads=10**400), 'num_heads must be a whole number in'),
        (dict(mlp_ratio=1e12), 'mlp_ratio must be a number in [0, 1000]'),
        (dict(mlp_ratio=0), 'mlp_ratio must leave the perceptron a hidden channel'),
    ],
)
@pytest.mark.parametrize('base', [SIZES, FAN_ARCH])
def test_sizes(base, change, words):
    refused(AbSViT, dict(arch=base | change), words)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(img_size=10**6), 'each from patch_size (16) to 32768, got 1000000'),
        (dict(in_channels=0), 'in_channels must be a whole number in [1, 1000], got 0'),
        (dict(design=None), 'design must be one of absvit,'),
        (dict(design='qkv'), 'design must be one of absvit,'),
        (dict(num_passes=1), 'num_passes must be a whole number in [2, 100], got 1'),
        (dict(num_passes=10**9), 'num_passes must be a whole number in [2, 100]'),
        (
            dict(design='mask_attention', alpha=10.0),
            "design 'mask_attention' feeds back their weights",
        ),
        (dict(design='perceiver_io', num_passes=3), "design 'perceiver_io' has none"),
        (dict(design='feedback', prior='given'), "design 'feedback', which feeds the tokens back"),
        (dict(prior=None), "feedback without a prior is design 'feedback'"),
        (dict(prior=dict(type='class_prototype', num_classes='3')), 'num_classes of the class'),
        (dict(prior=dict(type='class_prototype', num_classes=10**12)), 'num_classes of the class'),
        (
            dict(prior=['given']),
            'prior must be one of learned_query, class_prototype, learned_classes, text, given',
        ),
        (dict(prior=dict(type='given', x=1)), "prior 'given' takes no options; unknown: ['x']"),
        (dict(prior=dict(type='class_prototype', classes=3)), 'takes num_classes; unknown'),
        (dict(transfer='prompt', prompt_cfg=[3]), 'prompt_cfg must be a dict'),
        (dict(transfer='prompt', prompt_cfg=dict(num_tokens=0)), 'prompt_cfg.num_tokens must be'),
        (dict(transfer='prompt', prompt_cfg=dict(deep='no')), 'prompt_cfg.deep must be True or'),
        (dict(transfer='prompt', prompt_cfg=dict(dropout=2)), 'prompt_cfg.dropout must be'),
    ],
)
def test_options(arguments, words):
    refused(AbSViT, dict(arch=SIZES) | arguments, words)


@pytest.mark.parametrize(
    ('mixer', 'options'),
    [
        ('vars_d', dict(num_steps=10**9)),
        ('vars_d', dict(feature_ratio=1e9)),
        ('vars_sd', dict(feature_ratio=1e9)),
        ('performer', dict(feature_ratio=1e9)),
        ('vars_s', dict(atoms_per_channel=10**9)),
        ('vars_d', dict(sparsity=1e300)),
    ],
)
def test_absurd_options_of_mixers(mixer, options):
    refused(VARS, dict(arch=DEIT_ARCH, mixer=mixer, mixer_cfg=options), *options, 'in [')


@pytest.mark.parametrize('arch', [None, 7, ['tiny'], 'nano'])
def test_every_name_that_is_taken_is_listed(arch):
    refused(AbSViT, dict(arch=arch), 'tiny, small, base', 'rvt_tiny', 'fan_small_hybrid')


def test_no_name_that_is_not_taken_is_listed():
    for arch in ('nano', FAN_ARCH, 'fan_tiny'):
        with pytest.raises(InputError, match='must be one of') as error:
            VARS(arch=arch)
        assert 'rvt' in str(error.value).partition(';')[0]
        assert 'fan' not in str(error.value).partition(';')[0]
    refused(RVT, dict(arch='nano'), 'tiny, small, base, tiny_plus')
    refused(ViT, dict(arch=None), 'tiny, small, base, tiny_patch8_gap, or a dict; got None')


def test_fan_has_an_image_size_and_a_stem_like_others():
    small = {key: value for key, value in FAN_ARCH.items() if key != 'trunk'}
    for img_size in (0, 15, 'x', None, 10**6):
        refused(FAN, dict(arch=small, img_size=img_size), 'img_size must be a number of pixels')
    refused(FAN, dict(arch=small | dict(embed_dims=6)), 'embed_dims of FAN must be at least 8')


@pytest.mark.parametrize('backbone', [FAN, RVT, VARS, AbSViT, GFNet, ViT])
def test_arguments_of_another_backbone_are_refused_in_the_name_of_this_one(backbone):
    """As where a config changes the type alone and inherits the rest."""
    name = f'mmvars.{backbone.__name__}'
    with pytest.raises(InputError) as error:
        backbone(patch_size=16, with_cls_token=True)
    assert str(error.value).startswith(f"{name} takes no 'patch_size', 'with_cls_token'; ")
    assert f'backbone=dict(_delete_=True, type={name!r}, ...)' in str(error.value)
    for argument in inspect.signature(backbone).parameters:
        assert argument in str(error.value)
    with pytest.raises(InputError, match=f"{name} takes no 'pretrained': write init_cfg=dict"):
        backbone(pretrained='vit.pth')
    if backbone not in (ViT, AbSViT):  # which take it with arch='timm/...'
        with pytest.raises(InputError, match=f"'pretrained': .*; {name} takes no 'patch_size'; i"):
            backbone(pretrained='vit.pth', patch_size=16)
    with pytest.raises(InputError, match="did you mean 'out_indices'"):
        backbone(out_indexes=(1,))


def test_a_config_that_hands_down_no_file_is_fine():
    assert type(ViT(arch=SIZES, img_size=32, pretrained=None)) is ViT


@pytest.mark.parametrize(
    'build',
    [
        MODELS.build,
        lambda cfg: AbSViT(**{key: value for key, value in cfg.items() if key != 'type'}),
    ],
    ids=['registry', 'class'],
)
def test_the_class_is_the_one_the_user_typed(build):
    with pytest.raises(InputError, match="mmvars.AbSViT takes no 'patch_size'"):
        build(dict(type='mmvars.AbSViT', patch_size=16))


@pytest.mark.parametrize('shortcuts', [dict(first_pass_scale=0.5), dict(restart_block=2)])
def test_former_shortcuts_are_refused_with_what_took_their_place(shortcuts):
    refused(
        AbSViT,
        dict(arch=SIZES, shortcuts=shortcuts),
        'write first_pass_scale=0.5',
        'restart_block, share_query_key and feedback_rank were removed',
    )


def test_signatures_are_explicit():
    for backbone in (FAN, RVT, VARS, AbSViT, GFNet, ViT):
        parameters = inspect.signature(backbone).parameters.values()
        assert len(parameters) > 10
        assert all(p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)


class TestRemediesWork:
    """What a message advises is accepted when it is typed."""

    def test_vars_s_in_a_vit(self):
        refused(AbSViT, dict(arch='tiny', mixer='vars_s'), 'deit_convstem_tiny', 'rvt_tiny')
        for arch in ('deit_convstem_tiny', 'rvt_tiny'):
            AbSViT(arch=arch, mixer='vars_s', img_size=32)

    def test_class_prototypes_without_a_number(self):
        refused(
            AbSViT,
            dict(arch=SIZES, prior='class_prototype'),
            "prior=dict(type='class_prototype', num_classes=K)",
        )
        AbSViT(arch=SIZES, img_size=32, prior=dict(type='class_prototype', num_classes=3))

    def test_class_tokens_that_are_not_there(self):
        refused(RVT, dict(arch='tiny', out_type='cls_token'), "out_type='avg_featmap'")
        RVT(arch='tiny', img_size=32, out_type='avg_featmap')

    def test_channels_of_another_backbone(self):
        """As in a config that inherits its heads and neck."""
        pytest.importorskip('mmseg.models', exc_type=ImportError)
        pytest.importorskip('mmpretrain.models', exc_type=ImportError)
        backbone = dict(type='mmvars.ViT', arch=SIZES, img_size=32, out_indices=(0, 1))
        head = dict(type='mmseg.FCNHead', channels=8, num_classes=3, in_index=0)
        model = dict(type='mmvars.EncoderDecoder', backbone=backbone)
        with pytest.raises(InputError, match=r'FCNHead has in_channels=768, .* have \[16\]: write'):
            MODELS.build(dict(model, decode_head=dict(head, in_channels=768)))
        head['in_channels'] = None
        neck = dict(type='mmseg.MultiLevelNeck', in_channels=[768] * 2, out_channels=16)
        with pytest.raises(InputError, match=r'has in_channels=\[768, 768\], .* have \[16, 16\]'):
            MODELS.build(dict(model, decode_head=head, neck=neck))
        MODELS.build(dict(model, decode_head=head, neck=dict(neck, in_channels=[16, 16])))
        assert MODELS.build(dict(model, decode_head=head, neck=None)).decode_head.in_channels == 16
        classifier = dict(
            type='mmvars.ImageClassifier',
            backbone=dict(backbone, out_indices=-1, out_type='pooled'),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=3, in_channels=192),
        )
        with pytest.raises(InputError, match='LinearClsHead has in_channels=192'):
            MODELS.build(classifier)
        classifier['head']['in_channels'] = None
        assert MODELS.build(classifier).head.in_channels == 16

    def test_a_prior_for_a_plain_backbone(self):
        with pytest.raises(InputError, match='mmvars.ViT has no top-down attention and takes no'):
            ViT(arch=SIZES, img_size=32)(torch.zeros(1, 3, 32, 32), prior=torch.ones(16))

    def test_frames_and_priors_of_perceiver_io(self):
        backbone = AbSViT(arch=SIZES, img_size=32, design='perceiver_io')
        for call in (backbone.forward_frame, lambda x: backbone.forward_priors(x, [None])):
            with pytest.raises(InputError, match='has a single pass: call forward instead'):
                call(torch.zeros(1, 3, 32, 32))
        backbone.forward(torch.zeros(1, 3, 32, 32))
