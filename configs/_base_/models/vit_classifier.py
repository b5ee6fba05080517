# ViT-B and a linear head. The backbone gives what its own classifier reads (class token or mean of
# the patch tokens), and the head takes its in_channels from it. With an AbSViT both passes are
# supervised, with weight 1/2 each.
model = dict(
    type='mmvars.ImageClassifier',
    data_preprocessor=dict(
        type='mmpretrain.ClsDataPreprocessor',
        num_classes=1000,
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type='mmvars.ViT', arch='base', img_size=224, out_type='pooled', drop_path_rate=0.1
    ),
    head=dict(
        type='mmpretrain.LinearClsHead',
        num_classes=1000,
        loss=dict(
            type='mmpretrain.LabelSmoothLoss',
            label_smooth_val=0.1,
            mode='original',
            num_classes=1000,
        ),
        init_cfg=dict(type='TruncNormal', layer='Linear', std=0.02),
    ),
    # One of the two for each batch, with equal chances (a switch probability of 0.5).
    train_cfg=dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)]),
)
