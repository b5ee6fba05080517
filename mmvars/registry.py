"""Child registries of mmengine's roots, scope ``mmvars``.

mmengine resolves an unknown prefix by importing ``<prefix>.registry``, so this module is all that
``type='mmvars.AbSViT'`` needs to build from MMSegmentation, MMPretrain or a plain script, with no
``custom_imports``. Each registry names the packages that fill it; mmengine imports them on the
first look-up, never before.
"""

from mmengine import registry as _root
from mmengine.registry import Registry

__all__ = [
    'DATASETS',
    'DATA_SAMPLERS',
    'HOOKS',
    'LOOPS',
    'METRICS',
    'MODELS',
    'OPTIM_WRAPPER_CONSTRUCTORS',
    'TRANSFORMS',
]

MODELS = Registry(
    'model',
    parent=_root.MODELS,
    scope='mmvars',
    locations=['mmvars.models', 'mmvars.vision_language'],
)
DATASETS = Registry('dataset', parent=_root.DATASETS, scope='mmvars', locations=['mmvars.datasets'])
DATA_SAMPLERS = Registry(
    'data sampler', parent=_root.DATA_SAMPLERS, scope='mmvars', locations=['mmvars.datasets']
)
TRANSFORMS = Registry(
    'transform', parent=_root.TRANSFORMS, scope='mmvars', locations=['mmvars.datasets']
)
HOOKS = Registry(
    'hook', parent=_root.HOOKS, scope='mmvars', locations=['mmvars.engine', 'mmvars.visualization']
)
METRICS = Registry(
    'metric',
    parent=_root.METRICS,
    scope='mmvars',
    locations=['mmvars.robustness.metric', 'mmvars.vision_language.evaluation'],
)
LOOPS = Registry(
    'loop', parent=_root.LOOPS, scope='mmvars', locations=['mmvars.vision_language.evaluation']
)
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optimizer wrapper constructor',
    scope='mmvars',
    parent=_root.OPTIM_WRAPPER_CONSTRUCTORS,
    locations=['mmvars.engine'],
)
