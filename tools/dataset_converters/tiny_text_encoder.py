"""Make a small text encoder, which trains from scratch with METER, from the words of questions.

For runs that must not download RoBERTa-base: its tokenizer splits at spaces and punctuation, knows
the words of the files that are given, and has RoBERTa's special tokens::

    python tools/dataset_converters/tiny_text_encoder.py questions.json captions.json -o folder

Files are those of VQAv2's questions and of Karpathy's splits. The folder has the configuration and
the tokenizer, and no weights: `text_backbone=dict(name=FOLDER, pretrained=False)`.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from mmvars.cli import run_tool
from mmvars.datasets.annotations import read_json
from mmvars.errors import InputError

SPECIAL = dict(bos='<s>', pad='<pad>', eos='</s>', unk='<unk>', mask='<mask>')  # RoBERTa's order


def texts_of(path: str | Path) -> list[str]:
    """The questions, or the captions, of a file."""
    content = read_json(path, 'questions or captions', {})
    if 'questions' in content:
        example = dict(questions=[dict(question='is it red?')])
        questions = read_json(path, 'questions of VQAv2', example)['questions']
        return [entry['question'] for entry in questions]
    example = dict(images=[dict(sentences=[dict(raw='A man sits.')])])
    images = read_json(path, "questions of VQAv2 or Karpathy's splits", example)['images']
    return [sentence['raw'] for image in images for sentence in image['sentences']]


def write_text_encoder(
    texts: Iterable[str],
    folder: str | Path,
    hidden_size: int = 64,
    num_layers: int = 2,
    num_heads: int = 4,
    max_words: int = 10_000,
) -> None:
    """Write ``config.json`` and a word-level tokenizer of the most frequent words of texts.

    Raises:
        InputError: If transformers is not installed.
    """
    try:
        from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
        from tokenizers.models import WordLevel
    except ImportError as error:
        raise InputError('a text encoder needs transformers: pip install "mmvars[text]"') from error
    split = pre_tokenizers.BertPreTokenizer()
    counts = Counter(word for text in texts for word, _ in split.pre_tokenize_str(text.lower()))
    words = [word for word, _ in counts.most_common(max_words)]
    vocabulary = {word: number for number, word in enumerate((*SPECIAL.values(), *words))}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token='<unk>'))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    tokenizer.post_processor = processors.TemplateProcessing(
        single='<s> $A </s>', special_tokens=[('<s>', 0), ('</s>', 2)]
    )
    config = dict(
        model_type='roberta',
        vocab_size=len(vocabulary),
        hidden_size=hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        intermediate_size=2 * hidden_size,
        max_position_embeddings=66,  # two more than the longest text, as in RoBERTa
        type_vocab_size=1,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
    )
    names = {f'{kind}_token': token for kind, token in SPECIAL.items()}
    folder = Path(folder)
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / 'tokenizer.json'))
    for name, content in (
        ('config.json', config),
        ('tokenizer_config.json', dict(tokenizer_class='PreTrainedTokenizerFast', **names)),
    ):
        (folder / name).write_text(json.dumps(content, indent=1), encoding='utf-8')


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('files', nargs='+', help='questions of VQAv2, captions of Karpathy')
    parser.add_argument('-o', '--out', required=True, help='folder to write; must not exist')
    args = parser.parse_args(argv)
    if Path(args.out).exists():
        raise InputError(f'{args.out!r} exists: name another folder')
    write_text_encoder((text for path in args.files for text in texts_of(path)), args.out)
    return 0


if __name__ == '__main__':
    sys.exit(run_tool(main))
