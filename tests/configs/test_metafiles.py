"""The metafiles: what they list exists, and OpenMMLab's tools can read them."""

import re
import shutil
from pathlib import Path

import pytest
import yaml
from mmengine.config import Config

CONFIGS = Path(__file__).parents[2] / 'configs'
INDEX = CONFIGS / 'model-index.yml'
METAFILES = sorted(CONFIGS.glob('*/metafile.yml'))
REPORTED = {  # thesis Tables 2.2 and 2.4
    'absvit-tiny-p16': 74.1, 'absvit-small-p16': 80.7, 'absvit-base-p16': 81.0,
    'vit-tiny-p16': 72.5, 'vit-small-p16': 80.1, 'vit-base-p16': 80.8,
    'absvit-b16_ade20k': 47.2, 'absvit-b16_cityscapes': 76.8, 'absvit-b16_voc12': 81.3,
    'vit-b16_ade20k': 45.2, 'vit-b16_cityscapes': 75.3, 'vit-b16_voc12': 80.1,
    'resnet101_ade20k': 42.9, 'resnet101_cityscapes': 78.7, 'resnet101_voc12aug': 77.1,
}
TABLE_1_2 = {  # clean, IN-C, IN-R, IN-SK, PGD, IN-A
    'deit-tiny-p16': (72.2, 71.1, 32.6, 20.2, 6.2, 7.3),
    'gfnet-tiny-p16': (74.6, 65.9, 40.4, 27.0, 7.6, 6.3),
    'rvt-tiny-p16': (78.4, 58.2, 43.7, 30.0, 11.7, 13.3),
    'deit-convstem-tiny-p16-performer': (74.7, 67.0, 34.5, 21.7, 11.9, 9.4),
    'deit-convstem-tiny-p16-vars-s': (73.7, 69.8, 36.8, 24.8, 10.8, 4.9),
    'deit-convstem-tiny-p16-vars-d': (75.6, 64.9, 39.6, 27.5, 13.7, 10.2),
    'deit-convstem-tiny-p16-vars-sd': (76.5, 62.5, 40.2, 27.5, 13.4, 11.5),
    'gfnet-convstem-tiny-p16': (74.6, 65.9, 40.4, 27.0, 7.6, 6.3),
    'gfnet-convstem-tiny-p16-vars-s': (74.1, 63.5, 40.8, 28.6, 9.5, 5.8),
    'gfnet-convstem-tiny-p16-vars-d': (77.8, 58.6, 41.2, 29.0, 15.9, 12.6),
    'gfnet-convstem-tiny-p16-vars-sd': (78.2, 57.4, 41.0, 29.5, 16.2, 13.0),
    'rvt-tiny-p16-performer': (77.6, 60.4, 41.7, 28.7, 11.1, 11.1),
    'rvt-tiny-p16-vars-s': (76.8, 61.8, 43.2, 30.1, 7.6, 9.1),
    'rvt-tiny-p16-vars-d': (78.2, 58.7, 42.0, 29.8, 11.7, 12.4),
    'rvt-tiny-p16-vars-sd': (78.4, 58.3, 42.5, 30.5, 11.4, 13.4),
}


def _models() -> list[dict]:
    return [model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]


def test_the_index_imports_every_metafile():
    assert len(METAFILES) == 7
    imported = yaml.safe_load(INDEX.read_text())['Import']
    assert [CONFIGS / name for name in imported] == METAFILES


def test_entries_are_the_configs():
    models = _models()
    assert [Path(m['Config']).stem for m in models] == [m['Name'] for m in models]
    listed = sorted(CONFIGS.parent / m['Config'] for m in models)
    assert listed == sorted(p for p in CONFIGS.glob('*/*.py') if 'mini-' not in p.name)
    assert len(listed) >= 70


def test_entries_agree_with_the_configs():
    for model in _models():
        cfg, metadata = Config.fromfile(str(CONFIGS.parent / model['Config'])), model['Metadata']
        assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size
        if 'Iterations' in metadata:
            assert metadata['Iterations'] == cfg.train_cfg.max_iters


def test_numbers_are_the_reported_ones_and_say_so():
    seen, rows = {}, {}
    for model in _models():
        first, *_, data = model['Name'].split('_')
        key = first if data == 'in1k' else f'{first}_{data.partition("-")[0]}'
        if model['Results'] is None:
            assert key not in {**REPORTED, **TABLE_1_2}
            continue
        values = tuple(next(iter(result['Metrics'].values())) for result in model['Results'])
        chapter_1 = model['Config'].split('/')[1] in ('deit', 'gfnet', 'rvt', 'vars')
        table = '1.2' if chapter_1 else '2.2' if data == 'in1k' else '2.4'
        assert model['Metadata']['Results From'] == f'the authors, thesis Table {table}'
        if chapter_1:
            rows[key] = values
            assert f'{values[0]} % top-1 reported by the authors (Table 1.2).' in (
                CONFIGS.parent / model['Config']).read_text()
        else:
            seen[key] = values[0]
        assert 'Weights' not in model
    assert seen == REPORTED
    assert rows == TABLE_1_2


@pytest.mark.parametrize('layout', ['repository', 'wheel'])
def test_model_index_reads_it(tmp_path, layout):
    modelindex = pytest.importorskip('modelindex.load_model_index')
    index = INDEX
    if layout == 'wheel':  # .mim/ has the index one level higher; setup.py writes it like this
        shutil.copytree(CONFIGS, tmp_path / 'configs', ignore=shutil.ignore_patterns('*.py'))
        index = tmp_path / 'model-index.yml'
        index.write_text(re.sub(r'- (\S+)', r'- configs/\1', INDEX.read_text()))
    loaded = modelindex.load(str(index))
    loaded.check(silent=False)
    loaded.build_models_with_collections()
    assert len(list(loaded.models)) == len(_models())
    assert {model.full_model.paper['Title'] for model in loaded.models} > {
        'Top-Down Visual Attention from Analysis by Synthesis'}


def test_mmpretrain_finds_our_models_beside_its_own(monkeypatch):
    model_api = pytest.importorskip('mmpretrain.apis.model')
    hub = model_api.ModelHub
    hub._register_mmpretrain_models()
    monkeypatch.setattr(hub, '_models_dict', dict(hub._models_dict))
    hub.register_model_index(INDEX, config_prefix=CONFIGS.parent)
    names = model_api.list_models('absvit-*-p*in1k')
    assert len(names) == 4
    model = model_api.get_model('absvit-tiny-p16_8xb128-coslr-300e_in1k')
    assert type(model.backbone).__name__ == 'AbSViT'
