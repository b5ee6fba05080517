"""Pre-tuning: the decoders of a trunk that does not train, by linear regression.

With the trunk frozen, the layer-wise reconstruction loss (Eq. 2.13, first term) is a least-squares
problem for each block, ``A_l = argmin |z_l A' - z_{l-1}|^2``. Its solution needs sums over tokens
alone, so one pass over unlabeled images gives it exactly.

Differs from the thesis, which trains the decoders together with the network by gradient descent
(:meth:`mmvars.networks.Feedback.reconstruction_errors`, for trunks that train).
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.networks.feedback import Feedback
from mmvars.networks.top_down import TopDown

__all__ = [
    'HELD_OUT',
    'RIDGES',
    'BlockFit',
    'DecoderRegression',
    'Ridge',
    'TokenSums',
    'fit_ridge',
    'pretune',
]

HELD_OUT = 10
"""One of so many images is held out."""

RIDGES = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""Ridges to choose from, relative to the mean square of a channel of the block's output."""


class BlockFit(NamedTuple):
    """The decoder of a block, and errors on held-out images.

    Errors are sums of squares over that of the block's input about its mean, so that predicting
    the mean of the held-out tokens has error 1.

    Attributes:
        weight: ``(C, C)`` in float64, the weight of ``to_below``.
        ridge: The best of those tried; 0 is ordinary least squares.
        error: With ``weight``.
        error_without_ridge: With the least squares solution (of least norm, if there are several).
        error_of_identity: With the output of the block as it is, for comparison.
    """

    weight: Tensor
    ridge: float
    error: float
    error_without_ridge: float
    error_of_identity: float


class Ridge(NamedTuple):
    """A solution of least squares, and its error on held-out tokens.

    Attributes:
        solution: ``(C, D)`` in float64: y is about ``z @ solution``.
        ridge: The best of those tried; 0 is ordinary least squares.
        error: See :meth:`TokenSums.error`.
        error_without_ridge: With the least squares solution (of least norm, if there are several).
    """

    solution: Tensor
    ridge: float
    error: float
    error_without_ridge: float


class TokenSums(nn.Module):
    """What least squares from outputs z ``(n, C)`` to inputs y ``(n, D)`` needs, in float64.

    Args:
        width: C.
        input_width: D; ``None``: C.
    """

    outputs_outputs: Tensor
    outputs_inputs: Tensor
    inputs: Tensor
    inputs_squared: Tensor
    count: Tensor

    def __init__(self, width: int, input_width: int | None = None) -> None:
        super().__init__()
        input_width = input_width or width
        for name, shape in dict(
            outputs_outputs=(width, width),
            outputs_inputs=(width, input_width),
            inputs=(input_width,),
            inputs_squared=(),
            count=(),
        ).items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def add(self, outputs: Tensor, inputs: Tensor) -> None:
        """Add tokens ``(..., C)`` and ``(..., D)``."""
        z, y = (each.to(self.count.device).double().flatten(0, -2) for each in (outputs, inputs))
        self.outputs_outputs.addmm_(z.T, z)
        self.outputs_inputs.addmm_(z.T, y)
        self.inputs += y.sum(dim=0)
        self.inputs_squared += y.square().sum()
        self.count += len(y)

    def error(self, solution: Tensor) -> float:
        """Relative error of ``z @ solution`` as a prediction of y, see :class:`BlockFit`."""
        products = self.outputs_outputs @ solution - 2 * self.outputs_inputs
        residual = (solution * products).sum() + self.inputs_squared
        variance = self.inputs_squared - self.inputs.square().sum() / self.count
        return (residual / variance.clamp_min(torch.finfo(torch.float64).tiny)).item()


class DecoderRegression(nn.Module):
    """Sums over the tokens of many images, and the decoders that follow from them.

    The state dict holds all sums, so that a stopped pass can go on; sums of several processes are
    added. They may be on another device than the network, and must be where it has no float64.

    Args:
        network: A network with decoders. It is run in eval mode; :meth:`solve` changes nothing
            of it.

    Raises:
        InputError: If it has no decoders, or prompts among its tokens.
    """

    fitted: Any  # a ModuleList of TokenSums, as is held_out
    held_out: Any
    output: Tensor
    output_count: Tensor

    def __init__(self, network: TopDown) -> None:
        super().__init__()
        if not isinstance(network, TopDown) or not isinstance(network.feedback, Feedback):
            raise InputError(
                'pre-tuning fits decoders, and this network has none: build it with '
                "top_down='absvit', 'absvit_qkv' or 'feedback' (in a config: backbone "
                'mmvars.AbSViT with one of these as its design)'
            )
        if getattr(network.trunk, 'num_prompt_tokens', 0):
            raise InputError(
                'this network has prompts, which are not trained yet, among its tokens: fit the '
                "decoders without them (in a config: transfer='top-down'); their file loads with "
                'prompts too'
            )
        self._network = [network]  # no submodule: its weights are not part of the sums
        widths = network.trunk.widths
        self.fitted = nn.ModuleList(map(TokenSums, widths))
        self.held_out = nn.ModuleList(map(TokenSums, widths))
        self.register_buffer('output', torch.zeros(widths[-1], dtype=torch.float64))
        self.register_buffer('output_count', torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, images: Tensor, is_held_out: Tensor) -> None:
        """Run the bottom-up pass on images and add their tokens.

        Args:
            images: ``(B, in_chans, H, W)``, as the network takes them.
            is_held_out: ``(B,)``, those that choose the ridge and measure the error.
        """
        (network,) = self._network
        tokens, grid = network.trunk.forward_embed(images)
        output = network.trunk.forward_blocks(tokens, grid, keep_block_io=True)
        for sums, chosen in ((self.fitted, ~is_held_out), (self.held_out, is_held_out)):
            if not chosen.any():
                continue
            chosen = chosen.to(images.device)
            for block, (inputs, outputs) in zip(sums, output.block_io, strict=True):
                block.add(outputs[chosen], inputs[chosen])
        patches = output.grid.patch_tokens(output.tokens).to(self.output.device).double()
        self.output += patches.sum(dim=(0, 1))
        self.output_count += patches.shape[0] * patches.shape[1]

    def solve(self, ridges: Sequence[float] = RIDGES) -> list[BlockFit]:
        """The decoder of each block: the ridge with the least error on held-out images.

        Raises:
            InputError: If there are no held-out images, or too few others to determine a decoder,
                or a token is not a finite number.
        """
        fits = []
        for index, (fitted, held_out) in enumerate(zip(self.fitted, self.held_out, strict=True)):
            width = len(fitted.inputs)
            if not held_out.count or fitted.count < width:
                raise InputError(
                    f'{int(fitted.count)} tokens to fit the decoder of block {index} and '
                    f'{int(held_out.count)} held out are too few for its {width} channels: give '
                    'more or larger images'
                )
            fits.append(_fit(fitted.cpu(), held_out.cpu(), ridges, index))
        return fits

    @torch.no_grad()
    def apply_to_network(self, fits: Sequence[BlockFit]) -> dict[str, Tensor]:
        """Put decoders into the network; returns what of its state dict is pre-tuned.

        Where the feedback is gated that is all of it: readouts become the identity, gates zero,
        and the prior's center the mean output token of all patches. A feedback without gates keeps
        its readouts, which are not part of what is returned; so do upsamplings between stages.
        """
        (network,) = self._network
        decoders: Any = network.feedback.decoders
        gated = hasattr(decoders[0], 'gate')
        for decoder, fit in zip(decoders, fits, strict=True):
            decoder.to_below.weight.copy_(fit.weight)
            if gated:
                nn.init.eye_(decoder.to_value.weight)
                nn.init.zeros_(decoder.gate)
        if (center := getattr(network.prior, 'center', None)) is not None:
            center.copy_(self.output / self.output_count)
        endings = ('.to_below.weight', '.to_value.weight', '.gate') if gated else '.to_below.weight'
        return {
            name: value
            for name, value in network.state_dict().items()
            if (name.startswith('feedback.decoders.') and name.endswith(endings))
            or name == 'prior.center'
        }


def pretune(
    network: TopDown, batches: Iterable[Tensor], ridges: Sequence[float] = RIDGES
) -> list[BlockFit]:
    """Fit the decoders of a network to images, in one pass over them, and put them into it.

    Args:
        network: A network with decoders, its trunk with the weights that it is to keep.
        batches: Images ``(B, in_chans, H, W)``, normalized as the trunk's weights need them, of
            any sizes. Every tenth image is held out, to choose the ridge and measure the error.
        ridges: See :data:`RIDGES`.

    Returns:
        What was fitted, one for each block.

    Raises:
        InputError: If the network has no decoders, or the images are too few.
    """
    regression = DecoderRegression(network)
    device = next(network.parameters()).device
    was_training, count = network.training, 0
    network.eval()
    for images in batches:
        numbers = torch.arange(count, count + len(images))
        regression.add(images.to(device), numbers % HELD_OUT == 0)
        count += len(images)
    fits = regression.solve(ridges)
    regression.apply_to_network(fits)
    network.train(was_training)
    return fits


def fit_ridge(fitted: TokenSums, held_out: TokenSums, ridges: Sequence[float] = RIDGES) -> Ridge:
    """Least squares with the ridge that has the least error on held-out tokens.

    Args:
        fitted, held_out: Sums of finite tokens, on the CPU.
        ridges: See :data:`RIDGES`; 0 is always tried.
    """
    # (Z'Z + r I)^-1 Z'Y for any r, from one decomposition.
    squares, axes = torch.linalg.eigh(fitted.outputs_outputs)
    rotated = axes.T @ fitted.outputs_inputs
    # Below this, an eigenvalue is rounding: the tokens do not reach this direction.
    smallest = squares[-1] * len(squares) * torch.finfo(torch.float64).eps
    solutions, errors = [], []
    for ridge in dict.fromkeys((0.0, *ridges)):
        shrunk = torch.where(squares > smallest, squares + ridge * squares.mean(), torch.inf)
        solutions.append(axes @ (rotated / shrunk.unsqueeze(1)))
        errors.append(held_out.error(solutions[-1]))
    best = min(range(len(errors)), key=errors.__getitem__)
    return Ridge(
        solutions[best], list(dict.fromkeys((0.0, *ridges)))[best], errors[best], errors[0]
    )


def _fit(fitted: TokenSums, held_out: TokenSums, ridges: Sequence[float], index: int) -> BlockFit:
    if not all(value.isfinite().all() for value in fitted.state_dict().values()):
        raise InputError(
            f'the tokens of block {index} are not all finite numbers: check the weights of the '
            'trunk, and mean and std of the images'
        )
    fit = fit_ridge(fitted, held_out, ridges)
    identity = torch.eye(len(fit.solution), dtype=torch.float64)
    return BlockFit(
        fit.solution.T, fit.ridge, fit.error, fit.error_without_ridge, held_out.error(identity)
    )
