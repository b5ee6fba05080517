# For backbones with a class token, and no stored positions.
_base_ = './mini_cls.py'
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'_delete_': True, '.cls_token': dict(decay_mult=0.)}))
