# 81.2 % top-1 reported by the authors (Table 2.2).
_base_ = [
    '../_base_/models/vit_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'.relative_position_bias_table': dict(decay_mult=0.0)})
)
model = dict(
    type='mmpretrain.ImageClassifier',
    backbone=dict(
        _delete_=True, type='mmpretrain.SwinTransformer', arch='tiny', drop_path_rate=0.2
    ),
    neck=dict(type='mmpretrain.GlobalAveragePooling'),
    head=dict(in_channels=768),
)
