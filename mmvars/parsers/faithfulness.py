"""``mmvars faithfulness``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import MODEL_HELP, Parser, add_cfg_options, add_maps

__all__ = ['parse_args']

_EPILOG = """\
The patches of each test image are put in the order of a map, largest value first. Deletion removes
them in this order, insertion puts them in this order into an image from which all are removed, and
the whole model predicts each of these images as in `mmvars test`. Ties are broken at random.

scores of a segmentor, each deletion, insertion and gain, curves by their mean over the fractions:
  mIoU, kept pixels   the primary one: mIoU of the pixels that are not removed, as a share of that
                      of the prediction for the whole image on the same pixels: whether what is
                      removed was evidence for the rest. Not of the one fraction that keeps none
  mIoU, all pixels    the usual one; it falls mostly since a removed pixel is itself gone, and a map
                      that marks rare classes looks faithful by it
  agreement           share of the pixels (kept; all) with the class of the whole image
  class priors        IoU of a class, order by the pass that looks for it, of images that have it
  mIoU is the mean over the classes that the labels have, the same at each fraction.
scores of a classifier: probability of the class that the whole image has; top-1 accuracy
  gain           insertion less deletion: 0 on average of random orders, whatever the removal does;
                 not of shapes: a compact rest is easier than a scattered one, see center
  over shifted   gain less that of the same map moved around the edges by a random offset, which
                 removes the same shapes at other places

Maps are those of `mmvars attention` (--help there). Beside them: center, by the distance from it;
random, three draws. The inverse order of a map has its deletion and insertion exchanged, and the
gain with the other sign: its deletion is the map's insertion, read from 100 % to 0.

--fill: removed pixels are the mean color of the image, or the image blurred by a Gaussian of one
patch. RISE deletes to gray and inserts into blur. Here the default is the mean color for both: a
segmentor still tells some classes by the colors that blur leaves, and these are evidence too.

An image needs up to 2 + 4 F (4 + 2 M + 2 K) predictions: F of --fractions, M maps, and K maps of
the priors of all classes that it has. A street scene with 10 classes and a prior for each needs
some 1,100 at F = 3, which take minutes: the first image says how many, then how long all will take.
One fraction, fewer --classes or --blocks need less.

Results of each image are a file in DIR/rows: a run that was stopped goes on with the same command.
DIR holds faithfulness.txt, .json, .csv, .md and .png, and faithfulness_curves.csv; intervals are a
bootstrap over the images.

  mmvars faithfulness work_dirs/run --images 25
  mmvars faithfulness CONFIG CHECKPOINT --blocks 9 --fill blur
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Measure whether a segmentor or classifier needs what its attention marks: '
        'deletion and insertion of patches, on its test data. For mmvars, timm and MMPretrain.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=MODEL_HELP)
    add('checkpoint', nargs='?', help="of a config, or in place of the folder's")
    add('--images', type=int, metavar='N', help='as many, evenly spaced in the test data')
    add_maps(parser)
    add(
        '--classes',
        nargs='+',
        metavar='CLASS',
        help='class priors: only of these (default: all that an image has)',
    )
    add(
        '--fractions',
        nargs='+',
        type=float,
        default=[10, 20, 40],
        metavar='P',
        help='percent of the patches, below 50; 0, 100 and 100 less each are measured too '
        '(default: 10 20 40)',
    )
    add('--fill', choices=('mean', 'blur'), default='mean', help='see below (default: mean)')
    add('--seed', type=int, default=0, metavar='S', help='of the controls (default: 0)')
    add('--out', metavar='DIR', help='for results (default: work_dirs/CONFIG/faithfulness)')
    add_cfg_options(parser)
    return parser.parse_args(argv)
