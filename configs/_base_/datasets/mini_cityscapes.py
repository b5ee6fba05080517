# The embedded mini set in the layout of Cityscapes: 48 + 16 small rendered scenes, no download.
_base_ = './cityscapes.py'
# Not an import statement: mmengine would take this file for one of its "lazy" configs.
data_root = __import__('mmvars.data').data.mini_root('cityscapes')
crop_size = (128, 256)
img_scale = (256, 128)
train_pipeline = [
    *_base_.train_pipeline[:3],
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='mmseg.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *_base_.train_pipeline[5:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    *_base_.test_pipeline[2:],
]
train_dataloader = dict(num_workers=2, dataset=dict(data_root=data_root, pipeline=train_pipeline))
val_dataloader = dict(num_workers=1, dataset=dict(data_root=data_root, pipeline=test_pipeline))
test_dataloader = val_dataloader
