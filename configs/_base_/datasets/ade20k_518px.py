# Crops of 37 x 37 patches of 14 pixels, for trunks with such patches.
_base_ = './ade20k.py'
crop_size = (518, 518)
train_pipeline = [
    *_base_.train_pipeline[:4],
    dict(type='mmseg.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    *_base_.train_pipeline[5:],
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
