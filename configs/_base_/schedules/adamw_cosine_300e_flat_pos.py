# For backbones with positions, and no class token.
_base_ = './adamw_cosine_300e.py'
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={'_delete_': True, '.pos_embed': dict(decay_mult=0.)}))
