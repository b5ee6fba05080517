"""What a user can do about an error of mmengine, a framework or torch that the config caused.

Only errors that are known by their text, and those of a phase in which nothing but the config can
be the cause, are turned into messages. All others keep their traceback.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mmvars.errors import InputError

__all__ = ['building', 'format_config_error', 'user_errors']

_KNOWN = {
    r'(\S+) is not in the (.+?) registry': (
        "config: type '{0}' is not known ({1}). Check its spelling, and its prefix (mmvars., "
        'mmseg., mmpretrain., ...); a class of your own needs '
        "custom_imports=dict(imports=['your.module'])"
    ),
    r'(.*(?:unexpected keyword argument|required positional argument).*)': 'config: {0}',
    r'NoneType takes no arguments': (
        'mmpretrain cannot be imported where pycocotools is installed beside transformers 5 or '
        'newer: pip install "transformers<5"'
    ),
    r"(.*(?:different number of parameter groups|doesn't match the size of).*)": (
        '--resume: the optimizer of the checkpoint is not that of this config ({0}): resume with '
        'the config of that run, or start from its weights with --cfg-options load_from=...'
    ),
    r'(?:Connection (?:closed|reset) by peer|Broken pipe.*gloo|remote process exited)': (
        'another process of this run has ended, and this one cannot go on alone: that one has said '
        'why, or it was killed, as when memory runs out; start the run again with --resume'
    ),
    r'Target (-?\d+) is out of bounds': (
        'a label is {0}, which is none of the classes of the model (num_classes of the heads): '
        'correct num_classes, reduce_zero_label or the labels. mmvars.CheckLabels in the '
        'pipeline, after LoadAnnotations, names the file'
    ),
    r'number of subfolders \((\d+)\) doesn.t match the number of specified classes \((\d+)\)': (
        'the folder of a data set holds {0} classes, and the data set names {1}: name its own, as '
        'with --cfg-options num_classes={0} train_dataloader.dataset.metainfo.classes=NAME,... '
        'val_dataloader.dataset.metainfo.classes=NAME,...; or take type mmpretrain.CustomDataset'
    ),
    r'Initialize dataset with `reduce_zero_label` as (\w+) but': (
        'the data set has reduce_zero_label={0}, and LoadAnnotations in its pipeline another '
        'value: set the same in train_pipeline, test_pipeline and tta_pipeline'
    ),
    r'(HTTP Error \d+[^>]*|urlopen error [^>]*)': (
        'a file cannot be downloaded ({0}): check connection and proxy, or fetch it by hand to '
        'where the config says (data_root of a data set)'
    ),
    r'Expected more than 1 value per channel when training, got input size (.*)': (
        'batch norm in training got one value a channel ({0}), of which there is no variance: '
        'raise train_dataloader.batch_size, or set norm_cfg of that part to another norm, such as '
        "dict(type='GN', num_groups=32)"
    ),
    r'The shape of the mask \[(\d+, \d+)\] at index 0 does not match .* tensor \[(\d+, \d+)\]': (
        'labels have [{0}] pixels and predictions [{1}]: the test pipeline resizes labels with the '
        'image, and predictions have the size of its file; put LoadAnnotations after Resize'
    ),
}
"""Pattern in the text of an error -> message."""

_MISFIT = re.compile(
    r'to have \d+ channels|shapes cannot be multiplied|size of tensor|[Ee]xpected .* input to conv|'
    r'index out of range|shape .* is invalid|not enough values to unpack|normalized_shape|'
    r'[Ss]izes of tensors must match'
)
"""What torch and Python say where a tensor has another shape than the next part expects."""

_DEBUG = 'MMVARS_DEBUG=1 shows the traceback'


def format_config_error(error: BaseException, is_first_step: bool = True) -> str | None:
    """The message for the user; ``None`` if the error is not known to be the user's.

    Until the first step is done, tensors that do not fit one another mean parts that do not.
    """
    cause: BaseException | None = error
    while cause is not None:  # mmengine re-raises some errors of nested parts around the first
        if isinstance(cause, InputError):
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    # The text of a KeyError without the quotes that str() puts around it.
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    for pattern, message in _KNOWN.items():
        if match := re.match(f'.*?{pattern}', text, re.DOTALL):
            return message.format(*match.groups())
    if isinstance(error, FileNotFoundError):
        return f'file not found: {error.filename or text}'
    if is_first_step and _MISFIT.search(text):
        return (
            'config: the parts of the model do not fit one another or the data: '
            f"{_summary(error)}. Compare out_type ('pooled' for a classifier), out_indices and "
            'arch of the backbone with in_channels of the neck (none is needed: neck=None) and '
            f'with in_index, in_channels and num_classes of the heads; {_DEBUG}'
        )
    return None


@contextmanager
def user_errors(is_first_step: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Turn errors that the config caused into :class:`InputError`; leave all others alone."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        message = format_config_error(error, is_first_step())
        if message is None:
            raise
        raise InputError(message) from error


@contextmanager
def building(part: str) -> Iterator[None]:
    """Around the construction of a part of a run from a section of the config: all is bad input."""
    try:
        yield
    except (
        AssertionError,
        AttributeError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise InputError(
            format_config_error(error, is_first_step=False)
            or f'config: {part} cannot be built: {_summary(error)}. Correct its entries; {_DEBUG}'
        ) from error


def _summary(error: BaseException) -> str:
    return f'{type(error).__name__}: {error}'.strip().partition('\n')[0][:300]
