"""mmvars: bottom-up and top-down attention (VARS, AbSViT) as OpenMMLab backbones."""

__version__ = '0.2.0.dev0'
