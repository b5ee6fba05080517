# ImageNet-1k by FAN's own scripts: no repeated augmentation, bilinear or bicubic interpolation at
# random in training, and tests that take the whole short side (a crop of 100 %). Leaves set the
# batch size; the base size erases with a probability of 0.3.
_base_ = './imagenet.py'
train_pipeline = [
    _base_.train_pipeline[0],
    dict(
        type='RandomChoice',
        transforms=[
            [{**_base_.train_pipeline[1], 'interpolation': 'bilinear'}],
            [{**_base_.train_pipeline[1], 'interpolation': 'bicubic'}],
        ],
    ),
    _base_.train_pipeline[2],
    dict(
        type='RandomChoice',
        transforms=[
            [
                {
                    **_base_.train_pipeline[3],
                    'hparams': dict(pad_val=[104, 116, 124], interpolation='bilinear'),
                }
            ],
            [_base_.train_pipeline[3]],
        ],
    ),
    *_base_.train_pipeline[4:],
]
test_pipeline = [
    _base_.test_pipeline[0],
    {**_base_.test_pipeline[1], 'scale': 224},
    *_base_.test_pipeline[2:],
]
tta_pipeline = [*test_pipeline[:-1], _base_.tta_pipeline[-1]]
train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True),
    dataset=dict(pipeline=train_pipeline),
)
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
