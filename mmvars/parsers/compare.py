"""``mmvars compare`` and ``tools/compare_runs.py``."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mmvars.parsers.common import CONFIG_HELP, Parser, add_cfg_options

__all__ = ['parse_args']

_EPILOG = """\
examples:
  mmvars compare vit-ti16_upernet_1xb8-400iter_mini-cityscapes-128x256 \\
      --variants configs/absvit/top-down-designs.yml --work-dir work_dirs/designs
  mmvars compare rvt-tiny-p16-vars-sd_1xb96-5k_pacs --variants configs/vars/pacs.yml --test-best
  mmvars compare CONFIG --seeds 0 1 2 3 4 --variant plain \\
      --variant 'mild: model.backbone.alpha=0.5' --variant 'strong: model.backbone.alpha=10'

Stop it with Ctrl-C (or SIGTERM) at any time: the present run saves a checkpoint. The same command
line goes on: finished runs stay, the stopped one is resumed. Variants and seeds may be added.
The table is in DIR/comparison.md and DIR/comparison.json, written anew after every run."""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Train variants of one config with several seeds each, and put mean and spread '
        'of the last validation side by side, or of a test.',
        epilog=_EPILOG,
    )
    parser.add_argument('config', help=CONFIG_HELP)
    parser.add_argument(
        '--variants',
        metavar='FILE',
        help='Python, YAML or JSON config file with variants = {NAME: {KEY: VALUE}}, and '
        'optionally cfg_options for all, columns = {NAME: {KEY: VALUE}}, such as data sets, each '
        'of which every variant is trained with, and published = {ROW: {COLUMN: NUMBER}}',
    )
    parser.add_argument(
        '--variant',
        action='append',
        default=[],
        metavar="'NAME: KEY=VALUE ...'",
        help='one variant (repeat it for more); NAME alone is the config as it is',
    )
    parser.add_argument(
        '--seeds',
        type=int,
        nargs='+',
        default=[0, 1, 2],
        metavar='N',
        help='random seeds, one run each (default: 0 1 2)',
    )
    parser.add_argument(
        '--metric',
        help='of the last validation, as it stands in the log, or of the test (default:'
        ' mIoU for segmentation, accuracy/top1 for classification)',
    )
    parser.add_argument(
        '--test-best',
        action='store_true',
        help='compare on the test data, by the checkpoint of each run that validates best '
        '(save_best of the CheckpointHook)',
    )
    parser.add_argument(
        '--work-dir',
        type=Path,
        metavar='DIR',
        help='folder for runs and table (default: work_dirs/<config name>_compare)',
    )
    add_cfg_options(parser)
    return parser.parse_args(argv)
