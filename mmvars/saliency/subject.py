"""A model whose maps are measured: how images reach it, and the maps of its blocks."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from PIL import Image
from torch import Tensor, nn

from mmvars.checkpoints import read_checkpoint
from mmvars.checkpoints.load import load_heads, load_timm_weights
from mmvars.datasets.imagenet import imagenet_synsets, imagenet_wnids
from mmvars.engine.errors import user_errors
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.models.base import Backbone
from mmvars.networks import PerceiverIO, Trunk
from mmvars.networks.steering import feeds_back_unasked
from mmvars.networks.timm_trunk import PREFIX, build_timm_trunk
from mmvars.priors import class_vectors
from mmvars.saliency.attention import attention_of
from mmvars.visualization.model import (
    ClassTable,
    Sample,
    build_model,
    class_sources,
    dataset_of,
    is_segmentor,
    read_config,
)
from mmvars.visualization.recorder import recording

__all__ = [
    'BOTTOM_UP',
    'CLASS',
    'MEAN',
    'NORMS',
    'RECONSTRUCTION',
    'WEIGHTS',
    'MapName',
    'Maps',
    'Subject',
    'View',
    'load_subject',
    'subject_of',
]

BOTTOM_UP = 'bottom-up'
NORMS = 'token norms'
MEAN = 'mean attention'
CLASS = 'class attention'
RECONSTRUCTION = 'reconstruction'
WEIGHTS = 'token weights'


class MapName(NamedTuple):
    """Which map of a model.

    Attributes:
        block: From 0.
        stage: :data:`BOTTOM_UP`, the first pass; ``'top-down'``, the last; ``'pass 2'``, ...
            between them.
        kind: One of :data:`NORMS` (of the tokens after the block), :data:`MEAN` (what the average
            token looks at), :data:`CLASS` (what the class token looks at),
            :data:`RECONSTRUCTION` (of VARS: the norms of P u) and :data:`WEIGHTS` (cosine of the
            output tokens of the pass before with the prior, at least 0).
        step: Of the code of VARS, 0 at its start; ``None``: the last, or no VARS.
    """

    block: int
    stage: str
    kind: str
    step: int | None = None

    def __str__(self) -> str:
        step = '' if self.step is None else f', step {self.step}'
        return f'block {self.block}, {self.stage}, {self.kind}{step}'


class View(NamedTuple):
    """The part of an image file that a model sees.

    Attributes:
        pixels: ``(h, w, 3)`` uint8, RGB, as it is handed to the model.
        top, left, height, width: Of the part, in pixels of the file.
    """

    pixels: np.ndarray
    top: int
    left: int
    height: int
    width: int


Maps = dict[MapName, Tensor]
"""Of the patches, each ``(K, h, w)`` with K heads, or K = 1."""


class Subject:
    """A model, in eval mode.

    Args:
        run: From normalized images ``(1, 3, H, W)``, blocks, whether steps are wanted, prior and
            scale to the maps ``(K, h, w)`` of these blocks, K heads.
        normalize: From pixels ``(h, w, 3)`` to such images.
        depth: Blocks.
        patch: Pixels that the sides of an image must be multiples of.
        network: With top-down attention; ``None``: other.
        weights: All of the network, by which results are kept.
        priors: Class -> prior ``(C,)``: of a network with a prior for each class, or the rows of a
            classifier. Classes of ImageNet have WordNet's names, ``tench.n.01``.
        trunk: Of a network of mmvars or timm; ``None``: another.
    """

    def __init__(
        self,
        run: Callable[..., Maps],
        normalize: Callable[[np.ndarray], Tensor],
        depth: int,
        patch: int,
        network: Any,
        weights: Mapping[str, Tensor],
        priors: Mapping[str, Tensor] = MappingProxyType({}),
        trunk: Trunk | None = None,
    ) -> None:
        self.run = run
        self.normalize = normalize
        self.depth = depth
        self.patch = patch
        self.network = network
        self.weights = weights
        self.priors = priors
        self.trunk = trunk

    def has_steps(self, blocks: Sequence[int]) -> bool:
        """Whether the attention of one of these blocks is recurrent, as that of VARS."""
        return self.trunk is not None and any(
            hasattr(self.trunk.blocks[index].attn, 'attention_steps') for index in blocks
        )

    def view(self, image: Image.Image, size: int, crop: int | None) -> View:
        """An image as the model sees it: short side ``size``, whole or the middle ``crop`` of it.

        The sides of a whole one are rounded to whole patches; nothing is padded.

        Raises:
            InputError: If the crop does not fit.
        """
        columns, rows = image.size
        scale = size / min(rows, columns)
        if crop is None:
            height, width = (max(round(s * scale / self.patch), 1) for s in (rows, columns))
            shape = width * self.patch, height * self.patch
            return View(np.asarray(_resized(image, shape)), 0, 0, rows, columns)
        shape = max(round(columns * scale), size), max(round(rows * scale), size)
        left, top = (shape[0] - crop) // 2, (shape[1] - crop) // 2
        pixels = np.asarray(_resized(image, shape))[top : top + crop, left : left + crop]
        factors = rows / shape[1], columns / shape[0]
        top, left = round(top * factors[0]), round(left * factors[1])
        height, width = (round(crop * factor) for factor in factors)
        return View(pixels, top, left, min(height, rows - top), min(width, columns - left))

    def maps(
        self,
        pixels: np.ndarray,
        blocks: Sequence[int],
        steps: bool = False,
        prior: Tensor | None = None,
        alpha: float | None = None,
    ) -> Maps:
        """The maps of an image ``(h, w, 3)``, each ``(K, h', w')`` with K heads, or K = 1."""
        images = self.normalize(pixels)
        if images.shape[-2:] != pixels.shape[:2]:
            raise InputError(
                f'the data_preprocessor of the model makes {images.shape[-2]}x{images.shape[-1]} '
                f'pixels of {pixels.shape[0]}x{pixels.shape[1]}, so that maps would not fit the '
                'image: set model.data_preprocessor.test_cfg=None, or give another --size'
            )
        try:
            maps = self.run(images, blocks, steps, prior, alpha)
        except (AssertionError, RuntimeError) as error:
            raise InputError(
                f'the model cannot take an image of {pixels.shape[0]}x{pixels.shape[1]} pixels '
                f'({str(error).splitlines()[0]}): give the size it was made for, such as --size '
                '256 --crop 224'
            ) from error
        for name, each in maps.items():
            if not torch.isfinite(each).all():
                raise InputError(
                    f'the map of {name} is not finite: the checkpoint is of a training that '
                    'diverged'
                )
        return maps

    def own_maps(
        self,
        pixels: np.ndarray,
        blocks: Sequence[int],
        steps: bool = False,
        alpha: float | None = None,
    ) -> Maps:
        """Without a prior, of the passes that look for something then."""
        return self.unasked(self.maps(pixels, blocks, steps, alpha=alpha))

    def unasked(self, maps: Maps) -> Maps:
        """Those of maps without a prior that are of passes that look for something then."""
        # Where priors are classes, the second pass looks for nothing unless it is told a class.
        return {
            name: each
            for name, each in maps.items()
            if name.stage == BOTTOM_UP or feeds_back_unasked(self.network)
        }

    def asked_maps(
        self,
        pixels: np.ndarray,
        blocks: Sequence[int],
        steps: bool,
        prior: Tensor,
        alpha: float | None,
    ) -> Maps:
        """What a prior changes: of all passes but the first."""
        maps = self.maps(pixels, blocks, steps, prior, alpha)
        return {name: each for name, each in maps.items() if name.stage != BOTTOM_UP}


def _resized(image: Image.Image, shape: tuple[int, int]) -> Image.Image:
    return image.convert('RGB').resize(shape, Image.Resampling.BICUBIC)


def load_subject(
    config: str, checkpoint: str | None, device: torch.device, options: dict | None = None
) -> Subject:
    """A model of a config, or ``timm/NAME``, filled from a checkpoint.

    Of the checkpoint the backbone alone is needed.

    Raises:
        InputError: If it cannot be built or filled, or has no maps.
    """
    if config.startswith(PREFIX):
        trunk = build_timm_trunk(config, num_classes=0)
        load_timm_weights(trunk, checkpoint or True)
        statistics = trunk.model.pretrained_cfg
        mean, std = (255 * torch.tensor(statistics[name]).view(3, 1, 1) for name in ('mean', 'std'))
        trunk.to(device).eval()

        def normalize(pixels: np.ndarray) -> Tensor:
            return ((_channels_first(pixels).float() - mean) / std)[None].to(device)

        return _of_network(trunk, normalize)
    if checkpoint is None:
        raise InputError(f'{config} is a config: give its CHECKPOINT too')
    cfg = read_config(config, options)
    with user_errors():
        backbone_class = MODELS.get(cfg.model.backbone.type)
    if isinstance(backbone_class, type) and issubclass(backbone_class, Backbone):
        model, _ = build_model(cfg, checkpoint, device, heads=False)
    else:
        model = _foreign_model(cfg, checkpoint).to(device).eval()
    return subject_of(cfg, model, checkpoint)


def subject_of(cfg: Config, model: Any, checkpoint: str) -> Subject:
    """Of a segmentor or classifier in eval mode that is filled, of its config and checkpoint.

    Raises:
        InputError: If it has no maps.
    """
    if isinstance(model.backbone, Backbone):
        priors = _class_priors(cfg, model, checkpoint)
        return _of_network(model.backbone.network, _preprocessor(model), priors)
    device = next(model.parameters()).device
    return _of_foreign(model.backbone, _preprocessor(model), device)


def _preprocessor(model: Any) -> Callable[[np.ndarray], Tensor]:
    """From pixels to images by the model's own ``data_preprocessor``, which takes BGR."""

    def normalize(pixels: np.ndarray) -> Tensor:
        inputs = _channels_first(pixels).flip(0)
        shape = tuple(inputs.shape[-2:])
        sample = BaseDataElement(metainfo=dict(ori_shape=shape, img_shape=shape))
        return Sample(inputs, sample).preprocessed(model)

    return normalize


def _channels_first(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(pixels)).permute(2, 0, 1)


def _foreign_model(cfg: Config, checkpoint: str) -> Any:
    """A model whose backbone is none of mmvars, with all of its backbone's weights."""
    content = read_checkpoint(checkpoint)
    weights = content.get('state_dict', content)
    inside = {
        key.removeprefix('backbone.'): value
        for key, value in weights.items()
        if key.startswith('backbone.')
    }
    config = dict(cfg.model)
    if 'data_preprocessor' in cfg:
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with user_errors():
        model = MODELS.build(config)
    try:
        model.backbone.load_state_dict(inside or weights)
    except RuntimeError as error:
        raise InputError(f'{checkpoint} does not fit the backbone of the config: {error}') from None
    return model


def _of_foreign(
    backbone: nn.Module, normalize: Callable[[np.ndarray], Tensor], device: torch.device
) -> Subject:
    """Of a vision transformer of MMPretrain, MMSegmentation or timm."""
    side = 224  # whole patches of 7, 8, 14, 16, 28 and 32 pixels
    layers = attention_of(backbone, torch.zeros(1, 3, side, side, device=device), (0,))
    modules = _blocks_of(backbone, len(layers))

    @torch.no_grad()
    def run(images: Tensor, blocks: Sequence[int], steps: bool, prior: Any, alpha: Any) -> Maps:
        maps: Maps = {}
        tokens: dict[int, Tensor] = {}
        handles = [
            modules[index].register_forward_hook(
                lambda module, args, output, index=index: tokens.update({index: output})
            )
            for index in blocks
            if modules
        ]
        try:
            seen = attention_of(backbone, images, blocks)
        finally:
            for handle in handles:
                handle.remove()
        for index, layer in enumerate(seen):
            if layer is not None:
                if index in tokens:
                    maps[MapName(index, BOTTOM_UP, NORMS)] = _heads(
                        _norms(tokens[index]), layer.grid
                    )
                maps[MapName(index, BOTTOM_UP, MEAN)] = _heads(layer.mean, layer.grid)
                if layer.grid.num_prefix:
                    maps[MapName(index, BOTTOM_UP, CLASS)] = _heads(layer.first, layer.grid)
        return maps

    patch = side // layers[0].grid.height
    return Subject(run, normalize, len(layers), patch, None, backbone.state_dict())


def _blocks_of(backbone: nn.Module, depth: int) -> list[nn.Module]:
    """The blocks: the first list of as many modules of one kind as there are attentions."""
    for module in backbone.modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(module) == depth:
            if len({type(each) for each in module}) == 1:
                return [*module]
    return []


def _class_priors(cfg: Config, model: Any, checkpoint: str) -> dict[str, Tensor]:
    """Class -> prior, where the network takes one and the config names the classes."""
    prior = model.backbone.prior
    is_meter = hasattr(model, 'text_backbone')  # whose priors are texts: no file is read for them
    if prior is None or is_meter or cfg.get('test_dataloader') is None:
        return {}
    if not prior.num_classes and not is_segmentor(model):
        content = read_checkpoint(checkpoint)
        if not any(key.startswith('head.') for key in content.get('state_dict', content)):
            return {}
        load_heads(model, checkpoint)
    vectors = class_vectors(model)
    if vectors is None or vectors.shape[1] != model.backbone.embed_dims:
        return {}
    table = ClassTable.of(len(vectors), *class_sources(dataset_of(cfg), {}))
    names = _imagenet_names(table.names) or table.names
    return dict(zip(names, vectors.detach(), strict=True)) if table.named else {}


def _imagenet_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """WordNet's, if these are the names or WordNet ids of ImageNet's classes in order."""
    from mmpretrain.datasets.categories import IMAGENET_CATEGORIES

    return imagenet_synsets() if names in (IMAGENET_CATEGORIES, imagenet_wnids()) else ()


def _of_network(
    network: Any,
    normalize: Callable[[np.ndarray], Tensor],
    priors: Mapping[str, Tensor] = MappingProxyType({}),
) -> Subject:
    """Of a network of mmvars: all passes, and the steps of VARS."""
    trunk = network if isinstance(network, Trunk) else network.trunk

    @torch.no_grad()
    def run(
        images: Tensor,
        blocks: Sequence[int],
        steps: bool,
        prior: Tensor | None,
        alpha: float | None,
    ) -> Maps:
        watched: dict[Any, tuple[nn.Module, Callable]] = {}
        for index in blocks:
            block = trunk.blocks[index]
            watched[index, NORMS] = block, lambda block, args, tokens: ([_norms(tokens)], args[1])
            for kind, function in _rows_of(block.attn, trunk.num_block_prefix > 0).items():
                watched[index, kind] = block.attn, _recorded(function)
        # FAN's class token has attention of its own, whose blocks count on from the others.
        for index, block in enumerate(getattr(trunk, 'cls_attn_blocks', ()), trunk.depth):
            watched[index, CLASS] = (
                block.attn,
                lambda mixer, args, output: ([mixer.attention_probabilities(*args)[:, :, 0]], None),
            )
        with recording(network, watched, prior, alpha) as records:
            network(images)
        (output,) = records.pop('output')
        last = output if isinstance(network, Trunk) else output.second
        maps: Maps = {}
        for (index, kind), calls in records.items():
            for number, (rows, grid) in enumerate(calls):
                if not isinstance(
                    grid, TokenGrid
                ):  # blocks of timm have positions, or there is none
                    grid = last.grid
                stage = _stage(number, len(calls))
                for step, each in enumerate(rows):
                    is_last = step == len(rows) - 1
                    if is_last or steps:
                        name = MapName(index, stage, kind, None if is_last else step)
                        maps[name] = _heads(each, grid)
        if isinstance(network, PerceiverIO):  # one pass, whose output is reweighted
            name = MapName(trunk.depth - 1, 'top-down', NORMS)
            maps[name] = _heads(_norms(last.tokens), last.grid)
        if getattr(network, 'prior', None) is not None:
            # FAN's class token is in the output, but not among the tokens that go back.
            weights = output.token_weights[:, -last.grid.num_patches :].transpose(1, 2)
            name = MapName(trunk.depth - 1, 'top-down', WEIGHTS)
            maps[name] = _heads(weights, last.grid._replace(num_prefix=0))
        return maps

    steered = None if isinstance(network, Trunk) else network
    patch = max(trunk.strides)
    weights = network.state_dict()
    return Subject(run, normalize, trunk.depth, patch, steered, weights, priors, trunk)


def _recorded(function: Callable) -> Callable:
    return lambda mixer, args, output: (function(mixer, *args[:3]), args[1])


def _rows_of(mixer: Any, has_class_token: bool) -> dict[str, Callable]:
    """Kind of map -> from a mixer and its arguments to rows ``(B, K, N)``, one for each step."""
    kinds: dict[str, Callable] = {}
    if hasattr(mixer, 'attention_steps'):
        kinds[MEAN] = lambda mixer, *args: mixer.attention_steps(*args)
        kinds[RECONSTRUCTION] = lambda mixer, *args: [
            *map(_norms, mixer.trace(*args).reconstructions)
        ]
    elif hasattr(mixer, 'mean_attention'):
        kinds[MEAN] = lambda mixer, *args: [mixer.mean_attention(*args)]
    if has_class_token and hasattr(mixer, 'attention_probabilities'):
        kinds[CLASS] = lambda mixer, *args: [mixer.attention_probabilities(*args)[:, :, 0]]
    return kinds


def _norms(tokens: Tensor) -> Tensor:
    """``(B, N, C)`` to ``(B, 1, N)``."""
    return tokens.float().norm(dim=-1).unsqueeze(1)


def _stage(number: int, passes: int) -> str:
    if number == 0:
        return BOTTOM_UP
    return 'top-down' if number == passes - 1 else f'pass {number + 1}'


def _heads(rows: Tensor, grid: TokenGrid) -> Tensor:
    """Rows ``(1, K, N)`` as maps of the patches ``(K, h, w)``, float32 on the CPU."""
    return grid.to_map(rows.float().transpose(1, 2))[0].cpu()
