"""Hostile and odd checkpoint files, some 500 small ones, the same each time.

A file is made from a model's weights and from a training state, so that readers get as far as they
can. The name of a case begins with its kind; ``FINE`` are those that may well be accepted: what is
odd in them harms nobody.
"""

import io
import json
import os
import pickle
import random
import socket
import struct
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

FINE = ('good', 'mutated', 'fine')

GLOBALS = """
os.system posix.system nt.system os.popen os.execv os.spawnl os.remove os.unlink os.rmdir os.putenv
subprocess.Popen subprocess.call subprocess.run subprocess.check_output subprocess.getoutput
builtins.eval builtins.exec builtins.compile builtins.__import__ builtins.open builtins.setattr
builtins.delattr builtins.globals builtins.vars builtins.map builtins.type builtins.breakpoint
__builtin__.eval __builtin__.exec __builtin__.execfile __builtin__.apply __builtin__.getattr
sys.exit sys.settrace sys.modules runpy.run_path runpy.run_module runpy._run_code
importlib.import_module importlib.reload pkgutil.resolve_name pydoc.locate pydoc.pipepager
webbrowser.open pty.spawn socket.create_connection socket.socket shutil.rmtree shutil.move
ctypes.CDLL ctypes.util.find_library pickle.loads pickle.load _pickle.loads marshal.loads
code.interact code.InteractiveInterpreter.runcode codeop.compile_command timeit.timeit timeit.main
cProfile.run profile.run pdb.run bdb.Bdb.run trace.Trace.run doctest.debug_script
asyncio.create_subprocess_shell multiprocessing.Process threading.Thread signal.raise_signal
functools.partial functools.reduce operator.attrgetter operator.methodcaller operator.itemgetter
types.CodeType types.FunctionType types.SimpleNamespace collections.namedtuple collections.deque
collections.defaultdict logging.config.listen logging.FileHandler tempfile.mkstemp
urllib.request.urlopen urllib.request.urlretrieve http.client.HTTPConnection smtplib.SMTP
ftplib.FTP imaplib.IMAP4_stream sqlite3.connect zipimport.zipimporter venv.create pip.main
distutils.file_util.write_file uuid._get_command_stdout lib2to3.pgen2.grammar.Grammar.loads
test.support.script_helper.assert_python_ok idlelib.pyshell.ModifiedInterpreter.runcode
numpy.load numpy.f2py.compile numpy.fromfile numpy.testing._private.utils.runstring joblib.load
dill.loads cloudpickle.loads torch.load torch.hub.load torch.jit.load torch.serialization.load
torch.ops.load_library torch.classes.load_library torch.nn.Module torch.nn.Linear
torch.storage._load_from_bytes torch._utils._rebuild_wrapper torch.utils.cpp_extension.load
torch.fx.GraphModule torch.distributed.rpc.rpc_sync mmengine.fileio.load mmengine.Config.fromfile
mmengine.config.Config.fromstring mmengine.utils.import_modules_from_strings mmengine.Registry.build
mmvars.export.main mmvars.checkpoints.write.write_text argparse.FileType argparse.ArgumentParser
""".split()
ALLOWED = (
    """
collections OrderedDict|argparse Namespace|torch._utils _rebuild_tensor_v2|torch FloatStorage
numpy dtype|numpy ndarray|numpy.core.multiarray scalar|numpy.core.multiarray _reconstruct
mmengine.logging.history_buffer HistoryBuffer|__builtin__ getattr|_codecs encode|torch float32
torch Size|torch device|collections Counter|torch._tensor _rebuild_from_type_v2
""".replace('\n', '|')
    .strip('|')
    .split('|')
)


class Runs:
    """Makes the file ``executed`` in the current folder when it is unpickled without care."""

    def __reduce__(self) -> tuple:
        return os.system, ('touch executed',)


def corpus(folder: Path, weights: dict[str, Tensor], training: dict[str, Any]) -> dict[str, Path]:
    """Write all files into ``folder``.

    Args:
        folder: Empty.
        weights: State dict of a backbone's network.
        training: What a Runner saves of a model with that backbone.

    Returns:
        Name of the case -> path.
    """
    paths = {}
    kinds = (
        _good(weights, training),
        _globals(),
        _opcodes(),
        _tensors(weights),
        _keys(weights),
        _containers(weights),
        _archives(weights),
        _safetensors(weights),
        states(training),
    )
    for name, content in (case for kind in kinds for case in kind):
        paths[name] = folder / f'{name}{"" if "." in name else ".pth"}'
        paths[name].write_bytes(content)
    good = {name: path.read_bytes() for name, path in paths.items() if name.startswith('good')}
    for name, content in _mutations(good):
        paths[name] = folder / f'{name}{".safetensors" if "safetensors" in name else ".pth"}'
        paths[name].write_bytes(content)
    return paths | _not_files(folder)


def saved(content: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w', method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def as_zip(program: bytes, **storages: bytes) -> bytes:
    """A file of ``torch.save`` around a pickle that it would not write."""
    data = {f'archive/data/{key.lstrip("_")}': value for key, value in storages.items()}
    return zipped({'archive/data.pkl': program, 'archive/version': b'3\n', **data})


def as_plain(program: bytes, data: bytes = b'') -> bytes:
    """The same in the form before torch 1.6; ``data`` is that of four numbers, key ``0``."""
    head = saved({}, _use_new_zipfile_serialization=False)
    start = head.index(b'.', head.index(b'little_endian')) + 1  # after the third pickle
    keys = pickle.dumps(['0'] if data else [], 2)
    return head[:start] + program + keys + (struct.pack('<q', 4) + data if data else b'')


def _text(text: str) -> bytes:
    data = text.encode('utf-8', 'surrogatepass')
    return b'X' + struct.pack('<I', len(data)) + data


def _entry(program: bytes) -> bytes:
    """A pickle of a dict with one entry that ``program`` makes."""
    return b'\x80\x02}' + _text('state_dict') + program + b's.'


def _good(weights: dict, training: dict) -> Iterator[tuple[str, bytes]]:
    released = {name.removeprefix('trunk.'): value for name, value in weights.items()}
    yield 'good-ours', saved(dict(state_dict=weights, meta=dict(mmvars='1')))
    yield 'good-flat', saved(weights)
    yield 'good-plain', saved(weights, _use_new_zipfile_serialization=False)
    yield 'good-released', saved(dict(model=released, args=Namespace(lr=0.1), epoch=3))
    yield 'good-training', saved(training)
    yield 'good-ours.safetensors', save(weights, dict(format='pt'))
    yield 'fine-parameters', saved({name: nn.Parameter(value) for name, value in weights.items()
                                    if value.is_floating_point()})  # fmt: skip


def _globals() -> Iterator[tuple[str, bytes]]:
    for name in GLOBALS:
        module, _, leaf = name.rpartition('.')
        call = f'c{module}\n{leaf}\n'.encode() + _text('touch executed') + b'\x85R'
        yield f'global-{name}.pth', as_zip(_entry(call))
        if hash_of(name) % 6 == 0:
            yield f'global-plain-{name}.pth', as_plain(_entry(call))
    for index, (one, two) in enumerate((a, b) for a in ALLOWED[:8] for b in ALLOWED[8:12]):
        module, leaf = one.split()
        inner = f'c{module}\n{leaf}\nc{two.split()[0]}\n{two.split()[1]}\n'.encode()
        kind = 'fine-chain' if leaf == '_reconstruct' else 'chain'  # whose arguments do not count
        yield f'{kind}-{index}', as_zip(_entry(inner + _text('system') + b'\x86R'))
    for index, names in enumerate(ALLOWED):
        module, leaf = names.split()
        value = f'c{module}\n{leaf}\n'.encode()
        attribute = b'N}' + _text('__call__') + b'cos\nsystem\ns\x86b'
        yield f'build-{index}', as_zip(_entry(value + attribute))
        slots = b'N}' + _text('__setstate__') + value + b's\x86b'
        yield f'build-slots-{index}', as_zip(_entry(value + slots))
        kind = 'build-object' if index else 'fine-build'  # attributes of a dict are left out
        program = value + b')\x81}' + _text('a') + value + b'sb'
        yield f'{kind}-{index}', as_zip(_entry(program))


def hash_of(text: str) -> int:
    return sum(text.encode())


def _opcodes() -> Iterator[tuple[str, bytes]]:
    system, command = b'cposix\nsystem\n', _text('touch executed')
    yield from {
        'opcode-inst': as_zip(_entry(b'(' + command + b'iposix\nsystem\n')),
        'opcode-obj': as_zip(_entry(b'(' + system + command + b'o')),
        'opcode-stack-global': as_zip(
            b'\x80\x04}\x8c\x01a\x8c\x05posix\x8c\x06system\x93' + command + b'\x85Rs.'
        ),
        'opcode-newobj': as_zip(_entry(system + command + b'\x85\x81')),
        'opcode-newobj-ex': as_zip(_entry(system + command + b'\x85}\x92')),
        'opcode-ext1': as_zip(_entry(b'\x82\x01')),
        'opcode-ext2': as_zip(_entry(b'\x83\x01\x00')),
        'opcode-ext4': as_zip(_entry(b'\x84\x01\x00\x00\x00')),
        'fine-frame': as_zip(b'\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\x7f}.'),
        'opcode-binunicode8': as_zip(b'\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.'),
        'opcode-bytearray8': as_zip(b'\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.'),
        'opcode-binbytes': as_zip(_entry(b'B\xff\xff\xff\x7fabc')),
        'opcode-long-text': as_zip(_entry(b'X\xff\xff\xff\xffabc')),
        'opcode-int-text': as_zip(_entry(b'I' + b'9' * 9999 + b'\n')),
        'opcode-long4': as_zip(_entry(b'\x8b\xff\xff\xff\x7f')),
        'fine-memo': as_zip(_entry(b'Nr\xff\xff\xff\xff')),
        'opcode-memo-missing': as_zip(_entry(b'h\x07')),
        'opcode-memo-swap': as_zip(
            _entry(b'cargparse\nNamespace\nq\x010cposix\nsystem\nq\x01h\x01')
        ),
        'opcode-no-stop': as_zip(b'\x80\x02}'),
        'opcode-stop': as_zip(b'.'),
        'opcode-empty': as_zip(b''),
        'opcode-pop': as_zip(b'\x80\x020.'),
        'opcode-unbalanced': as_zip(b'\x80\x02ttt.'),
        'opcode-dup': as_zip(b'\x80\x02]' + b'2' * 100 + b'.'),
        'opcode-append-to-dict': as_zip(_entry(b'}Na')),
        'opcode-append-to-namespace': as_zip(_entry(b'cargparse\nNamespace\n)\x81Na')),
        'opcode-setitem-on-tuple': as_zip(_entry(b')' + _text('a') + b'Ns')),
        'opcode-odd-items': as_zip(_entry(b'}(' + _text('a') + b'u')),
        'opcode-persid': as_zip(_entry(b'Pabc\n')),
        'opcode-binpersid': as_zip(_entry(b'NQ')),
        'opcode-many': as_zip(b'\x80\x02]' + b'N' * 1_600_000 + b'.'),
        'opcode-runs-plain': saved(dict(a=Runs()), _use_new_zipfile_serialization=False),
        'opcode-runs-zip': saved(dict(a=Runs())),
        'fine-runs-after-stop': as_zip(b'\x80\x02}.' + pickle.dumps(Runs(), 2)),
        'fine-after-stop': as_zip(b'\x80\x02}.cposix\nsystem\n'),
        'opcode-bare-2': pickle.dumps(dict(a=Runs()), 2),
        'opcode-bare-0': pickle.dumps(dict(a=Runs()), 0),
        'opcode-bare-5': pickle.dumps(dict(a=Runs()), 5),
        'opcode-bare-good': pickle.dumps(dict(a=1), 2),
    }.items()


def _tensor_program(
    offset: str = 'K\x00', sizes: bytes = b'', strides: bytes = b'', dtype: str = 'FloatStorage',
    key: bytes = _text('0'), numel: bytes = b'K\x04',
) -> bytes:  # fmt: skip
    storage = b'(' + _text('storage') + f'ctorch\n{dtype}\n'.encode() + key + _text('cpu')
    return (
        b'ctorch._utils\n_rebuild_tensor_v2\n(' + storage + numel + b'tQ' + offset.encode('latin1')
        + b'(' + sizes + b't(' + strides + b't\x89ccollections\nOrderedDict\n)RtR'
    )  # fmt: skip


def _tensors(weights: dict) -> Iterator[tuple[str, bytes]]:
    name, some = next((name, value) for name, value in weights.items() if value.ndim == 2)
    huge = some.flatten()[:1]
    values: dict[str, Any] = {
        'expanded': huge.expand(2**40),
        'expanded-2d': huge[:, None].expand(2**20, 2**22),
        'expanded-rows': some[:1].expand(2**18, -1),
        'overlapping': torch.zeros(2**12).as_strided((2**10, 2**10), (1, 1)),
        'sparse-coo': some.to_sparse(),
        'sparse-csr': some.to_sparse_csr(),
        'sparse-csc': some.to_sparse_csc(),
        'nested': torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        'nested-jagged': torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        'meta': some.to('meta'),
        'quantized': torch.quantize_per_tensor(some, 0.1, 0, torch.qint8),
        'quantized-channels': torch.quantize_per_channel(
            some, torch.ones(len(some)), torch.zeros(len(some)), 0, torch.quint8
        ),
        'float8-e4m3': some.to(torch.float8_e4m3fn),
        'float8-e5m2': some.to(torch.float8_e5m2),
        'complex': some.to(torch.complex64),
        'complex-conj': some.to(torch.complex128).conj(),
        'uint16': some.to(torch.uint16),
        'module': nn.Linear(2, 2),
        'storage': some.untyped_storage(),
        'generator': torch.Generator(),
    }
    for kind, value in values.items():
        try:
            zip_file = saved(dict(state_dict=weights | {name: value}))
        except Exception:  # noqa: BLE001  this torch cannot write it
            continue
        yield f'tensor-{kind}', zip_file
        if kind in ('expanded', 'sparse-coo', 'meta', 'complex', 'quantized'):
            plain = saved(weights | {name: value}, _use_new_zipfile_serialization=False)
            yield f'tensor-plain-{kind}', plain
    odd: dict[str, Any] = dict(
        integer=some.long(), text='abc', none=None, number=1.5, list=[1.0, 2.0], nan=some / 0,
        infinite=some + float('inf'), empty=some[:0], scalar=some[0, 0], wide=some.repeat(1, 2),
        double=some.double() * 1e300, dict=dict(a=some), bool=some > 0,
    )  # fmt: skip
    for kind, value in odd.items():
        yield f'fine-{kind}', saved(dict(state_dict=weights | {name: value}))
    four = torch.ones(4).numpy().tobytes()
    programs = {
        'beyond': _tensor_program(sizes=b'K\x05', strides=b'K\x01'),
        'offset': _tensor_program(offset='K\x04', sizes=b'K\x01', strides=b'K\x01'),
        'negative-offset': _tensor_program('J\xff\xff\xff\xff', b'K\x01', b'K\x01'),
        'negative-size': _tensor_program(sizes=b'J\xff\xff\xff\xff', strides=b'K\x01'),
        'negative-stride': _tensor_program(sizes=b'K\x02', strides=b'J\xff\xff\xff\xff'),
        'huge-stride': _tensor_program(sizes=b'K\x02', strides=b'\x8a\x08' + b'\xff' * 7 + b'\x7f'),
        'huge-size': _tensor_program(sizes=b'\x8a\x08' + b'\xff' * 7 + b'\x7f', strides=b'K\x00'),
        'giant-size': _tensor_program(sizes=b'\x8a\xff' + b'\x7f' * 255, strides=b'K\x00'),
        'float-size': _tensor_program(sizes=b'G?\xf0\0\0\0\0\0\0', strides=b'K\x01'),
        'bool-size': _tensor_program(sizes=b'\x88', strides=b'K\x01'),
        'text-size': _tensor_program(sizes=_text('4'), strides=b'K\x01'),
        'more-strides': _tensor_program(sizes=b'K\x02', strides=b'K\x01K\x01'),
        'many-axes': _tensor_program(sizes=b'K\x01' * 200, strides=b'K\x01' * 200),
        'claims-more': _tensor_program(
            sizes=b'K\x04', strides=b'K\x01', numel=b'J\xff\xff\xff\x7f'
        ),
        'claims-less': _tensor_program(sizes=b'K\x02', strides=b'K\x01', numel=b'K\x02'),
        'negative-numel': _tensor_program(numel=b'J\xff\xff\xff\xff'),
        'missing-storage': _tensor_program(sizes=b'K\x04', strides=b'K\x01', key=_text('1')),
        'path-storage': _tensor_program(key=_text('../data.pkl')),
        'number-storage': _tensor_program(key=b'K\x00'),
        'no-storage': _entry(b'ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89NtR')[3:-2],
        'unknown-storage': _tensor_program(dtype='EvilStorage'),
    }
    for kind, program in programs.items():
        yield f'strides-{kind}', as_zip(_entry(program), _0=four)
        plain = program.replace(b'tQ', b'NtQ')  # there, a storage may be a view of another
        yield f'strides-plain-{kind}', as_plain(_entry(plain), four)
    claims = b''.join(
        _text(f'k{i}') + b'h\x01' for i in range(2000)
    )  # 2,000 entries of one tensor of 1 MiB claim 2 GB
    one = _tensor_program(sizes=b'J\0\0\x04\0', strides=b'K\x00', numel=b'K\x04')
    yield (
        'strides-many',
        as_zip(b'\x80\x02}(' + _text('a') + one + b'q\x01' + claims + b'u.', _0=four),
    )


def _keys(weights: dict) -> Iterator[tuple[str, bytes]]:
    value = next(iter(weights.values()))
    keys: dict[str, Any] = {
        'number': 5,
        'float': 0.5,
        'none': None,
        'bool': True,
        'tuple': ('a', 1),
        'bytes': b'abc',
        'surrogate': 'a\ud800b',
        'newline': 'a\nb',
        'escape': 'a\x1b[2Jb',
        'zero': 'a\0b',
        'right-to-left': 'a\u202eb',
        'long': 'k' * 5000,
    }
    for kind, key in keys.items():
        fine = 'fine' if kind in ('number', 'float', 'none', 'bool') else 'key'
        yield f'{fine}-{kind}', saved(dict(state_dict=weights | {key: value}))
        yield f'{fine}-top-{kind}', saved(dict(state_dict=weights) | {key: value})
    yield 'fine-key-empty', saved(dict(state_dict=weights | {'': value}))
    yield 'fine-key-dots', saved(dict(state_dict=weights | {'..' * 200: value}))
    laugh = b')'
    for _ in range(60):  # hashing it takes forever
        laugh += b'q\x01h\x01\x86'
    yield 'key-laughing', as_zip(b'\x80\x02}' + laugh + b'Ns.')
    many = b''.join(_text(f'k{index}') + b'N' for index in range(210_000))
    yield 'key-many', as_zip(b'\x80\x02}(' + many + b'u.')
    attributes = Namespace()
    vars(attributes)['a\nb'] = 1
    yield 'key-of-namespace', saved(dict(model=weights, args=attributes))


def _containers(weights: dict) -> Iterator[tuple[str, bytes]]:
    loop_list: list = []
    loop_list.append(loop_list)
    loop_dict: dict = {}
    loop_dict['a'] = [loop_dict]
    deep: Any = 1
    for _ in range(200):
        deep = [deep]
    laugh: Any = [1]
    for _ in range(40):
        laugh = [laugh, laugh]
    versions = OrderedDict(weights)
    versions._metadata = [1]  # type: ignore[attr-defined]
    odd_version = OrderedDict(weights)
    odd_version._metadata = {'': dict(version='new')}  # type: ignore[attr-defined]
    for kind, value in dict(list=loop_list, dict=loop_dict, deep=deep, laugh=laugh).items():
        yield f'container-{kind}', saved(dict(state_dict=weights, extra=value))
        yield (
            f'container-plain-{kind}',
            saved(dict(state_dict=weights, extra=value), _use_new_zipfile_serialization=False),
        )
    yield 'container-itself', as_zip(b'\x80\x02}q\x01' + _text('state_dict') + b'h\x01s.')
    very_deep = b']' * 100_000 + b'a' * 99_999
    yield 'container-very-deep', as_zip(_entry(very_deep))
    yield 'container-tuples', as_zip(_entry(b')' + b'\x85' * 100_000))
    yield 'container-metadata', saved(dict(state_dict=versions))
    yield 'container-version', saved(dict(state_dict=odd_version))
    for kind, content in dict(
        list=[1], tensor=torch.ones(2), text='abc', none=None, empty={}, number=5,
        state_list=dict(state_dict=[1, 2]), state_none=dict(state_dict=None),
        state_text=dict(state_dict='x'), state_empty=dict(state_dict={}),
        model_none=dict(model=None),
        meta_list=dict(state_dict=weights, meta=[1]), meta_text=dict(state_dict=weights, meta='x'),
        unknown=dict(weird=weights), ema=dict(state_dict=weights, ema_state_dict=5),
    ).items():  # fmt: skip
        yield f'fine-content-{kind}', saved(content)
    for kind, text in dict(
        deep='[' * 100_000, nested='{"a":' * 5000 + '1' + '}' * 5000, list='[1]', number='1e999',
        digits='{"num_steps": ' + '9' * 5000 + '}', text='"a"', broken='{',
        odd='{"preset": [1, 2]}',
    ).items():  # fmt: skip
        for key in ('mixer_cfg', 'mixer_options'):
            meta = {'mixer': 'vars_d', key: text}
            yield f'fine-json-{kind}-{key}', saved(dict(state_dict=weights, meta=meta))
    yield 'fine-json-object', saved(dict(state_dict=weights, meta=dict(mixer=[], mixer_cfg={})))


def _archives(weights: dict) -> Iterator[tuple[str, bytes]]:
    good = saved(weights)
    with zipfile.ZipFile(io.BytesIO(good)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(members)).split('/')[0]
    yield 'fine-rewritten', zipped(members)
    yield 'archive-deflated', zipped(members, zipfile.ZIP_DEFLATED)
    yield 'archive-lzma', zipped(members, zipfile.ZIP_LZMA)
    bomb = members | {f'{root}/data/9': bytes(2**24)}
    yield 'archive-bomb', zipped(bomb, zipfile.ZIP_DEFLATED)
    yield 'archive-bomb-pickle', zipped({f'{root}/data.pkl': b'N' * 2**24}, zipfile.ZIP_BZIP2)
    yield 'archive-absolute', zipped(members | {'/etc/passwd': b'x'})
    yield 'archive-parent', zipped(members | {f'{root}/../../x': b'x'})
    yield 'archive-second-root', zipped(members | {'other/data.pkl': pickle.dumps(Runs(), 2)})
    hidden = members | {f'{root}/.hidden.pkl': pickle.dumps(Runs(), 2)}
    yield 'fine-hidden', zipped(hidden)
    yield 'fine-nested', zipped(members | {f'{root}/inner.zip': good})
    yield 'archive-torchscript', zipped(members | {f'{root}/constants.pkl': b'\x80\x02).'})
    yield 'archive-no-pickle', zipped({f'{root}/version': b'3'})
    yield 'archive-empty', zipped({})
    yield 'archive-big-endian', zipped(members | {f'{root}/byteorder': b'big'})
    yield 'fine-many', zipped(members | {f'{root}/data/x{index}': b'' for index in range(3000)})
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr('padding', b'')  # _root/data.pkl_ is renamed to what is there already
        archive.filelist[-1].filename = f'{root}/data.pkl'
    yield 'archive-duplicate', buffer.getvalue()
    link = zipfile.ZipInfo(f'{root}/data/link')
    link.external_attr = 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, 'w') as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr(link, '/etc/passwd')
    yield 'fine-symlink', buffer.getvalue()
    yield 'archive-prefixed', b'#!/bin/sh\ntouch executed\nexit\n' + zipped(members)
    yield 'archive-prefixed-zip', good + zipped(members)
    yield 'archive-suffixed', good + b'x'
    yield 'archive-suffixed-pickle', good + pickle.dumps(Runs(), 2)
    yield 'archive-comment', good[:-2] + struct.pack('<H', 4) + b'note'
    plain = saved(weights, _use_new_zipfile_serialization=False)
    yield 'archive-plain-then-zip', plain + zipped(members)
    yield 'archive-zip-then-plain', good + plain
    program, none = pickle.dumps(Runs(), 2), pickle.dumps(0, 2)
    tar = _tar(dict.fromkeys(('storages', 'tensors', 'pickle', 'sys_info'), program))
    whole = dict(storages=none + pickle.dumps([], 2), tensors=none, pickle=program)
    yield 'archive-tar-whole', _tar(whole)
    yield 'archive-tar-link', _tar(whole | dict(storages=b''), link='storages')
    yield 'archive-tar', tar
    yield 'archive-tar-then-zip', tar + good
    # A member of a tar file may be named as any file starts.
    for kind, start in dict(zip=b'PK\3\4', plain=plain[:28]).items():
        head = bytearray(tar[:512])
        head[: len(start)] = start
        head[148:156] = b' ' * 8
        head[148:156] = f'{sum(head):06o}\0 '.encode()
        yield f'archive-tar-as-{kind}', bytes(head) + tar[512:]
    directory, tail = good.rfind(b'PK\5\6'), good.rfind(b'PK\6\6')
    first = good.index(b'PK\1\2')
    patches: dict[str, tuple[int, bytes]] = {
        'count': (directory + 10, b'\xff\xff'),
        'length': (directory + 12, b'\xff\xff\xff\x7f'),
        'start': (directory + 16, b'\xff\xff\xff\xff'),
        'disks': (directory + 4, b'\xff\xff'),
        'zip64-count': (tail + 32, b'\xff' * 8),
        'zip64-length': (tail + 40, b'\xff' * 8),
        'zip64-start': (tail + 48, b'\0' * 8),
        'zip64-size': (tail + 4, b'\xff' * 8),
        'locator': (tail + 56 + 8, b'\xff' * 8),
        'encrypted': (first + 8, b'\x09\x08'),
        'encrypted-strong': (first + 8, b'\x41\x08'),
        'method': (first + 10, b'\x63\0'),
        'crc': (first + 16, b'\0\0\0\0'),
        'packed-size': (first + 20, b'\xff\xff\xff\x7f'),
        'size': (first + 24, b'\xff\xff\xff\x7f'),
        'name-length': (first + 28, b'\xff\xff'),
        'extra-length': (first + 30, b'\xff\xff'),
        'comment-length': (first + 32, b'\xff\xff'),
        'header-offset': (first + 42, b'\xff\xff\xff\x7f'),
        'name': (first + 46, b'\xff\xfe\xfd'),
        'signature': (first, b'PK\1\3'),
        'local-name': (30, b'\xff\xfe\xfd'),
        'local-signature': (0, b'PK\3\5'),
        'local-flags': (6, b'\x01\0'),
        'version-needed': (first + 6, b'\xff\xff'),
    }
    for kind, (place, patch) in patches.items():
        fine = kind in ('disks', 'zip64-size', 'locator', 'version-needed', 'local-flags', 'count',
                        'length', 'start')  # fmt: skip
        content = good[:place] + patch + good[place + len(patch) :]
        yield f'{"fine" if fine else "archive"}-patch-{kind}', content
    yield 'archive-html', b'<!DOCTYPE html><html>not found</html>'
    yield 'archive-lfs', b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'
    yield 'archive-zeros', bytes(5000)
    yield 'archive-magic-only', plain[:28]
    yield 'archive-gzip', b'\x1f\x8b\x08\0' + bytes(99)
    yield 'archive-npz', zipped({'a.npy': b'\x93NUMPY'})
    yield 'archive-empty-file', b''


def _tar(members: dict[str, bytes], link: str = '') -> bytes:
    """A file as torch wrote before 0.1.10, which torch before 2.6 unpacks to read it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode='w') as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            if name == link:
                info.type, info.linkname = tarfile.SYMTYPE, '/etc/passwd'
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _header(header: Any, data: bytes = b'\0' * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack('<Q', len(text)) + text + data


def _safetensors(weights: dict) -> Iterator[tuple[str, bytes]]:
    one = dict(dtype='F32', shape=[4], data_offsets=[0, 16])
    twice = b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},' * 2
    many = {f'k{index}': dict(dtype='F32', shape=[0], data_offsets=[0, 0]) for index in range(5000)}
    files = {
        'header-longer': struct.pack('<Q', 10**6) + b'{}',
        'header-huge': struct.pack('<Q', 2**63) + b'{}',
        'header-max': b'\xff' * 8 + b'{}',
        'header-none': b'\0' * 8 + b'{',
        'header-broken': _header(b'{"a":'),
        'header-list': _header([1]),
        'header-text': _header(b'{"a": "b"}'),
        'header-deep': _header(b'{"a":' * 5000 + b'1' + b'}' * 5000),
        'header-very-deep': _header(b'{"a":' + b'[' * 200_000),
        'header-not-utf8': _header(b'{"\xff": 1}'),
        'header-surrogate': _header(b'{"\\ud800": 1}'),
        'header-newline': _header({'a\nb': one}),
        'duplicate': _header(twice[:-1] + b'}'),
        'duplicate-inside': _header(
            b'{"a":{"dtype":"F32","dtype":"F64","shape":[4],"data_offsets":[0,16]}}'
        ),
        'overlap': _header(dict(a=one, b=one)),
        'out-of-range': _header(dict(a=one | dict(data_offsets=[0, 99]))),
        'backwards': _header(dict(a=one | dict(data_offsets=[16, 0]))),
        'negative': _header(dict(a=one | dict(data_offsets=[-16, 0]))),
        'hole': _header(dict(a=one | dict(data_offsets=[8, 24])), bytes(24)),
        'trailing': _header(dict(a=one), bytes(99)),
        'shape': _header(dict(a=one | dict(shape=[5]))),
        'shape-huge': _header(dict(a=one | dict(shape=[2**62, 2**62]))),
        'shape-negative': _header(dict(a=one | dict(shape=[-4]))),
        'dtype': _header(dict(a=one | dict(dtype='F99'))),
        'float8': _header(dict(a=dict(dtype='F8_E4M3', shape=[16], data_offsets=[0, 16]))),
        'complex': _header(dict(a=dict(dtype='C64', shape=[2], data_offsets=[0, 16]))),
        'uint16': _header(dict(a=dict(dtype='U16', shape=[8], data_offsets=[0, 16]))),
        'metadata': _header(dict(a=one, __metadata__=[1])),
        'metadata-number': _header(dict(a=one, __metadata__=dict(a=1))),
        'pickle': pickle.dumps(Runs(), 2),
        'zip-start': _header(dict(a=one)) + saved(dict(a=Runs())),
    }
    for kind, content in files.items():
        yield f'safetensors-{kind}.safetensors', content
    yield 'fine-safetensors-many', _header(many, b'')
    for kind, text in dict(deep='[' * 50_000, broken='{', number='1').items():
        meta = dict(mixer='vars_d', mixer_cfg=text)
        yield f'fine-safetensors-{kind}.safetensors', save(weights, meta)
    good = save(weights)
    yield 'safetensors-as-pth', good[: len(good) // 2]


def states(training: dict) -> Iterator[tuple[str, bytes]]:
    """Training states of which one entry is of the wrong kind: for those who resume."""

    def changed(change: Callable[[dict], Any]) -> bytes:
        state = deepcopy(training)
        change(state)
        return saved(state)

    for entry in ('optimizer', 'param_schedulers', 'message_hub', 'meta', 'state_dict'):
        for kind, value in dict(none=None, list=[1], text='x', number=5, empty={}).items():
            yield f'state-{entry}-{kind}', changed(lambda s, e=entry, v=value: s.update({e: v}))
    for name in ('iter', 'epoch', 'seed'):
        for kind, value in dict(
            text='3',
            float=1.5,
            tensor=torch.tensor(3),
            negative=-1,
            huge=2**70,
            bool=True,
            list=[1],
        ).items():
            yield (
                f'state-{name}-{kind}',
                changed(lambda s, n=name, v=value: s['meta'].update({n: v})),
            )
    for name in ('lr', 'betas', 'weight_decay', 'eps'):
        for kind, value in dict(
            text='x', none=None, nan=float('nan'), tensor=torch.ones(3)
        ).items():
            yield (
                f'state-{name}-{kind}',
                changed(
                    lambda s, n=name, v=value: s['optimizer']['param_groups'][0].update({n: v})
                ),
            )
    optimizer: dict[str, Callable[[dict], Any]] = {
        'groups-none': lambda o: o.update(param_groups=None),
        'groups-fewer': lambda o: o['param_groups'].pop(),
        'group-list': lambda o: o['param_groups'].__setitem__(0, [1]),
        'params-fewer': lambda o: o['param_groups'][0]['params'].pop(),
        'params-text': lambda o: o['param_groups'][0].update(params='abc'),
        'params-twice': lambda o: o['param_groups'][1].update(o['param_groups'][0]),
        'lr-negative': lambda o: o['param_groups'][0].update(lr=-1.0),
        'betas-three': lambda o: o['param_groups'][0].update(betas=(0.9, 0.9, 0.9)),
        'state-none': lambda o: o.update(state=None),
        'state-list': lambda o: o.update(state=[1]),
        'state-key': lambda o: o['state'].update(x={}),
        'state-other': lambda o: o['state'].update({10**6: {}}),
        'state-text': lambda o: o['state'].update({0: 'abc'}),
        'state-slots': lambda o: o['state'].update({0: {}}),
        'state-shape': lambda o: o['state'][0].update(exp_avg=torch.ones(7, 7)),
        'state-nan': lambda o: o['state'][0].update(exp_avg=o['state'][0]['exp_avg'] / 0),
        'state-number': lambda o: o['state'][0].update(exp_avg=1.0),
        'state-step': lambda o: o['state'][0].update(step='one'),
        'state-steps': lambda o: o['state'][0].update(step=torch.ones(4)),
        'scaler': lambda o: o.update(base_param_settings=5),
    }
    for kind, change in optimizer.items():
        yield f'state-optimizer-{kind}', changed(lambda s, c=change: c(s['optimizer']))
    schedulers: dict[str, Callable[[list], Any]] = {
        'fewer': lambda p: p.clear(),
        'more': lambda p: p.append(p[0]),
        'list': lambda p: p.__setitem__(0, [1]),
        'step': lambda p: p[0].update(last_step='x'),
        'method': lambda p: p[0].update(step=5),
        'values': lambda p: p[0].update(base_values=None),
        'values-fewer': lambda p: p[0]['base_values'].pop(),
        'missing': lambda p: p[0].pop('last_step'),
    }
    for kind, change in schedulers.items():
        yield f'state-scheduler-{kind}', changed(lambda s, c=change: c(s['param_schedulers']))
    hub: dict[str, Callable[[dict], Any]] = {
        'scalars': lambda h: h.update(log_scalars=None),
        'info': lambda h: h.update(runtime_info=[1]),
        'keys': lambda h: h.pop('resumed_keys'),
        'iter': lambda h: h['runtime_info'].update(iter='x'),
        'best': lambda h: h['runtime_info'].update(best_ckpt='/home'),
        'best-number': lambda h: h['runtime_info'].update(best_ckpt=5),
        'score': lambda h: h['runtime_info'].update(best_score='high'),
        'kept': lambda h: h['runtime_info'].update(keep_ckpt_ids=['../x']),
    }
    for kind, change in hub.items():
        yield f'state-hub-{kind}', changed(lambda s, c=change: c(s['message_hub']))
    yield (
        'fine-state-config',
        changed(lambda s: s['meta'].update(config='import os; os.system("touch executed")')),
    )
    yield 'fine-state-ema', changed(lambda s: s.update(ema_state_dict=[1]))


def _mutations(good: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    for name, content in good.items():
        draw = random.Random(name)
        for index in range(6):
            yield f'mutated-cut-{index}-{name}', content[: draw.randrange(1, len(content))]
        for index in range(8):
            changed = bytearray(content)
            for _ in range(draw.choice((1, 1, 8, 64))):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
            yield f'mutated-bytes-{index}-{name}', bytes(changed)
        for index in range(2):
            start = draw.randrange(len(content))
            yield f'mutated-hole-{index}-{name}', content[:start] + content[start + 64 :]
            changed = content[:start] + bytes(64) + content[start + 64 :]
            yield f'mutated-zeros-{index}-{name}', changed


def _not_files(folder: Path) -> dict[str, Path]:
    paths = {
        f'path-{kind}': folder / f'path-{kind}.pth'
        for kind in ('fifo', 'folder', 'missing', 'dangling', 'loop', 'socket', 'unreadable')
    }
    os.mkfifo(paths['path-fifo'])
    paths['path-folder'].mkdir()
    paths['path-dangling'].symlink_to(folder / 'nowhere.pth')
    paths['path-loop'].symlink_to(paths['path-loop'])
    here = os.getcwd()
    os.chdir(folder)  # the path of a socket may be 100 characters long
    with socket.socket(socket.AF_UNIX) as server:
        server.bind('path-socket.pth')
    os.chdir(here)
    paths['path-unreadable'] = folder / ('x' * 300 + '.pth')
    fifo_link = folder / 'path-fifo-link.pth'
    fifo_link.symlink_to(paths['path-fifo'])
    return paths | {
        'path-fifo-link': fifo_link,
        'path-device': Path('/dev/zero'),
        'path-null': Path('/dev/null'),
        'path-below-a-file': folder / 'good-ours.pth' / 'x.pth',
        'path-zero-byte': folder / 'a\0b.pth',
    }
