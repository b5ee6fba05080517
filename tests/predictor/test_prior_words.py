"""What the words after --prior stand for, in all commands, and classes by name."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_models import NUM_CLASSES, WIDTH, classifier, pattern, segmentor

import mmvars
from mmvars.errors import InputError
from mmvars.prior_words import parse_prior
from mmvars.priors import find_class
from mmvars.visualization.cli import _with_places, panel_configs
from mmvars.visualization.figure import short_name

PROTOTYPES = dict(type='class_prototype', num_classes=NUM_CLASSES)


@pytest.fixture
def predictor(make: Callable) -> mmvars.Predictor:
    """A classifier of four classes with a learned query."""
    return make(classifier())


@pytest.mark.parametrize(('word', 'index'), [('class:1', 1), ('class:Dog', 1), ('class: 3', 3)])
def test_a_class_is_its_row_of_the_classifier(predictor, word, index) -> None:
    row = predictor.model.head.fc.weight[index]
    assert torch.equal(parse_prior(word, predictor), row)
    (panel,) = panel_configs([word], [], predictor)
    assert torch.equal(panel.prior, row)
    assert (panel.name, panel.class_index) == (predictor.classes[index], index)


def test_the_query_is_the_network_s_own_and_none_is_none(predictor, make) -> None:
    assert parse_prior('query', predictor) is None and parse_prior('none', predictor) is None
    query, none, default = panel_configs(['query', 'none'], [], predictor) + panel_configs(
        None, [], predictor
    )
    assert (query.name, query.prior) == ('learned query', None) == (default.name, default.prior)
    assert none.prior is None
    of_classes = make(segmentor(prior=PROTOTYPES))
    with pytest.raises(InputError, match=r'its prior is ClassPrototype\); give .*point:X,Y'):
        parse_prior('query', of_classes)
    with pytest.raises(InputError, match='no prior of its own: give --prior class:NAME'):
        panel_configs(None, [2.0], of_classes)
    none, fence = panel_configs(['none', 'class:fence'], [], of_classes)
    assert not none.prior.any() and none.name == 'none'
    prototypes = of_classes.model.backbone.network.prior.prototypes
    assert torch.equal(fence.prior, prototypes[4]) and fence.class_index == 4


def test_a_place_is_one_in_each_image(predictor, tmp_path) -> None:
    for word, kind in (('point:3,4', mmvars.Points), ('box:3,4,30,20', mmvars.Box)):
        assert isinstance(parse_prior(word, predictor), kind)
        (panel,) = panel_configs([word], [], predictor)
        assert isinstance(panel.place, kind) and panel.name == word.replace(':', ' ')
        with pytest.raises(InputError, match='--pair: a point, box or mask'):
            panel_configs([word, 'class:1'], [], predictor, pair=True)
    panels, priors = panel_configs(['point:50,40', 'class:1'], [], predictor), []
    for number in range(2):
        file = tmp_path / f'{number}.png'
        Image.fromarray(np.roll(pattern(75, 130), 30 * number, axis=1)).save(file)
        point, other = _with_places(panels, predictor, str(file))
        assert other is panels[1]
        predictor.set_image(file)
        assert torch.equal(point.prior, predictor.prior_vector((50, 40)))
        priors.append(point.prior)
    assert not torch.equal(*priors)


def test_vectors_and_rows_come_from_files(make, tmp_path) -> None:
    predictor = make(segmentor())
    vector, table = torch.randn(WIDTH), torch.randn(7, WIDTH)
    torch.save(vector, tmp_path / 'v.pt')
    np.save(tmp_path / 'v.npy', vector.numpy())
    save_file({'anything': vector}, tmp_path / 'v.safetensors')
    torch.save(table, tmp_path / 'table.pt')
    inside = {'backbone.x': vector, 'head.fc.weight': table, 'head.fc.bias': torch.zeros(7)}
    torch.save({'state_dict': inside}, tmp_path / 'mmpretrain.pth')
    torch.save({'model': {'head.weight': table, 'norm.weight': vector}}, tmp_path / 'release.pth')
    for name in ('v.pt', 'v.npy', 'v.safetensors'):
        (panel,) = panel_configs([f'file:{tmp_path / name}'], [], predictor)
        assert torch.equal(panel.prior, vector) and panel.name == f'file {name}'
    for name in ('table.pt', 'mmpretrain.pth', 'release.pth'):
        assert torch.equal(parse_prior(f'file:{tmp_path / name}:3', predictor), table[3])


def test_bad_words_are_explained(predictor, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(torch.randn(7, WIDTH), 'table.pt')
    torch.save(torch.randn(23), 'short.pt')
    torch.save(torch.zeros(WIDTH), 'zero.pt')
    np.save('nan.npy', np.full(WIDTH, np.nan))
    np.save('complex.npy', np.full(WIDTH, 1j))
    torch.save({'a': torch.ones(WIDTH), 'b': torch.ones(WIDTH)}, 'many.pth')
    np.save('object.npy', np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / 'text.pt').write_text('this is no tensor')
    Image.fromarray(np.zeros((8, 9), np.uint8)).save('empty.png')
    (tmp_path / 'a.eps').write_text('%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n')
    for word, message in {
        'dog': r"--prior 'dog' is not understood: give class:NAME, point:X,Y",
        'class:': 'is not understood',
        'query:3': 'is not understood',
        'class:hose': "did you mean 'horse'",
        'class:4': 'class 4 does not exist: classes are numbered from 0 to 3',
        'class:-1': 'class -1 does not exist',
        'point:3,x': "point:3,x: numbers .*got '3,x'",
        'point:3': 'got 1 numbers',
        'box:3,4,5': 'got 3 numbers',
        'box:30,4,3,9': 'x0 < x1',
        'mask:text.pt': 'the file is no image that can be read; save it as PNG$',
        'mask:lost.png': '--prior mask:lost.png: the file does not exist$',
        'mask:a.eps': 'is PostScript, not an image of pixels',
        'mask:empty.png': '--prior mask:empty.png: the mask is empty: mark at least one pixel',
        'example:lost.jpg': r"--prior example:lost.jpg: the image 'lost.jpg' does not exist$",
        'file:nothing.pt': 'nothing.pt',
        'file:nothing.npy': '--prior file:nothing.npy: the file cannot be read as a .npy tensor',
        'file:table.pt': r'holds 7 vectors; choose one: file:table.pt:ROW, ROW from 0 to 6',
        'file:table.pt:7': r'no row 7 in the tensor of shape \(7, 24\)',
        'file:short.pt': r'must have shape \(24,\), the width of the tokens; got \(23,\)',
        'file:zero.pt': 'the prior vector is zero',
        'file:nan.npy': 'NaN or infinite',
        'file:complex.npy': 'or a float vector of width 24; got torch.complex128 numbers',
        'file:many.pth': 'holds 2 tensors, and not exactly one of them is a classifier',
        'file:text.pt': 'text.pt',
        'file:object.npy': 'cannot be read as a .npy tensor',
    }.items():
        with pytest.raises(InputError, match=message) as caught:
            parse_prior(word, predictor)
        assert str(caught.value).count('--prior') == 1, word


def test_a_model_without_vectors_says_where_to_get_some(make) -> None:
    with pytest.raises(InputError, match='mmvars prototypes CONFIG CHECKPOINT -o FILE'):
        panel_configs(['class:road'], [], make(segmentor()))


def test_a_text_of_digits_is_a_text(make) -> None:
    class Encoder:
        def encode(self, texts: list[str]) -> torch.Tensor:
            return torch.tensor([[len(text), text.count('a'), 1.0] for text in texts])

    predictor = make(segmentor(prior=PROTOTYPES), text=Encoder())
    prototype = predictor.prior_vector(3)
    assert torch.equal(parse_prior('class:3', predictor), prototype)
    assert torch.equal(parse_prior('text:3', predictor), predictor.prior_vector('3'))
    assert not torch.equal(predictor.prior_vector('3'), prototype)
    predictor.set_image(pattern(40, 50))
    with pytest.raises(InputError, match="no class is called '3'"):
        make(segmentor(prior=PROTOTYPES)).prior_vector('3')


SYNONYMS = ['tench, Tinca tinca', 'Golden Retriever', 'crane', 'crane', 'tabby, tabby cat']


@pytest.mark.parametrize(
    ('word', 'index'),
    [('golden retriever', 1), (' tinca TINCA', 0), ('tench, tinca tinca', 0), ('tabby', 4)],
)
def test_a_class_is_found(word: str, index: int) -> None:
    assert find_class(word, SYNONYMS) == index


@pytest.mark.parametrize(
    ('word', 'message'),
    [
        ('golden retreiver', "did you mean 'golden retriever'"),
        ('zzz', "the 5 classes start with 'tench', 'Golden Retriever'"),
        ('crane', r'not unique: classes \[2, 3\] have it'),
    ],
)
def test_what_is_no_class_is_explained(word: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_class(word, SYNONYMS)


def test_without_names_only_numbers_work() -> None:
    with pytest.raises(InputError, match='have no names here; give its number'):
        find_class('tench', None)


def test_the_short_name_is_the_first_synonym() -> None:
    assert short_name('tench, Tinca tinca') == 'tench'
