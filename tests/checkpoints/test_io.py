"""Reading runs nothing."""

import argparse
import functools
import pickle
import struct
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path

import pytest
import torch
from torch import nn, serialization

from mmvars.checkpoints import io
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError

TENSORS = {'b': torch.arange(6.0).reshape(2, 3), 'a': torch.tensor([1, 2])}


def _same(found, expected):
    assert list(found) == list(expected)
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype
        assert torch.equal(found[key], tensor)


@pytest.mark.parametrize('zipped', [True, False])
def test_reads_what_the_release_saves(tmp_path, zipped):
    path = tmp_path / 'x.pth'
    content = dict(model=TENSORS, epoch=3, args=argparse.Namespace(lr=0.1, name='n'), scaler={})
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    found = read_checkpoint(path)
    _same(found['model'], TENSORS)
    assert found['args'] == argparse.Namespace(lr=0.1, name='n')


@pytest.mark.parametrize('name', ['x.pth', 'x.pt', 'x.bin', 'x.safetensors'])
def test_writes_what_it_reads(tmp_path, name):
    path = tmp_path / name
    write_checkpoint(path, TENSORS)
    found = read_checkpoint(path)
    _same({key: found[key] for key in TENSORS}, TENSORS)  # safetensors has its own order
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_content_decides_not_the_suffix(tmp_path):
    write_checkpoint(tmp_path / 'x.safetensors', TENSORS)
    (tmp_path / 'x.safetensors').rename(tmp_path / 'x.pth')
    assert set(read_checkpoint(tmp_path / 'x.pth')) == {'a', 'b'}


def test_container_and_meta(tmp_path):
    write_checkpoint(tmp_path / 'x.pth', TENSORS, 'state_dict', {'arch': 'vit'})
    found = torch.load(tmp_path / 'x.pth', weights_only=True)
    assert found['meta'] == {'arch': 'vit'}
    _same(found['state_dict'], TENSORS)


@pytest.mark.parametrize('protocol', [2, 3, 4, 5])
@pytest.mark.parametrize('zipped', [True, False])
def test_all_protocols_and_tied_tensors(tmp_path, protocol, zipped):
    tied = torch.randn(600, 600)
    content = dict(text='x' * 300, none=b'', some=b'a', long=b'a' * 300, number=2**40)
    content |= dict(tied=[tied] * 8)
    path = tmp_path / 'x.pth'
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    read = read_checkpoint(path)
    assert all(torch.equal(each, tied) for each in read.pop('tied'))
    assert read == {name: content[name] for name in read}


def test_tied_tensors_have_a_bound_too(tmp_path):
    tied = torch.randn(600, 600)
    torch.save([tied] * 70, tmp_path / 'x.pth')
    with pytest.raises(InputError, match='its tensors claim over'):
        read_checkpoint(tmp_path / 'x.pth')


def test_a_view_does_not_drag_its_storage_along(tmp_path):
    write_checkpoint(tmp_path / 'x.pth', {'row': torch.zeros(1000, 1000)[0]})
    assert (tmp_path / 'x.pth').stat().st_size < 10_000


@pytest.mark.parametrize('way', ['zip', 'old', 'pickle', 'pickle4'])
def test_a_hostile_pickle_is_refused_by_name_and_not_run(tmp_path, payload, way):
    path = tmp_path / 'x.pth'
    content = {'model': TENSORS, 'x': payload}
    if way.startswith('pickle'):
        path.write_bytes(pickle.dumps({'x': payload}, protocol=4 if way == 'pickle4' else 2))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=way == 'zip')
    named = 'torch.save did not write' if 'pickle' in way else r'(posix|nt)\.system'
    with pytest.raises(InputError, match=rf'refused.*\b{named}.*Nothing was run'):
        read_checkpoint(path)
    assert not payload.trace.exists()
    payload.__reduce__()[0](payload.__reduce__()[1][0])  # the payload does work
    assert payload.trace.exists()


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save({'model': nn.Linear(2, 2)}, tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'torch\.nn\.modules\.linear\.Linear'):
        read_checkpoint(tmp_path / 'x.pth')


def test_what_the_process_allowed_torch_is_not_allowed_here(tmp_path):
    torch.save({'model': nn.Linear(2, 2)}, tmp_path / 'x.pth')
    before = list(serialization.get_safe_globals())
    serialization.add_safe_globals([nn.Linear])
    try:
        with pytest.raises(InputError, match='Linear'):
            read_checkpoint(tmp_path / 'x.pth')
    finally:
        serialization.clear_safe_globals()
        serialization.add_safe_globals(before)


def test_the_log_of_a_runner_is_read_without_its_classes(tmp_path):
    history = pytest.importorskip('mmengine.logging').HistoryBuffer
    numpy = pytest.importorskip('numpy')
    log = history()
    log.update(numpy.float64(1.5))
    torch.save(
        dict(state_dict=TENSORS, message_hub={'loss': log}, best=numpy.float64(2)),
        tmp_path / 'x.pth',
    )
    found = read_checkpoint(tmp_path / 'x.pth')
    _same(found['state_dict'], TENSORS)
    assert type(found['message_hub']['loss']) is io.LoggedValues is not history
    assert found['message_hub']['loss'].values == (1.5,)
    assert type(found['best']) is float


def test_numbers_and_arrays_of_numpy(tmp_path):
    numpy = pytest.importorskip('numpy')
    numbers = [numpy.float64(0.1), numpy.int64(-3), numpy.float32(0.5), numpy.bool_(True)]
    torch.save(
        dict(model=TENSORS, numbers=numbers, array=numpy.arange(6.0).reshape(2, 3)),
        tmp_path / 'x.pth',
    )
    found = read_checkpoint(tmp_path / 'x.pth')
    assert found['numbers'] == [0.1, -3, 0.5, True]
    assert found['array'].values == (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert found['array'].shape == (2, 3)


@pytest.mark.parametrize(
    'value',
    [
        torch.eye(2).to_sparse(),
        torch.zeros(2, device='meta'),
        torch.zeros(1).expand(2**20),
        torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    ],
)
def test_tensors_that_are_not_plain_are_refused_by_name(tmp_path, value):
    torch.save(dict(model=TENSORS, more=[{'w': value}]), tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'more\.0\.w is (not a plain dense tensor|a view of)'):
        read_checkpoint(tmp_path / 'x.pth')


def _truncated(path):
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ('kind', 'said'),
    [
        ('zip', 'truncated or damaged'),
        ('old', 'truncated or damaged'),
        ('safetensors', 'truncated or damaged'),
        ('empty', 'empty'),
        ('html', 'no checkpoint'),
        ('noise', 'no checkpoint'),
        ('folder', 'a folder'),
        ('missing', 'does not exist'),
    ],
)
def test_what_is_no_checkpoint_is_said_so(tmp_path, kind, said):
    path = tmp_path / ('x.safetensors' if kind == 'safetensors' else 'x.pth')
    big = {'w': torch.zeros(100)}
    if kind in ('zip', 'old'):
        torch.save(big, path, _use_new_zipfile_serialization=kind == 'zip')
        _truncated(path)
    elif kind == 'safetensors':
        write_checkpoint(path, big)
        _truncated(path)
    elif kind == 'folder':
        path.mkdir()
    elif kind != 'missing':
        path.write_bytes(
            {'empty': b'', 'html': b'<!DOCTYPE html><html>', 'noise': b'\1\2\3' * 50}[kind]
        )
    with pytest.raises(InputError, match=said) as caught:
        read_checkpoint(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('address', ['s3://bucket/x.pth', Path('https://example.org/x.pth')])
def test_an_address_is_no_file(address):
    with pytest.raises(InputError, match='download it first'):
        read_checkpoint(address)


@pytest.mark.parametrize('name', ['x.pth', 'x.safetensors'])
def test_an_address_is_downloaded_once_and_read_as_carefully(tmp_path, monkeypatch, name):
    """Against a server of our own."""
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path / 'cache'))
    (tmp_path / 'served').mkdir()
    write_checkpoint(tmp_path / 'served' / name, TENSORS)
    torch.save({'model': nn.Linear(2, 2)}, tmp_path / 'served' / 'module.pth')
    handler = functools.partial(QuietHandler, directory=str(tmp_path / 'served'))
    with HTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f'http://127.0.0.1:{server.server_port}'
        found = read_checkpoint(f'{address}/{name}')
        with pytest.raises(InputError, match='Linear'):
            read_checkpoint(f'{address}/module.pth')
        with pytest.raises(InputError, match='gone.pth cannot be downloaded: HTTP Error 404'):
            read_checkpoint(f'{address}/gone.pth')
        server.shutdown()
    _same({key: found[key] for key in TENSORS}, TENSORS)
    assert read_checkpoint(f'{address}/{name}').keys() == TENSORS.keys()
    assert io.read_meta(f'{address}/{name}', found) == (
        {'format': 'pt'} if name.endswith('safetensors') else {}
    )


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def test_a_safetensors_header_longer_than_the_file(tmp_path):
    (tmp_path / 'x.safetensors').write_bytes(struct.pack('<Q', 10**6) + b'{}')
    with pytest.raises(InputError, match='truncated or damaged'):
        read_checkpoint(tmp_path / 'x.safetensors')
