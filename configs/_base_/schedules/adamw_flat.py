# No decay of norms, biases and other 1-D parameters, in backbone and heads; all else is decayed, as
# in the authors' training of VARS: Gram modulation, static atoms, spectral dictionaries and filters.
_base_ = './adamw.py'
optim_wrapper = dict(paramwise_cfg=dict(_delete_=True, flat_decay_mult=0.))
