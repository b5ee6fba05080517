# 73.3 % top-1 reported by the authors (Table 1.2).
_base_ = [
    '../_base_/models/timm_classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/adamw_cosine_300e.py',
    '../_base_/runtime/classification.py',
]
model = dict(model_name='convit_tiny', drop_path_rate=0.1)
