# Table 1.3. The recipe is ours: README.md. Another domain to test: --cfg-options target=photo
_base_ = [
    '../_base_/models/vars_pacs.py',
    '../_base_/datasets/pacs.py',
    '../_base_/schedules/adam_5k.py',
    '../_base_/runtime/classification_best.py',
]
model = dict(
    backbone=dict(
        mixer='vars_sd',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/rvt-tiny-p16-vars-sd_in1k.pth'),
    )
)
