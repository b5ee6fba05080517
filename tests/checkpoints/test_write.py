"""Writing destroys nothing."""

import pytest
import torch

from mmvars.checkpoints import write
from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.write import check_destination, write_checkpoint, write_text
from mmvars.errors import InputError

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

    monkeypatch.setattr(write.os, 'replace', refuse)
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
