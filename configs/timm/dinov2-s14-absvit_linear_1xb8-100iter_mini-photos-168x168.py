# DINOv2-S/14, frozen, on embedded photographs: on a CPU in minutes. No accuracy claim follows.
# Feedback and head learn to segment all, or what the prior asks for.
_base_ = [
    '../_base_/models/linear_timm.py',
    '../_base_/datasets/mini_photos.py',
    '../_base_/schedules/mini_top_down.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        # The last blocks of the weights that tools/demo_weights.py fetches were tuned to saliency.
        arch=dict(_delete_=True, trunk='timm/vit_small_patch14_dinov2.lvd142m', num_layers=10),
        prior=dict(type='class_prototype', num_classes=_base_.num_classes),
        alpha=10.0,  # the quickstart's priors are small beside most tokens, even their own
    ),
    decode_head=dict(
        num_classes=_base_.num_classes,
        loss_decode=dict(class_weight=[0.4] + [1.0] * (_base_.num_classes - 1)),  # 'other' is much
    ),
)
