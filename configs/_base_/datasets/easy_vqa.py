# Questions about colored shapes, which tools/dataset_converters/easy_vqa.py writes in the layout of
# VQAv2. Validated on training images that are left out.
data_root = 'data/easy_vqa'
crop_size = 64
load_image = dict(type='LoadImageFromFile', _scope_='mmvars')
pipeline = [
    load_image,
    dict(
        type='mmpretrain.PackInputs',
        algorithm_keys=('question', 'gt_answer', 'gt_answer_weight'),
        meta_keys=('question_id', 'answer_type', 'image_id', 'img_path', 'ori_shape', 'img_shape'),
    ),
]
train_dataloader, val_dataloader, test_dataloader = [
    dict(
        batch_size=32,
        num_workers=0,
        sampler=sampler,
        collate_fn=dict(type='default_collate'),
        dataset=dict(
            type='mmvars.VQAv2',
            data_root=data_root,
            data_prefix=split,
            question_file=f'annotations/{split}_questions.json',
            ann_file=f'annotations/{split}_annotations.json',
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
val_evaluator = dict(type='mmvars.VQAMetric')
test_evaluator = dict(type='mmvars.VQAMetric')
val_cfg = dict()
test_cfg = dict()
