# 77.4 % top-1 reported by the authors (Table 1.2). Without its auxiliary head.
_base_ = [
    '../_base_/models/timm_classifier.py',
    '../_base_/datasets/imagenet_299px.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(model_name='inception_v3')
