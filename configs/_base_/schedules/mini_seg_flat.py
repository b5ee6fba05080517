# The same without decay of norms, biases and other 1-D parameters, for backbones without positions.
_base_ = './mini_seg.py'
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.))
