"""From a module to a file: traced once, written whole or not at all."""

import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram

from mmvars.checkpoints.files import write_bytes
from mmvars.errors import InputError
from mmvars.export.wrap import ExportedPart
from mmvars.layers.spectral import GlobalFilter
from mmvars.layers.vars_dynamic import VARSConvolutionalDynamic
from mmvars.layers.vars_static import VARSStatic

__all__ = ['SUFFIXES', 'traced', 'write_program']

SUFFIXES = ('.onnx', '.pt2')
_LOUD = ('torch.fx.experimental.symbolic_shapes', 'torch.onnx', 'onnxscript', 'onnx_ir')
_OF_ONE_SIZE = (VARSStatic, VARSConvolutionalDynamic, GlobalFilter)  # by Fourier transforms
_AXES = {0: 'batch', 2: 'height', 3: 'width'}


def traced(part: ExportedPart, images: Tensor, any_size: bool) -> ExportedProgram:
    """The part as a graph, for any batch size and, with ``any_size``, images of any size.

    Args:
        part: What to trace, in eval mode.
        images: ``(B, C, H, W)``, B at least 2: a batch of one would be taken for a constant.
        any_size: Whether height and width are free.

    Raises:
        InputError: If the model cannot be traced like that, with torch's first line of why.
    """
    bound = next((type(module).__name__ for module in part.modules()
                  if isinstance(module, _OF_ONE_SIZE)), None)
    if any_size and bound:
        raise InputError(f'{bound} transforms maps of one size, so that this model cannot be '
                         f'exported for images of any size; leave out --dynamic and export one '
                         f'file for each size')
    free = (0, 2, 3) if any_size else (0, )
    shapes = (dict.fromkeys(free, torch.export.Dim.DYNAMIC), )
    try:
        with _quiet(), torch.no_grad():
            return torch.export.export(part, (images, ), dynamic_shapes=shapes, strict=False)
    except Exception as error:
        raise _refusal(error, any_size) from error


def write_program(program: ExportedProgram, path: Path, part: ExportedPart, opset: int | None,
                  meta: Mapping[str, str], overwrite: bool, any_size: bool) -> None:
    """Write a traced part in the format that the suffix of ``path`` says.

    Args:
        program: From :func:`traced`.
        path: Ends in one of :data:`SUFFIXES`.
        part: What was traced.
        opset: Version of the ONNX operators; ``None`` for the exporter's own choice.
        meta: Plain strings that say where the file comes from.
        overwrite: Whether an existing file may be replaced.
        any_size: As it was traced, for the message.

    Raises:
        InputError: If an operator has no form in ONNX, or the disk refuses.
    """
    if path.suffix == '.onnx':
        content = _onnx_bytes(program, part, opset, meta, any_size)
    else:
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files=dict(meta))
        content = buffer.getvalue()
    write_bytes(path, content, overwrite)


def _onnx_bytes(program: ExportedProgram, part: ExportedPart, opset: int | None,
                meta: Mapping[str, str], any_size: bool) -> bytes:
    try:
        with _quiet(), torch.no_grad():
            onnx = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False,
                                     input_names=['images'], output_names=part.output_names)
    except Exception as error:
        raise _refusal(error, any_size) from error
    _name_axes(onnx.model.graph)
    onnx.model.metadata_props.update(meta)
    proto = onnx.model_proto
    if proto.ByteSize() > 2**31 - 1:
        raise InputError('the model is larger than 2 GiB, the limit of one ONNX file; write a .pt2')
    return proto.SerializeToString()


def _name_axes(graph) -> None:
    """Speaking names for the free axes of the input, wherever they occur in inputs and outputs."""
    images = graph.inputs[0]
    names = {str(images.shape[axis].value): name for axis, name in _AXES.items()
             if not isinstance(images.shape[axis], int)}
    for value in (*graph.inputs, *graph.outputs):
        for axis, size in enumerate(value.shape):
            if not isinstance(size, int) and size.value is not None:
                value.shape[axis] = re.sub(r'\w+', lambda m: names.get(m[0], m[0]), str(size.value))


def _refusal(error: Exception, any_size: bool) -> InputError:
    lines = [line.strip(' -') for line in str(error).splitlines() if line.strip(' -')]
    reason = next((line for line in lines if 'specialized' in line or 'Unsupported' in line),
                  lines[0] if lines else type(error).__name__)[:300]
    if any_size:
        return InputError(f'this model cannot be exported for images of any size ({reason}); leave '
                          f'out --dynamic and export one file for each size')
    return InputError(f'this model cannot be exported ({reason}); MMVARS_DEBUG=1 shows the whole '
                      f'error')


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporters' own remarks, which say nothing that a user could act on."""
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
