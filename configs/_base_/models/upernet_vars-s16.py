# UperNet + FCN on the small sizes of RVT and of DeiT with a convolutional stem: four stride-16 maps
# of 384 channels. Leaves set the backbone's arch and mixer, and the number of classes.
# SyncBN is for the heads alone: stem, conv MLPs and VARS-S keep plain BN, as the authors train them.
_base_ = './upernet_vit-b16.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.VARS',
        arch='rvt_small',
        # img_size is left at ImageNet's 224: positions, static atoms and filters stay those of the
        # classifier, and are resampled to the grid of the crop in every forward. With the crop's
        # size they would be made for its grid, and VARS-S have 38 instead of 22 M parameters.
        out_indices=(2, 5, 8, 11),
        drop_path_rate=0.1),
    decode_head=dict(in_channels=[384, 384, 384, 384]),
    auxiliary_head=dict(in_channels=384))
