# SigLIP 2-B/16. No result is published or was measured here.
_base_ = [
    '../_base_/models/upernet_timm.py',
    '../_base_/datasets/ade20k.py',
    '../_base_/schedules/adamw_layer-decay_160k.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size, mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(arch='timm/vit_base_patch16_siglip_gap_512.v2_webli'),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
