# 75.3 mIoU reported by the authors (Table 2.4).
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/adamw_40k.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
