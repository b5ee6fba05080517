"""Products of weights that inference can use instead of the weights: ``fuse()``."""

from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from mmvars.errors import InputError

__all__ = ['Fusible', 'fuse', 'unfuse']


class Fusible(nn.Module):
    """A module some of whose weights can be multiplied out for inference.

    :meth:`fuse` stores the products, which then take the place of the layers: these are not called.
    The products move with the module and are in no state dict. They hold until the weights change:
    ``train()``, loading a state dict, copying the module and a forward that records gradients for
    the weights drop them. A layer that is wrapped, hooked or pruned is called, before and after
    ``fuse()``. A forward after another change of a weight is an error. (Two changes cannot be
    noticed: by operations on ``parameter.data``, which torch does not count, and any that a
    compiled forward meets.)

    A subclass implements :meth:`fusible_weights` and :meth:`products`; its forward asks
    :meth:`can_use_fused` and then reads ``self.fused``.

    Attributes:
        is_fused: Whether there are products.
        fused: The products, by name.
    """

    is_fused = False
    fused: dict[str, Tensor]
    _fused_state: tuple

    def fusible_weights(self) -> list[Tensor] | None:
        """The weights that the products depend on; ``None`` while one does not tell what its layer
        computes."""
        raise NotImplementedError

    def products(self) -> dict[str, Tensor]:
        """The products by name, computed in at least float32."""
        raise NotImplementedError

    @torch.no_grad()
    def fuse(self) -> Self:
        """Multiply the weights out. Call it again after a change of the weights."""
        self.unfuse()
        weights = self.fusible_weights()
        if weights is not None:
            self.fused = {
                name: product.to(weights[0].dtype) for name, product in self.products().items()
            }
            self.is_fused, self._fused_state = True, _state_of(weights)
        return self

    def unfuse(self) -> Self:
        """Drop the products."""
        self.is_fused, self.fused = False, {}
        return self

    def can_use_fused(self) -> bool:
        """Whether the products are there, and this forward may use them.

        Raises:
            InputError: If a weight was changed or replaced after :meth:`fuse`.
        """
        if not self.is_fused or torch.compiler.is_compiling():
            return self.is_fused and not torch.is_grad_enabled()
        weights = self.fusible_weights()
        if weights is None:
            return False
        if torch.is_grad_enabled() and any(weight.requires_grad for weight in weights):
            self.unfuse()  # a step of training may follow, of which no optimizer tells us
            return False
        if self._fused_state != _state_of(weights):
            raise InputError(
                f'weights of {type(self).__name__} were changed after fuse(): call '
                f'fuse() of the network again, or unfuse()'
            )
        return True

    def train(self, mode: bool = True) -> Self:
        if mode:
            self.unfuse()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        weights = self.fusible_weights() if self.is_fused else None
        current = weights is not None and self._fused_state == _state_of(weights)
        super()._apply(fn, recurse)
        weights = self.fusible_weights()
        if current and weights is not None:  # moved or cast together with the products
            self.fused = {name: fn(product) for name, product in self.fused.items()}
            self._fused_state = _state_of(weights)
        else:
            self.unfuse()
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.unfuse()  # a copy, whose weights live their own lives

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self.unfuse()
        super()._load_from_state_dict(*args, **kwargs)


def fuse(network: nn.Module) -> None:
    """Call ``fuse()`` of every :class:`Fusible` module inside ``network``."""
    for module in network.modules():
        if isinstance(module, Fusible):
            module.fuse()


def unfuse(network: nn.Module) -> None:
    """Call ``unfuse()`` of every :class:`Fusible` module inside ``network``."""
    for module in network.modules():
        if isinstance(module, Fusible):
            module.unfuse()


def _state_of(weights: list[Tensor]) -> tuple[tuple[int, int, int], ...]:
    """Which tensors the weights are, where they lie, and how often each was changed in place."""
    # Tensors made in inference mode are immutable outside of it and count no versions.
    return tuple(
        (id(weight), weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        for weight in weights
    )
