# Trains on a CPU in minutes. Synthetic images: no accuracy claim follows.
_base_ = [
    '../_base_/models/vit_classifier.py', '../_base_/datasets/mini_imagenet.py',
    '../_base_/schedules/mini_cls_flat_cls.py', '../_base_/runtime/classification.py'
]
custom_hooks = [_base_.custom_hooks[0], _base_.custom_hooks[2]]  # no EMA: too few iterations
model = dict(
    backbone=dict(
        type='mmvars.AbSViT', arch='fan_tiny',
        img_size=_base_.crop_size, drop_path_rate=0., reconstruction_loss_weight=0.1),
    head=dict(in_channels=192))
