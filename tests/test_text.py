"""Priors from text: the map from the names of classes to their prototypes, and the encoder."""

import json
import sys

import pytest
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.text import RIDGE, SentenceEncoder, TextPriors, load_text_encoder

NAMES = ('traffic_light', 'dog', 'sky-other', 'cat', 'ghost')


class Table:
    """An encoder that knows some texts, whose embeddings have any length."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        words = ('traffic light', 'dog', 'sky other', 'cat', 'wolf')
        self.table = {text: torch.randn(6, generator=generator) for text in words}

    def encode(self, texts):
        return torch.stack([self.table[text] for text in texts])


@pytest.fixture
def prototypes():
    table = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    table[4] = 0
    return table


def test_the_map_is_the_ridge_regression(prototypes):
    """By its normal equations. A class without a prototype is left out: its name is unknown."""
    encoder = Table()
    priors = TextPriors(encoder, NAMES, prototypes)
    texts = F.normalize(
        encoder.encode(['traffic light', 'dog', 'sky other', 'cat']).double(), dim=1
    )
    table = prototypes[:4].double()
    mean_text, mean = texts.mean(dim=0), table.mean(dim=0)
    texts = texts - mean_text
    gram = texts.T @ texts + RIDGE * torch.eye(6)
    weights = torch.linalg.inv(gram) @ texts.T @ (table - mean)
    wolf = F.normalize(encoder.encode(['wolf']).double(), dim=1)[0]
    expected = (mean + (wolf - mean_text) @ weights).float()
    torch.testing.assert_close(priors('wolf'), expected)
    assert priors(' wolf ').dtype == torch.float32 and priors('wolf').shape == (8,)


def test_without_ridge_a_name_is_its_prototype(prototypes):
    priors = TextPriors(Table(), NAMES, prototypes, ridge=1e-9)
    torch.testing.assert_close(priors('traffic-light'), prototypes[0], atol=1e-5, rtol=1e-5)


def test_what_cannot_be_fitted_or_encoded_is_refused(prototypes, tmp_path, monkeypatch):
    with pytest.raises(InputError, match='1 of 2 classes have one: .*mmvars prototypes'):
        TextPriors(Table(), NAMES[3:], prototypes[3:])
    with pytest.raises(InputError, match="needs words, got ' '"):
        TextPriors(Table(), NAMES, prototypes)(' ')
    with pytest.raises(InputError, match=r'hub/name.*no folder with a config.json'):
        load_text_encoder('hub/name')  # not looked up anywhere
    (tmp_path / 'config.json').write_text('{}')
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(InputError, match=r'pip install "mmvars\[text\]"'):
        load_text_encoder(tmp_path)
    encoder = Table()
    assert load_text_encoder(encoder) is encoder


@pytest.mark.slow
def test_sentences_are_means_of_their_tokens(tmp_path):
    """Of a tiny encoder; the words that fill a batch up do not count."""
    transformers = pytest.importorskip('transformers')
    words = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'small', 'dog', 'cat']
    (tmp_path / 'vocab.txt').write_text('\n'.join(words))
    transformers.BertTokenizer(str(tmp_path / 'vocab.txt')).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    model = transformers.BertModel(config).eval()
    model.save_pretrained(tmp_path)
    encoder = SentenceEncoder(tmp_path)
    both = encoder.encode(['a small dog', 'cat'])
    with torch.no_grad():
        tokens = model(torch.tensor([[2, 8, 3]])).last_hidden_state[0]
    torch.testing.assert_close(both[1], F.normalize(tokens.mean(dim=0), dim=0))
    torch.testing.assert_close(both[:1], encoder.encode(['a small dog']))
    assert not torch.allclose(both[0], both[1])

    (tmp_path / '1_Pooling').mkdir()
    pooling = json.dumps(dict(pooling_mode_cls_token=True))
    (tmp_path / '1_Pooling' / 'config.json').write_text(pooling)
    first = SentenceEncoder(tmp_path).encode(['cat'])[0]
    torch.testing.assert_close(first, F.normalize(tokens[0], dim=0))

    (tmp_path / 'model.safetensors').write_bytes(b'no weights')
    with pytest.raises(InputError, match='cannot be used: SafetensorError'):
        SentenceEncoder(tmp_path)
