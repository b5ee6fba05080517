# 73.7 % top-1 reported by the authors (Table 1.2). Constants: README.md.
_base_ = [
    '../_base_/models/vars_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(
    backbone=dict(
        arch='deit_convstem_tiny',
        mixer='vars_s',
        mixer_cfg=dict(preset='release', atoms_per_channel=3, sparsity=0.3),
    )
)
# Keeps the step sizes up to date.
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1),
]
