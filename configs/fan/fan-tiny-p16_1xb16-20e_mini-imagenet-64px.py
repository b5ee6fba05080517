# Trains on a CPU in minutes. Synthetic images: no accuracy claim follows.
_base_ = [
    '../_base_/models/vit_classifier.py',
    '../_base_/datasets/mini_imagenet.py',
    '../_base_/schedules/mini_cls.py',
    '../_base_/runtime/classification.py',
]
custom_hooks = [_base_.custom_hooks[0], *_base_.custom_hooks[2:]]  # no EMA: too few iterations
# The positions of FAN are a convolution, and decayed.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.pos_embed.token_projection.weight': dict(decay_mult=1.0)})
)
model = dict(
    backbone=dict(type='mmvars.FAN', arch='tiny', img_size=_base_.crop_size, drop_path_rate=0.0)
)
