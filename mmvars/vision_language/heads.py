"""Heads that read the fused features of a text and an image."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.errors import InputError, check_number
from mmvars.registry import MODELS
from mmvars.vision_language.fusion import init_like_bert

__all__ = ['RetrievalHead', 'VQAHead']


@MODELS.register_module()
class VQAHead(BaseModule):
    """Answers of a fixed vocabulary: Linear, norm, GELU, Linear, and a sigmoid each.

    The loss is the binary cross entropy with soft targets, summed over the answers and averaged
    over the questions.

    Args:
        num_answers: Answers A, 3129 in VQAv2.
        answers: The answers in their order, or a file with them: a JSON list, or one in each line
            of a text file. Without them predictions are numbers.
        in_dim: Width of the features; ``None``: :class:`~mmvars.vision_language.METER` fills it in.
        init_cfg: As everywhere in OpenMMLab.

    Raises:
        InputError: If there are not ``num_answers`` answers, or the file cannot be read.
    """

    text_field = 'question'
    """What a data sample calls its text."""

    def __init__(
        self,
        num_answers: int,
        answers: str | Sequence[str] | None = None,
        in_dim: int | None = None,
        init_cfg: Any = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_number('num_answers', num_answers, 1, 10_000_000, whole=True)
        check_number('in_dim of the head', in_dim, 1, whole=True)
        assert in_dim is not None
        self.answers = None if answers is None else _read_answers(answers)
        if self.answers is not None and len(self.answers) != num_answers:
            raise InputError(
                f'num_answers is {num_answers}, but {_shown(answers)} has {len(self.answers)} '
                'answers'
            )
        self.num_answers = num_answers
        self.layers = nn.Sequential(
            nn.Linear(in_dim, in_dim),
            nn.LayerNorm(in_dim),
            nn.GELU(),
            nn.Linear(in_dim, num_answers),
        )
        self.apply(init_like_bert)

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``(B, A)`` of features ``(B, in_dim)``."""
        return self.layers(features)

    def loss(self, features: Tensor, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """``loss_vqa`` of features ``(B, in_dim)``; ``gt_score (A,)`` of each data sample are the
        targets, from 0 to 1."""
        targets = [sample.get('gt_score') for sample in data_samples]
        for target in targets:
            if not isinstance(target, Tensor) or target.shape != (self.num_answers,):
                is_tensor = isinstance(target, Tensor)
                shape = tuple(target.shape) if is_tensor else target
                remedy = f': set model.head.num_answers={target.numel()}' if is_tensor else ''
                raise InputError(
                    f'VQAHead needs a gt_score of shape ({self.num_answers},) in every data '
                    f'sample, got {shape}{remedy}'
                )
        logits = self(features).float()
        stacked = torch.stack(targets).to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, stacked) * self.num_answers
        return dict(loss_vqa=loss)

    def predict(self, features: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """The data samples with ``pred_score (A,)``, probabilities, ``pred_label (1,)`` and, where
        the answers are known, ``pred_answer``."""
        scores = self(features).float().sigmoid()
        for sample, score in zip(data_samples, scores, strict=True):
            label = score.argmax()
            sample.set_field(score, 'pred_score')
            sample.set_field(label.view(1), 'pred_label')
            if self.answers is not None:
                sample.set_field(self.answers[int(label)], 'pred_answer')
        return list(data_samples)


@MODELS.register_module()
class RetrievalHead(BaseModule):
    """How well texts fit an image: a score of each pair, trained to rank.

    The texts of an image are its own, first, and others that were drawn at random, 15 in the
    release. The loss is the cross entropy of the own one among all of them, plus that of a
    classifier of pairs, which reads the first two.

    The score starts as the second row of the classifier, which is frozen, as released: it trains
    the features alone. The two have parameters of their own here. Those of the release share their
    memory at first, until the module moves to a GPU; from then on they are apart, as here.

    Differs from the release, which draws an image that does not fit for half of the texts: here a
    text that does not fit the image makes that pair, which is then one that has been computed
    already.

    Args:
        in_dim: Width of the features; ``None``: :class:`~mmvars.vision_language.METER` fills it in.
        init_cfg: As everywhere in OpenMMLab.
    """

    text_field = 'text'
    """What a data sample calls its texts."""

    def __init__(self, in_dim: int | None = None, init_cfg: Any = None) -> None:
        super().__init__(init_cfg=init_cfg)
        check_number('in_dim of the head', in_dim, 1, whole=True)
        assert in_dim is not None
        self.matching = nn.Linear(in_dim, 2)
        self.rank = nn.Linear(in_dim, 1)
        self.apply(init_like_bert)
        self.matching.requires_grad_(False)
        with torch.no_grad():
            self.rank.weight.copy_(self.matching.weight[1:])

    def forward(self, features: Tensor) -> Tensor:
        """Scores ``(...)`` of features ``(..., in_dim)``."""
        return self.rank(features).squeeze(-1)

    def loss(self, features: Tensor, data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """``loss_rank`` and ``loss_matching`` of features ``(B * k, in_dim)``, the k texts of an
        image side by side, its own first."""
        features = features.unflatten(0, (len(data_samples), -1))
        if features.shape[1] < 2:
            raise InputError(
                "RetrievalHead needs two texts of each image at least in training: a data sample's "
                'text must be a list with its own first and others after it'
            )
        own = features.new_zeros(len(features), dtype=torch.long)
        pairs = self.matching(features[:, :2]).float().flatten(0, 1)
        fits = torch.stack([own + 1, own], dim=1).flatten()
        return dict(
            loss_rank=F.cross_entropy(self(features).float(), own),
            loss_matching=F.cross_entropy(pairs, fits),
        )

    def predict(self, features: Tensor, data_samples: Sequence[Any]) -> list[Any]:
        """The data samples with ``pred_score (k,)``, the score of each of their texts, and
        ``pred_label (1,)``, the number of the best one."""
        scores = self(features).float().unflatten(0, (len(data_samples), -1))
        for sample, score in zip(data_samples, scores, strict=True):
            sample.set_field(score, 'pred_score')
            sample.set_field(score.argmax().view(1), 'pred_label')
        return list(data_samples)


def _read_answers(answers: str | Sequence[str]) -> list[str]:
    """The answers of a list or a file.

    Raises:
        InputError: If they cannot be read, or are not texts.
    """
    if isinstance(answers, str | Path):
        path = Path(answers)
        try:
            text = path.read_text(encoding='utf-8')
            lines = json.loads(text) if path.suffix == '.json' else text.splitlines()
        except (OSError, ValueError) as error:
            raise InputError(
                f'answers of VQAHead: {str(answers)!r} cannot be read ({error}); it is a JSON list '
                'of the answers, or a text file with one in each line'
            ) from error
    else:
        lines = answers
    if not isinstance(lines, Sequence) or not all(isinstance(line, str) for line in lines):
        raise InputError(f'answers of VQAHead: {_shown(answers)} is no list of texts')
    return list(lines)


def _shown(answers: Any) -> str:
    return repr(str(answers)) if isinstance(answers, str | Path) else 'answers'
