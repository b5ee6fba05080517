# Trained on Flickr30K, as the released command does. Under "zero-shot" the authors report IR@1
# 42.04, IR@5 77.38, IR@10 86.90 % (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16_retrieval.py',
    '../_base_/datasets/flickr30k.py',
    '../_base_/schedules/meter_10e_retrieval.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        design='feedback',
        init_cfg=dict(checkpoint='checkpoints/feedback-b16_in1k.pth'),
    )
)
