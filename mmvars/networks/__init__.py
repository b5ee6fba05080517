"""Networks: pure torch, without OpenMMLab. Start reading at :mod:`mmvars.networks.top_down`."""

from mmvars.networks.factory import (
    ARCH_ZOO,
    MODELS,
    TIMM_PREFIXES,
    TOP_DOWN_DESIGNS,
    build_prior,
    create_model,
    network_name,
)
from mmvars.networks.fan import FAN
from mmvars.networks.feedback import (
    MODULATIONS,
    PHRASINGS,
    PRIORS,
    RECONSTRUCTION_LOSSES,
    ClassPrototype,
    ExternalPrior,
    Feedback,
    LayerDecoder,
    LearnedClasses,
    LearnedQuery,
    LearnedText,
    MaskFeedback,
    Prior,
    StageUpsample,
    token_weights,
)
from mmvars.networks.old_keys import rename_old_keys
from mmvars.networks.regression import BlockFit, DecoderRegression, pretune
from mmvars.networks.rvt import RVT
from mmvars.networks.top_down import FirstPassOutput, PerceiverIO, TopDown, TopDownOutput
from mmvars.networks.trunk import Trunk, TrunkOutput
from mmvars.networks.vit import VisionTransformer

__all__ = [
    'ARCH_ZOO',
    'FAN',
    'MODELS',
    'MODULATIONS',
    'PHRASINGS',
    'PRIORS',
    'RECONSTRUCTION_LOSSES',
    'RVT',
    'TIMM_PREFIXES',
    'TOP_DOWN_DESIGNS',
    'BlockFit',
    'ClassPrototype',
    'DecoderRegression',
    'ExternalPrior',
    'Feedback',
    'FirstPassOutput',
    'LayerDecoder',
    'LearnedClasses',
    'LearnedQuery',
    'LearnedText',
    'MaskFeedback',
    'PerceiverIO',
    'Prior',
    'StageUpsample',
    'TopDown',
    'TopDownOutput',
    'Trunk',
    'TrunkOutput',
    'VisionTransformer',
    'build_prior',
    'create_model',
    'network_name',
    'pretune',
    'rename_old_keys',
    'token_weights',
]
