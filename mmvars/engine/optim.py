"""Layer-wise learning-rate decay for mmvars backbones, in segmentors and classifiers alike."""

from collections.abc import Callable

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvars.errors import InputError
from mmvars.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['LayerDecayOptimWrapperConstructor']

_Depth = Callable[[str], tuple[int, int]]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give layer l of n the learning rate ``lr * layer_decay_rate ** (n - 1 - l)``.

    The depth of a parameter comes from the backbone's ``get_layer_depth(name, prefix)``, so any
    backbone that has one is served (mmvars', and mmpretrain's own). Heads, necks and everything
    else outside the backbone keep the full rate.

    MMPretrain's constructor asks the whole model for ``get_layer_depth``, which a segmentor does
    not have; MMSegmentation's knows three class names. This one asks ``model.backbone`` first,
    then the model.

    ``paramwise_cfg`` holds ``layer_decay_rate`` (required, in (0, 1]), and may hold all keys of
    mmengine's default constructor; the learning rate that these give is multiplied with the
    layer's. Unlike the default, norms and biases (all 1-D parameters) get no weight decay
    unless ``norm_decay_mult``, ``bias_decay_mult`` or ``flat_decay_mult`` say otherwise, which is
    the rule of the published recipes.

    Raises:
        InputError: If ``layer_decay_rate`` is missing or outside (0, 1], or if the model has no
            ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        rate = paramwise.pop('layer_decay_rate', None)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise InputError('paramwise_cfg.layer_decay_rate must be a number above 0 and at most '
                             f'1, got {rate!r}')
        self.layer_decay_rate = float(rate)
        if optim_wrapper_cfg.get('optimizer', {}).get('weight_decay') is not None:
            for key in ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult'):
                paramwise.setdefault(key, 0.)
        super().__init__(optim_wrapper_cfg, paramwise)
        if self.base_lr is None:
            raise InputError('layer-wise decay needs optimizer.lr, which it multiplies')

    def add_params(self, params: list[dict], module: nn.Module, prefix: str = '',
                   **kwargs) -> None:
        """Fill ``params`` with one group for each trainable parameter of ``module``.

        The default constructor walks the whole tree; its groups are scaled afterwards, so that
        its rules (custom keys, norms, biases) are used and not repeated.
        """
        first = len(params)
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # an inner call: only the outermost sees full names and the model
            return
        depth_of = _layer_depth_of(module)
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        summary: dict[int, tuple[float, int]] = {}
        for group in params[first:]:
            name = names[id(group['params'][0])]
            layer, num_layers = depth_of(name)
            scale = self.layer_decay_rate ** (num_layers - 1 - layer)
            group['lr'] = group.get('lr', self.base_lr) * scale
            group['param_name'] = name
            summary[layer] = (scale, summary.get(layer, (scale, 0))[1] + 1)
        rows = ', '.join(f'{layer}: x{scale:.4g} ({count})'
                         for layer, (scale, count) in sorted(summary.items()))
        MMLogger.get_current_instance().info(
            f'layer-wise learning-rate decay {self.layer_decay_rate}; '
            f'layer: factor (parameters): {rows}')


def _layer_depth_of(model: nn.Module) -> _Depth:
    backbone = getattr(model, 'backbone', None)
    if hasattr(backbone, 'get_layer_depth'):
        any_name = next(f'backbone.{name}' for name, _ in backbone.named_parameters())
        num_layers = backbone.get_layer_depth(any_name, 'backbone.')[1]

        def depth_of(name: str) -> tuple[int, int]:
            if name.startswith('backbone.'):
                return backbone.get_layer_depth(name, 'backbone.')
            return num_layers - 1, num_layers  # heads: the last layer, with the full rate
        return depth_of
    if hasattr(model, 'get_layer_depth'):
        return model.get_layer_depth
    owner = type(model if backbone is None else backbone).__name__
    raise InputError('LayerDecayOptimWrapperConstructor needs a backbone with get_layer_depth, '
                     f'which {owner} has not: use a backbone of mmvars (or of mmpretrain), or '
                     'leave the constructor out')
