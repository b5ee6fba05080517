"""``mmvars doctor``: what is installed, what is wrong with it, and the remedy.

The checks in this file read package metadata and the outcome of trial imports; both can be faked,
so each check is tested without breaking an environment. The trials run in child processes: a
library that crashes on import takes its child down, not the doctor.
"""

import argparse
import platform
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

from mmvars import __version__

__all__ = ['PACKAGES', 'TRIALS', 'Environment', 'Finding', 'diagnose', 'look', 'main']

ONEDL = {'onedl-mmengine': 'mmengine', 'onedl-mmcv': 'mmcv',
         'onedl-mmsegmentation': 'mmsegmentation', 'onedl-mmpretrain': 'mmpretrain'}
"""Maintained distribution -> the official one that installs the same files."""

PACKAGES = ('torch', 'torchvision', 'timm', 'safetensors', 'numpy', 'pillow', 'matplotlib',
            *ONEDL, *ONEDL.values(), 'mmcv-lite', 'mmcv-full', 'setuptools', 'openmim')

BACKBONE = """
import torch
from mmengine.registry import MODELS
cfg = dict(type='mmvars.AbSViT', arch=dict(embed_dims=24, num_layers=2, num_heads=2), img_size=32)
out = MODELS.build(cfg)(torch.zeros(1, 3, 32, 32))
assert out[-1].shape == (1, 24, 2, 2), out[-1].shape
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
    'mmvars backbone': BACKBONE,
}
"""What must run -> the statements that try it. ``mmcv.ops`` may fail (see the checks)."""

OPTIONAL = {'mmcv.ops'}
_TIMEOUT = 300  # seconds for one trial; imports from a cold disk are slow


class Environment(NamedTuple):
    """What the checks look at.

    Attributes:
        python: Version of Python, ``(major, minor)``.
        versions: Distribution -> version, for those of :data:`PACKAGES` that are installed.
        failures: Trial -> its last lines of output, for the trials that failed.
    """

    python: tuple[int, int]
    versions: Mapping[str, str]
    failures: Mapping[str, str]

    def has(self, *names: str) -> list[str]:
        """Those of ``names`` that are installed."""
        return [name for name in names if name in self.versions]

    def older(self, name: str, *bound: int) -> bool:
        """Whether ``name`` is installed in a version below ``bound``."""
        return name in self.versions and _numbers(self.versions[name]) < bound


class Finding(NamedTuple):
    """Something that is wrong, in plain words, with the remedy."""

    problem: str
    remedy: str


def _numbers(version: str) -> tuple[int, ...]:
    parts = []
    for part in version.split('+')[0].split('.'):
        digits = ''.join(c for c in part if c.isdigit())
        if not digits:
            break
        parts.append(int(digits))
    return tuple(parts)


def _python(env: Environment) -> Iterable[Finding]:
    if env.python < (3, 10):
        yield Finding(f'Python {env.python[0]}.{env.python[1]} is too old',
                      'use Python 3.10 or newer')


def _both_stacks(env: Environment) -> Iterable[Finding]:
    doubled = [f'{ours} and {theirs}' for ours, theirs in ONEDL.items()
               if env.has(ours) and env.has(theirs)]
    if doubled:
        yield Finding(f'both stacks are installed ({"; ".join(doubled)}): they write the same '
                      'files, and the one installed last has overwritten the other',
                      f'pip uninstall -y {" ".join([*ONEDL, *ONEDL.values()])}, then '
                      'pip install "mmvars[onedl]"')
    elif env.has('mmcv-lite', 'mmcv-full') and env.has('onedl-mmcv', 'mmcv'):
        lite, full = env.has('mmcv-lite', 'mmcv-full')[0], env.has('onedl-mmcv', 'mmcv')[0]
        yield Finding(f'{lite} and {full} are both installed: they write the same files',
                      f'pip uninstall -y {lite} {full}, then pip install {full}')
    else:
        pairs = (('onedl-mmengine', 'mmcv'), ('mmengine', 'onedl-mmcv'),
                 ('onedl-mmcv', 'mmsegmentation'), ('onedl-mmcv', 'mmpretrain'))
        mixed = [f'{a} with {b}' for a, b in pairs if env.has(a) and env.has(b)]
        if mixed:
            yield Finding(f'the two stacks are mixed ({", ".join(mixed)})',
                          f'pip uninstall -y {" ".join([*ONEDL, *ONEDL.values()])}, then '
                          'pip install "mmvars[onedl]"')


def _stack_missing(env: Environment) -> Iterable[Finding]:
    missing = [theirs for ours, theirs in ONEDL.items()
               if not env.has(ours, theirs) and not (theirs == 'mmcv' and env.has('mmcv-lite'))]
    if missing:
        kind = 'openmmlab' if env.has(*ONEDL.values()) and not env.has(*ONEDL) else 'onedl'
        yield Finding(f'OpenMMLab packages are missing: {", ".join(missing)}',
                      f'pip install "mmvars[{kind}]"')


def _own_requirements(env: Environment) -> Iterable[Finding]:
    missing = [n for n in ('torch', 'torchvision', 'timm', 'safetensors', 'numpy', 'pillow',
                           'matplotlib') if not env.has(n)]
    if missing:
        yield Finding(f'not installed: {", ".join(missing)}', f'pip install {" ".join(missing)}')


def _mmcv_without_ops(env: Environment) -> Iterable[Finding]:
    if env.has('mmsegmentation') and 'mmcv.ops' in env.failures and env.has('mmcv', 'mmcv-lite'):
        yield Finding("mmcv's compiled ops do not load, and the official mmsegmentation cannot be "
                      'imported without them (mmcv-lite never has them; wheels exist for few '
                      'versions of torch)',
                      'pip uninstall -y mmengine mmcv mmcv-lite mmsegmentation mmpretrain, then '
                      'pip install "mmvars[onedl]" (needs no compiled ops); or compile mmcv 2.1.0 '
                      'against torch <= 2.4')


def _mmcv_version(env: Environment) -> Iterable[Finding]:
    for trial in ('mmseg', 'mmpretrain'):
        text = env.failures.get(trial, '')
        if 'is used but incompatible' in text:
            line = next(x for x in text.splitlines() if 'is used but incompatible' in x)
            yield Finding(f'{trial} refuses the installed versions: {line.strip()}',
                          'with the official stack: mmcv==2.1.0, mmengine==0.10.7, '
                          'mmsegmentation==1.2.2, mmpretrain==1.2.0; or uninstall all four and '
                          'pip install "mmvars[onedl]"')
            return


def _pkg_resources(env: Environment) -> Iterable[Finding]:
    blamed = [t for t, text in env.failures.items()
              if "No module named 'pkg_resources'" in text and t not in OPTIONAL]
    official = env.has('mmengine', 'mmsegmentation')
    new = env.has('setuptools') and not env.older('setuptools', 82)
    if blamed or (official and (new or not env.has('setuptools'))):
        found = f'setuptools {env.versions["setuptools"]}' if new else 'no setuptools'
        needs = f' ({", ".join(blamed or official)} needs it)'
        yield Finding(f'pkg_resources is missing{needs}: setuptools 82 removed it, and this '
                      f'environment has {found}', 'pip install "setuptools<81"')


def _torchvision(env: Environment) -> Iterable[Finding]:
    if 'torchvision' in env.failures and env.has('torchvision') and 'torch' not in env.failures:
        yield Finding(f'torchvision {env.versions["torchvision"]} does not load with torch '
                      f'{env.versions.get("torch", "?")}: it is built for one version of torch, '
                      'and for one kind of build (CPU or CUDA)',
                      'install both together from the same index: '
                      'pip install --force-reinstall torch torchvision')


def _numpy_and_torch(env: Environment) -> Iterable[Finding]:
    text = ' '.join(env.failures.get(t, '') for t in ('torch', 'numpy', 'torchvision', 'mmcv'))
    signs = ('_ARRAY_API', 'Numpy is not available', 'compiled using NumPy 1.x',
             'numpy.dtype size changed', 'numpy.core.multiarray failed')
    if any(sign in text for sign in signs) or (
            env.older('torch', 2, 3) and env.has('numpy') and not env.older('numpy', 2)):
        yield Finding(f'numpy {env.versions.get("numpy", "?")} does not work with torch '
                      f'{env.versions.get("torch", "?")} (or another compiled package): one was '
                      'built for numpy 1, the other is 2',
                      'pip install "numpy<2" with an old torch, or upgrade torch')


def _numpy_one(env: Environment) -> Iterable[Finding]:
    if env.has('onedl-mmsegmentation') and env.older('numpy', 2):
        yield Finding(f'onedl-mmsegmentation needs numpy 2, found {env.versions["numpy"]}',
                      'pip install "numpy>2"')


def _versions_of_ours(env: Environment) -> Iterable[Finding]:
    for name, bound in (('torch', (2, 4)), ('timm', (1, 0))):
        if env.older(name, *bound):
            wanted = '.'.join(map(str, bound))
            yield Finding(f'{name} {env.versions[name]} is too old for mmvars',
                          f'pip install "{name}>={wanted}"')


CHECKS: tuple[Callable[[Environment], Iterable[Finding]], ...] = (
    _python, _both_stacks, _own_requirements, _versions_of_ours, _stack_missing, _numpy_and_torch,
    _numpy_one, _torchvision, _mmcv_without_ops, _mmcv_version, _pkg_resources)


def diagnose(env: Environment) -> list[Finding]:
    """All that is wrong with ``env``; empty only if every trial that must succeed did.

    A trial that failed for a reason no check knows is reported with its own last words.
    """
    findings = [finding for check in CHECKS for finding in check(env)]
    broken = {t: text for t, text in env.failures.items() if t not in OPTIONAL}
    if broken and not findings:
        for trial, text in broken.items():
            last = text.strip().splitlines()[-1] if text.strip() else 'no output'
            findings.append(Finding(f'{trial} does not work: {last}',
                                    'reinstall it, or start from a fresh environment with '
                                    'pip install "mmvars[onedl]"'))
    return findings


def look(run: Callable[[str], str | None] | None = None) -> Environment:
    """Look at the running environment.

    Args:
        run: Runs statements and returns None, or the output if they fail; None: in a child
            process of this Python.
    """
    run = run or _in_child
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    failures = {}
    for trial, code in TRIALS.items():
        print(f'  trying {trial} ...', flush=True)
        output = run(code)
        if output is not None:
            failures[trial] = output
    return Environment(sys.version_info[:2], versions, failures)


def _in_child(code: str) -> str | None:
    try:
        done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                              timeout=_TIMEOUT, check=False)
    except subprocess.TimeoutExpired:
        return f'no answer within {_TIMEOUT} s'
    if done.returncode == 0 and '_ARRAY_API' not in done.stderr:
        return None
    return done.stderr or done.stdout or f'exit status {done.returncode}'


def main(argv: list[str] | None = None) -> int:
    """Print the versions and the findings.

    Args:
        argv: Arguments; None means the command line's.

    Returns:
        0 if the environment works, else 1.
    """
    parser = argparse.ArgumentParser(description='Say what is wrong with this environment, and how '
                                     'to put it right. Exit status 0 only if all works.')
    parser.add_argument('-v', '--verbose', action='store_true',
                        help='show all output of the trials that fail')
    args = parser.parse_args(argv)
    print(f'mmvars {__version__} at {Path(__file__).parent}')
    print(f'Python {platform.python_version()} at {sys.executable}, {platform.platform()}')
    env = look()
    width = max(len(name) for name in PACKAGES)
    for name, version in env.versions.items():
        print(f'  {name:<{width}} {version}')
    if args.verbose:
        for trial, text in env.failures.items():
            print(f'\n--- {trial} failed:\n{text.strip()}')
    findings = diagnose(env)
    for number, finding in enumerate(findings, 1):
        print(f'\n{number}. {finding.problem}.\n   Remedy: {finding.remedy}')
    if not findings:
        extra = '' if 'mmcv.ops' not in env.failures else (
            " (mmcv's compiled ops are absent; nothing in mmvars needs them)")
        print(f'\nThis environment works{extra}.')
    return 1 if findings else 0


if __name__ == '__main__':
    sys.exit(main())
