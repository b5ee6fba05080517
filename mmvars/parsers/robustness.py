"""``mmvars robustness`` and ``tools/test_robustness.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import MODEL_HELP, Parser, add_cfg_options, add_launcher

__all__ = ['parse_args']

PROTOCOLS = (
    'quick',
    'segmentation',
    'mmdet',
    'hendrycks',
    'attacks',
    'segmentation-attacks',
    'imagenet-a',
    'imagenet-r',
    'imagenet-sketch',
    'imagenet-v2',
    'acdc',
    'dark-zurich',
    'bdd100k',
)

_EPILOG = """\
protocols (--images, --corruptions, --severities and --seed change them, which the report says):
  quick         five corruptions at severity 3, 100 images, a first look
  segmentation  the 15 corruptions of ImageNet-C at 5 severities, on the image as it is loaded
  mmdet         the same, as P, mPC and rPC of MMDetection
  hendrycks     classifiers: ImageNet-C made on the fly, or with --data FOLDER its archives, which
                hold CORRUPTION/1..5/WNID/IMAGE; mCE by AlexNet's errors
  attacks       FGSM and PGD at 1/255, as in the thesis
  segmentation-attacks
                PGD, SegPGD, CosPGD and the losses of SEA, 20 steps at 1/255 and 4/255, and
                the worst case of each image over them; 100 images

With --data FOLDER, images of another source in place of the config's, which it prepares:
  imagenet-a, imagenet-r, imagenet-sketch, imagenet-v2
                models of ImageNet's 1000 classes; it holds WNID/IMAGE (V2: or 0 to 999). Of -A and
                -R only their 200 classes can be answered; top-1 and top-5
  acdc, dark-zurich, bdd100k
                models of Cityscapes' 19 classes; it holds rgb_anon and gt, or images and labels
Clean images are tested beside them where the test data of the config are there.

Attacks change the pixels that the test pipeline hands to the model, in float32, through both passes
and all windows. Four checks say whether they worked; where one fails, the report says why its
numbers are not to be believed.

A setting is a corruption at a severity, or an attack at an epsilon. Each is a file in DIR/rows,
written when it is done: a run that was stopped goes on with the same command, and several
processes or machines with one DIR share the work. Another model, other data or options start anew
beside them.

Before anything is measured the config is compared with that in the checkpoint, or beside it:
statistics, channel order, steps of the pipeline, classes; then the clean score with that of the
training log. A difference stops the run.

DIR holds robustness.txt, .json, .csv, .md and .html, a page with the images that lose most. Scores
are mIoU or top-1 accuracy; intervals are a bootstrap over the images.

--twins A B: CONFIG is a folder, as the work dir of `mmvars compare`, with the run folders A and B,
or their seeds A/seed_0, ... All are measured by one protocol; DIR/twins.txt has mean and spread
over the seeds of each, and A less B, paired over the images.

  mmvars robustness work_dirs/run
  mmvars robustness CONFIG CHECKPOINT --protocol segmentation --out robustness/ours
  mmvars robustness CONFIG --protocol segmentation --write cityscapes-c
  mmvars robustness OTHER.py OTHER.pth --protocol segmentation --against robustness/ours
  mmvars robustness CONFIG CHECKPOINT --protocol acdc --data data/acdc
  mmvars robustness work_dirs/comparison --twins absvit vit
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Measure how robust a segmentor or classifier is, of any config of '
        'MMSegmentation or MMPretrain.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=MODEL_HELP)
    add('checkpoint', nargs='?', help="of a config, or in place of the folder's")
    add('--protocol', choices=PROTOCOLS, default='quick', help='see below (default: quick)')
    add('--data', metavar='FOLDER', help='images of another source, see below')
    add('--corruptions', nargs='+', metavar='NAME', help="these, in place of the protocol's")
    add('--severities', nargs='+', type=int, metavar='N', help="1 to 5, in place of the protocol's")
    add('--attacks', nargs='+', metavar='NAME', help="these, in place of the protocol's")
    add('--epsilons', nargs='+', type=float, metavar='E', help='of attacks, in 1/255 of pixels')
    add('--images', type=int, metavar='N', help='as many, evenly spaced in the test data')
    add('--seed', type=int, metavar='S', help='of the random numbers (default: 0)')
    add('--against', metavar='DIR', help='a finished run: differences, paired over the images')
    add(
        '--twins',
        nargs=2,
        metavar=('A', 'B'),
        help='measure the runs A and B below the folder CONFIG, all seeds of each, and compare',
    )
    add('--ignore-mismatch', action='store_true', help='go on where the config differs, see below')
    add(
        '--reliability',
        action='store_true',
        help='segmentors: calibration of pixels too, and how well confidence finds the wrong ones',
    )
    add('--write', metavar='FOLDER', help='store the corrupted images there; no model is tested')
    add('--out', metavar='DIR', help='for results (default: work_dirs/CONFIG/robustness)')
    add_cfg_options(parser)
    add_launcher(parser)
    return parser.parse_args(argv)
