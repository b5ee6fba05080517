# The embedded mini set in the layout of ImageNet: crops of single objects, no download.
_base_ = './imagenet.py'
# Not an import statement: mmengine would take this file for one of its "lazy" configs.
data_root = __import__('mmvars.data').data.mini_root('imagenet')
num_classes = 6
crop_size = 64
train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        type='mmpretrain.RandomResizedCrop', scale=crop_size, crop_ratio_range=(0.5, 1.0),
        backend='pillow', interpolation='bicubic'),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.PackInputs')
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(
        type='mmpretrain.ResizeEdge', scale=crop_size, edge='short', backend='pillow',
        interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=crop_size),
    dict(type='mmpretrain.PackInputs')
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
train_dataloader = dict(
    batch_size=16,
    num_workers=2,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    dataset=dict(
        _delete_=True,
        type='mmpretrain.CustomDataset',
        data_root=data_root,
        data_prefix='val',
        pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(topk=(1, ))
test_evaluator = val_evaluator
