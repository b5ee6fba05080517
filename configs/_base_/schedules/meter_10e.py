# The released recipe: a tenth of the run to warm up, then down to zero in a line; float32. Batches
# of 432: 6 GPUs x 24 questions x 3 steps.
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=1)
optim_wrapper = dict(
    type='OptimWrapper',
    accumulative_counts=3,
    optimizer=dict(type='AdamW', lr=1e-5, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.01),
    constructor='mmvars.METEROptimWrapperConstructor',
    paramwise_cfg=dict(head_lr_mult=50.0, fusion_lr_mult=10.0, top_down_lr_mult=3.0),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-6,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type='PolyLR',
        power=1.0,
        eta_min=0.0,
        by_epoch=True,
        begin=1,
        end=10,
        convert_to_iter_based=True,
    ),
]
auto_scale_lr = dict(enable=False, base_batch_size=144)  # without the steps that are accumulated
