"""Find typing errors in ``--cfg-options``, keys and values, before anything is built.

mmengine adds every key that it does not find, so ``train_cfg.max_iter=10`` silently trains the full
schedule. Here a new key is accepted only where something will read it or complain about it:

- at the top level: the names that the Runner or the tools read, and those of
  :data:`~mmvars.engine.overrides.SHORTHANDS`;
- in a dict with ``type``, and in data loaders: these become arguments of a class, which refuses
  unknown ones. A key that is nearly one of those present is refused here already;
- in the dicts whose keys are free or optional (:data:`OPEN`), and below any of these.

Everywhere else an unknown key is an error that names the nearest known ones.
"""

import difflib
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from mmvars.engine.overrides import SHORTHANDS, walk_entries
from mmvars.errors import InputError

__all__ = ['OPEN', 'TOP_LEVEL', 'check_options']

TOP_LEVEL = frozenset({
    'activation_checkpointing', 'allow_constants', 'auto_scale_lr', 'compile', 'custom_hooks',
    'custom_imports', 'data_preprocessor', 'default_hooks', 'default_scope',
    'efficient_conv_bn_eval', 'env_cfg', 'experiment_name', 'find_unused_parameters', 'launcher',
    'load_from', 'log_level', 'log_processor', 'model', 'model_wrapper_cfg', 'optim_wrapper',
    'param_scheduler', 'randomness', 'resume', 'runner_type', 'sync_bn', 'test_cfg',
    'test_dataloader', 'test_evaluator', 'train_cfg', 'train_dataloader', 'tta_model',
    'tta_pipeline', 'val_cfg', 'val_dataloader', 'val_evaluator', 'visualizer', 'work_dir'
})
"""Top-level names that mmengine's Runner or the tools read, whether the config has them or not."""

OWN_TEST_OPTIONS = frozenset({'window_batch', 'keep_logits', 'logits_device', 'logits_dtype'})
"""Keys of ``model.test_cfg`` that only our segmentor reads."""

OPEN = {
    'custom_keys': None,  # None: any key
    'data_prefix': {'depth_map_path', 'img_path', 'img_path2', 'seg_map_path'},
    'metainfo': None,
    'mixer_cfg': None,  # every mixer has its own options, and refuses others
    'env_cfg': {'cudnn_benchmark', 'mp_cfg', 'dist_cfg', 'resource_limit'},
    'mp_cfg': {'mp_start_method', 'opencv_num_threads', 'omp_num_threads', 'mkl_num_threads'},
    'dist_cfg': {'backend', 'timeout', 'init_backend', 'port'},
    'randomness': {'seed', 'deterministic', 'diff_rank_seed'},
    'auto_scale_lr': {'enable', 'base_batch_size'},
    'clip_grad': {'max_norm', 'norm_type', 'error_if_nonfinite', 'foreach', 'type',
                  'clip_value'},
    'paramwise_cfg': {
        'custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'flat_decay_mult',
        'dwconv_decay_mult', 'dcn_offset_lr_mult', 'bypass_duplicate', 'layer_decay_rate'
    },
    'model.test_cfg': {'mode', 'crop_size', 'stride', 'augments', 'multi_label',
                       *OWN_TEST_OPTIONS},
    'model.train_cfg': {'augments', 'probs'},
    'train_cfg': {'by_epoch', 'max_epochs', 'max_iters', 'val_begin', 'val_interval',
                  'dynamic_intervals', 'fast_forward_on_resume'},
    'val_cfg': {'fp16'},
    'test_cfg': {'fp16'},
}
"""Dicts without ``type`` whose keys are optional: last part or full path -> the keys they take."""

EITHER = frozenset({'arch', 'data_prefix', 'loss_scale', 'prior'})
"""Arguments that take a word as well as a number or a dict."""

_ALMOST = 0.85  # difflib ratio from which a new key beside an existing one is a typing error


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Refuse options that name nothing in ``cfg``.

    Args:
        cfg: The config before the options are merged.
        options: As mmengine's ``DictAction`` gives them: dotted key -> value.

    Raises:
        InputError: With all wrong keys at once, each with the nearest known ones, and all values
            of a type that cannot stand there.
    """
    problems = [text for key, value in options.items()
                if (text := _problem(cfg, key, value)) is not None]
    if problems:
        raise InputError('--cfg-options: ' + '\n  '.join(problems))


def _problem(cfg: Config, option: str, value: Any) -> str | None:
    node: Any = cfg._cfg_dict
    parts = option.split('.')
    for depth, key in enumerate(parts):
        path = '.'.join(parts[:depth])
        if isinstance(node, list | tuple):
            if not key.lstrip('-').isdigit() or not 0 <= int(key) < len(node):
                return (f'{option!r}: {path} is a list of {len(node)}: '
                        f'give an index from 0 to {len(node) - 1}')
            node = node[int(key)]
        elif isinstance(node, dict):
            if key not in node:
                is_new_dict = depth < len(parts) - 1 or isinstance(value, dict)
                return _check_new_key(cfg, node, path, key, option, is_new_dict)
            node = node[key]
        elif node is None:
            return None  # an optional part that is switched on
        else:
            return f'{option!r}: {path} is {node!r}, which has no entries'
    return _wrong_type(option, node, value)


def _wrong_type(option: str, old: Any, new: Any) -> str | None:
    """Refuse words for numbers, and single values for sections: nothing could use them.

    Only what is certain: many arguments take more than one type.
    """
    key = option.rpartition('.')[2]
    if isinstance(old, str) and key in ('data_root', 'type') and not isinstance(
            new, str | None):
        kind = 'text'
    elif isinstance(old, bool) and isinstance(new, str):
        kind = 'True or False'
    elif isinstance(old, int | float) and isinstance(new, str | dict) and key not in EITHER:
        kind = 'a number'
    elif isinstance(old, dict) and isinstance(new, int | float | str) and not (
            isinstance(new, str) and key in EITHER):
        kind = f'its entries, as in {option}.KEY=VALUE'
    elif isinstance(old, list | tuple) and any(isinstance(item, dict) for item in old) \
            and isinstance(new, int | float | str):
        kind = f'its entries by number, as in {option}.0.KEY=VALUE'
    else:
        return None
    shown = 'a section' if isinstance(old, dict | list | tuple) else repr(old)
    return f'{option!r}: the config has {shown} there; give {kind}, not {new!r}'


def _check_new_key(cfg: Config, parent: Mapping, path: str, key: str, option: str,
                   is_new_dict: bool) -> str | None:
    known = set(parent)
    if not path:
        if key in TOP_LEVEL or key in SHORTHANDS:
            return None
        return _unknown(cfg, option, key, known | TOP_LEVEL | set(SHORTHANDS), 'the config')
    if path == 'model.test_cfg' and key in OWN_TEST_OPTIONS and str(
            cfg.model.get('type')).startswith('mmseg.'):
        return (f"{option!r}: {cfg.model.type} would not read it; it is for "
                "type='mmvars.EncoderDecoder'")
    last = path.rpartition('.')[2]
    allowed = OPEN.get(path, OPEN.get(last, frozenset()))
    if allowed is None or key in allowed:
        return None
    if 'type' in parent or last.endswith('_dataloader'):
        if not difflib.get_close_matches(key, known - {'type'}, n=1, cutoff=_ALMOST):
            return None
    elif is_new_dict and last in ('default_hooks', 'module'):
        return None if not difflib.get_close_matches(key, known, 1, _ALMOST) else _unknown(
            cfg, option, key, known, path)
    return _unknown(cfg, option, key, known | set(allowed), path)


def _unknown(cfg: Config, option: str, key: str, known: set[str], where: str) -> str:
    near = (difflib.get_close_matches(key, known, n=3, cutoff=0.6)
            or sorted(name for name in known if name.startswith(key)))
    last = option.rpartition('.')[2]
    same_end = [path for path, _ in walk_entries(cfg._cfg_dict)
                if path.endswith((f'.{option}', f'.{last}'))]
    hints = []
    if near:
        hints.append(f'did you mean {" or ".join(near)}?')
    if same_end:
        hints.append(f'such a key stands at {", ".join(same_end[:3])}')
    if not hints:
        hints.append(f'known there: {", ".join(sorted(known)[:12])}')
    return f'{option!r}: {where} has no {key!r}; {"; ".join(hints)}'
