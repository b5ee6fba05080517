"""Set an image once, and prompt it many times: all that does not depend on the prompt runs once.

A prediction is the model's own ``predict``, in which the first pass is not computed but put in
place. So nothing of heads, sliding windows and resizing is written a second time here, and without
a prompt the result is the model's own to the last bit.
"""

import copy
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmvars.datasets.loading import LoadImageFromFile
from mmvars.engine.cpu import pick_device
from mmvars.engine.errors import user_errors
from mmvars.errors import InputError, check_number
from mmvars.layers import TokenGrid
from mmvars.models.sliding_window import InferenceOptions, Window, window_mean
from mmvars.networks import (
    ClassPrototype,
    ExternalPrior,
    FirstPassOutput,
    PerceiverIO,
    TopDown,
    Trunk,
    TrunkOutput,
)
from mmvars.prompts import Box, Example, Mask, Points, as_prompt
from mmvars.prototypes import read_prototypes
from mmvars.visualization.draw import resolve_layer
from mmvars.visualization.maps import map_at_grid, token_norm_map, upsample_map
from mmvars.visualization.model import (
    ClassTable,
    Network,
    build_model,
    class_sources,
    dataset_of,
    image_pipeline,
    is_segmentor,
    network_of,
    num_classes_of,
    read_config,
)
from mmvars.visualization.priors import check_top_down, find_class, scale_of

__all__ = ['Prediction', 'Predictor', 'Shift', 'load', 'run_files']

_UNSTORED = ('keep_logits', 'logits_device', 'logits_dtype')
"""Keys of ``test_cfg`` that say how full-size logits are stored; probabilities need them all."""


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
        attention: ``(H, W)``, norms of the tokens in the last pass (top-down attention).
        bottom_up: ``(H, W)``, the same of the first pass.
        prior: ``(C,)``, what the prompt means; ``None`` without one.
        alpha: Scale in use; ``None`` where nothing is scaled.
    """

    labels: Any
    heatmap: np.ndarray | None
    token_weights: np.ndarray | None
    attention: np.ndarray
    bottom_up: np.ndarray
    prior: np.ndarray | None
    alpha: float | None
    _scores: Tensor = field(repr=False)
    _passes: list[TrunkOutput] = field(repr=False)  # the last one of each forward
    _plain: Callable[[], np.ndarray] = field(repr=False)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """``(K, H, W)``, of a classifier ``(K,)``; made when first asked for."""
        return _probabilities(self._scores)

    @cached_property
    def shift(self) -> Shift:
        """What the prior changed, see :class:`Shift`; made when first asked for."""
        change = self.probabilities - self._plain()
        return Shift(np.abs(change).sum(axis=0) / 2, change.reshape(len(change), -1).mean(axis=1))


class _Frame(NamedTuple):
    """From pixels of the image as it is shown to those that the network sees."""

    size: tuple[int, int]  # (H, W) of the image
    scaled: tuple[int, int]  # after the resize of the pipeline
    seen: tuple[int, int]  # after its center crop, without padding

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of ``scaled`` where ``seen`` begins, as CenterCrop of mmcv rounds."""
        top, left = (
            max(0, round((length - side) / 2.0))
            for length, side in zip(self.scaled, self.seen, strict=True)
        )
        return top, left

    def to_network(self, pixels: np.ndarray) -> np.ndarray:
        """Columns and rows ``(n, 2)`` that the network sees, of those that it does see."""
        scale = np.divide(self.scaled, self.size)[::-1]
        places = np.floor((pixels + 0.5) * scale - self.corner[::-1]).astype(np.int64)
        inside = (places >= 0).all(axis=1) & (places < self.seen[::-1]).all(axis=1)
        return places[inside]

    def to_image(self, maps: Tensor) -> np.ndarray:
        """``(H', W')`` that the network sees, with padding below and right, as ``(H, W)``.

        What a center crop leaves out is zero.
        """
        top, left = self.corner
        bottom, right = self.scaled[0] - top - self.seen[0], self.scaled[1] - left - self.seen[1]
        maps = F.pad(
            maps[: self.seen[0], : self.seen[1]], (left, max(right, 0), top, max(bottom, 0))
        )
        if maps.shape != self.size:
            maps = F.interpolate(maps[None, None], self.size, mode='bilinear')[0, 0]
        return maps.float().cpu().numpy()


@dataclass(eq=False)
class _State:
    """An image, and all of its forward that does not depend on a prompt."""

    picture: np.ndarray  # (H, W, 3) uint8, RGB
    inputs: Tensor  # (1, 3, H', W'), normalized and padded
    metainfo: dict
    frame: _Frame
    groups: list[list[Window]]  # windows of each forward
    sample_type: type  # of the framework's data samples
    passes: list[Any] = field(default_factory=list)  # of each forward: what is put in place
    norms: list[Tensor] = field(default_factory=list)  # (n, h, w), of the tokens in it
    plain: np.ndarray | None = None  # probabilities without a prompt, once asked for


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
    bool array ``(H, W)``; :class:`mmvars.Example`, another image or a region of it; a vector
    ``(C,)``; with ``text``, any other string. All but the last of these live in the space in which
    the network compares tokens with its prior (Section 2.5): a prompt from a picture is the mean of
    the output tokens of the first pass there, and a class its prototype.

    ``test_cfg`` of the config counts, windows too; but logits are stored in full, whatever
    ``keep_logits``, ``logits_device`` and ``logits_dtype`` say.

    Threads may share it and its :meth:`clone`: predictions wait for each other.

    Args:
        model: A folder that ``mmvars train`` wrote: its config, and its best checkpoint, or else
            the last. Or a config, or the name of a shipped one.
        checkpoint: For a config, or in place of the folder's; default: ``load_from`` of the config.
        device: Such as ``'cuda:1'``; default: CUDA's, if there is one.
        prototypes: A file of ``mmvars prototypes``: its classes, in place of the network's own.
        text: A folder with a sentence encoder, or a :class:`mmvars.text.TextEncoder`; needs
            prototypes of classes, to whose names its map is fitted.
        cfg_options: Entries of the config to replace, ``{'model.backbone.alpha': 5}``.

    Attributes:
        model: The segmentor or classifier.
        classes: Names of the classes that it tells apart.
        palette: A color ``(r, g, b)`` for each.

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
        config, checkpoint = run_files(model, checkpoint)
        self.cfg: Config = read_config(config, dict(cfg_options or {}))
        checkpoint = checkpoint or self.cfg.get('load_from')
        if checkpoint is None:
            raise InputError(
                f'the config {config} names no weights: give a checkpoint, '
                f'Predictor({str(model)!r}, CHECKPOINT)'
            )
        for key in _UNSTORED:
            (self.cfg.model.get('test_cfg') or {}).pop(key, None)
        self.model, meta = build_model(self.cfg, str(checkpoint), pick_device(device))
        self._pipeline = image_pipeline(self.cfg)
        table = ClassTable.of(
            num_classes_of(self.model), *class_sources(dataset_of(self.cfg), meta)
        )
        self.classes, self.palette = table.names, table.palette
        self._layer = resolve_layer(None, self.model.backbone.trunk.depth)
        self._prototypes = prototypes
        self._text = text
        self._states: list[_State] = []
        self._lock = threading.RLock()
        if prototypes is not None or text is not None:
            self._check_steerable('prototypes and text say what a prior may be')
        if prototypes is not None:
            self.class_priors  # noqa: B018  refuse the file now
        if text is not None:
            self._text_priors  # noqa: B018

    def clone(self) -> 'Predictor':
        """Another one with the same model in memory, and with no image: for another user."""
        other = copy.copy(self)
        other._states = []
        return other

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def is_steerable(self) -> bool:
        """Whether the network takes a prior."""
        return getattr(self._network, 'prior', None) is not None and type(
            self.model
        ).__module__.startswith('mmvars.')

    @property
    def prior_classes(self) -> dict[int, str]:
        """Number and name of the classes that a prior may be; none without their vectors."""
        try:
            names, table = self._class_priors
        except InputError:
            return {}
        numbers = table.any(dim=1).nonzero().flatten().tolist()
        return {i: names[i] if names else f'class {i}' for i in numbers}

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Height and width of the image; ``None`` before one is set."""
        return self._states[0].frame.size if self._states else None

    @property
    def image(self) -> np.ndarray:
        """The image as it is shown, ``(H, W, 3)`` uint8, RGB."""
        return self._state.picture

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
        picture = self._picture(image)
        if previous is not None and picture.shape[:2] != previous.attention.shape:
            raise InputError(
                f'the frame has {picture.shape[0]}x{picture.shape[1]} pixels (height x width), and '
                f'the one of previous {previous.attention.shape[0]}x{previous.attention.shape[1]}: '
                'leave previous out where a video begins'
            )
        with self._lock:
            self._states = [self._first_state(picture, previous)]

    def set_image_batch(self, images: Sequence[Any]) -> None:
        """:meth:`set_image` with several, of any sizes, for :meth:`predict_batch`."""
        if not isinstance(images, Sequence) or isinstance(images, str) or not len(images):
            raise InputError(f'images must be a list of at least one image, got {images!r:.80}')
        with self._lock:
            self._states = [self._first_state(image) for image in images]

    def reset_image(self) -> None:
        """Forget the image."""
        self._states = []

    def predict(self, prior: Any = None, alpha: float | None = None) -> Prediction:
        """The answer to one prompt.

        Args:
            prior: See :class:`Predictor`; ``None``: the model's own, bit for bit.
            alpha: Scale of the top-down signal, 0 is off; ``None``: the model's own.

        Raises:
            InputError: If no image is set, the model cannot be steered so, or the prompt cannot be
                used.
        """
        return self._answer(self._state, prior, alpha)

    def predict_batch(
        self, priors: Sequence[Any] | None = None, alpha: float | None = None
    ) -> list[Prediction]:
        """Several priors for one image, or one prior for each of several images.

        Each result is that of :meth:`predict` alone.

        Args:
            priors: A list; ``None``: none for any image.
            alpha: As for :meth:`predict`.
        """
        states = self._states or [self._state]
        if priors is None:
            priors = [None] * len(states)
        if not isinstance(priors, list):
            raise InputError(
                f'priors must be a list with a prior in each place, got {priors!r:.80}'
            )
        if len(states) == 1:
            states = states * len(priors)
        if len(priors) != len(states):
            raise InputError(
                f'priors must be one for each of the {len(states)} images, got {len(priors)}'
            )
        return [
            self._answer(state, prior, alpha) for state, prior in zip(states, priors, strict=True)
        ]

    def prior_vector(self, prior: Any) -> Tensor:
        """What a prompt means, ``(C,)``: in the current image, where it is a place in it.

        Raises:
            InputError: As :meth:`predict`.
        """
        state = self._states[0] if len(self._states) == 1 else None
        with self._lock:
            return self._vector(prior, state)

    @property
    def _network(self) -> Network:
        return network_of(self.model)

    @property
    def _state(self) -> _State:
        if len(self._states) == 1:
            return self._states[0]
        if self._states:
            raise InputError(
                f'{len(self._states)} images are set: use predict_batch, with a list of priors'
            )
        raise InputError('no image is set: call set_image(image) first')

    @torch.no_grad()
    def _first_state(self, image: Any, previous: Prediction | None = None) -> _State:
        picture = self._picture(image)
        with user_errors():
            packed = self._pipeline(dict(img=np.ascontiguousarray(picture[..., ::-1])))
            sample = packed['data_samples']
            data = self.model.data_preprocessor(
                dict(inputs=[packed['inputs']], data_samples=[sample]), False
            )
        inputs, metainfo = data['inputs'], dict(data['data_samples'][0].metainfo)
        frame = _frame(picture.shape[:2], tuple(packed['inputs'].shape[-2:]), metainfo)
        options = InferenceOptions.from_cfg(getattr(self.model, 'test_cfg', None))
        windows, step = options.windows(inputs), options.window_batch
        groups = [windows[start : start + step] for start in range(0, len(windows), step)]
        state = _State(picture, inputs, metainfo, frame, groups, type(sample))
        if not isinstance(self._network, Trunk):
            self._run_first_passes(state, previous)
        return state

    def _picture(self, image: Any) -> np.ndarray:
        """``(H, W, 3)`` uint8, RGB, upright."""
        if isinstance(image, str | Path):
            loader = next(
                step for step in self._pipeline.transforms if isinstance(step, LoadImageFromFile)
            )
            bgr = loader.transform(dict(img_path=str(image)))['img']
            return np.ascontiguousarray(bgr[..., ::-1].astype(np.uint8))
        if isinstance(image, Image.Image):
            if image.mode != 'RGB':
                raise InputError(
                    f"the image has mode {image.mode!r}: give image.convert('RGB'), if its colors "
                    'are then what you want to show the model'
                )
            return np.array(ImageOps.exif_transpose(image))
        if (
            not isinstance(image, np.ndarray)
            or image.dtype != np.uint8
            or image.ndim != 3
            or image.shape[2] != 3
            or not image.size
        ):
            got = (
                f'{image.dtype} {image.shape}'
                if isinstance(image, np.ndarray)
                else type(image).__name__
            )
            raise InputError(
                'image must be a path, a PIL image, or a uint8 array (H, W, 3) in RGB order; got '
                f'{got}'
            )
        return image.copy()

    def _run_first_passes(self, state: _State, previous: Prediction | None) -> None:
        """Run them in the order in which ``predict`` comes to the windows."""
        network, backbone = self._network, self.model.backbone
        before = [None] * len(state.groups) if previous is None else previous._passes
        for group, output in zip(state.groups, before, strict=True):
            # A single window stays a view, as in EncoderDecoder.
            crops = (
                state.inputs[group[0]]
                if len(group) == 1
                else torch.cat([state.inputs[window] for window in group])
            )
            with self._norms() as calls:
                if isinstance(network, TopDown):
                    first = network.forward_first_pass(crops, output)
                else:
                    first = network.trunk(crops, backbone._raw_indices)
            state.passes.append(first)
            norms = self._norm_map(calls[-1] if calls else None, _output(first))
            if isinstance(network, TopDown):  # at a smaller scale it has fewer patches
                norms = map_at_grid(norms, network.trunk.block_grids(first.grid)[self._layer])
            state.norms.append(norms)

    @contextmanager
    def _norms(self) -> Iterator[list]:
        """Tokens and second argument of each call of the block whose token norms are shown."""
        calls: list[tuple[Tensor, Any]] = []
        block = self.model.backbone.trunk.blocks[self._layer]
        handle = block.register_forward_hook(
            lambda module, args, tokens: calls.append((tokens, args[1]))
        )
        try:
            yield calls
        finally:
            handle.remove()

    def _norm_map(self, call: tuple[Tensor, Any] | None, output: TrunkOutput) -> Tensor:
        """``(n, h, w)`` of what the block last did; of a network that reweights its output, of
        that."""
        if call is None or isinstance(self._network, PerceiverIO):
            return token_norm_map(output.tokens, output.grid)
        tokens, grid = call
        # Blocks of timm are called with positions in place of a grid; all have that of the output.
        return token_norm_map(tokens, grid if isinstance(grid, TokenGrid) else output.grid)

    @property
    def _norm_stride(self) -> int:
        is_output = isinstance(self._network, PerceiverIO)
        return self.model.backbone.trunk.strides[-1 if is_output else self._layer]

    @torch.no_grad()
    def _answer(self, state: _State, prior: Any, alpha: float | None) -> Prediction:
        network, backbone = self._network, self.model.backbone
        if alpha is not None:
            check_number('alpha', alpha)
        remedy = 'give prior=None and alpha=None'
        check_top_down(network, prior is not None, alpha is not None, remedy)
        with self._lock, ExitStack() as stack:
            vector = None if prior is None else self._vector(prior, state)
            sample = state.sample_type(metainfo=dict(state.metainfo))
            if vector is not None:
                sample.set_field(vector, 'prior')
            elif isinstance(getattr(network, 'prior', None), ExternalPrior):
                sample.set_field(torch.zeros(backbone.embed_dims), 'prior')  # asks for nothing
            outputs: list[Any] = []
            norms: list[Tensor] = []
            feats: list[Any] = []
            calls = stack.enter_context(self._norms())

            def record(module: Any, args: Any, output: Any) -> None:
                outputs.append(output)
                last = output if isinstance(network, Trunk) else output.second
                norms.append(self._norm_map(calls[-1] if calls else None, last))

            hooks = [
                network.register_forward_hook(record),
                backbone.register_forward_hook(lambda module, args, output: feats.append(output)),
            ]
            if alpha is not None:
                hooks.append(
                    backbone.register_forward_pre_hook(
                        lambda module, args, kwargs: (args, {**kwargs, 'alpha': alpha}),
                        with_kwargs=True,
                    )
                )
            for hook in hooks:
                stack.callback(hook.remove)
            if isinstance(network, TopDown) or vector is not None or alpha is not None:
                stack.enter_context(_replayed(network, state.passes))
            with user_errors():
                (result,) = self.model.predict(state.inputs, [sample])
        scale = scale_of(network, alpha)
        return self._prediction(state, result, outputs, norms, feats, vector, scale)

    def _prediction(
        self,
        state: _State,
        result: Any,
        outputs: list[Any],
        norms: list[Tensor],
        feats: list[Any],
        vector: Tensor | None,
        alpha: float | None,
    ) -> Prediction:
        """From what the hooks saw in one ``predict``: an entry for each forward in the lists."""
        network, backbone = self._network, self.model.backbone
        stride = self._norm_stride
        attention = self._on_image(state, norms, stride)
        if not np.isfinite(attention).all():
            raise InputError(
                'the output tokens are not finite'
                + (
                    '; the checkpoint is of a training that diverged'
                    if alpha is None
                    else f' with alpha {alpha:g}: take a smaller one'
                )
            )
        weights = heatmap = None
        if getattr(network, 'prior', None) is not None:
            grids = [output.second.grid._replace(num_prefix=0) for output in outputs]
            maps = [
                # FAN's class token is in the output, but not among the tokens that go back.
                grid.to_map(output.token_weights[:, -grid.num_patches :].float())[:, 0]
                for grid, output in zip(grids, outputs, strict=True)
            ]
            weights = heatmap = self._on_image(state, maps, backbone.trunk.strides[-1])
        head = getattr(self.model, 'prompt_head', None)
        if head is not None and (vector is not None or network.prior is None):
            maps = [head(each)[:, 0].float() for each in feats]
            heatmap = self._on_image(state, maps, backbone.out_strides[-1], torch.sigmoid)
        if is_segmentor(self.model):
            labels = result.pred_sem_seg.data[0].long().cpu().numpy()
            scores = result.seg_logits.data
        else:
            labels, scores = int(result.pred_label.reshape(-1)[0]), result.pred_score
        return Prediction(
            labels,
            heatmap,
            weights,
            attention,
            self._on_image(state, state.norms or norms, stride),
            None if vector is None else vector.cpu().numpy(),
            alpha,
            scores,
            [output.second._replace(intermediates=(), grids=()) for output in outputs]
            if isinstance(network, TopDown)
            else [],
            lambda: self._plain_probabilities(state),
        )

    def _plain_probabilities(self, state: _State) -> np.ndarray:
        if state.plain is None:
            state.plain = self._answer(state, None, None).probabilities
        return state.plain

    def _on_image(
        self,
        state: _State,
        maps: Sequence[Tensor],
        stride: int,
        function: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> np.ndarray:
        """Maps ``(n, h, w)`` of each forward as one of the image ``(H, W)``.

        Where windows overlap it is their mean.

        Args:
            state: The image.
            maps: Of tokens ``stride`` pixels apart.
            stride: See maps.
            function: Applied at the size of the window.
        """
        parts = []
        for group, each in zip(state.groups, maps, strict=True):
            size = tuple(state.inputs[group[0]].shape[-2:])
            large = function(upsample_map(each, stride, size))
            parts += [(w, m) for w, m in zip(group, large[:, None, None], strict=True)]
        total = state.inputs.new_zeros((1, 1, *state.inputs.shape[-2:]))
        return state.frame.to_image(window_mean(parts, total)[0, 0])

    def _vector(self, prior: Any, state: _State | None) -> Tensor:
        """What a prompt means, ``(C,)``."""
        self._check_steerable('a prompt')
        prior = as_prompt(prior)
        if isinstance(prior, Example):
            state = self._first_state(prior.image)
            region = prior.region or Mask(np.ones(state.frame.size, dtype=bool))
            return self._mean_tokens(region, state)
        if isinstance(prior, Points | Box | Mask):
            if state is None:
                self._state  # noqa: B018  says what is missing
            return self._mean_tokens(prior, state)
        if isinstance(prior, str | int) and not isinstance(prior, bool):
            return self._class_vector(prior)
        width = self.model.backbone.embed_dims
        vector = None
        if isinstance(prior, Tensor | np.ndarray | list):
            try:
                vector = torch.as_tensor(prior).detach().to(self.device)
            except (TypeError, ValueError, RuntimeError):
                vector = None
        if vector is None or not vector.is_floating_point():
            raise InputError(
                f'prior must be None, the name or number of a class, mmvars.Points, Box, Mask or '
                f'Example, or a float vector of width {width}; got {prior!r:.80}'
            )
        if vector.shape != (width,):
            raise InputError(
                f'a prior vector must have shape ({width},), the width of the tokens; got '
                f'{tuple(vector.shape)}'
            )
        vector = vector.float()
        if not vector.isfinite().all():
            raise InputError('the prior vector holds NaN or infinite numbers: give finite ones')
        return vector

    def _mean_tokens(self, region: Points | Box | Mask, state: _State) -> Tensor:
        """Mean output token of the first pass at the pixels of a region, ``(C,)``.

        A pixel has the token of its patch in every window that sees it. From the mean at positive
        points that at negative ones is subtracted, else the center of the prior, from which the
        network takes all differences.
        """
        positive, negative = region.pixels(state.frame.size)
        mean = self._mean_token(positive, state)
        if mean is None:
            raise InputError(
                'the network does not see this place: the test pipeline of the config crops the '
                'image around its center; give a place nearer to it'
            )
        opposite = self._mean_token(negative, state)
        if opposite is None:
            opposite = self._network.prior.center
        return mean if opposite is None else mean - opposite

    def _mean_token(self, pixels: np.ndarray, state: _State) -> Tensor | None:
        """``None`` where none of the pixels is seen."""
        places = state.frame.to_network(pixels)
        stride = self.model.backbone.trunk.strides[-1]
        total, count = torch.zeros(self.model.backbone.embed_dims, device=self.device), 0
        for group, first in zip(state.groups, state.passes, strict=True):
            output = _output(first)
            grid = output.grid
            tokens = grid.patch_tokens(output.tokens).float()
            for (_, rows, columns), each in zip(group, tokens, strict=True):
                x, y = places[:, 0] - columns.start, places[:, 1] - rows.start
                size = rows.stop - rows.start, columns.stop - columns.start
                seen = (x >= 0) & (x < size[1]) & (y >= 0) & (y < size[0])
                # A first pass at a smaller scale has fewer patches on the same pixels.
                patches = -(-size[0] // stride), -(-size[1] // stride)
                row = y[seen] // stride * grid.height // patches[0]
                column = x[seen] // stride * grid.width // patches[1]
                shares = np.bincount(row * grid.width + column, minlength=grid.num_patches)
                total += torch.as_tensor(shares, dtype=total.dtype, device=total.device) @ each
                count += int(seen.sum())
        return total / count if count else None

    def _class_vector(self, name: str | int) -> Tensor:
        """The prototype of a class; else, with a text encoder, the prior of a text."""
        names, table = self.class_priors
        try:
            index = find_class(str(name), len(table), names)
        except InputError:
            if self._text is None or isinstance(name, int):
                raise
            return self._text_priors(name).to(self.device)
        if not table[index].any():
            raise InputError(
                f'class {names[index] if names else index!r} has no prototype, its vector is zero: '
                'make prototypes of images in which it is labeled, `mmvars prototypes CONFIG '
                'CHECKPOINT -o FILE`, and give prototypes=FILE'
            )
        return table[index].detach().float()

    @cached_property
    def class_priors(self) -> tuple[Sequence[str] | None, Tensor]:
        """Names of the classes that a prior may be (``None``: they have none), and their vectors
        ``(K, C)``."""
        network, names = self._network, self.classes
        if self._prototypes is not None:
            names, table = read_prototypes(self._prototypes, network)
        elif isinstance(network.prior, ClassPrototype):
            table = network.prior.prototypes
        else:
            head = None if is_segmentor(self.model) else self.model.head
            table = getattr(getattr(head, 'fc', None), 'weight', None)
        if table is None or table.ndim != 2 or table.shape[1] != self.model.backbone.embed_dims:
            raise InputError(
                'this model has no vectors of classes that a prior could be: make them with '
                '`mmvars prototypes CONFIG CHECKPOINT -o FILE`, and give prototypes=FILE'
            )
        return names if len(names) == len(table) else None, table.to(self.device)

    @cached_property
    def _text_priors(self) -> Any:
        from mmvars.text import TextPriors, load_text_encoder

        names, table = self.class_priors
        return TextPriors(load_text_encoder(self._text), names or (), table)

    def _check_steerable(self, what: str) -> None:
        check_top_down(self._network, True, False, 'give prior=None')
        if not self.is_steerable:
            raise InputError(
                f'{what} needs type="mmvars.EncoderDecoder" or "mmvars.ImageClassifier" as the '
                f'model: {type(self.model).__name__} of this config hands no prior to its backbone'
            )


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
    if checkpoint is not None:
        return str(configs[0]), checkpoint
    files = sorted(folder.glob('*.pth'), key=lambda path: path.stat().st_mtime_ns)
    best = [path for path in files if path.name.startswith('best_')]
    named = folder / 'last_checkpoint'
    last = folder / Path(named.read_text().strip()).name if named.is_file() else None
    if best:
        return str(configs[0]), best[-1]
    if last is not None and last.is_file():
        return str(configs[0]), last
    if not files:
        raise InputError(
            f'folder {folder} holds no checkpoint (*.pth): train further, or give one, '
            f'Predictor({str(model)!r}, CHECKPOINT)'
        )
    return str(configs[0]), files[-1]


@contextmanager
def _replayed(network: Any, passes: Sequence[Any]) -> Iterator[None]:
    """Put what was computed before in place of the first pass, forward by forward."""
    owner, name = (
        (network, 'forward_first_pass')
        if isinstance(network, TopDown)
        else (network.trunk, 'forward')
    )
    remaining = iter(passes)
    setattr(owner, name, lambda *args, **kwargs: next(remaining))
    try:
        yield
    finally:
        delattr(owner, name)


def _output(first: FirstPassOutput | TrunkOutput) -> TrunkOutput:
    return first.output if isinstance(first, FirstPassOutput) else first


def _probabilities(scores: Tensor) -> np.ndarray:
    """``(K, ...)`` of the logits of a segmentor; those of a classifier are probabilities."""
    scores = scores.float()
    if scores.ndim == 3 and len(scores) > 1:
        scores = scores.softmax(dim=0)
    elif scores.ndim == 3:  # binary: mmseg has applied the sigmoid
        scores = torch.cat([1 - scores, scores])
    return scores.cpu().numpy()


def _frame(size: tuple[int, int], seen: tuple[int, int], metainfo: Mapping[str, Any]) -> _Frame:
    """How the pipeline brought an image ``(H, W)`` to what the network sees, before padding.

    Raises:
        InputError: If it is more than a resize, a center crop and padding below and right.
    """
    scale = np.atleast_1d(metainfo.get('scale_factor', 1.0))[::-1]  # (height, width)
    scaled = tuple(int(round(side)) for side in np.array(size) * scale)
    padding = metainfo.get('img_padding_size', metainfo.get('padding_size', (0, 0, 0, 0)))
    if metainfo.get('flip') or padding[0] or padding[2]:
        raise InputError(
            'the test pipeline of the config flips images, or pads them at the left or the top, so '
            'that places cannot be followed: leave that out'
        )
    shown = tuple(min(pair) for pair in zip(scaled, seen, strict=True))
    return _Frame(tuple(size), scaled, shown)
