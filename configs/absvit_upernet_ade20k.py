# AbSViT-B + UperNet + FCN on ADE20K: the short name of the config below.
_base_ = './absvit/absvit-b16_upernet_2xb8-160k_ade20k-512x512.py'
