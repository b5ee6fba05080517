# The same for backbones with a class token, and no stored positions.
_base_ = './adamw.py'
optim_wrapper = dict(
    paramwise_cfg=dict(
        _delete_=True, flat_decay_mult=0., custom_keys={'.cls_token': dict(decay_mult=0.)}))
