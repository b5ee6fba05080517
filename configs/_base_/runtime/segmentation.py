default_scope = 'mmseg'
env_cfg = dict(
    cudnn_benchmark=True,
    mp_cfg=dict(mp_start_method='fork', opencv_num_threads=0),
    dist_cfg=dict(backend='nccl'),
)
# TensorBoard: --cfg-options visualizer.vis_backends.0.type=TensorboardVisBackend
visualizer = dict(
    type='mmseg.SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')], name='visualizer'
)
tta_model = dict(type='mmvars.SegTTAModel')
default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=2000, max_keep_ckpts=2),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='mmseg.SegVisualizationHook', draw=False),
)
custom_hooks = [
    # Attention pictures at every validation: --cfg-options custom_hooks.0.draw=True
    dict(type='mmvars.AttentionVisualizationHook', draw=False),
    dict(type='mmvars.SaveOnInterruptHook'),
]
log_processor = dict(by_epoch=False)
log_level = 'INFO'
load_from = None
resume = False
