"""Whether the numbers of an attack may be believed: four signs of one that failed.

A weak attack looks like a robust model. Masked gradients (rounding, saturation, randomness) are the
usual reason (Athalye et al., 2018; Carlini et al., 2019).
"""

from collections.abc import Mapping

import numpy as np

from mmvars.robustness.protocols import CLEAN, OVERWHELMING, Protocol, Setting
from mmvars.robustness.rows import Rows

__all__ = ['check_attack', 'failed_checks']

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
    # Of the plain loss: others have no gradient where nothing is left to attack.
    shares = rows.read(few)['zero_gradient']
    blind = sum(share == 1 for share in shares)
    growth = np.quantile(values[many][1:] - values[few][1:], 0.025)
    scores = {s: 100 * float(values[s][0]) for s in (CLEAN, *protocol.checks)}
    return [
        (
            'every image has a gradient',
            f'{blind} of {len(shares)} have none',
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


def failed_checks(checks: list[tuple[str, str, bool]]) -> str:
    """What does not hold, in a line; empty where all does."""
    return '; '.join(f'{name}: {found}' for name, found, holds in checks if not holds)
