"""Two photos side by side: shares, rows and numbers, for every design of top-down attention."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from mmvars.cli import run_tool
from mmvars.visualization.cli import main, pair_sentence
from mmvars.visualization.draw import ViewOptions, attention_panels, check_options, run_model
from mmvars.visualization.figure import HeatMap
from mmvars.visualization.maps import token_norm_map
from mmvars.visualization.model import ClassTable, Sample, network_of
from mmvars.visualization.priors import PanelConfig

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
        status = run_tool(
            main,
            [
                *map(str, write_config(task, kind)),
                '--device',
                'cpu',
                '--out-dir',
                str(tmp_path / 'out'),
                '--pair',
                *photos,
                *map(str, arguments),
            ],
        )
        captured = capsys.readouterr()
        assert status == 0 or len(captured.err.strip().splitlines()) == 1
        return status, captured.err if status else captured.out

    return run


def pair_sample(make_sample, task):
    sample = make_sample(task, SIZE)
    return Sample(sample.inputs, sample.data_sample, SEAM)


def test_the_shares_are_those_of_the_tokens(task, make_model, make_sample):
    model, sample = make_model(task, 'AbSViT/3'), pair_sample(make_sample, task)
    outputs = run_model(model, sample, ViewOptions(layer=1), PanelConfig(alpha=500.0))
    network = network_of(model)
    with torch.no_grad():
        output = network(sample.preprocessed(model), alpha=500.0, out_indices=(1,))
    tokens = output.second.intermediates[0]
    norms = token_norm_map(tokens, output.second.grid)[0]
    area = torch.tensor([16.0, 16.0, 8.0])[:, None] * torch.ones(7)
    left, right = area.clone() * 16, area.clone() * 16
    left[:, 3], left[:, 4:] = area[:, 3] * 8, 0
    right[:, :3], right[:, 3], right[:, 6] = 0, area[:, 3] * 8, area[:, 6] * 4
    expected = float((norms * left).sum() / (norms * (left + right)).sum())
    assert len(outputs.norm_shares) == 3
    assert outputs.norm_shares[-1]['left'] == pytest.approx(expected)
    assert outputs.norm_shares[0]['left'] != pytest.approx(expected, abs=1e-4)
    cut = run_model(model, sample, ViewOptions(layer=1, threshold=0.7), PanelConfig(alpha=500.0))
    assert cut.norm_shares[-1]['left'] != pytest.approx(expected, abs=1e-4)
    assert cut.mask_shares == outputs.mask_shares


@pytest.mark.parametrize(
    'kind,titles',
    [
        ('AbSViT/3', ['Bottom-up', 'Top-down', 'Token mask', 'Top-down']),
        ('AbSViT/rvt/vars_d', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/rvt/vars_s/mask_attention', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/fan', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/fan/absvit_qkv/3', ['Bottom-up', 'Top-down', 'Token mask', 'Top-down']),
        ('AbSViT/fan/perceiver_io', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/rvt/performer/perceiver_io', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/mask_attention', ['Bottom-up', 'Token mask', 'Top-down']),
        ('AbSViT/feedback', ['Bottom-up', 'Top-down']),
        ('ViT', ['Bottom-up']),
    ],
)
def test_every_design_and_trunk_has_the_panels_it_should(kind, titles, make_model, make_sample):
    model, sample = make_model('classification', kind), pair_sample(make_sample, 'classification')
    network = network_of(model)
    mask = getattr(network, 'prior', None) is not None
    prior = torch.randn(network.trunk.embed_dim) if mask else None
    outputs = run_model(model, sample, ViewOptions(), PanelConfig('', prior))
    panels = attention_panels(
        outputs,
        ClassTable.of(6),
        ViewOptions(),
        PanelConfig('', class_index=0, half='left'),
        (0, 1),
    )
    assert [panel.title.removesuffix(' attention') for panel in panels[1:-1]] == titles
    assert all(panel.halves is not None for panel in panels[:-1])
    for panel in panels[1:-1]:
        assert isinstance(panel, HeatMap) and panel.values.shape == SIZE
        assert (panel.halves.texts or ('',))[0].endswith('%') or not panel.values.any()
    assert (outputs.mask_shares is None) or mask


def test_a_reweighted_output_is_drawn_where_the_mask_acts(make_model, make_sample):
    model = make_model('classification', 'AbSViT/fan/perceiver_io')
    sample, prior = pair_sample(make_sample, 'classification'), torch.randn(24)
    outputs = run_model(model, sample, ViewOptions(), PanelConfig('', prior, alpha=4.0))
    with torch.no_grad():
        output = network_of(model)(sample.preprocessed(model), prior=prior, alpha=4.0)
    before, after = (
        token_norm_map(part.tokens, part.grid) for part in (output.first, output.second)
    )
    mask = output.first.grid.to_map(output.token_weights)[:, 0]
    torch.testing.assert_close(after, 4 * mask * before)
    np.testing.assert_allclose(outputs.norms[1], outputs.enlarge(after), rtol=1e-4, atol=1e-5)
    panels = attention_panels(outputs, ClassTable.of(6), ViewOptions())
    assert [panel.note for panel in panels[1:]] == [
        'norms of output tokens',
        'cosine of output tokens with the prior',
        'norms of reweighted output tokens',
        'reweighted output tokens',
    ]


@pytest.mark.parametrize(
    'kind', ['AbSViT/fan', 'AbSViT/fan/perceiver_io', 'AbSViT/rvt/performer/3', 'AbSViT/absvit_qkv']
)
def test_class_and_average_attention_of_each_pass(kind, make_model, make_sample):
    model, sample = make_model('classification', kind), pair_sample(make_sample, 'classification')
    options = ViewOptions(class_attention='rvt' not in kind, average_attention=True)
    check_options(model, options)
    outputs = run_model(model, sample, options, PanelConfig(alpha=3.0))
    passes = {'AbSViT/rvt/performer/3': 3, 'AbSViT/fan/perceiver_io': 1}.get(kind, 2)
    assert len(outputs.average_attention) == passes
    assert len(outputs.class_attention) == (passes if options.class_attention else 0)
    panels = attention_panels(outputs, ClassTable.of(6), options)
    drawn = [panel.title for panel in panels if 'looks at' in panel.title]
    assert len(drawn) == passes * (1 + options.class_attention)
    assert all(m.shape == SIZE and m.min() > 0 for m in outputs.average_attention)


def test_fan_s_class_token_looks_from_its_own_class_attention(make_model, make_sample):
    model = make_model('classification', 'AbSViT/fan')
    sample, whole = pair_sample(make_sample, 'classification'), []
    attention = model.backbone.trunk.cls_attn_blocks[-1].attn
    handle = attention.register_forward_hook(
        lambda module, args, out: whole.append(module.attention_probabilities(*args))
    )
    outputs = run_model(model, sample, ViewOptions(class_attention=True), PanelConfig(alpha=3.0))
    handle.remove()
    for drawn, expected in zip(outputs.class_attention, whole, strict=True):
        grid = expected[0, :, 0, 1:].mean(0).reshape(1, 3, 7)
        np.testing.assert_allclose(drawn, outputs.enlarge(grid), rtol=1e-5)


def test_a_signal_on_query_and_key_is_in_the_attention_of_pass_2(make_model, make_sample):
    model, calls = make_model('classification', 'AbSViT/absvit_qkv'), []
    sample = pair_sample(make_sample, 'classification')
    attention = model.backbone.trunk.blocks[0].attn
    handle = attention.register_forward_hook(lambda module, args, out: calls.append(args))
    outputs = run_model(
        model, sample, ViewOptions(average_attention=True), PanelConfig(alpha=500.0)
    )
    handle.remove()
    with torch.no_grad():
        maps = [
            attention.attention_probabilities(*arguments)[0].mean(dim=(0, 1))[1:].view(1, 3, 7)
            for arguments in (calls[1], calls[1][:2])
        ]
    np.testing.assert_allclose(outputs.average_attention[1], outputs.enlarge(maps[0]), rtol=1e-4)
    assert np.abs(outputs.average_attention[1] - outputs.enlarge(maps[1])).max() > 1e-4


def test_rows_numbers_and_json(draw, tmp_path):
    arguments = [
        '--prior',
        'class:tench',
        'class:2',
        '--alpha',
        1,
        10,
        '--threshold',
        0.5,
        '--json',
        tmp_path / 'shares.json',
    ]
    status, said = draw('classification', *arguments)
    assert status == 0 and (tmp_path / 'out' / 'left+right_attention.png').exists()
    written = json.loads((tmp_path / 'shares.json').read_text())
    assert (written['size'], written['seam'], written['layer'], written['threshold']) == (
        [64, 128],
        64,
        0,
        0.5,
    )
    assert [(row['prior'], row['asked'], row['alpha']) for row in written['rows']] == [
        ('tench', 'left', 1),
        ('tench', 'left', 10),
        ('tabby', 'right', 1),
        ('tabby', 'right', 10),
    ]
    for row in written['rows']:
        assert sum(row['top_down'].values()) == pytest.approx(1)
        assert {'tench, Tinca tinca', 'tabby'} <= set(row['probabilities'])
        half = row['asked']
        assert (
            f'prior {row["prior"]}, alpha {row["alpha"]:g}, on the {half} half: bottom-up '
            f'{row["bottom_up"][half]:.1%}, top-down {row["top_down"][half]:.1%}'
        ) in said
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


@pytest.mark.parametrize(
    'kind,arguments,message',
    [
        ('AbSViT/feedback', ['--prior', 'class:0'], 'no place in this model.*leave --prior out'),
        ('AbSViT/mask_attention', ['--alpha', 2], 'alpha changes nothing.*leave --alpha out'),
        ('AbSViT/perceiver_io', ['--layer', 1], '--layer says where .* leave it out'),
        (
            'AbSViT/3',
            ['--prior', 'class:0', 'class:1', 'class:2'],
            'at most two of --prior.* got 3',
        ),
        ('AbSViT/3', ['--json', '/nowhere/at/all.json'], 'the folder /nowhere/at does not exist'),
        ('AbSViT/3', ['--threshold', 7], '--threshold must be between 0 and 1, got 7'),
    ],
)
def test_what_a_design_has_no_use_for_is_refused_with_the_reason(
    draw, tmp_path, kind, arguments, message
):
    status, said = draw('classification', *arguments, kind=kind)
    assert status == 2 and re.search(message, said) and not (tmp_path / 'out').exists()


def test_images_pair_and_json_exclude_or_need_each_other(capsys, photos, tmp_path):
    for arguments, message in (
        ([], 'give images to draw, or --pair LEFT RIGHT'),
        ([photos[0], '--pair', *photos], 'two photos and nothing else'),
        (['--pair', photos[0], 'nothing.png'], "takes two image files, and 'nothing.png'"),
        (['--pair', photos[0], str(tmp_path)], 'takes two image files'),
        ([photos[0], '--json', 'x.json'], '--json writes the shares'),
        (['--pair', *photos, '--json', photos[1], '--overwrite'], 'is the source itself'),
    ):
        assert run_tool(main, ['config.py', 'checkpoint.pth', *arguments]) == 2
        assert message in capsys.readouterr().err


def test_a_signal_that_overflows_is_no_attention(draw, tmp_path):
    status, said = draw('classification', '--alpha', 1, 1e38)
    assert status == 2 and 'not finite with alpha 1e+38: take a smaller one' in said
    assert not (tmp_path / 'out').exists()


def test_a_mask_of_zeros_is_said():
    shares = dict(left=0.4, right=0.6)
    row = dict(
        prior='tench', asked='left', alpha=2.0, bottom_up=shares, token_mask=None, top_down=shares
    )
    said = '  prior tench, alpha 2, on the left half: bottom-up 40.0%, top-down 40.0%'
    assert pair_sentence(row) == f'{said}, no token agrees with the prior, so the mask is 0'
    assert pair_sentence(row | dict(token_mask=shares)) == said
