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
TABLE_2_2 = {  # clean, IN-C, IN-A, IN-R, IN-SK: the last two are swapped in the table's head
    'pit-small': (80.9, 52.5, 21.7, 43.6, 30.8),
    'swin-tiny': (81.2, 62.0, 21.6, 41.3, 29.1),
    'convnext-tiny': (82.1, 53.2, 24.2, 47.2, 33.8),
    'pit-base': (82.4, 48.2, 33.9, 43.7, 32.3),
    'swin-base': (83.4, 54.4, 35.8, 46.6, 32.4),
    'convnext-base': (83.8, 46.8, 36.7, 51.3, 38.2),
    'vit-tiny-p16': (72.5, 71.1, 7.5, 33.0, 20.1),
    'absvit-tiny-p16': (74.1, 66.7, 10.1, 34.9, 22.6),
    'vit-small-p16': (80.1, 54.6, 19.2, 41.9, 28.9),
    'absvit-small-p16': (80.7, 51.6, 24.3, 43.1, 30.2),
    'vit-base-p16': (80.8, 49.3, 25.2, 43.3, 31.6),
    'absvit-base-p16': (81.0, 48.3, 28.2, 42.9, 31.7),
    'rvt-tiny-p16-absvit': (78.6, 55.9, 17.3, 43.2, 29.9),
    'rvt-small-p16': (81.9, 50.5, 26.0, 47.0, 34.5),
    'rvt-small-p16-absvit': (81.9, 48.7, 31.1, 48.5, 35.6),
    'rvt-base-p16': (80.9, 52.1, 26.6, 39.6, 26.1),
    'rvt-base-p16-absvit': (80.9, 51.7, 28.5, 39.3, 26.0),
    'fan-tiny-p16': (77.5, 59.8, 13.1, 42.6, 29.9),
    'fan-tiny-p16-absvit': (78.3, 57.4, 16.5, 42.8, 31.2),
    'fan-small-p16': (82.8, 49.1, 29.3, 47.4, 35.6),
    'fan-small-p16-absvit': (83.0, 47.4, 34.0, 48.3, 36.4),
    'fan-base-p16': (83.5, 45.0, 33.2, 51.4, 39.3),
    'fan-base-p16-absvit': (83.7, 44.1, 38.4, 52.0, 39.8),
}
REPORTED = {  # thesis tables of chapter 2; a table's first column and more
    '2.2': TABLE_2_2,
    '2.3': {
        'vit-tiny-p16-perceiver-io': (72.8, 70.4, 8.0, 32.8, 20.5),
        'vit-tiny-p16-feedback': (73.4, 67.8, 9.7, 34.6, 22.4),
        'vit-tiny-p16-mask-attention': (72.5, 70.6, 8.3, 33.4, 20.5),
        'rvt-tiny-p16-perceiver-io': (78.3, 57.8, 13.7, 42.8, 29.8),
        'rvt-tiny-p16-feedback': (79.1, 55.7, 18.2, 44.1, 31.3),
        'rvt-tiny-p16-mask-attention': (77.9, 59.0, 13.5, 43.0, 29.7),
    },
    '2.4': {
        'absvit-b16_ade20k': (47.2,),
        'absvit-b16_cityscapes': (76.8,),
        'absvit-b16_voc12': (81.3,),
        'vit-b16_ade20k': (45.2,),
        'vit-b16_cityscapes': (75.3,),
        'vit-b16_voc12': (80.1,),
        'resnet101_ade20k': (42.9,),
        'resnet101_cityscapes': (78.7,),
        'resnet101_voc12aug': (77.1,),
    },
    '2.5': {'vit-tiny-p16-absvit-qkv': (73.3, 68.0, 9.4, 33.8, 21.2)},
    '2.6': {'absvit-tiny-p16-no-rec': (73.1, 69.0, 9.5, 33.5)},
}
TABLE_1_2 = {  # clean, IN-C, IN-R, IN-SK, PGD, IN-A
    'regnety-4gf': (79.2, 68.7, 38.8, 25.9, 2.4, 8.9),
    'resnet50': (79.0, 65.5, 42.5, 31.5, 12.5, 5.9),
    'resnext50-32x4d': (79.8, 64.7, 41.5, 29.3, 13.5, 10.7),
    'inception-v3': (77.4, 80.6, 38.9, 27.6, 3.1, 10.0),
    'pit-tiny': (72.9, 69.1, 34.6, 21.6, 5.1, 6.2),
    'convit-tiny': (73.3, 68.4, 35.2, 22.4, 7.5, 8.9),
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
TABLE_1_3 = {  # photo, sketch, cartoon, art
    'rvt-tiny-p16-performer_pacs': (94.19, 81.73, 79.78, 81.25),
    'rvt-tiny-p16-vars-s_pacs': (93.89, 82.62, 80.16, 81.49),
    'rvt-tiny-p16-vars-d_pacs': (96.29, 80.40, 80.33, 84.77),
    'rvt-tiny-p16-vars-sd_pacs': (96.47, 82.78, 80.98, 86.08),
}
VQAV2 = {  # test-dev, test-std
    'meter-vit-b16': (67.89, 67.92),
    'meter-vit-b16-perceiver-io': (67.87, 67.93),
    'meter-vit-b16-feedback': (67.99, 68.13),
    'meter-vit-b16-mask-attention': (67.53, 67.51),
    'meter-absvit-b16': (68.72, 68.78),
}
FLICKR30K = {  # image retrieval at 1, 5 and 10
    'meter-vit-b16': (42.40, 77.18, 86.82),
    'meter-vit-b16-perceiver-io': (42.52, 76.92, 86.73),
    'meter-vit-b16-feedback': (42.04, 77.38, 86.90),
    'meter-vit-b16-mask-attention': (41.89, 76.53, 86.78),
    'meter-absvit-b16': (45.28, 77.98, 87.52),
}
TABLE_2_1 = {f'{name}_vqav2': row for name, row in VQAV2.items()}
TABLE_2_1 |= {f'{name}_flickr30k': row for name, row in FLICKR30K.items()}
PUBLISHED = REPORTED | {'1.2': TABLE_1_2, '1.3': TABLE_1_3, '2.1': TABLE_2_1}
SETS_1_2 = [
    'ImageNet-1k',
    'ImageNet-C',
    'ImageNet-R',
    'ImageNet-Sketch',
    'ImageNet-1k under a PGD attack',
    'ImageNet-A',
]
SETS_2 = ['ImageNet-1k', 'ImageNet-C', 'ImageNet-A', 'ImageNet-R', 'ImageNet-Sketch']


def _models() -> list[dict]:
    return [model for path in METAFILES for model in yaml.safe_load(path.read_text())['Models']]


def test_the_index_imports_every_metafile():
    assert len(METAFILES) == 11
    imported = yaml.safe_load(INDEX.read_text())['Import']
    assert [CONFIGS / name for name in imported] == METAFILES


def test_entries_are_the_configs():
    models = _models()
    assert [Path(m['Config']).stem for m in models] == [m['Name'] for m in models]
    listed = sorted(CONFIGS.parent / m['Config'] for m in models)
    parts = CONFIGS / '_base_'
    leaves = [p for p in CONFIGS.glob('*/*.py') if 'mini-' not in p.name and p.parent != parts]
    assert listed == sorted(leaves)
    for model in models:  # one config a published row, but for these, which have none
        has_none = re.search('timm/|zero-shot|vqav2-train', model['Config']) is not None
        assert has_none == ('Results' not in model), model['Name']


def test_entries_agree_with_the_configs():
    for model in _models():
        cfg, metadata = Config.fromfile(str(CONFIGS.parent / model['Config'])), model['Metadata']
        if cfg.train_cfg is None:  # for testing only
            assert not metadata
            continue
        steps = cfg.optim_wrapper.get('accumulative_counts', 1)
        assert metadata['Batch Size'] == cfg.auto_scale_lr.base_batch_size * steps
        lengths = {metadata.get('Iterations'), metadata.get('Epochs')} - {None}
        assert lengths == {cfg.train_cfg.get('max_iters', cfg.train_cfg.get('max_epochs'))}


def test_numbers_are_the_reported_ones_and_say_so():
    seen = {table: {} for table in PUBLISHED}
    for model in _models():
        assert 'Weights' not in model
        if 'Results' not in model:
            continue
        first, *_, data = model['Name'].split('_')
        key = first if data == 'in1k' else f'{first}_{data.partition("-")[0]}'
        source, _, table = model['Metadata']['Results From'].rpartition(' ')
        assert source == 'the authors, thesis Table'
        seen[table][key] = tuple(
            next(iter(result['Metrics'].values())) for result in model['Results']
        )
        sets = [result['Dataset'] for result in model['Results']]
        if data == 'in1k':
            assert sets == SETS_1_2 if table == '1.2' else sets == SETS_2[: len(sets)]
            assert (
                f'{seen[table][key][0]} % top-1 reported by the authors (Table {table}).'
                in (CONFIGS.parent / model['Config']).read_text()
            )
        if data == 'pacs':
            assert sets == [f'PACS, {d} left out' for d in ('Photo', 'Sketch', 'Cartoon', 'Art')]
    assert seen == PUBLISHED
    assert sum(map(len, seen.values())) == 75


def test_the_sweep_over_pacs_shows_the_same_numbers():
    sweep = yaml.safe_load((CONFIGS / 'vars' / 'pacs.yml').read_text())
    assert list(sweep['columns']) == ['photo', 'sketch', 'cartoon', 'art_painting']
    shown = [
        tuple(row[column] for column in sweep['columns']) for row in sweep['published'].values()
    ]
    assert shown == list(TABLE_1_3.values())
    for name, variant in sweep['variants'].items():
        path = next(
            CONFIGS.glob(
                f'*/rvt-tiny-p16-{name.replace("_", "-").replace("rvt", "performer")}_*pacs.py'
            )
        )
        backbone = Config.fromfile(str(path)).model.backbone
        assert backbone.mixer == variant.get('mixer', 'vars_sd')
        assert backbone.init_cfg.checkpoint == variant['model.backbone.init_cfg.checkpoint']


def test_where_tables_disagree_it_is_said():
    notes = {path.parent.name: re.sub(r'\n# ', ' ', path.read_text()) for path in METAFILES}
    for family in ('absvit', 'baselines', 'fan', 'rvt', 'vit'):
        assert 'Table 2.2 heads ImageNet-R and -Sketch the other way round' in notes[family]
    assert 'Table 2.3 has 79.5 / 54.8 / 18.7 / 44.5 / 32.5.' in notes['absvit']
    assert 'PVT of Tables 1.2 and 2.2 is missing' in notes['baselines']


def test_parameters_are_counted_in_the_models(built):
    counted = 0
    for model in _models():
        if (number := model['Metadata'].get('Parameters')) is not None:
            assert number == built[CONFIGS.parent / model['Config']]['parameters'], model['Name']
            counted += 1
    assert counted == 56


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
        'Top-Down Visual Attention from Analysis by Synthesis'
    }


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
