# Training that makes top-down attention follow what it is asked for, for any segmentor of mmvars
# with type='mmvars.AbSViT' as its backbone. Two lines turn it on:
#   _base_ = ['path/to/any_absvit_config.py', 'path/to/configs/_base_/steerable.py']
#   model = _base_.steerable
# The class priors are learned. On a trained trunk start from a file of `mmvars prototypes`, which
# answers depend on most: init_cfg=dict(type='Pretrained', checkpoint=FILE) of the backbone. With
# prior=dict(type='class_prototype') and prior_loss_weight=0 they stay at that.
steerable = dict(
    backbone=dict(prior=dict(type='learned_classes')),
    prior_sampler=dict(type='mmvars.PriorSampler', present=0.5, absent=0.2, mosaic=0.25),
    prompt_head=dict(type='mmvars.PromptHead'),
    prior_loss_weight=1.0,
)
# For a model that is trained already, model = _base_.steering_stage and load_from = its checkpoint:
# only feedback, priors and the new head train. Where it is asked for nothing it is then, on a trunk
# of timm, to the bit what it was without feedback (alpha 0).
steering_stage = dict(
    backbone=dict(prior=dict(type='learned_classes'), transfer='top-down'),
    frozen_heads=True,
    **{key: steerable[key] for key in ('prior_sampler', 'prompt_head', 'prior_loss_weight')},
)
