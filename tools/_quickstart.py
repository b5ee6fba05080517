"""The part of quickstart.sh that comes after the set-up: train, test, draw, sum up."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mmvars.data import mini_root
from mmvars.parsers.common import Parser
from mmvars.write import write_text

ROOT = Path(__file__).resolve().parents[1]
CONFIG = 'configs/absvit/absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256.py'
ITERATIONS = 160
IGNORED = 255
PROGRESS = re.compile(
    r'Iter\((train|val|test)\) +\[ *(\d+)/(\d+)\](?:.*?eta: (\S+))?'
    r'(?:.*?loss: (\S+))?(?:.*?(mIoU: \S+))?'
)


def main() -> int:
    """Run all steps; returns the exit status."""
    parser = Parser('Train a small model on the embedded scenes, test it and draw its attention.')
    parser.add_argument('output', nargs='?', type=Path, default=ROOT / 'quickstart_output')
    out = new_folder(parser.parse_args().output)
    log = out / 'log.txt'
    started = time.monotonic()
    checkpoint = out / 'training' / f'iter_{ITERATIONS}.pth'
    root = Path(mini_root('cityscapes'))
    images = sorted(map(str, (root / 'leftImg8bit' / 'val').glob('*/*.png')))[:6]
    steps = [
        (
            f'Training AbSViT-Ti + UperNet + FCN for {ITERATIONS} iterations',
            'train.py',
            CONFIG,
            '--work-dir',
            out / 'training',
            '--cfg-options',
            f'max_iters={ITERATIONS}',
            f'train_cfg.val_interval={ITERATIONS // 2}',
            'default_hooks.logger.interval=5',
        ),
        (
            'Testing it',
            'test.py',
            CONFIG,
            checkpoint,
            '--work-dir',
            out / 'testing',
            '--out',
            out / 'predictions',
            '--show-dir',
            out / 'pictures',
        ),
        (
            'Drawing its attention',
            'visualize_attention.py',
            CONFIG,
            checkpoint,
            *images,
            '--out-dir',
            out / 'attention',
        ),
    ]
    for number, (title, tool, *arguments) in enumerate(steps, 1):
        print(f'\n==> [{number}/{len(steps)}] {title}', flush=True)
        status = run([sys.executable, ROOT / 'tools' / tool, *arguments], log)
        if status:
            print(f'\n{tool} failed with status {status}; its output is in {log}', file=sys.stderr)
            return status
    summary = summarize(log.read_text(), labels_of(root))
    write_text(out / 'results.txt', summary)
    print(
        f'\n{summary}\nThis took {(time.monotonic() - started) / 60:.1f} minutes. In {out}:\n'
        '  results.txt   the table above\n'
        '  attention/    input, bottom-up attention, token mask, top-down attention, prediction\n'
        '  pictures/     labels and predictions over the images\n'
        '  predictions/  predicted label maps, as Cityscapes numbers its training classes\n'
        '  training/     checkpoints and logs\n'
        'The scenes are synthetic and few: this shows that all works, not how well.'
    )
    return 0


def new_folder(wanted: Path) -> Path:
    """Make ``wanted``, or the first of ``wanted-2``, ``wanted-3``, ... that does not exist."""
    number, folder = 1, wanted
    while folder.exists():
        number += 1
        folder = wanted.with_name(f'{wanted.name}-{number}')
    folder.mkdir(parents=True)
    return folder.resolve()


def run(command: list, log: Path) -> int:
    """Run a tool in the checkout; its output goes to the log, its progress to the terminal."""
    on_terminal = sys.stdout.isatty()
    process = subprocess.Popen(
        [str(word) for word in command],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    tail: list[str] = []
    with log.open('a') as file:
        for line in process.stdout:
            file.write(line)
            tail = [*tail[-14:], line]
            shown = progress(line)
            if shown:
                print(
                    f'\r{shown:<76}' if on_terminal else shown,
                    end='' if on_terminal else '\n',
                    flush=True,
                )
    if on_terminal:
        print()
    status = process.wait()
    if status:
        sys.stderr.write(''.join(tail))
    return status


def progress(line: str) -> str | None:
    """One short line for the terminal, or None."""
    if ' -> ' in line and line.startswith('['):
        return f'    {line.split(" -> ")[0].split("]")[0]}]'
    found = PROGRESS.search(line)
    if not found:
        return None
    stage, done, total, eta, loss, score = found.groups()
    parts = [f'    {stage} {done}/{total}', eta and f'{eta} left', loss and f'loss {loss}', score]
    return '  '.join(part for part in parts if part)


def labels_of(root: Path) -> Iterator[np.ndarray]:
    """Label maps of the validation scenes as the metric sees them: classes from 0, 255 ignored."""
    for path in sorted((root / 'gtFine' / 'val').glob('*/*_labelTrainIds.png')):
        yield np.asarray(Image.open(path))


def constant_level(labels: Iterator[np.ndarray]) -> float:
    """mIoU in percent of predicting the most frequent class everywhere.

    Its IoU is its share of the labeled pixels; that of every other class that occurs is 0.
    """
    counts = sum(np.bincount(label[label != IGNORED], minlength=256) for label in labels)
    return 100 * counts.max() / counts.sum() / np.count_nonzero(counts)


def summarize(log: str, labels: Iterator[np.ndarray]) -> str:
    """The test's table of classes that occur, its mIoU, and the level of a constant answer."""
    test = log[log.rindex('per class results:') :]
    rows = [row for row in test.splitlines() if row.startswith('|') and row.count('nan') < 2]
    score = float(re.search(r'mIoU: ([\d.]+)', test)[1])
    return '\n'.join(
        [
            *rows,
            '',
            f'mIoU reached: {score:.2f}',
            'always-background level (the most frequent class everywhere): '
            f'{constant_level(labels):.2f}',
            '',
        ]
    )


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the tool that ran got it too, and ends by itself
        sys.exit('\nstopped by Ctrl-C')
