# Ranking takes longer to learn from scratch than answers.
_base_ = './meter_mini.py'
train_cfg = dict(max_iters=1500, val_interval=500)
optim_wrapper = dict(optimizer=dict(lr=1e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-2, by_epoch=False, begin=0, end=60),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=False, begin=60, end=1500),
]
