"""Adapters to OpenMMLab. The models of a framework are there where it can be imported.

A framework may be installed and yet fail to import: the official mmseg without mmcv's compiled ops,
or with a version of mmcv that it refuses. That must not cost the models of the other one.
"""

from typing import Any, NoReturn

from mmvars.errors import InputError
from mmvars.models.backbones import FAN, RVT, VARS, AbSViT, GFNet, ViT
from mmvars.models.prompting import PriorSampler, PromptHead
from mmvars.registry import MODELS

__all__ = [
    'FAN',
    'RVT',
    'VARS',
    'AbSViT',
    'EncoderDecoder',
    'GFNet',
    'ImageClassifier',
    'LinearHead',
    'PriorSampler',
    'PromptHead',
    'ViT',
]


def _unavailable(model: str, framework: str, cause: Exception) -> Any:
    """Register a stand-in for a model, which says why there is none."""

    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            f'mmvars.{model} needs {framework}, which cannot be imported here '
            f'({type(cause).__name__}: {cause}): `mmvars doctor` names the '
            'remedy'
        ) from cause

    return MODELS.register_module(name=model, module=refuse)


try:
    import mmseg.models
except Exception as error:  # not only ImportError: frameworks assert the versions they accept
    EncoderDecoder = _unavailable('EncoderDecoder', 'mmseg', error)
    LinearHead = _unavailable('LinearHead', 'mmseg', error)
else:
    from mmvars.models.heads import LinearHead
    from mmvars.models.segmentors import EncoderDecoder

try:
    import mmpretrain.models
except Exception as error:
    ImageClassifier = _unavailable('ImageClassifier', 'mmpretrain', error)
else:
    from mmvars.models.classifiers import ImageClassifier
