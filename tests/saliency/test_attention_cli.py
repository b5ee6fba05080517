"""``mmvars attention`` from the command line to its files, on random weights."""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmvars.saliency import cli, resumed
from mmvars.saliency.cli import main
from mmvars.saliency.resumed import default_out
from mmvars.saliency.subject import WEIGHTS, MapName, load_subject


@pytest.fixture
def run(run_into):
    return partial(run_into, main, 'attention', 32)


def test_fixations_with_baselines_and_both_passes(run, write_model, data, tmp_path) -> None:
    status, said, content = run(*write_model('absvit'), '--on', data, '--blocks', 0, -1)
    assert status == 0, said
    (table,) = content['tables'].values()
    kinds = ('token norms', 'mean attention', 'class attention')
    assert [*table] == ['center', 'random'] + [
        f'block {block}, {stage}, {kind}'
        for block in (0, 1)
        for kind in kinds
        for stage in ('bottom-up', 'top-down')
    ] + ['block 1, top-down, token weights']
    for name, scores in table.items():
        assert [*scores] == ['NSS', 'AUC-Judd', 'sAUC', 'CC', 'KL', 'SIM']
        for score in scores.values():
            assert score['count'] == 3 and score['low'] <= score['value'] <= score['high'], name
    assert '18; 3 outside of their images left out' in content['about']['fixations']
    lines = (tmp_path / 'out' / 'attention.csv').read_text().splitlines()
    assert len(lines) == 1 + 15 * 6
    assert (tmp_path / 'out' / 'attention.txt').read_text().strip() in said
    assert '| center |' in (tmp_path / 'out' / 'attention.md').read_text()


def test_objects_and_the_steps_of_vars(run, write_model, masks) -> None:
    model = write_model('vars')
    status, said, content = run(*model, '--on', masks, '--steps', '--blocks', 1)
    assert status == 0, said
    foreground, objects = content['tables'].values()
    names = [name.removeprefix('block 1, bottom-up, ') for name in foreground]
    steps = [', step 0', ', step 1', '']
    kinds = [f'{kind}{step}' for kind in ('mean attention', 'reconstruction') for step in steps]
    assert names == ['center', 'random', 'token norms', *kinds]
    assert [*objects] == [*foreground]
    assert objects['center']['rank']['count'] == 6  # two objects an image
    alone = run(*model, '--on', masks, '--blocks', 1, '--objects', 2)[2]['tables']
    assert alone['objects']['center']['rank']['count'] == 3
    for table in (foreground, objects):
        assert all(0 <= score['value'] <= 1 for row in table.values() for score in row.values())
    later = [foreground[f'block 1, bottom-up, mean attention{step}']['IoU'] for step in steps]
    assert len({each['value'] for each in later}) == 3


def test_class_priors_on_the_test_data_of_a_config(run, segmentor) -> None:
    asked = (*segmentor, '--on', 'test', '--blocks', 1, '--objects', 'square')
    status, said, content = run(*asked, 'corner')
    assert status == 0, said
    foreground, objects = content['tables'].values()
    assert not [name for name in foreground if 'top-down' in name]
    steered = [name for name in objects if 'top-down' in name]
    kinds = 'token norms', 'mean attention', 'class attention', 'token weights'
    asked_for = 'class prior', 'another class'
    assert steered == [f'block 1, top-down, {kind}, {of}' for of in asked_for for kind in kinds]
    assert objects['center']['mass']['count'] == 6
    alone = run(*asked)[2]['tables']['objects']
    assert alone['center']['mass']['count'] == 3
    for kind in kinds:  # a prior changes the map, and another prior otherwise
        same = [f'block 1, top-down, {kind}, {of}' for of in asked_for]
        same += [f'block 1, bottom-up, {kind}'] * (kind != 'token weights')
        assert len({objects[name]['mass']['value'] for name in same}) == len(same)
    everything = run(*segmentor, '--on', 'test', '--blocks', 1)[2]
    assert [*everything['tables']] == ['objects']  # no label is background
    assert everything['tables']['objects']['center']['mass']['count'] == 9
    assert everything['about']['foreground'].endswith('no background; give --objects')
    status, said, _ = run(*segmentor, '--on', 'test', '--objects', 'sqare')
    assert status == 2 and "no class is called 'sqare'; did you mean 'square'" in said


def test_token_weights_are_cosines_with_the_prior(segmentor) -> None:
    subject = load_subject(*segmentor, torch.device('cpu'))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    prior = subject.priors['dog']
    weights = subject.maps(pixels, [0], prior=prior)[MapName(1, 'top-down', WEIGHTS)]
    first = subject.network.forward_first_pass(subject.normalize(pixels)).output
    patches = first.grid.patch_tokens(first.tokens)[0]
    cosines = torch.nn.functional.cosine_similarity(patches, prior, dim=-1)
    assert 0 < (cosines < 0).sum() < 24
    torch.testing.assert_close(weights, cosines.clamp(min=0).view(1, 4, 6))


@pytest.mark.parametrize('kind', ['foreign', 'mmseg'])
def test_a_foreign_transformer_and_the_middle_of_images(run, write_model, data, kind) -> None:
    status, said, content = run(*write_model(kind), '--on', data, '--crop', 24)
    assert status == 0, said
    (table,) = content['tables'].values()
    assert [name.rpartition(', ')[2] for name in table] == [
        *('center', 'random', 'token norms', 'mean attention', 'class attention')
    ]
    assert 'the middle 24x24' in content['about']['data']


def test_token_norms_of_a_foreign_transformer_are_those_of_its_output(write_model) -> None:
    config, checkpoint = write_model('foreign')
    subject = load_subject(config, checkpoint, torch.device('cpu'))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    maps = subject.maps(pixels, [1])
    assert [name.kind for name in maps] == ['token norms', 'mean attention', 'class attention']
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(Config.fromfile(config).model).eval()
    model.load_state_dict(torch.load(checkpoint)['state_dict'])
    outputs: list[torch.Tensor] = []
    model.backbone.layers[1].register_forward_hook(lambda *call: outputs.append(call[2]))
    model.backbone(subject.normalize(pixels))
    expected = outputs[0].norm(dim=2)[:, 1:].view(1, 4, 6)
    torch.testing.assert_close(maps[MapName(1, 'bottom-up', 'token norms')], expected)


def test_the_class_attention_of_fan(run, write_model, data) -> None:
    status, said, content = run(*write_model('fan'), '--on', data, '--blocks', 1)
    assert status == 0, said
    (table,) = content['tables'].values()
    for stage in ('bottom-up', 'top-down'):
        kinds = [name for name in table if stage in name and 'attention' in name]
        assert kinds == [f'block 1, {stage}, mean attention'] + [
            f'block {block}, {stage}, class attention' for block in (2, 3)
        ]
    subject = load_subject(*write_model('fan'), torch.device('cpu'))
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    attention = subject.maps(pixels, [1])[MapName(2, 'bottom-up', 'class attention')]
    first = subject.trunk(subject.normalize(pixels), (1,))
    class_block = subject.trunk.cls_attn_blocks[0]
    tokens = torch.cat([subject.trunk.cls_token, first.intermediates[-1]], dim=1)
    expected = class_block.attn.attention_probabilities(class_block.norm1(tokens))[0, :, 0, 1:]
    torch.testing.assert_close(attention, expected.view(-1, 2, 3))


def test_what_is_done_is_not_done_again(run, write_model, data, monkeypatch) -> None:
    monkeypatch.setattr(resumed, 'CHUNK', 2)
    model, calls, measure = write_model('absvit'), [], cli._measure

    def stops(*args):
        calls.append(args[-1])
        if args[-1] == 2:
            raise KeyboardInterrupt
        return measure(*args)

    monkeypatch.setattr(cli, '_measure', stops)
    assert run(*model, '--on', data)[0] == 130
    monkeypatch.setattr(cli, '_measure', lambda *args: calls.append(args[-1]) or measure(*args))
    status, said, content = run(*model, '--on', data)
    assert status == 0 and '2 of them made earlier' in said
    assert calls == [0, 1, 2, 2]
    monkeypatch.setattr(cli, '_measure', None)
    assert run(*model, '--on', data)[2] == content  # nothing is left to do
    monkeypatch.setattr(cli, '_measure', measure)
    for other in (['--sigma', 3], ['--cfg-options', 'model.backbone.alpha=2']):
        assert 'made earlier' not in run(*model, '--on', data, *other)[1]


def test_other_masks_or_images_of_the_same_names_are_measured_anew(
    run, write_model, masks, tmp_path
) -> None:
    moved = shutil.copytree(masks, tmp_path / masks.name)
    model = write_model('vars')
    before = run(*model, '--on', masks)[2]
    report = tmp_path / 'out' / 'attention.json'
    status, said, _ = run(*model, '--on', moved)
    assert status == 2 and f'{model[1]} {masks.resolve()}: give another folder, or remove' in said
    report.unlink()
    assert 'made earlier' in run(*model, '--on', moved)[1]
    for folder in ('masks', 'images'):
        path = moved / folder / '1.png'
        Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)
        status, said, content = run(*model, '--on', moved)
        assert status == 0 and 'made earlier' not in said
        assert content['tables'] != before['tables']
        before = content


def test_the_report_of_another_model_is_not_replaced(run, write_model, masks, tmp_path) -> None:
    config, checkpoint = write_model('absvit')
    assert run(config, checkpoint, '--on', masks)[0] == 0
    other = shutil.copy(checkpoint, tmp_path / 'other.pth')
    status, said, _ = run(config, other, '--on', masks)
    assert status == 2 and f'is the report of {config} {checkpoint} {masks}: give another' in said
    assert run(config, checkpoint, '--on', masks, '--seed', 1)[0] == 0


def test_a_tag_of_timm_is_in_the_default_folder() -> None:
    first, second = (
        default_out(f'timm/vit_base_patch16_224.{tag}', 'attention', 'data/osie')
        for tag in ('mae', 'dino')
    )
    assert str(first) == 'work_dirs/vit_base_patch16_224.mae/attention/osie' and first != second
    assert str(default_out('configs/a.py', 'probe', 'osie/')) == 'work_dirs/a/probe/osie'


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (['--on', 'mit1003'], 'data/mit1003 does not exist. It is that of --on mit1003: give'),
        (['--on', 'nowhere'], 'nowhere does not exist. --on takes osie, mit1003, voc, lvis, or a'),
        (['--on', '{data}/images'], 'neither fixations.json nor masks'),
        (['--on', '{data}', '--data-root', 'x'], 'leave it out'),
        (['--on', 'mit1003', '--data-root', '{data}/masks'], 'ALLFIXATIONMAPS/NAME_fixPts.jpg'),
        (['--on', 'voc', '--data-root', '{data}'], 'SegmentationClass/NAME.png'),
        (['--on', '{data}', '--crop', '30'], 'no multiple of the patch of config, 8 pixels'),
        (['--on', '{data}', '--crop', '40'], 'larger than --size 32'),
        (['--on', '{data}', '--blocks', 'last'], '--blocks takes numbers'),
        (['--on', '{data}', '--blocks', '2'], '--blocks 2: the blocks of this model are 0 to 1'),
        (['--on', '{data}', '--alpha', '-1'], '--alpha'),
        (['--on', '{data}', '--figure', '4'], '--figure'),
        (['--on', '{data}', '--figure', '0', '1.pgn'], "'1.pgn'; did you mean '1.png'"),
        (['--on', '{data}', '--against', 'x'], 'give --figure N too'),
        (['--on', '{data}', '--figure', '1', '--against', 'timm/x', 'y', 'z'], 'got 3 words'),
        (['--on', '{data}', '--objects', 'cat'], 'are fixations: leave it out'),
        (['--on', 'test'], 'this config is of none'),
        (['--on', '{data}', '--steps'], '--steps is for VARS'),
        (['--on', '{masks}', '--sigma', '3'], '--sigma is for fixations'),
        (['--on', '{masks}', '--definition', 'matlab'], '--definition matlab is for fixations'),
        (['--on', '{masks}', '--objects', 'cat'], '--objects cat: the classes of masks'),
        (['--on', '{masks}', '--objects', '2', '0'], '--objects 0: the classes of masks'),
    ],
)
def test_bad_input_is_one_message(options, message, run, write_model, data, masks) -> None:
    given = (option.format(data=data, masks=masks) for option in options)
    status, said, content = run(*write_model('absvit'), *given)
    assert (status, content) == (2, None) and message in said


def test_models_without_maps(run, write_model, data) -> None:
    status, said, _ = run(*write_model('resnet'), '--on', data)
    assert status == 2 and 'ResNet never called torch.nn.functional.scaled_dot' in said
    config, _ = write_model('foreign')
    _, checkpoint = write_model('resnet')
    status, said, _ = run(config, checkpoint, '--on', data)
    assert status == 2 and 'does not fit the backbone' in said
    status, said, _ = run(*write_model('foreign'), '--on', data, '--alpha', 2)
    assert status == 2 and 'this model has none' in said
