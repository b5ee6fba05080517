"""Text encoders of transformers as a backbone."""

import shutil
import sys

import pytest
import torch

from mmvars.errors import InputError
from mmvars.vision_language import TextBackbone

transformers = pytest.importorskip('transformers')
TEXTS = ['what color is the circle', 'a red square and a blue circle', 'circle']


@pytest.fixture
def encoder(text_folder):
    return transformers.AutoModel.from_pretrained(text_folder).eval()


def build(folder, **options):
    backbone = TextBackbone(str(folder), max_length=20, **options)
    backbone.init_weights()
    return backbone.eval()


@pytest.mark.parametrize('kind', ['cls', 'mean', 'eos', 'padded_mean'])
def test_tokens_and_vector_are_those_of_the_encoder(text_folder, encoder, kind):
    """Each text alone, without any padding, is the reference."""
    features = build(text_folder, text_vector=kind)(TEXTS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(text_folder)
    for index, text in enumerate(TEXTS):
        words = tokenizer([text], return_tensors='pt')
        (tokens,) = encoder(**words).last_hidden_state
        length = len(tokens)
        assert features.mask[index].tolist() == [True] * length + [False] * (
            features.mask.shape[1] - length
        )
        torch.testing.assert_close(features.tokens[index, :length], tokens)
        if kind == 'padded_mean':  # over all positions, those that fill it up included
            padded = tokenizer([text], padding='max_length', max_length=20, return_tensors='pt')
            (tokens,) = encoder(**padded).last_hidden_state
            assert len(tokens) == 20
        vector = {'cls': tokens[0], 'eos': tokens[-1]}.get(kind, tokens.mean(dim=0))
        torch.testing.assert_close(features.vector[index], vector)


def test_weights_come_with_init_weights_and_stay(text_folder, encoder):
    """mmengine calls init_weights of all modules, and transformers' own draws anew."""
    backbone = TextBackbone(str(text_folder), max_length=20)
    assert not torch.equal(
        backbone.state_dict()['model.encoder.layer.0.output.dense.weight'],
        encoder.state_dict()['encoder.layer.0.output.dense.weight'],
    )
    backbone.init_weights()
    state = {name.removeprefix('model.'): each for name, each in backbone.state_dict().items()}
    for name, tensor in encoder.state_dict().items():
        assert name.startswith('pooler.') or torch.equal(state.pop(name), tensor)
    assert not state


def test_long_texts_are_cut(text_folder):
    backbone = TextBackbone(str(text_folder), max_length=6)
    features = backbone(['red ' * 30])
    assert features.tokens.shape == (1, 6, 32)
    assert backbone.tokenizer.eos_token_id == 2


def test_an_encoder_can_be_new_with_the_vocabulary_of_its_tokenizer(text_folder, tmp_path):
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copy(text_folder / name, tmp_path)
    sizes = dict(
        model_type='bert',  # whose token that fills up is 0, if nothing is said
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
    )
    backbone = TextBackbone(str(tmp_path), max_length=10, pretrained=False, config=sizes)
    backbone.init_weights()
    assert backbone.config.vocab_size == len(backbone.tokenizer)
    assert backbone.config.pad_token_id == 1
    assert backbone(TEXTS).vector.shape == (3, 16) and backbone.embed_dims == 16
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    backbone(TEXTS).vector.sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_what_is_missing_is_said_in_one_message(text_folder, tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"'\./nowhere': there is no such folder.*save_pretrained"):
        TextBackbone('./nowhere')
    with pytest.raises(InputError, match=r'cannot be used.*config.json'):
        TextBackbone(str(tmp_path))
    shutil.copy(text_folder / 'config.json', tmp_path)
    with pytest.raises(InputError, match=r'there is no tokenizer|and the tokenizer, as'):
        TextBackbone(str(tmp_path))
    for name in ('tokenizer.json', 'tokenizer_config.json'):
        shutil.copy(text_folder / name, tmp_path)
    backbone = TextBackbone(str(tmp_path), max_length=20)  # weights of a checkpoint may follow
    with pytest.raises(InputError, match=r'cannot be used.*weights'):
        backbone.init_weights()
    with pytest.raises(InputError, match=r'max_length \(21\) of the text is more than the 20'):
        TextBackbone(str(text_folder), max_length=21)
    with pytest.raises(InputError, match='knows 19 tokens, and .* vocab_size=7'):
        TextBackbone(str(text_folder), max_length=20, config=dict(vocab_size=7))
    wide = TextBackbone(str(text_folder), max_length=20, config=dict(intermediate_size=8))
    with pytest.raises(InputError, match=r'cannot be used|do not fill'):
        wide.init_weights()
    deep = TextBackbone(str(text_folder), max_length=20, config=dict(num_hidden_layers=3))
    with pytest.raises(InputError, match=r'do not fill .* missing'):
        deep.init_weights()
    with pytest.raises(InputError, match='text_vector must be one of'):
        TextBackbone(str(text_folder), text_vector='pool')
    with pytest.raises(InputError, match='list of strings'):
        build(text_folder)([b''])
    monkeypatch.setitem(sys.modules, 'transformers', None)
    with pytest.raises(InputError, match=r'pip install "mmvars\[text\]"'):
        TextBackbone(str(text_folder))
