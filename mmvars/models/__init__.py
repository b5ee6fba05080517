"""Adapters to OpenMMLab. A host's models are registered where that host can be imported."""

from mmvars.models.backbones import AbSViT, ViT
from mmvars.models.fan import FAN
from mmvars.models.hosts import HOSTS, register
from mmvars.models.vars import RVT, VARS, GFNet

__all__ = ['FAN', 'AbSViT', 'GFNet', 'RVT', 'VARS', 'ViT']

for _host in HOSTS:
    register(_host)
