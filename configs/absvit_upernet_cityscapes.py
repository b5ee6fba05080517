# AbSViT-B + UperNet + FCN on Cityscapes: the short name of the config below.
_base_ = './absvit/absvit-b16_upernet_2xb8-40k_cityscapes-512x1024.py'
