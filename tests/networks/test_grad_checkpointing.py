"""Gradient checkpointing changes memory and time, and no number: batch statistics included."""

import copy

import pytest
import torch
from torch import Tensor, nn

from mmvars.networks.trunk import checkpointed


class Block(nn.Module):
    """Takes what blocks take; batch norm with a moving and with a cumulative average."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(4, 6),
            nn.BatchNorm1d(6),
            nn.GELU(),
            nn.Linear(6, 4),
            nn.BatchNorm1d(4, momentum=None),
        )

    def forward(self, x: Tensor, grid: tuple, top_down: Tensor | None) -> Tensor:
        return x + self.body(x)


def after_two_steps(block: nn.Module, run) -> dict[str, Tensor]:
    block = copy.deepcopy(block)
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for scale in (1.0, 3.0):
        run(block, scale * x, (2, 2), None).square().sum().backward()
    gradients = {
        f'{name}.grad': p.grad for name, p in block.named_parameters() if p.grad is not None
    }
    return dict(block.state_dict(), **gradients, x=x.grad)


def same_bits(a: dict[str, Tensor], b: dict[str, Tensor], count: int) -> None:
    assert a.keys() == b.keys()
    assert len(a) == count
    for key in a:
        assert torch.equal(a[key], b[key]), key


def test_batches_are_counted_once() -> None:
    block = Block()
    plain = after_two_steps(block, lambda b, *inputs: b(*inputs))
    assert plain['body.1.num_batches_tracked'] == 2
    same_bits(plain, after_two_steps(block, checkpointed), count=14 + 8 + 1)


@pytest.mark.parametrize(
    'make',
    [
        lambda b: b.body[1].eval(),
        lambda b: b.body.__setitem__(1, nn.BatchNorm1d(6, track_running_stats=False)),
        lambda b: b.body.__setitem__(1, nn.Identity()) or b.body.__setitem__(4, nn.Identity()),
    ],
    ids=['frozen', 'no statistics', 'no batch norm'],
)
def test_other_norms(make) -> None:
    block = Block()
    make(block)
    plain = after_two_steps(block, lambda b, *inputs: b(*inputs))
    same_bits(plain, after_two_steps(block, checkpointed), count=len(plain))


def test_momentum_is_restored_when_the_recomputation_fails() -> None:
    block = Block()

    def fail(*_) -> None:
        raise RuntimeError('raised on purpose')

    out = checkpointed(block, torch.randn(8, 4, requires_grad=True), (2, 2), None)
    block.body[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match='raised on purpose'):
        out.sum().backward()
    assert [block.body[1].momentum, block.body[4].momentum] == [0.1, None]
    assert block.body[1].num_batches_tracked == 1
