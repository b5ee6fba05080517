"""``mmvars prototypes`` from labeled images to a file of priors."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from PIL import Image
from tiny_timm import PATCH, TINY
from torch.nn import functional as F

from mmvars.checkpoints import load_pretrained, read_checkpoint, write_checkpoint, write_partial
from mmvars.cli import run_tool
from mmvars.errors import InputError
from mmvars.networks import PHRASINGS
from mmvars.prototypes import RIDGE, main, read_prototypes
from mmvars.text import TextPriors, embed

assert TINY  # registered with timm

CLASSES = ('wall', 'dog', 'cat', 'sky')
SEGMENTOR = """
default_scope = 'mmseg'
pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'), dict(type='PackSegInputs')]
dataset = dict(
    type='BaseSegDataset', data_root='data', metainfo=dict(classes=('wall', 'dog', 'cat', 'sky')),
    data_prefix=dict(img_path='images', seg_map_path='labels'))
flipped = [dict(type='LoadImageFromFile'), dict(type='RandomFlip', prob=1.0)]
train_dataloader = dict(dataset=dict(
    type='RepeatDataset', times=9, dataset=dict(pipeline=flipped, **dataset)))
test_dataloader = dict(dataset=dict(pipeline=pipeline, **dataset))
model = dict(
    type='mmvars.EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0],
        bgr_to_rgb=True, test_cfg=dict(size_divisor=8)),
    backbone=BACKBONE,
    decode_head=dict(type='FCNHead', in_channels=24, channels=8, num_classes=4),
    test_cfg=dict(mode='whole'))
"""
CLASSIFIER = """
default_scope = 'mmpretrain'
dataset = dict(type='CustomDataset', data_prefix='folders')
pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
train_dataloader = dict(dataset=dict(pipeline=[], **dataset))
test_dataloader = dict(dataset=dict(pipeline=pipeline, **dataset))
model = dict(
    type='mmvars.ImageClassifier',
    data_preprocessor=dict(
        mean=[120.0, 110.0, 100.0], std=[60.0, 50.0, 40.0], to_rgb=True, pad_size_divisor=8),
    backbone=dict(out_type='cls_token', **BACKBONE),
    head=dict(type='LinearClsHead', in_channels=24, num_classes=2))
"""
BACKBONES = {
    'own': dict(
        type='mmvars.AbSViT',
        arch=dict(embed_dims=24, num_layers=2, num_heads=2, patch_size=PATCH),
        img_size=32,
    ),
    'timm': dict(type='mmvars.AbSViT', arch='timm/tiny_dinov2', pretrained='trunk.pth'),
}
ARGUMENTS = 'config.py checkpoint.pth -o prototypes.pth --num-workers 0'.split()
SIZES = ((20, 35), (17, 24), (32, 32))
on_own, on_timm = (
    pytest.mark.parametrize('kind', [kind], indirect=True) for kind in ('own', 'timm')
)


@pytest.fixture(params=list(BACKBONES))
def kind(request, tmp_path, monkeypatch):
    """Its config, labeled images, and ``checkpoint.pth``: of all, or of decoders with a center."""
    monkeypatch.chdir(tmp_path)
    _write_config(SEGMENTOR, request.param)
    random = np.random.default_rng(0)
    for folder in ('images', 'labels'):
        Path('data', folder).mkdir(parents=True)
    for number, size in enumerate(SIZES):
        pixels = random.integers(0, 255, (*size, 3), dtype=np.uint8)
        labels = random.choice([0, 1, 3, 255], size, p=[0.3, 0.3, 0.1, 0.3]).astype(np.uint8)
        labels[:10, :17] = 3
        Image.fromarray(pixels).save(f'data/images/{number}.jpg', quality=100)
        Image.fromarray(labels).save(f'data/labels/{number}.png')
    torch.manual_seed(1)
    network = _network(request.param)
    tensors = network.state_dict()
    for value in tensors.values():
        value += 0.2 * torch.randn_like(value)
    if request.param == 'timm':
        trunk = {k.removeprefix('trunk.model.'): v for k, v in tensors.items() if 'trunk.' in k}
        write_checkpoint('trunk.pth', trunk)
        parts = {k: v for k, v in tensors.items() if k.startswith('feedback.') or 'center' in k}
        write_partial('checkpoint.pth', network, parts)
    else:
        tensors = {f'backbone.network.{name}': value for name, value in tensors.items()}
        write_checkpoint('checkpoint.pth', tensors, 'state_dict')
    return request.param


def _write_config(text, kind):
    Path('config.py').write_text(text.replace('BACKBONE', repr(BACKBONES[kind])))


def _network(kind, **options):
    return MODELS.build(BACKBONES[kind] | options).eval().network


def _trained(kind):
    """The network of the checkpoint."""
    network = _network(kind)
    if kind == 'timm':
        load_pretrained(network.trunk, 'trunk.pth')
    load_pretrained(network, 'checkpoint.pth')
    return network


@torch.no_grad()
def _patches(network, number, sides=None):
    """Patch tokens ``(h, w, C)`` of an image, padded with the mean color; default: to patches."""
    pixels = np.asarray(Image.open(f'data/images/{number}.jpg'), np.float32)
    sides = sides or [-(-side // PATCH) * PATCH for side in pixels.shape[:2]]
    image = np.zeros((*sides, 3), np.float32)
    image[: len(pixels), : pixels.shape[1]] = (pixels - (120, 110, 100)) / np.float32((60, 50, 40))
    output = network.forward_first_pass(torch.from_numpy(image).permute(2, 0, 1)[None]).output
    return output.tokens[0, output.grid.num_prefix :].unflatten(0, output.grid[:2])


def _labeled_patches(network):
    """All tokens ``(n, C)``, patch by patch, and whether they are of each class ``(n, 4)``."""
    tokens, targets = [], []
    for number in range(len(SIZES)):
        patches = _patches(network, number)
        truth = np.asarray(Image.open(f'data/labels/{number}.png'))
        for row, column in np.ndindex(*patches.shape[:2]):
            top, left = PATCH * row, PATCH * column
            here = truth[top : top + PATCH, left : left + PATCH]
            counts = [(here == label).sum() for label in range(4)]
            tokens.append(patches[row, column])
            targets.append(np.zeros(4))
            if max(counts) >= PATCH**2 - sum(counts):
                targets[-1][int(np.argmax(counts))] = 1
    assert (np.sum(targets, axis=0) > 1).tolist() == [True, True, False, True]
    return torch.stack(tokens), np.array(targets)


def _prototypes(network):
    """The expected ones."""
    tokens, targets = _labeled_patches(network)
    center = 0 if network.prior.center is None else network.prior.center
    return _ridge_regression(tokens - center, targets)


def _ridge_regression(tokens, targets):
    """Directions ``(K, C)`` of the weights, where the penalty is rows of zeros to be met."""
    tokens = tokens.double().numpy()
    penalty = np.sqrt(RIDGE * (tokens**2).mean() * len(tokens)) * np.eye(tokens.shape[1])
    rows = np.concatenate([tokens, penalty])
    targets = np.concatenate([targets, np.zeros((len(penalty), targets.shape[1]))])
    weights = np.linalg.lstsq(rows, targets, rcond=None)[0].T
    lengths = np.linalg.norm(weights, axis=1, keepdims=True)
    return torch.from_numpy(weights / np.where(lengths > 1e-12, lengths, 1)).float()


def test_prototypes_tell_classes_apart_and_the_file_is_a_start(kind, capsys):
    assert main(ARGUMENTS) == 0
    text = capsys.readouterr().out
    assert 'no patch of these images is of cat: ' in text and 'was zero' not in text
    assert 'prototypes of 3 classes from 3 images' in text  # each once, though they are repeated
    trained = _trained(kind)
    names, table = read_prototypes('prototypes.pth', trained)
    assert names == CLASSES
    torch.testing.assert_close(table, _prototypes(trained))
    torch.testing.assert_close(read_prototypes('prototypes.pth', trained.fuse())[1], table)

    start = _network(kind, prior=dict(type='class_prototype', num_classes=4))
    start.trunk.load_state_dict(trained.trunk.state_dict())
    load_pretrained(start, 'prototypes.pth')
    assert torch.equal(start.prior.prototypes, table)
    for name, value in trained.state_dict().items():
        if name not in ('prior.query', 'prior.whitening'):
            assert torch.equal(start.state_dict()[name], value), name


class Words:
    """A text encoder."""

    def encode(self, texts):
        seeds = (sum(map(ord, text)) for text in texts)
        return torch.stack(
            [torch.randn(9, generator=torch.Generator().manual_seed(s)) for s in seeds]
        )


@on_timm
def test_a_map_from_text_starts_from_the_prototypes(kind, monkeypatch, capsys):
    """Of the classes that are not held out, by the fit of mmvars.text to all phrasings of names."""
    monkeypatch.setattr('mmvars.prototypes.load_text_encoder', lambda folder: Words())
    main(ARGUMENTS)
    names, table = read_prototypes('prototypes.pth', _trained(kind))
    for text_dim, words, message in (
        (9, [], 'a map from text: give --text FOLDER'),
        (8, ['--text', 'folder'], 'have width 9, .* takes 8: .*prior.text_dim=9'),
    ):
        prior = dict(type='text', text_dim=text_dim)
        text = SEGMENTOR.replace('BACKBONE', repr(BACKBONES[kind] | dict(prior=prior)))
        steering = "prior_sampler=dict(type='mmvars.PriorSampler', held_out=[3]), "
        steering += "prompt_head=dict(type='mmvars.PromptHead'), decode_head="
        Path('config.py').write_text(text.replace('decode_head=', steering))
        with pytest.raises(InputError, match=message):
            main([*ARGUMENTS, '--overwrite', *words])
    text = Path('config.py').read_text()
    Path('config.py').write_text(text.replace("'text_dim': 8", "'text_dim': 9"))
    assert main([*ARGUMENTS, '--overwrite', '--text', 'folder']) == 0
    network = _network(kind, prior=dict(type='text', text_dim=9, num_classes=4))
    load_pretrained(network.trunk, 'trunk.pth')
    load_pretrained(network, 'prototypes.pth')
    prior = network.prior
    phrases = [phrasing.format(name) for name in names[:2] for phrasing in PHRASINGS]
    fitted = TextPriors(Words(), phrases, table[:2].repeat_interleave(len(PHRASINGS), dim=0))
    for number, name in enumerate(names):
        torch.testing.assert_close(prior.class_priors()[number], fitted(name))
        asked = prior(embed(Words(), [PHRASINGS[2].format(name)]), 1)[0]
        torch.testing.assert_close(asked, fitted(PHRASINGS[2].format(name)))
        torch.testing.assert_close(prior.projection(prior.texts[number, 2]), asked)
    torch.testing.assert_close(prior.center, _trained(kind).prior.center)


@pytest.mark.parametrize('config', [SEGMENTOR, CLASSIFIER])
def test_text_takes_the_place_of_another_prior(kind, monkeypatch, config):
    """By the options that the refusal names, from a checkpoint whose prior is a query."""
    monkeypatch.setattr('mmvars.prototypes.load_text_encoder', lambda folder: Words())
    for number in range(len(SIZES)):
        folder = Path('folders', 'ab'[number % 2])
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(f'data/images/{number}.jpg', folder)
    _write_config(config, kind)
    arguments = [*ARGUMENTS, '--text', 'folder']
    with pytest.raises(InputError, match='--text is for a network whose prior is a map') as caught:
        main(arguments)
    options = re.findall(r'\+\S+=\w+', str(caught.value))
    assert len(options) == 3
    assert main([*arguments, '--cfg-options', *options]) == 0
    tensors = read_checkpoint('prototypes.pth')['state_dict']
    weight = tensors['backbone.network.prior.projection.weight']
    assert weight.shape == (24, 9) and weight.any()


@on_timm
def test_a_place_asks_as_the_prototype_of_its_class_does(kind):
    main(ARGUMENTS)
    network = _network(kind, prior=dict(type='class_prototype', num_classes=4))
    load_pretrained(network.trunk, 'trunk.pth')
    load_pretrained(network, 'prototypes.pth')
    prior, (tokens, targets) = network.prior, _labeled_patches(network)
    for label in (0, 1, 3):
        place = tokens[targets[:, label] == 1].mean(dim=0) - prior.center
        asked = F.normalize(place @ prior.whitening, dim=0)
        torch.testing.assert_close(asked, prior.prototypes[label])


@on_timm
def test_padding_is_in_no_sum(kind):
    """Of all tokens: the center is their mean."""
    text = Path('config.py').read_text()
    Path('config.py').write_text(text.replace('size_divisor=8', 'size=(56, 72)'))
    main([word for word in ARGUMENTS if word != 'checkpoint.pth'])
    network = _network(kind)
    load_pretrained(network.trunk, 'trunk.pth')
    tokens = []
    for number, (height, width) in enumerate(SIZES):
        patches = _patches(network, number, (56, 72))
        tokens.append(patches[: -(-height // PATCH), : -(-width // PATCH)].flatten(0, 1))
    center = read_checkpoint('prototypes.pth')['state_dict']['backbone.network.prior.center']
    torch.testing.assert_close(center, torch.cat(tokens).mean(dim=0))


@on_timm
def test_a_center_of_zeros_becomes_the_mean_token(kind, capsys):
    """With the weights that the config names, without decoders."""
    assert main([word for word in ARGUMENTS if word != 'checkpoint.pth']) == 0
    assert 'prior.center, which was zero' in capsys.readouterr().out
    network = _network(kind)
    load_pretrained(network.trunk, 'trunk.pth')
    tokens = torch.cat([_patches(network, number).flatten(0, 1) for number in range(len(SIZES))])
    center = read_checkpoint('prototypes.pth')['state_dict']['backbone.network.prior.center']
    torch.testing.assert_close(center, tokens.mean(dim=0))
    network.prior.center.copy_(center)
    torch.testing.assert_close(read_prototypes('prototypes.pth', network)[1], _prototypes(network))


@on_timm
def test_a_trained_center_of_zeros_stays(kind, capsys):
    """So that prototypes of a run that was not pre-tuned are for that run."""
    network = _trained(kind)
    network.prior.center.zero_()
    tensors = {f'backbone.network.{name}': value for name, value in network.state_dict().items()}
    write_checkpoint('checkpoint.pth', tensors, 'state_dict', overwrite=True)
    assert main(ARGUMENTS) == 0
    assert (
        'prior.center of checkpoint.pth, made without `mmvars pretune`, stays zero'
        in capsys.readouterr().out
    )
    torch.testing.assert_close(read_prototypes('prototypes.pth', network)[1], _prototypes(network))


@on_own
def test_a_token_of_a_classifier_is_the_mean_of_its_image(kind, capsys):
    _write_config(CLASSIFIER, kind)
    for number, name in enumerate(['left', 'left', 'right']):
        Path('folders', name).mkdir(parents=True, exist_ok=True)
        Path(f'data/images/{number}.jpg').rename(f'folders/{name}/{number}.jpg')
    assert main(ARGUMENTS) == 0
    for number, name in enumerate(['left', 'left', 'right']):
        Path(f'folders/{name}/{number}.jpg').rename(f'data/images/{number}.jpg')
    network = _trained(kind)
    names, table = read_prototypes('prototypes.pth', network)
    means = torch.stack([_patches(network, number).mean(dim=(0, 1)) for number in range(3)])
    assert names == ('left', 'right')
    expected = _ridge_regression(means, np.array([[1, 0], [1, 0], [0, 1]]))
    torch.testing.assert_close(table, expected)


@on_timm
def test_a_part_of_the_images_is_spread_over_all(kind):
    _, whole = main(['.', *ARGUMENTS[2:]]), read_checkpoint('prototypes.pth')['state_dict']
    Path('data/images/1.jpg').write_bytes(Path('data/images/0.jpg').read_bytes()[:30])  # unread
    main([*ARGUMENTS, '--overwrite', '--max-images', '2'])
    part = read_checkpoint('prototypes.pth')['state_dict']
    key = 'backbone.network.prior.prototypes'
    assert part[key][3].any() and not torch.equal(part[key], whole[key])


@on_timm
def test_prototypes_of_another_network_are_refused(kind):
    main(ARGUMENTS)
    network = _trained(kind)
    network.prior.center += 1
    with pytest.raises(InputError, match='differences from prior.center.*mmvars prototypes'):
        read_prototypes('prototypes.pth', network)
    with pytest.raises(InputError, match='no prototypes of classes: make it with `mmvars prototy'):
        read_prototypes('checkpoint.pth', network)
    network.trunk.model.norm.bias.data += 1
    with pytest.raises(InputError, match='prototypes.pth: .*on the trunk timm/tiny_dinov2'):
        read_prototypes('prototypes.pth', network)


@on_own
@pytest.mark.parametrize(
    'old, new, words, message',
    [
        ('', '', ['--max-images', '0'], '--max-images .*0'),
        ('', '', ['-o', 'data'], 'data must end in'),
        ("'mmvars.AbSViT', ", "'mmvars.AbSViT', 'design': 'feedback', ", [], "but 'feedback'"),
        ("dict(type='LoadAnnotations'), ", '', [], 'loads no labels of .*0.jpg: add LoadAnnot'),
        ('train_dataloader', 'train_data', [], 'no train_dataloader'),
        ("data_root='data'", "data_root='lost'", [], 'lost.*does not exist'),
        ('checkpoint.pth', '', [], 'names no weights.*give a CHECKPOINT'),
    ],
)
def test_what_cannot_be_used_is_refused(kind, old, new, words, message, capsys):
    text = Path('config.py').read_text()
    assert old in text or old in ARGUMENTS
    Path('config.py').write_text(text.replace(old, new) if old in text else text)
    if "'feedback'" in new:
        tensors = _network(kind, design='feedback').state_dict(prefix='backbone.network.')
        write_checkpoint('checkpoint.pth', tensors, 'state_dict', overwrite=True)
    arguments = [word for word in ARGUMENTS if old != word] + words
    assert run_tool('prototypes', arguments) == 2
    assert re.search(f'^mmvars: .*{message}', capsys.readouterr().err, re.DOTALL | re.MULTILINE)
    assert not Path('prototypes.pth').exists()
