"""Where people look to answer a question: the maps of VQA-HAT, and how maps are compared with them.

Das et al. (2016) showed people a blurred image and a question and let them sharpen what they needed
to see. A question of the validation set has the maps of three people.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from mmvars.datasets.files import open_image
from mmvars.errors import InputError, first_of
from mmvars.states import Frame

__all__ = ['QuestionData', 'rank_correlation', 'read_vqa_hat', 'seen_map']

GRID = 14
"""Maps are compared at 14x14 places, as in VQA-HAT."""

_LAYOUT = """data/vqa-hat
  OpenEnded_mscoco_val2014_questions.json   questions of VQA v1, {"questions": [{"question_id": ...,
                                            "image_id": ..., "question": ...}, ...]}
  vqahat_val/QUESTION-ID_1.png, _2.png, _3.png
  val2014/COCO_val2014_000000IMAGE-ID.jpg"""


@dataclass(frozen=True)
class QuestionData:
    """Questions of images, and the maps of the people who answered them.

    Attributes:
        title: For the report.
        names: Question ids.
        paths: Image of each question.
        questions: Their words.
        human: Files of each question's maps, gray, of the shape of the image at any size.
    """

    title: str
    names: Sequence[str]
    paths: Sequence[str]
    questions: Sequence[str]
    human: Sequence[Sequence[str]]

    def other(self, index: int) -> int:
        """Another question: of the same image where there is one, the next one otherwise."""
        same = [i for i, path in enumerate(self.paths) if path == self.paths[index] and i != index]
        return same[0] if same else (index + 1) % len(self.names)


def read_vqa_hat(folder: Path) -> QuestionData:
    """The validation set of VQA-HAT.

    Raises:
        InputError: If it is not laid out as expected.
    """
    path = folder / 'OpenEnded_mscoco_val2014_questions.json'
    maps: dict[str, list[str]] = {}
    for file in sorted((folder / 'vqahat_val').glob('*.png')):
        if match := re.fullmatch(r'(\d+)_\d+', file.stem):
            maps.setdefault(match[1], []).append(str(file))
    if not path.is_file() or not maps:
        has_questions = 'a' if path.is_file() else 'no'
        raise InputError(
            f'{folder} holds maps of {len(maps)} questions and {has_questions} {path.name}. '
            f'VQA-HAT must be laid out as\n{_LAYOUT}'
        )
    try:
        entries = json.loads(path.read_text(encoding='utf-8'))['questions']
        known = {
            str(entry['question_id']): (str(entry['question']), int(entry['image_id']))
            for entry in entries
        }
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f'{path} is not as it must be ({type(error).__name__}: {error}):\n{_LAYOUT}'
        ) from None
    if missing := [name for name in maps if name not in known]:
        raise InputError(f'{path} lacks the questions {first_of(missing)}, which have maps')
    names = list(maps)
    paths = [str(folder / 'val2014' / f'COCO_val2014_{known[name][1]:012d}.jpg') for name in names]
    if missing := [each for each in dict.fromkeys(paths) if not Path(each).is_file()]:
        raise InputError(f'VQA-HAT lacks {first_of(missing, 2)}. It must be\n{_LAYOUT}')
    return QuestionData(
        'vqa-hat', names, paths, [known[name][0] for name in names], list(maps.values())
    )


def seen_map(path: str, frame: Frame) -> np.ndarray:
    """The map of a person, within what a network sees of the image: ``(H', W')``.

    Args:
        path: Of the file.
        frame: From the pixels of the image to those that the network sees.

    Raises:
        InputError: If it is of another shape than the image.
    """
    with open_image(path, path) as image:
        values = np.asarray(image.convert('L'), dtype=np.float32)
    if abs(values.shape[1] * frame.size[0] / values.shape[0] / frame.size[1] - 1) > 0.05:
        raise InputError(
            f'{path} has {values.shape[1]}x{values.shape[0]} pixels, and its image '
            f'{frame.size[1]}x{frame.size[0]}: they must be of one shape'
        )
    tensor = torch.from_numpy(values)[None, None]
    pixels = F.interpolate(tensor, frame.scaled, mode='bilinear')[0, 0].numpy()
    top, left = frame.corner
    return pixels[top : top + frame.seen[0], left : left + frame.seen[1]]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation of two maps ``(H, W)``, each averaged to 14x14 places.

    Equal values share the mean of their ranks. ``nan`` where a map is constant, which has no ranks.

    Raises:
        InputError: If they are not of one size.
    """
    if first.ndim != 2 or first.shape != second.shape:
        raise InputError(
            f'two maps (H, W) of one size are needed, got {first.shape} and {second.shape}'
        )
    ranks = [_ranks(_averaged(values)) for values in (first, second)]
    if not all(values.std() for values in ranks):
        return float('nan')
    return float(np.corrcoef(*ranks)[0, 1])


def _averaged(values: np.ndarray) -> np.ndarray:
    tensor = torch.from_numpy(np.asarray(values, dtype=float))[None, None]
    return F.adaptive_avg_pool2d(tensor, GRID)[0, 0].numpy()


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse].ravel()
