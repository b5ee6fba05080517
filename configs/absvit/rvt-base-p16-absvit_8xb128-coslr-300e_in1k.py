# 80.9 % top-1 reported by the authors (Table 2.2).
_base_ = [
    '../_base_/models/vars_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(backbone=dict(type='mmvars.AbSViT', arch='rvt_base', reconstruction_loss_weight=0.1))
