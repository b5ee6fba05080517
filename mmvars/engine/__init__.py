"""Training and testing on mmengine's Runner.

Importing this package registers what configs name: ``mmvars.SaveOnInterruptHook``,
``mmvars.LipschitzUpdateHook``, ``mmvars.LayerDecayOptimWrapperConstructor`` and
``mmvars.METEROptimWrapperConstructor``.
"""

from mmvars.engine.hooks import LipschitzUpdateHook, SaveOnInterruptHook, TrainingInterrupted
from mmvars.engine.optim import LayerDecayOptimWrapperConstructor, METEROptimWrapperConstructor

__all__ = [
    'LayerDecayOptimWrapperConstructor',
    'LipschitzUpdateHook',
    'METEROptimWrapperConstructor',
    'SaveOnInterruptHook',
    'TrainingInterrupted',
]
