# The embedded photographs: 23 + 9 of COCO, ten classes, no download.
data_root = __import__('mmvars.data').data.photos_root()
classes = list(__import__('mmvars.data').data.PHOTO_CLASSES)
num_classes = len(classes)
crop_size = (168, 168)
img_scale = (448, 448)
# mmseg's inference looks for the bare names LoadImageFromFile and LoadAnnotations.
train_pipeline = [
    dict(type='mmvars.LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='mmvars.CheckLabels', num_classes=num_classes),
    dict(type='RandomResize', scale=img_scale, ratio_range=(0.5, 1.25), keep_ratio=True),
    dict(type='mmseg.RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='mmseg.PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile', _scope_='mmvars'),
    dict(type='Resize', scale=img_scale, keep_ratio=True),
    # After Resize: predictions are compared at the size of the label file.
    dict(type='LoadAnnotations'),
    dict(type='mmvars.CheckLabels', num_classes=num_classes),
    dict(type='mmseg.PackSegInputs'),
]
tta_pipeline = [
    test_pipeline[0],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale_factor=r, keep_ratio=True) for r in (0.75, 1.0, 1.25)],
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='LoadAnnotations')],
            [test_pipeline[3]],
            [dict(type='mmseg.PackSegInputs')],
        ],
    ),
]
dataset = dict(type='mmseg.BaseSegDataset', data_root=data_root, metainfo=dict(classes=classes))
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        data_prefix=dict(img_path='images/train', seg_map_path='labels/train'),
        pipeline=train_pipeline,
        **dataset,
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        data_prefix=dict(img_path='images/val', seg_map_path='labels/val'),
        pipeline=test_pipeline,
        **dataset,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='mmseg.IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator
