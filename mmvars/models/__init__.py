"""Adapters to OpenMMLab. A host's models are registered where that host is installed."""

from importlib.util import find_spec

from mmvars.models.backbones import AbSViT, ViT

__all__ = ['AbSViT', 'ViT']

if find_spec('mmseg') is not None:
    from mmvars.models import segmentors  # noqa: F401
if find_spec('mmpretrain') is not None:
    from mmvars.models import classifiers  # noqa: F401
