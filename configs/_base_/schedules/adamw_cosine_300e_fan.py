# FAN's own scripts: 300 epochs of cosine from 2e-3 to 1e-6 and 10 more at 1e-6. The number of GPUs
# is not on record; by the linear rule of the other recipes 2e-3 is the rate of 2048 images.
_base_ = './adamw_cosine_300e.py'
train_cfg = dict(max_epochs=310)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    # `pos_embed` is a convolution in FAN, and decayed.
    paramwise_cfg=dict(custom_keys={'_delete_': True, '.cls_token': dict(decay_mult=0.0)}),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=5e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=5, end=300),
    dict(type='ConstantLR', factor=1.0, by_epoch=True, begin=300, end=310),
]
auto_scale_lr = dict(base_batch_size=2048)
