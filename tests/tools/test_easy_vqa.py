"""easy-vqa in the layouts of VQAv2 and of Karpathy's splits, as their data sets read it."""

import importlib
import io
import json
import zipfile

import numpy as np
import pytest
from PIL import Image

from mmvars.datasets import Flickr30K, VQAv2
from mmvars.engine.test import main as run_test
from mmvars.engine.train import main as run_train
from mmvars.errors import InputError

RED, BLUE, GROUND = (255, 0, 0), (0, 0, 255), (240, 250, 245)


@pytest.fixture
def tools(repo, monkeypatch):
    monkeypatch.syspath_prepend(str(repo / 'tools' / 'dataset_converters'))
    return importlib.import_module('easy_vqa')


def _png(color, row, column):
    pixels = np.full((16, 16, 3), GROUND, dtype=np.uint8)
    pixels[row : row + 5, column : column + 5] = color
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, 'png')
    return file.getvalue()


@pytest.fixture
def wheel(tmp_path):
    """16 + 2 images with three questions each."""
    path = tmp_path / 'easy_vqa.whl'
    with zipfile.ZipFile(path, 'w') as archive:
        for split, count in (('train', 16), ('test', 2)):
            questions = []
            for image in range(count):
                color, name = ((RED, 'red'), (BLUE, 'blue'))[image % 2 if split == 'train' else 0]
                archive.writestr(
                    f'easy_vqa/data/{split}/images/{image}.png', _png(color, 1, 9 if image else 2)
                )
                questions += [
                    [f'what is the {name} shape?', 'rectangle', image],
                    ['is there not a circle?', 'yes', image],
                    ['is there a green shape?', 'no', image],
                ]
            archive.writestr(f'easy_vqa/data/{split}/questions.json', json.dumps(questions))
    return path


def test_data_sets_read_what_is_written(tools, wheel, tmp_path):
    root = tmp_path / 'data'
    assert tools.main([str(wheel), str(root)]) == 0

    def questions(split, test_mode=True):
        return VQAv2(
            str(root),
            split,
            f'annotations/{split}_questions.json',
            ann_file=f'annotations/{split}_annotations.json',
            test_mode=test_mode,
        )

    train = questions('train', test_mode=False)
    assert train.metainfo['classes'] == ('rectangle', 'yes', 'no')
    assert (len(train), len(questions('val')), len(questions('test'))) == (42, 6, 6)
    info = train[3]
    assert (info['question'], info['answer_type']) == ('what is the blue shape?', 'shape')
    assert info['gt_score'].tolist() == [1, 0, 0]
    assert info['img_path'].endswith('data/train/000000000001.png')
    assert np.asarray(Image.open(info['img_path']))[1, 9].tolist() == list(BLUE)
    ids = {split: {s['question_id'] for s in questions(split)} for split in ('val', 'test')}
    assert not ids['val'] & ids['test']

    captions = Flickr30K(str(root), 'annotations/captions.json', 'train', split='train')
    texts = [captions.get_data_info(index)['text'][0] for index in (0, 5, 10)]
    assert texts == [
        f'a {where}'
        for where in (
            'red rectangle in the upper left',
            'blue rectangle in the upper right',
            'red rectangle in the upper right',
        )
    ]
    for split, places in (('val', 2), ('test', 2)):  # one image of each kind
        dataset = Flickr30K(
            str(root), 'annotations/captions.json', split, split=split, test_mode=True
        )
        assert len(dataset) == places
        assert len({*dataset.captions}) == len(dataset.captions) == 5 * places
    with pytest.raises(InputError, match='name another folder'):
        tools.main([str(wheel), str(root)])


def test_the_text_encoder_knows_the_words(tools, wheel, tmp_path):
    transformers = pytest.importorskip('transformers')
    tools.main([str(wheel), str(tmp_path / 'data')])
    folder = tmp_path / 'data' / 'text_encoder'
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer(['Is there a RED shape?', 'zebra'], padding=True)
    unknown = tokenizer.unk_token_id
    assert ids['input_ids'][0][0] == 0 and ids['input_ids'][0][-1] == 2
    assert len(ids['input_ids'][0]) == 8 and unknown not in ids['input_ids'][0]
    assert ids['input_ids'][1] == [0, unknown, 2, 1, 1, 1, 1, 1]
    config = transformers.AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.vocab_size) == ('roberta', len(tokenizer))


def test_other_files_are_refused(tools, tmp_path):
    (tmp_path / 'x.whl').write_text('no archive')
    with pytest.raises(InputError, match='pip download --no-deps easy-vqa'):
        tools.main([str(tmp_path / 'x.whl'), str(tmp_path / 'data')])
    assert not (tmp_path / 'data').exists()


def test_the_vocabulary_is_made_by_the_command_that_messages_name(repo, monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(str(repo / 'tools' / 'dataset_converters'))
    tool = importlib.import_module('vqa_answers')
    annotations = tmp_path / 'annotations.json'
    given = [dict(multiple_choice_answer=answer) for answer in ['yes'] * 9 + ['no'] * 8]
    annotations.write_text(json.dumps(dict(annotations=given)))
    out = tmp_path / 'answers.json'
    assert tool.main([str(annotations), '-o', str(out)]) == 0
    assert json.loads(out.read_text()) == ['yes']
    with pytest.raises(InputError, match='exists'):
        tool.main([str(annotations), '-o', str(out)])


@pytest.mark.slow
@pytest.mark.parametrize('data', ['mini-easy-vqa', 'mini-easy-vqa-captions'])
def test_the_mini_configs_train_and_test(tools, repo, wheel, tmp_path, data):
    pytest.importorskip('transformers')
    root, work_dir = tmp_path / 'data', tmp_path / 'run'
    tools.main([str(wheel), str(root)])
    (config,) = (repo / 'configs' / 'meter').glob(f'meter-absvit_*_{data}.py')
    options = [f'data_root={root}', f'model.text_backbone.name={root / "text_encoder"}']
    options += ['max_iters=2', 'val_dataloader.batch_size=3']
    options += ['model.head.num_answers=3'] if data == 'mini-easy-vqa' else []
    common = ['--work-dir', str(work_dir), '--cfg-options', *options]
    assert run_train([str(config), *common]) == 0
    out = tmp_path / 'out.json'
    item = [] if data == 'mini-easy-vqa' else ['--out-item', 'metrics']
    checkpoint = str(work_dir / 'iter_2.pth')
    assert run_test([str(config), checkpoint, '--out', str(out), *item, *common]) == 0
    written = json.loads(out.read_text())
    if data == 'mini-easy-vqa':
        assert [entry['question_id'] for entry in written] == list(range(48, 54))
        assert {entry['answer'] for entry in written} <= {'rectangle', 'yes', 'no'}
    else:
        assert {f'retrieval/{kind}@{k}' for kind in ('TR', 'IR') for k in (1, 5, 10)} <= {*written}
        assert written['retrieval/IR@5'] == 100  # of two images
