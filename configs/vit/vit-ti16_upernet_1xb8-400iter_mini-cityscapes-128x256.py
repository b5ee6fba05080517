# Trains on a CPU in minutes. Synthetic scenes: no accuracy claim follows.
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/datasets/mini_cityscapes.py',
    '../_base_/schedules/mini_seg.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(arch='tiny', img_size=_base_.crop_size),
    decode_head=dict(channels=64, num_classes=_base_.num_classes),
    auxiliary_head=dict(channels=32, num_classes=_base_.num_classes),
)
