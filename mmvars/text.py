"""Priors from text: a sentence encoder, and a linear map from its space to that of the tokens.

Nothing here is downloaded, and nothing trains: the map is a ridge regression from the names of
classes to their prototypes, so that it takes text that names no class, too. It is for models that
have no map of their own, and the start of one that is learned, ``prior=dict(type='text')``.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from mmvars.errors import InputError, check_number

__all__ = [
    'RIDGE',
    'SentenceEncoder',
    'TextEncoder',
    'TextPriors',
    'embed',
    'load_text_encoder',
]

RIDGE = 2.0
"""For embeddings and prototypes of length 1."""


class TextEncoder(Protocol):
    """What turns text into vectors: :class:`SentenceEncoder`, or one of your own."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of n texts."""


class SentenceEncoder:
    """A sentence encoder of Hugging Face's or sentence-transformers' form, in a local folder.

    Its tokens are averaged, or the first one is taken where ``1_Pooling/config.json`` says so, and
    the result is scaled to length 1.

    Args:
        folder: With ``config.json``, the weights and the tokenizer.

    Raises:
        InputError: If there is no such folder, or transformers cannot use it or is not installed.
    """

    def __init__(self, folder: str | Path) -> None:
        if not os.path.isfile(os.path.join(folder, 'config.json')):
            raise InputError(
                f'text encoder {str(folder)!r}: there is no folder with a config.json; download a '
                'sentence encoder (such as all-MiniLM-L6-v2) and give its folder'
            )
        try:
            from transformers import AutoModel, AutoTokenizer
        except ImportError as error:
            raise InputError('text priors need transformers: pip install "mmvars[text]"') from error
        pooling = Path(folder, '1_Pooling', 'config.json')
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self.model: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
            self.takes_first = pooling.is_file() and bool(
                json.loads(pooling.read_text())['pooling_mode_cls_token']
            )
            self.encode(['a'])
        except Exception as error:  # transformers, given other files, can fail in any way
            raise InputError(
                f'text encoder {str(folder)!r} cannot be used: {type(error).__name__}: '
                f'{str(error).partition(chr(10))[0]}'
            ) from error

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Embeddings ``(n, D)`` of length 1."""
        words = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors='pt')
        tokens = self.model(**words).last_hidden_state
        if self.takes_first:
            return F.normalize(tokens[:, 0], dim=1)
        mask = words['attention_mask'].unsqueeze(-1)
        return F.normalize((tokens * mask).sum(dim=1) / mask.sum(dim=1), dim=1)


def load_text_encoder(text: str | Path | TextEncoder) -> TextEncoder:
    """The encoder in a folder, or the one that is given."""
    return SentenceEncoder(text) if isinstance(text, str | Path) else text


def embed(encoder: TextEncoder, texts: Sequence[str]) -> Tensor:
    """Text vectors ``(n, D)`` of length 1, float64, on the CPU; ``traffic_light`` is two words.

    Raises:
        InputError: If a text is blank.
    """
    if blank := [text for text in texts if not text.strip()]:
        raise InputError(f'a text prior needs words, got {blank[0]!r}')
    words = [' '.join(text.replace('_', ' ').replace('-', ' ').split()) for text in texts]
    return F.normalize(encoder.encode(words).cpu().double(), dim=1)


class TextPriors:
    """From text to priors, fitted to the names of classes and their prototypes.

    With T the embeddings of the names ``(K, D)`` and P the prototypes ``(K, C)``, both less their
    means: ``q(t) = mean(P) + (t - mean(T)) (T'T + ridge)^-1 T'P``.

    Args:
        encoder: What embeds text.
        names: Of the K classes.
        prototypes: ``(K, C)``; classes whose prototype is zero are left out.
        ridge: Above 0.

    Raises:
        InputError: If fewer than two classes have a prototype.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        names: Sequence[str],
        prototypes: Tensor,
        ridge: float = RIDGE,
    ) -> None:
        check_number('ridge', ridge, 1e-12)
        known = [index for index, row in enumerate(prototypes) if row.any()]
        if len(known) < 2:
            raise InputError(
                f'text priors are fitted to the prototypes of classes, and {len(known)} of '
                f'{len(names)} classes have one: make them with `mmvars prototypes CONFIG '
                'CHECKPOINT -o FILE`'
            )
        self.encoder = encoder
        texts = embed(encoder, [names[index] for index in known])
        table = prototypes[known].cpu().double()
        self.mean_text, self.mean_prior = texts.mean(dim=0), table.mean(dim=0)
        texts -= self.mean_text
        # The same as above with a system of K equations instead of D.
        gram = texts @ texts.T + ridge * torch.eye(len(known), dtype=torch.float64)
        self.map = texts.T @ torch.linalg.solve(gram, table - self.mean_prior)

    def __call__(self, text: str) -> Tensor:
        """The prior ``(C,)`` of a text."""
        (embedding,) = embed(self.encoder, [text])
        return (self.mean_prior + (embedding - self.mean_text) @ self.map).float()
