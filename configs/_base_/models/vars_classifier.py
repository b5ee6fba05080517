# RVT-Ti and a linear head on the mean of the last map. Leaves set the backbone's arch and mixer.
_base_ = './vit_classifier.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmvars.VARS',
        arch='rvt_tiny',
        img_size=224,
        out_type='pooled',
        drop_path_rate=0.1,
    ),
    # RVT and VARS leave their linear layers, the classifier among them, as torch initializes them.
    head=dict(init_cfg=None),
)
