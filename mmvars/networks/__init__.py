"""Whole networks: pure torch, no host framework."""

from mmvars.networks.fan import FAN
from mmvars.networks.feedback import Feedback, MaskFeedback
from mmvars.networks.passes import FirstPass, TopDownOutput
from mmvars.networks.plain_path import plain_path
from mmvars.networks.prior import (PRIORS, ClassPrototype, GivenVector, LearnedQuery, Prior,
                                   token_mask)
from mmvars.networks.rvt import RVT
from mmvars.networks.shortcuts import Shortcuts
from mmvars.networks.top_down import TopDown
from mmvars.networks.trunk import Trunk, TrunkOutput
from mmvars.networks.variants import (DESIGNS, SIZES, TRUNK_MIXERS, TRUNKS, VARIANTS,
                                       build_network, build_prior)
from mmvars.networks.vit import VisionTransformer

__all__ = [
    'DESIGNS', 'FAN', 'PRIORS', 'RVT', 'SIZES', 'TRUNKS', 'TRUNK_MIXERS', 'VARIANTS',
    'ClassPrototype', 'Feedback', 'FirstPass', 'GivenVector', 'LearnedQuery', 'MaskFeedback',
    'Prior', 'Shortcuts', 'TopDown', 'TopDownOutput', 'Trunk', 'TrunkOutput', 'VisionTransformer',
    'build_network', 'build_prior', 'plain_path', 'token_mask'
]
