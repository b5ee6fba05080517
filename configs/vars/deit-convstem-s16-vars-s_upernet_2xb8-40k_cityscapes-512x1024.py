# AbSViT's recipe; the authors report no number with UperNet. Constants: metafile.yml.
_base_ = [
    '../_base_/models/upernet_vars-s16.py', '../_base_/datasets/cityscapes.py',
    '../_base_/schedules/adamw_flat_pos.py', '../_base_/schedules/warmup_poly_40k.py',
    '../_base_/runtime/segmentation_vars-s.py'
]
model = dict(
    data_preprocessor=dict(size=_base_.crop_size),
    backbone=dict(
        arch='deit_convstem_small', mixer='vars_s',
        mixer_cfg=dict(preset='release', atoms_per_channel=3, sparsity=0.3)),
    decode_head=dict(num_classes=_base_.num_classes),
    auxiliary_head=dict(num_classes=_base_.num_classes))
