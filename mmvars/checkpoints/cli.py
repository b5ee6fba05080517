"""``mmvars convert``, the same as ``tools/convert_checkpoint.py``."""

import json

from mmvars.checkpoints.convert import convert_checkpoint
from mmvars.checkpoints.report import CheckpointError
from mmvars.errors import InputError
from mmvars.parsers.convert import parse_args
from mmvars.write import check_destination, write_text

__all__ = ['main']


def main(argv: list[str] | None = None) -> int:
    """Convert a checkpoint and print the report; the exit status is 0.

    Raises:
        InputError: If the file cannot be converted; nothing was written then, except for the
            report, if requested.
    """
    args = vars(parse_args(argv))
    path, overwrite = args.pop('report'), args['overwrite']
    if path is not None:
        if path.resolve() == args['destination'].resolve():
            raise InputError(f'--report {path} is DST itself; give the report another name')
        check_destination(path, args['source'], overwrite, suffixes=())
    options = {name: value for name, value in args.items() if value is not None}
    for name in ('embed_dim', 'depth', 'num_heads'):
        if name in options:  # a single number is no list
            options[name] = options[name][0] if len(options[name]) == 1 else tuple(options[name])
    if 'mixer_cfg' in options:
        options['mixer_cfg'] = dict(options['mixer_cfg'])
    error = None
    try:
        report = convert_checkpoint(**options)
        print(f'{report.render()}\nwrote {args["destination"]}')
    except CheckpointError as caught:
        error, report = caught, caught.report
    if path is not None:
        write_text(path, json.dumps(report.to_dict(), indent=1) + '\n', overwrite)
    if error is not None:
        raise error
    return 0
