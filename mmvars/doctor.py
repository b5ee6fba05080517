"""``mmvars doctor``: what is installed, what is wrong with it, and the remedy.

The checks read package metadata and the outcome of trial imports. The trials run in child
processes: a library that crashes on import ends its child, not the doctor.
"""

import platform
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mmvars import __version__
from mmvars.parsers.doctor import parse_args

__all__ = ['PACKAGES', 'TRIALS', 'Environment', 'Finding', 'diagnose', 'look', 'main']

ONEDL = {
    'onedl-mmengine': 'mmengine',
    'onedl-mmcv': 'mmcv',
    'onedl-mmsegmentation': 'mmsegmentation',
    'onedl-mmpretrain': 'mmpretrain',
}
"""Maintained distribution -> the official one that installs the same files."""

REQUIRED = ('torch', 'torchvision', 'timm', 'safetensors', 'numpy', 'pillow', 'matplotlib')
PACKAGES = (
    *REQUIRED,
    *ONEDL,
    *ONEDL.values(),
    'mmcv-lite',
    'mmcv-full',
    'setuptools',
    'openmim',
    'transformers',
)

_ROUND_TRIP = """
import sys, tempfile
from mmvars.cli import run_tool
with tempfile.TemporaryDirectory() as folder:
    train = ['{config}', '--no-validate', '--work-dir', folder]
    options = ['--cfg-options', 'train_dataloader.num_workers=0', {options}]
    sys.exit(
        run_tool('train', [*train, *options, '{length}=1'])
        or run_tool('train', [*train, '--resume', *options, '{length}=2'])
    )
"""

TRIALS = {
    'numpy': 'import numpy',
    'torch': 'import torch, numpy; torch.from_numpy(numpy.zeros(1)).numpy()',
    'torchvision': 'import torchvision; from torchvision.ops import nms',
    'timm': 'import timm',
    'safetensors': 'import safetensors.torch',
    'mmengine': 'import mmengine, mmengine.runner',
    'mmcv': 'import mmcv, mmcv.transforms',
    'mmcv.ops': 'import mmcv._ext',
    'mmseg': 'import mmseg.models, mmseg.datasets, mmseg.evaluation',
    'mmpretrain': 'import mmpretrain.models, mmpretrain.datasets, mmpretrain.evaluation',
    'mmvars backbone': """
import torch
from mmengine.registry import MODELS
cfg = dict(type='mmvars.AbSViT', arch=dict(embed_dims=24, num_layers=2, num_heads=2), img_size=32)
out = MODELS.build(cfg)(torch.zeros(1, 3, 32, 32))
assert out[-1].shape == (1, 24, 2, 2), out[-1].shape
""",
    # Build, step, save, load, step: training on images of the package that is stopped and resumed.
    'mmvars train with mmseg': _ROUND_TRIP.format(
        config='absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256',
        options="'train_dataloader.batch_size=2'",
        length='max_iters',
    ),
    'mmvars train with mmpretrain': _ROUND_TRIP.format(
        config='absvit-tiny-p16_1xb16-20e_mini-imagenet-64px',
        options="'train_dataloader.batch_size=90'",
        length='max_epochs',
    ),
}
"""What must run -> the statements that try it. ``mmcv.ops`` may fail."""

_TIMEOUT = 300  # seconds for one trial; imports from a cold disk are slow
_FRESH = 'pip install "mmvars[onedl]"'
_REINSTALL = f'pip uninstall -y {" ".join([*ONEDL, *ONEDL.values()])}, then {_FRESH}'
_NUMPY_SIGNS = (
    '_ARRAY_API|Numpy is not available|compiled using NumPy 1.x|'
    'numpy.dtype size changed|numpy.core.multiarray failed'
)


class Environment(NamedTuple):
    """What the checks look at."""

    python: tuple[int, int]
    versions: Mapping[str, str]  # of those of PACKAGES that are installed
    failures: Mapping[str, str]  # trial -> its output, for the trials that failed

    def has(self, *names: str) -> list[str]:
        """Those of ``names`` that are installed."""
        return [name for name in names if name in self.versions]

    def older(self, name: str, *bound: int) -> bool:
        """Whether ``name`` is installed in a version below ``bound``."""
        release = re.findall(r'\d+', self.versions.get(name, '9999').partition('+')[0])
        return tuple(map(int, release)) < bound


class Finding(NamedTuple):
    """Something that is wrong, in plain words, with the remedy."""

    problem: str
    remedy: str


def _check_packages(env: Environment) -> Iterator[tuple[str, str]]:
    """What is missing, too old, or of two stacks that write the same files."""
    if env.python < (3, 10):
        yield f'Python {env.python[0]}.{env.python[1]} is too old', 'use Python 3.10 or newer'
    if missing := [name for name in REQUIRED if not env.has(name)]:
        yield f'not installed: {", ".join(missing)}', f'pip install {" ".join(missing)}'
    for name, bound in (('torch', (2, 4)), ('timm', (1, 0))):
        if env.older(name, *bound):
            yield (
                f'{name} {env.versions[name]} is too old for mmvars',
                f'pip install "{name}>={".".join(map(str, bound))}"',
            )
    if env.has('onedl-mmsegmentation') and env.older('numpy', 2):
        yield (
            f'onedl-mmsegmentation needs numpy 2, found {env.versions["numpy"]}',
            'pip install "numpy>2"',
        )
    ours, theirs = env.has(*ONEDL), env.has(*ONEDL.values())
    lite, full = env.has('mmcv-lite', 'mmcv-full'), env.has('onedl-mmcv', 'mmcv')
    if ours and theirs:
        yield (
            f'packages of two stacks are installed ({", ".join(ours)} and {", ".join(theirs)}): '
            'they write the same files and do not work together',
            _REINSTALL,
        )
    elif lite and full:
        yield (
            f'{lite[0]} and {full[0]} are both installed: they write the same files',
            f'pip uninstall -y {lite[0]} {full[0]}, then pip install {full[0]}',
        )
    missing = [
        name
        for onedl, name in ONEDL.items()
        if not (env.has(onedl, name) or (name == 'mmcv' and lite))
    ]
    if missing:
        yield (
            f'OpenMMLab packages are missing: {", ".join(missing)}',
            f'pip install "mmvars[{"openmmlab" if theirs and not ours else "onedl"}]"',
        )


def _check_trials(env: Environment) -> Iterator[tuple[str, str]]:
    """Failures whose cause and remedy are known."""
    failures, versions = env.failures, dict.fromkeys(PACKAGES, '?') | {**env.versions}
    text = ' '.join(failures.get(name, '') for name in ('torch', 'numpy', 'torchvision', 'mmcv'))
    if re.search(_NUMPY_SIGNS, text) or (
        env.older('torch', 2, 3) and env.has('numpy') and not env.older('numpy', 2)
    ):
        yield (
            f'numpy {versions["numpy"]} does not work with torch {versions["torch"]} (or '
            'another compiled package): one was built for numpy 1, the other is 2',
            'pip install "numpy<2" with an old torch, or upgrade torch',
        )
    if 'torchvision' in failures and env.has('torchvision') and 'torch' not in failures:
        yield (
            f'torchvision {versions["torchvision"]} does not load with torch '
            f'{versions["torch"]}: it is built for one version of torch, and for one kind of '
            'build (CPU or CUDA)',
            'install both together from the same index: '
            'pip install --force-reinstall torch torchvision',
        )
    if 'NoneType takes no arguments' in failures.get('mmpretrain', ''):
        yield (
            f'mmpretrain cannot be imported where pycocotools is installed beside transformers '
            f'{versions["transformers"]}',
            'pip install "transformers<4.47", or pip uninstall transformers',
        )
    if env.has('mmsegmentation') and 'mmcv.ops' in failures and env.has('mmcv', 'mmcv-lite'):
        yield (
            "mmcv's compiled ops do not load, and the official mmsegmentation cannot be "
            'imported without them (mmcv-lite never has them; wheels exist for few versions of '
            'torch)',
            f'{_REINSTALL} (needs no compiled ops); or compile mmcv 2.1.0 against torch <= 2.4',
        )
    trials = f'{failures.get("mmseg", "")}\n{failures.get("mmpretrain", "")}'
    if match := re.search('.*is used but incompatible.*', trials):
        yield (
            f'OpenMMLab packages refuse one another: {match[0].strip()}',
            'with the official stack: mmcv==2.1.0, mmengine==0.10.7, mmsegmentation==1.2.2, '
            f'mmpretrain==1.2.0; or {_REINSTALL}',
        )
    blamed = [
        trial
        for trial, output in failures.items()
        if "No module named 'pkg_resources'" in output and trial != 'mmcv.ops'
    ]
    if blamed or (env.has('mmengine', 'mmsegmentation') and not env.older('setuptools', 82)):
        present = env.versions.get('setuptools', 'none')
        yield (
            'pkg_resources is missing, which the official stack needs: setuptools 82 removed '
            f'it (installed: {present})',
            'pip install "setuptools<81"',
        )


def diagnose(env: Environment) -> list[Finding]:
    """All that is wrong with ``env``; empty only if every trial that must succeed did.

    A trial that failed for a reason no check knows is reported with its own last words.
    """
    unknown = [
        (
            f'{trial} does not work: {output.rpartition(chr(10))[2]}',
            f'reinstall it, or start from a fresh environment with {_FRESH}',
        )
        for trial, output in env.failures.items()
        if trial != 'mmcv.ops'
    ]
    known = [*_check_packages(env), *_check_trials(env)]
    return [Finding(*finding) for finding in known or unknown]


def look(run: Callable[[str], str | None] | None = None) -> Environment:
    """Look at the running environment; ``run`` returns None, or the output of code that fails."""
    versions, failures = {}, {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    for trial, code in TRIALS.items():
        print(f'  trying {trial} ...', flush=True)
        if (output := (run or _in_child)(code)) is not None:
            failures[trial] = output.strip()
    return Environment(sys.version_info[:2], versions, failures)


def _in_child(code: str) -> str | None:
    try:
        done = subprocess.run(
            [sys.executable, '-c', code],
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f'no answer within {_TIMEOUT} s'
    if done.returncode == 0 and '_ARRAY_API' not in done.stderr:
        return None
    return done.stderr or done.stdout or f'exit status {done.returncode}'


def main(argv: list[str] | None = None) -> int:
    """Print the versions and the findings; returns 0 if the environment works, else 1."""
    args = parse_args(argv)
    print(f'mmvars {__version__} at {Path(__file__).parent}')
    print(f'Python {platform.python_version()} at {sys.executable}, {platform.platform()}')
    env = look()
    for name, version in env.versions.items():
        print(f'  {name:<20} {version}')
    if args.verbose:
        for trial, text in env.failures.items():
            print(f'\n--- {trial} failed:\n{text}')
    findings = diagnose(env)
    for number, finding in enumerate(findings, 1):
        print(f'\n{number}. {finding.problem}.\n   Remedy: {finding.remedy}')
    if not findings:
        without = (
            " (mmcv's compiled ops are absent; nothing in mmvars needs them)"
            if 'mmcv.ops' in env.failures
            else ''
        )
        print(f'\nThis environment works{without}.')
        if env.older('torch', 2, 6):
            print(
                f'Before torch 2.6 (here {env.versions["torch"]}) torch.load runs code that a file '
                'hides in its tensors, even with weights_only=True (CVE-2025-32434). mmvars reads '
                'checkpoints without it; leave files of others to mmvars, or upgrade torch.'
            )
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
