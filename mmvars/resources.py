"""Find the configs and tools that belong to this installation.

A wheel carries them in ``mmvars/.mim/``; an editable install or a plain checkout has them beside
the package. Nothing here imports torch or OpenMMLab.
"""

from pathlib import Path

from mmvars.errors import InputError, did_you_mean

__all__ = ['config_path', 'resource_root']


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


def config_path(name: str) -> Path:
    """The config file that ``name`` means, wherever the command is run.

    Tried in turn: the path as it is; the same under this installation's root (so that
    ``configs/x.py`` works from any folder) and under its ``configs/``; the one shipped config with
    that file name. ``.py`` may be left out.

    Args:
        name: A path, or the name of a shipped config.

    Returns:
        Absolute path of an existing file.

    Raises:
        InputError: If there is none, with the shipped configs whose names are similar; or if
            several shipped configs have that name.
    """
    path = Path(name).expanduser()
    spellings = [path] if path.suffix else [path, path.with_name(f'{path.name}.py')]
    for spelling in spellings:
        if spelling.is_file():
            return spelling.resolve()
    if path.is_absolute():
        raise InputError(f'config {name!r} does not exist')
    root = resource_root()
    for spelling in spellings:
        for candidate in (root / spelling, root / 'configs' / spelling):
            if candidate.is_file():
                return candidate
    shipped = sorted(p for p in (root / 'configs').rglob('*.py') if '_base_' not in p.parts)
    matches = [p for p in shipped if p.name == spellings[-1].name]
    if len(matches) == 1 and path.parent == Path('.'):
        return matches[0]
    if len(matches) > 1:
        raise InputError(
            f'config {name!r} could be any of '
            f'{", ".join(str(p.relative_to(root)) for p in matches)}: give the folder'
        )
    hint = did_you_mean(spellings[-1].name, [p.name for p in shipped], limit=3, cutoff=0.5)
    raise InputError(
        f'config {name!r} does not exist here, nor among the configs of mmvars in '
        f'{root / "configs"}{hint}'
    )
