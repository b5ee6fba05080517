"""Keep the step sizes of VARS-S in pace with its dictionaries while it is trained."""

from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from mmvars.errors import InputError, check_number
from mmvars.layers import VARSStatic
from mmvars.registry import HOOKS

__all__ = ['StepSizeHook', 'ensure_step_size_hook']


@HOOKS.register_module()
class StepSizeHook(Hook):
    """Refresh the step bounds of every VARS-S mixer of the model, before some training iterations.

    VARS-S shrinks with the step 1/L, where L (the buffer ``step_bound``) bounds the largest
    eigenvalue of the dictionary's Gram matrix. The dictionary is trained, so L must follow:

        L <- (1 - rate) L + rate * bound(dictionary)

    before iterations 0, ``interval``, 2 ``interval``, ... of every epoch, or of the run in a loop
    by iterations. The released training does so with the defaults.

    The new L is a function of the old one and of the weights alone, so all ranks of a distributed
    run compute the same bits and nothing is communicated; and since L is a buffer, a resumed run
    goes on as if it had not been stopped. Mixers that do not train (``frozen_stages``) keep theirs.

    An averaged copy of the model (``EMAHook``) is not touched: mmengine gives it the L of the model
    after every step, or averages L like the weights with ``update_buffers=True``. Either is a valid
    bound where the average lags little: the bound is convex in the dictionary, so that of averaged
    dictionaries is at most the average of their bounds.

    ``mmvars train`` adds this hook with its defaults where a model needs it and the config has
    none. Other training scripts do not: put ``dict(type='mmvars.StepSizeHook')`` into
    ``custom_hooks``.

    Args:
        interval: Iterations between two refreshes.
        rate: Share of the new bound, in (0, 1]; 1 forgets the old one.

    Raises:
        InputError: If a value is out of range.
    """

    # Before all others: whatever looks at the model before a step sees the bound it is made with.
    priority = 'VERY_HIGH'

    def __init__(self, interval: int = 100, rate: float = 0.1) -> None:
        check_number('StepSizeHook: interval', interval, 1, whole=True)
        check_number('StepSizeHook: rate', rate, 0, 1)
        if rate == 0:
            raise InputError('StepSizeHook: rate must be above 0, or no step size ever changes; '
                             'the released training has 0.1')
        self.interval = interval
        self.rate = rate

    def before_train(self, runner: Runner) -> None:
        """Say what will be done, or that there is nothing to do."""
        count = len(_running_mixers(runner.model))
        if count:
            runner.logger.info(f'StepSizeHook: step bounds of {count} VARS-S mixers, refreshed '
                               f'every {self.interval} iterations with rate {self.rate}')
        else:
            runner.logger.warning("StepSizeHook has nothing to do: the model has no mixer 'vars_s' "
                                  "with step_bound='running'")

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: dict | None = None) -> None:
        # mmengine counts batch_idx from 0 in every epoch, and over the run in loops by iterations.
        if batch_idx % self.interval:
            return
        for mixer in _running_mixers(runner.model):
            if mixer.training:
                mixer.update_step_bound(self.rate)


def ensure_step_size_hook(runner: Runner) -> None:
    """Add a :class:`StepSizeHook` to a Runner whose model needs one and that has none; say so.

    Without it, VARS-S would go on with the step sizes of its fresh dictionaries, which in the end
    are too long for the trained ones.
    """
    if any(isinstance(hook, StepSizeHook) for hook in runner.hooks):
        return
    if not _running_mixers(runner.model):
        return
    hook = StepSizeHook()
    runner.register_hook(hook)
    runner.logger.info('The model has VARS-S mixers and custom_hooks no mmvars.StepSizeHook: added '
                       f"dict(type='mmvars.StepSizeHook', interval={hook.interval}, "
                       f'rate={hook.rate})')


def _running_mixers(model: nn.Module) -> list[VARSStatic]:
    """The VARS-S mixers whose step bound is a running one, not computed anew in every forward."""
    model = model.module if is_model_wrapper(model) else model
    return [m for m in model.modules() if isinstance(m, VARSStatic) and hasattr(m, 'step_bound')]
