"""A model and its prompts: what of a forward depends on them, and what is kept.

A prediction is the model's own ``predict``, in which the first pass is not computed but put in
place. So nothing of heads, sliding windows and resizing is written a second time here, and without
a prompt the result is the model's own to the last bit.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmvars.checkpoints.partial import sha256_of
from mmvars.datasets.loading import LoadImageFromFile
from mmvars.engine.cpu import pick_device
from mmvars.engine.errors import user_errors
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.models.sliding_window import InferenceOptions, Window, window_mean
from mmvars.networks import (
    ExternalPrior,
    FirstPassOutput,
    PerceiverIO,
    TopDown,
    Trunk,
    TrunkOutput,
)
from mmvars.predictor import Prediction
from mmvars.prompts import Box, Example, Mask, Points, as_prompt
from mmvars.prototypes import read_prototypes
from mmvars.text import TextPriors, load_text_encoder
from mmvars.visualization.draw import resolve_layer
from mmvars.visualization.maps import map_at_grid, token_norm_map, upsample_map
from mmvars.visualization.model import (
    ClassTable,
    build_model,
    class_sources,
    dataset_of,
    image_pipeline,
    is_segmentor,
    network_of,
    num_classes_of,
    read_config,
)
from mmvars.visualization.priors import check_top_down, class_vectors, find_class, scale_of

__all__ = ['Frame', 'State', 'SteeredModel', 'output_of', 'picture_of']

UNSTORED = ('keep_logits', 'logits_device', 'logits_dtype')
"""Keys of ``test_cfg`` that say how full-size logits are stored; probabilities need them all."""


class Frame(NamedTuple):
    """From pixels of the image as it is shown to those that the network sees."""

    size: tuple[int, int]  # (H, W) of the image
    scaled: tuple[int, int]  # after the resize of the pipeline
    seen: tuple[int, int]  # after its center crop, without padding

    @classmethod
    def of(
        cls, size: tuple[int, int], packed: tuple[int, int], metainfo: Mapping[str, Any]
    ) -> 'Frame':
        """Of an image ``(H, W)`` that a pipeline made ``packed``.

        Raises:
            InputError: If it did more than resize, crop around the center, and pad below and right.
        """
        scale = np.broadcast_to(metainfo.get('scale_factor', 1.0), 2)[::-1]  # (height, width)
        scaled = int(round(size[0] * scale[0])), int(round(size[1] * scale[1]))
        padding = metainfo.get('img_padding_size', metainfo.get('padding_size', (0, 0, 0, 0)))
        if metainfo.get('flip') or padding[0] or padding[2]:
            raise InputError(
                'the test pipeline of the config flips images, or pads them at the left or the '
                'top, so that places in them cannot be followed: leave that step out'
            )
        seen = min(scaled[0], packed[0]), min(scaled[1], packed[1])
        return cls(size, scaled, seen)

    @property
    def corner(self) -> tuple[int, int]:
        """Row and column of ``scaled`` where ``seen`` begins, rounded as CenterCrop of mmcv."""
        rows, columns = self.scaled[0] - self.seen[0], self.scaled[1] - self.seen[1]
        return round(rows / 2.0), round(columns / 2.0)

    def to_network(self, pixels: np.ndarray) -> np.ndarray:
        """Columns and rows ``(n, 2)`` that the network sees, of those that it does see."""
        scale = np.divide(self.scaled, self.size)[::-1]
        places = np.floor((pixels + 0.5) * scale - self.corner[::-1]).astype(np.int64)
        inside = (places >= 0).all(axis=1) & (places < self.seen[::-1]).all(axis=1)
        return places[inside]

    def to_image(self, values: Tensor) -> np.ndarray:
        """``(H', W')`` that the network sees, with padding below and right, as ``(H, W)``.

        What a center crop leaves out is zero.
        """
        top, left = self.corner
        bottom, right = self.scaled[0] - top - self.seen[0], self.scaled[1] - left - self.seen[1]
        values = F.pad(values[: self.seen[0], : self.seen[1]], (left, right, top, bottom))
        if values.shape != self.size:
            values = F.interpolate(values[None, None], self.size, mode='bilinear')[0, 0]
        return values.float().cpu().numpy()


@dataclass(eq=False)
class State:
    """An image, and all of its forward that does not depend on a prompt.

    Attributes:
        picture: ``(H, W, 3)`` uint8, RGB, as it is shown.
        inputs: ``(1, 3, H', W')``, normalized and padded.
        sample: What the pipeline says of it, for the model.
        frame: From one to the other.
        groups: Windows of each forward of the network.
        passes: What is put in place of the first pass, of each forward: the output of
            ``forward_first_pass``; of the trunk, where there is one pass; empty of plain networks.
        norms: ``(n, h, w)``, norms of the tokens in each of these.
        is_carried: Whether the first pass is that of the frame before.
        plain_scores: Logits or scores of a prediction without a prior, until ``plain`` is made.
        plain: Its probabilities, once they were asked for.
    """

    picture: np.ndarray
    inputs: Tensor
    sample: Any
    frame: Frame
    groups: list[list[Window]]
    passes: list[Any] = field(default_factory=list)
    norms: list[Tensor] = field(default_factory=list)
    is_carried: bool = False
    plain_scores: Tensor | None = None
    plain: np.ndarray | None = None


class SteeredModel:
    """A segmentor or classifier as :class:`~mmvars.predictor.Predictor` uses it.

    Args:
        config, checkpoint, device, prototypes, text, options: As there.

    Attributes:
        model: In eval mode.
        table: Names and colors of its classes.
        is_steerable: Whether it takes a prior.
    """

    def __init__(
        self,
        config: str,
        checkpoint: str | Path | None,
        device: str | None,
        prototypes: str | Path | None,
        text: Any,
        options: dict,
    ) -> None:
        self.cfg = read_config(config, options)
        checkpoint = checkpoint or self.cfg.get('load_from')
        if checkpoint is None:
            raise InputError(
                f'the config {config} names no weights: give a checkpoint, '
                f'Predictor({config!r}, CHECKPOINT)'
            )
        for key in UNSTORED:
            (self.cfg.model.get('test_cfg') or {}).pop(key, None)
        self.model, meta = build_model(self.cfg, str(checkpoint), pick_device(device))
        self.pipeline = image_pipeline(self.cfg)
        sources = class_sources(dataset_of(self.cfg), meta)
        self.table = ClassTable.of(num_classes_of(self.model), *sources)
        self.network: Any = network_of(self.model)
        self.trunk = self.model.backbone.trunk
        self.layer = resolve_layer(None, self.trunk.depth)
        self.passes_prior = any(
            base.__module__.startswith('mmvars.') for base in type(self.model).__mro__
        )
        self.is_steerable = getattr(self.network, 'prior', None) is not None and self.passes_prior
        self.prototypes = prototypes
        self.text: Any = None if text is None else load_text_encoder(text)
        if prototypes is not None or text is not None:
            self._check_steerable()
            # What cannot be used is refused now.
            _ = self.class_priors if text is None else self.text_priors

    @torch.no_grad()
    def start(self, image: Any, run: bool = True, previous: Prediction | None = None) -> State:
        """Prepare an image, as for ``Predictor.set_image``, and ``run`` its first pass."""
        picture = picture_of(image, self.pipeline.transforms)
        size = picture.shape[:2]
        if previous is not None and previous.attention is not None:
            before = previous.attention.shape
            if size != before:
                raise InputError(
                    f'the frame has {size[0]}x{size[1]} pixels (height x width), and the one of '
                    f'previous {before[0]}x{before[1]}: leave previous out where a video begins'
                )
        with user_errors():
            packed = self.pipeline(dict(img=np.ascontiguousarray(picture[..., ::-1])))
            samples = [packed['data_samples']]
            data = self.model.data_preprocessor(
                dict(inputs=[packed['inputs']], data_samples=samples), False
            )
        inputs, sample = data['inputs'], data['data_samples'][0]
        frame = Frame.of(size, tuple(packed['inputs'].shape[-2:]), sample.metainfo)
        options = InferenceOptions.from_cfg(getattr(self.model, 'test_cfg', None))
        windows, step = options.windows(inputs), options.window_batch
        groups = [windows[start : start + step] for start in range(0, len(windows), step)]
        state = State(picture, inputs, sample, frame, groups, is_carried=previous is not None)
        if run and not isinstance(self.network, Trunk):
            with user_errors():
                self._run_first_passes(state, previous)
        return state

    def _run_first_passes(self, state: State, previous: Prediction | None) -> None:
        """Run them in the order in which ``predict`` comes to the windows."""
        network = self.network
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
                    first = network.trunk(crops, self.model.backbone._raw_indices)
            norms = self._norm_map(calls[-1] if calls else None, output_of(first))
            if isinstance(network, TopDown):  # at a smaller scale it has fewer patches
                norms = map_at_grid(norms, network.trunk.block_grids(first.grid)[self.layer])
            state.passes.append(first)
            state.norms.append(norms)

    @contextmanager
    def _norms(self) -> Iterator[list]:
        """Tokens and second argument of each call of the block whose token norms are shown."""
        calls: list[tuple[Tensor, Any]] = []
        handle = self.trunk.blocks[self.layer].register_forward_hook(
            lambda module, args, tokens: calls.append((tokens, args[1]))
        )
        try:
            yield calls
        finally:
            handle.remove()

    def _norm_map(self, call: tuple[Tensor, Any] | None, output: TrunkOutput) -> Tensor:
        """``(n, h, w)`` of the block's last call; of a network that reweights its output, of
        that."""
        if call is None or isinstance(self.network, PerceiverIO):
            return token_norm_map(output.tokens, output.grid)
        tokens, grid = call
        # Blocks of timm are called with positions in place of a grid; all have that of the output.
        return token_norm_map(tokens, grid if isinstance(grid, TokenGrid) else output.grid)

    @torch.no_grad()
    def answer(
        self, state: State, prior: Any, alpha: float | None, plain: Callable[[], np.ndarray]
    ) -> Prediction:
        """The answer to one prompt, see ``Predictor.predict``."""
        network, backbone = self.network, self.model.backbone
        remedy = 'give prior=None and alpha=None'
        check_top_down(network, prior is not None, alpha is not None, remedy)
        vector = None if prior is None else self.vector(prior, lambda: state)
        sample = type(state.sample)(metainfo=dict(state.sample.metainfo))
        if vector is not None:
            sample.set_field(vector, 'prior')
        elif isinstance(getattr(network, 'prior', None), ExternalPrior):
            sample.set_field(torch.zeros(backbone.embed_dims), 'prior')  # asks for nothing
        outputs: list[Any] = []
        norms: list[Tensor] = []
        feats: list[Any] = []
        with ExitStack() as stack:
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
            if state.passes:
                stack.enter_context(_replayed(network, state.passes))
            with user_errors():
                (result,) = self.model.predict(state.inputs, [sample])
        if (
            isinstance(network, PerceiverIO)
            and backbone._is_class_token_alone
            and vector is alpha is None
        ):
            # With one pass the model computes this token alone, which rounds differently.
            (result,) = self.model.predict(state.inputs, [sample])
        scale = scale_of(network, alpha)
        stride = self.trunk.strides[-1 if isinstance(network, PerceiverIO) else self.layer]
        attention = self._on_image(state, norms, stride)
        if not np.isfinite(attention).all():
            raise InputError(
                'the output tokens are not finite; the checkpoint is of a training that diverged'
                if alpha is None
                else f'the output tokens are not finite with alpha {alpha:g}: take a smaller one'
            )
        weights = heatmap = None
        if getattr(network, 'prior', None) is not None:
            weights = heatmap = self._weights_on_image(state, outputs)
        head = getattr(self.model, 'prompt_head', None)
        if head is not None and (vector is not None or network.prior is None):
            logits = [head(each)[:, 0].float() for each in feats]
            heatmap = self._on_image(state, logits, backbone.out_strides[-1], torch.sigmoid)
        segments = is_segmentor(self.model)
        return Prediction(
            result.pred_sem_seg.data[0].long().cpu().numpy()
            if segments
            else int(result.pred_label),
            heatmap,
            weights,
            attention,
            self._on_image(state, state.norms or norms, stride),
            None if vector is None else vector.cpu().numpy(),
            scale,
            result.seg_logits.data if segments else result.pred_score,
            [output.second._replace(intermediates=(), grids=()) for output in outputs]
            if isinstance(network, TopDown)
            else [],
            plain,
        )

    def _weights_on_image(self, state: State, outputs: Sequence[Any]) -> np.ndarray:
        maps = []
        for output in outputs:
            # FAN's class token is in the output, but not among the tokens that go back.
            grid = output.second.grid._replace(num_prefix=0)
            weights = output.token_weights[:, -grid.num_patches :].float()
            maps.append(grid.to_map(weights)[:, 0])
        return self._on_image(state, maps, self.trunk.strides[-1])

    def _on_image(
        self,
        state: State,
        maps: Sequence[Tensor],
        stride: int,
        function: Callable[[Tensor], Tensor] | None = None,
    ) -> np.ndarray:
        """Maps ``(n, h, w)`` of each forward, ``stride`` pixels from one place to the next, as one
        map ``(H, W)`` of the image: where windows overlap, the mean of what ``function`` makes of
        them."""
        parts = []
        for group, each in zip(state.groups, maps, strict=True):
            height, width = state.inputs[group[0]].shape[-2:]
            large = upsample_map(each, stride, (height, width))
            if function is not None:
                large = function(large)
            parts += [*zip(group, large[:, None, None], strict=True)]
        total = state.inputs.new_zeros((1, 1, *state.inputs.shape[-2:]))
        return state.frame.to_image(window_mean(parts, total)[0, 0])

    def vector(self, prior: Any, current: Callable[[], State]) -> Tensor:
        """What a prompt means, ``(C,)``; ``current`` gives the image that places are in.

        Raises:
            InputError: If it cannot be used.
        """
        self._check_steerable()
        prior = as_prompt(prior)
        if isinstance(prior, Example):
            state = self.start(prior.image)
            everything = Mask(np.ones(state.frame.size, dtype=bool))
            return self._mean_tokens(prior.region or everything, state)
        if isinstance(prior, Points | Box | Mask):
            return self._mean_tokens(prior, current())
        if isinstance(prior, str | int) and not isinstance(prior, bool):
            return self._class_vector(prior)
        width = self.model.backbone.embed_dims
        vector = None
        if isinstance(prior, Tensor | np.ndarray | list):
            try:
                vector = torch.as_tensor(prior).detach().to(self.device)
            except (TypeError, ValueError, RuntimeError):
                pass  # refused below
        if vector is None or not vector.is_floating_point():
            raise InputError(
                'prior must be None, the name or number of a class, mmvars.Points, Box, Mask or '
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
        if not vector.any():
            raise InputError('the prior vector is zero, which asks for nothing: give none for that')
        return vector

    def _mean_tokens(self, region: Points | Box | Mask, state: State) -> Tensor:
        """Mean output token of the first pass at the pixels of a region, ``(C,)``.

        A pixel has the token of its patch, in every window that sees it. The mean at negative
        points is subtracted, else the center of the prior, from which the network takes all
        differences.
        """
        positive, negative = region.pixels(state.frame.size)
        mean = self._mean_token(positive, state)
        if not len(negative):
            center = self.network.prior.center
            return mean if center is None else mean - center
        return mean - self._mean_token(negative, state)

    def _mean_token(self, pixels: np.ndarray, state: State) -> Tensor:
        places = state.frame.to_network(pixels)
        stride = self.trunk.strides[-1]
        total, count = torch.zeros(self.model.backbone.embed_dims, device=self.device), 0
        for group, first in zip(state.groups, state.passes, strict=True):
            grid = output_of(first).grid
            tokens = grid.patch_tokens(output_of(first).tokens).float()
            for (_, rows, columns), each in zip(group, tokens, strict=True):
                x, y = places[:, 0] - columns.start, places[:, 1] - rows.start
                height, width = rows.stop - rows.start, columns.stop - columns.start
                seen = (x >= 0) & (x < width) & (y >= 0) & (y < height)
                # A first pass at a smaller scale has fewer patches on the same pixels.
                row = y[seen] // stride * grid.height // -(-height // stride)
                column = x[seen] // stride * grid.width // -(-width // stride)
                shares = np.bincount(row * grid.width + column, minlength=grid.num_patches)
                total += torch.as_tensor(shares, dtype=total.dtype, device=total.device) @ each
                count += int(seen.sum())
        if not count:
            raise InputError(
                'the network does not see this place: the test pipeline of the config crops images '
                'around their center; give a place nearer to it'
            )
        return total / count

    def _class_vector(self, name: str | int) -> Tensor:
        """The prototype of a class; else, with a text encoder, the prior of a text."""
        names, table = self.class_priors
        try:
            index = find_class(str(name), len(table), names)
        except InputError:
            if self.text is None or isinstance(name, int):
                raise
            return self.text_priors(name).to(self.device)
        if not table[index].any():
            raise InputError(
                f'class {names[index] if names else index!r} has no prototype, its vector is zero: '
                'make prototypes of images in which it is labeled, `mmvars prototypes CONFIG '
                'CHECKPOINT -o FILE`, and give prototypes=FILE'
            )
        return table[index].detach().float()

    @cached_property
    def class_priors(self) -> tuple[Sequence[str] | None, Tensor]:
        """Names of classes, where known, and their vectors ``(K, C)``."""
        names, table = self.table.names, class_vectors(self.model)
        if self.prototypes is not None:
            names, table = read_prototypes(self.prototypes, self.network)
        if table is None or table.shape[1] != self.model.backbone.embed_dims:
            raise InputError(
                'this model has no vectors of classes that a prior could be: make them with '
                '`mmvars prototypes CONFIG CHECKPOINT -o FILE`, and give prototypes=FILE'
            )
        return names if len(names) == len(table) else None, table.to(self.device)

    @cached_property
    def text_priors(self) -> TextPriors:
        """From text to vectors."""
        names, table = self.class_priors
        return TextPriors(self.text, names or (), table)

    @cached_property
    def backbone_sha256(self) -> str:
        """Hash of the weights of the backbone."""
        return sha256_of(self.model.backbone.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    def _check_steerable(self) -> None:
        check_top_down(self.network, True, False, 'give prior=None')
        if not self.passes_prior:
            raise InputError(
                f'{type(self.model).__name__} of this config hands no prior to its backbone: write '
                "type='mmvars.EncoderDecoder' or 'mmvars.ImageClassifier' in its place"
            )

    def save(self, state: State, file: str | Path, overwrite: bool) -> None:
        """Write a state, see :func:`mmvars.state_files.save_state`."""
        from mmvars.state_files import save_state

        save_state(self, state, file, overwrite)

    def load(self, file: str | Path, picture: np.ndarray | None) -> State:
        """Read a state, see :func:`mmvars.state_files.load_state`."""
        from mmvars.state_files import load_state

        return load_state(self, file, picture)


def picture_of(image: Any, transforms: Sequence[Any] = ()) -> np.ndarray:
    """An image as ``Predictor.set_image`` takes it: ``(H, W, 3)`` uint8, RGB, upright.

    Files are read by the LoadImageFromFile among the ``transforms``, else by a strict one.
    """
    if isinstance(image, str | Path):
        loaders = [step for step in transforms if isinstance(step, LoadImageFromFile)]
        loader = loaders[0] if loaders else LoadImageFromFile()
        bgr = loader.transform(dict(img_path=str(image)))['img']
        return np.ascontiguousarray(bgr[..., ::-1].astype(np.uint8))
    if isinstance(image, Image.Image):
        if image.mode != 'RGB':
            raise InputError(
                f"the image has mode {image.mode!r}: give image.convert('RGB'), if its colors are "
                'then what you want to show the model'
            )
        return np.array(ImageOps.exif_transpose(image))
    got = type(image).__name__
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size:
            return image.copy()
        got = f'{image.dtype} {image.shape}'
    raise InputError(
        f'image must be a path, a PIL image, or a uint8 array (H, W, 3) in RGB order; got {got}'
    )


def output_of(first: FirstPassOutput | TrunkOutput) -> TrunkOutput:
    """The tokens of what is kept of a forward."""
    return first.output if isinstance(first, FirstPassOutput) else first


@contextmanager
def _replayed(network: Any, passes: Sequence[Any]) -> Iterator[None]:
    """Put what was computed before in place of the first pass, forward by forward."""
    has_two = isinstance(network, TopDown)
    owner, name = (network, 'forward_first_pass') if has_two else (network.trunk, 'forward')
    remaining = iter(passes)
    setattr(owner, name, lambda *args, **kwargs: next(remaining))
    try:
        yield
    finally:
        delattr(owner, name)
