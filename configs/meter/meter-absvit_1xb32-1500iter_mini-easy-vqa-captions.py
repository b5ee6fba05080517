# Trains on a CPU in minutes, on shapes: no number is to be compared with published ones. It is
# shallow, since ranking is slow to learn from scratch; the prior loss (Eq. 2.15) helps at first.
_base_ = [
    '../_base_/models/meter_mini.py',
    '../_base_/datasets/easy_vqa_captions.py',
    '../_base_/schedules/meter_mini_retrieval.py',
    '../_base_/runtime/meter_mini.py',
]
model = dict(
    backbone=dict(
        type='mmvars.AbSViT', arch=dict(num_layers=2), prior=dict(type='text', text_dim=64)
    ),
    text_backbone=dict(config=dict(num_hidden_layers=1)),
    fusion=dict(num_layers=1),
    head=dict(_delete_=True, type='mmvars.RetrievalHead'),
    prior_loss_cfg=dict(weight=1.0, form='clip'),
)
