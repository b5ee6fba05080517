"""Files of timm, and of the authors of its networks, into a trunk of timm."""

from typing import Any

from mmvars.checkpoints.io import read_checkpoint
from mmvars.checkpoints.load import select_weights
from mmvars.checkpoints.report import ConversionReport

__all__ = ['load_timm_file']


def load_timm_file(trunk: Any, source: str | bool) -> None:
    """Fill a :class:`~mmvars.networks.timm_trunk.TimmTrunk`.

    Args:
        trunk: The trunk.
        source: A file as timm or the authors of the network published it; ``True``: timm's own
            weights of the tag in its name.

    Raises:
        InputError: If the file cannot be read, or does not fill the trunk.
    """
    if not isinstance(source, str):
        trunk.load_timm_weights()
        return
    report = ConversionReport(f'{source} into {trunk.name}')
    trunk.load_timm_weights(select_weights(read_checkpoint(source), 'auto', report))
