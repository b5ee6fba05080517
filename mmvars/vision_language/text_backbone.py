"""A text encoder of Hugging Face's transformers as a backbone: tokens, and one vector a text."""

import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor

from mmvars.errors import InputError, check_choice, check_flag, check_number
from mmvars.registry import MODELS

__all__ = ['TEXT_VECTORS', 'TextBackbone', 'TextFeatures']

TEXT_VECTORS = ('cls', 'mean', 'padded_mean', 'eos')
"""How the tokens of a text become its vector: the first token (the thesis), their mean, their mean
over all ``max_length`` positions with what fills them up (released for VQA), or the last token,
``</s>`` of RoBERTa (released for retrieval)."""


class TextFeatures(NamedTuple):
    """What :class:`TextBackbone` returns for B texts of at most L tokens.

    Attributes:
        tokens: ``(B, L, D)``, of the last layer.
        mask: ``(B, L)``, true where a text has a token.
        vector: ``(B, D)``, what the text asks an image for.
    """

    tokens: Tensor
    mask: Tensor
    vector: Tensor


@MODELS.register_module()
class TextBackbone(BaseModule):
    """An encoder of transformers (``pip install "mmvars[text]"``), such as RoBERTa-base in METER.

    Built with random weights; ``init_weights()`` loads those of ``name``, so that a checkpoint of
    the whole model needs the tokenizer and the configuration alone. Only weights are read
    (safetensors, or a pickle of tensors and nothing else), and code of the model's author never
    runs.

    Args:
        name: A folder with ``config.json``, the weights and the tokenizer, or a name on the Hugging
            Face hub, from where transformers then downloads them.
        max_length: Longest text in tokens; longer ones are cut. 50 in the released VQA, 40 in its
            retrieval.
        text_vector: One of :data:`TEXT_VECTORS`. Differs from the thesis (``'cls'``): see there
            what the release does, which is what the configs say.
        pretrained: Whether ``init_weights()`` loads the weights of ``name``.
        config: Entries of ``config.json`` to replace. With ``model_type`` (``'roberta'``) it is
            the whole configuration, and ``name`` needs the tokenizer alone; the vocabulary is
            then the tokenizer's.
        init_cfg: As everywhere in OpenMMLab.

    Attributes:
        embed_dims: Channels D.

    Raises:
        InputError: If transformers is not installed or cannot use the folder, or the tokenizer, the
            length and the network do not fit each other.
    """

    def __init__(
        self,
        name: str,
        max_length: int = 50,
        text_vector: str = 'cls',
        pretrained: bool = True,
        config: dict | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_number('max_length of the text', max_length, 3, 1_000_000, whole=True)
        check_choice('text_vector', text_vector, TEXT_VECTORS)
        check_flag('pretrained of the text backbone', pretrained)
        self.name = name
        self.max_length = max_length
        self.text_vector = text_vector
        self.pretrained = pretrained
        _check_name(name)
        try:
            from transformers import AutoConfig, AutoModel, AutoTokenizer
        except ImportError as error:
            raise InputError(
                'mmvars.TextBackbone needs transformers: pip install "mmvars[text]"'
            ) from error
        overrides = dict(config or {})
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
            if 'model_type' in overrides:
                overrides.setdefault('vocab_size', len(self.tokenizer))
                overrides.setdefault('pad_token_id', self.tokenizer.pad_token_id)
                self.config: Any = AutoConfig.for_model(**overrides)
            else:
                self.config = AutoConfig.from_pretrained(name, trust_remote_code=False, **overrides)
            self.model: Any = AutoModel.from_config(self.config, trust_remote_code=False)
        except Exception as error:  # transformers, given other files, can fail in any way
            raise InputError(_unusable(name, error)) from error
        _drop_pooler(self.model)
        _check_tokenizer(self.tokenizer, name)
        self.tokenizer.padding_side = 'right'  # the first token is the first one of the text
        self.embed_dims = int(self.config.hidden_size)
        self._check_sizes()

    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """Encode texts.

        Args:
            texts: At least one.

        Raises:
            InputError: If they are not texts.
        """
        texts = list(texts)
        if not texts or not all(isinstance(text, str) for text in texts):
            raise InputError(f'texts must be a list of strings with one at least, got {texts!r}')
        words = self.tokenizer(
            texts,
            padding='max_length' if self.text_vector == 'padded_mean' else True,
            truncation=True,
            max_length=self.max_length,
            return_tensors='pt',
        ).to(self.model.device)
        tokens = self.model(
            input_ids=words['input_ids'], attention_mask=words['attention_mask']
        ).last_hidden_state
        mask = words['attention_mask'].bool()
        return TextFeatures(tokens, mask, self._vector(tokens, mask))

    def init_weights(self) -> None:
        """Load the weights of ``name``, unless ``pretrained`` is false.

        Raises:
            InputError: If transformers cannot read them, or they do not fill the network.
        """
        self._is_init = True  # transformers' own init_weights would draw all weights anew
        if not self.pretrained:
            return
        from transformers import AutoModel

        try:
            loaded, info = AutoModel.from_pretrained(
                self.name,
                config=self.config,
                trust_remote_code=False,
                weights_only=True,
                output_loading_info=True,
            )
            _drop_pooler(loaded)
        except Exception as error:
            raise InputError(_unusable(self.name, error)) from error
        missing = [key for key in info['missing_keys'] if not key.startswith('pooler.')]
        if missing or info['mismatched_keys']:
            raise InputError(
                f'the weights in {self.name!r} do not fill the text backbone: missing '
                f'{sorted(missing)[:5]}, of another shape {sorted(info["mismatched_keys"])[:5]}; '
                'give the folder of a whole encoder, without config entries that change its sizes'
            )
        self.model.load_state_dict(loaded.state_dict())
        print_log(f'text backbone: weights of {self.name} loaded', logger='current')

    def _vector(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """``(B, D)`` by ``text_vector``."""
        if self.text_vector == 'cls':
            return tokens[:, 0]
        if self.text_vector == 'padded_mean':
            return tokens.mean(dim=1)
        if self.text_vector == 'eos':
            last = mask.sum(dim=1) - 1
            return tokens[torch.arange(len(tokens), device=tokens.device), last]
        weights = mask.unsqueeze(-1).to(tokens.dtype)
        return (tokens * weights).sum(dim=1) / weights.sum(dim=1)

    def _check_sizes(self) -> None:
        if len(self.tokenizer) > self.config.vocab_size:
            raise InputError(
                f'the tokenizer in {self.name!r} knows {len(self.tokenizer)} tokens, and the text '
                f'backbone has vocab_size={self.config.vocab_size}: they are not of one model'
            )
        # RoBERTa counts positions from the one after that of the padding.
        first = getattr(getattr(self.model, 'embeddings', None), 'padding_idx', None)
        positions = getattr(self.config, 'max_position_embeddings', self.max_length + 1)
        longest = positions if first is None else positions - first - 1
        if self.max_length > longest:
            raise InputError(
                f'max_length ({self.max_length}) of the text is more than the {longest} tokens '
                f'that {self.name!r} has positions for'
            )


def _check_name(name: str) -> None:
    """Refuse what is neither a folder nor a possible name on the hub."""
    if not isinstance(name, str) or not name:
        raise InputError(f'name of the text backbone must be a folder or a name, got {name!r}')
    if not os.path.isdir(name) and not re.fullmatch(r'\w[\w.-]*(/[\w.-]+)?', name):
        raise InputError(
            f'text backbone {name!r}: there is no such folder. It holds config.json, the weights '
            'and the tokenizer, as `save_pretrained` of transformers writes them; or give a name '
            "on the Hugging Face hub, such as 'roberta-base'"
        )


def _check_tokenizer(tokenizer: Any, name: str) -> None:
    """Refuse the empty one that transformers makes where there are no files of one."""
    if tokenizer.pad_token is None or set(tokenizer.get_vocab()) <= {*tokenizer.all_special_tokens}:
        raise InputError(
            f'text backbone {name!r}: there is no tokenizer with a vocabulary and a token that '
            'fills texts up; it needs tokenizer.json, or the vocabulary files of its kind, as '
            '`save_pretrained` of transformers writes them'
        )


def _unusable(name: str, error: Exception) -> str:
    where = '' if os.path.isdir(name) else ', which is no folder but a name on the hub,'
    return (
        f'text backbone {name!r}{where} cannot be used: {type(error).__name__}: '
        f'{str(error).strip().partition(chr(10))[0]} (it needs config.json, the weights and the '
        'tokenizer, as `save_pretrained` of transformers writes them)'
    )


def _drop_pooler(model: Any) -> None:
    """Take a layer away that no output here depends on; parameters in vain stop DDP."""
    if getattr(model, 'pooler', None) is not None:
        model.pooler = None
