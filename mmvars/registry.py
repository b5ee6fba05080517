"""Child registries of mmengine's roots, scope ``mmvars``.

mmengine resolves an unknown prefix by importing ``<prefix>.registry``, so this module is all that
``type='mmvars.AbSViT'`` needs to build from MMSegmentation, MMPretrain or a plain script, with no
``custom_imports``. Each registry names the package that fills it; mmengine imports that package on
the first look-up, never before.
"""

from mmengine import registry as _root
from mmengine.registry import Registry

__all__ = [
    'DATASETS', 'HOOKS', 'LOOPS', 'METRICS', 'MODELS', 'OPTIM_WRAPPER_CONSTRUCTORS', 'TRANSFORMS',
    'VISUALIZERS'
]


def _child(name: str, parent: Registry, *locations: str) -> Registry:
    return Registry(name, parent=parent, scope='mmvars', locations=list(locations))


MODELS = _child('model', _root.MODELS, 'mmvars.models')
DATASETS = _child('dataset', _root.DATASETS, 'mmvars.datasets')
TRANSFORMS = _child('transform', _root.TRANSFORMS, 'mmvars.datasets')
HOOKS = _child('hook', _root.HOOKS, 'mmvars.engine', 'mmvars.visualization')
OPTIM_WRAPPER_CONSTRUCTORS = _child('optimizer wrapper constructor',
                                    _root.OPTIM_WRAPPER_CONSTRUCTORS, 'mmvars.engine')
METRICS = _child('metric', _root.METRICS)
LOOPS = _child('loop', _root.LOOPS)
VISUALIZERS = _child('visualizer', _root.VISUALIZERS)
