"""mmvars: bottom-up and top-down attention (VARS, AbSViT) as OpenMMLab backbones."""

from mmvars import base_configs

__version__ = '0.2.0.dev0'

base_configs.enable()
