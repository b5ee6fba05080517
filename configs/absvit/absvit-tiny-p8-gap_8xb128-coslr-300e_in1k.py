# Patch 8 and average pooling; the authors report no number for this model.
_base_ = [
    '../_base_/models/vit_classifier.py', '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py', '../_base_/runtime/classification.py'
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT', arch='tiny_patch8_gap',
        out_type='avg_featmap', reconstruction_loss_weight=0.1),
    head=dict(in_channels=192))
