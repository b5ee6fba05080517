# Published recipe; the authors report no number for this size.
_base_ = [
    '../_base_/models/upernet_vit-b16.py', '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/adamw.py', '../_base_/schedules/warmup_poly_40k.py',
    '../_base_/runtime/segmentation.py'
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch='small'),
    decode_head=dict(in_channels=[384] * 4, num_classes=_base_.num_classes),
    auxiliary_head=dict(in_channels=384, num_classes=_base_.num_classes))
