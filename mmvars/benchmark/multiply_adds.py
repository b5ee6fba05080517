"""Multiply-adds of a call, counted from the operators that really run.

``torch.utils.flop_counter`` knows the formulas of convolutions and matrix products. It takes a
product of complex matrices for one of real ones, and does not know the Fourier transforms, fused
attention on CPU and products in place: these are added here. One multiply-add is two
floating-point operations.

Not counted: norms, activations, softmax, exponentials, sums, and products of real tensors element
by element.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

__all__ = ['CONVENTION', 'MultiplyAdds', 'count_multiply_adds', 'fourier_multiply_adds']

aten = torch.ops.aten

CONVENTION = (
    'One multiply-add (MAC) is one multiplication with its addition. "lin+conv": linear and '
    'convolution layers. "all": these and the products of attention, random features, Gram '
    'matrices and sparse coding. "FFT": Fourier transforms, 5/4 n log2 n for a real map of n '
    'places (5/2 for a complex one), and products of complex numbers, 4 each. Norms, activations, '
    'softmax and exponentials are not counted.')


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one call.

    Attributes:
        linear: Of linear and convolution layers ("lin+conv").
        products: Of all other matrix products.
        fourier: Of Fourier transforms and of products of complex numbers.
    """

    linear: int
    products: int
    fourier: int

    @property
    def all(self) -> int:
        """``linear + products``; the Fourier part stands apart in every table here."""
        return self.linear + self.products

    def to_dict(self) -> dict[str, int]:
        """All four numbers by name."""
        return dict(linear=self.linear, products=self.products, all=self.all,
                    fourier=self.fourier)


def count_multiply_adds(run: Callable[[], Any], modules: Iterable[nn.Module]) -> MultiplyAdds:
    """Count the multiply-adds of ``run()``, on any device, the meta device too.

    Args:
        run: Makes one call; a backward pass inside is counted as well.
        modules: The modules that run. A product with the weight of one of their linear or
            convolution layers is a layer's, any other a plain product.
    """
    counter = _Counter({_storage(layer.weight) for root in modules for layer in root.modules()
                        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd))})
    with counter:
        run()
    return MultiplyAdds(**{kind: flops // 2 for kind, flops in counter.flops.items()})


def fourier_multiply_adds(sides: Iterable[int], real: bool) -> float:
    """Multiply-adds of one fast Fourier transform over axes of the given lengths.

    ``5/2 n log2 n`` for n complex places (the count of the radix-2 algorithm, 5 n log2 n
    floating-point operations, whatever the library really uses), half of it for real ones.
    """
    places = math.prod(sides)
    return (1.25 if real else 2.5) * places * math.log2(places)


class _Counter(TorchDispatchMode):
    """Sees every operator as it runs and sums its flops by kind.

    torch's own ``FlopCounterMode`` also follows modules, which fails where one returns a view of
    its parameter without gradients, as a learned prior does.
    """

    def __init__(self, weights: set[int]) -> None:
        super().__init__()
        self._weights = weights
        self.flops = dict.fromkeys(MultiplyAdds._fields, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        formula = _MORE_FORMULAS.get(packet) or flop_registry.get(packet)
        if formula is None:
            with self:  # under inference_mode, composite operators arrive whole
                out = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if out is NotImplemented else out
        out = func(*args, **kwargs)
        flops = int(formula(*args, **kwargs, out_val=out))
        tensors = [arg for arg in args if isinstance(arg, Tensor)]
        if packet in _FOURIER:
            kind = 'fourier'
        elif any(tensor.is_complex() for tensor in tensors):
            kind, flops = 'fourier', 4 * flops
        elif any(_storage(tensor) in self._weights for tensor in tensors):
            kind = 'linear'
        else:
            kind = 'products'
        self.flops[kind] += flops
        return out


def _storage(tensor: Tensor) -> int:
    """What a tensor and its views share, on the meta device too (where all addresses are 0)."""
    return tensor.untyped_storage()._cdata


def _real_to_complex(x: Tensor, dim: list[int], *args, out_val: Any = None, **kwargs) -> float:
    sides = [x.shape[axis] for axis in dim]
    return 2 * x.numel() / math.prod(sides) * fourier_multiply_adds(sides, real=True)


def _complex_to_real(x: Tensor, dim: list[int], *args, out_val: Tensor, **kwargs) -> float:
    sides = [out_val.shape[axis] for axis in dim]
    return 2 * out_val.numel() / math.prod(sides) * fourier_multiply_adds(sides, real=True)


def _complex_to_complex(x: Tensor, dim: list[int], *args, out_val: Any = None, **kwargs) -> float:
    sides = [x.shape[axis] for axis in dim]
    return 2 * x.numel() / math.prod(sides) * fourier_multiply_adds(sides, real=False)


def _complex_product(a: Any, b: Any, *args, out_val: Tensor, **kwargs) -> int:
    """4 multiply-adds for two complex numbers, 2 for a complex and a real one."""
    num_complex = sum(isinstance(x, Tensor) and x.is_complex() for x in (a, b))
    return 4 * num_complex * out_val.numel()


def _attention(q: Tensor, k: Tensor, v: Tensor, *args, out_val: Any = None, **kwargs) -> int:
    *batch, queries, width = q.shape
    return 2 * math.prod(batch) * queries * k.shape[-2] * (width + v.shape[-1])


def _attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args, out_val: Any = None,
                        **kwargs) -> int:
    """The scores again, and one product for each gradient: of values, weights, keys, queries."""
    del grad
    *batch, queries, width = q.shape
    return 2 * math.prod(batch) * queries * k.shape[-2] * (3 * width + 2 * v.shape[-1])


def _matrix_vector(matrix: Tensor, *args, out_val: Any = None, **kwargs) -> int:
    return 2 * matrix.numel()


def _matrix_vector_added(added: Tensor, matrix: Tensor, *args, **kwargs) -> int:
    return 2 * matrix.numel()


def _products_added(added: Tensor, a: Tensor, b: Tensor, *args, **kwargs) -> int:
    return 2 * a.numel() * b.shape[-1]


_FOURIER = {aten._fft_r2c, aten._fft_c2r, aten._fft_c2c, aten.mul, aten.mul_}
_MORE_FORMULAS: dict[Any, Callable[..., float]] = {
    aten._fft_r2c: _real_to_complex,
    aten._fft_c2r: _complex_to_real,
    aten._fft_c2c: _complex_to_complex,
    aten.mul: _complex_product,
    aten.mul_: _complex_product,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    aten.mv: _matrix_vector,
    aten.addmv: _matrix_vector_added,
    aten.addmv_: _matrix_vector_added,
    aten.addbmm: _products_added,
    aten.addbmm_: _products_added,
    aten.addmm_: flop_registry[aten.addmm],
    aten.baddbmm_: flop_registry[aten.baddbmm],
}
"""Operators that torch's counter lacks (in-place forms, Fourier, fused attention on CPU)."""
