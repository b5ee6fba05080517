"""``mmvars ask``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import MODEL_HELP, Parser, add_cfg_options

__all__ = ['parse_args']

_EPILOG = """\
A picture of each image has a row for each question: what the class token looks at in the last block
before the question is known (bottom-up), the token weights (cosine of the output tokens of pass 1
with the prior that the question makes), what the class token looks at then (top-down), and the
likeliest answers (Figure 2.6). A model of retrieval is given captions in place of questions, and
scores them.

With --vqa-hat: Spearman's rank correlation, at 14x14 places, of these maps with those of people who
answered the same questions. Beside them: center, a Gaussian; random; "another question", the
control: the top-down map that another question makes (of the same image where there is one); "other
people": the map of each person against the mean of the others. Means over the questions.

  mmvars ask work_dirs/run photo.jpg --question "What is on the left?" "Who wears a hat?"
  mmvars ask work_dirs/run --vqa-hat data/vqa-hat
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Ask a METER about images: answers, and where each question makes it look.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=MODEL_HELP)
    add('checkpoint', nargs='?', help="of a config, or in place of the folder's")
    add('images', nargs='*', help='images, or folders of them')
    add('--question', nargs='+', metavar='TEXT', help='what to ask of each image')
    add('--vqa-hat', metavar='DIR', help='measure against the maps of people, in place of images')
    add(
        '--questions',
        type=int,
        metavar='N',
        help='of --vqa-hat: as many, evenly spaced (default: all)',
    )
    add(
        '--threshold',
        type=float,
        default=0.5,
        metavar='T',
        help='attention below this part of its range is not drawn (default: 0.5, as in Figure 2.6)',
    )
    add('--seed', type=int, default=0, metavar='N', help='of random maps (default: 0)')
    add(
        '-o',
        '--out',
        metavar='DIR',
        help='for answers.json and pictures (default: work_dirs/NAME/ask)',
    )
    add('--device', metavar='DEVICE', help="such as cuda:1 (default: CUDA's, if there is one)")
    add_cfg_options(parser)
    return parser.parse_args(argv)
