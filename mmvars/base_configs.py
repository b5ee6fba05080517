"""``_base_ = 'mmvars::absvit/NAME.py'`` in the configs of whoever imports mmvars.

mmengine has a fixed table of packages whose configs may be inherited so, gives all that such a
config builds the scope of its package (where ``type='LoadAnnotations'`` would not be found), and
needs an installed wheel. So its function that finds a base is wrapped, for ``mmvars::`` alone. That
happens when mmengine is imported: importing mmvars imports neither it nor torch.
"""

import sys
from typing import Any

__all__ = ['SCHEME', 'enable']

SCHEME = 'mmvars::'
_MODULE = 'mmengine.config.config'


def enable() -> None:
    """Make mmengine know the scheme: now if it is imported already, else once it is."""
    if module := sys.modules.get(_MODULE):
        _extend(module)
    elif not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder:
    """Finds one module as the others do, and extends it after it has been executed."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        if fullname != _MODULE:
            return None
        from importlib.util import find_spec

        sys.meta_path.remove(self)
        spec = find_spec(fullname)
        loader: Any = spec and spec.loader
        if loader is None:
            return spec
        execute = loader.exec_module

        def exec_module(module: Any) -> None:
            execute(module)
            _extend(module)

        loader.exec_module = exec_module
        return spec


def _extend(module: Any) -> None:
    find = module.Config._get_cfg_path
    if find.__module__ == __name__:
        return

    def find_base(cfg_path: str, filename: str) -> tuple[str, str | None]:
        if not cfg_path.startswith(SCHEME):
            return find(cfg_path, filename)
        from mmvars.resources import shipped_config

        return str(shipped_config(cfg_path.removeprefix(SCHEME))), None

    module.Config._get_cfg_path = staticmethod(find_base)
    _mend_name_of_mmseg()


def _mend_name_of_mmseg() -> None:
    """mmengine of OneDL looks for ``mmseg::`` in a distribution that has another name there."""
    from importlib.metadata import PackageNotFoundError, version

    from mmengine.config.utils import MODULE2PACKAGE

    try:
        version('onedl-mmsegmentation')
    except PackageNotFoundError:
        return
    MODULE2PACKAGE['mmseg'] = 'onedl-mmsegmentation'
