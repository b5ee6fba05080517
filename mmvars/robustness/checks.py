"""Whether the numbers of an attack may be believed: four signs of one that failed.

A weak attack looks like a robust model. Masked gradients (rounding, saturation, randomness) are the
usual reason (Athalye et al., 2018; Carlini et al., 2019).
"""

from collections.abc import Mapping

import numpy as np

from mmvars.robustness.protocols import CLEAN, OVERWHELMING, Protocol, Setting
from mmvars.robustness.rows import Rows

__all__ = ['check_attack']

_LEFT = 0.1  # of the clean score, where an epsilon is overwhelming


def check_attack(
    protocol: Protocol, rows: Rows, values: Mapping[Setting, np.ndarray]
) -> list[tuple[str, str, bool]]:
    """Check the attacks of a complete table.

    Args:
        protocol: Of attacks.
        rows: Its rows.
        values: Score of each setting, over all images and in each draw of the bootstrap.

    Returns:
        What must hold, what was found, and whether it holds.
    """
    noise, few, many, overwhelming = protocol.checks
    at = f'at {few.level:g}/255'
    blind, images = 0, len(rows.identity(CLEAN)['images'])
    for setting in protocol.settings:
        shares = [s for s in rows.read(setting).get('zero_gradient', ()) if s is not None]
        blind = max(blind, sum(share == 1 for share in shares))
    growth = np.quantile(values[many][1:] - values[few][1:], 0.025)
    scores = {s: 100 * float(values[s][0]) for s in (CLEAN, *protocol.checks)}
    return [
        (
            'every image has a gradient',
            f'{blind} of {images} have none in some attack',
            blind == 0,
        ),
        (
            f'more steps do not help the model ({at})',
            f'{scores[few]:.2f} after 5 steps, {scores[many]:.2f} after 20',
            bool(growth <= 0),
        ),
        (
            f'{OVERWHELMING}/255 leave nearly nothing ({overwhelming.change})',
            f'{scores[overwhelming]:.2f} of {scores[CLEAN]:.2f}',
            scores[overwhelming] <= _LEFT * scores[CLEAN],
        ),
        (
            f'noise is weaker than PGD ({at})',
            f'{scores[noise]:.2f} under noise, {scores[few]:.2f} under PGD',
            scores[noise] > scores[few],
        ),
    ]
