"""A file that ``mmvars export`` wrote, as a predictor without prompts."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.export import read_file
from mmvars.predictor import Prediction
from mmvars.states import picture_of
from mmvars.visualization.model import ClassTable

__all__ = ['ExportedModel']

_NO_PROMPTS = (
    'an exported file takes no prompts and has no first pass: give the config and the checkpoint '
    'that it was made of'
)


@dataclass(eq=False)
class _State:
    picture: np.ndarray  # (H, W, 3) uint8, RGB


class ExportedModel:
    """What :class:`~mmvars.predictor.Predictor` needs of a model, of a file.

    Args:
        path: ``.onnx`` or ``.pt2``.

    Attributes:
        model: ``None``.
        table: Names and colors of the classes.
        is_steerable, scales_without_prior: ``False``.

    Raises:
        InputError: If the file cannot be read, or takes or gives what is no picture or score.
    """

    model = None
    is_steerable = False
    scales_without_prior = False

    def __init__(self, path: str | Path) -> None:
        self.run, meta, self.size, dtype = read_file(Path(path))
        if meta.get('input') != 'pixels 0 to 255':
            raise InputError(
                f'{path} does not say how images are normalized: export the model with --normalize'
            )
        if meta.get('part') not in ('segmentor', 'classifier') or not dtype.is_floating_point:
            raise InputError(
                f'{path} gives {meta.get("part") or "nothing known"} in {dtype}, and probabilities '
                'need the logits of a segmentor or classifier: export without --labels and --part'
            )
        self.segments = meta['part'] == 'segmentor'
        self.order = meta['channels']
        blank = np.zeros((*(self.size or (224, 224)), 3), dtype=np.uint8)
        names = json.loads(meta.get('classes') or '[]')
        num_classes = len(names) or len(self._scores(blank))
        if num_classes == 1:
            raise InputError(
                f'{path} is of a segmentor with one channel, and does not hold its threshold: '
                'give the config and the checkpoint'
            )
        self.table = ClassTable.of(num_classes, dict(classes=names))

    def start(self, image: Any, previous: None = None) -> _State:
        """Take an image, as for ``Predictor.set_image``."""
        return _State(picture_of(image))

    def answer(
        self,
        state: _State,
        priors: Sequence[Any],
        alpha: float | None,
        plain: Callable[[], np.ndarray],
    ) -> list[Prediction]:
        """The predictions; neither a prior nor ``alpha`` may be given."""
        if alpha is not None or any(prior is not None for prior in priors):
            raise InputError(_NO_PROMPTS)
        scores = self._scores(state.picture)
        best = scores.argmax(dim=0)
        labels = best.numpy() if self.segments else int(best)
        if not self.segments:
            scores = scores.softmax(dim=0)
        nothing = None, None, None, None, None, None
        return [Prediction(labels, *nothing, scores, [], plain) for _ in priors]

    @torch.no_grad()
    def _scores(self, picture: np.ndarray) -> torch.Tensor:
        """Logits ``(K, H, W)`` at the size of the picture, of a classifier ``(K,)``."""
        channels = picture if self.order == 'RGB' else picture[..., ::-1]
        images = torch.from_numpy(np.ascontiguousarray(channels)).permute(2, 0, 1)[None].float()
        size = picture.shape[:2]
        if self.size is not None and size != self.size:
            images = F.interpolate(images, self.size, mode='bilinear', antialias=True)
        logits = self.run(images.contiguous())[0].float()
        if self.segments and logits.shape[-2:] != size:
            logits = F.interpolate(logits, size, mode='bilinear')
        return logits[0]

    @property
    def class_priors(self) -> Any:
        """Refused."""
        raise InputError(_NO_PROMPTS)

    def vector(self, prior: Any, current: Any) -> Any:
        """Refused."""
        raise InputError(_NO_PROMPTS)

    def save(self, state: Any, file: Any, overwrite: bool) -> None:
        """Refused."""
        raise InputError(_NO_PROMPTS)

    def load(self, file: Any, picture: Any) -> Any:
        """Refused."""
        raise InputError(_NO_PROMPTS)
