default_scope = 'mmpretrain'
env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# TensorBoard: --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend
visualizer = dict(
    type='mmpretrain.UniversalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
)
custom_hooks = [dict(type='mmvars.SaveOnInterruptHook')]
log_level = 'INFO'
load_from = None
resume = False
