"""A tiny text encoder in a folder, and questions that people answered."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

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


@pytest.fixture
def bert_names() -> dict[str, str]:
    """Modules of a co-attention layer, and what BERT calls them."""
    return {
        'self_attn.query': 'attention.self.query',
        'self_attn.key': 'attention.self.key',
        'self_attn.value': 'attention.self.value',
        'self_attn.proj': 'attention.output.dense',
        'norm1': 'attention.output.LayerNorm',
        'cross_attn.query': 'crossattention.self.query',
        'cross_attn.key': 'crossattention.self.key',
        'cross_attn.value': 'crossattention.self.value',
        'cross_attn.proj': 'crossattention.output.dense',
        'norm2': 'crossattention.output.LayerNorm',
        'fc1': 'intermediate.dense',
        'fc2': 'output.dense',
        'norm3': 'output.LayerNorm',
    }


@pytest.fixture
def write_vqa_hat() -> Callable[..., Path]:
    rng = np.random.default_rng(0)

    def write_vqa_hat(folder, questions, maps, size=(32, 48)):
        """The layout of VQA-HAT with random maps: questions are ``(id, image id, words)``."""
        (folder / 'vqahat_val').mkdir(parents=True)
        (folder / 'val2014').mkdir()
        entries = [
            dict(question_id=number, image_id=image, question=words)
            for number, image, words in questions
        ]
        path = folder / 'OpenEnded_mscoco_val2014_questions.json'
        path.write_text(json.dumps(dict(questions=entries)))
        for image in {image for _, image, _ in questions}:
            pixels = rng.integers(0, 255, (*size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / 'val2014' / f'COCO_val2014_{image:012d}.jpg')
        for number, count in maps.items():
            for person in range(1, count + 1):
                pixels = rng.integers(0, 255, size, dtype=np.uint8)
                Image.fromarray(pixels).save(folder / 'vqahat_val' / f'{number}_{person}.png')
        return folder

    return write_vqa_hat
