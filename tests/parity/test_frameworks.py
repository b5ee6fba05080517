"""The released models against ours in their frameworks, through the converter: losses, gradients.

``tests/checkpoints/test_recorded.py`` holds the passes of the bare networks to the same records.
"""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

from mmvars.checkpoints import convert_checkpoint

pytest.importorskip('mmpretrain.models')
from mmpretrain.structures import DataSample  # noqa: E402

ARCH = dict(embed_dims=48, num_layers=3, num_heads=3)
SIZE = dict(embed_dim=48, depth=3, num_heads=3)
CLASSIFIERS = {
    'absvit_cls': ('tiny_patch16', dict(patch_size=16), 'cls_token'),
    'absvit_gap': ('tiny_patch8_gap', dict(patch_size=8, global_pool='avg'), 'avg_featmap'),
}
SEGMENTATION = {
    'absvit_seg': ('AbSViT', dict()),
    'absvit_seg_prompt': ('AbSViT', dict(transfer='prompt', prompt_cfg=dict(num_tokens=5))),
    'vit_bottom_up_seg': ('ViT', dict()),
}
OURS = {'linear': 'to_below', 'linear2': 'to_value'}


def close(result, expected, tolerance=2e-5):
    assert result.shape == expected.shape
    assert (result - expected).abs().max() <= tolerance * expected.abs().max()


def converted(record, tmp_path, arch):
    torch.save(dict(model=record['state_dict']), tmp_path / 'released.pth')
    convert_checkpoint(tmp_path / 'released.pth', tmp_path / 'ours.pth', arch, **SIZE)
    return str(tmp_path / 'ours.pth')


@pytest.fixture(params=CLASSIFIERS)
def classifier(request, golden, tmp_path):
    """A recorded classifier in MMPretrain, and its record."""
    size, arch, out_type = CLASSIFIERS[request.param]
    record = golden(request.param)
    model = MODELS.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(
                type='mmvars.AbSViT',
                arch=ARCH | arch,
                out_type=out_type,
                img_size=record['meta']['hyper']['img_size'],
                reconstruction_loss_weight=0.1,
            ),
            head=dict(type='mmpretrain.LinearClsHead', num_classes=7, in_channels=48),
        )
    )
    load_checkpoint(model, converted(record, tmp_path, f'absvit_{size}'), strict=True)
    return model.eval(), record['inputs'], record['outputs']


def our_name(name: str) -> str:
    """Our name for a parameter of the released model, in MMPretrain."""
    if name.startswith('head.'):
        return name.replace('head.', 'head.fc.')
    if name == 'prompt':
        return 'backbone.network.prior.query'
    if name.startswith('decoders.'):
        _, index, kind, leaf = name.split('.')
        return f'backbone.network.feedback.decoders.{index}.{OURS[kind]}.{leaf}'
    return f'backbone.network.trunk.{name}'


def test_losses_and_gradients(classifier):
    model, inputs, outputs = classifier
    samples = [DataSample().set_gt_label(int(label)) for label in inputs['labels']]
    losses = model.loss(inputs['image'], samples)
    close(2 * losses['loss_bottom_up'], outputs['ce_pass1'])
    close(2 * losses['loss_top_down'], outputs['ce_pass2'])
    close(losses['backbone.loss_reconstruction'], outputs['var_loss'])
    total = sum(losses.values())
    close(total, outputs['total_loss_hard'])
    total.backward()
    parameters = dict(model.named_parameters())
    recorded = {
        name.removeprefix('grad.'): grad
        for name, grad in outputs.items()
        if name.startswith('grad.')
    }
    assert len(recorded) == 9
    for name, grad in recorded.items():
        close(parameters[our_name(name)].grad, grad, tolerance=1e-4)


def test_soft_target_loss(classifier):
    """Mixup and label smoothing give soft targets; the recorded loss is the cross entropy."""
    model, inputs, outputs = classifier
    head = model.head
    head.loss_module = MODELS.build(dict(type='mmpretrain.CrossEntropyLoss', use_soft=True))
    samples = [DataSample().set_gt_score(score) for score in inputs['soft_targets']]
    losses = model.loss(inputs['image'], samples)
    close(2 * losses['loss_bottom_up'], outputs['sce_pass1'])
    close(2 * losses['loss_top_down'], outputs['sce_pass2'])
    close(sum(losses.values()), outputs['total_loss_soft'])


@torch.no_grad()
def test_top_down_inputs_blocks_and_layerwise_errors(classifier):
    model, inputs, outputs = classifier
    network, seen = model.backbone.network, []
    for block in network.trunk.blocks:
        block.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    output = network(inputs['image'], reconstruction=True)
    close(output.token_weights, outputs['mask'])
    close(output.reconstruction, outputs['recon_mse'])
    assert len(output.top_down) == 3 and len(seen) == 6
    for i in range(3):
        close(output.top_down[i], outputs[f'td.{i}'])
        close(seen[3 + i][0], outputs[f'z_in.{i}'])
        close(seen[3 + i][1], outputs[f'z_out.{i}'])


@torch.no_grad()
def test_alpha_and_class_prior(classifier):
    model, inputs, outputs = classifier
    backbone, image = model.backbone, inputs['image']
    close(model.head(backbone(image, alpha=10.0)), outputs['logits_pass2_alpha10'])
    prototype = model.head.fc.weight[1]
    close(model.head(backbone(image, prior=prototype)), outputs['logits_pass2_classprior1'])
    close(backbone.network(image, prior=prototype).token_weights, outputs['mask_classprior1'])
    close(model(image), outputs['logits_pass2'])


@pytest.mark.parametrize('name', SEGMENTATION)
@torch.no_grad()
def test_segmentation_backbones(name, golden, tmp_path):
    cls, arguments = SEGMENTATION[name]
    record = golden(name)
    path = converted(record, tmp_path, f'{cls.lower()}_base_patch16')
    backbone = MODELS.build(
        dict(
            type=f'mmvars.{cls}',
            arch=ARCH,
            img_size=64,
            out_indices=(0, 1, 2),
            **arguments,
            init_cfg=dict(type='Pretrained', checkpoint=path),
        )
    )
    backbone.init_weights()
    backbone.eval()
    images = {key.removeprefix('image_'): value for key, value in record['inputs'].items()}
    assert len(images) >= 2
    for size, image in images.items():
        for index, feature in enumerate(backbone(image)):
            close(feature, record['outputs'][f'feat_{size}.{index}'])
        if cls == 'AbSViT':
            close(backbone.network(image).token_weights, record['outputs'][f'mask_{size}'])
