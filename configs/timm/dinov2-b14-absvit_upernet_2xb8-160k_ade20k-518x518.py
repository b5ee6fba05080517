# DINOv2-B/14. No result is published or was measured here.
_base_ = [
    '../_base_/models/upernet_timm.py',
    '../_base_/datasets/ade20k_518px.py',
    '../_base_/schedules/adamw_layer-decay_160k.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch='timm/vit_base_patch14_dinov2.lvd142m'),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
