# Flickr30K by Karpathy's splits, prepared as in the release: trained on train and val (30,014
# images), validated and tested on the 1,000 images of test.
_base_ = './vqav2.py'
data_root = 'data/flickr30k'
pack = [
    dict(
        type='mmpretrain.PackInputs',
        algorithm_keys=('text', 'gt_text_id'),
        meta_keys=('image_id', 'img_path', 'ori_shape', 'img_shape'),
    )
]
train_pipeline = [*_base_.train_pipeline[:-1], *pack]
test_pipeline = [*_base_.test_pipeline[:-1], *pack]
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        _delete_=True,
        type='mmvars.Flickr30K',
        data_root=data_root,
        split=('train', 'val'),
        num_negatives=15,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    dataset=dict(
        _delete_=True,
        type='mmvars.Flickr30K',
        data_root=data_root,
        split='test',
        pipeline=test_pipeline,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(_delete_=True, type='mmvars.RetrievalMetric', topk=(1, 5, 10))
test_evaluator = val_evaluator
val_cfg = dict(type='mmvars.RetrievalValLoop')
test_cfg = dict(type='mmvars.RetrievalTestLoop')
