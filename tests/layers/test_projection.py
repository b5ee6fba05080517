"""project_with_top_down: rows of a plain linear layer, and calls of any other."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, weight_norm

from mmvars.layers.attention import INJECTIONS, is_plain_linear, project_with_top_down


class Doubled(nn.Module):
    """A wrapped layer with a ``weight`` that is not what it computes."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    @property
    def weight(self) -> Tensor:
        return self.linear.weight

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)


def hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_hook(lambda module, args, output: 2 * output)
    return linear


def pre_hooked(linear: nn.Linear) -> nn.Linear:
    linear.register_forward_pre_hook(lambda module, args: (2 * args[0],))
    return linear


def replaced_forward(linear: nn.Linear) -> nn.Linear:
    forward = linear.forward
    linear.forward = lambda x: 2 * forward(x)
    return linear


def pruned(linear: nn.Linear) -> nn.Linear:
    return prune.random_unstructured(linear, 'weight', amount=0.5)


def hook_normalized(linear: nn.Linear) -> nn.Linear:
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return weight_norm(linear)


def quantized(linear: nn.Linear) -> nn.Module:
    parts = nn.Sequential(linear)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.ao.quantization.quantize_dynamic(parts, {nn.Linear})[0]


class Half(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 2


def subclassed(linear: nn.Linear) -> nn.Linear:
    other = Half(linear.in_features, linear.out_features)
    other.load_state_dict(linear.state_dict())
    return other


OTHERS = [
    Doubled,
    hooked,
    pre_hooked,
    replaced_forward,
    pruned,
    hook_normalized,
    parametrizations.weight_norm,
    subclassed,
    quantized,
]


def expected(linear: nn.Module, x: Tensor, t: Tensor, injection: str, double: bool) -> list[Tensor]:
    """By the equations, with whole products."""
    *others, value = linear(x).split(8, dim=-1)
    if injection == 'mask':
        return [*others, value * t]
    both = (linear(x) + linear(t) if double else linear(x + t)).split(8, dim=-1)
    return list(both) if injection == 'qkv' else [*others, both[-1]]


@pytest.mark.parametrize('pieces', [1, 2, 3])
@pytest.mark.parametrize('double', [True, False])
@pytest.mark.parametrize('injection', INJECTIONS)
@pytest.mark.parametrize('wrap', [lambda linear: linear, *OTHERS])
def test_any_linear_layer_is_honored(wrap, injection, double, pieces):
    linear = nn.Linear(8, 8 * pieces)
    nn.init.normal_(linear.bias)
    x, t = torch.randn(2, 2, 5, 8)
    t = t[..., :1] if injection == 'mask' else t
    layer = wrap(linear)
    result = project_with_top_down(layer, x, t, injection, double)
    assert len(result) == pieces
    for a, b in zip(result, expected(layer, x, t, injection, double), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('wrap', [lambda linear: linear, *OTHERS])
def test_without_a_top_down_input_it_is_the_layer(wrap):
    layer, x = wrap(nn.Linear(8, 24)), torch.randn(2, 5, 8)
    assert torch.equal(torch.cat(project_with_top_down(layer, x, None), dim=-1), layer(x))


def test_what_is_plain():
    linear = nn.Linear(8, 24)
    assert is_plain_linear(linear) and is_plain_linear(copy.deepcopy(linear).double().eval())
    assert is_plain_linear(nn.Linear(8, 24, bias=False))
    for wrap in OTHERS:
        assert not is_plain_linear(wrap(nn.Linear(8, 24))), wrap
    handle = linear.register_full_backward_hook(lambda *_: None)
    assert not is_plain_linear(linear)
    handle.remove()
    handle = linear.register_full_backward_pre_hook(lambda *_: None)
    assert not is_plain_linear(linear)
    handle.remove()
    assert is_plain_linear(linear)


@pytest.mark.parametrize('double', [True, False])
@pytest.mark.parametrize('injection', ['value', 'qkv'])
def test_gradients_are_those_of_the_equations(injection, double):
    linear = nn.Linear(8, 24).double()
    x, t = torch.randn(2, 2, 5, 8).double().requires_grad_()
    results = []
    for project in (project_with_top_down, expected):
        pieces = project(linear, x, t, injection, double)
        loss = sum((i + 1) * piece.square().sum() for i, piece in enumerate(pieces))
        results.append(torch.autograd.grad(loss, (x, t, linear.weight, linear.bias)))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)
