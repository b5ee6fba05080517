# Trained on Flickr30K, as the released command does. Under "zero-shot" the authors report IR@1
# 42.52, IR@5 76.92, IR@10 86.73 % (Table 2.1).
_base_ = [
    '../_base_/models/meter_b16_retrieval.py',
    '../_base_/datasets/flickr30k.py',
    '../_base_/schedules/meter_10e_retrieval.py',
    '../_base_/runtime/meter.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT',
        design='perceiver_io',
        prior=dict(type='text', text_dim=768),
        init_cfg=dict(checkpoint='checkpoints/perceiver-io-b16_in1k.pth', allow_new=('prior',)),
    )
)
