# RVT-Ti and a linear head on the mean of the last map. Leaves set the backbone's arch and mixer.
_base_ = './vit_classifier.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.VARS',
        arch='rvt_tiny',
        img_size=224,
        out_type='avg_featmap',
        drop_path_rate=0.1),
    head=dict(in_channels=384))
