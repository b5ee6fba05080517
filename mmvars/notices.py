"""Notices of other packages that say nothing to the user of a working installation.

Each is known by its text; all other warnings and messages stay.
"""

import warnings
from typing import Any

__all__ = ['NOTICES', 'leave_out_notices']

NOTICES = (
    # mmcv without compiled ops, which nothing in mmvars needs
    'Fail to import ``MultiScaleDeformableAttention``',
    # a switched-off hook of the config, and the loss as MMSegmentation's configs have it
    'The draw is False, it means that the hook for visualization will not take effect',
    'Default ``avg_non_ignore`` is False, if you would like to ignore the certain label',
    # torch 2.4, of a module that mmengine 0.10.7 imports
    '`TorchScript` support for functional optimizers is deprecated',
)
_PRINTED = 'Could not import OneDL'  # a client of a company's data service


def leave_out_notices() -> None:
    """Leave them out from here on; for the commands, not for programs that import mmvars."""
    show = warnings.showwarning
    if show.__module__ == __name__:
        return

    def show_others(message: Any, *args: Any, **kwargs: Any) -> None:
        if not str(message).startswith(NOTICES):
            show(message, *args, **kwargs)

    warnings.showwarning = show_others  # no filter: torch has one of its own around its notice
    import mmengine.logging  # may bring notices itself

    print_log = mmengine.logging.print_log

    def print_others(msg: Any, *args: Any, **kwargs: Any) -> None:
        if msg != _PRINTED:
            print_log(msg, *args, **kwargs)

    mmengine.logging.print_log = print_others
