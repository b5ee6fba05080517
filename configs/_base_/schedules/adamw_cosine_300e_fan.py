# For FAN: a class token, and no stored positions. Its learning rate is 2e-3. The number of GPUs
# for it is not on record; by the linear rule of the others it is that of 2048 images.
_base_ = './adamw_cosine_300e.py'
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(custom_keys={'_delete_': True, '.cls_token': dict(decay_mult=0.)}))
auto_scale_lr = dict(base_batch_size=2048)
