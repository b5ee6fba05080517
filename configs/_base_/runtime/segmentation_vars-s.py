# VARS-S: its step sizes follow its dictionaries, every 100 iterations.
_base_ = './segmentation.py'
custom_hooks = [*_base_.custom_hooks, dict(type='mmvars.StepSizeHook', interval=100, rate=0.1)]
