import subprocess
import sys

import pytest
import torch
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS, DefaultScope

from mmvars.errors import InputError
from mmvars.models import AbSViT, ViT

IMAGES = (2, 3, 64, 50)


@pytest.mark.parametrize(
    'scope',
    [
        'mmseg',
        pytest.param('mmpretrain', marks=pytest.mark.slow),
        pytest.param('mmengine', marks=pytest.mark.slow),
    ],
)
def test_builds_in_a_fresh_process_from_any_scope_and_folder(scope, tmp_path):
    code = (
        'from mmengine.registry import MODELS, DefaultScope\n'
        f'with DefaultScope.overwrite_default_scope({scope!r}):\n'
        '    for name in ("AbSViT", "ViT"):\n'
        '        net = MODELS.build(dict(type=f"mmvars.{name}", arch=dict(embed_dims=12, '
        'num_layers=2, num_heads=2), img_size=32))\n'
        '        print(type(net).__module__, type(net).__name__)'
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f'mmvars.models.backbones {name}' for name in ('AbSViT', 'ViT')
    ]


@pytest.mark.parametrize('cls', [AbSViT, ViT])
@pytest.mark.parametrize(
    'out_type, shape',
    [('featmap', (2, 48, 4, 4)), ('cls_token', (2, 48)), ('avg_featmap', (2, 48))],
)
@pytest.mark.parametrize('global_pool', ['token', 'avg'])
def test_output_forms(cls, out_type, shape, global_pool, tiny_arch):
    backbone = cls(
        arch=tiny_arch | dict(global_pool=global_pool),
        img_size=64,
        out_type=out_type,
        out_indices=(0, -1),
    ).eval()
    feats = backbone(torch.randn(IMAGES))
    assert isinstance(feats, tuple) and [tuple(f.shape) for f in feats] == [shape, shape]
    train = backbone(torch.randn(IMAGES), return_losses=True)
    if cls is AbSViT:
        assert [tuple(f.shape) for f in train.first_pass_feats] == [shape]
    else:
        assert train.first_pass_feats is None and train.losses == {}


@pytest.mark.parametrize('global_pool, out_type', [('token', 'cls_token'), ('avg', 'avg_featmap')])
def test_features_are_what_the_classifier_pools(global_pool, out_type, tiny_arch):
    backbone = AbSViT(
        arch=tiny_arch | dict(global_pool=global_pool), img_size=64, out_type=out_type
    ).eval()
    network, images = backbone.network, torch.randn(IMAGES)
    output = network(images)
    train = backbone(images, return_losses=True)
    torch.testing.assert_close(backbone(images)[0], backbone.trunk.pool(output.second))
    torch.testing.assert_close(train.feats[0], backbone.trunk.pool(output.second))
    torch.testing.assert_close(train.first_pass_feats[0], backbone.trunk.pool(output.first))


def test_the_final_norm_touches_the_last_map_alone(tiny_arch):
    images = torch.randn(IMAGES)
    normed = AbSViT(arch=tiny_arch, img_size=64, out_indices=(1, 2)).eval()
    raw = AbSViT(arch=tiny_arch, img_size=64, out_indices=(1, 2), final_norm=False).eval()
    raw.load_state_dict(normed.state_dict())
    a, b = normed(images), raw(images)
    assert torch.equal(a[0], b[0])
    by_hand = normed.trunk.norm(b[1].movedim(1, -1)).movedim(-1, 1)
    torch.testing.assert_close(a[1], by_hand)


def test_prior_and_alpha_for_the_call(tiny_arch):
    backbone = AbSViT(arch=tiny_arch, img_size=64).eval()
    images = torch.randn(IMAGES)
    own = backbone(images)[0]
    assert not torch.equal(own, backbone(images, alpha=5.0)[0])
    assert not torch.equal(own, backbone(images, prior=torch.randn(48))[0])
    assert torch.equal(own, backbone(images)[0])


CASES = [
    (AbSViT, dict(), None),
    (AbSViT, dict(out_indices=(0, 1)), None),
    (AbSViT, dict(out_type='cls_token'), None),
    (AbSViT, dict(with_cp=True, reconstruction_loss_weight=0.1), None),
    (
        AbSViT,
        dict(reconstruction_loss_weight=0.1, reconstruction_loss='cosine', stop_gradient=False),
        None,
    ),
    (AbSViT, dict(final_norm=False), None),
    (AbSViT, dict(frozen_stages=2), None),
    (AbSViT, dict(transfer='linear'), set()),
    (AbSViT, dict(transfer='top-down'), {'prior', 'feedback'}),
    (
        AbSViT,
        dict(transfer='prompt'),
        {'prior', 'trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings'},
    ),
    (ViT, dict(), None),
    (ViT, dict(out_indices=(0, 1)), None),
    (ViT, dict(final_norm=False), None),
    (ViT, dict(frozen_stages=0), None),
    (ViT, dict(transfer='linear'), set()),
    (ViT, dict(transfer='prompt'), {'prompt_embeddings', 'deep_prompt_embeddings'}),
]


@pytest.mark.parametrize('global_pool', ['token', 'avg'])
@pytest.mark.parametrize('cls, arguments, trained', CASES)
def test_what_may_train_gets_a_gradient_and_nothing_else(
    cls, arguments, trained, global_pool, tiny_arch
):
    if arguments.get('out_type') == 'cls_token' and global_pool == 'avg':
        arguments = arguments | dict(out_type='avg_featmap')
    backbone = cls(arch=tiny_arch | dict(global_pool=global_pool), img_size=64, **arguments)
    output = backbone(torch.randn(IMAGES), return_losses=True)
    loss = sum(f.square().sum() for f in output.feats) + sum(output.losses.values())
    if loss.requires_grad:
        loss.backward()
    for name, parameter in backbone.network.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        if trained is not None:
            assert parameter.requires_grad == name.startswith(tuple(trained)), name


def test_frozen_stages_stay_in_eval_mode(tiny_arch):
    backbone = AbSViT(arch=tiny_arch, img_size=64, frozen_stages=2, drop_path_rate=0.5)
    assert backbone.train() is backbone
    trunk = backbone.trunk
    assert [block.training for block in trunk.blocks] == [False, False, True]
    assert not trunk.pos_embed.requires_grad and not trunk.blocks[1].mlp.fc1.weight.requires_grad
    assert backbone.eval() is backbone and not trunk.blocks[2].training


@pytest.mark.parametrize('cls', [AbSViT, ViT])
def test_no_state_is_left_between_calls(cls, tiny_arch):
    backbone = cls(arch=tiny_arch, img_size=64, out_indices=(0, 2))

    def tensors() -> set:
        return {
            (name, key)
            for name, module in backbone.named_modules()
            for key, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }

    before = tensors()
    backbone(torch.randn(IMAGES), return_losses=True)
    backbone.eval()(torch.randn(1, 3, 80, 64))
    assert tensors() == before


def test_layer_depth_covers_every_parameter(tiny_arch):
    backbone = AbSViT(arch=tiny_arch, img_size=64, transfer='prompt')
    depths = {
        name: backbone.get_layer_depth(f'backbone.{name}', 'backbone.')
        for name, _ in backbone.named_parameters()
    }
    assert {total for _, total in depths.values()} == {5}
    assert {depth for depth, _ in depths.values()} == {0, 1, 2, 3, 4}
    expected = {
        'network.trunk.cls_token': 0,
        'network.trunk.patch_embed.proj.weight': 0,
        'network.trunk.deep_prompt_embeddings': 0,
        'network.trunk.blocks.0.attn.qkv.weight': 1,
        'network.trunk.blocks.2.norm1.bias': 3,
        'network.feedback.decoders.1.to_below.weight': 2,
        'network.trunk.norm.weight': 4,
        'network.prior.query': 4,
    }
    assert {name: depths[name][0] for name in expected} == expected


@pytest.mark.parametrize(
    'arguments, message',
    [
        (dict(arch='huge'), 'arch must be one of'),
        (dict(arch=dict(embed_dims=48)), "missing: \\['num_heads', 'num_layers'\\]"),
        (
            dict(arch=dict(embed_dims=48, num_layers=1, num_heads=1, depth=3)),
            "unknown: \\['depth'\\]",
        ),
        (dict(out_indices=3), 'out_indices must be'),
        (dict(out_indices=(2, 0)), 'out_indices must be'),
        (dict(out_indices=()), 'out_indices must be'),
        (dict(out_indices=(0, -4)), 'out_indices must be'),
        (dict(out_type='map'), 'out_type must be one of'),
        (dict(out_type='cls_token', final_norm=False), 'final_norm=False needs'),
        (dict(transfer='lienar'), 'transfer must be one of'),
        (dict(prompt_cfg=dict(num_tokens=5)), "prompt_cfg needs transfer='prompt'"),
        (dict(transfer='prompt', prompt_cfg=dict(length=5)), 'prompt_cfg takes the keys'),
        (dict(frozen_stages=4), 'frozen_stages must be a whole number in'),
        (dict(reconstruction_loss_weight=-1.0), 'reconstruction_loss_weight must be'),
        (dict(reconstruction_loss='cosine'), 'no effect while reconstruction_loss_weight is 0'),
        (dict(stop_gradient=False), 'no effect while reconstruction_loss_weight is 0'),
        (
            dict(reconstruction_loss_weight=0.1, reconstruction_loss='cos'),
            'reconstruction_loss must be one of l2, cosine',
        ),
        (
            dict(reconstruction_loss_weight=0.1, code_sparsity=0.1),
            'code_sparsity=0.1 needs sparse codes',
        ),
        (
            dict(stop_gradient=False, design='perceiver_io'),
            "stop_gradient=False is for feedback through decoders, which only design='absvit'",
        ),
        (dict(prior='words'), 'prior must be one of'),
        # values of a wrong type, as a typing error in a config gives them
        (dict(arch=5), 'arch must be one of'),
        (dict(arch=dict(embed_dims='a', num_layers=1, num_heads=1)), 'embed_dims must be a whole'),
        (
            dict(arch=dict(embed_dims=48, num_layers=1, num_heads=1, patch_size=0)),
            'patch_size must be',
        ),
        (dict(out_indices=1.5), 'out_indices must be'),
        (dict(out_indices='all'), 'out_indices must be'),
        (dict(drop_path_rate='a'), 'drop_path_rate must be a number'),
        (dict(frozen_stages='a'), 'frozen_stages must be a whole number'),
        (dict(reconstruction_loss_weight='a'), 'reconstruction_loss_weight must be a number'),
        (dict(reconstruction_loss_weight=0.0, alpha='a'), 'alpha must be a number'),
        (dict(init_cfg=dict(type='Pretrained')), "missing: \\['checkpoint'\\]"),
        (dict(init_cfg=[dict(type='Pretrained', checkpoint='a')] * 2), 'one Pretrained checkpoint'),
    ],
)
def test_mistakes_are_named(arguments, message, tiny_arch):
    with pytest.raises(InputError, match=message):
        AbSViT(**dict(arch=tiny_arch, img_size=64) | arguments)
    if not any(name.startswith(('reconstruction_', 'stop_', 'prior')) for name in arguments):
        with pytest.raises(InputError, match=message):
            ViT(**dict(arch=tiny_arch, img_size=64) | arguments)


def test_a_mistake_survives_the_registry(tiny_arch):
    """mmengine re-raises with its own text in front; the class and the message must live on."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    with DefaultScope.overwrite_default_scope('mmseg'):
        with pytest.raises(InputError, match='out_indices must be'):
            MODELS.build(dict(type='mmvars.AbSViT', arch=tiny_arch, out_indices=99))


def test_top_down_transfer_is_not_for_the_plain_twin():
    with pytest.raises(
        InputError, match='transfer must be one of end2end, linear, bias, prompt, lora here; got'
    ):
        ViT(transfer='top-down')


class TestManyPriorsAndFrames:
    @pytest.fixture
    def backbone(self, tiny_arch):
        return AbSViT(arch=tiny_arch, img_size=64, out_indices=(0, 2)).eval()

    @torch.no_grad()
    def test_priors_give_what_single_calls_give(self, backbone):
        images, priors = torch.randn(2, 3, 64, 80), torch.randn(3, 48)
        together = list(backbone.forward_priors(images, priors, alpha=2.0))
        assert len(together) == 3
        for feats, prior in zip(together, priors, strict=True):
            for a, b in zip(feats, backbone(images, prior=prior, alpha=2.0), strict=True):
                assert torch.equal(a, b)

    @pytest.mark.parametrize('priors', [None, 5, torch.tensor(1.0), torch.randn(48)])
    def test_what_is_no_sequence_of_priors_is_refused_at_once(self, backbone, priors):
        with pytest.raises(InputError, match='priors'):
            backbone.forward_priors(torch.randn(1, 3, 64, 64), priors)

    @torch.no_grad()
    def test_first_frame_is_exact_and_the_next_looks_back(self, backbone):
        frames = torch.randn(2, 1, 3, 64, 80)
        feats, seen = backbone.forward_frame(frames[0])
        for a, b in zip(feats, backbone(frames[0]), strict=True):
            assert torch.equal(a, b)
        blocks = []
        backbone.trunk.blocks[0].register_forward_hook(lambda *args: blocks.append(1))
        following, _ = backbone.forward_frame(frames[1], seen)
        assert len(blocks) == 1  # one pass instead of two
        assert not torch.allclose(following[1], backbone(frames[1])[1])

    @torch.no_grad()
    def test_class_token_alone_is_computed_where_it_alone_is_asked_for(self, tiny_arch):
        backbone = AbSViT(arch=tiny_arch, img_size=64, out_type='cls_token').eval()
        sizes = []
        backbone.trunk.blocks[2].mlp.register_forward_hook(
            lambda m, args, out: sizes.append(out.shape[1])
        )
        images = torch.randn(2, 3, 64, 64)
        found = backbone(images)[0]
        assert sizes == [17, 1]
        with torch.enable_grad():  # as class activation maps look at it
            torch.testing.assert_close(backbone(images)[0], found)
        assert sizes[2:] == [17, 17]


@pytest.mark.parametrize('cls', [AbSViT, ViT])
def test_maps_are_contiguous(cls, tiny_arch):
    for feat in cls(arch=tiny_arch, img_size=64, out_indices=(0, 2))(torch.randn(IMAGES)):
        assert feat.is_contiguous() and feat.view(1, -1, *feat.shape[2:]).shape[1] == 96


@torch.no_grad()
def test_fuse_changes_nothing_and_training_undoes_it(tiny_arch):
    backbone = AbSViT(arch=tiny_arch, img_size=64, out_indices=(0, 2)).eval()
    images = torch.randn(IMAGES)
    before = backbone(images)
    backbone.fuse()
    assert backbone.network.feedback.is_fused
    for a, b in zip(backbone(images), before, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    backbone.train()
    assert not backbone.network.feedback.is_fused
    backbone.eval().fuse()
    backbone.unfuse()
    assert all(torch.equal(a, b) for a, b in zip(backbone(images), before, strict=True))


def test_a_plain_backbone_holds_a_plain_trunk(tiny_arch):
    vit, absvit = ViT(arch=tiny_arch, img_size=64), AbSViT(arch=tiny_arch, img_size=64)
    assert vit.network is vit.trunk and absvit.network.trunk is absvit.trunk
    keys = set(vit.state_dict())
    assert 'network.blocks.0.attn.qkv.weight' in keys
    assert {key.replace('network.', 'network.trunk.') for key in keys} < set(absvit.state_dict())
    for key in keys:
        assert vit.get_layer_depth(key) == absvit.get_layer_depth(
            key.replace('network.', 'network.trunk.')
        )


@pytest.mark.parametrize('cls', [AbSViT, ViT])
def test_state_dicts_of_the_version_before_load(cls, tiny_arch):
    new, old = cls(arch=tiny_arch, img_size=64), cls(arch=tiny_arch, img_size=64)
    renames = (
        {'network.': 'network.trunk.'}
        if cls is ViT
        else {'.to_below.': '.chain.', '.to_value.': '.readout.'}
    )
    state = {}
    for key, value in old.state_dict().items():
        for present, former in renames.items():
            key = key.replace(present, former)
        state[key] = value
    assert set(state) != set(new.state_dict())
    new.load_state_dict(state)
    for key, value in new.state_dict().items():
        assert torch.equal(value, old.state_dict()[key]), key


@torch.no_grad()
def test_a_first_pass_without_the_second_bias_is_alpha_zero(tiny_arch):
    backbone = AbSViT(arch=tiny_arch, img_size=64, double_value_bias=False).eval()
    images = torch.randn(IMAGES)
    for parameter in backbone.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    first = backbone(images, return_losses=True).first_pass_feats[0]
    torch.testing.assert_close(backbone(images, alpha=0.0)[0], first)
    assert not torch.allclose(backbone(images)[0], first)


@torch.no_grad()
def test_first_pass_scale_reaches_the_network(tiny_arch):
    backbone = AbSViT(
        arch=tiny_arch, img_size=64, first_pass_scale=0.5, out_type='cls_token'
    ).eval()
    output = backbone(torch.randn(2, 3, 64, 64), return_losses=True)
    assert backbone.network.first_pass_scale == 0.5
    assert output.feats[0].shape == output.first_pass_feats[0].shape == (2, 48)


def test_pooled_is_what_the_trunks_classifier_reads(tiny_arch):
    token = AbSViT(arch=tiny_arch, img_size=64, out_type='pooled')
    mean = AbSViT(arch=tiny_arch | dict(global_pool='avg'), img_size=64, out_type='pooled')
    assert (token.out_type, mean.out_type) == ('cls_token', 'avg_featmap')
    images = torch.randn(IMAGES)
    for backbone in (token.eval(), mean.eval()):
        output = backbone.network(images)
        torch.testing.assert_close(backbone(images)[0], backbone.trunk.pool(output.second))


def test_a_reconstruction_loss_with_a_class_token_is_that_of_all_tokens(tiny_arch):
    backbone = AbSViT(
        arch=tiny_arch, img_size=64, out_type='cls_token', reconstruction_loss_weight=2.0
    ).train()
    images = torch.randn(IMAGES)
    loss = backbone(images, return_losses=True).losses['loss_reconstruction']
    errors = backbone.network(images, reconstruction=True).reconstruction
    torch.testing.assert_close(loss, 2 * errors.sum())


class TestInitCfg:
    """The ``Pretrained`` entry is loaded strictly, in every form that OpenMMLab knows."""

    @pytest.mark.parametrize(
        'entry',
        [
            dict(type='Pretrained'),
            dict(type=PretrainedInit),
            dict(type='Pretrained', prefix='backbone'),
            dict(type='Pretrained', map_location='cpu'),
            dict(type='Pretrained', allow_new=('prior',), allow_constants=('num_steps',)),
        ],
        ids=str,
    )
    def test_its_keys_reach_the_loader(self, entry, tiny_arch, monkeypatch):
        calls = []

        class Report:
            def summary(self):
                return 'loaded'

        def load(module, path, **options):
            calls.append((module, path, options))
            return Report()

        monkeypatch.setattr('mmvars.models.base.load_pretrained', load)
        backbone = AbSViT(arch=tiny_arch, img_size=64, init_cfg=dict(entry, checkpoint='x.pth'))
        backbone.init_weights()
        entry = {key: value for key, value in entry.items() if key != 'type'}
        entry['allow_new'] = [*entry.get('allow_new', ())]
        assert calls == [(backbone, 'x.pth', entry)]

    def test_other_entries_are_mmengines(self, tiny_arch):
        backbone = ViT(
            arch=tiny_arch,
            img_size=64,
            init_cfg=[dict(type='Constant', layer='LayerNorm', val=3.0)],
        )
        backbone.init_weights()
        assert backbone.trunk.norm.weight.eq(3).all()

    @pytest.mark.parametrize(
        'entry',
        [
            dict(type='Pretrained'),
            dict(type=PretrainedInit),
            dict(type='Pretrained', prefix='backbone'),
            dict(type='Pretrained', prefix='backbone.', map_location='cpu'),
        ],
        ids=str,
    )
    def test_a_file_of_a_whole_model(self, entry, tiny_arch, tmp_path):
        donor = AbSViT(arch=tiny_arch, img_size=64)
        state = {f'backbone.{key}': value for key, value in donor.state_dict().items()}
        torch.save(dict(state_dict=state | {'decode_head.w': torch.ones(1)}), tmp_path / 'x.pth')
        cfg = dict(entry, checkpoint=str(tmp_path / 'x.pth'))
        backbone = AbSViT(arch=tiny_arch, img_size=64, init_cfg=cfg)
        backbone.init_weights()
        for key, value in backbone.state_dict().items():
            assert torch.equal(value, donor.state_dict()[key]), key
        smaller = AbSViT(arch=tiny_arch | dict(num_layers=2), img_size=64, init_cfg=cfg)
        with pytest.raises(InputError):
            smaller.init_weights()
