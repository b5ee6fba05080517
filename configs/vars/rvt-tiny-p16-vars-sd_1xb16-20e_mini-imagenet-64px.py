# Trains on a CPU in minutes. Synthetic images: no accuracy claim follows.
_base_ = [
    '../_base_/models/vars_classifier.py',
    '../_base_/datasets/mini_imagenet.py',
    '../_base_/schedules/mini_cls.py',
    '../_base_/runtime/classification.py',
]
custom_hooks = [_base_.custom_hooks[0], *_base_.custom_hooks[2:]]  # no EMA: too few iterations
model = dict(backbone=dict(mixer='vars_sd', img_size=_base_.crop_size))
