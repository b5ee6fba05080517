"""``mmvars probe``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser, add_measured_data

__all__ = ['parse_args']

_EPILOG = """\
One linear map with a bias, from a bottom-up token (patch embedding and position, the input of the
first block) to the RGB pixels of its patch, is fitted to every second image of --on by ridge
regression in closed form; a tenth of them chooses the ridge. On the other images it decodes the
bottom-up tokens, the top-down input of the first block, and their sum.

data (--on):
  voc             PASCAL VOC 2012 val (default: data/VOCdevkit/VOC2012)
  test            the labeled test data of a segmentor's config; give --objects
  FOLDER          images/ with masks/NAME.png, 0 the background, 255 unlabeled

numbers, inside of an object and outside, all that an image has of one class being an object:
  R2   one less the squared error over that of the mean patch, sums over all objects
  r    correlation of decoded image and image, each channel less its mean in the region; mean over
       the objects. What is added to all patches alike moves R2 by far, and r little
  r in - out   Objects and what surrounds them differ in detail, so look at the controls too:
       another class, random prior: the prior of another class, a random vector
       shuffled: the top-down input of the prior, its patches in random order
  class prior: the object's, of a network with a prior for each class; own prior: of a network with
  one for all, or none. Of a network without priors of classes, object prior: what its mask asks by,
  the mean output token of the first pass in it; its control, the prior of the rest of the image.

Results of 20 images at a time are files in DIR/rows: a run that was stopped goes on with the same
command. DIR holds probe.txt, .json, .csv, .md and .png; intervals are a bootstrap over the images.

  mmvars probe work_dirs/run --on test --objects car person
  mmvars probe timm/vit_small_patch14_dinov2.lvd142m WEIGHTS.pth --on voc --images 200
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Generative probing (Fig. 2.9): what of an image can be decoded from the '
        'bottom-up and top-down input of the first block. For mmvars and timm.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add_measured_data(parser, 'images with masks')
    add(
        '--after-norm',
        action='store_true',
        help="bottom-up tokens after the first block's norm, where AbSViT adds its top-down input "
        '(default: before it, as in the thesis)',
    )
    add('--examples', type=int, default=4, metavar='N', help='rows of the picture (default: 4)')
    add('--seed', type=int, default=0, metavar='S', help='of the controls (default: 0)')
    add('--out', metavar='DIR', help='for results (default: work_dirs/CONFIG/probe/DATA)')
    return parser.parse_args(argv)
