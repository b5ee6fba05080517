"""Training and testing on mmengine's Runner.

Importing this package registers what configs name: ``mmvars.SaveOnInterruptHook``,
``mmvars.LipschitzUpdateHook`` and ``mmvars.LayerDecayOptimWrapperConstructor``.
"""

from mmvars.engine.hooks import LipschitzUpdateHook, SaveOnInterruptHook, TrainingInterrupted
from mmvars.engine.optim import LayerDecayOptimWrapperConstructor

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'LipschitzUpdateHook',
    'SaveOnInterruptHook',
    'TrainingInterrupted',
]
