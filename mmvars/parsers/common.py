"""The parser of all commands, and the arguments that several of them have."""

import argparse
import re
from pathlib import Path
from typing import NoReturn

from mmvars.errors import did_you_mean

__all__ = [
    'MODEL_HELP',
    'PRIOR_HELP',
    'Parser',
    'add_cfg_options',
    'add_common_arguments',
    'add_json_arguments',
    'add_launcher',
    'add_maps',
    'add_measured_data',
    'add_prior_arguments',
    'image_size',
]

CONFIG_HELP = 'config file, or the name of one that mmvars ships'
MODEL_HELP = f'folder that `mmvars train` wrote; or a {CONFIG_HELP}'
PRIOR_HELP = """\
What --prior takes:
  class:NAME class:NUMBER   a class
  point:X,Y[,X,Y...]        what is there, in pixels from the left and the top
  box:X0,Y0,X1,Y1           what is in the box
  mask:FILE                 what is marked: an image of 0 and 1 (or 255), of the same size
  example:IMAGE             what another image shows; example:IMAGE@X0,Y0,X1,Y1: a box in it
  file:PATH file:PATH:ROW   a tensor of width C (.pt, .npy), or a row of a (K, C) tensor or of the
                            classifier in a checkpoint
  text:WORDS                words, with --text
  query                     the learned query;  none: no prior, beside others
"""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line, with the option or choice that was probably meant."""

    def __init__(self, description: str, epilog: str | None = None) -> None:
        formatter = argparse.RawDescriptionHelpFormatter if epilog else argparse.HelpFormatter
        super().__init__(description=description, epilog=epilog, formatter_class=formatter)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        hint = ''
        options = [option for action in self._actions for option in action.option_strings]
        if choice := re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message):
            hint = did_you_mean(choice[1], re.findall(r'[\w.+-]+', choice[2]))
        elif unknown := re.search('unrecognized arguments:.*?(--[^ =]+)', message):
            hint = did_you_mean(unknown[1], options)
        self.exit(2, f'{self.prog}: error: {message}{hint} (`{self.prog} --help` lists all)\n')


def add_maps(parser: argparse.ArgumentParser) -> None:
    """Add which maps of a model ``mmvars attention`` and ``faithfulness`` take."""
    add = parser.add_argument
    add(
        '--blocks',
        nargs='+',
        default=['default'],
        metavar='N',
        help='from 0, negative from the end, or "all" (default: the last but three)',
    )
    add('--steps', action='store_true', help='VARS: the maps of each recurrent step too')


def add_measured_data(parser: argparse.ArgumentParser, on: str) -> None:
    """Add a model and the images on which ``mmvars attention`` and ``probe`` measure it.

    Args:
        parser: To which they are added.
        on: What ``--on`` is for.
    """
    add = parser.add_argument
    add('config', help=f"{MODEL_HELP}; or timm/NAME, a network by timm's name")
    add('checkpoint', nargs='?', help="of a config, or in place of the folder's")
    add('--on', required=True, metavar='DATA', help=f'{on}, see below')
    add(
        '--objects',
        nargs='+',
        metavar='CLASS',
        help='of masks: only these are objects, all else is background; of a FOLDER, whose classes '
        'have no names, numbers of labels',
    )
    add('--data-root', metavar='DIR', help='where the data are that --on names')
    add('--images', type=int, metavar='N', help='as many, evenly spaced in the data')
    add('--size', type=int, default=256, metavar='PX', help='short side of images (default: 256)')
    add('--alpha', type=float, metavar='A', help='scale of the top-down input (default: its own)')
    add('--device', help='cpu, cuda, cuda:1, ... (default: cuda if there is one)')
    add_cfg_options(parser)


def add_prior_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--prior``, which :data:`PRIOR_HELP` explains, and what it may need."""
    add = parser.add_argument
    add('--prior', nargs='+', metavar='PRIOR', help='what to look for, see below')
    add('--prototypes', metavar='FILE', help='of `mmvars prototypes`: the classes of class:NAME')
    add('--text', metavar='FOLDER', help='a sentence encoder, for text:WORDS')


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options``; :func:`mmvars.engine.options.parse_cfg_options` reads its words."""
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action='extend',
        type=_key_value,
        metavar='KEY=VALUE',
        help='override settings of the config, such as '
        'train_dataloader.batch_size=4; lists are written "[a,b]" or a,b without '
        'spaces. Shorthands that set all that depends on them: data_root, num_classes, target, '
        'split_seed, crop_size, img_scale, arch, mixer, max_iters, max_epochs. +KEY=VALUE adds a '
        'key unchecked',
    )


def _key_value(text: str) -> str:
    key, sign, _ = text.partition('=')
    if not key or not sign:
        raise argparse.ArgumentTypeError(f'{text!r} is not of the form KEY=VALUE')
    return text


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share, as MMSegmentation's tools name them."""
    parser.add_argument(
        '--work-dir',
        help='folder for logs and results '
        '(default: work_dir of the config, else work_dirs/<config name>)',
    )
    add_cfg_options(parser)
    add_launcher(parser)
    parser.add_argument(
        '--brief',
        action='store_true',
        help='short lines on the console: progress, loss, time left, scores, warnings; the log '
        'file in the work dir has all',
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add the flags of distributed runs, as MMSegmentation's tools name them."""
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='how the processes of a distributed run were started',
    )
    parser.add_argument(
        '--local_rank',
        '--local-rank',
        type=int,
        default=0,
        help='set by launchers; not for hand use',
    )


def add_json_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--json`` and ``--overwrite``."""
    parser.add_argument('--json', type=Path, metavar='FILE', help='write all numbers as JSON')
    parser.add_argument('--overwrite', action='store_true', help='replace FILE')


def image_size(text: str) -> tuple[int, int]:
    """Height and width of ``N`` or ``HxW``, for ``type`` of an argument."""
    sides = [int(side) if side.isdecimal() else 0 for side in text.lower().split('x')]
    if len(sides) > 2 or min(sides) < 1:
        raise argparse.ArgumentTypeError(f'takes N or HEIGHTxWIDTH, got {text!r}')
    return sides[0], sides[-1]
