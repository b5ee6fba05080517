"""Make the vocabulary of VQAv2 from its annotations: the answers to nine questions at least.

The annotations of 2014 give the 3,129 answers that most models have, the released ones in this
order of the files too::

    python tools/dataset_converters/vqa_answers.py -o data/coco/annotations/answers.json \\
        data/coco/annotations/v2_mscoco_train2014_annotations.json \\
        data/coco/annotations/v2_mscoco_val2014_annotations.json
"""

import argparse
import json
import sys

from mmvars.cli import run_tool
from mmvars.datasets.vqa import count_answers
from mmvars.errors import check_number
from mmvars.write import check_destination, write_text


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='+', help='v2_mscoco_*_annotations.json')
    parser.add_argument('-o', '--out', required=True, help='JSON file to write; must not exist')
    parser.add_argument(
        '--min-count', type=int, default=9, help='questions with that answer (default: %(default)s)'
    )
    args = parser.parse_args(argv)
    check_number('--min-count', args.min_count, 1, whole=True)
    check_destination(args.out, suffixes=('.json',))
    answers = count_answers(args.files, args.min_count)
    write_text(args.out, json.dumps(answers))
    print(f'{len(answers)} answers, in {args.out}')
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
