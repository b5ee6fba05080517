"""``mmvars steerability``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import MODEL_HELP, Parser, add_cfg_options

__all__ = ['parse_args']

_EPILOG = """\
definitions:
  answer      the map of the prompt head (model.prompt_head); of a model without one, the token
              weights. Marked is what is at least 0.5; of all models also "best": at least the one
              threshold that is best for the IoU over all images, chosen on these images.
  asked for   classes with --min-share of an image's pixels whose prior is not zero, at most 8
              (drawn) an image. "True" below is the mask of the class in the labels; pixels without
              a label do not count.
  flip        of all pairs (A, B) of classes asked for in one image: the mean of the map under prior
              A is larger in A's region than in B's, and under prior B larger in B's than in A's.
              Without regard to the prior: 0, by construction. Independent random maps: 25 %.
              Of a classifier ("score"): A's score beats B's under prior A, and B's A's under B;
              "top class": each beats all classes.
  IoU         for each class, sum of the intersections over sum of the unions of all questions for
              it; mean over the classes. Images without the class are no question, so that
              "labels, no prior", the usual segmentation, is higher here than its mIoU. "whole
              image" marks all pixels.
  marked      share of the pixels that the answer marks: falsely, for a class that is absent.
  AUC, share  of a map inside the named region: probability that a pixel inside has more than one
              outside; part of the sum. attention: token norms of the last pass, without a prior of
              the first; "less none": the difference from that, paired over the images. change:
              those of the last over their mean less those of the first over theirs. weights:
              clamped cosines with the prior (the answer without a second pass).
  pairs,      of two or four images, each half or quarter a region, named by a class that has
  squares     --min-share of its pixels and at most a tenth of that of any other. --pair-layout
              square: the middles of two, in one square, as in the authors' demonstration; side:
              both in full. As many as a quarter of the images; of a classifier as many pairs as
              images.
  alpha       one class an image, in the labels under its prior at each alpha: gain (named), IoU of
              the class less that without a prior; loss, mIoU of all classes without a prior less
              that under it, both over the images with a class that is asked for. gain random: of
              the same class under a random prior. gain shuffled: of another class of the image
              under the prior of the first. Of a classifier: flips of pairs; loss of top-1 on one
              image of each pair alone under the prior of an absent class. alpha is absolute;
              default: 0, 0.5, 1, 2, 4 times the model's own. That alone takes no further forward.
  controls    shuffled priors: that of another region of the image. absent class: that of a class
              that is nowhere in it. random prior: a random vector, as long as the priors on
              average. center: the token in the image's middle as a point prompt. no prior.
  [low, high] 95 % bootstrap interval over the images (1000 draws; a class that a draw lacks keeps
              its IoU over all images); n is the number of questions. It says nothing of other seeds
              of the training.

DIR holds steerability.txt, steerability.json (all numbers, from 0 to 1), alpha.png, and of the
first N images of the draw example_N.png, two priors each (Fig. 2.4, 2.5, A.7, A.8), and
example_N_alpha.png, the first of these at each alpha (Fig. 2.8). Older ones are replaced.

  mmvars steerability work_dirs/run --images 50 --against work_dirs/other
  mmvars steerability work_dirs/run --classes car=automobile road=street --text all-MiniLM-L6-v2/
  mmvars steerability ours.py ours.pth --against other.py other.pth --out steerability/designs
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Measure on the test data of a config whether its model follows its prior, '
        'with controls beside every number.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('model', help=MODEL_HELP)
    add('checkpoint', nargs='?', help="of a config, or in place of the folder's")
    add(
        '--against',
        nargs='+',
        action='append',
        default=[],
        metavar='MODEL',
        help='another model for the same questions: its folder, or CONFIG CHECKPOINT (repeat it '
        'for more)',
    )
    add('--images', type=int, metavar='N', help='images to draw (default: all of the test data)')
    add('--seed', type=int, default=0, metavar='S', help='of all that is drawn (default: 0)')
    add('--alpha', type=float, nargs='+', metavar='A', help='of the sweep, see below')
    add(
        '--pair-layout',
        choices=('square', 'side'),
        default='square',
        help='of two images in one (default: square)',
    )
    add(
        '--min-share',
        type=float,
        default=0.01,
        metavar='F',
        help='share of the pixels from which a class is asked for (default: 0.01)',
    )
    add(
        '--prototypes',
        nargs='+',
        metavar='FILE',
        help="class priors of `mmvars prototypes`, in place of the model's own: one file, or one "
        'for each model',
    )
    add(
        '--classes',
        nargs='+',
        default=[],
        metavar='CLASS[=WORDS]',
        help='ask for these alone, against all others; CLASS=WORDS by a text, with --text '
        '(default: all)',
    )
    add('--text', metavar='FOLDER', help='a sentence encoder, for CLASS=WORDS')
    add('--examples', type=int, default=4, metavar='N', help='pictures to draw (default: 4)')
    add(
        '--out',
        default='steerability',
        metavar='DIR',
        help='where text, JSON and pictures are written (default: ./steerability)',
    )
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add_cfg_options(parser)
    return parser.parse_args(argv)
