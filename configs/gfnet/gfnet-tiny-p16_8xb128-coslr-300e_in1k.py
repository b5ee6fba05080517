# 74.6 % top-1 reported by the authors (Table 1.2).
_base_ = [
    '../_base_/models/vit_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(
    backbone=dict(
        _delete_=True, type='mmvars.GFNet', arch='tiny', out_type='pooled', drop_path_rate=0.1
    )
)
