"""The backbone's losses, and the heads' channels, in both frameworks."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData

from mmvars.errors import InputError

mmseg = pytest.importorskip('mmseg.structures')
mmpretrain = pytest.importorskip('mmpretrain.structures')


def segmentor(arch: dict, backbone: str = 'mmvars.AbSViT', **arguments):
    pytest.importorskip('mmseg.models', exc_type=ImportError)  # needs mmcv's ops in one stack
    head = dict(
        type='mmseg.FCNHead',
        in_channels=48,
        channels=8,
        num_classes=3,
        num_convs=1,
        norm_cfg=dict(type='BN'),
        in_index=1,
    )
    return MODELS.build(
        dict(
            type='mmvars.EncoderDecoder',
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(64, 64)),
            backbone=dict(type=backbone, arch=arch, img_size=64, out_indices=(0, 2), **arguments),
            decode_head=head,
            auxiliary_head=head | dict(in_index=0),
        )
    )


def classifier(arch: dict, backbone: str = 'mmvars.AbSViT', **arguments):
    return MODELS.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(type=backbone, arch=arch, img_size=64, out_type='cls_token', **arguments),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=48),
        )
    )


@pytest.fixture
def seg_samples():
    return [
        mmseg.SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 64, 64))))
        for _ in range(2)
    ]


@pytest.fixture
def cls_samples():
    return [mmpretrain.DataSample().set_gt_label(torch.tensor(i)) for i in (1, 4)]


def total(losses: dict) -> torch.Tensor:
    return sum(value for key, value in losses.items() if 'loss' in key)


def test_segmentor_is_the_stock_one_until_the_flag_is_set(tiny_arch, seg_samples):
    model, images = segmentor(tiny_arch).train(), torch.randn(2, 3, 64, 64)
    for head in (model.decode_head, model.auxiliary_head):
        head.dropout = None  # the two calls must draw the same (no) randomness
    from mmseg.models import EncoderDecoder

    stock = EncoderDecoder.loss(model, images, seg_samples)
    ours = model.loss(images, seg_samples)
    assert ours.keys() == stock.keys()
    for key, value in stock.items():
        torch.testing.assert_close(ours[key], value, msg=key)
    model.backbone.reconstruction_loss_weight = 0.1
    more = model.loss(images, seg_samples)
    assert set(more) - set(stock) == {'backbone.loss_reconstruction'}
    errors = model.backbone.network(images, reconstruction=True).reconstruction
    torch.testing.assert_close(more['backbone.loss_reconstruction'], 0.1 * errors.sum())


def test_classifier_supervises_both_passes_by_half(tiny_arch, cls_samples):
    model = classifier(tiny_arch, reconstruction_loss_weight=0.1).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    losses = model.loss(images, cls_samples)
    assert set(losses) == {'loss_bottom_up', 'loss_top_down', 'backbone.loss_reconstruction'}
    output = model.backbone.network(images, reconstruction=True)
    for name, one_pass in (('bottom_up', output.first), ('top_down', output.second)):
        logits = model.head.fc(one_pass.tokens[:, 0])
        expected = torch.nn.functional.cross_entropy(logits, labels) / 2
        torch.testing.assert_close(losses[f'loss_{name}'], expected)
    torch.testing.assert_close(
        losses['backbone.loss_reconstruction'], 0.1 * output.reconstruction.sum()
    )
    prediction = model.head.fc(output.second.tokens[:, 0])
    torch.testing.assert_close(model(images), prediction)


def test_classifier_of_a_plain_vit_has_one_loss(tiny_arch, cls_samples):
    model = classifier(tiny_arch, 'mmvars.ViT')
    assert set(model.loss(torch.randn(2, 3, 64, 64), cls_samples)) == {'loss'}


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('build', [segmentor, classifier])
def test_every_trainable_parameter_gets_a_finite_gradient(
    build, with_cp, amp, tiny_arch, seg_samples, cls_samples
):
    model = build(tiny_arch, with_cp=with_cp, reconstruction_loss_weight=0.1).train()
    samples = seg_samples if build is segmentor else cls_samples
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=amp):
        loss = total(model.loss(torch.randn(2, 3, 64, 64), samples))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_mmpretrain_asks_the_backbone_for_depths(tiny_arch):
    model = classifier(tiny_arch)
    assert model.get_layer_depth('backbone.network.trunk.blocks.1.norm1.weight') == (2, 5)


def test_a_classifier_reads_the_last_block(tiny_arch):
    with pytest.raises(InputError, match=r'out_indices must end with 2 .* got \(0, 1\)'):
        classifier(tiny_arch, out_indices=(0, 1))
    classifier(tiny_arch, out_indices=(0, 2))


def test_foreign_backbones_are_refused():
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    with pytest.raises(InputError, match='needs an mmvars backbone, got ResNet'):
        MODELS.build(
            dict(
                type='mmvars.EncoderDecoder',
                backbone=dict(type='mmseg.ResNet', depth=18),
                decode_head=dict(
                    type='mmseg.FCNHead',
                    in_channels=512,
                    channels=8,
                    num_classes=3,
                    norm_cfg=dict(type='BN'),
                ),
            )
        )
    with pytest.raises(InputError, match='needs an mmvars backbone, got ResNet'):
        MODELS.build(
            dict(
                type='mmvars.ImageClassifier',
                backbone=dict(type='mmpretrain.ResNet', depth=18),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=512),
            )
        )


class TestChannelsOfHeads:
    """``in_channels`` is taken from the backbone where a config leaves it out."""

    RVT = dict(
        type='mmvars.RVT',
        img_size=64,
        arch=dict(embed_dims=[12, 24], num_layers=[2, 1], num_heads=[2, 2]),
    )

    @pytest.fixture(autouse=True)
    def _frameworks(self):
        pytest.importorskip('mmseg.models', exc_type=ImportError)

    def segmentor(self, decode_head, auxiliary_head=None, neck=None):
        common = dict(channels=8, num_classes=3, norm_cfg=dict(type='GN', num_groups=2))
        heads = auxiliary_head if isinstance(auxiliary_head, list) else [auxiliary_head]
        heads = [head and common | head for head in heads]
        model = MODELS.build(
            dict(
                type='mmvars.EncoderDecoder',
                backbone=dict(self.RVT, out_indices=(0, 1, 2)),
                decode_head=common | decode_head,
                neck=neck,
                auxiliary_head=heads if isinstance(auxiliary_head, list) else heads[0],
            )
        )
        model.train().loss(
            torch.randn(2, 3, 64, 64),
            [
                mmseg.SegDataSample(
                    gt_sem_seg=PixelData(data=torch.zeros(1, 64, 64, dtype=torch.long))
                )
                for _ in range(2)
            ],
        )
        return model

    @pytest.mark.parametrize(
        'head, channels',
        [
            (dict(type='mmseg.FCNHead'), 24),
            (dict(type='mmseg.FCNHead', in_index=1), 12),
            (dict(type='mmseg.FCNHead', in_index=-2, in_channels=None), 12),
            (dict(type='mmseg.FCNHead', in_index=[0, 2], input_transform='resize_concat'), 36),
            (dict(type='mmseg.UPerHead', in_index=[0, 1, 2], pool_scales=(1, 2)), [12, 12, 24]),
        ],
    )
    def test_of_a_segmentor(self, head, channels):
        assert self.segmentor(head).decode_head.in_channels == channels

    def test_of_k_net_whose_first_stage_reads_the_features(self):
        cfg = dict(
            type='mmseg.IterativeDecodeHead',
            num_stages=0,
            kernel_update_head=[],
            kernel_generate_head=dict(
                type='mmseg.FCNHead',
                channels=8,
                num_classes=3,
                in_index=1,
                norm_cfg=dict(type='BN'),
            ),
        )
        model = MODELS.build(
            dict(
                type='mmvars.EncoderDecoder',
                decode_head=cfg,
                backbone=dict(self.RVT, out_indices=(0, 2)),
            )
        )
        assert model.decode_head.kernel_generate_head.in_channels == 24

    def test_of_auxiliary_heads(self):
        head = dict(type='mmseg.FCNHead', in_index=0)
        assert self.segmentor(head, head).auxiliary_head.in_channels == 12
        model = self.segmentor(head, [head, head | dict(in_index=2)])
        assert [each.in_channels for each in model.auxiliary_head] == [12, 24]

    def test_of_a_class_instead_of_a_name(self):
        from mmseg.models import FCNHead

        assert self.segmentor(dict(type=FCNHead)).decode_head.in_channels == 24

    def test_with_a_neck_they_are_the_necks(self):
        neck = dict(
            type='mmseg.MultiLevelNeck', in_channels=[12, 12, 24], out_channels=16, scales=[1, 1, 1]
        )
        head = dict(type='mmseg.UPerHead', in_index=[0, 1, 2], pool_scales=(1, 2))
        assert self.segmentor(head, neck=neck).decode_head.in_channels == [16, 16, 16]
        with pytest.raises(InputError, match='neck Feature2Pyramid does not state its'):
            self.segmentor(head, neck=dict(type='mmseg.Feature2Pyramid', embed_dim=24))

    def test_features_that_are_not_there(self):
        with pytest.raises(InputError, match='in_index=3 of mmseg.FCNHead .* the backbone has 3'):
            self.segmentor(dict(type='mmseg.FCNHead', in_index=3))

    @pytest.mark.parametrize(
        'head',
        [
            dict(type='mmpretrain.LinearClsHead'),
            dict(type='mmpretrain.VisionTransformerClsHead', hidden_dim=7),
            dict(type='mmpretrain.StackedLinearClsHead', mid_channels=[5]),
            dict(type='mmpretrain.ArcFaceClsHead'),
        ],
    )
    def test_of_a_classifier(self, head):
        model = MODELS.build(
            dict(
                type='mmvars.ImageClassifier',
                backbone=dict(self.RVT, out_type='pooled'),
                head=head | dict(num_classes=3),
            )
        )
        samples = [mmpretrain.DataSample().set_gt_label(i) for i in range(2)]
        assert model.loss(torch.randn(2, 3, 64, 64), samples)['loss'].isfinite()

    def test_of_a_classifier_with_a_neck(self):
        model = MODELS.build(
            dict(
                type='mmvars.ImageClassifier',
                backbone=self.RVT,
                neck=dict(type='mmpretrain.LinearNeck', in_channels=24, out_channels=10),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=3),
            )
        )
        assert model.head.in_channels == 10

    @pytest.mark.parametrize('head', [None, dict(type='mmpretrain.ClsHead')])
    def test_a_head_without_channels_gets_none(self, head):
        assert (
            MODELS.build(
                dict(
                    type='mmvars.ImageClassifier',
                    head=head,
                    backbone=dict(self.RVT, out_type='pooled'),
                )
            ).head
            is None
            or head
        )


@pytest.mark.parametrize('type', ['mmseg.EncoderDecoder', 'mmpretrain.ImageClassifier'])
def test_a_loss_that_a_stock_model_ignores_is_said_once(
    type, tiny_arch, seg_samples, cls_samples, monkeypatch
):
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    messages = []
    monkeypatch.setattr(
        'mmvars.models.base.print_log', lambda text, **options: messages.append(text)
    )
    backbone = dict(
        type='mmvars.AbSViT', arch=tiny_arch, img_size=64, reconstruction_loss_weight=0.1
    )
    if 'mmseg' in type:
        samples = seg_samples
        model = MODELS.build(
            dict(
                type=type,
                backbone=backbone,
                decode_head=dict(type='mmseg.FCNHead', in_channels=48, channels=8, num_classes=3),
            )
        )
    else:
        samples = cls_samples
        model = MODELS.build(
            dict(
                type=type,
                backbone=backbone | dict(out_type='cls_token'),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=48),
            )
        )
    model.eval().backbone(torch.randn(2, 3, 64, 64))
    assert not messages
    for _ in range(2):
        model.train().loss(torch.randn(2, 3, 64, 64), samples)
    (message,) = messages
    assert message.startswith('reconstruction_loss_weight=0.1 has no effect')
    assert 'mmvars.EncoderDecoder' in message and 'mmvars.ImageClassifier' in message


@pytest.mark.parametrize('build', [segmentor, classifier])
def test_ours_do_not_say_so(build, tiny_arch, seg_samples, cls_samples, monkeypatch):
    monkeypatch.setattr('mmvars.models.base.print_log', lambda *args, **options: pytest.fail())
    model = build(tiny_arch, reconstruction_loss_weight=0.1).train()
    model.loss(torch.randn(2, 3, 64, 64), seg_samples if build is segmentor else cls_samples)


def test_a_file_for_the_whole_segmentor_is_refused_with_the_remedy(tiny_arch):
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    with pytest.raises(InputError, match="mmvars.ViT takes no 'pretrained': write init_cfg"):
        MODELS.build(
            dict(
                type='mmvars.EncoderDecoder',
                pretrained='vit.pth',
                backbone=dict(type='mmvars.ViT', arch=tiny_arch),
                decode_head=dict(type='mmseg.FCNHead', channels=8, num_classes=3),
            )
        )


def test_the_models_are_in_the_package():
    from mmvars.models import EncoderDecoder, ImageClassifier

    assert type(EncoderDecoder) is type(ImageClassifier)
    assert MODELS.get('mmvars.ImageClassifier') is ImageClassifier


def test_the_linear_head_is_a_batch_norm_and_a_linear_map(tiny_arch, seg_samples):
    """Of one map, or of several side by side; it takes its channels from the backbone."""
    pytest.importorskip('mmseg.models', exc_type=ImportError)
    model = dict(
        type='mmvars.EncoderDecoder',
        backbone=dict(type='mmvars.ViT', arch=tiny_arch, img_size=64, out_indices=(0, 2)),
        decode_head=dict(type='mmvars.LinearHead', num_classes=3, norm_cfg=dict(type='BN')),
    )
    (first, last) = maps = [torch.randn(2, 48, 4, 6), torch.randn(2, 48, 4, 6)]
    both = dict(in_index=[0, 1], input_transform='resize_concat')
    for options, expected_input in (({}, last), (both, torch.cat([first, last], dim=1))):
        head = MODELS.build(model | dict(decode_head=model['decode_head'] | options)).decode_head
        mean, var = expected_input.mean((0, 2, 3)), expected_input.var((0, 2, 3), unbiased=False)
        tokens = (expected_input.movedim(1, -1) - mean) / (var + 1e-5).sqrt()
        logits = tokens @ head.conv_seg.weight.flatten(1).T + head.conv_seg.bias
        torch.testing.assert_close(head.train()(maps), logits.movedim(-1, 1))
