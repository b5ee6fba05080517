"""Parameters and multiply-adds of built networks."""

from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from mmvars.benchmark.multiply_adds import MultiplyAdds, count_multiply_adds
from mmvars.benchmark.released import RELEASED, released_multiply_adds
from mmvars.benchmark.rows import Reading
from mmvars.benchmark.second_pass import (SecondPass, released_two_passes, second_pass,
                                          unused_products)
from mmvars.layers import mixer_options
from mmvars.networks import TopDown, build_network
from mmvars.networks.plain_path import plain_path

__all__ = ['IMAGE_SIZE', 'ReadingSize', 'count_parameters', 'measure_reading']

IMAGE_SIZE = 224
_FREE = ('num_steps', 'atoms_per_channel', 'feature_ratio')


class ReadingSize(NamedTuple):
    """What one reading of a row comes to.

    Attributes:
        parameters: All numbers that belong to the model, frozen ones too.
        trainable: Those that are trained.
        executed: Multiply-adds of one image, as this package runs it step by step; its exact fast
            path, which inference takes, needs fewer.
        released: The same as the released code runs it; ``None`` where it cannot.
        second_pass: Of AbS: what ``released`` multiplies in its second pass beside ``executed``.
    """

    parameters: int
    trainable: int
    executed: MultiplyAdds
    released: MultiplyAdds | None
    second_pass: SecondPass | None = None


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """All and trainable parameters.

    Frozen numbers are buffers here and frozen parameters in the released models, so "all" counts
    floating-point buffers too, but for the running statistics of batch norms, which nobody counts,
    and what is made anew instead of saved.
    """
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase):
            frozen += sum(b.numel() for name, b in part.named_buffers(recurse=False)
                          if b.is_floating_point() and name not in part._non_persistent_buffers_set)
    return trainable + frozen, trainable


def measure_reading(reading: Reading) -> ReadingSize:
    """Build a reading's classifier on the meta device, for 224 x 224 pixels, and count."""
    with torch.device('meta'), torch.no_grad():
        image = torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        return _MEASURES[reading.library](reading, image)


def _measure_ours(reading: Reading, image: Tensor) -> ReadingSize:
    network = build_network(reading.network, reading.top_down, mixer=reading.mixer,
                            mixer_options=reading.options, **reading.overrides).eval()
    mixers = [block.attn for block in network.trunk.blocks]
    passes = []

    def classify() -> None:
        passes.append(network(image, out_indices=range(len(mixers))).final)
        network.logits(passes[0])

    with plain_path():  # the method's cost; what the fast path saves is the benchmark's subject
        executed = count_multiply_adds(classify, [network])
    grids = passes[0].grids
    unused = unused_products(mixers, grids)
    parts = second_pass(network, grids, image)
    released = None
    if parts is not None:
        released = released_two_passes(executed, parts, unused)
    elif unused and network.is_plain:
        released = executed._replace(products=executed.products + unused)
    elif _was_released(network):
        released = released_multiply_adds(network.trunk.mixer, mixers, grids, executed.linear)
    return ReadingSize(*count_parameters(network), executed, released, parts)


def _measure_timm(reading: Reading, image: Tensor) -> ReadingSize:
    model = timm.create_model(reading.network).eval()
    executed = count_multiply_adds(lambda: model(image), [model])
    return ReadingSize(*count_parameters(model), executed, released=None)


_MEASURES = {'mmvars': _measure_ours, 'timm': _measure_timm}


def _was_released(network: TopDown) -> bool:
    """Whether the mixers have the release's constants, but for steps and number of atoms."""
    trunk = network.trunk
    if not network.is_plain or trunk.mixer not in RELEASED:
        return False
    return all(trunk.mixer_options[name] == value for name, value in
               mixer_options(trunk.mixer, preset='release').items() if name not in _FREE)
