"""Parameters and multiply-adds of networks, beside the published tables.

`mmvars table`, or `python tools/benchmark/get_flops.py`. The published numbers, and how each row
may be built, are in `published.yml`. Models are built without memory for their weights.
"""

import sys

from mmvars.cli import run_tool

if __name__ == '__main__':  # before the imports that take seconds
    sys.exit(run_tool('table'))


import argparse
import fnmatch
import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
import yaml
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mmvars.errors import InputError, check_choice
from mmvars.layers import SelfAttention, TokenGrid
from mmvars.layers.fan import FANAttention
from mmvars.layers.mixers import resolve_mixer_cfg
from mmvars.networks import TopDown, create_model
from mmvars.networks.feedback import Feedback
from mmvars.parsers.table import parse_args
from mmvars.write import write_text

aten = torch.ops.aten

PUBLISHED = Path(__file__).with_name('published.yml')
IMAGE_SIZE = 224

CONVENTION = (
    'One multiply-add (MAC) is one multiplication with its addition. "lin+conv": linear and '
    'convolution layers. "all": these and the products of attention, random features, Gram '
    'matrices and sparse coding. "FFT": Fourier transforms, 5/4 n log2 n for a real map of n '
    'places (5/2 for a complex one), and products of complex numbers, 4 each. Norms, activations, '
    'softmax and exponentials are not counted.'
)
_READING = """\
Parameters and the first columns of G are counted from the built models as this package runs them
without fuse(), which saves some; "release" is the arithmetic of the released code for the same
function, where it has that configuration; PUBLISHED is what the thesis prints. "agrees": what
rounds to the published digit."""
_TWO_PASSES = """\
With two passes, "release" is the design of the released AbSViT, on RVT and FAN too, for which no
such code was released: both passes embed the patches and classify, and the top-down signal goes
through the whole projection of queries, keys and values, of which the values are used. Here the
patches are embedded once, only the last pass classifies, and the signal joins the input before the
projection, so that it costs nothing there. The outputs are the same. The JSON has each of these
parts ("second_pass"). The reconstructions that the released code makes for its loss in inference
too are in no column."""
# Multiply-adds, counted from the operators that really run. torch.utils.flop_counter knows the
# formulas of convolutions and matrix products. It takes a product of complex matrices for one of
# real ones, and lacks Fourier transforms, fused attention on the CPU and products in place.


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
        return dict(self._asdict(), all=self.all)


def count_multiply_adds(run: Callable[[], Any], modules: Iterable[nn.Module]) -> MultiplyAdds:
    """Count the multiply-adds of ``run()``, on any device, the meta device too.

    Args:
        run: Makes one call; a backward pass inside is counted as well.
        modules: The modules that run. A product with the weight of one of their linear or
            convolution layers is a layer's, any other a plain product.
    """
    counter = _Counter(
        {
            _storage(layer.weight)
            for root in modules
            for layer in root.modules()
            if isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
        }
    )
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
    return _real_to_complex(out_val, dim)


def _complex_to_complex(x: Tensor, dim: list[int], *args, out_val: Any = None, **kwargs) -> float:
    return 2 * _real_to_complex(x, dim)


def _complex_product(a: Any, b: Any, *args, out_val: Tensor, **kwargs) -> int:
    """4 multiply-adds for two complex numbers, 2 for a complex and a real one."""
    num_complex = sum(isinstance(x, Tensor) and x.is_complex() for x in (a, b))
    return 4 * num_complex * out_val.numel()


def _attention(q: Tensor, k: Tensor, v: Tensor, *args, out_val: Any = None, **kwargs) -> int:
    *batch, queries, width = q.shape
    return 2 * math.prod(batch) * queries * k.shape[-2] * (width + v.shape[-1])


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *args, out_val: Any = None, **kwargs
) -> int:
    """The scores again, and one product for each gradient: of values, weights, keys, queries."""
    *batch, queries, width = q.shape
    return 2 * math.prod(batch) * queries * k.shape[-2] * (3 * width + 2 * v.shape[-1])


def _matrix_vector(matrix: Tensor, *args, **kwargs) -> int:
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


# Sizes of built models


class SecondPass(NamedTuple):
    """Multiply-adds of linear layers that the released AbSViT makes and this package does not.

    Attributes:
        embedding: Patches embedded again.
        classifier: Class scores of the first pass.
        value_rows: The top-down signal times the rows of each projection that give the value.
        other_rows: The signal times the other rows, for query and key; the result is not used.
        reconstruction: The decoders once more on each block's output, for the reconstruction loss,
            which the released code computes in inference too. No part of the design.
    """

    embedding: int
    classifier: int
    value_rows: int
    other_rows: int
    reconstruction: int


class ModelSize(NamedTuple):
    """Counts of one model.

    Attributes:
        parameters: All numbers that belong to the model, frozen ones too.
        trainable: Those that are trained.
        executed: Multiply-adds of one image, as the model runs.
        released: The same as the released code runs it; ``None`` where it has no such model.
        second_pass: Of AbS: the parts of ``released`` that ``executed`` does not have.
    """

    parameters: int
    trainable: int
    executed: MultiplyAdds
    released: MultiplyAdds | None = None
    second_pass: SecondPass | None = None


def measure_reading(
    label: str = '',
    arch: str | None = None,
    mixer: str | None = None,
    mixer_cfg: dict[str, Any] | None = None,
    top_down: str | None = None,
    timm: str | None = None,
    kwargs: dict[str, Any] | None = None,
) -> ModelSize:
    """Build a classifier of 1000 classes on the meta device, and count one image.

    Args:
        label: Not used here: the reading's name in the table.
        arch, mixer, mixer_cfg, top_down: Of :func:`mmvars.networks.create_model`.
        timm: A model of timm instead.
        kwargs: Its arguments, and ``img_size`` where that is not 224.
    """
    with torch.device('meta'), torch.no_grad():
        if timm is not None:
            return _measure_timm(timm, **kwargs or {})
        network = create_model(arch, top_down, mixer=mixer, mixer_cfg=mixer_cfg).eval()
        return _measure_ours(network, torch.empty(1, 3, IMAGE_SIZE, IMAGE_SIZE))


def _measure_timm(name: str, img_size: int = IMAGE_SIZE, **kwargs: Any) -> ModelSize:
    model = timm.create_model(name, **kwargs).eval()
    image = torch.empty(1, 3, img_size, img_size)
    return ModelSize(*count_parameters(model), count_multiply_adds(lambda: model(image), [model]))


def _measure_ours(network: nn.Module, image: Tensor) -> ModelSize:
    trunk = getattr(network, 'trunk', network)
    mixers = [block.attn for block in trunk.blocks]
    grids = trunk.block_grids(trunk.forward_embed(image)[1])

    def classify() -> None:
        output = network(image)
        network.forward_head(output if network is trunk else output.second)

    executed, released, parts = count_multiply_adds(classify, [network]), None, None
    # Products that the released FAN's attention computes and nobody uses, in one pass.
    unused = sum(
        _num_tokens(grid) ** 2 * mixer.proj.in_features
        for mixer, grid in zip(mixers, grids, strict=True)
        if isinstance(mixer, FANAttention)
    )
    if network is not trunk:
        parts = _second_pass(network, mixers, grids, image)
        if parts is not None:
            linear = executed.linear + sum(parts) - parts.reconstruction
            released = MultiplyAdds(linear, executed.products + 2 * unused, executed.fourier)
    elif unused:
        released = executed._replace(products=executed.products + unused)
    elif trunk.mixer in _RELEASED and _is_released(trunk.mixer, trunk.mixer_cfg):
        pieces = [
            _RELEASED[trunk.mixer](mixer, grid) for mixer, grid in zip(mixers, grids, strict=True)
        ]
        released = MultiplyAdds(
            executed.linear,
            sum(piece.products for piece in pieces),
            sum(piece.fourier for piece in pieces),
        )
    return ModelSize(*count_parameters(network), executed, released, parts)


def _second_pass(
    network: nn.Module, mixers: Sequence[nn.Module], grids: Sequence[TokenGrid], image: Tensor
) -> SecondPass | None:
    if not (
        isinstance(network, TopDown)
        and isinstance(network.feedback, Feedback)
        and all(
            isinstance(mixer, SelfAttention | FANAttention) and mixer.injection == 'value'
            for mixer in mixers
        )
    ):
        return None
    tokens = [_num_tokens(grid) for grid in grids]
    # FAN has a projection of its own for the query.
    weights = [
        (mixer.kv if isinstance(mixer, FANAttention) else mixer.qkv).weight for mixer in mixers
    ]
    value_rows = sum(n * weight.shape[1] ** 2 for n, weight in zip(tokens, weights, strict=True))
    all_rows = sum(n * weight.numel() for n, weight in zip(tokens, weights, strict=True))
    decoders = [
        sum(weight.numel() for weight in decoder.parameters())
        for decoder in network.feedback.decoders
    ]
    trunk = network.trunk
    return SecondPass(
        embedding=count_multiply_adds(lambda: trunk.forward_embed(image), [trunk]).linear,
        classifier=sum(weight.numel() for weight in trunk.head.parameters() if weight.ndim == 2),
        value_rows=value_rows,
        other_rows=all_rows - value_rows,
        reconstruction=sum(n * numel for n, numel in zip(tokens, decoders, strict=True)),
    )


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """All and trainable parameters.

    Frozen numbers are buffers here and frozen parameters in the released models, so "all" counts
    floating-point buffers too, but for the running statistics of batch norms and for what is not
    saved.
    """
    trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
    for part in module.modules():
        if not isinstance(part, nn.modules.batchnorm._NormBase):
            frozen += sum(
                b.numel()
                for name, b in part.named_buffers(recurse=False)
                if b.is_floating_point() and name not in part._non_persistent_buffers_set
            )
    return trainable + frozen, trainable


# The released code's own arithmetic beside its linear layers, for one image. Several mixers here
# reach the released outputs with less: no N x N matrix in the Performer, no r x r products in
# VARS-S.


def _attention_release(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    return MultiplyAdds(0, 2 * _num_tokens(grid) ** 2 * mixer.proj.in_features, 0)


def _performer_release(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Features of q and of k, the N x N kernel from them, and its product with the value."""
    tokens = _num_tokens(grid)
    heads, width, features = mixer.random_features.shape
    products = 2 * tokens * width * features + tokens**2 * (features + width)
    return MultiplyAdds(0, heads * products, 0)


def _dynamic_release(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Features, Gram matrix and its modulation, encoding and decoding, and the updates."""
    tokens = _num_tokens(grid)
    heads, width, features = mixer.random_features.shape
    atoms = mixer.gram_modulation.shape[0]
    products = (
        tokens * width * features
        + tokens * atoms**2
        + 2 * atoms**3
        + 2 * tokens * atoms * width
        + mixer.num_steps * atoms**2 * width
    )
    return MultiplyAdds(0, heads * products, 0)


def _static_release(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    """Spectral products with r atoms, and with the r x r Gram matrix in each update."""
    channels, atoms = mixer.dictionary.shape[:2]
    steps = mixer.num_steps
    transforms = 1 + atoms + 2 * steps * atoms + atoms + 1 + 2  # the last 2: the output filter
    numbers = atoms + (1 + steps) * atoms**2 + atoms + 1
    return _spectral(channels, transforms, numbers, grid)


def _filter_release(mixer: nn.Module, grid: TokenGrid) -> MultiplyAdds:
    return _spectral(mixer.complex_weight.shape[2], transforms=2, numbers=1, grid=grid)


def _spectral(channels: int, transforms: int, numbers: int, grid: TokenGrid) -> MultiplyAdds:
    """``transforms`` of real maps, and ``numbers`` complex products a place, for each channel."""
    transform = fourier_multiply_adds((grid.height, grid.width), real=True)
    places = grid.height * (grid.width // 2 + 1)
    return MultiplyAdds(0, 0, round(channels * (transforms * transform + 4 * numbers * places)))


_RELEASED: dict[str, Callable[[nn.Module, TokenGrid], MultiplyAdds]] = dict(
    self_attention=_attention_release,
    performer=_performer_release,
    vars_d=_dynamic_release,
    vars_sd=_dynamic_release,
    vars_s=_static_release,
    global_filter=_filter_release,
)


def _is_released(mixer: str, mixer_cfg: dict[str, Any]) -> bool:
    """Whether a mixer has the release's constants, but for steps, atoms and features."""
    free = ('num_steps', 'atoms_per_channel', 'feature_ratio')
    return all(
        mixer_cfg[name] == value
        for name, value in resolve_mixer_cfg(mixer, preset='release').items()
        if name not in free
    )


def _num_tokens(grid: TokenGrid) -> int:
    return grid.num_prefix + grid.num_patches


# Published rows, and the models that they may stand for


def read_published(path: Path = PUBLISHED) -> dict[str, list[dict[str, Any]]]:
    """Tables by number; each row with ``table``, ``name``, ``params``, ``gflops``, ``remark`` and
    ``built_as``, a list of complete readings (see the head of the file)."""
    content = yaml.safe_load(path.read_text(encoding='utf-8'))
    tables = {}
    for number, rows in content['tables'].items():
        tables[number] = []
        for row in rows:
            row = dict(row, table=number)
            shared = {
                key: row.pop(key)
                for key in ('arch', 'mixer', 'top_down', 'timm', 'kwargs')
                if key in row
            }
            readings = row.pop('built_as', [{}] if shared else [])
            label = f'{shared["timm"]} of timm' if 'timm' in shared else 'bottom-up'
            row['built_as'] = [dict(label=label) | shared | reading for reading in readings]
            tables[number].append(dict(params=None, gflops=None) | row)
    return tables


def select_rows(
    tables: dict[str, list[dict[str, Any]]], table: str | None = None, patterns: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Rows of one table or all, by name.

    Args:
        tables: Of :func:`read_published`.
        table: A key of it; ``None`` for all.
        patterns: Each a name; or, where no row has it, a part of names or a pattern with ``*``.
            Small and capital letters are the same. Empty: all rows.

    Raises:
        InputError: If the table is unknown, or a pattern fits no row.
    """
    if table is not None:
        check_choice('--table', table, tables)
    rows = [row for number, part in tables.items() if table in (None, number) for row in part]
    if not patterns:
        return rows
    names = [row['name'].lower() for row in rows]
    selected: set[int] = set()
    for pattern in patterns:
        low = pattern.lower()
        # The names themselves hold stars, and some are the beginning of others.
        match = {i for i, name in enumerate(names) if name == low} or {
            i for i, name in enumerate(names) if low in name or fnmatch.fnmatchcase(name, low)
        }
        if not match:
            raise InputError(
                f'--rows {pattern!r} fits no row; the rows are '
                f'{", ".join(row["name"] for row in rows)}'
            )
        selected |= match
    return [row for i, row in enumerate(rows) if i in selected]


def measure_row(row: dict[str, Any]) -> dict[str, Any]:
    """Build every reading of a row and count; plain values, as ``--json`` writes them.

    Counts are whole numbers; published values are in millions, and 10^9 multiply-adds.
    """
    readings = []
    for reading in row['built_as']:
        size = measure_reading(**reading)
        readings.append(
            dict(
                reading,
                parameters=dict(all=size.parameters, trainable=size.trainable),
                multiply_adds=size.executed.to_dict(),
                released_multiply_adds=size.released.to_dict() if size.released else None,
                second_pass=size.second_pass._asdict() if size.second_pass else None,
                agrees=agreements(row, size),
            )
        )
    return dict(
        table=row['table'],
        name=row['name'],
        remark=row['remark'],
        readings=readings,
        published=dict(params_m=row['params'], gflops=row['gflops']),
    )


def agreements(row: dict[str, Any], size: ModelSize) -> list[str]:
    """Which counts round to the published ones, by name."""
    params = {'params all': size.parameters, 'params trainable': size.trainable}
    if size.parameters == size.trainable:
        params = {'params': size.parameters}
    costs = _costs('', size.executed)
    if size.released is not None:
        executed = set(costs.values())
        costs |= {
            name: count
            for name, count in _costs('release ', size.released).items()
            if count not in executed
        }
    digits = _digits(row['params'])
    return [
        name for name, count in params.items() if _rounds(count / 1e6, row['params'], digits)
    ] + [name for name, count in costs.items() if _rounds(count / 1e9, row['gflops'], 1)]


def _costs(prefix: str, macs: MultiplyAdds) -> dict[str, int]:
    costs = {'lin+conv': macs.linear, 'all': macs.all, 'all + FFT': macs.all + macs.fourier}
    if not macs.products:
        del costs['lin+conv']  # the same as all
    if not macs.fourier:
        del costs['all + FFT']
    return {prefix + name: count for name, count in costs.items()}


def _rounds(count: float, published: float | None, digits: int) -> bool:
    return published is not None and abs(count - published) <= 0.5 * 10**-digits


def _digits(params: float | None) -> int:
    """Digits of the printed millions after the point; multiply-adds always have one."""
    return 0 if isinstance(params, int) else 1


# Tables and files

_COLUMNS: tuple[tuple[str, str, str], ...] = (  # header, part of a reading's entry, number in it
    ('params M', 'parameters', 'all'),
    ('trainable', 'parameters', 'trainable'),
    ('G lin+conv', 'multiply_adds', 'linear'),
    ('G all', 'multiply_adds', 'all'),
    ('G FFT', 'multiply_adds', 'fourier'),
    ('release: G lin+conv', 'released_multiply_adds', 'linear'),
    ('G all', 'released_multiply_adds', 'all'),
    ('G FFT', 'released_multiply_adds', 'fourier'),
)


def render(result: dict[str, Any]) -> str:
    """The result of the command as Markdown that also reads as plain text."""
    parts = []
    for table in dict.fromkeys(row['table'] for row in result['rows']):
        rows = [row for row in result['rows'] if row['table'] == table]
        # Nothing is frozen, and nothing transformed, in the tables of AbS.
        columns = [
            column
            for column in _COLUMNS
            if table == '1.2' or column[2] not in ('trainable', 'fourier')
        ]
        header = ('row', 'built as', *(name for name, *_ in columns), 'PUBLISHED: M', 'G', 'agrees')
        lines = [line for row in rows for line in _lines(row, columns)]
        remarks = '\n'.join(f'- {_escape(row["name"])}: {_escape(row["remark"])}' for row in rows)
        parts.append(f'## Table {table}\n\n{markdown_table(header, lines)}\n\n{remarks}')
    parts.append(_READING)
    if any(reading['second_pass'] for row in result['rows'] for reading in row['readings']):
        parts.append(_TWO_PASSES)
    size = result['image_size']
    return '\n\n'.join(
        [
            *parts,
            f'One image of {size} x {size} pixels (InceptionV3: 299 x 299), '
            f'classifier of 1000 classes. {result["convention"]}',
        ]
    )


def _lines(row: dict[str, Any], columns: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    published = row['published']
    printed = [
        '-' if published[key] is None else f'{published[key]:.{digits}f}'
        for key, digits in (('params_m', _digits(published['params_m'])), ('gflops', 1))
    ]
    if not row['readings']:
        return [[row['name'], 'not ours, not counted', *('-' for _ in columns), *printed, '-']]
    lines = []
    for number, reading in enumerate(row['readings']):
        numbers = [
            '-'
            if reading[part] is None
            else f'{reading[part][key] / (1e6 if part == "parameters" else 1e9):.3f}'
            for _, part, key in columns
        ]
        lines.append(
            [
                row['name'] if number == 0 else '',
                reading['label'],
                *numbers,
                *(printed if number == 0 else ('', '')),
                ', '.join(reading['agrees']) or '-',
            ]
        )
    return lines


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with padded cells; columns of numbers are aligned to the right."""
    lines = [[_escape(cell) for cell in row] for row in (header, *rows)]
    columns = list(zip(*lines, strict=True))
    widths = [max(3, *map(len, column)) for column in columns]
    numeric = [
        all(cell in ('', '-') or cell[0].isdigit() for cell in column[1:]) for column in columns
    ]
    rule = [
        '-' * (width - 1) + (':' if right else '-')
        for width, right in zip(widths, numeric, strict=True)
    ]
    padded = [
        [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(line, widths, numeric, strict=True)
        ]
        for line in lines
    ]
    return '\n'.join(f'| {" | ".join(line)} |' for line in (padded[0], rule, *padded[1:]))


def _escape(text: str) -> str:
    return text.replace('*', r'\*').replace('|', r'\|')


def check_json_arguments(args: argparse.Namespace) -> None:
    """See that the file can be written, before the work that fills it.

    Raises:
        InputError: If it cannot.
    """
    if args.json is None:
        return
    if not args.json.parent.is_dir():
        raise InputError(f'--json {args.json}: the folder {args.json.parent} does not exist')
    if args.json.exists() and not args.overwrite:
        raise InputError(f'--json {args.json} exists; say --overwrite to replace it')


def write_json(args: argparse.Namespace, result: Any) -> None:
    """Write the file, if one was named."""
    if args.json is not None:
        write_text(args.json, json.dumps(result, indent=1) + '\n', args.overwrite)


def main(argv: list[str] | None = None) -> int:
    """Print parameters and multiply-adds of the models beside the published ones.

    Args:
        argv: Arguments; ``None`` for the command line's.

    Returns:
        Exit status 0.

    Raises:
        InputError: If a table, a row or a file cannot be used; nothing was written then.
    """
    args = parse_args(argv)
    rows = select_rows(read_published(), args.table, args.rows)
    check_json_arguments(args)
    result = dict(
        convention=CONVENTION,
        image_size=IMAGE_SIZE,
        torch=torch.__version__,
        rows=[measure_row(row) for row in rows],
    )
    print(render(result))
    write_json(args, result)
    return 0
