# DINOv2-S/14, frozen, on embedded photographs: on a CPU in minutes. No accuracy claim follows.
_base_ = [
    '../_base_/models/linear_timm.py',
    '../_base_/datasets/mini_photos.py',
    '../_base_/schedules/mini_top_down.py',
    '../_base_/runtime/segmentation.py',
    '../_base_/steerable.py',
]
model = dict(
    _base_.steering_stage,  # after a head that was trained with transfer='linear': the quickstart
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        _base_.steering_stage.backbone,
        # The last blocks of what tools/demo_weights.py fetches were tuned to saliency.
        arch=dict(_delete_=True, trunk='timm/vit_small_patch14_dinov2.lvd142m', num_layers=10),
        alpha=3.0,
    ),
    decode_head=dict(
        num_classes=_base_.num_classes,
        loss_decode=dict(class_weight=[0.4] + [1.0] * (_base_.num_classes - 1)),  # 'other' is much
    ),
)
