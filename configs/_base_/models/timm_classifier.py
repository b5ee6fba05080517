# A classifier of timm, head included, trained like the others. Leaves set the model's name.
_base_ = './vit_classifier.py'
model = dict(
    _delete_=True,
    type='mmpretrain.TimmClassifier',
    model_name='pit_ti_224',
    num_classes=1000,
    data_preprocessor=_base_.model.data_preprocessor,
    loss=_base_.model.head.loss,
    train_cfg=_base_.model.train_cfg,
)
