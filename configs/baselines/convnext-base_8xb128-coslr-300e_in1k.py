# 83.8 % top-1 reported by the authors (Table 2.2).
_base_ = [
    '../_base_/models/vit_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(_delete_=True, type='mmpretrain.ConvNeXt', arch='base', drop_path_rate=0.5),
    head=dict(in_channels=1024),
)
