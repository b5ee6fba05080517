"""``mmvars export``: a trained model as a file that runs without mmvars: ONNX, or torch.export."""

import argparse
import io
import json
import logging
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.nn import functional as F

from mmvars import __version__
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number
from mmvars.layers.global_filter import GlobalFilter
from mmvars.layers.vars_attention import VARSConvolutionalDynamic
from mmvars.layers.vars_static import VARSStatic
from mmvars.models.sliding_window import whole_image_metas
from mmvars.parsers.export import parse_args
from mmvars.visualization.model import (
    ClassTable,
    Model,
    build_model,
    class_sources,
    dataset_of,
    is_segmentor,
    num_classes_of,
    read_config,
    swaps_channels,
)
from mmvars.write import check_destination, write_bytes

__all__ = ['ExportedFile', 'ExportedPart', 'main', 'open_file', 'read_file']

SUFFIXES = ('.onnx', '.pt2')
FIXED_SIZE_MIXERS = (VARSStatic, VARSConvolutionalDynamic, GlobalFilter)  # by Fourier transforms
FIXED_GRID_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says, and compare the file with the model.

    Raises:
        InputError: On what cannot be used or exported; no file is left then.
    """
    args = parse_args(argv)
    check_number('--tolerance', args.tolerance, 0)
    if args.opset is not None:
        check_number('--opset', args.opset, 18, whole=True)
    path = check_destination(args.output, args.checkpoint, args.overwrite, SUFFIXES)
    _check_packages(path)
    cfg = read_config(args.config, parse_cfg_options(args.cfg_options))
    model, recorded = build_model(
        cfg, args.checkpoint, torch.device('cpu'), heads=args.part == 'model'
    )
    part = ExportedPart(model, args.part, args.labels, args.normalize).eval()
    if args.dynamic:
        _check_any_size(part, path)
    images = part.random_images(2, args.size)  # a batch of one would be taken for a constant
    _check_predicts_as(part, images)
    print('tracing the model', flush=True)
    program = _traced(part, images, args.dynamic)
    meta = dict(
        made_by=f'mmvars {__version__}',
        config=Path(args.config).name,
        checkpoint=Path(args.checkpoint).name,
        part=part.task,
        input='pixels 0 to 255' if args.normalize else 'normalized images',
        channels=_channel_order(cfg, part),
    )
    if classes := _class_names(cfg, model, recorded):
        meta['classes'] = json.dumps(classes)
    if path.suffix == '.onnx':
        print('writing it in operators of ONNX', flush=True)
        content = _onnx_bytes(program, part, meta, args)
    else:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=meta)
        content = buffer.getvalue()
    print('running the file beside the model', flush=True)
    worst = _compared(part, _program(content, path.suffix), args)
    write_bytes(path, content, args.overwrite)
    test_cfg = cfg.model.get('test_cfg') or {}
    if part.task == 'segmentor' and test_cfg.get('mode') == 'slide':
        print(
            f'note: the config tests with sliding windows of {test_cfg.get("crop_size")}; the '
            'file holds what is done with one of them'
        )
    sizes = 'any size' if args.dynamic else f'{args.size[0]}x{args.size[1]}'
    print(
        f'{path}: {part.task}, images of {sizes} in batches of any size, outputs '
        f'{", ".join(part.output_names)}; {path.stat().st_size / 2**20:.1f} MiB'
    )
    where = 'onnxruntime' if path.suffix == '.onnx' else 'torch.export'
    print(f'run in {where}: at most {worst:.1e} of the greatest output from the model')
    return 0


class ExportedPart(nn.Module):
    """A segmentor's logits at the size of the image, a classifier's logits, or feature maps.

    Args:
        model: A segmentor or classifier in eval mode.
        part: ``'model'``, or ``'backbone'`` for the features alone.
        labels: Give class numbers in place of logits.
        normalize: Take pixels from 0 to 255 as the config loads them, and apply mean, standard
            deviation and channel order of the model's data preprocessor; else images are taken as
            the preprocessor leaves them.

    Raises:
        InputError: If the model or its preprocessor is of a kind that is not known here.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, model: Model, part: str = 'model', labels: bool = False, normalize: bool = False
    ) -> None:
        super().__init__()
        if labels and part == 'backbone':
            raise InputError('--labels needs the heads: leave out --part backbone')
        if part == 'model' and is_segmentor(model) and isinstance(model.decode_head, nn.ModuleList):
            raise InputError(
                f'{type(model).__name__} is a cascade of decode heads, which is not '
                'exported as a whole; --part backbone exports its backbone'
            )
        self.task = (
            'backbone'
            if part == 'backbone'
            else 'segmentor'
            if is_segmentor(model)
            else 'classifier'
        )
        self.model: Any = model.backbone if part == 'backbone' else model
        self.num_channels = model.backbone.trunk.in_chans
        self.labels = labels
        self.normalizes = normalize
        self.swaps_channels = swaps_channels(model.data_preprocessor)
        self.output_names = (
            [f'features_{index}' for index in self.model.out_indices]
            if part == 'backbone'
            else ['labels' if labels else 'logits']
        )
        for name in ('mean', 'std') if normalize else ():
            value = getattr(model.data_preprocessor, name, None)
            if not isinstance(value, Tensor):
                raise InputError(
                    '--normalize needs a data_preprocessor with mean and std, and '
                    f'{type(model.data_preprocessor).__name__} of this config has '
                    'none'
                )
            self.register_buffer(name, value.reshape(1, -1, 1, 1).clone())

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """``images (B, C, H, W)`` to features of each output block, or a tuple of one.

        That is logits ``(B, K, H, W)`` or ``(B, K)``, or labels ``(B, H, W)`` or ``(B,)``.
        """
        if self.task == 'backbone':
            return tuple(self.model(self.normalized(images)))
        logits = self.logits(images)
        if not self.labels:
            return (logits,)
        if logits.shape[1] > 1:
            return (logits.argmax(dim=1),)
        return ((logits[:, 0].sigmoid() > self.model.decode_head.threshold).long(),)

    def logits(self, images: Tensor) -> Tensor:
        """``(B, K, H, W)`` or ``(B, K)``, whatever :meth:`forward` gives."""
        inputs = self.normalized(images)
        if self.task == 'classifier':
            return self.model(inputs, mode='tensor')
        head = self.model.decode_head
        return F.interpolate(
            head(self.model.extract_feat(inputs)),
            size=images.shape[2:],
            mode='bilinear',
            align_corners=head.align_corners,
        )

    def normalized(self, images: Tensor) -> Tensor:
        """What the backbone is given."""
        if not self.normalizes:
            return images
        return ((images.flip(1) if self.swaps_channels else images) - self.mean) / self.std

    def random_images(self, batch: int, size: Sequence[int]) -> Tensor:
        """Images such as this takes: normal numbers, or pixels where it normalizes itself."""
        images = torch.randn(
            batch, self.num_channels, *size, generator=torch.Generator().manual_seed(batch)
        )
        return (images * 60 + 120).clamp(0, 255) if self.normalizes else images


def _channel_order(cfg: Config, part: ExportedPart) -> str:
    """Of the images that the file takes."""
    preprocessor = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    orders = ['BGR', 'RGB']  # as mmcv loads images, and as most networks see them
    if preprocessor.get('rgb_to_bgr'):
        orders.reverse()
    return orders[part.swaps_channels and not part.normalizes]


def _class_names(cfg: Config, model: Model, recorded: Mapping) -> list[str]:
    """Names of the classes, in order; empty where none are known."""
    try:
        sources = class_sources(dataset_of(cfg), recorded)
        table = ClassTable.of(num_classes_of(model), *sources)
    except InputError:  # no data, or nothing that predicts
        return []
    return list(table.names) if table.named else []


def _check_packages(path: Path) -> None:
    missing = [name for name in ('onnx', 'onnxscript', 'onnxruntime') if find_spec(name) is None]
    if path.suffix == '.onnx' and missing:
        raise InputError(
            f'{", ".join(missing)} must be installed to write and check {path.suffix} '
            'files: pip install "mmvars[export]"; a .pt2 file needs torch alone'
        )


def _check_any_size(part: ExportedPart, path: Path) -> None:
    """Refuse models that are known to be bound to one size, before minutes of tracing."""
    modules = (
        [part.model] if part.task != 'segmentor' else [part.model.backbone, part.model.decode_head]
    )
    for module in (module for root in modules for module in root.modules()):
        name = type(module).__name__
        if isinstance(module, FIXED_SIZE_MIXERS):
            raise InputError(
                f'{name} transforms maps of one size, so that this model cannot be '
                'exported for images of any size; leave out --dynamic and export one '
                'file for each size'
            )
        pools = isinstance(module, FIXED_GRID_POOLS) and module.output_size not in (1, (1, 1))
        if pools and path.suffix == '.onnx':
            raise InputError(
                f'{type(part.model.decode_head).__name__} pools to a fixed grid '
                f'({name} to {module.output_size}), which ONNX cannot do for images '
                f'of any size; write a .pt2 file ({path.stem}.pt2), or leave out '
                '--dynamic and export one file for each size'
            )


@torch.no_grad()
def _check_predicts_as(part: ExportedPart, images: Tensor) -> None:
    """Refuse a segmentor whose head predicts in another way than by its forward alone."""
    if part.task != 'segmentor':
        return
    expected = part.model.encode_decode(part.normalized(images), whole_image_metas(images))
    logits = part.logits(images)
    if expected.shape != logits.shape or not torch.allclose(expected, logits, rtol=1e-4, atol=1e-4):
        raise InputError(
            f'{type(part.model.decode_head).__name__} does more in a test than its '
            'forward does, so that its logits cannot be exported; --part backbone '
            'exports the backbone'
        )


def _traced(part: ExportedPart, images: Tensor, any_size: bool) -> ExportedProgram:
    """The part as a graph, for any batch size and, with ``any_size``, images of any size."""
    if not hasattr(torch.compiler, 'is_exporting'):
        raise InputError(
            f'torch {torch.__version__} is too old to export for free sizes: use torch 2.7 or '
            'newer, such as an environment of its own with pip install "mmvars[onedl,export]"'
        )
    free_axes = (0, 2, 3) if any_size else (0,)
    shapes = (dict.fromkeys(free_axes, torch.export.Dim.DYNAMIC),)
    with _exporting(any_size):
        return torch.export.export(part, (images,), dynamic_shapes=shapes, strict=False)


def _onnx_bytes(
    program: ExportedProgram, part: ExportedPart, meta: dict[str, str], args: argparse.Namespace
) -> bytes:
    with _exporting(args.dynamic):
        onnx: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            opset_version=args.opset,
            verbose=False,
            input_names=['images'],
            output_names=part.output_names,
        )
    # Speaking names for the free axes of the input, wherever they occur in inputs and outputs.
    inputs, outputs = onnx.model.graph.inputs, onnx.model.graph.outputs
    axes = {0: 'batch', 2: 'height', 3: 'width'}
    names = {
        str(inputs[0].shape[axis].value): name
        for axis, name in axes.items()
        if not isinstance(inputs[0].shape[axis], int)
    }
    for value in (*inputs, *outputs):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = re.sub(r'\w+', lambda m: names.get(m[0], m[0]), str(size.value))
    onnx.model.metadata_props.update(meta)
    proto = onnx.model_proto
    if proto.ByteSize() > 2**31 - 1:
        raise InputError('the model is larger than 2 GiB, the limit of one ONNX file; write a .pt2')
    return proto.SerializeToString()


@contextmanager
def _exporting(any_size: bool) -> Iterator[None]:
    """Without the exporters' own remarks, and with one line in place of their errors."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')
            yield
    except Exception as error:
        lines = [line.strip(' -') for line in str(error).splitlines() if line.strip(' -')]
        reason = next(
            (line for line in lines if 'specialized' in line or 'Unsupported' in line),
            lines[0] if lines else type(error).__name__,
        )[:300]
        raise InputError(
            f'this model cannot be exported for images of any size ({reason}); leave out --dynamic '
            'and export one file for each size'
            if any_size
            else f'this model cannot be exported ({reason}); MMVARS_DEBUG=1 shows the whole error'
        ) from error
    finally:
        logging.disable(disabled)


def open_file(path: Path) -> Callable[[Tensor], Sequence[Tensor]]:
    """A written file as a function of images: in onnxruntime on the CPU, or in torch."""
    return _program(path.read_bytes(), path.suffix)


class ExportedFile(NamedTuple):
    """A written file.

    Attributes:
        run: From images to outputs, see :func:`open_file`.
        meta: What it says of itself: ``part``, ``input``, ``channels``, ``classes``.
        size: Height and width of the images that it takes; ``None``: any.
        dtype: Of the first output.
    """

    run: Callable[[Tensor], Sequence[Tensor]]
    meta: Mapping[str, str]
    size: tuple[int, int] | None
    dtype: torch.dtype


def read_file(path: Path) -> ExportedFile:
    """Open a file that this module wrote.

    Raises:
        InputError: If it cannot be read.
    """
    if path.suffix == '.onnx':
        _check_packages(path)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # torch prints a traceback of what is no program
    try:
        return (_read_pt2 if path.suffix == '.pt2' else _read_onnx)(path.read_bytes())
    except Exception as error:  # whatever the two make of the file
        reason = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise InputError(
            f'exported file {path} cannot be read: {reason}; export it again'
        ) from error
    finally:
        logging.disable(disabled)


def _read_pt2(content: bytes) -> ExportedFile:
    meta = dict.fromkeys(('part', 'input', 'channels', 'classes'), '')
    program = torch.export.load(io.BytesIO(content), extra_files=meta)
    (name,) = program.graph_signature.user_inputs
    entry: Any = next(node for node in program.graph.nodes if node.name == name)
    output: Any = program.graph.output_node().args[0]
    sides = entry.meta['val'].shape[-2:]
    return ExportedFile(program.module(), meta, _fixed(sides), output[0].meta['val'].dtype)


def _read_onnx(content: bytes) -> ExportedFile:
    import onnxruntime

    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    meta = session.get_modelmeta().custom_metadata_map
    sides = session.get_inputs()[0].shape[-2:]
    kinds = {'tensor(int64)': torch.int64, 'tensor(float)': torch.float32}
    dtype = kinds[session.get_outputs()[0].type]
    return ExportedFile(_run_of(session), meta, _fixed(sides), dtype)


def _fixed(sides: Sequence[Any]) -> tuple[int, int] | None:
    """Height and width where both are numbers."""
    height, width = sides
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def _program(content: bytes, suffix: str) -> Callable[[Tensor], Sequence[Tensor]]:
    if suffix == '.pt2':
        return torch.export.load(io.BytesIO(content)).module()
    import onnxruntime

    return _run_of(onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider']))


def _run_of(session: Any) -> Callable[[Tensor], Sequence[Tensor]]:
    """A session of onnxruntime as a function of images."""
    name = session.get_inputs()[0].name
    return lambda images: [
        torch.from_numpy(array) for array in session.run(None, {name: images.numpy()})
    ]


def _compared(
    part: ExportedPart, run: Callable[[Tensor], Sequence[Tensor]], args: argparse.Namespace
) -> float:
    """Greatest relative difference over images of several sizes, before anything is written.

    Raises:
        InputError: If the program does not run, or differs by more than ``--tolerance``.
    """
    worst = 0.0
    remedy = '; leave out --dynamic and export one file for each size' if args.dynamic else ''
    height, width = args.size
    sizes = [(2, height, width), (1, height, width), (3, height, width)]
    if args.dynamic:  # larger, smaller, and no multiple of anything
        sizes += [(1, height + 32, width + 16), (2, max(height // 2, 33), max(width // 2, 37))]
    for batch, *size in sizes:
        images = part.random_images(batch, size)
        words = f'{batch} images of {size[0]}x{size[1]}'
        try:
            outputs = list(run(images))
        except Exception as error:  # whatever the runtime makes of the file
            raise InputError(
                f'the exported file does not run for {words} '
                f'({str(error).splitlines()[0][:200]}); nothing was written{remedy}'
            ) from error
        difference = _difference(part, images, outputs)
        if not difference <= args.tolerance:  # NaN too
            raise InputError(
                f'the exported file differs from the model by {difference:.1e} of the '
                f'greatest output (--tolerance {args.tolerance:g}) for {words}; '
                f'nothing was written{remedy}'
            )
        worst = max(worst, difference)
    return worst


@torch.no_grad()
def _difference(part: ExportedPart, images: Tensor, outputs: list[Tensor]) -> float:
    """Greatest difference of a file's outputs from the model's, relative to the greatest number.

    Labels count by logits: how far that of the file's label lies below the greatest one.
    """
    expected = list(part(images))
    shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (outputs, expected)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f'the file gives {shapes[0]} for images {tuple(images.shape)}, the model {shapes[1]}'
        )
    if part.labels:
        logits = part.logits(images)
        if logits.shape[1] == 1:
            logits = torch.cat([-logits, logits], dim=1)
        chosen = logits.gather(1, outputs[0].unsqueeze(1).to(torch.int64))[:, 0]
        return ((logits.amax(dim=1) - chosen).max() / logits.abs().max().clamp_min(1e-12)).item()
    return max(
        ((a - b).abs().max() / a.abs().max().clamp_min(1e-12)).item()
        for a, b in zip(expected, outputs, strict=True)
    )
