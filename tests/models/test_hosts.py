"""The backbone's losses in both hosts."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData

from mmvars.errors import InputError

mmseg = pytest.importorskip('mmseg.structures')
mmpretrain = pytest.importorskip('mmpretrain.structures')


def segmentor(arch: dict, backbone: str = 'mmvars.AbSViT', **arguments):
    pytest.importorskip('mmseg.models', exc_type=ImportError)  # needs mmcv's ops in one stack
    head = dict(type='mmseg.FCNHead', in_channels=48, channels=8, num_classes=3, num_convs=1,
                norm_cfg=dict(type='BN'), in_index=1)
    return MODELS.build(dict(
        type='mmvars.EncoderDecoder',
        data_preprocessor=dict(type='mmseg.SegDataPreProcessor', size=(64, 64)),
        backbone=dict(type=backbone, arch=arch, img_size=64, out_indices=(0, 2), **arguments),
        decode_head=head, auxiliary_head=head | dict(in_index=0)))


def classifier(arch: dict, backbone: str = 'mmvars.AbSViT', **arguments):
    return MODELS.build(dict(
        type='mmvars.ImageClassifier',
        backbone=dict(type=backbone, arch=arch, img_size=64, out_type='cls_token', **arguments),
        head=dict(type='mmpretrain.LinearClsHead', num_classes=5, in_channels=48)))


@pytest.fixture
def seg_samples():
    return [mmseg.SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 3, (1, 64, 64))))
            for _ in range(2)]


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
    model.backbone.reconstruction_loss_weight = .1
    more = model.loss(images, seg_samples)
    assert set(more) - set(stock) == {'backbone.loss_reconstruction'}
    errors = model.backbone.network(images, reconstruction=True).reconstruction
    torch.testing.assert_close(more['backbone.loss_reconstruction'], .1 * errors.sum())


def test_classifier_supervises_both_passes_by_half(tiny_arch, cls_samples):
    model = classifier(tiny_arch, reconstruction_loss_weight=.1).train()
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([1, 4])
    losses = model.loss(images, cls_samples)
    assert set(losses) == {'loss_bottom_up', 'loss_top_down', 'backbone.loss_reconstruction'}
    output = model.backbone.network(images, reconstruction=True)
    for name in ('bottom_up', 'top_down'):
        logits = model.head.fc(getattr(output, name).tokens[:, 0])
        expected = torch.nn.functional.cross_entropy(logits, labels) / 2
        torch.testing.assert_close(losses[f'loss_{name}'], expected)
    torch.testing.assert_close(losses['backbone.loss_reconstruction'],
                               .1 * output.reconstruction.sum())
    prediction = model.head.fc(output.top_down.tokens[:, 0])
    torch.testing.assert_close(model(images), prediction)


def test_classifier_of_a_plain_vit_has_one_loss(tiny_arch, cls_samples):
    model = classifier(tiny_arch, 'mmvars.ViT')
    assert set(model.loss(torch.randn(2, 3, 64, 64), cls_samples)) == {'loss'}


@pytest.mark.parametrize('amp', [False, True])
@pytest.mark.parametrize('with_cp', [False, True])
@pytest.mark.parametrize('build', [segmentor, classifier])
def test_every_trainable_parameter_gets_a_finite_gradient(build, with_cp, amp, tiny_arch,
                                                          seg_samples, cls_samples):
    model = build(tiny_arch, with_cp=with_cp, reconstruction_loss_weight=.1).train()
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
        MODELS.build(dict(type='mmvars.EncoderDecoder',
                          backbone=dict(type='mmseg.ResNet', depth=18),
                          decode_head=dict(type='mmseg.FCNHead', in_channels=512, channels=8,
                                           num_classes=3, norm_cfg=dict(type='BN'))))
    with pytest.raises(InputError, match='needs an mmvars backbone, got ResNet'):
        MODELS.build(dict(type='mmvars.ImageClassifier',
                          backbone=dict(type='mmpretrain.ResNet', depth=18),
                          head=dict(type='mmpretrain.LinearClsHead', num_classes=5,
                                    in_channels=512)))
