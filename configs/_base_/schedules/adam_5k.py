# DomainBed's: Adam at a constant rate, without weight decay.
train_cfg = dict(by_epoch=False, max_iters=5000, val_interval=250)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='Adam', lr=5e-5))
param_scheduler = [dict(type='ConstantLR', factor=1.0, by_epoch=False, begin=0, end=5000)]
auto_scale_lr = dict(enable=False, base_batch_size=96)
