# UperNet and an auxiliary FCN on four maps of a pretrained ViT of timm, which also trains. Leaves
# set arch, mean and std (ImageNet's here), and the number of classes. Positions keep the grid that
# they were trained for, and follow the images'. Of the 24 blocks of L take 5, 11, 17, 23.
_base_ = './upernet_vit-b16.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.AbSViT',
        arch='timm/vit_base_patch14_dinov2.lvd142m',
        pretrained=True,
        out_indices=(-10, -7, -4, -1),
        drop_path_rate=0.1,
        # After `mmvars pretune`, add init_cfg=dict(type='Pretrained', checkpoint=FILE)
    ),
)
