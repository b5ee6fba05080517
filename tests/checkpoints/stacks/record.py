"""How the files of this folder were made: each by ``mmvars train`` with the packages of one stack.

``python record.py TOY FILE``, where TOY is what the fixture ``toy`` of
``tests/integration/conftest.py`` makes: the state of ``old/absvit.pth`` as the present version
writes it, after two iterations, with the log's history and the states of the random generators.
"""

import runpy
import sys
import tempfile
from pathlib import Path

import torch

from mmvars.engine.train import main

OLD = runpy.run_path(str(Path(__file__).parents[1] / 'old' / 'record.py'))


def record(toy: Path, file: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / 'config.py'
        backbone = OLD['BACKBONES']['absvit']
        config.write_text((toy / 'seg.py').read_text() + OLD['CHANGES'].format(backbone=backbone))
        main([str(config), '--work-dir', folder, '--no-validate'])
        content = torch.load(Path(folder) / 'iter_2.pth', weights_only=False)
    for entry in (content['meta'], content['message_hub']['runtime_info']):
        entry.update(cfg='', dataset_meta={}, last_ckpt='')  # much of the file, and a path
    torch.save(content, file)


if __name__ == '__main__':
    record(Path(sys.argv[1]), Path(sys.argv[2]))
