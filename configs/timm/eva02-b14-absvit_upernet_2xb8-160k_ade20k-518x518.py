# EVA-02-B/14. No result is published or was measured here.
_base_ = [
    '../_base_/models/upernet_timm.py',
    '../_base_/datasets/ade20k_518px.py',
    '../_base_/schedules/adamw_layer-decay_160k.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(
        size=_base_.crop_size, mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323]
    ),
    backbone=dict(arch='timm/eva02_base_patch14_448.mim_in22k_ft_in22k'),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
