"""``mmvars visualize`` and ``tools/visualize_attention.py``."""

import argparse
from collections.abc import Sequence

from mmvars.parsers.common import (
    MODEL_HELP,
    PRIOR_HELP,
    Parser,
    add_cfg_options,
    add_prior_arguments,
)

__all__ = ['parse_args']

_EPILOG = f"""\
IMAGE_attention.png is written for each image: input | bottom-up attention (token norms of pass 1) |
token mask | top-down attention (token norms of pass 2) | ground truth, where the image is one of
the config's test data | prediction of pass 2. Each combination of prior and alpha is a row, under
one with what depends on neither. Models without feedback (ViT, RVT, VARS, FAN, GFNet) have one
pass, so neither mask nor top-down attention. perceiver_io has one pass too: drawn are its output
tokens before and after the mask; feedback has no mask and takes no --prior; mask_attention no
--alpha.

--pair LEFT RIGHT puts two photos side by side (Fig. 2.4, 2.5, 2.8): give the class of the left one
and that of the right one as --prior. On every map stand the shares of its sum (of what is above
--threshold) on each half, that of the prior's photo in bold; they are printed too, and written with
--json. The prior should be in the space of the patch tokens, as the prototypes of a model with
average pooling are (absvit-tiny-p8-gap); those of a class-token model hardly are.

--steps also writes IMAGE_steps.png, how attention comes about in a block of VARS (Fig. 1.5): the
map after the start and each recurrent step is |P u|, the norm over the channels of what the code u
of that step reconstructs at each patch. Above each map: the share of code entries of at most 1% of
the largest, and the energy of Eq. 1.10 over that of a code of zeros. --atoms also writes
IMAGE_atoms.png, the atoms P_m that the last code uses most (Fig. A.2-A.4), by their share of the
code energy sum_m |P_m|^2 |u_m|^2: masks on the image (vars_d, vars_sd), or filters, used at every
place, origin in the middle (vars_s). Those of softmax attention and the Performer (Fig. 2.2 a) are
the columns of Phi(K), positive random features of the keys, of unit length, by their share of the
code P'v: the Performer's own, 64 a head drawn for softmax attention, without what a network adds to
its logits. They have no steps.

--corrupt writes IMAGE_corruptions.png instead (Fig. 1.3, A.5): the clean image and each corruption
are rows, the maps of each model columns, in one range of colors a model. The pixels are those of
`mmvars robustness`. The maps are token norms and the token mask; with --average-attention, the map
that all mixers have, or --class-attention, these alone.

A network of timm is the option arch of a config, here with the checkpoint that it was trained to,
head included; `mmvars attention timm/NAME WEIGHTS --figure N` draws one that has no head.

{PRIOR_HELP}Several make a row of panels each; the default is the learned query. Points,
boxes and masks are places in each image, so that --pair takes none.

  mmvars visualize work_dirs/run photo.jpg --alpha 1 5 10
  mmvars visualize CONFIG CHECKPOINT photos/ --prior "class:golden retriever" class:281 --alpha 10
  mmvars visualize CONFIG CHECKPOINT photo.jpg --steps --atoms 8 --layer 0
  mmvars visualize dinov2-b14-absvit_linear_2xb8-40k_ade20k-518x518 CHECKPOINT photo.jpg \\
      --cfg-options arch=timm/vit_small_patch14_dinov2.lvd142m
  mmvars visualize CONFIG CHECKPOINT --pair cat.jpg dog.jpg --prior class:tabby class:pug \\
      --alpha 1 5 10 --threshold 0.7 --json shares.json
  mmvars visualize work_dirs/rvt photos/ --against work_dirs/vars-d --against work_dirs/vars-sd \\
      --average-attention --corrupt gaussian_noise defocus_blur jpeg_compression snow
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(
        description='Draw what bottom-up and top-down attention look at, on images of your own.',
        epilog=_EPILOG,
    )
    add = parser.add_argument
    add('config', help=MODEL_HELP)
    add('checkpoint', nargs='?', help="of a config (trained here, or converted); or the folder's")
    add('images', nargs='*', help='image files, or folders of them')
    add(
        '--pair',
        nargs=2,
        metavar=('LEFT', 'RIGHT'),
        help='instead of images: two photos, drawn side by side as one',
    )
    add_prior_arguments(parser)
    add(
        '--alpha',
        nargs='+',
        metavar='A',
        help="scale of the top-down signal (default: the model's own, usually 1; the thesis uses "
        '10 for scenes with several objects); several values make a row of panels each',
    )
    add(
        '--layer',
        type=int,
        metavar='I',
        help='block whose output tokens (and steps and atoms) are drawn, 0-based, negative from '
        'the end; default: the last but three (block 8 of 0..11), where the authors look',
    )
    add(
        '--steps',
        action='store_true',
        help='also draw the attention map after each recurrent step of VARS',
    )
    add(
        '--atoms',
        type=int,
        metavar='K',
        help='also draw the K most used atoms of the dictionary of VARS (of the dynamic and of the '
        'static one, where there are two), or of the keys of attention',
    )
    add(
        '--per-head',
        action='store_true',
        help='with --atoms: the K most used of each head, instead of all heads',
    )
    add(
        '--limits',
        choices=('relative', 'shared', 'own'),
        default='relative',
        help='ranges of the colors: relative (default) draws each map over its own mean, all of a '
        'kind (passes, rows, steps) in one range, so that a sharper map has a higher peak; shared '
        'draws the norms themselves in one range; own each map in its own range',
    )
    add(
        '--threshold',
        type=float,
        metavar='F',
        help="draw only what is above min + F (max - min) of a map; the authors' demonstration of "
        'controllable attention uses 0.7',
    )
    add(
        '--class-attention',
        action='store_true',
        help='also draw what the class token attends to in the last block',
    )
    add(
        '--average-attention',
        action='store_true',
        help='also draw what the average token attends to in the block: the mean of all rows of '
        'the attention matrix, over all heads; of VARS, which has none, how much a change of each '
        'token changes the output',
    )
    add(
        '--difference',
        action='store_true',
        help='also draw what the last pass added to, or took from, the norms of pass 1',
    )
    add(
        '--corrupt',
        nargs='+',
        metavar='NAME',
        help='draw what the model attends to in the image and under each of these corruptions of '
        'ImageNet-C, see below',
    )
    add('--severity', type=int, metavar='N', help='of --corrupt, 1 to 5 (default: 3)')
    add(
        '--against',
        nargs='+',
        action='append',
        default=[],
        metavar='MODEL',
        help='with --corrupt: another model beside it, its folder, or CONFIG CHECKPOINT (repeat it '
        'for more)',
    )
    add(
        '--strength',
        type=float,
        default=0.7,
        metavar='S',
        help="share of the map's colors in the overlay, 0 to 1 (default 0.7)",
    )
    add(
        '--out-dir',
        default='attention',
        metavar='DIR',
        help='where the pictures are written (default: ./attention); older ones of the same names '
        'are replaced',
    )
    add(
        '--format',
        choices=('png', 'pdf', 'svg'),
        default='png',
        help='of the pictures (default: png)',
    )
    add(
        '--panels',
        metavar='DIR',
        help='also write every panel alone to DIR, in the pixels of the network input, without '
        'title, color bar and legend',
    )
    add(
        '--json',
        metavar='FILE',
        help='with --pair: also write the shares of the halves, and the probabilities of the '
        'classes of --prior, to FILE',
    )
    add('--overwrite', action='store_true', help='replace FILE')
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add_cfg_options(parser)
    # Intermixed, so that images may stand after options although there need not be any.
    return parser.parse_intermixed_args(argv)
