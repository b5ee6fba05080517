# The same on many GPUs: weights and optimizer spread over them (FSDP), bfloat16, and each block
# computed again in the backward pass. Eight GPUs x 2 images; --cfg-options
# auto_scale_lr.enable=True for other products than 16.
_base_ = './absvit/absvit-b16_upernet_2xb8-160k_ade20k-512x512.py'
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel',
        auto_wrap_policy='mmvars.layers.is_block',
        mixed_precision=dict(param_dtype='bfloat16', reduce_dtype='float32'),
    ),
    activation_checkpointing=dict(check_fn='mmvars.layers.is_block'),
    state_dict_cfg='full',
)
train_dataloader = dict(batch_size=2)
