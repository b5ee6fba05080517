"""What the words after --prior stand for."""

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS, init_default_scope
from safetensors.torch import save_file

from mmvars.errors import InputError
from mmvars.visualization.figure import short_name
from mmvars.visualization.model import ClassTable
from mmvars.visualization.priors import find_class, resolve_prior

NAMES = ('tench, Tinca tinca', 'golden retriever', 'tabby', 'crane', 'pier', 'bubble')
CLASSES = ClassTable(NAMES, [[0, 0, 0]] * 6)


@pytest.fixture
def classifier(make_model):
    return make_model('classification')


@pytest.mark.parametrize(
    'word,index,label', [('class:1', 1, 'golden retriever'), ('class:Tench', 0, 'tench')]
)
def test_a_class_is_its_row_of_the_classifier(classifier, word, index, label):
    prior = resolve_prior(word, classifier, CLASSES)
    assert torch.equal(prior.prior, classifier.head.fc.weight[index])
    assert (prior.name, prior.class_index) == (label, index)


def test_the_query_is_the_network_s_own(classifier):
    prior = resolve_prior('query', classifier, CLASSES)
    assert (prior.name, prior.prior) == ('learned query', None)


def test_prototypes_of_the_network_itself_are_used_in_segmentation_too(make_config):
    cfg = make_config('segmentation')
    cfg.model.backbone.prior = dict(type='class_prototype', num_classes=6)
    init_default_scope('mmseg')
    model = MODELS.build(cfg.model)
    model.backbone.network.prior.prototypes.normal_()
    prior = resolve_prior('class:tabby', model, CLASSES)
    assert torch.equal(prior.prior, model.backbone.network.prior.prototypes[2])
    with pytest.raises(InputError, match=r'no learned query \(its prior is ClassPrototype\)'):
        resolve_prior('query', model, CLASSES)


def test_vectors_and_rows_come_from_files(make_model, tmp_path):
    model = make_model('segmentation')
    vector, table = torch.randn(24), torch.randn(7, 24)
    torch.save(vector, tmp_path / 'v.pt')
    np.save(tmp_path / 'v.npy', vector.numpy())
    save_file({'anything': vector}, tmp_path / 'v.safetensors')
    torch.save(table, tmp_path / 'table.pt')
    torch.save(
        {
            'state_dict': {
                'backbone.x': vector,
                'head.fc.weight': table,
                'head.fc.bias': torch.zeros(7),
            }
        },
        tmp_path / 'mmpretrain.pth',
    )
    torch.save({'model': {'head.weight': table, 'norm.weight': vector}}, tmp_path / 'release.pth')
    for name in ('v.pt', 'v.npy', 'v.safetensors'):
        prior = resolve_prior(f'file:{tmp_path / name}', model, CLASSES)
        assert torch.equal(prior.prior, vector) and prior.name == name
    for name in ('table.pt', 'mmpretrain.pth', 'release.pth'):
        prior = resolve_prior(f'file:{tmp_path / name}:3', model, CLASSES)
        assert torch.equal(prior.prior, table[3]) and prior.name == f'{name} row 3'


@pytest.mark.parametrize(
    'word,message',
    [
        ('dog', r"--prior 'dog' is not understood: give query, class:NAME"),
        ('class:', 'is not understood'),
        ('query:3', 'is not understood'),
        ('class:golden retreiver', "did you mean 'golden retriever'"),
        ('class:6', 'class 6 does not exist: classes are numbered from 0 to 5'),
        ('file:{}/nothing.pt', 'nothing.pt'),
        ('file:{}/table.pt', r'holds 7 vectors; choose one: file:.*table.pt:ROW, ROW from 0 to 6'),
        ('file:{}/table.pt:7', r'no row 7 in the tensor of shape \(7, 24\)'),
        ('file:{}/short.pt', r'has shape \(23,\), but the tokens of this model have width 24'),
        ('file:{}/zero.pt', 'zero or not finite'),
        ('file:{}/nan.npy', 'zero or not finite'),
        ('file:{}/complex.npy', 'holds complex numbers'),
        ('file:{}/many.pth', 'holds 2 tensors, and not exactly one of them is a classifier'),
        ('file:{}/text.pt', 'text.pt'),
        ('file:{}/object.npy', 'cannot be read as a .npy tensor'),
    ],
)
def test_bad_words_are_explained(classifier, tmp_path, word, message):
    torch.save(torch.randn(7, 24), tmp_path / 'table.pt')
    torch.save(torch.randn(23), tmp_path / 'short.pt')
    torch.save(torch.zeros(24), tmp_path / 'zero.pt')
    np.save(tmp_path / 'nan.npy', np.full(24, np.nan))
    np.save(tmp_path / 'complex.npy', np.full(24, 1j))
    torch.save({'a': torch.ones(24), 'b': torch.ones(24)}, tmp_path / 'many.pth')
    (tmp_path / 'text.pt').write_text('this is no tensor')
    np.save(tmp_path / 'object.npy', np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=message):
        resolve_prior(word.format(tmp_path), classifier, CLASSES)


def test_a_segmentor_has_no_class_prototypes_and_says_where_to_get_some(make_model):
    with pytest.raises(InputError, match='no classifier of tokens.*--prior file:CHECKPOINT:ROW'):
        resolve_prior('class:road', make_model('segmentation'), CLASSES)


SYNONYMS = ['tench, Tinca tinca', 'Golden Retriever', 'crane', 'crane', 'tabby, tabby cat']


@pytest.mark.parametrize(
    'word,index',
    [
        ('0', 0),
        (' 4', 4),
        ('golden retriever', 1),
        ('tinca TINCA', 0),
        ('tench, tinca tinca', 0),
        ('tabby', 4),
    ],
)
def test_a_class_is_found(word, index):
    assert find_class(word, 5, SYNONYMS) == index


@pytest.mark.parametrize(
    'word,message',
    [
        ('5', 'class 5 does not exist: classes are numbered from 0 to 4'),
        ('-1', 'class -1 does not exist'),
        ('golden retreiver', "did you mean 'golden retriever'"),
        ('zzz', "the 5 classes start with 'tench', 'Golden Retriever'"),
        ('crane', r'not unique: classes \[2, 3\] have it'),
    ],
)
def test_what_is_no_class_is_explained(word, message):
    with pytest.raises(InputError, match=message):
        find_class(word, 5, SYNONYMS)


def test_without_names_only_numbers_work():
    assert find_class('3', 5) == 3
    with pytest.raises(InputError, match='have no names here; give its number, 0 to 4'):
        find_class('tench', 5)


def test_the_short_name_is_the_first_synonym():
    assert short_name('tench, Tinca tinca') == 'tench'
