# 300 epochs. The learning rate is 5e-4 for 512 images, so 1e-3 for the 1024 of 8 GPUs x 128.
# Differs from the authors' script: it sets the rate once an epoch, one epoch late, and its cosine
# starts at epoch 0 under the warm-up; here the rate changes every iteration of the warm-up, and the
# cosine starts after it (at most 0.1 % of the rate from epoch 6 on).
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.05),
    # No decay of biases, norms and other 1-D parameters (the learned query is one), positions and
    # class tokens, in the models that have them.
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        flat_decay_mult=0.0,
        custom_keys={'.pos_embed': dict(decay_mult=0.0), '.cls_token': dict(decay_mult=0.0)},
    ),
)
param_scheduler = [
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=1e-5, by_epoch=True, begin=5, end=300),
]
auto_scale_lr = dict(enable=False, base_batch_size=1024)
