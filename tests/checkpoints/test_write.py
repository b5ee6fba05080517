"""Writing destroys nothing."""

import errno
import os
import signal
import socket
import time

import pytest
import torch

from mmvars.checkpoints import write
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError
from mmvars.write import (
    WriteError,
    check_destination,
    whole_or_nothing,
    write_text,
)

TENSORS = {'b': torch.arange(6.0).reshape(2, 3), 'a': torch.tensor([1, 2])}


def test_an_existing_file_is_kept_unless_asked(tmp_path):
    path = tmp_path / 'x.pth'
    path.write_bytes(b'precious')
    with pytest.raises(InputError, match='exists and is kept.*--overwrite'):
        write_checkpoint(path, TENSORS)
    assert path.read_bytes() == b'precious'
    write_checkpoint(path, TENSORS, overwrite=True)
    assert read_checkpoint(path).keys() == TENSORS.keys()


@pytest.mark.parametrize('error', [OSError(28, 'No space left on device'), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_old_file_and_no_rest(tmp_path, monkeypatch, error):
    path = tmp_path / 'x.pth'
    path.write_bytes(b'precious')

    def save(content, target):
        target.write(b'half')
        raise error

    monkeypatch.setattr(write.torch, 'save', save)
    with pytest.raises(InputError if isinstance(error, OSError) else KeyboardInterrupt):
        write_checkpoint(path, TENSORS, overwrite=True)
    assert path.read_bytes() == b'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']


def test_the_new_file_takes_the_old_ones_place_in_one_step(tmp_path, monkeypatch):
    path = tmp_path / 'x.pth'
    path.write_bytes(b'precious')

    def refuse(temporary, target):
        assert read_checkpoint(temporary).keys() == TENSORS.keys()  # complete by now
        raise PermissionError(13, 'no')

    monkeypatch.setattr(os, 'replace', refuse)
    with pytest.raises(InputError, match='cannot be written'):
        write_checkpoint(path, TENSORS, overwrite=True)
    assert path.read_bytes() == b'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']


@pytest.mark.parametrize(
    ('name', 'said'), [('x.npz', 'must end in'), ('no/x.pth', 'does not exist')]
)
def test_destinations_that_cannot_be(tmp_path, name, said):
    with pytest.raises(InputError, match=said):
        write_checkpoint(tmp_path / name, TENSORS)


def test_the_source_is_never_the_destination(tmp_path):
    write_checkpoint(tmp_path / 'x.pth', TENSORS)
    (tmp_path / 'y.pth').symlink_to(tmp_path / 'x.pth')
    for name in ('x.pth', 'y.pth'):
        with pytest.raises(InputError, match='is the source itself'):
            check_destination(tmp_path / name, tmp_path / 'x.pth', overwrite=True)


def test_text_is_kept_too(tmp_path):
    write_text(tmp_path / 'r.json', 'one')
    with pytest.raises(InputError, match='exists'):
        write_text(tmp_path / 'r.json', 'two')
    assert (tmp_path / 'r.json').read_text() == 'one'


def test_a_full_disk_is_called_by_its_name(tmp_path, monkeypatch):
    """torch hides the cause behind an error of its own."""
    path = tmp_path / 'x.pth'
    path.write_bytes(b'precious')

    class Full:
        name = ''

        def write(self, content):
            raise OSError(errno.ENOSPC, 'No space left on device')

    save = torch.save
    monkeypatch.setattr(write.torch, 'save', lambda content, file: save(content, Full()))
    with pytest.raises(WriteError, match='x.pth cannot be written: No space left on device'):
        write_checkpoint(path, TENSORS, overwrite=True)
    assert path.read_bytes() == b'precious'
    assert [p.name for p in tmp_path.iterdir()] == ['x.pth']


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    writer = os.fork()
    if not writer:
        with whole_or_nothing(tmp_path / 'x.pth') as file:
            file.write(b'half')
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(writer, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith('.x.pth.') and left.read_bytes() == b'half'
    write_text(tmp_path / 'report.json', 'other')
    assert [p.name for p in tmp_path.iterdir()] == ['report.json']


def test_what_may_still_be_written_is_left(tmp_path):
    host = socket.gethostname()
    stay = [
        f'.a.pth.{os.getpid()}@{host}.partial',  # alive
        '.b.pth.999999999@elsewhere.partial',  # on a host that shares the folder
        f'.c.pth.{2**80}@{host}.partial',
        '.d.partial',  # somebody else's
        'e.pth.999999999@elsewhere.partial',
    ]
    old = ['.f.pth.1@elsewhere.partial', '.g.pth.1.partial']  # the latter: of an older mmvars
    for name in stay + old:
        (tmp_path / name).write_text('half')
    for name in old:
        os.utime(tmp_path / name, (time.time() - 90_000,) * 2)
    write_text(tmp_path / 'x.json', 'text')
    assert sorted(p.name for p in tmp_path.iterdir()) == [*stay, 'x.json']


def test_a_file_is_on_the_disk_before_it_has_its_name_and_then_the_name_is(tmp_path, monkeypatch):
    steps, fsync, replace = [], os.fsync, os.replace

    def flush(file):
        steps.append('folder' if os.path.isdir(f'/dev/fd/{file}') else 'file')
        fsync(file)

    def rename(source, target):
        steps.append('name')
        replace(source, target)

    monkeypatch.setattr(os, 'fsync', flush)
    monkeypatch.setattr(os, 'replace', rename)
    write_text(tmp_path / 'x.json', 'text')
    assert steps == ['file', 'name', 'folder']
