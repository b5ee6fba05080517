# UperNet and an auxiliary FCN on four stride-16 maps of a ViT-B; no neck and no pyramid, as in the
# authors' segmentation code. Leaves set the backbone's type and arch, and the number of classes;
# the heads take their in_channels from the backbone.
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(
        type='mmseg.SegDataPreProcessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    backbone=dict(
        type='mmvars.ViT',
        arch='base',
        img_size=512,
        out_indices=(2, 5, 8, 11),
        # To fine-tune, add (after `mmvars convert`):
        # init_cfg=dict(type='Pretrained', checkpoint='absvit_base.pth')
        drop_path_rate=0.1,
    ),
    decode_head=dict(
        type='mmseg.UPerHead',
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=dict(
        type='mmseg.FCNHead',
        in_index=3,
        channels=256,
        num_convs=1,
        concat_input=False,
        dropout_ratio=0.1,
        num_classes=150,
        norm_cfg=norm_cfg,
        align_corners=False,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
