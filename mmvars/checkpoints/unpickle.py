"""An unpickler that can build tensors, plain values and the log of a runner, and nothing else.

Files of ``torch.save`` hold pickles, and a pickle is a program. Python's own unpickler, told which
names it may look up, still lets a file write attributes of the classes and functions that it found;
torch's, before 2.6, can be led around (CVE-2025-32434), and builds what no model needs. So the few
instructions that ``torch.save`` writes are carried out here, by a table, with bounds.
"""

import argparse
import math
import pickle
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import torch
from torch import Tensor

from mmvars.errors import InputError

__all__ = ['LoggedValues', 'NumpyArray', 'Storage', 'Unusable', 'check_key', 'unpickle']

MAX_INSTRUCTIONS = 1_500_000  # a training state of 1,000 parameters has 200,000
MAX_ENTRIES = 200_000  # of all dicts together; such a state has 20,000
MAX_KEY = 1024  # characters
MAX_AXES = 16  # of a tensor
MIN_CLAIM = 2**20  # bytes that a tensor may have, however small its storage is

_NUMBERS = dict(
    f8='d', f4='f', f2='e', i8='q', i4='i', i2='h', i1='b', u8='Q', u4='I', u2='H', u1='B', b1='?'
)  # numpy's codes of number types -> those of struct
_STORAGES = dict(
    Float=torch.float32,
    Double=torch.float64,
    Half=torch.float16,
    BFloat16=torch.bfloat16,
    Long=torch.int64,
    Int=torch.int32,
    Short=torch.int16,
    Char=torch.int8,
    Byte=torch.uint8,
    Bool=torch.bool,
    **dict.fromkeys(('ComplexFloat', 'ComplexDouble'), 'complex'),
    **dict.fromkeys(('QInt8', 'QInt32', 'QUInt8', 'QUInt4x2', 'QUInt2x4'), 'quantized'),
)  # torch's names of storages -> type of their numbers, or what makes them unusable


@dataclass(eq=False)
class Storage:
    """Bytes of a file, and the type of their numbers (a word if it is none that a model has)."""

    data: Tensor
    dtype: torch.dtype | str


@dataclass(eq=False)
class Unusable:
    """Stands in for a tensor that no model could take; ``why`` completes "is ..."."""

    why: str


class _NumpyType:
    """Stands in for ``numpy.dtype``."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in _NUMBERS:
            raise InputError(_refusal(f'numpy.dtype({str(code)[:20]!r})'))
        self.name, self.code, self.order = code, _NUMBERS[code], '<'

    def build(self, state: tuple) -> None:
        self.order = '>' if state[1] == '>' else '<'

    def read(self, data: bytes) -> tuple:
        return tuple(number for (number,) in struct.iter_unpack(self.order + self.code, data))


class NumpyArray:
    """Stands in for ``numpy.ndarray``: numbers in the order of memory."""

    shape: tuple[int, ...] = ()
    dtype, fortran_order, values = 'f8', False, ()

    def build(self, state: tuple) -> None:
        _, shape, dtype, self.fortran_order, data = state
        self.shape, self.values = tuple(map(_whole, shape)), dtype.read(_to_bytes(data))
        self.dtype = dtype.name
        if math.prod(self.shape) != len(self.values):
            raise InputError(f'is damaged: an array of {self.shape} has {len(self.values)} numbers')


class LoggedValues:
    """Stands in for mmengine's ``HistoryBuffer``, which holds one logged number over time."""

    max_length, values, counts = 1_000_000, (), ()

    def build(self, state: Mapping[str, Any]) -> None:
        self.max_length = _whole(state.get('_max_length', state.get('max_length', 1_000_000)))
        self.values = state['_log_history'].values
        self.counts = state['_count_history'].values
        if len(self.values) != len(self.counts):
            raise InputError('is damaged: a log history with fewer counts than values')


def unpickle(file: IO[bytes], load_storage: Callable[[tuple], Storage]) -> Any:
    """Carry out the pickle at the position of ``file``, up to its end.

    Args:
        file: Open for reading.
        load_storage: From torch's description of a storage to its bytes.

    Returns:
        Dicts, lists, tuples, plain values and tensors; in place of other objects those of this
        module. The caller must expect any of them anywhere, and containers that hold themselves.

    Raises:
        InputError: Saying what the pickle wants that is not allowed.
        Exception: Any other, on damaged pickles.
    """
    machine = _Machine(file, load_storage)
    for _ in range(MAX_INSTRUCTIONS):
        code = machine.take(1)
        if code == pickle.STOP:
            return machine.stack.pop()
        if (instruction := _INSTRUCTIONS.get(code)) is None:
            raise InputError(_refusal('instructions that torch.save does not write'))
        instruction(machine)
    raise InputError(f'has a pickle of over {MAX_INSTRUCTIONS:,} instructions: no checkpoint')


class _Machine:
    """Stack and memo of a pickle."""

    def __init__(self, file: IO[bytes], load_storage: Callable[[tuple], Storage]) -> None:
        self.file, self.load_storage = file, load_storage
        self.stack: list[Any] = []
        self.stacks: list[list] = []  # those below the marks
        self.memo: dict[int, Any] = {}
        self.num_entries = 0

    def take(self, count: int) -> bytes:
        data = self.file.read(count)
        if len(data) != count:
            raise EOFError('its pickle is cut off')
        return data

    def number(self, count: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(count), 'little', signed=signed)

    def mark(self) -> None:
        self.stacks.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.stacks.pop()
        return items

    def push_last(self, count: int) -> None:
        """A tuple of the last ``count`` values."""
        items = tuple(self.stack[-count:])
        del self.stack[-count:]
        self.stack.append(items)

    def append(self, items: list) -> None:
        if type(self.stack[-1]) is not list:
            raise InputError(_refusal(f'to append to a {type(self.stack[-1]).__name__}'))
        self.stack[-1].extend(items)

    def set_items(self, items: list) -> None:
        target = self.stack[-1]
        if type(target) not in (dict, OrderedDict):
            raise InputError(_refusal(f'to set items of a {type(target).__name__}'))
        self.num_entries += len(items) // 2
        if self.num_entries > MAX_ENTRIES:
            raise InputError(f'has over {MAX_ENTRIES:,} entries: no checkpoint')
        target.update(zip(map(check_key, items[::2]), items[1::2], strict=True))

    @staticmethod
    def find(module: str, name: str) -> Any:
        """The object that a file means by a module and a name."""
        if type(module) is not str or type(name) is not str:
            raise InputError('is damaged: a module and its object are named by what is no text')
        module = {'__builtin__': 'builtins', 'numpy._core.multiarray': _MULTIARRAY}.get(
            module, module
        )
        if (value := _GLOBALS.get(f'{module}.{name}', _ABSENT)) is _ABSENT:
            raise InputError(_refusal(f'{module}.{name}'))
        return value

    def call(self) -> Any:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Function):
            raise InputError(_refusal(f'to call a {type(function).__name__}'))
        return function.call(*arguments)

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (_NumpyType, NumpyArray, LoggedValues)):
            target.build(state)
        elif isinstance(target, argparse.Namespace):
            vars(target).update({check_key(name): value for name, value in state.items()})
        elif type(target) is OrderedDict:  # versions of modules, by which they read old tensors
            target._metadata = state.get('_metadata')  # type: ignore[attr-defined]
        else:
            raise InputError(_refusal(f'to write into a {type(target).__name__}'))


@dataclass(eq=False)
class _Function:
    """What a pickle may call."""

    call: Callable


def _push(value: Callable[[_Machine], Any]) -> Callable[[_Machine], None]:
    def push(machine: _Machine) -> None:
        result = value(machine)  # first, since it may take another stack
        machine.stack.append(result)

    return push


_INSTRUCTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: lambda m: m.take(1),
    pickle.FRAME: lambda m: m.take(8),  # a hint for buffers
    pickle.NONE: _push(lambda m: None),
    pickle.NEWTRUE: _push(lambda m: True),
    pickle.NEWFALSE: _push(lambda m: False),
    pickle.BININT: _push(lambda m: m.number(4, signed=True)),
    pickle.BININT1: _push(lambda m: m.number(1)),
    pickle.BININT2: _push(lambda m: m.number(2)),
    pickle.LONG1: _push(lambda m: m.number(m.number(1), signed=True)),
    pickle.BINFLOAT: _push(lambda m: struct.unpack('>d', m.take(8))[0]),
    pickle.BINUNICODE: _push(lambda m: _text(m.take(m.number(4)))),
    pickle.SHORT_BINUNICODE: _push(lambda m: _text(m.take(m.number(1)))),
    pickle.BINBYTES: _push(lambda m: m.take(m.number(4))),
    pickle.SHORT_BINBYTES: _push(lambda m: m.take(m.number(1))),
    pickle.BINSTRING: _push(lambda m: _text(m.take(m.number(4)))),  # Python 2
    pickle.SHORT_BINSTRING: _push(lambda m: _text(m.take(m.number(1)))),
    pickle.EMPTY_DICT: _push(lambda m: {}),
    pickle.EMPTY_LIST: _push(lambda m: []),
    pickle.EMPTY_TUPLE: _push(lambda m: ()),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: _push(lambda m: tuple(m.pop_mark())),
    pickle.TUPLE1: lambda m: m.push_last(1),
    pickle.TUPLE2: lambda m: m.push_last(2),
    pickle.TUPLE3: lambda m: m.push_last(3),
    pickle.APPEND: lambda m: m.append([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.append(m.pop_mark()),
    pickle.SETITEM: lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    pickle.SETITEMS: lambda m: m.set_items(m.pop_mark()),
    pickle.BINPUT: lambda m: m.memo.__setitem__(m.number(1), m.stack[-1]),
    pickle.LONG_BINPUT: lambda m: m.memo.__setitem__(m.number(4), m.stack[-1]),
    pickle.MEMOIZE: lambda m: m.memo.__setitem__(len(m.memo), m.stack[-1]),
    pickle.BINGET: _push(lambda m: m.memo[m.number(1)]),
    pickle.LONG_BINGET: _push(lambda m: m.memo[m.number(4)]),
    pickle.GLOBAL: _push(lambda m: m.find(*(m.file.readline()[:-1].decode() for _ in range(2)))),
    pickle.STACK_GLOBAL: _push(lambda m: m.find(m.stack.pop(-2), m.stack.pop())),
    pickle.BINPERSID: _push(lambda m: m.load_storage(m.stack.pop())),
    pickle.REDUCE: _push(_Machine.call),
    pickle.NEWOBJ: _push(_Machine.call),
    pickle.BUILD: _Machine.build,
}


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f'holds a text that is not UTF-8: {data[:60]!r}') from None


def check_key(key: Any) -> Any:
    """``key`` of a dict, if hashing and printing it are harmless."""
    if type(key) not in (str, int, float, bool, type(None)):
        raise InputError(f'has a key that is no text, but a {type(key).__name__}')
    if type(key) is str and not (key.isprintable() and len(key) <= MAX_KEY):
        raise InputError(f'has a key that cannot be a name: {ascii(key[:60])}')
    return key


def _whole(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise InputError(f'is damaged: a size is {str(value)[:20]!r}')
    return value


def _to_bytes(text: str | bytes, encoding: str = 'latin1') -> bytes:
    """Stands in for ``_codecs.encode``, by which protocol 2 writes bytes."""
    if encoding != 'latin1':
        raise InputError(_refusal(f'codecs.{encoding}'))
    return text if isinstance(text, bytes) else text.encode('latin1')


def _method_of_log(owner: Any, name: str) -> None:
    """Stands in for ``getattr``, by which a log refers to its own methods; gives nothing."""
    if owner is not _LOG or name not in ('min', 'max', 'current', 'mean'):
        raise InputError(_refusal(f'builtins.getattr({str(name)[:20]!r})'))


def _ordered_dict(pairs: list | tuple = ()) -> OrderedDict:
    return OrderedDict((check_key(key), value) for key, value in pairs)


def _counter(counts: dict | None = None) -> Counter:
    return Counter({check_key(key): _whole(count) for key, count in (counts or {}).items()})


def _tensor(storage: Storage, offset: int, size: tuple, stride: tuple, *_: Any) -> Any:
    """A view of a storage that stays inside of it; hooks and ``requires_grad`` do not matter."""
    if not isinstance(storage, Storage) or isinstance(storage.dtype, str):
        return Unusable(f'not a plain dense tensor ({getattr(storage, "dtype", "damaged")})')
    sizes, strides = list(map(_whole, size)), list(map(_whole, stride))
    if len(sizes) != len(strides) or len(sizes) > MAX_AXES:
        raise InputError(f'is damaged: a tensor has {len(sizes)} sizes, {len(strides)} strides')
    width, stored = storage.dtype.itemsize, storage.data.numel()
    last = _whole(offset) + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    claimed = math.prod(sizes) * width
    if claimed and ((last + 1) * width > stored or claimed > max(stored, MIN_CLAIM)):
        return Unusable(f'a view of {min(claimed, 2**63)} bytes on {stored}')
    if not claimed:
        return torch.empty(sizes, dtype=storage.dtype, device=storage.data.device)
    return storage.data.view(storage.dtype).as_strided(sizes, strides, offset)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _with_attributes(rebuild: Any, _type: Any, arguments: tuple, _state: Any) -> Any:
    """A tensor that had attributes of Python, which are left out."""
    if rebuild not in _REBUILD:
        raise InputError(_refusal('to call what builds no tensor'))
    return rebuild.call(*arguments)


def _unusable(kind: str) -> _Function:
    return _Function(lambda *_: Unusable(f'not a plain dense tensor ({kind})'))


def _refusal(wanted: str) -> str:
    return (
        f'is refused: besides tensors its pickle wants {wanted[:100]}, which could run any code. '
        f'Nothing was run. If you trust the file, save its tensors alone (torch.save of a '
        f'state dict) where it came from'
    )


_ABSENT, _MULTIARRAY = object(), 'numpy.core.multiarray'
_LOG = _Function(LoggedValues)
_REBUILD = [_Function(_tensor), _Function(_parameter)]
_GLOBALS: dict[str, Any] = {
    'torch._utils._rebuild_tensor': _REBUILD[0],
    'torch._utils._rebuild_tensor_v2': _REBUILD[0],
    'torch._utils._rebuild_parameter': _REBUILD[1],
    'torch._utils._rebuild_parameter_with_state': _REBUILD[1],
    'torch._tensor._rebuild_from_type_v2': _Function(_with_attributes),
    'torch._utils._rebuild_tensor_v3': _unusable('float8 or similar'),
    'torch._utils._rebuild_sparse_tensor': _unusable('sparse'),
    'torch._utils._rebuild_nested_tensor': _unusable('nested'),
    'torch._utils._rebuild_qtensor': _unusable('quantized'),
    'torch._utils._rebuild_meta_tensor_no_storage': _unusable('meta'),
    'torch._utils._rebuild_wrapper_subclass': _unusable('wrapped'),
    'torch.serialization._get_layout': _Function(str),
    'torch.Tensor': 'torch.Tensor',  # argument of _rebuild_from_type_v2
    'torch.nn.parameter.Parameter': 'torch.nn.Parameter',
    'torch.Size': _Function(lambda sizes: torch.Size(map(_whole, sizes))),
    'torch.device': _Function(lambda kind, index=None: torch.device(kind, index)),
    'torch.per_tensor_affine': 'per_tensor_affine',
    'torch.per_channel_affine': 'per_channel_affine',
    'torch.storage.UntypedStorage': 'untyped',
    **{f'torch.{name}Storage': dtype for name, dtype in _STORAGES.items()},
    **{str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)},
    'collections.OrderedDict': _Function(_ordered_dict),
    'collections.Counter': _Function(_counter),
    'argparse.Namespace': _Function(argparse.Namespace),  # `args` of released checkpoints
    'numpy.dtype': _Function(_NumpyType),
    'numpy.ndarray': 'numpy.ndarray',
    f'{_MULTIARRAY}._reconstruct': _Function(lambda *_: NumpyArray()),
    f'{_MULTIARRAY}.scalar': _Function(lambda dtype, data: dtype.read(_to_bytes(data))[0]),
    'mmengine.logging.history_buffer.HistoryBuffer': _LOG,
    'builtins.bytes': _Function(lambda: b''),  # by which protocol 2 writes no bytes
    'builtins.getattr': _Function(_method_of_log),
    '_codecs.encode': _Function(_to_bytes),
}
"""All that a file may name: tensors, the options of the released training script, and the log of an
OpenMMLab runner. Numbers of numpy become Python's, arrays and log entries the stand-ins above. No
code of numpy or mmengine is called."""
