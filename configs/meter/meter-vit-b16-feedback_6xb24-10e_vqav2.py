# 67.99 % on test-dev and 68.13 % on test-std reported by the authors (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16.py',
    '../_base_/datasets/vqav2.py',
    '../_base_/schedules/meter_10e.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        design='feedback',
        init_cfg=dict(checkpoint='checkpoints/feedback-b16_in1k.pth'),
    )
)
