"""The parts of METER beside its vision backbone, compared with the modules that they fill."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from mmvars.checkpoints.fit import shapes_of
from mmvars.checkpoints.key_mapping import Shapes
from mmvars.checkpoints.report import ConversionReport, Status
from mmvars.errors import InputError

__all__ = ['check_meter', 'is_meter', 'text_width']

_FUSION, _HEAD, _TEXT = 'fusion.', 'head.', 'text_backbone.model.'


def is_meter(beside: Mapping[str, Any]) -> bool:
    """Whether what is beside a network, by the names of mmvars, is of METER."""
    return any(name.startswith((_FUSION, _TEXT)) for name in beside)


def text_width(shapes: Shapes) -> int:
    """Channels of the text encoder of a METER; 0 if the file does not show them."""
    return _usual(shapes, rf'{re.escape(_TEXT)}.*LayerNorm\.bias') or _length(
        shapes, 'fusion.text_projection.weight', 1
    )


def check_meter(
    beside: Mapping[str, Any], image_width: int, released: bool, report: ConversionReport
) -> None:
    """Compare names and shapes with those of modules of the sizes that the file shows.

    The sizes are those that most tensors have. What differs becomes a problem of ``report``.

    Args:
        beside: What is beside the network, by the names of mmvars.
        image_width: Channels of the vision backbone.
        released: Whether the text encoder must be RoBERTa; that of a file of mmvars may be another,
            which is not checked.
        report: Has an entry for each tensor.

    Raises:
        InputError: If OpenMMLab, which METER needs, is not installed.
    """
    shapes = shapes_of(beside)
    expected = _expected_fusion(shapes, image_width) | _expected_head(shapes)
    text = _expected_text(shapes, report) if released else {}
    expected |= text
    checked = (_FUSION, _HEAD, *((_TEXT,) if text else ()))
    for entry in report.of(Status.PASSTHROUGH):
        name = str(entry.target)
        if not name.startswith(checked):
            continue
        entry.note = ''
        if name not in expected:
            entry.status, entry.target = Status.UNEXPECTED, None
        elif entry.shape != expected[name]:
            entry.status, entry.target_shape = Status.MISSHAPED, expected[name]
    for name in sorted(expected.keys() - beside.keys()):
        report.add(Status.MISSING, target=name, shape=expected[name])
    report.remark(
        f'METER: {_depth(shapes, _FUSION)} layers of fusion in each stream, '
        f'{_depth(shapes, _TEXT)} of the text encoder'
    )


def _expected_fusion(shapes: Shapes, image_width: int) -> dict[str, tuple[int, ...]]:
    try:
        from mmvars.vision_language import CoAttentionFusion  # not of this ring
    except ImportError as error:
        raise InputError(
            'a file of METER is compared with its modules, which need OpenMMLab (see '
            '`mmvars doctor`); --prefix vit_model converts its vision backbone alone'
        ) from error
    width = _hidden(shapes)
    mlp = _usual(shapes, r'fusion\..*\.fc1\.bias') or 4 * width
    with torch.device('meta'):
        fusion = CoAttentionFusion(
            text_width(shapes) or width,
            image_width,
            width,
            max(1, _depth(shapes, _FUSION)),
            num_heads=1,
            mlp_ratio=(mlp + 0.5) / width,  # whose floor is the MLP's width
        )
    return _named(_FUSION, fusion)


def _expected_head(shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """Of the head that the file shows, else of the one for answers."""
    from mmvars.vision_language import RetrievalHead, VQAHead

    width = 2 * _hidden(shapes)
    with torch.device('meta'):
        if any(name.startswith(('head.rank.', 'head.matching.')) for name in shapes):
            return _named(_HEAD, RetrievalHead(width))
        answers = _length(shapes, 'head.layers.3.weight', 0) or 3129
        return _named(_HEAD, VQAHead(answers, in_dim=width))


def _expected_text(shapes: Shapes, report: ConversionReport) -> dict[str, tuple[int, ...]]:
    """Of RoBERTa; empty without transformers, which the report says."""
    try:
        from transformers import RobertaConfig, RobertaModel
    except ImportError:
        report.remark(
            'the text encoder was not checked, which needs transformers: pip install "mmvars[text]"'
        )
        return {}
    width = text_width(shapes) or 768
    words, positions, types = (
        _length(shapes, f'{_TEXT}embeddings.{name}_embeddings.weight', 0)
        for name in ('word', 'position', 'token_type')
    )
    config = RobertaConfig(
        vocab_size=max(2, words or 50265),  # the token that fills texts up has the number 1
        max_position_embeddings=max(2, positions or 514),
        type_vocab_size=types or 1,
        hidden_size=width,
        num_hidden_layers=max(1, _depth(shapes, _TEXT)),
        num_attention_heads=1,
        intermediate_size=_usual(shapes, rf'{re.escape(_TEXT)}.*\.intermediate\.dense\.bias')
        or 4 * width,
    )
    with torch.device('meta'):
        return _named(_TEXT, RobertaModel(config, add_pooling_layer=False))


def _named(start: str, module: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {start + name: tuple(value.shape) for name, value in module.named_parameters()}


def _hidden(shapes: Shapes) -> int:
    return _usual(shapes, r'fusion\..*\.norm\d\.bias') or 768


def _usual(shapes: Shapes, pattern: str) -> int:
    """The most frequent length of the tensors whose names match; 0 if there are none."""
    lengths = Counter(
        shape[0]
        for name, shape in shapes.items()
        if len(shape) == 1 and re.fullmatch(pattern, name)
    )
    return max(lengths, key=lambda length: lengths[length], default=0)


def _length(shapes: Shapes, name: str, axis: int) -> int:
    shape = shapes.get(name, ())
    return shape[axis] if len(shape) > axis else 0


def _depth(shapes: Shapes, start: str) -> int:
    """One more than the highest number of a layer."""
    numbers = (
        re.match(r'(?:\w+_layers|encoder\.layer)\.(\d+)\.', name.removeprefix(start))
        for name in shapes
        if name.startswith(start)
    )
    return 1 + max((int(match[1]) for match in numbers if match), default=-1)
