# AbSViT-B + UperNet + FCN on PASCAL VOC 2012: the short name of the config below.
_base_ = './absvit/absvit-b16_upernet_2xb8-20k_voc12-512x512.py'
