"""Learning rates that differ from part to part: by layers of a backbone, or by parts of METER."""

from collections import Counter
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmvars.errors import InputError, check_number
from mmvars.registry import OPTIM_WRAPPER_CONSTRUCTORS

__all__ = ['LayerDecayOptimWrapperConstructor', 'METEROptimWrapperConstructor']


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Give layer l of n the learning rate ``lr * layer_decay_rate ** (n - 1 - l)``.

    The layer of a parameter comes from the backbone's ``get_layer_depth(name, prefix)``, so any
    backbone that has one works (mmvars' and mmpretrain's). Heads, necks and everything else
    outside of the backbone keep the full rate.

    Differs from mmpretrain's constructor, which needs ``get_layer_depth`` of the whole model, and
    from mmseg's, which knows three class names.

    ``paramwise_cfg`` holds ``layer_decay_rate`` (required, in (0, 1]), and may hold all keys of
    mmengine's default constructor; the learning rate that these give is multiplied by the layer's.
    Unlike the default, norms and biases (all 1-D parameters) get no weight decay unless
    ``norm_decay_mult``, ``bias_decay_mult`` or ``flat_decay_mult`` say otherwise, which is the rule
    of the published recipes.

    Raises:
        InputError: If ``layer_decay_rate`` is missing or outside (0, 1], or if neither backbone nor
            model has ``get_layer_depth``.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        rate = paramwise.pop('layer_decay_rate', None)
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= 1:
            raise InputError(
                'paramwise_cfg.layer_decay_rate must be a number above 0 and at most '
                f'1, got {rate!r}'
            )
        self.layer_decay_rate = float(rate)
        super().__init__(optim_wrapper_cfg, _without_flat_decay(optim_wrapper_cfg, paramwise))
        if self.base_lr is None:
            raise InputError('layer-wise decay needs optimizer.lr, which it multiplies')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Let the default constructor make the groups by its rules, then scale their rates."""
        first = len(params)
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # an inner call: only the outermost sees full names and the model
            return
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        scales: Counter[float] = Counter()
        for group in params[first:]:
            group['param_name'] = names[id(group['params'][0])]
            layer, num_layers = _layer_depth(module, group['param_name'])
            scale = self.layer_decay_rate ** (num_layers - 1 - layer)
            rate: Any = group.get('lr', self.base_lr)
            group['lr'] = rate * scale
            scales[scale] += 1
        rows = ', '.join(f'x{scale:.4g} ({count})' for scale, count in sorted(scales.items()))
        MMLogger.get_current_instance().info(
            f'layer-wise learning-rate decay {self.layer_decay_rate}; factors and numbers of '
            f'parameters: {rows}'
        )


def _without_flat_decay(optim_wrapper_cfg: dict, paramwise: dict) -> dict:
    """``paramwise`` in which norms and biases have no weight decay, unless it says otherwise."""
    flat = ('norm_decay_mult', 'bias_decay_mult', 'flat_decay_mult')
    decays = optim_wrapper_cfg.get('optimizer', {}).get('weight_decay') is not None
    defaults = dict.fromkeys(flat, 0.0) if decays else {}
    # mmengine passes over an empty paramwise_cfg.
    return defaults | dict(bias_lr_mult=1.0) | paramwise


def _layer_depth(model: nn.Module, name: str) -> tuple[int, int]:
    """Layer of a parameter, and the number of layers; (0, 1) has the full rate."""
    backbone: Any = getattr(model, 'backbone', None)
    if hasattr(backbone, 'get_layer_depth'):
        if name.startswith('backbone.'):
            return backbone.get_layer_depth(name, 'backbone.')
        return 0, 1
    if hasattr(model, 'get_layer_depth'):
        return model.get_layer_depth(name)  # type: ignore[operator]
    owner = type(model if backbone is None else backbone).__name__
    raise InputError(
        'LayerDecayOptimWrapperConstructor needs a backbone with get_layer_depth, '
        f'which {owner} has not: use a backbone of mmvars (or of mmpretrain), or '
        'leave the constructor out'
    )


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class METEROptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """Multiply the learning rates of METER's new parts, which learn from scratch.

    ``paramwise_cfg`` holds ``head_lr_mult``, ``fusion_lr_mult`` and ``top_down_lr_mult`` (the
    decoders of the feedback and the projection of the text), and may hold all keys of mmengine's
    default constructor. Norms and biases (all 1-D parameters) get no weight decay unless its keys
    say otherwise. Every parameter that trains is in exactly one group.

    The defaults are those of the released VQA: 50, 10 and 3; its retrieval has 5 for the head. The
    thesis says 5 for the fusion. Differs from the release, which forgets the bias of the
    projection (it never learns) and gives the two vectors that mark the kind of a token the plain
    rate.

    Raises:
        InputError: If a factor is not a number above 0, or the model is not METER.
    """

    def __init__(self, optim_wrapper_cfg: dict, paramwise_cfg: dict | None = None) -> None:
        paramwise = dict(paramwise_cfg or {})
        self.factors = {
            'head.': paramwise.pop('head_lr_mult', 50.0),
            'fusion.': paramwise.pop('fusion_lr_mult', 10.0),
            **dict.fromkeys(
                ('backbone.network.feedback.', 'backbone.network.prior.'),
                paramwise.pop('top_down_lr_mult', 3.0),
            ),
        }
        for prefix, factor in self.factors.items():
            check_number(f'lr_mult of {prefix[:-1]}', factor, 1e-12)
        super().__init__(optim_wrapper_cfg, _without_flat_decay(optim_wrapper_cfg, paramwise))
        if self.base_lr is None:
            raise InputError('METEROptimWrapperConstructor needs optimizer.lr, which it multiplies')

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Let the default constructor make the groups by its rules, then scale their rates."""
        first = len(params)
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # an inner call: only the outermost sees full names and the model
            return
        if not (hasattr(module, 'fusion') and hasattr(module, 'text_backbone')):
            raise InputError(
                f'METEROptimWrapperConstructor is for mmvars.METER, got {type(module).__name__}: '
                'leave the constructor out'
            )
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        for group in params[first:]:
            name = group['param_name'] = names[id(group['params'][0])]
            for start, factor in self.factors.items():
                if name.startswith(start):
                    rate: Any = group.get('lr', self.base_lr)
                    group['lr'] = rate * factor
