# Trains on a CPU in minutes. Synthetic scenes: no accuracy claim follows. RVT-Ti has three maps of
# stride 16 and one of stride 32; the auxiliary head takes the last one of stride 16.
_base_ = [
    '../_base_/models/upernet_vit-b16.py',
    '../_base_/datasets/mini_cityscapes.py',
    '../_base_/schedules/mini_seg.py',
    '../_base_/runtime/segmentation.py',
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        type='mmvars.VARS',
        arch='rvt_tiny',
        mixer='vars_sd',
        img_size=_base_.crop_size,
        out_indices=(2, 5, 9, 11),
    ),
    decode_head=dict(channels=64, num_classes=_base_.num_classes),
    auxiliary_head=dict(in_index=2, channels=32, num_classes=_base_.num_classes),
)
