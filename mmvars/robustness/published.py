"""What is published for a model: the rows of the thesis that stand in the metafiles of the configs.

The numbers are those of the authors' weights, which are not the ones that are tested.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

from mmvars.engine.shorthands import class_name
from mmvars.resources import resource_root

__all__ = ['Published', 'find_published']

_CLASSES = {
    'ImageNet-1k': 1000,
    'ADE20K': 150,
    'PASCAL VOC 2012': 21,
    'PASCAL VOC 2012 + SBD': 21,
    'Cityscapes': 19,
    'PACS': 7,
}
_OF_TRAINING = (
    'pretrained',
    'init_cfg',
    'drop_path_rate',
    'drop_rate',
    'with_cp',
    'transfer',
    'loss',
    'train_cfg',
    'data_preprocessor',
)


@dataclass(frozen=True)
class Published:
    """A published row.

    Attributes:
        name: Of the config that stands for it.
        source: Who published it, and where.
        results: Data set, metric and value, as printed.
    """

    name: str
    source: str
    results: tuple[tuple[str, str, float], ...]


def find_published(config: str, model: Mapping[str, Any], num_classes: int) -> Published | None:
    """The published row of a model, if it is one of the shipped configs by its backbone and head.

    Args:
        config: Path or name of the config; the one of that name is looked at first.
        model: Its ``model`` section.
        num_classes: Of its head.
    """
    entries = sorted(_entries(num_classes), key=lambda entry: entry['Name'] != Path(config).stem)
    for entry in entries:
        cfg = Config.fromfile(str(resource_root() / entry['Config']))
        if _architecture(cfg.model) == _architecture(model):
            results = [
                (r['Dataset'], *pair) for r in entry['Results'] for pair in r['Metrics'].items()
            ]
            return Published(entry['Name'], entry['Metadata']['Results From'], tuple(results))
    return None


def _entries(num_classes: int) -> Iterator[dict[str, Any]]:
    """Entries of the metafiles with results, of models that tell so many classes apart."""
    for file in sorted((resource_root() / 'configs').glob('*/metafile.yml')):
        for entry in yaml.safe_load(file.read_text(encoding='utf-8'))['Models']:
            data = entry['Metadata'].get('Training Data')
            if 'Results' in entry and _CLASSES.get(data) == num_classes:
                yield entry


def _architecture(model: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What a model computes, by its config; one of timm in mmpretrain's wrapper is all backbone."""
    network = model.get('backbone', model)
    backbone = {key: value for key, value in network.items() if key not in _OF_TRAINING}
    head = model.get('decode_head') or {}
    backbone['type'] = class_name(backbone['type'])
    return backbone, class_name(head.get('type'))
