# 80.1 mIoU reported by the authors (Table 2.4).
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/datasets/voc12.py',
    '../_base_/schedules/adamw_20k.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes),
)
