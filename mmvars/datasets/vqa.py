"""VQAv2: questions about photographs of COCO, and how often each answer was given."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset
from mmengine.logging import print_log

from mmvars.datasets.annotations import read_json
from mmvars.datasets.layout import describe_layout
from mmvars.errors import InputError, first_of
from mmvars.registry import DATASETS

__all__ = ['VQAv2', 'count_answers']

_SCORE_OF_ONE = 0.3  # of ten people; four make the whole score
_IMAGE_NUMBER = re.compile(r'\d{12}')  # in the names of COCO's images


@DATASETS.register_module()
class VQAv2(BaseDataset):
    """Questions of VQAv2 (Goyal et al., CVPR 2017), or of other data in the layout of its files.

    A sample has the fields of mmpretrain's ``COCOVQA``, which is there only beside pycocotools
    (``question``, ``question_id``, ``image_id``, ``gt_answer``, ``gt_answer_weight``, ...), and
    ``gt_score``: for each answer of the vocabulary, ``min(1, 0.3 n)`` where n people gave it, which
    is the mean of ``min(1, n / 3)`` over all choices of nine of the ten, the official accuracy.

    In training, questions without an answer of the vocabulary are dropped. Differs from the
    released code, which drops them in validation as well, so that the accuracy is higher there.

    Args:
        data_root: Folder that the other paths are relative to.
        data_prefix: Folder of the images, whose names hold a number of 12 digits.
        question_file: ``v2_OpenEnded_mscoco_*_questions.json``.
        answer_file: The vocabulary, a JSON list; ``classes`` of the ``metainfo`` from here on.
        ann_file: ``v2_mscoco_*_annotations.json``; none for questions whose answers are not known.
        **kwargs: As for mmengine's ``BaseDataset``.

    Raises:
        InputError: If a file is missing or holds something else, questions and annotations are not
            of each other, or images are missing.
    """

    LAYOUT = ('{answer_file}', '{question_file}', '{ann_file}', '{data_prefix}/*_NUMBER.jpg')

    def __init__(
        self,
        data_root: str,
        data_prefix: str,
        question_file: str,
        answer_file: str = 'annotations/answers.json',
        ann_file: str = '',
        **kwargs: Any,
    ) -> None:
        names = dict(answer_file=answer_file, question_file=question_file, ann_file=ann_file)
        layout = describe_layout(dict(names, data_root=data_root, data_prefix=data_prefix), VQAv2)
        self.question_file = os.path.join(data_root, question_file)
        answer_file = os.path.join(data_root, answer_file)
        if not os.path.isfile(self.question_file):
            raise InputError(
                f'question_file {self.question_file!r} of VQAv2 does not exist\n{layout}\nPut the '
                'data there, or say where they are with --cfg-options data_root=PATH'
            )
        if not os.path.isfile(answer_file):
            raise InputError(
                f'answer_file {answer_file!r} of VQAv2 does not exist\n{layout}\nIt is the '
                'vocabulary, a JSON list of answers. Make it from the annotations: python '
                f'tools/dataset_converters/vqa_answers.py ANNOTATIONS.json ... -o {answer_file}'
            )
        answers = read_json(answer_file, 'a list of answers', ['yes', 'no'])
        self.labels = {answer: label for label, answer in enumerate(answers)}
        if len(self.labels) < len(answers):
            raise InputError(f'{answer_file!r} lists an answer twice: make it anew')
        super().__init__(
            data_root=data_root,
            data_prefix=dict(img_path=data_prefix),
            ann_file=ann_file,
            metainfo=dict(classes=tuple(answers)),
            **kwargs,
        )

    def load_data_list(self) -> list[dict]:
        """Each question with its image, and its answers where they are known."""
        questions = read_json(
            self.question_file,
            'questions of VQAv2',
            dict(questions=[dict(question='is it red?', question_id=1, image_id=1)]),
        )['questions']
        samples = [dict(question) for question in questions]
        if self.ann_file:
            self._add_answers(samples)
        self._add_images(samples)
        if self.test_mode or not self.ann_file:
            return samples
        known = [sample for sample in samples if sample['label_scores']]
        print_log(
            f'VQAv2: {len(samples) - len(known)} of {len(samples)} questions of '
            f'{self.question_file} are left out, for the vocabulary has none of their answers',
            'current',
        )
        if not known:
            raise InputError(
                f'the vocabulary of VQAv2 has no answer to any question of {self.ann_file!r}: '
                'make answer_file from these annotations'
            )
        return known

    def _add_answers(self, samples: Sequence[dict]) -> None:
        annotations = read_json(
            self.ann_file,
            'annotations of VQAv2',
            dict(annotations=[dict(answers=[dict(answer='yes')], question_id=1)]),
        )['annotations']
        of_question = {annotation['question_id']: annotation for annotation in annotations}
        missing = [s['question_id'] for s in samples if s['question_id'] not in of_question]
        if missing:
            raise InputError(
                f'{len(missing)} questions of {self.question_file!r} are not in {self.ann_file!r}, '
                f'first question_id {missing[0]}: give the annotations of the same split'
            )
        for sample in samples:
            annotation = dict(of_question[sample['question_id']])
            given = [entry['answer'] for entry in annotation.pop('answers')]
            counts = Counter(given)
            sample.update(
                annotation,
                gt_answer=list(counts),
                gt_answer_weight=[count / len(given) for count in counts.values()],
                label_scores={
                    self.labels[answer]: min(1.0, _SCORE_OF_ONE * count)
                    for answer, count in counts.items()
                    if answer in self.labels
                },
            )

    def _add_images(self, samples: Sequence[dict]) -> None:
        folder = self.data_prefix['img_path']
        paths = {
            int(numbers[-1]): os.path.join(folder, name)
            for name in (os.listdir(folder) if os.path.isdir(folder) else ())
            if (numbers := _IMAGE_NUMBER.findall(name))
        }
        missing = sorted({s['image_id'] for s in samples if s['image_id'] not in paths})
        if missing:
            names = first_of([f'*{number:012d}.jpg' for number in missing], 3)
            raise InputError(
                f'{len(missing)} images of {self.question_file!r} are not in {folder!r}: {names}; '
                'check data_prefix, and that all of the archive is unpacked'
            )
        for sample in samples:
            sample['img_path'] = paths[sample['image_id']]

    def get_data_info(self, idx: int) -> dict:
        """The sample with its target ``gt_score``, a score for each answer of the vocabulary."""
        info = super().get_data_info(idx)
        if 'label_scores' in info:
            info['gt_score'] = np.zeros(len(self.labels), dtype=np.float32)
            for label, score in info.pop('label_scores').items():
                info['gt_score'][label] = score
        return info


def count_answers(ann_files: Sequence[str], min_count: int = 9) -> list[str]:
    """The vocabulary: what is the answer to at least ``min_count`` questions.

    Answers (``multiple_choice_answer``) are normalized as VQAv2's evaluation does. They keep the
    order in which they first occur, which is that of the outputs of the released models if the
    annotations of 2014 are given, those for training first.

    Args:
        ann_files: ``v2_mscoco_*_annotations.json``.
        min_count: 9 gives the 3,129 answers of most models of VQAv2.

    Raises:
        InputError: If a file is missing or holds something else, or no answer is so frequent.
    """
    from mmpretrain.evaluation import VQAAcc

    normalize, counts = VQAAcc()._process_answer, Counter[str]()
    for path in ann_files:
        example = dict(annotations=[dict(multiple_choice_answer='yes')])
        annotations = read_json(path, 'annotations of VQAv2', example)['annotations']
        counts.update(normalize(entry['multiple_choice_answer']) for entry in annotations)
    answers = [answer for answer, count in counts.items() if count >= min_count]
    if not answers:
        raise InputError(f'no answer is that of {min_count} questions: lower --min-count')
    return answers
