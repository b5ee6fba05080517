"""A model and its prompts: what of a forward depends on them, and what is kept.

A prediction is the model's own ``predict``, in which the first pass is not computed but put in
place. So nothing of heads, sliding windows and resizing is written a second time here, and without
a prompt the result is the model's own to the last bit.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvars.checkpoints.partial import sha256_of
from mmvars.engine.cpu import pick_device
from mmvars.engine.errors import user_errors
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.models.sliding_window import InferenceOptions
from mmvars.networks import (
    ExternalPrior,
    FirstPassOutput,
    PerceiverIO,
    TopDown,
    Trunk,
    TrunkOutput,
)
from mmvars.networks.steering import check_top_down, feeds_back_unasked, given_priors, scale_of
from mmvars.predictor import Prediction
from mmvars.priors import PriorVectors
from mmvars.states import Frame, State, output_of, picture_of
from mmvars.visualization.draw import resolve_layer
from mmvars.visualization.maps import map_at_grid, token_norm_map
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
    refuse_text,
)

__all__ = ['NotFinite', 'SteeredModel']

UNSTORED = ('keep_logits', 'logits_device', 'logits_dtype')
"""Keys of ``test_cfg`` that say how full-size logits are stored; probabilities need them all."""

BATCH_PIXELS = 2**20
"""Of the images in one forward: four of 512 x 512. What it needs grows with them."""


class NotFinite(InputError):
    """The output tokens are not finite, whatever the image: of the checkpoint, or of alpha."""


class SteeredModel:
    """A segmentor or classifier as :class:`~mmvars.predictor.Predictor` uses it.

    Args:
        config, checkpoint, device, prototypes, text, options: As there.

    Attributes:
        model: In eval mode.
        table: Names and colors of its classes.
        is_steerable, scales_without_prior: As there.
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
        refuse_text(self.cfg)
        checkpoint = checkpoint or self.cfg.get('load_from')
        if checkpoint is None:
            raise InputError(
                f'the config {config} names no weights (load_from): give checkpoint=FILE '
                '(--checkpoint FILE)'
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
        self.priors = PriorVectors(self.model, self.table, prototypes, text)
        self.is_steerable = getattr(self.network, 'prior', None) is not None and getattr(
            self.model, 'hands_priors_on', False
        )
        self.scales_without_prior = feeds_back_unasked(self.network)

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

    def answer(
        self,
        state: State,
        priors: Sequence[Any],
        alpha: float | None,
        plain: Callable[[], np.ndarray],
    ) -> list[Prediction]:
        """The answers to prompts, see ``Predictor.predict_batch``."""
        for prior in priors:
            remedy = 'give prior=None and alpha=None' if prior is not None else 'give alpha=None'
            check_top_down(self.network, prior is not None, alpha is not None, remedy)
        vectors = [None if prior is None else self.vector(prior, lambda: state) for prior in priors]
        most = max(BATCH_PIXELS // state.inputs[0, 0].numel(), 1) if state.is_whole else 1
        answers: list[Prediction] = []
        for is_none, group in itertools.groupby(vectors, lambda vector: vector is None):
            same, step = [*group], 1 if is_none else most
            for start in range(0, len(same), step):
                answers += self._answer_together(state, same[start : start + step], alpha, plain)
        return answers

    @torch.no_grad()
    def _answer_together(
        self,
        state: State,
        vectors: Sequence[Tensor | None],
        alpha: float | None,
        plain: Callable[[], np.ndarray],
    ) -> list[Prediction]:
        """The answers to priors in one forward; ``None`` must be alone."""
        network, backbone, count = self.network, self.model.backbone, len(vectors)
        is_asked = vectors[0] is not None
        samples = [type(state.sample)(metainfo=dict(state.sample.metainfo)) for _ in vectors]
        for sample, vector in zip(samples, vectors, strict=True):
            if vector is not None:
                sample.set_field(vector, 'prior')
            elif isinstance(getattr(network, 'prior', None), ExternalPrior):
                sample.set_field(torch.zeros(backbone.embed_dims), 'prior')  # asks for nothing
        # A single one stays the very tensor.
        inputs = state.inputs if count == 1 else state.inputs.expand(count, -1, -1, -1)
        outputs: list[Any] = []
        norms: list[Tensor] = []
        feats: list[Any] = []
        with ExitStack() as stack:
            calls = stack.enter_context(self._norms())
            stack.enter_context(given_priors(network))

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
                passes = [_repeated(each, count) for each in state.passes]
                stack.enter_context(_replayed(network, passes))
            with user_errors():
                results = self.model.predict(inputs, samples)
        if (
            isinstance(network, PerceiverIO)
            and backbone._is_class_token_alone
            and not is_asked
            and alpha is None
        ):
            # With one pass the model computes this token alone, which rounds differently.
            results = self.model.predict(inputs, samples)
        weights = logits = None
        if getattr(network, 'prior', None) is not None:
            weights = list(map(_weight_map, outputs))
        head = getattr(self.model, 'prompt_head', None)
        if head is not None and (is_asked or network.prior is None):
            logits = [head(each)[:, 0].float() for each in feats]
        stride = self.trunk.strides[-1 if isinstance(network, PerceiverIO) else self.layer]
        answers = []
        for index, (result, vector) in enumerate(zip(results, vectors, strict=True)):
            # Of one prior all windows; of several the one of each.
            part = slice(None) if count == 1 else slice(index, index + 1)

            def on_image(maps: Sequence[Tensor], *args: Any, part: slice = part) -> np.ndarray:
                return state.on_image([each[part] for each in maps], *args)

            attention = on_image(norms, stride)
            if not np.isfinite(attention).all():
                raise NotFinite(
                    'the output tokens are not finite; the checkpoint is of a training that '
                    'diverged'
                    if alpha is None
                    else f'the output tokens are not finite with alpha {alpha:g}: take a smaller '
                    'one'
                )
            shown = None if weights is None else on_image(weights, self.trunk.strides[-1])
            heatmap = shown
            if logits is not None:
                heatmap = on_image(logits, backbone.out_strides[-1], torch.sigmoid)
            segments = is_segmentor(self.model)
            seconds = [
                each.second._replace(tokens=each.second.tokens[part], intermediates=(), grids=())
                for each in (outputs if isinstance(network, TopDown) else ())
            ]
            answers.append(
                Prediction(
                    result.pred_sem_seg.data[0].long().cpu().numpy()
                    if segments
                    else int(result.pred_label),
                    heatmap,
                    shown,
                    attention,
                    state.on_image(state.norms or norms, stride),
                    None if vector is None else vector.cpu().numpy(),
                    scale_of(network, alpha),
                    result.seg_logits.data if segments else result.pred_score,
                    seconds,
                    plain,
                )
            )
        return answers

    def vector(self, prior: Any, current: Callable[[], State]) -> Tensor:
        """What a prompt means, ``(C,)``; ``current`` gives the image that places are in."""
        return self.priors.vector(prior, current, self.start)

    @property
    def class_priors(self) -> tuple[Sequence[str] | None, Tensor]:
        """See :attr:`PriorVectors.classes`."""
        return self.priors.classes

    @cached_property
    def backbone_sha256(self) -> str:
        """Hash of the weights of the backbone."""
        return sha256_of(self.model.backbone.state_dict())

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.priors.device

    def save(self, state: State, file: str | Path, overwrite: bool) -> None:
        """Write a state, see :func:`mmvars.state_files.save_state`."""
        from mmvars.state_files import save_state

        save_state(self, state, file, overwrite)

    def load(self, file: str | Path, picture: np.ndarray | None) -> State:
        """Read a state, see :func:`mmvars.state_files.load_state`."""
        from mmvars.state_files import load_state

        return load_state(self, file, picture)


def _weight_map(output: Any) -> Tensor:
    """Token weights ``(n, h, w)`` of the patches."""
    # FAN's class token is in the output, but not among the tokens that go back.
    grid = output.second.grid._replace(num_prefix=0)
    return grid.to_map(output.token_weights[:, -grid.num_patches :].float())[:, 0]


def _repeated(first: Any, count: int) -> Any:
    """A first pass of one image, as that of so many equal ones."""
    if count == 1:
        return first
    output = output_of(first)
    output = output._replace(
        tokens=output.tokens.repeat(count, 1, 1),
        intermediates=tuple(each.repeat(count, 1, 1) for each in output.intermediates),
    )
    if not isinstance(first, FirstPassOutput):
        return output
    return first._replace(output=output, embedded=first.embedded.repeat(count, 1, 1))


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
