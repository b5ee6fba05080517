"""What a checkpoint and the files beside it say of the training that made it.

A config in a checkpoint is Python text; it is parsed here, never executed.
"""

import ast
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmvars.checkpoints.io import LoggedValues, read_checkpoint, read_meta

__all__ = ['Training', 'parse_config', 'read_training', 'section']


@dataclass(frozen=True)
class Training:
    """What is known of the training that made a checkpoint.

    Attributes:
        cfg: Its config; {}: not known.
        classes: Names of its classes; ``None``: not known.
        source: Where both stand.
        scores: Name -> value of each metric in the validation of this checkpoint; {}: not known.
        log: Where they stand, or where they were looked for.
    """

    cfg: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    source: str = 'the checkpoint'
    scores: Mapping[str, float] = field(default_factory=dict)
    log: str = 'the checkpoint'


def read_training(checkpoint: str, tested: str) -> Training:
    """What is known of the training that made a checkpoint.

    Args:
        checkpoint: Its path.
        tested: Path of the config that is tested, which says nothing of the training where it lies
            beside the checkpoint.
    """
    content = read_checkpoint(checkpoint)
    meta = read_meta(checkpoint, content)
    names = meta.get('dataset_meta')
    classes = names.get('classes') if isinstance(names, Mapping) else meta.get('CLASSES')
    cfg, source = _find_config(checkpoint, meta, tested)
    hub = content.get('message_hub') if isinstance(content, Mapping) else None
    scores, log = _in_hub(hub, checkpoint) if isinstance(hub, Mapping) else {}, 'the checkpoint'
    if not scores and '://' not in checkpoint:
        scores, log = _in_log(Path(checkpoint).parent, meta, cfg)
    return Training(cfg, classes, source, scores, log)


def _find_config(
    checkpoint: str, meta: Mapping[str, Any], tested: str
) -> tuple[Mapping[str, Any], str]:
    text = meta.get('cfg') or meta.get('config')
    if isinstance(text, str) and 'model' in (cfg := parse_config(text)):
        return cfg, 'the config in the checkpoint'
    folder, files = Path(checkpoint).parent, []
    if '://' not in checkpoint:
        files = sorted(folder.glob('*/vis_data/config.py'))[-1:] + sorted(folder.glob('*.py'))
    for file in files:
        cfg = parse_config(file.read_text(encoding='utf-8', errors='replace'))
        if 'model' in cfg and not (os.path.exists(tested) and file.samefile(tested)):
            return cfg, str(file)
    return {}, 'the checkpoint'


def section(cfg: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """An entry of a config that is a dict; {} where there is none."""
    value = cfg.get(name)
    return value if isinstance(value, Mapping) else {}


def _in_hub(hub: Mapping[str, Any], checkpoint: str) -> dict[str, float]:
    """Scores in a checkpoint that was saved after its validation: one that is the best so far.

    Others are saved before it, so that what they hold is of an earlier one.
    """
    info, scalars = hub.get('runtime_info'), hub.get('log_scalars')
    if not isinstance(info, Mapping) or not isinstance(scalars, Mapping):
        return {}
    best = {Path(str(value)).name for key, value in info.items() if key.startswith('best_ckpt')}
    if Path(checkpoint).name not in best:
        return {}
    return {
        key.removeprefix('val/'): float(logged.values[-1])
        for key, logged in scalars.items()
        if key.startswith('val/') and isinstance(logged, LoggedValues) and logged.values
    }


def _in_log(
    folder: Path, meta: Mapping[str, Any], cfg: Mapping[str, Any]
) -> tuple[dict[str, float], str]:
    """Scores in the log of mmengine: the line of the step at which the checkpoint was saved."""
    logger = section(section(cfg, 'default_hooks'), 'logger')
    step = meta.get('epoch' if logger.get('log_metric_by_epoch', True) else 'iter')
    started = str(meta.get('experiment_name', ''))[-15:]  # which is the name of a folder
    files = sorted({*folder.glob('*/vis_data/scalars.json'), *folder.glob('*.json')})
    files = [file for file in files if started and started in str(file)] or files
    found: dict[str, set[float]] = {}
    for file in files:
        for line in _lines(file):
            if line.get('step') == step and not {'loss', 'lr'} & line.keys():  # not of training
                for key, value in line.items():
                    if isinstance(value, (int, float)):
                        found.setdefault(key, set()).add(float(value))
    # What was validated several times, with different results, is not known.
    scores = {key: value for key, (value, *others) in found.items() if not others}
    where = files[0] if len(files) == 1 else folder
    return scores, f'{where}, step {step}' if scores else str(where)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
        if line.startswith('{"') and '"step"' in line:
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


def parse_config(text: str) -> dict[str, Any]:
    """The variables of a config: literals, ``dict(...)`` and earlier variables; {} if none."""
    try:
        nodes = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}
    known: dict[str, Any] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            known[node.targets[0].id] = _value(node.value, known)
    return known


def _value(node: ast.expr, known: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == 'dict':
        first = [_value(argument, known) for argument in node.args]
        pairs = {each.arg: _value(each.value, known) for each in node.keywords if each.arg}
        return {**(first[0] if first and isinstance(first[0], dict) else {}), **pairs}
    if isinstance(node, ast.Dict):
        return {
            _value(key, known): _value(value, known)
            for key, value in zip(node.keys, node.values, strict=True)
            if isinstance(key, ast.Constant)
        }
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(each, known) for each in node.elts]
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return ast.unparse(node)  # a name, as of a class
