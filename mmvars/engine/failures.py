"""What a user can do about an error that comes from below: from mmengine, a host, torch.

Three kinds are the config's doing: parts that cannot be built from their entries, parts that do
not fit one another (which shows in the very first forward), and errors whose text is known.
Everything else is left alone, with its traceback.
"""

import re
from collections.abc import Iterator
from types import FrameType

from mmengine.runner import Runner
from torch import nn
from torch.cuda import OutOfMemoryError

from mmvars.errors import InputError

__all__ = ['explain', 'unquoted']

_TRACE = 'MMVARS_DEBUG=1 shows the traceback'
_BUILDERS = ('build_from_cfg', 'build_model_from_cfg', 'build_scheduler_from_cfg',
             'build_dataloader', 'build_model', 'build_optim_wrapper', 'from_cfg')
_MISFITS = (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError,
            ValueError)


def explain(error: Exception) -> str | None:
    """The message for the user; ``None`` if the error is not known to be the user's.

    Args:
        error: As caught, with its traceback.
    """
    cause = error
    while cause is not None:  # mmengine re-raises some errors of nested parts around the first
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return _known_text(error) or _while_building(error) or _in_first_forward(error)


def unquoted(error: Exception) -> str:
    """The text of an error; a KeyError's without the quotes that ``str`` puts around it."""
    return str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)


def _known_text(error: Exception) -> str | None:
    text = unquoted(error)
    unknown = re.search(r'(\S+) is not in the (.+?) registry', text)
    if unknown:
        return (f'config: type {unknown[1]!r} is not known ({unknown[2]}). Check its spelling, and '
                f'its prefix (mmvars., mmseg., mmpretrain., ...); a class of your own needs '
                f"custom_imports=dict(imports=['your.module'])")
    if 'unexpected keyword argument' in text or 'required positional argument' in text:
        return f'config: {text}'
    if 'must contain the key "type"' in text:
        return f'config: an entry has no type: {text.splitlines()[0][:300]}'
    if 'different number of parameter groups' in text or "doesn't match the size of" in text:
        return (f'--resume: the optimiser of the checkpoint is not that of this config ({text}): '
                'resume with the config of that run, or start from its weights with '
                '--cfg-options load_from=...')
    together = re.match(r'(.+) should be either all None or not None', text)
    if together:
        return f'config: {together[1]} go together: set all of them, or none'
    label = re.match(r'Target (-?\d+) is out of bounds', text)
    if label:
        return (f'a label is {label[1]}, which is none of the classes of the model (num_classes of '
                'the heads): correct num_classes, reduce_zero_label or the labels. '
                'mmvars.CheckLabels in the pipeline, after LoadAnnotations, names the file')
    if isinstance(error, FileNotFoundError):
        return f'file not found: {error.filename or text}'
    return None


def _while_building(error: Exception) -> str | None:
    """For an error inside a builder of mmengine: what was being built, and what it says."""
    if not isinstance(error, _MISFITS):
        return None
    built = None
    for frame in _frames(error):
        if frame.f_code.co_name not in _BUILDERS or '/mmengine/' not in frame.f_code.co_filename:
            continue
        entry = next((frame.f_locals[name] for name in ('cfg', 'optim_wrapper', 'dataloader')
                      if name in frame.f_locals), None)
        kind = entry.get('type') if isinstance(entry, dict) else None
        built = str(getattr(kind, '__name__', kind) or built or frame.f_code.co_name)
    if built is None:
        return None
    return f'config: {built} cannot be built: {_summary(error)}. Correct its entries; {_TRACE}'


def _in_first_forward(error: Exception) -> str | None:
    """For an error inside a part of the model before the first step is done: the part's name."""
    if not isinstance(error, _MISFITS) or isinstance(error, OutOfMemoryError):
        return None
    frames = list(_frames(error))
    owners = [frame.f_locals.get('self') for frame in frames]
    runner = next((owner for owner in owners if isinstance(owner, Runner)), None)
    if runner is not None and runner.iter > 0:
        return None
    parts = [owner for owner in owners if isinstance(owner, nn.Module)]
    if not parts:
        return None
    names = {id(part): name for name, part in parts[0].named_modules()}
    name = next((names[id(part)] for part in reversed(parts) if names.get(id(part))), None)
    where = f'model.{name}' if name else type(parts[0]).__name__
    return (f'config: the parts of the model do not fit one another or the data: {where} fails on '
            f'its first input: {_summary(error)}. Compare out_type, out_indices and arch of the '
            f'backbone with in_index, in_channels and num_classes of the heads; {_TRACE}')


def _summary(error: Exception) -> str:
    text = unquoted(error).strip().partition('\n')[0]
    return f'{type(error).__name__}: {text}'[:300]


def _frames(error: Exception) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next
