# UperNet + FCN on RVT-Ti: three maps of its ten blocks at stride 16 and the last one at stride 32.
# The auxiliary head takes the last stride-16 map: the stride-32 map has the decode head's loss at
# once, through the pyramid pooling, and a quarter of the pixels.
# SyncBN is for the heads alone: stem, conv MLPs and VARS-S keep plain BN, as the authors train them.
_base_ = './upernet_vit-b16.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.VARS',
        arch='rvt_tiny',
        out_indices=(2, 5, 9, 11),
        drop_path_rate=0.1),
    decode_head=dict(in_channels=[192, 192, 192, 384]),
    auxiliary_head=dict(in_channels=192, in_index=2))
