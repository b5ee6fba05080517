# 67.87 % on test-dev and 67.93 % on test-std reported by the authors (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16.py',
    '../_base_/datasets/vqav2.py',
    '../_base_/schedules/meter_10e.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        design='perceiver_io',
        prior=dict(type='text', text_dim=768),
        init_cfg=dict(checkpoint='checkpoints/perceiver-io-b16_in1k.pth', allow_new=('prior',)),
    )
)
