# FAN averages its weights with a decay of 0.99992.
_base_ = './classification.py'
custom_hooks = [
    _base_.custom_hooks[0],
    dict(type='EMAHook', momentum=8e-5, priority='ABOVE_NORMAL'),
    *_base_.custom_hooks[2:],
]
