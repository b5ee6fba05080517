# A linear head on the last map of a frozen, pretrained ViT of timm: what trains is the head, and of
# the backbone prior and feedback. transfer='linear' leaves the head alone. Leaves as upernet_timm.
_base_ = './upernet_vit-b16.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.AbSViT',
        arch='timm/vit_base_patch14_dinov2.lvd142m',
        pretrained=True,
        transfer='top-down',
        # After `mmvars pretune`, add init_cfg=dict(type='Pretrained', checkpoint=FILE)
    ),
    decode_head=dict(
        _delete_=True,
        type='mmvars.LinearHead',
        num_classes=150,
        loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
    ),
    auxiliary_head=None,
)
