# For backbones without positions and class token.
_base_ = './mini_cls.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True)))
