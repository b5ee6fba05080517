# 68.72 % on test-dev and 68.78 % on test-std reported by the authors (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16.py',
    '../_base_/datasets/vqav2.py',
    '../_base_/schedules/meter_10e.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        prior=dict(type='text', text_dim=768),
        modulation='project',
        alpha=5.0,
        reconstruction_loss_weight=0.3,
        init_cfg=dict(checkpoint='checkpoints/absvit-b16_in1k.pth', allow_new=('prior',)),
    )
)
