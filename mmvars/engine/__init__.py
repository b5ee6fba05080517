"""Training and testing on mmengine's Runner: hooks, optimiser constructor, the two tools.

Importing this package registers what configs name (``mmvars.SaveOnInterruptHook``,
``mmvars.LayerDecayOptimWrapperConstructor``, ``mmvars.StepSizeHook``).
"""

from mmvars.engine.hooks import SaveOnInterruptHook, TrainingInterrupted
from mmvars.engine.optim import LayerDecayOptimWrapperConstructor
from mmvars.engine.step_size import StepSizeHook

__all__ = ['LayerDecayOptimWrapperConstructor', 'SaveOnInterruptHook', 'StepSizeHook',
           'TrainingInterrupted']
