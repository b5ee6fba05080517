# For backbones without positions and class token: no decay of 1-D parameters, and of nothing else.
_base_ = './adamw_cosine_300e.py'
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(_delete_=True)))
