# 83.5 % top-1 reported by the authors (Table 2.2).
_base_ = [
    '../_base_/models/vit_classifier.py',
    '../_base_/datasets/imagenet_fan.py',
    '../_base_/schedules/adamw_cosine_300e_fan.py',
    '../_base_/runtime/classification_fan.py',
]
model = dict(backbone=dict(type='mmvars.FAN', arch='base', drop_path_rate=0.35))
# Erase 0.3 of the images.
train_pipeline = [
    *_base_.train_pipeline[:5],
    {**_base_.train_pipeline[5], 'erase_prob': 0.3},
    *_base_.train_pipeline[6:],
]
train_dataloader = dict(batch_size=64, dataset=dict(pipeline=train_pipeline))
