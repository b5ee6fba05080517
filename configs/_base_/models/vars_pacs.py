# RVT-Ti with a new linear head of 7 classes. Leaves set the mixer and the ImageNet checkpoint.
_base_ = './vit_classifier.py'
model = dict(
    data_preprocessor=dict(num_classes=7),
    backbone=dict(
        _delete_=True,
        type='mmvars.VARS',
        arch='rvt_tiny',
        img_size=224,
        out_type='pooled',
        drop_path_rate=0.1,
    ),
    head=dict(
        num_classes=7, loss=dict(_delete_=True, type='mmpretrain.CrossEntropyLoss'), init_cfg=None
    ),
    train_cfg=None,  # no mixup
)
