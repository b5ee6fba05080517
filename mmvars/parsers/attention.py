"""``mmvars attention``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import Parser, add_maps, add_measured_data

__all__ = ['MAPS', 'parse_args']

MAPS = 'norms', 'mean', 'class', 'reconstruction', 'weights'

_EPILOG = """\
data (--on):
  osie, mit1003   fixations of people, in --data-root (default: data/osie, data/mit1003), in the
                  published layouts or that of a FOLDER; a wrong layout is answered by the right one
  voc             PASCAL VOC 2012 val (default: data/VOCdevkit/VOC2012)
  lvis            LVIS v1 val (default: data/lvis_v1): its images with two or more categories whose
                  synsets are classes of ImageNet, which are the objects
  test            the labeled test data of a segmentor's config; give --objects: without, all that
                  has a label is an object, and there is no IoU, FP and FN
  FOLDER          images/ with fixations.json {"NAME": [[[x, y], ...], ...]}, a list of points in
                  pixels for each observer; or with masks/NAME.png, 0 the background, 255 unlabeled

maps of a block, each at the patches, then bilinear at the pixels of the file:
  token norms     of the tokens after the block (Figures 2.4 to 2.8)
  mean attention  what the average token looks at: mean over all queries, those of class and
                  register tokens too, and heads of the attention matrix; of VARS, which has none,
                  mean over channels of |d mean_n out / d v|
  class attention what the class token looks at, mean over heads; FAN has blocks of its own for it,
                  which count on from the others
  reconstruction  VARS: norms of P u
  token weights   cosine of the output tokens of the pass before with the prior, at least 0: what
                  the top-down input is made of
  bottom-up is the first pass, top-down the last. Beside them: center, a Gaussian, its standard
  deviation a quarter of each side; random, a uniform number for each patch.

fixations (definitions of pysaliency; mean over the images):
  NSS       mean of the map at the fixations, the map less its mean over its standard deviation
  AUC-Judd  fixated against all other pixels;  sAUC: against the fixations of the other images
  CC, KL, SIM  against the fixations blurred by --sigma
objects:
  IoU, FP, FN  Table 1.4: the map from its minimum to its maximum cut at 0.3, against all objects;
               FP and FN are shares of all pixels; means over the images; "IoU of all": of the
               pixels of all images together
  pointing  whether the maximum is on the object;  mass, rank: share of the map, and of as many
            largest pixels as it has, that is on it
  Jaccard   DINO's: patches that hold 60 % of the mass, the head that is best for the object
  An object is all that an image has of one class; means over all objects. "class prior": the
  pass that was told to look for the object's class; "another class", the control: for one of the
  others, drawn. Priors are those of the network, if it has one for each class, else the rows of a
  classifier. Classes match by name; those of ImageNet have the names of WordNet, zebra.n.01, which
  LVIS has too.

--figure draws DIR/attention.png (Figures 1.4, A.6, A.7): images, fixations or objects, and the maps
beside them, each with what it scores in this image; of several models with --against. Of a model
with class priors the maps under the priors of the three largest objects come after the others.

Results of 20 images at a time are files in DIR/rows: a run that was stopped goes on with the same
command. DIR holds attention.txt, .json, .csv and .md; intervals are a bootstrap over the images.

  mmvars attention work_dirs/run --on osie --data-root osie
  mmvars attention timm/vit_small_patch14_dinov2.lvd142m WEIGHTS.pth --on osie --blocks all
  mmvars attention work_dirs/vars-d --on osie --maps mean --figure 6 --against work_dirs/rvt
  mmvars attention CONFIG CHECKPOINT --on lvis --maps norms --alpha 10 --figure 000000000139.jpg
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Measure where the attention of a vision transformer lies: where people look, '
        'or where objects are. For mmvars, timm, MMPretrain and MMSegmentation.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add_measured_data(parser, 'what to compare with')
    add('--crop', type=int, metavar='PX', help='only the middle of them (default: whole)')
    add_maps(parser)
    add(
        '--drop-first',
        action='store_true',
        help='without the first fixation of each observer, on the cross before the image, as '
        'pysaliency has MIT1003',
    )
    add(
        '--maps',
        nargs='+',
        choices=MAPS,
        help='show only these, see below (default: all; in a figure as many as 8 columns hold)',
    )
    add('--sigma', type=float, metavar='PX', help='default: one degree, or 3 %% of the width')
    add(
        '--definition',
        choices=('pysaliency', 'matlab'),
        default='pysaliency',
        help='of NSS, AUC-Judd and SIM (default: pysaliency)',
    )
    add('--seed', type=int, default=0, metavar='S', help='of the random maps (default: 0)')
    add(
        '--figure',
        nargs='+',
        metavar='N|IMAGE',
        help='also draw as many images, evenly spaced, or those of these names, see above',
    )
    add(
        '--against',
        nargs='+',
        action='append',
        default=[],
        metavar='MODEL',
        help='with --figure: another model beside it, its folder, CONFIG CHECKPOINT, or timm/NAME '
        'WEIGHTS (repeat it for more)',
    )
    add('--out', metavar='DIR', help='for results (default: work_dirs/CONFIG/attention/DATA)')
    return parser.parse_args(argv)
