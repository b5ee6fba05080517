"""CPU seconds of the corruptions of mmvars, and of imagecorruptions where that is installed.

    python tools/benchmark/corruptions.py --sizes 512x1024 1024x2048

Both corrupt the same photograph in one process in turns; the least time of the rounds counts. They
are kept to one thread. imagecorruptions 1.1.2 needs an old NumPy; its fork imagecorruptions-imaug
goes by the same name and runs with the new one.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from mmvars.data import photos_root
from mmvars.errors import InputError
from mmvars.robustness import CORRUPTIONS, STANDARD, corrupt

try:
    from imagecorruptions import corrupt as other
except ImportError:
    other = None


def cpu_seconds(call: Callable, *args) -> float:
    start = time.process_time()
    call(*args)
    return time.process_time() - start


def compare(height: int, width: int, severity: int, rounds: int) -> None:
    """Print a row for each corruption at one size, and the sums over the 15 and over all."""
    photo = cv2.imread(str(min(Path(photos_root(), 'images', 'train').iterdir())))[..., ::-1]
    image = cv2.resize(photo, (width, height), interpolation=cv2.INTER_CUBIC)
    small = np.ascontiguousarray(image[:64, :64])
    calls = [corrupt] if other is None else [corrupt, lambda x, name, s: other(x, s, name)]
    times = {}
    for name in CORRUPTIONS:
        for call in calls:
            call(small, name, severity)  # what is loaded or compiled once
        seconds = [[cpu_seconds(c, image, name, severity) for c in calls] for _ in range(rounds)]
        times[name] = np.min(seconds, axis=0)
    times['sum of the 15'] = sum(times[name] for name in STANDARD)
    times['sum of all 19'] = sum(times[name] for name in CORRUPTIONS)
    print(f'\n{height} x {width}, severity {severity}, CPU seconds')
    print(f'{"":18} mmvars' + ('' if other is None else '  other  ratio'))
    for name, (ours, *theirs) in times.items():
        print(f'{name:18} {ours:6.3f}' + ''.join(f' {t:6.3f} {t / ours:6.1f}' for t in theirs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--sizes', nargs='+', default=['512x1024', '1024x2048'], metavar='HxW')
    parser.add_argument('--severity', type=int, default=3, choices=range(1, 6))
    parser.add_argument('--rounds', type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    for size in args.sizes:
        try:
            height, width = map(int, size.split('x'))
        except ValueError:
            parser.error(f'--sizes must be like 512x1024, got {size!r}')
        try:
            compare(height, width, args.severity, args.rounds)
        except InputError as error:
            parser.error(str(error))


if __name__ == '__main__':
    main()
