# Trains on a CPU in minutes, on shapes: no number is to be compared with published ones.
_base_ = './meter-vit_1xb32-600iter_mini-easy-vqa.py'
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        prior=dict(type='text', text_dim=64),
        reconstruction_loss_weight=0.3,
    )
)
