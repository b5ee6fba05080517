# ADE20K, 150 classes. Label 0 of the files means "none of them" and is ignored.
data_root = 'data/ade/ADEChallengeData2016'
num_classes = 150
crop_size = (512, 512)
img_scale = (2048, 512)
# The data set may hold gray photographs, so they are let through; all else is refused.
# mmseg's inference looks for the bare names LoadImageFromFile and LoadAnnotations.
train_pipeline = [
    dict(type='mmvars.LoadImageFromFile', allow=('gray',)),
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='mmvars.CheckLabels', num_classes=num_classes),
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='mmseg.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmseg.PhotoMetricDistortion'),
    dict(type='mmseg.PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmvars', allow=('gray',)),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    # After Resize: predictions are compared at the size of the label file.
    dict(type='LoadAnnotations', reduce_zero_label=True),
    dict(type='mmvars.CheckLabels', num_classes=num_classes),
    dict(type='mmseg.PackSegInputs'),
]
tta_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmvars', allow=('gray',)),
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale_factor=r, keep_ratio=True)
                for r in (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
            ],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations', reduce_zero_label=True)],
            [dict(type='mmseg.PackSegInputs')],
        ],
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type='mmseg.ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='mmseg.ADE20KDataset',
        data_root=data_root,
        data_prefix=dict(img_path='images/validation', seg_map_path='annotations/validation'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
