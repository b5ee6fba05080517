# Captions of colored shapes: one image of each color, shape and quarter in validation and in tests.
data_root = 'data/easy_vqa'
crop_size = 64
load_image = dict(type='LoadImageFromFile', _scope_='mmvars')
pipeline = [
    load_image,
    dict(
        type='mmpretrain.PackInputs',
        algorithm_keys=('text', 'gt_text_id'),
        meta_keys=('image_id', 'img_path', 'ori_shape', 'img_shape'),
    ),
]
train_dataloader, val_dataloader, test_dataloader = [
    dict(
        batch_size=32,
        num_workers=0,
        sampler=sampler,
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='mmvars.Flickr30K',
            data_root=data_root,
            data_prefix=split,
            ann_file='annotations/captions.json',
            split=split,
            num_negatives=3,
            pipeline=pipeline,
            test_mode=split != 'train',
        ),
    )
    for split, sampler in (
        ('train', dict(type='InfiniteSampler', shuffle=True)),
        ('val', dict(type='DefaultSampler', shuffle=False)),
        ('test', dict(type='DefaultSampler', shuffle=False)),
    )
]
val_evaluator = dict(type='mmvars.RetrievalMetric', topk=(1, 5, 10))
test_evaluator = val_evaluator
val_cfg = dict(type='mmvars.RetrievalValLoop')
test_cfg = dict(type='mmvars.RetrievalTestLoop')
