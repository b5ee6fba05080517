# METER on ViT-B and RoBERTa-base, with the sizes of the release. The weights of both are given.
model = dict(
    type='mmvars.METER',
    # Those of CLIP, as in the release, although the vision backbone was trained with ImageNet's.
    data_preprocessor=dict(
        mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], to_rgb=True
    ),
    backbone=dict(
        type='mmvars.ViT',
        arch='base',
        img_size=224,
        out_type='featmap_cls_token',
        init_cfg=dict(type='Pretrained', checkpoint='checkpoints/vit-b16_in1k.pth'),
    ),
    text_backbone=dict(
        type='mmvars.TextBackbone', name='roberta-base', max_length=50, text_vector='padded_mean'
    ),
    fusion=dict(hidden_dim=768, num_layers=6, num_heads=12, mlp_ratio=4, dropout=0.1),
    head=dict(type='mmvars.VQAHead', num_answers=3129),
)
