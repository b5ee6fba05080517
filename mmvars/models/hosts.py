"""Register each host's models where the host can be imported; where it cannot, say why when asked.

A host may be installed and yet fail to import: the official mmseg without mmcv's compiled ops, or
with a version of mmcv that it refuses. That must not cost the models of the other host.
"""

from collections.abc import Callable
from importlib import import_module

from mmvars.errors import InputError
from mmvars.registry import MODELS

__all__ = ['HOSTS', 'register']

HOSTS = {'mmseg': ('mmvars.models.segmentors', 'EncoderDecoder'),
         'mmpretrain': ('mmvars.models.classifiers', 'ImageClassifier')}
"""Host -> our module for it, and the model which that module registers."""


def register(host: str) -> None:
    """Register the model of one host, or in its place the reason why there is none.

    Args:
        host: A key of :data:`HOSTS`.
    """
    module, model = HOSTS[host]
    try:
        import_module(f'{host}.models')
    except Exception as error:  # not only ImportError: hosts assert the versions they accept
        MODELS.register_module(name=model, module=_refusal(model, host, error))
    else:
        import_module(module)


def _refusal(model: str, host: str, cause: Exception) -> Callable:
    """Stands in the registry for a model that cannot be had, so that asking for it gives words."""

    def refuse(*args, **kwargs) -> None:
        raise InputError(f'mmvars.{model} needs {host}, which cannot be imported here '
                         f'({type(cause).__name__}: {cause}): `mmvars doctor` names the '
                         'remedy') from cause

    return refuse
