"""A tiny text encoder in a folder, as transformers writes it."""

from pathlib import Path

import pytest
import torch

WORDS = 'what color shape is the circle square red blue green a and of in not'.split()


@pytest.fixture(scope='session')
def text_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RoBERTa of 2 layers, 32 wide, that knows :data:`WORDS`."""
    transformers = pytest.importorskip('transformers')
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    folder = tmp_path_factory.mktemp('roberta')
    special = ['<s>', '<pad>', '</s>', '<unk>']
    vocabulary = {word: number for number, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token='<unk>'))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 2)]
    )
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token='<s>',
        eos_token='</s>',
        pad_token='<pad>',
        unk_token='<unk>',
    ).save_pretrained(folder)
    config = transformers.RobertaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=22,
        pad_token_id=1,
    )
    with torch.random.fork_rng():
        torch.manual_seed(7)
        transformers.RobertaModel(config).save_pretrained(folder)
    return folder
