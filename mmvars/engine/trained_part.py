"""Checkpoints that hold what a run has trained, and name the trunk that they leave out.

``save_trained_only = True`` in a config. What the backbone's ``transfer`` freezes comes from
``pretrained`` and ``init_cfg`` of the config again when such a file is read.
"""

from typing import Any

from torch import nn

from mmvars.checkpoints.fit import named_state
from mmvars.checkpoints.partial import ADDED, check_trunk, recorded_trunk, trunk_meta
from mmvars.errors import InputError
from mmvars.models.base import Backbone

__all__ = ['check_leaves_out', 'fill_in_frozen', 'leave_out_frozen']


def check_leaves_out(model: nn.Module) -> None:
    """Refuse ``save_trained_only`` where nothing is frozen, or could not be had again.

    Raises:
        InputError: Saying what to change.
    """
    _, backbone = _find(model)
    if backbone is None or backbone.transfer == 'end2end':
        raise InputError(
            'save_trained_only leaves out what does not train, and nothing of this backbone is '
            'frozen: leave it out, or choose what trains, such as model.backbone.transfer=linear'
        )
    if not backbone.has_pretrained:
        raise InputError(
            'save_trained_only leaves out the frozen trunk, which then must come from a file: '
            "give the backbone init_cfg=dict(type='Pretrained', checkpoint=FILE), or, with "
            "arch='timm/...', pretrained"
        )


def leave_out_frozen(checkpoint: dict[str, Any], model: nn.Module) -> None:
    """Take the frozen tensors of the trunk, and of decoders under LoRA, from a checkpoint."""
    prefix, backbone = _find(model)
    network = backbone.network
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    frozen = dict[str, str]()  # its own name, and that in files
    for name, in_file in zip(network.state_dict(), named_state(network), strict=True):
        if name not in trained and not ADDED.search(name) and _is_left_out(backbone, in_file):
            frozen[name] = in_file
    for entry, start in (('state_dict', prefix), ('ema_state_dict', f'module.{prefix}')):
        for name in frozen if entry in checkpoint else ():
            del checkpoint[entry][start + name]
    held = named_state(network).keys() - frozen.values()
    lite = backbone.transfer == 'top-down-lite'
    checkpoint['meta'].update(trunk_meta(network, held, frozen_decoders=lite))


def fill_in_frozen(
    checkpoint: dict[str, Any], model: nn.Module, filename: str, is_initialized: bool
) -> None:
    """Complete a checkpoint by what it left out, which the model has from its config.

    Args:
        checkpoint: As it was read; a whole one stays as it is.
        model: That of the config.
        filename: For messages.
        is_initialized: Whether the weights that the config names have been loaded.

    Raises:
        InputError: If the trunk of the model is another one.
    """
    title = f'checkpoint {filename!r}'
    record = recorded_trunk(checkpoint.get('meta') or {}, title)
    prefix, backbone = _find(model)
    if record is None or backbone is None:
        return
    if not is_initialized:
        backbone.init_weights()
    network = backbone.network
    names = dict(zip(named_state(network), network.state_dict().items(), strict=True))
    state = checkpoint['state_dict']
    held = {in_file for in_file, (name, _) in names.items() if prefix + name in state}
    check_trunk(network, record, held, title)
    for in_file, (name, value) in names.items():
        if in_file not in held and not ADDED.search(name) and _is_left_out(backbone, in_file):
            for entry, start in (('state_dict', prefix), ('ema_state_dict', f'module.{prefix}')):
                if entry in checkpoint:
                    checkpoint[entry][start + name] = value.clone()


def _find(model: nn.Module) -> tuple[str, Any]:
    """What stands before the names of the network of a model's backbone, and the backbone."""
    for name, module in model.named_modules():
        if isinstance(module, Backbone):
            return f'{name}.network.', module
    return '', None


def _is_left_out(backbone: Backbone, name: str) -> bool:
    """Whether a tensor of that name in files is left out if it is frozen.

    Decoders are where LoRA updates them; else they may be fresh, and come from no file.
    """
    lite = backbone.transfer == 'top-down-lite'
    return name.startswith(('trunk.', 'feedback.') if lite else 'trunk.')
