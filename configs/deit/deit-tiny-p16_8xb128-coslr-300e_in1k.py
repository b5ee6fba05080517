# 72.2 % top-1 reported by the authors (Table 1.2). DeiT-Ti is ViT-Ti, trained by the same recipe.
_base_ = '../vit/vit-tiny-p16_8xb128-coslr-300e_in1k.py'
