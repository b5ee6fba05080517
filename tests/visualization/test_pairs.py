"""Two photos side by side: the sample, the numbers, the rows, and every design of top-down."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.analysis import Halved, HeatMap, token_norm_map
from mmvars.cli import run_tool
from mmvars.visualization.cli import main
from mmvars.visualization.host import ClassTable, Sample, network_of
from mmvars.visualization.images import test_pipeline as pipeline_of
from mmvars.visualization.pairs import load_pair, pair_sentence
from mmvars.visualization.views import ViewOptions, check_options, observe, panels_of

SIZE, SEAM = (40, 100), 56  # padded to 48x112 by the network


@pytest.fixture
def photos(tmp_path):
    paths = []
    for index, (name, size) in enumerate((('left.png', (80, 100)), ('right.png', (70, 60)))):
        pixels = np.random.default_rng(index).integers(0, 255, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        paths.append(str(tmp_path / name))
    return paths


@pytest.fixture
def draw(write_config, tmp_path, photos, capsys):
    def run(task, *arguments, kind='AbSViT/3'):
        status = run_tool(main, [*map(str, write_config(task, kind)), '--device', 'cpu',
                                 '--out-dir', str(tmp_path / 'out'), '--pair', *photos,
                                 *map(str, arguments)])
        captured = capsys.readouterr()
        assert status == 0 or len(captured.err.strip().splitlines()) == 1
        return status, captured.err if status else captured.out

    return run


def pair_sample(make_sample, task):
    sample = make_sample(task, SIZE)
    return Sample(sample.inputs, sample.data_sample, SEAM)


def test_each_photo_is_prepared_by_the_pipeline_then_put_side_by_side(make_config, photos):
    from mmengine.registry import init_default_scope
    for task, size, seam in (('classification', (64, 128), 64), ('segmentation', (60, 126), 75)):
        init_default_scope(make_config(task).default_scope)
        pipeline = pipeline_of(make_config(task))
        sample = load_pair(*photos, pipeline, 16)
        left, right = (pipeline(dict(img_path=path))['inputs'] for path in photos)
        assert (sample.size, sample.seam) == (size, seam) and sample.inputs.dtype == left.dtype
        assert torch.equal(sample.inputs[..., :seam], left)
        if task == 'classification':
            assert torch.equal(sample.inputs[..., seam:], right)
    # Resized to a width of 51 and 60 rows by the pipeline: nothing is left to scale.
    higher = load_pair(photos[0], photos[1], lambda entry: dict(
        inputs=pipeline(entry)['inputs'][:, :30 if 'left' in entry['img_path'] else 60],
        data_samples=pipeline(entry)['data_samples']), 16)
    assert higher.size == (30, 75 + round(right.shape[-1] / 2)) and higher.seam == 75


def test_the_shares_are_those_of_the_tokens(task, make_model, make_sample):
    model, sample = make_model(task, 'AbSViT/3'), pair_sample(make_sample, task)
    seen = observe(model, sample, ViewOptions(layer=1), alpha=500.)
    network = network_of(model)
    with torch.no_grad():
        output = network(sample.prepared(model), alpha=500., out_indices=(1, ))
    tokens = output.final.intermediates[0]
    norms = token_norm_map(tokens, output.final.grid)[0]
    area = torch.tensor([16., 16., 8.])[:, None] * torch.ones(7)
    left, right = area.clone() * 16, area.clone() * 16
    left[:, 3], left[:, 4:] = area[:, 3] * 8, 0
    right[:, :3], right[:, 3], right[:, 6] = 0, area[:, 3] * 8, area[:, 6] * 4
    expected = float((norms * left).sum() / (norms * (left + right)).sum())
    assert len(seen.norm_shares) == 3 and seen.norm_shares[-1].left == pytest.approx(expected)
    assert seen.norm_shares[0].left != pytest.approx(expected, abs=1e-4)
    cut = observe(model, sample, ViewOptions(layer=1, threshold=0.7), alpha=500.)
    assert cut.norm_shares[-1].left != pytest.approx(expected, abs=1e-4)
    assert cut.mask_shares == seen.mask_shares


@pytest.mark.parametrize('kind,titles', [
    ('AbSViT/3', ['Bottom-up', 'Top-down', 'Token mask', 'Top-down']),
    ('AbSViT/rvt/vars_d', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/rvt/vars_s/mask_attention', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/fan', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/fan/absvit_qkv/3', ['Bottom-up', 'Top-down', 'Token mask', 'Top-down']),
    ('AbSViT/fan/perceiver_io', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/rvt/performer/perceiver_io', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/mask_attention', ['Bottom-up', 'Token mask', 'Top-down']),
    ('AbSViT/feedback', ['Bottom-up', 'Top-down']),
    ('ViT', ['Bottom-up'])])
def test_every_design_and_trunk_has_the_panels_it_should(kind, titles, make_model, make_sample):
    model, sample = make_model('classification', kind), pair_sample(make_sample, 'classification')
    network = network_of(model)
    mask = network.prior is not None
    prior = torch.randn(network.trunk.embed_dim) if mask else None
    seen = observe(model, sample, ViewOptions(), prior=prior)
    panels = panels_of(seen, ClassTable.of(6), ViewOptions(), 0, (0, 1), 'left')
    assert [panel.title.removesuffix(' attention') for panel in panels[1:-1]] == titles
    assert all(isinstance(panel, Halved) for panel in panels[:-1])
    for panel in panels[1:-1]:
        assert isinstance(panel.panel, HeatMap) and panel.panel.values.shape == SIZE
        assert panel.words[0].endswith('%') or not panel.panel.values.any()
    assert (seen.mask_shares is None) or mask


def test_a_reweighted_output_is_drawn_where_the_mask_acts(make_model, make_sample):
    model = make_model('classification', 'AbSViT/fan/perceiver_io')
    sample, prior = pair_sample(make_sample, 'classification'), torch.randn(24)
    seen = observe(model, sample, ViewOptions(), prior=prior, alpha=4.)
    with torch.no_grad():
        output = network_of(model)(sample.prepared(model), prior=prior, alpha=4.)
    before, after = (token_norm_map(part.tokens, part.grid)
                     for part in (output.bottom_up, output.top_down))
    mask = output.bottom_up.grid.to_map(output.token_mask)[:, 0]
    torch.testing.assert_close(after, 4 * mask * before)
    np.testing.assert_allclose(seen.norms[1], seen.enlarge(after), rtol=1e-4, atol=1e-5)
    assert [panel.note for panel in panels_of(seen, ClassTable.of(6), ViewOptions())][1:] == [
        'norms of output tokens', 'cosine of pass-1 tokens with the prior',
        'norms of reweighted output tokens', 'reweighted output tokens']


@pytest.mark.parametrize('kind', ['AbSViT/fan', 'AbSViT/fan/perceiver_io', 'AbSViT/rvt/performer/3',
                                  'AbSViT/absvit_qkv'])
def test_class_and_average_attention_of_each_pass(kind, make_model, make_sample):
    model, sample = make_model('classification', kind), pair_sample(make_sample, 'classification')
    options = ViewOptions(class_attention='rvt' not in kind, average_attention=True)
    check_options(network_of(model), options)
    seen = observe(model, sample, options, alpha=3.)
    passes = {'AbSViT/rvt/performer/3': 3, 'AbSViT/fan/perceiver_io': 1}.get(kind, 2)
    assert len(seen.average_attention) == passes
    assert len(seen.class_attention) == (passes if options.class_attention else 0)
    panels = panels_of(seen, ClassTable.of(6), options)
    drawn = [panel.title for panel in panels if 'looks at' in panel.title]
    assert len(drawn) == passes * (1 + options.class_attention)
    assert all(m.shape == SIZE and m.min() > 0 for m in seen.average_attention)


def test_fan_s_class_token_looks_from_its_own_class_attention(make_model, make_sample):
    model = make_model('classification', 'AbSViT/fan')
    sample, whole = pair_sample(make_sample, 'classification'), []
    attention = network_of(model).trunk.cls_attn_blocks[-1].attn
    handle = attention.register_forward_hook(
        lambda module, args, out: whole.append(module.attention_probabilities(*args)))
    seen = observe(model, sample, ViewOptions(class_attention=True), alpha=3.)
    handle.remove()
    for drawn, expected in zip(seen.class_attention, whole, strict=True):
        grid = expected[0, :, 0, 1:].mean(0).reshape(1, 3, 7)
        np.testing.assert_allclose(drawn, seen.enlarge(grid), rtol=1e-5)


def test_a_signal_on_query_and_key_is_in_the_attention_of_pass_2(make_model, make_sample):
    model, calls = make_model('classification', 'AbSViT/absvit_qkv'), []
    sample = pair_sample(make_sample, 'classification')
    attention = network_of(model).trunk.blocks[0].attn
    handle = attention.register_forward_hook(lambda module, args, out: calls.append(args))
    seen = observe(model, sample, ViewOptions(average_attention=True), alpha=500.)
    handle.remove()
    with torch.no_grad():
        maps = [attention.attention_probabilities(*arguments)[0].mean(dim=(0, 1))[1:].view(1, 3, 7)
                for arguments in (calls[1], calls[1][:2])]
    np.testing.assert_allclose(seen.average_attention[1], seen.enlarge(maps[0]), rtol=1e-4)
    assert np.abs(seen.average_attention[1] - seen.enlarge(maps[1])).max() > 1e-4


def test_rows_numbers_and_json(draw, tmp_path):
    arguments = ['--prior', 'class:tench', 'class:2', '--alpha', 1, 10, '--threshold', 0.5,
                 '--json', tmp_path / 'shares.json']
    status, said = draw('classification', *arguments)
    assert status == 0 and (tmp_path / 'out' / 'left+right_attention.png').exists()
    written = json.loads((tmp_path / 'shares.json').read_text())
    assert (written['size'], written['seam'], written['layer'], written['threshold']) == \
        ([64, 128], 64, 0, 0.5)
    assert [(row['prior'], row['asked'], row['alpha']) for row in written['rows']] == \
        [('tench', 'left', 1), ('tench', 'left', 10), ('tabby', 'right', 1), ('tabby', 'right', 10)]
    for row in written['rows']:
        assert sum(row['top_down'].values()) == pytest.approx(1)
        assert {'tench, Tinca tinca', 'tabby'} <= set(row['probabilities'])
        half = row['asked']
        assert (f'prior {row["prior"]}, alpha {row["alpha"]:g}, on the {half} half: bottom-up '
                f'{row["bottom_up"][half]:.1%}, top-down {row["top_down"][half]:.1%}') in said
    assert 'class-token' not in said
    status, said = draw('classification', *arguments)
    assert status == 2 and 'shares.json' in said
    assert draw('classification', *arguments, '--overwrite')[0] == 0


def test_prototypes_of_a_class_token_model_come_with_a_warning(draw, write_config):
    option = ['--cfg-options', 'model.backbone.out_type=cls_token']
    status, said = draw('classification', '--prior', 'class:0', *option, kind='AbSViT/fan')
    assert status == 0 and 'class prototypes of a class-token model' in said
    assert 'class-token' not in draw('classification', *option, kind='AbSViT/fan')[1]


def test_segmentors_and_models_without_priors_give_shares_too(draw):
    status, said = draw('segmentation', kind='AbSViT/rvt')
    assert status == 0 and 'prior learned query, alpha 1, on the left half: bottom-up' in said
    assert ', top-down' in said
    status, said = draw('classification', '--alpha', 3, kind='AbSViT/feedback')
    assert status == 0 and '  alpha 3, on the left half: bottom-up' in said
    status, said = draw('classification', kind='ViT')
    assert status == 0 and '  on the left half: bottom-up' in said and 'top-down 5' not in said


@pytest.mark.parametrize('kind,arguments,message', [
    ('AbSViT/feedback', ['--prior', 'class:0'], 'no place in this model.*leave --prior out'),
    ('AbSViT/mask_attention', ['--alpha', 2], 'alpha changes nothing.*leave --alpha out'),
    ('AbSViT/perceiver_io', ['--layer', 1], '--layer says where .* leave it out'),
    ('AbSViT/3', ['--prior', 'class:0', 'class:1', 'class:2'], 'at most two of --prior.* got 3'),
    ('AbSViT/3', ['--json', '/nowhere/at/all.json'], 'the folder /nowhere/at does not exist'),
    ('AbSViT/3', ['--threshold', 7], '--threshold must be between 0 and 1, got 7')])
def test_what_a_design_has_no_use_for_is_refused_with_the_reason(draw, tmp_path, kind, arguments,
                                                                 message):
    import re
    status, said = draw('classification', *arguments, kind=kind)
    assert status == 2 and re.search(message, said) and not (tmp_path / 'out').exists()


def test_images_pair_and_json_exclude_or_need_each_other(capsys, photos, tmp_path):
    for arguments, message in (
            ([], 'give images to draw, or --pair LEFT RIGHT'),
            ([photos[0], '--pair', *photos], 'two photos and nothing else'),
            (['--pair', photos[0], 'nothing.png'], "takes two image files, and 'nothing.png'"),
            (['--pair', photos[0], str(tmp_path)], 'takes two image files'),
            ([photos[0], '--json', 'x.json'], '--json writes the shares'),
            (['--pair', *photos, '--json', photos[1], '--overwrite'], 'is the source itself')):
        assert run_tool(main, ['config.py', 'checkpoint.pth', *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_signal_that_overflows_is_no_attention(draw, tmp_path):
    status, said = draw('classification', '--alpha', 1, 1e38)
    assert status == 2 and 'not finite with alpha 1e+38: take a smaller one' in said
    assert not (tmp_path / 'out').exists()


def test_a_mask_of_zeros_is_said():
    shares = dict(left=.4, right=.6)
    row = dict(prior='tench', asked='left', alpha=2., bottom_up=shares, token_mask=None,
               top_down=shares)
    said = '  prior tench, alpha 2, on the left half: bottom-up 40.0%, top-down 40.0%'
    assert pair_sentence(row) == f'{said}, no token agrees with the prior, so the mask is 0'
    assert pair_sentence(row | dict(token_mask=shares)) == said
