# Keeps the weights that validate best, by iterations, without averaging.
_base_ = './classification.py'
default_hooks = dict(
    checkpoint=dict(by_epoch=False, interval=250, max_keep_ckpts=1, save_best='accuracy/top1')
)
custom_hooks = [_base_.custom_hooks[0], *_base_.custom_hooks[2:]]
