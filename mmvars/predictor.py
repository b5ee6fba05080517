"""Set an image once, and prompt it many times: all that does not depend on the prompt runs once."""

import copy
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from mmvars.errors import InputError, check_number

__all__ = ['Prediction', 'Predictor', 'Shift', 'load', 'probabilities_of', 'run_files']

EXPORTED = ('.onnx', '.pt2')
KEPT_BYTES = 2**30
"""Of predictions without a prior, for the shifts of all images of a model and its clones; of one
image they are kept whatever they take. The others are computed again when a shift needs them."""


class Shift(NamedTuple):
    """What a prior changed.

    Attributes:
        pixels: ``(H, W)``, half the L1 distance of the probabilities from those without the prior:
            0 where nothing changed, 1 where all of it went to other classes; of a classifier one
            number.
        classes: ``(K,)``, mean change of the probability of each class over the image.
    """

    pixels: np.ndarray
    classes: np.ndarray


@dataclass(eq=False)
class Prediction:
    """The answer to one prompt, in numpy, at the size of the image as it is shown.

    Attributes:
        labels: Class of each pixel ``(H, W)``; of a classifier one number.
        heatmap: ``(H, W)`` in [0, 1], how much each place is what was asked for: the probability of
            the prompt head; without one, or without a prompt, the token weights. ``None`` where
            there are none. A network that takes no prior (``design='feedback'``) has that of its
            prompt head, whatever was asked.
        token_weights: ``(H, W)`` in [0, 1], clamped cosine of the tokens with the prior; ``None``
            where the network has no prior.
        attention: ``(H, W)``, norms of the tokens in the last pass (top-down attention), after the
            block that ``mmvars visualize`` shows; ``None`` of an exported file.
        bottom_up: ``(H, W)``, the same of the first pass.
        prior: ``(C,)``, what the prompt means; ``None`` without one.
        alpha: Scale in use; ``None`` where nothing is scaled.
    """

    labels: Any
    heatmap: np.ndarray | None
    token_weights: np.ndarray | None
    attention: np.ndarray | None
    bottom_up: np.ndarray | None
    prior: np.ndarray | None
    alpha: float | None
    _scores: Any = field(repr=False)  # Tensor, until the probabilities are made of it
    _passes: list[Any] = field(repr=False)  # TrunkOutput of the last pass of each forward
    _plain: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """``(K, H, W)``, of a classifier ``(K,)``; made when first asked for."""
        scores, self._scores = self._scores, None  # not both at a time
        return probabilities_of(scores)

    @cached_property
    def shift(self) -> Shift:
        """What the prior changed; the first one of an image takes a prediction without prior."""
        plain = self._plain()
        pixels, classes = np.zeros(plain.shape[1:], dtype=np.float32), []
        for after, before in zip(self.probabilities, plain, strict=True):
            change = after - before
            pixels += np.abs(change) / 2
            classes.append(change.mean())
        return Shift(pixels, np.array(classes))


def probabilities_of(scores: Tensor) -> np.ndarray:
    """``(K, H, W)`` of a segmentor's logits; ``(K,)`` of a classifier are probabilities already.

    One channel, of a binary segmentor, is the probability of the second class.
    """
    scores = scores.float()
    if scores.ndim == 3:
        scores = torch.cat([1 - scores, scores]) if len(scores) == 1 else scores.softmax(dim=0)
    return scores.cpu().numpy()


class Predictor:
    """A trained model as plain Python: set an image, prompt it, look at the result.

    ::

        predictor = mmvars.Predictor('work_dirs/run')
        predictor.set_image('street.jpg')
        plain = predictor.predict()
        result = predictor.predict((320, 200))  # what is at this place
        result.labels, result.heatmap, result.shift.pixels

    Prompts are: ``None``, the model as it is; the name or number of a class;
    :class:`mmvars.Points`, or ``(x, y)`` for one; :class:`mmvars.Box`; :class:`mmvars.Mask`, or a
    bool array ``(H, W)``; :class:`mmvars.Example`, another image or a region of it; a float vector
    ``(C,)``; with ``text``, any other string. A prompt from a picture is the mean of the output
    tokens of the first pass there: it lives where the network compares tokens with its prior
    (Section 2.5). Of points labeled 0 the mean is subtracted; without such points it is
    ``prior.center``, where the network has one. That of a region is then multiplied with
    ``prior.whitening``, where the network was made from a file of ``mmvars prototypes``. A class is
    its prototype. An example is encoded at each call: for many images take
    ``vector = predictor.prior_vector(example)`` once.

    ``test_cfg`` of the config counts, windows too; but logits are stored in full, whatever
    ``keep_logits``, ``logits_device`` and ``logits_dtype`` say.

    Threads may share it and its :meth:`clone`: predictions wait for each other.

    Args:
        model: A folder that ``mmvars train`` wrote: its config, and its best checkpoint, or else
            the last. Or a config, or the name of a shipped one. Or a file that ``mmvars export``
            wrote with ``--normalize``, which takes no prompts: images are resized to its size, or
            taken as they are where it takes any.
        checkpoint: For a config, or in place of the folder's; default: ``load_from`` of the config.
        device: Such as ``'cuda:1'``; default: CUDA's, if there is one.
        prototypes: A file of ``mmvars prototypes``: its classes, in place of the network's own.
        text: A folder with a sentence encoder, or a :class:`mmvars.text.TextEncoder`; needs
            prototypes of classes, to whose names its map is fitted.
        cfg_options: Entries of the config to replace, ``{'model.backbone.alpha': 5}``.

    Attributes:
        classes: Names of the classes that it tells apart.
        palette: A color ``(r, g, b)`` for each.
        is_steerable: Whether the network takes a prior.
        scales_without_prior: Whether alpha changes anything where no prior is given.

    Raises:
        InputError: If a file or an argument cannot be used.
    """

    def __init__(
        self,
        model: str | Path,
        checkpoint: str | Path | None = None,
        *,
        device: str | None = None,
        prototypes: str | Path | None = None,
        text: Any = None,
        cfg_options: Mapping[str, Any] | None = None,
    ) -> None:
        self._engine: Any
        if Path(model).suffix in EXPORTED:
            from mmvars.exported import ExportedModel

            options = dict(checkpoint=checkpoint, prototypes=prototypes, text=text)
            options |= dict(device=device, cfg_options=cfg_options)
            given = [name for name, value in options.items() if value is not None]
            if given:
                raise InputError(f'{model} is an exported file: leave out {", ".join(given)}')
            self._engine = ExportedModel(model)
        else:
            from mmvars.steering import SteeredModel

            config, checkpoint = run_files(model, checkpoint)
            self._engine = SteeredModel(
                config, checkpoint, device, prototypes, text, dict(cfg_options or {})
            )
        self.classes: tuple[str, ...] = self._engine.table.names
        self.palette: list = self._engine.table.palette
        self.is_steerable: bool = self._engine.is_steerable
        self.scales_without_prior: bool = self._engine.scales_without_prior
        self._states: list[Any] = []
        self._kept: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._lock = threading.RLock()

    def clone(self) -> 'Predictor':
        """Another one with the same model in memory, and with no image: for another user."""
        other = copy.copy(self)
        other._states = []
        return other

    @property
    def model(self) -> Any:
        """The segmentor or classifier; ``None`` of an exported file."""
        return self._engine.model

    @property
    def image(self) -> np.ndarray:
        """The image as it is shown, ``(H, W, 3)`` uint8, RGB."""
        return self._state.picture

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the image; ``None`` before one is set."""
        return self._states[0].picture.shape[:2] if self._states else None

    @property
    def class_priors(self) -> tuple[Sequence[str] | None, Tensor]:
        """Names of the classes that a prior may be (``None``: they have none), and their vectors
        ``(K, C)``.

        Raises:
            InputError: If the model has no such vectors.
        """
        return self._engine.class_priors

    @property
    def prior_classes(self) -> dict[int, str]:
        """Number and name of the classes that a prior may be; none without their vectors."""
        try:
            names, table = self.class_priors
        except InputError:
            return {}
        numbers = table.any(dim=1).nonzero().flatten().tolist()
        return {i: names[i] if names else f'class {i}' for i in numbers}

    def set_image(self, image: Any, previous: Prediction | None = None) -> None:
        """Take an image and run all that does not depend on a prompt.

        Args:
            image: A path, a PIL image (their EXIF orientation is applied), or an array
                ``(H, W, 3)`` uint8, RGB.
            previous: For the next frame of a video, the prediction for the frame before: its output
                tokens take the place of the first pass. Half the cost, and another function:
                prompts from the picture, too, are then means of those tokens.

        Raises:
            InputError: If it cannot be used; the image before stays.
        """
        if previous is not None and not previous._passes:
            raise InputError('previous needs a model with a second pass, and this one has none')
        with self._lock:
            self._states = [self._engine.start(image, previous=previous)]

    def set_image_batch(self, images: Sequence[Any]) -> None:
        """:meth:`set_image` with several, of any sizes, for :meth:`predict_batch`."""
        if not isinstance(images, list | tuple) or not images:
            raise InputError(f'images must be a list of at least one image, got {images!r:.80}')
        with self._lock:
            self._states = [self._engine.start(image) for image in images]

    def reset_image(self) -> None:
        """Forget the image."""
        self._states = []

    def predict(self, prior: Any = None, alpha: float | None = None) -> Prediction:
        """The answer to one prompt.

        Args:
            prior: See :class:`Predictor`; ``None``: what the model does by itself, bit for bit.
            alpha: Scale of the top-down signal, 0 (off) or above; ``None``: the model's own. A
                model whose priors are classes has nothing to scale without a prior.

        Raises:
            InputError: If no image is set, the model cannot be steered so, or the prompt cannot be
                used.
        """
        return self._answer(self._state, [prior], alpha)[0]

    def predict_batch(
        self, priors: Sequence[Any] | None = None, alpha: float | None = None
    ) -> list[Prediction]:
        """Several priors for one image, or one prior for each of several images.

        Each result is that of :meth:`predict` alone, up to rounding: priors for one image that is
        seen whole, without sliding windows, share forwards of up to a million pixels.

        Args:
            priors: A list; ``None``: none for any image.
            alpha: As for :meth:`predict`.
        """
        states = self._states or [self._state]
        if priors is None:
            priors = [None] * len(states)
        if not isinstance(priors, list):
            raise InputError(f'priors must be a list, a prior for each, got {priors!r:.80}')
        if len(states) == 1:
            return self._answer(states[0], priors, alpha)
        if len(priors) != len(states):
            raise InputError(
                f'priors must be one for each of the {len(states)} images, got {len(priors)}'
            )
        pairs = zip(states, priors, strict=True)
        return [self._answer(state, [prior], alpha)[0] for state, prior in pairs]

    def prior_vector(self, prior: Any) -> Tensor:
        """What a prompt means, ``(C,)``; a place is one in the current image.

        Raises:
            InputError: As :meth:`predict`.
        """
        with self._lock:
            return self._engine.vector(prior, lambda: self._state)

    def save_state(self, file: str | Path, overwrite: bool = False) -> None:
        """Write the image and its first pass, so that neither need be made again.

        Args:
            file: ``.safetensors``.
            overwrite: Whether an existing file may be replaced.

        Raises:
            InputError: If there is no image or no first pass, or the file cannot be written.
        """
        self._engine.save(self._state, file, overwrite)

    def load_state(self, file: str | Path) -> None:
        """Set the image of a state, without its first pass being computed.

        Raises:
            InputError: If another image is set, the state is of another model, or the file is
                damaged; the image that is set stays.
        """
        with self._lock:
            now = self._state if self._states else None
            self._states = [self._engine.load(file, None if now is None else now.picture)]

    @property
    def _state(self) -> Any:
        if len(self._states) == 1:
            return self._states[0]
        if self._states:
            raise InputError(
                f'{len(self._states)} images are set: use predict_batch, or set_image with one'
            )
        raise InputError('no image is set: call set_image(image) first')

    def _answer(self, state: Any, priors: list[Any], alpha: float | None) -> list[Prediction]:
        if alpha is not None:
            check_number('alpha', alpha, 0)
            alpha = float(alpha)  # of numpy, too
        with self._lock:
            answers = self._engine.answer(state, priors, alpha, lambda: self._plain(state))
            for prior, answer in zip(priors, answers, strict=True):
                if prior is None and alpha is None and state not in self._kept:
                    self._keep(state, answer._scores)  # for shifts; of the same numbers
            return answers

    def _plain(self, state: Any) -> np.ndarray:
        """Probabilities without a prior."""
        with self._lock:
            if state not in self._kept:
                self._answer(state, [None], None)
            plain = self._kept[state]
            if isinstance(plain, Tensor):
                plain = probabilities_of(plain)
            self._keep(state, plain)
            return plain

    def _keep(self, state: Any, plain: Any) -> None:
        """Keep scores or probabilities without a prior, as the ones used last."""
        self._kept.pop(state, None)
        self._kept[state] = plain
        while len(self._kept) > 1 and sum(x.nbytes for x in self._kept.values()) > KEPT_BYTES:
            del self._kept[next(iter(self._kept))]


def load(model: str | Path, checkpoint: str | Path | None = None, **options: Any) -> Predictor:
    """A :class:`Predictor`; ``options`` are its further arguments."""
    return Predictor(model, checkpoint, **options)


def run_files(
    model: str | Path, checkpoint: str | Path | None = None
) -> tuple[str, str | Path | None]:
    """Config and checkpoint of a run folder; of a config as they are.

    Args:
        model: A folder that ``mmvars train`` wrote, or a config.
        checkpoint: Replaces that of the folder, which is the newest ``best_*``, else what
            ``last_checkpoint`` names, else the newest.

    Raises:
        InputError: If the folder holds no config, or several, or no checkpoint.
    """
    folder = Path(model)
    if not folder.is_dir():
        return str(model), checkpoint
    configs = sorted(folder.glob('*.py'))
    if len(configs) != 1:
        names = f'{len(configs)}: {", ".join(p.name for p in configs)}' if configs else 'none'
        raise InputError(
            f'folder {folder} must hold one config, as `mmvars train` leaves it, and holds '
            f'{names}; give the config and a checkpoint'
        )
    files = sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns)
    best = [path for path in files if path.name.startswith('best_')]
    named = folder / 'last_checkpoint'
    if named.is_file():  # by its name, since the folder may have been moved
        last = folder / Path(named.read_text().strip()).name
        files += [last] if last.is_file() else []
    if checkpoint is None and not files:
        raise InputError(
            f'folder {folder} holds no checkpoint (*.pth): train further, or give checkpoint=FILE '
            '(--checkpoint FILE)'
        )
    return str(configs[0]), checkpoint or (best or files)[-1]
