# 73.7 % top-1 reported by the authors (Table 1.2). Constants: metafile.yml.
_base_ = [
    '../_base_/models/vars_classifier.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e_flat_pos.py',
    '../_base_/runtime/classification_vars-s.py'
]
model = dict(
    backbone=dict(
        arch='deit_convstem_tiny', mixer='vars_s',
        mixer_cfg=dict(preset='release', atoms_per_channel=3, sparsity=0.3)),
    head=dict(in_channels=192))
