# ImageNet-1k in crops of 299 x 299 pixels, for InceptionV3.
_base_ = './imagenet.py'
crop_size = 299
train_pipeline = [
    _base_.train_pipeline[0],
    {**_base_.train_pipeline[1], 'scale': crop_size},
    *_base_.train_pipeline[2:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    {**_base_.test_pipeline[1], 'scale': 342},
    dict(type='CenterCrop', crop_size=crop_size),
    _base_.test_pipeline[-1],
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
