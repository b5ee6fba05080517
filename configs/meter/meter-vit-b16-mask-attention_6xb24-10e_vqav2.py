# 67.53 % on test-dev and 67.51 % on test-std reported by the authors (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16.py',
    '../_base_/datasets/vqav2.py',
    '../_base_/schedules/meter_10e.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        design='mask_attention',
        prior=dict(type='text', text_dim=768),
        init_cfg=dict(checkpoint='checkpoints/mask-attention-b16_in1k.pth', allow_new=('prior',)),
    )
)
