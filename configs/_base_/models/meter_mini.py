# METER small enough for a CPU, from scratch: three blocks, two of text, two of fusion, 64 channels.
model = dict(
    type='mmvars.METER',
    data_preprocessor=dict(
        mean=[122.771, 116.746, 104.094], std=[68.501, 66.632, 70.323], to_rgb=True
    ),
    backbone=dict(
        type='mmvars.ViT',
        arch=dict(embed_dims=64, num_layers=3, num_heads=4, patch_size=16),
        img_size=64,
        out_type='featmap_cls_token',
    ),
    text_backbone=dict(
        type='mmvars.TextBackbone',
        name='data/easy_vqa/text_encoder',
        pretrained=False,
        max_length=20,
        text_vector='mean',
        config=dict(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
    ),
    fusion=dict(hidden_dim=64, num_layers=2, num_heads=4, mlp_ratio=2, dropout=0.0),
    head=dict(type='mmvars.VQAHead', num_answers=13),
    # BERT's deviation of 0.02 is meant for 768 channels.
    init_cfg=dict(type='Xavier', layer='Linear', distribution='normal'),
)
