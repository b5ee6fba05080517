"""mmvars: bottom-up and top-down attention (VARS, AbSViT) as OpenMMLab backbones."""

from typing import Any

from mmvars import base_configs

__version__ = '0.2.0.dev0'

_LAZY = {
    **dict.fromkeys(('Prediction', 'Predictor', 'load'), 'mmvars.predictor'),
    **dict.fromkeys(('Box', 'Example', 'Mask', 'Points'), 'mmvars.prompts'),
}
"""Public name -> the module that has it; imported at first use, since they need torch."""

base_configs.enable()


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    from importlib import import_module

    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_LAZY])
