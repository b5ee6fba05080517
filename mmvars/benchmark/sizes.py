"""Parameters and multiply-adds of built networks."""

from typing import NamedTuple

import torch
from torch import nn

from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.benchmark.published import Reading
from mmvars.benchmark.released import RELEASED, released_multiply_adds
from mmvars.layers import mixer_options
from mmvars.networks import TopDown, build_network

__all__ = ['IMAGE_SIZE', 'ReadingSize', 'count_parameters', 'measure_reading']

IMAGE_SIZE = 224
_FREE = ('num_steps', 'atoms_per_channel', 'feature_ratio')


class ReadingSize(NamedTuple):
    """What one reading of a row comes to.

    Attributes:
        parameters: All numbers that belong to the model, frozen ones too.
        trainable: Those that are trained.
        executed: Multiply-adds of one image, as this package runs it.
        released: The same as the released code runs it; ``None`` where it cannot.
    """

    parameters: int
    trainable: int
    executed: MultiplyAdds
    released: MultiplyAdds | None


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """All and trainable parameters.

    Frozen numbers are buffers here and frozen parameters in the released models, so "all" counts
    floating-point buffers too, but for the running statistics of batch norms, which nobody counts.
    """
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase):
            frozen += sum(b.numel() for b in part.buffers(recurse=False) if b.is_floating_point())
    return trainable + frozen, trainable


def measure_reading(reading: Reading) -> ReadingSize:
    """Build a reading's classifier on the meta device, for 224 x 224 pixels, and count."""
    with torch.device('meta'), torch.no_grad():
        network = build_network(reading.network, mixer=reading.mixer,
                                mixer_options=reading.options, **reading.overrides).eval()
        image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        mixers = [block.attn for block in network.trunk.blocks]
        passes = []

        def classify() -> None:
            passes.append(network(image, out_indices=range(len(mixers))).final)
            network.logits(passes[0])

        executed = count_multiply_adds(classify, [network])
        released = None
        if _was_released(network):
            released = released_multiply_adds(network.trunk.mixer, mixers, passes[0].grids,
                                              executed.linear)
    return ReadingSize(*count_parameters(network), executed, released)


def _was_released(network: TopDown) -> bool:
    """Whether the mixers have the release's constants, but for steps and number of atoms."""
    trunk = network.trunk
    if network.feedback is not None or trunk.mixer not in RELEASED:
        return False
    return all(trunk.mixer_options[name] == value for name, value in
               mixer_options(trunk.mixer, preset='release').items() if name not in _FREE)
