"""Photographs of LVIS with several of ImageNet's classes, whose masks are known (Figure A.7)."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mmvars.datasets.imagenet import imagenet_synsets
from mmvars.errors import InputError, first_of

__all__ = ['ANNOTATIONS', 'LAYOUT', 'LvisPhotos', 'read_lvis']

LAYOUT = """data/lvis_v1
  annotations/lvis_v1_val.json
  train2017/NAME.jpg, val2017/NAME.jpg
in the file: "images" (id, height, width, coco_url), "categories" (id, synset) and "annotations"
(image_id, category_id, area, segmentation: polygons)"""
ANNOTATIONS = 'annotations/lvis_v1_val.json'


class LvisPhotos(NamedTuple):
    """Images with at least two of ImageNet's classes.

    Attributes:
        names, paths: Of the images.
        labels: From the number of an image to its labels ``(H, W)``: one more than the number of
            the class, 0 elsewhere.
    """

    names: list[str]
    paths: list[str]
    labels: Callable[[int], np.ndarray]


def read_lvis(folder: Path, ignored: int) -> LvisPhotos:
    """The photographs of an LVIS file in which at least two of ImageNet's classes are annotated.

    A category is one of these classes where its synset is. Where masks overlap, the smaller object
    is taken to be in front. Classes that an image lists in ``not_exhaustive_category_ids`` have
    objects without a mask there: no such class counts, and what is annotated of it has the label
    ``ignored``.

    Args:
        folder: See :data:`LAYOUT`.
        ignored: Label of what does not count.

    Raises:
        InputError: If the file is not there or laid out otherwise, or an image that it names is
            missing.
    """
    path = folder / ANNOTATIONS
    if not path.is_file():
        raise InputError(f'{path} does not exist. LVIS must be laid out as\n{LAYOUT}')
    try:
        content = json.loads(path.read_text(encoding='utf-8'))
        numbers = {synset: k for k, synset in enumerate(imagenet_synsets())}
        classes = {each['id']: numbers.get(each['synset']) for each in content['categories']}
        objects: dict[int, list[tuple[int, float, list]]] = defaultdict(list)
        images = {each['id']: each for each in content['images']}
        partial = {key: each.get('not_exhaustive_category_ids', ()) for key, each in images.items()}
        for each in content['annotations']:
            number = classes[each['category_id']]
            if number is not None:
                is_partial = each['category_id'] in partial[each['image_id']]
                label = ignored if is_partial else number + 1
                polygons = [_corners(polygon) for polygon in each['segmentation']]
                objects[each['image_id']].append((label, float(each['area']), polygons))
        chosen = {
            str(folder / _file(images[key])): (key, found)
            for key, found in objects.items()
            if len({label for label, *_ in found} - {ignored}) >= 2
        }
        sizes = {key: (int(each['height']), int(each['width'])) for key, each in images.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f'{path} is not as it must be ({type(error).__name__}: {error}). LVIS must be laid out '
            f'as\n{LAYOUT}'
        ) from None
    if not chosen:
        known = sum(number is not None for number in classes.values())
        raise InputError(
            f'{path}: none of {len(images)} images has two categories that are classes of ImageNet;'
            f' {known} of {len(classes)} categories are, by their "synset", such as "zebra.n.01"'
        )
    paths = sorted(chosen)
    if missing := [each for each in paths if not Path(each).is_file()]:
        raise InputError(
            f'{len(missing)} of {len(paths)} images that {path} names are missing, '
            f'{first_of(missing, 2)}. LVIS must be laid out as\n{LAYOUT}'
        )

    def labels(index: int) -> np.ndarray:
        key, found = chosen[paths[index]]
        return _drawn(found, sizes[key])

    return LvisPhotos([Path(each).stem for each in paths], paths, labels)


def _file(image: Mapping[str, Any]) -> str:
    """Folder and file of an image of COCO: ``val2017/000000397133.jpg``."""
    return '/'.join(image['coco_url'].split('/')[-2:])


def _corners(polygon: list) -> np.ndarray:
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError(f'a polygon of {len(polygon)} numbers')
    return np.array(polygon, dtype=float).reshape(-1, 2)


def _drawn(objects: list[tuple[int, float, list[np.ndarray]]], size: tuple[int, int]) -> np.ndarray:
    """Labels ``(H, W)``, the largest object first; a pixel is in a polygon where its center is."""
    from matplotlib.path import Path as Outline

    labels = np.zeros(size, dtype=int)
    for label, _, polygons in sorted(objects, key=lambda each: -each[1]):
        for corners in polygons:
            (left, top), (right, bottom) = corners.min(axis=0), corners.max(axis=0)
            rows = np.arange(max(int(top), 0), min(int(bottom) + 1, size[0]))
            columns = np.arange(max(int(left), 0), min(int(right) + 1, size[1]))
            y, x = np.meshgrid(rows, columns, indexing='ij')
            centers = np.stack([x.ravel(), y.ravel()], axis=1) + 0.5
            inside = Outline(corners).contains_points(centers)
            labels[y.ravel()[inside], x.ravel()[inside]] = label
    return labels
