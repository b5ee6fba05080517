"""Find, list and copy the configs and tools that belong to this installation.

A wheel carries them in ``mmvars/.mim/``; an editable install or a plain checkout has them beside
the package. Nothing here imports torch or OpenMMLab.
"""

import ast
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from mmvars.base_configs import SCHEME
from mmvars.errors import InputError, did_you_mean
from mmvars.parsers.configs import parse_args
from mmvars.write import write_bytes

__all__ = ['config_path', 'main', 'resource_root', 'shipped_config', 'shipped_configs']


def resource_root() -> Path:
    """Folder that holds ``configs/`` and ``tools/`` of this installation.

    Returns:
        Absolute path.

    Raises:
        InputError: If the installation has neither ``.mim`` nor a checkout beside it.
    """
    package = Path(__file__).resolve().parent
    for root in (package / '.mim', package.parent):
        if (root / 'configs').is_dir():
            return root
    raise InputError(
        f'the configs of mmvars were not found beside {package}: install it anew with '
        '`pip install --force-reinstall --no-deps mmvars`, or from a full checkout'
    )


def shipped_configs() -> dict[str, Path]:
    """Name below ``configs/`` -> path of every config that can be trained, sorted."""
    root = resource_root() / 'configs'
    paths = sorted(path for path in root.rglob('*.py') if '_base_' not in path.parts)
    return {path.relative_to(root).as_posix(): path for path in paths}


def config_path(name: str) -> Path:
    """The config file that ``name`` means, wherever the command is run.

    A path that exists is taken as it is, with or without ``.py``; else it is the name of a shipped
    config, see :func:`shipped_config`.

    Args:
        name: A path, or the name of a shipped config, alone or after ``mmvars::``.

    Returns:
        Absolute path of an existing file.

    Raises:
        InputError: If there is none, or several shipped ones have that name.
    """
    path = Path(name).expanduser()
    for spelling in _spellings(path):
        if spelling.is_file():
            return spelling.resolve()
    if path.is_absolute():
        raise InputError(f'config {name!r} does not exist')
    return shipped_config(name.removeprefix(SCHEME))


def shipped_config(name: str) -> Path:
    """The shipped config of that name.

    Tried in turn: the path under this installation's root (``configs/x.py``), under its
    ``configs/``, and the one config with that file name. ``.py`` may be left out.

    Raises:
        InputError: If there is none, with those whose names are similar; or if several have it.
    """
    root, spellings = resource_root(), _spellings(Path(name))
    for spelling in spellings:
        for candidate in (root / spelling, root / 'configs' / spelling):
            if candidate.is_file():
                return candidate
    configs = shipped_configs()
    matches = [key for key, path in configs.items() if path.name == spellings[-1].name]
    if len(matches) == 1 and spellings[-1].parent == Path('.'):
        return configs[matches[0]]
    if len(matches) > 1:
        raise InputError(f'config {name!r} could be any of {", ".join(matches)}: give the folder')
    hint = did_you_mean(
        spellings[-1].name, [path.name for path in configs.values()], limit=3, cutoff=0.5
    )
    if name.startswith('timm/'):
        hint += (
            '; a network of timm is no config, but an option of one: give '
            f'dinov2-b14-absvit_linear_2xb8-40k_ade20k-518x518 and --cfg-options arch={name}'
        )
    raise InputError(
        f'config {name!r} does not exist here, nor among the configs of mmvars in '
        f'{root / "configs"}{hint or "; `mmvars configs` lists them"}'
    )


def _spellings(path: Path) -> list[Path]:
    return [path] if path.suffix else [path, path.with_name(f'{path.name}.py')]


def main(argv: Sequence[str] | None = None) -> int:
    """``mmvars configs``: list the shipped configs, or copy them with their bases.

    Raises:
        InputError: If none fits the pattern, or a file is in the way; nothing was copied then.
    """
    args = parse_args(argv)
    configs = shipped_configs()
    names = [
        name
        for name in configs
        if args.pattern in name or fnmatch(name, args.pattern) or fnmatch(name, f'*/{args.pattern}')
    ]
    if not names:
        stems = {Path(name).stem: None for name in configs}
        raise InputError(
            f'no shipped config fits {args.pattern!r}{did_you_mean(args.pattern, stems)} '
            '(`mmvars configs` lists all)'
        )
    if args.copy is None:
        print('\n'.join(names))
        return 0
    root = resource_root() / 'configs'
    files: dict[Path, None] = {}
    for name in names:
        _add_with_bases(configs[name], files)
    targets = {path: args.copy / path.relative_to(root) for path in files}
    for path, target in targets.items():
        if target.exists() and target.read_bytes() != path.read_bytes():
            raise InputError(f'{target} exists and is not what would be copied: give another DIR')
    for path, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(target, path.read_bytes(), overwrite=True)
    print('\n'.join(str(args.copy / name) for name in names))
    return 0


def _add_with_bases(path: Path, files: dict[Path, None]) -> None:
    """Add a config and, in turn, all that it inherits."""
    files[path] = None
    for statement in ast.parse(path.read_text(encoding='utf-8')).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == '_base_':
            bases = ast.literal_eval(statement.value)
            for base in [bases] if isinstance(bases, str) else bases:
                _add_with_bases((path.parent / base).resolve(), files)
