# Short training of a head and of pre-tuned feedback on a frozen trunk, on a CPU. The gates start
# closed, and each is one number: they take a larger rate.
_base_ = './mini_seg.py'
train_cfg = dict(max_iters=100, val_interval=100)
optim_wrapper = dict(
    optimizer=dict(lr=1e-3),
    paramwise_cfg=dict(
        custom_keys={
            '.gate': dict(lr_mult=30.0, decay_mult=0.0),
            'decode_head': dict(lr_mult=10.0),
            'prompt_head': dict(lr_mult=3.0),
            'prior': dict(decay_mult=0.0),
        }
    ),
)
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-1, by_epoch=False, begin=0, end=10),
    dict(type='PolyLR', power=1.0, eta_min=0.0, by_epoch=False, begin=10, end=100),
]
