"""Published rows: those of the same model, and in a table of their own."""

import json

import pytest
from mmengine.config import Config
from test_report import result

from mmvars.resources import config_path
from mmvars.robustness.published import find_published
from mmvars.robustness.report import write_report

TINY = 'absvit-tiny-p16_8xb128-coslr-300e_in1k'


@pytest.mark.parametrize(
    ('name', 'num_classes', 'table', 'last'),
    [
        (TINY, 1000, '2.2', ('ImageNet-Sketch', 'Top 1 Accuracy', 22.6)),
        (
            'resnet101_upernet_4xb4-20k_voc12aug-512x512',
            21,
            '2.4',
            ('PASCAL VOC 2012', 'mIoU', 77.1),
        ),
    ],
)
def test_a_model_is_known_by_its_architecture(name, num_classes, table, last) -> None:
    model = Config.fromfile(str(config_path(name))).model
    model.backbone |= dict(init_cfg=dict(type='Pretrained', checkpoint='x'))
    published = find_published(f'work_dirs/{name}.py', model, num_classes)
    assert published.name == name and published.results[-1] == last
    assert published.source == f'the authors, thesis Table {table}'


def test_its_name_may_be_any_and_other_classes_are_another_model() -> None:
    model = Config.fromfile(str(config_path(TINY))).model
    assert find_published('mine.py', model, 1000).name == TINY
    assert find_published(f'{TINY}.py', model, 5) is None
    model.backbone.img_size = 64  # of the three models for PASCAL VOC it is none either
    assert find_published(f'{TINY}.py', model, 21) is None


def test_published_numbers_stand_apart(tmp_path) -> None:
    model = Config.fromfile(str(config_path(TINY))).model
    text = write_report(result(tmp_path), tmp_path, published=find_published(TINY, model, 1000))
    measured, _, table = text.partition('\nPUBLISHED by the authors, thesis Table 2.2')
    assert '66.7' not in measured
    assert ['ImageNet-C', 'mCE', '66.7'] in [line.split() for line in table.splitlines()]
    content = json.loads((tmp_path / 'robustness.json').read_text())
    assert content['published']['name'] == TINY
    assert 'not measured here' in (tmp_path / 'robustness.html').read_text()
