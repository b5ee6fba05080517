# Table 1.3. The recipe is ours: README.md. Another domain to test: --cfg-options target=photo
_base_ = [
    '../_base_/models/vars_pacs.py',
    '../_base_/datasets/pacs.py',
    '../_base_/schedules/adam_5k.py',
    '../_base_/runtime/classification_best.py',
]
model = dict(
    backbone=dict(
        mixer='vars_s',
        mixer_cfg=dict(atoms_per_channel=3),
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rvt-tiny-p16-vars-s_in1k.pth'),
    )
)
# Keeps the step sizes up to date.
custom_hooks = [
    *_base_.custom_hooks,
    dict(type='mmvars.LipschitzUpdateHook', interval=100, rate=0.1),
]
