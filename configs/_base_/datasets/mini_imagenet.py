# The embedded mini set in the layout of ImageNet: close-ups of single objects of six of the 1000
# classes, no download.
_base_ = './imagenet.py'
# Not an import statement: mmengine would take this file for one of its "lazy" configs.
data_root = __import__('mmvars.data').data.mini_root('imagenet')
crop_size = 64
train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=crop_size,
        crop_ratio_range=(0.5, 1.0),
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(
        type='mmpretrain.ResizeEdge',
        scale=crop_size,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=crop_size),
    dict(type='mmpretrain.PackInputs'),
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
train_dataloader = dict(
    batch_size=16, num_workers=2, dataset=dict(data_root=data_root, pipeline=train_pipeline)
)
val_dataloader = dict(
    batch_size=16, num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline)
)
test_dataloader = val_dataloader
