# Trains on a CPU in minutes, on shapes: no number is to be compared with published ones.
_base_ = [
    '../_base_/models/meter_mini.py',
    '../_base_/datasets/easy_vqa_captions.py',
    '../_base_/schedules/meter_mini.py',
    '../_base_/runtime/meter_mini.py',
]
model = dict(
    backbone=dict(type='mmvars.AbSViT', prior=dict(type='text', text_dim=64)),
    head=dict(_delete_=True, type='mmvars.RetrievalHead'),
)
