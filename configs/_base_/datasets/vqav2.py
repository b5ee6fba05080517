# VQAv2 on the photographs of COCO, prepared as in the release of METER and AbSViT: trained on train
# and val, so that the accuracy on val says nothing of other questions; the test writes a file for
# EvalAI (`mmvars test ... --out answers.json`). To measure here: *_vqav2-train.py.
# The vocabulary is made once, by tools/dataset_converters/vqa_answers.py.
data_root = 'data/coco'
crop_size = 224
load_image = dict(type='LoadImageFromFile', _scope_='mmvars', allow=('gray', 'cmyk'))
resize = [
    dict(
        type='mmpretrain.ResizeEdge',
        scale=crop_size,
        edge='short',
        backend='pillow',
        interpolation='bicubic',
    ),
    dict(type='CenterCrop', crop_size=crop_size),
]
pack = dict(
    type='mmpretrain.PackInputs',
    algorithm_keys=('question', 'gt_answer', 'gt_answer_weight'),
    meta_keys=('question_id', 'answer_type', 'image_id', 'img_path', 'ori_shape', 'img_shape'),
)
always = dict(prob=1.0)
either = dict(prob=1.0, random_negative_prob=0.5)
less = dict(prob=1.0, random_negative_prob=0.0, magnitude_range=(-0.9, 0.9))
rand_augment = dict(  # RandAugment(2, 9) of 14 operations, of which mmpretrain moves by shares
    type='mmpretrain.RandAugment',
    num_policies=2,
    magnitude_level=9,
    total_level=30,
    policies=[
        dict(type='AutoContrast', **always),
        dict(type='Equalize', **always),
        dict(type='Rotate', magnitude_range=(0, 30), **either),
        dict(type='Posterize', magnitude_range=(0, 4), **always),
        dict(type='Solarize', magnitude_range=(0, 256), **always),
        dict(type='SolarizeAdd', magnitude_range=(0, 110), **always),
        dict(type='ColorTransform', **less),
        dict(type='Contrast', **less),
        dict(type='Brightness', **less),
        dict(type='Sharpness', **less),
        dict(type='Shear', direction='horizontal', magnitude_range=(0, 0.3), **either),
        dict(type='Shear', direction='vertical', magnitude_range=(0, 0.3), **either),
        dict(type='Translate', direction='horizontal', magnitude_range=(0, 0.2), **either),
        dict(type='Translate', direction='vertical', magnitude_range=(0, 0.2), **either),
    ],
)
train_pipeline = [load_image, rand_augment, *resize, pack]
test_pipeline = [load_image, *resize, pack]
train_set, val_set = [
    dict(
        type='mmvars.VQAv2',
        data_root=data_root,
        data_prefix=f'{name}2014',
        question_file=f'annotations/v2_OpenEnded_mscoco_{name}2014_questions.json',
        ann_file=f'annotations/v2_mscoco_{name}2014_annotations.json',
    )
    for name in ('train', 'val')
]
train_dataloader = dict(
    batch_size=24,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type='ConcatDataset',
        datasets=[dict(part, pipeline=train_pipeline) for part in (train_set, val_set)],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(val_set, pipeline=test_pipeline, test_mode=True),
)
test_dataloader = dict(
    val_dataloader,
    dataset=dict(
        type='mmvars.VQAv2',
        data_root=data_root,
        data_prefix='test2015',
        question_file='annotations/v2_OpenEnded_mscoco_test2015_questions.json',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
val_evaluator = dict(type='mmvars.VQAMetric')
test_evaluator = dict(type='mmvars.VQAMetric')
val_cfg = dict()
test_cfg = dict()
