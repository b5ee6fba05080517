"""Adapters to OpenMMLab. A host's models are registered where that host can be imported."""

from mmvars.models.backbones import AbSViT, ViT
from mmvars.models.hosts import HOSTS, register

__all__ = ['AbSViT', 'ViT']

for _host in HOSTS:
    register(_host)
