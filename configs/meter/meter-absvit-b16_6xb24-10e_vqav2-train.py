# Trained on train alone, so that the accuracy on val is that of new questions.
_base_ = './meter-absvit-b16_6xb24-10e_vqav2.py'
train_dataloader = dict(
    dataset=dict(_delete_=True, **_base_.train_set, pipeline=_base_.train_pipeline)
)
test_dataloader = _base_.val_dataloader
