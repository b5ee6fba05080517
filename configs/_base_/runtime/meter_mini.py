# Training that is counted in iterations.
_base_ = './meter.py'
default_hooks = dict(
    logger=dict(interval=20), checkpoint=dict(interval=500, by_epoch=False, max_keep_ckpts=1)
)
log_processor = dict(by_epoch=False)
