# Batches of 512: 8 GPUs x 4 captions, with 15 others each, x 16 steps.
_base_ = './meter_10e.py'
optim_wrapper = dict(accumulative_counts=16, paramwise_cfg=dict(head_lr_mult=5.0))
auto_scale_lr = dict(base_batch_size=32)
