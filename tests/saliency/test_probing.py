"""Generative probing: the decoder, its scores, and ``mmvars probe`` on random weights."""

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from mmvars.layers import TokenGrid
from mmvars.networks import create_model
from mmvars.saliency import probe, resumed
from mmvars.saliency.probe import _region_prior, main
from mmvars.saliency.probing import Decoder, DecoderFit, embedded_patches, probe_scores
from mmvars.saliency.subject import Subject, View, load_subject


def picture(seed: int, height: int, width: int, noise: int = 30) -> np.ndarray:
    """Colors that change slowly, with noise."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (4, 4, 3)).astype(np.uint8))
    colors = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    return np.clip(colors + rng.integers(-noise, noise, colors.shape), 0, 255).astype(np.uint8)


@torch.no_grad()
def fitted(trunk, count: int, noise: int = 30):
    """The sums of as many images; image, tokens and grid of the first, which chooses the ridge."""
    fit = DecoderFit(trunk)
    for seed in range(count):
        image = picture(seed, 96, 128, noise)
        embedded, grid = trunk.forward_embed(
            torch.from_numpy(image).permute(2, 0, 1)[None] / 60 - 2
        )
        fit.add(tokens := embedded_patches(embedded, grid), image, held_out=seed % 10 == 0)
        if seed == 0:
            first = image / 255, tokens, grid
    return fit, first


def vit(patch_size: int, embed_dim: int, **options):
    torch.manual_seed(0)
    sizes = dict(img_size=(96, 128), patch_size=patch_size, depth=1, num_heads=3)
    return create_model('vit_tiny', embed_dim=embed_dim, **sizes, **options)


@pytest.mark.parametrize(
    ('patch_size', 'width', 'count'),
    [(4, 48, 2), pytest.param(16, 768, 20, marks=pytest.mark.slow)],
)
def test_as_many_channels_as_values_in_a_patch_hold_the_whole_image(
    patch_size, width, count
) -> None:
    """The widths of AbSViT-B/16 are the larger ones."""
    trunk = vit(patch_size, width)
    # The decoder cannot tell what position adds from what the image does: that of noise costs.
    with_position = fitted(trunk, count)[0].solve()
    photo = fitted(trunk, count, noise=2)[0].solve()
    torch.nn.init.zeros_(trunk.pos_embed)
    fit, (image, tokens, grid) = fitted(trunk, count)
    decoder = fit.solve()
    assert decoder.r2 > 1 - 1e-6
    assert np.abs(decoder(tokens, grid) - image).max() < 1e-3
    assert with_position.r2 < photo.r2 < decoder.r2 and photo.r2 > 0.99
    narrow = vit(patch_size, width // 4)
    torch.nn.init.zeros_(narrow.pos_embed)
    assert fitted(narrow, count)[0].solve().r2 < 0.95


def test_scores_inside_and_outside() -> None:
    image = np.zeros((2, 3, 3))
    image[0, 0], image[0, 1] = 1.0, 0.5
    mean = np.full_like(image, 0.25)
    inside = np.array([[True, True, False], [False, False, False]])
    counted = np.ones((2, 3), dtype=bool)
    counted[1, 2] = False
    image[1, 1] = 0.5
    half = np.where(inside[..., None], image, 0.25)  # the object alone, on the mean
    scores = probe_scores(
        dict(same=image, half=half, scaled=7 - 3 * image), image, mean, inside, counted
    )
    total_in, total_out = 3 * (0.75**2 + 0.25**2), 3 * 3 * 0.25**2
    assert scores['same'] == pytest.approx([0, total_in, 1, 0, total_out, 1])
    assert scores['half'] == pytest.approx([0, total_in, 1, total_out, total_out, 0])
    assert scores['scaled'][2::3] == pytest.approx([-1, -1])


def test_pixels_come_back_where_they_were() -> None:
    """With the pixels themselves as tokens the decoder is the identity."""
    patches = torch.arange(2 * 3 * 12.0).view(6, 12)
    decoder = Decoder(torch.eye(13, dtype=torch.float64)[:, :12], torch.ones(3, 2, 2), 0, 1)
    grid = TokenGrid(2, 3)
    decoded = decoder(patches, grid)
    assert decoded.shape == (4, 6, 3)
    assert decoded[2:, 2:4, 1].ravel().tolist() == patches[4, 4:8].tolist()
    assert decoder.mean_image(grid).shape == (4, 6, 3)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp('data')
    (root / 'images').mkdir()
    (root / 'masks').mkdir()
    for index in range(6):
        pixels = picture(index, 48, 64)
        labels = np.zeros((48, 64), dtype=np.uint8)
        labels[8:24, 8 * index : 8 * index + 16], labels[0] = 1, 255
        Image.fromarray(pixels).save(root / 'images' / f'{index}.png')
        Image.fromarray(labels).save(root / 'masks' / f'{index}.png')
    return root


@pytest.fixture(scope='module')
def write_model(tmp_path_factory, data):
    """Writes a config and a checkpoint with random weights."""

    def write(kind: str, **backbone) -> tuple[str, str]:
        folder = tmp_path_factory.mktemp('model')
        arch = dict(embed_dims=16, num_layers=2, num_heads=2, patch_size=8)
        statistics = dict(mean=[120.0] * 3, std=[60.0] * 3, bgr_to_rgb=True)
        cfg = Config(
            dict(
                default_scope='mmseg',
                model=dict(
                    type='mmvars.EncoderDecoder',
                    data_preprocessor=dict(type='mmseg.SegDataPreProcessor', **statistics),
                    backbone=dict(type=kind, arch=arch, img_size=48, **backbone),
                    decode_head=dict(type='mmvars.LinearHead', num_classes=3),
                    test_cfg=dict(mode='whole'),
                ),
                test_dataloader=dict(
                    dataset=dict(
                        type='mmseg.BaseSegDataset',
                        data_root=str(data),
                        img_suffix='.png',
                        seg_map_suffix='.png',
                        data_prefix=dict(img_path='images', seg_map_path='masks'),
                        metainfo=dict(classes=('floor', 'square', 'rug')),
                        pipeline=[
                            dict(type='mmvars.LoadImageFromFile'),
                            dict(type='mmseg.LoadAnnotations'),
                        ],
                    )
                ),
            )
        )
        cfg.dump(folder / 'config.py')
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope('mmseg'):
            state = MODELS.build(cfg.model).state_dict()
        torch.save(dict(state_dict=state), folder / 'model.pth')
        return str(folder / 'config.py'), str(folder / 'model.pth')

    return write


@pytest.fixture
def run(run_into):
    return partial(run_into, main, 'probe', 48)


def test_class_priors_and_their_controls(run, write_model, tmp_path) -> None:
    model = write_model('mmvars.AbSViT', prior=dict(type='learned_classes'))
    options = ('--after-norm', '--examples', 1)
    status, said, content = run(*model, *options, '--on', 'test', '--objects', 'square')
    assert status == 0, said
    (table,) = content['tables'].values()
    kinds = 'class prior', 'another class', 'random prior', 'class prior, shuffled'
    parts = [f'{part}, {kind}' for kind in kinds for part in ('top-down', 'sum')]
    assert [*table] == ['bottom-up', *parts]
    assert all(
        [*row] == ['R2 in', 'R2 out', 'r in', 'r out', 'r in - out'] for row in table.values()
    )
    assert len({row['r in']['value'] for row in table.values()}) == 9
    assert table['bottom-up']['R2 in']['count'] == 3
    assert content['about']['measured'] == '3 objects in 3 other images'
    assert Image.open(tmp_path / 'out' / 'probe.png').size[0] > 1000  # pixels
    silent = run(*model, '--on', 'test', '--alpha', 0, '--examples', 0)[2]
    (table,) = silent['tables'].values()
    assert table['sum, class prior'] == table['bottom-up']
    assert table['top-down, class prior'] == table['top-down, random prior']


def test_own_priors_and_networks_without_feedback(run, write_model, data, tmp_path) -> None:
    status, said, content = run(*write_model('mmvars.AbSViT'), '--on', data, '--examples', 0)
    assert status == 0, said
    names = [*content['tables'].popitem()[1]]
    assert names[1::2] == [
        f'top-down, {k}'
        for k in (
            *('own prior', 'object prior', 'prior of the rest', 'random prior'),
            *('own prior, shuffled', 'object prior, shuffled'),
        )
    ]
    plain = write_model('mmvars.ViT')
    status, said, _ = run(*plain, '--on', data)
    assert status == 2 and 'probe.json is the report of' in said
    (tmp_path / 'out' / 'probe.json').unlink()
    status, said, content = run(*plain, '--on', data)
    assert status == 0, said
    assert [*content['tables'].popitem()[1]] == ['bottom-up']
    assert content['about']['top-down input'] == 'none: the network has no decoders'
    status, said, _ = run(*plain, '--on', data, '--alpha', 2)
    assert status == 2 and 'this model has no feedback' in said
    empty = shutil.copytree(data, tmp_path / 'empty')
    for path in (empty / 'masks').iterdir():
        Image.new('L', (64, 48)).save(path)
    (tmp_path / 'out' / 'probe.json').unlink()
    status, said, _ = run(*plain, '--on', empty)
    assert status == 2 and 'none of the 3 images of empty that are measured has an object' in said


def test_too_few_images_are_refused_before_the_pass(
    run, write_model, data, monkeypatch, tmp_path
) -> None:
    """The other half of three images is one that is fitted, of 6 x 8 tokens of 16 channels."""
    plain = write_model('mmvars.ViT')
    status, said, _ = run(*plain, '--on', data, '--images', 3)
    assert status == 0 and '[2/2] ' in said and '[1/1] ' in said and '\r' not in said
    monkeypatch.setattr(probe, '_fit', None)
    shutil.rmtree(tmp_path / 'out')
    status, said, _ = run(*plain, '--on', data, '--images', 2)
    assert status == 2 and 'have 0 tokens' in said and 'needs 17' in said
    assert 'give --images 3, or more' in said and not (tmp_path / 'out').exists()
    monkeypatch.setattr(Subject, 'view', lambda *_: View(np.zeros((8, 8, 3)), 0, 0, 48, 64))
    status, said, _ = run(*plain, '--on', data)
    assert status == 2 and '6 images of --size 48 have 2 tokens' in said
    assert 'give a larger --size' in said


@torch.no_grad()
def test_the_prior_of_a_region_is_the_mean_token_at_its_pixels(write_model, data) -> None:
    subject = load_subject(*write_model('mmvars.AbSViT'), torch.device('cpu'))
    inside = np.zeros((48, 64), dtype=bool)
    inside[5:30, 11:27] = True
    with Image.open(data / 'images' / '0.png') as image:
        first = subject.network.forward_first_pass(subject.normalize(np.asarray(image)))
    maps = first.output.grid.to_map(first.output.tokens)[0]
    pixels = maps.repeat_interleave(8, dim=1).repeat_interleave(8, dim=2)
    expected = pixels[:, inside].mean(dim=1)
    torch.testing.assert_close(_region_prior(subject.network, first, inside), expected)
    subject.network.prior.center = center = torch.randn(16)
    prior = _region_prior(subject.network, first, inside)
    torch.testing.assert_close(prior, expected - center)


def test_what_is_probed_is_not_probed_again(run, write_model, data, monkeypatch) -> None:
    monkeypatch.setattr(resumed, 'CHUNK', 2)
    model, calls, scores = write_model('mmvars.AbSViT'), [], probe._scores

    def stops(*args):
        calls.append(args[-1])
        if args[-1] == 5:
            raise KeyboardInterrupt
        return scores(*args)

    options = ('--on', data, '--examples', 0)
    monkeypatch.setattr(probe, '_scores', stops)
    assert run(*model, *options)[0] == 130 and calls == [1, 3, 5]
    monkeypatch.setattr(probe, '_scores', lambda *args: calls.append(args[-1]) or scores(*args))
    status, said, content = run(*model, *options)
    assert status == 0 and '2 of them made earlier' in said and calls == [1, 3, 5, 5]
    monkeypatch.setattr(probe, '_scores', None)
    assert run(*model, *options)[2] == content
    monkeypatch.setattr(probe, '_scores', scores)
    assert 'made earlier' not in run(*model, *options, '--after-norm')[1]
