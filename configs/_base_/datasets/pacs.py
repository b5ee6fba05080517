# PACS in its usual folders, DOMAIN/CLASS/IMAGE. The thesis and the release state no recipe; this is
# that of DomainBed: four fifths of each source domain, augmented mildly, and the whole image in
# tests. `target` is the domain that is tested: art_painting, cartoon, photo, sketch.
data_root = 'data/pacs'
num_classes = 7
crop_size = 224
load_image = dict(type='LoadImageFromFile', _scope_='mmvars')
train_pipeline = [
    load_image,
    dict(
        type='mmpretrain.RandomResizedCrop',
        scale=crop_size,
        crop_ratio_range=(0.7, 1.0),
        backend='pillow',
    ),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='mmpretrain.ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, hue=0.3),
    dict(
        type='RandomGrayscale',
        prob=0.1,
        keep_channels=True,
        channel_weights=(0.114, 0.587, 0.299),  # blue, green, red
    ),
    dict(type='mmpretrain.PackInputs'),
]
test_pipeline = [
    load_image,
    dict(type='Resize', scale=crop_size, backend='pillow'),
    dict(type='mmpretrain.PackInputs'),
]
tta_pipeline = [
    *test_pipeline[:-1],
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='RandomFlip', prob=p, direction='horizontal') for p in (0.0, 1.0)],
            [dict(type='mmpretrain.PackInputs')],
        ],
    ),
]
dataset = dict(type='mmvars.PACS', data_root=data_root, target='sketch', split_seed=0)
train_dataloader = dict(
    batch_size=96,  # 32 of each source domain
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='mmvars.DomainSampler'),
    collate_fn=dict(type='default_collate'),
    dataset=dict(split='train', pipeline=train_pipeline, **dataset),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(split='val', pipeline=test_pipeline, **dataset),  # of the source domains
)
test_dataloader = dict(
    val_dataloader, dataset=dict(split='test', pipeline=test_pipeline, **dataset)
)
val_evaluator = dict(type='mmpretrain.Accuracy', topk=(1,))
test_evaluator = val_evaluator
