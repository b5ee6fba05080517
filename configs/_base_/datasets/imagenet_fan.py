# ImageNet-1k for FAN, 8 GPUs x 256 images: tests take the whole short side (a crop of 100 %).
_base_ = './imagenet.py'
test_pipeline = [
    _base_.test_pipeline[0],
    {**_base_.test_pipeline[1], 'scale': 224},
    *_base_.test_pipeline[2:]
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
# The base size erases more often.
train_pipeline_base = [
    *_base_.train_pipeline[:5],
    {**_base_.train_pipeline[5], 'erase_prob': 0.3},
    *_base_.train_pipeline[6:]
]
train_dataloader = dict(batch_size=256)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
