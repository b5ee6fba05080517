"""One face for networks of several libraries, built with the same weights where they have a twin.

Every adapter builds *our* network of the name first, from torch's present seed, and takes its
weights, so that contenders of one name and one seed compute the same.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.benchmark.textbook import TextbookAbSViT, textbook_weights
from mmvars.errors import InputError
from mmvars.networks import Feedback, TopDown, TopDownOutput, TrunkOutput, build_network
from mmvars.networks.plain_path import plain_path
from mmvars.networks.shortcuts import Shortcuts

__all__ = ['ADAPTERS', 'Adapter', 'Size', 'build_ours']

_RECONSTRUCTION_WEIGHT = .1  # of the released training recipe


class Size(NamedTuple):
    """What the networks of a case are built for.

    Attributes:
        height: Of the images in pixels.
        width: Likewise.
        batch: Images.
        num_classes: 0 where maps are wanted.
        overrides: Sizes that replace those of the named networks.
    """

    height: int
    width: int
    batch: int
    num_classes: int
    overrides: dict[str, Any]


class Adapter(nn.Module):
    """A network and what is asked of it.

    Args:
        name: Of :data:`mmvars.networks.VARIANTS`.
        size: Of images and output.
        options: Further arguments of the network.
    """

    def __init__(self, name: str, size: Size, options: dict[str, Any]) -> None:
        super().__init__()
        del name, size, options

    @classmethod
    def check(cls, name: str, method: str) -> None:
        """Refuse a network that the library does not have, or a method that it does not have.

        Raises:
            InputError: Saying what it has.
        """

    def logits(self, images: Tensor) -> Tensor:
        """Class scores ``(B, K)``."""
        raise NotImplementedError

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        """The training loss, a number: cross entropy, unless the method has more."""
        return F.cross_entropy(self.logits(images), classes)

    def features(self, images: Tensor) -> list[Tensor]:
        """Maps ``(B, C, h, w)`` after each quarter of the blocks, the last after the final norm."""
        raise NotImplementedError


class OurNetwork(Adapter):
    """Anything :func:`mmvars.networks.build_network` knows.

    Beside its arguments, the options may name :class:`~mmvars.networks.Shortcuts`; ``plain=True``
    runs without the exact rewrites, see :func:`~mmvars.networks.plain_path`; ``carry_over=True``
    takes pass 1 from the call before, as of a frame before.
    """

    def __init__(self, name: str, size: Size, options: dict[str, Any]) -> None:
        super().__init__(name, size, options)
        self.network = build_ours(name, size, options)
        self.out_indices = _quarters(self.network.trunk.depth)
        self.plain = bool(options.get('plain', False))
        self.carries_over = bool(options.get('carry_over', False))
        self.carried: TrunkOutput | None = None

    def logits(self, images: Tensor) -> Tensor:
        return self._inference(images, 'logits')

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        network = self.network
        if network.is_plain:
            return super().losses(images, classes)
        with self._path():
            out = network(images, reconstruction=network.reconstructs)
        passes = [F.cross_entropy(network.logits(part), classes)
                  for part in (out.bottom_up, out.final)]
        loss = sum(passes) / 2
        if out.reconstruction is not None:
            loss = loss + _RECONSTRUCTION_WEIGHT * out.reconstruction.sum()
        return loss

    def features(self, images: Tensor) -> list[Tensor]:
        return self._inference(images, 'features')

    def wanted(self, method: str) -> dict[str, Any]:
        """What a call of the network is to be told, for :meth:`read` to find it."""
        if method == 'features':
            return dict(out_indices=self.out_indices)
        return dict(pooled_only=True)

    def read(self, output: TopDownOutput, method: str) -> Tensor | list[Tensor]:
        """Class scores or maps of the last pass."""
        final = output.final
        if method == 'logits':
            return self.network.logits(final)
        maps = [grid.to_map(tokens)
                for grid, tokens in zip(final.grids, final.intermediates, strict=True)]
        return [*maps[:-1], final.grid.to_map(final.tokens)]

    def _inference(self, images: Tensor, method: str) -> Tensor | list[Tensor]:
        network, wanted = self.network, self.wanted(method)
        with self._path():
            if not self.carries_over:
                return self.read(network(images, **wanted), method)
            first = network.look(images, previous=self.carried)
            self.carried = first.output
            return self.read(network.attend(first, **wanted), method)

    def _path(self) -> AbstractContextManager:
        return plain_path() if self.plain else nullcontext()


class TimmViT(Adapter):
    """timm's ViT of the same size."""

    def __init__(self, name: str, size: Size, options: dict[str, Any]) -> None:
        super().__init__(name, size, options)
        weights = build_ours(name, size, options).trunk.state_dict()
        weights.pop('trained_grid', None)
        self.model = timm.create_model(f'{name}_224', img_size=(size.height, size.width),
                                       num_classes=size.num_classes, **size.overrides)
        self.model.load_state_dict(weights)
        self.out_indices = _quarters(len(self.model.blocks))

    @classmethod
    def check(cls, name: str, method: str) -> None:
        _only('timm', name, 'vit')

    def logits(self, images: Tensor) -> Tensor:
        return self.model(images)

    def features(self, images: Tensor) -> list[Tensor]:
        final, maps = self.model.forward_intermediates(images, indices=list(self.out_indices))
        last = final[:, self.model.num_prefix_tokens:].transpose(1, 2)
        return [*maps[:-1], last.unflatten(2, maps[-1].shape[-2:])]


class MmsegViT(Adapter):
    """mmseg's VisionTransformer; it has maps only."""

    def __init__(self, name: str, size: Size, options: dict[str, Any]) -> None:
        super().__init__(name, size, options)
        ours = build_ours(name, size, options).trunk
        self.model = _mmseg_backbone()(
            img_size=(size.height, size.width), patch_size=ours.patch_embed.patch_size,
            embed_dims=ours.embed_dim, num_layers=ours.depth,
            num_heads=ours.blocks[0].attn.num_heads, out_indices=_quarters(ours.depth),
            norm_cfg=dict(type='LN', eps=1e-6), patch_bias=True, final_norm=True)
        self.model.load_state_dict(_mmseg_weights(ours.state_dict()))

    @classmethod
    def check(cls, name: str, method: str) -> None:
        _only('mmseg', name, 'vit')
        if method != 'features':
            raise InputError("mmseg's VisionTransformer gives maps only: measure it with --task "
                             "features")
        _mmseg_backbone()

    def features(self, images: Tensor) -> list[Tensor]:
        return list(self.model(images))


class Textbook(Adapter):
    """AbSViT as its equations stand, see :class:`~mmvars.benchmark.textbook.TextbookAbSViT`."""

    def __init__(self, name: str, size: Size, options: dict[str, Any]) -> None:
        super().__init__(name, size, options)
        ours = build_ours(name, size, options)
        trunk = ours.trunk
        self.model = TextbookAbSViT((size.height, size.width), trunk.embed_dim, trunk.depth,
                                    trunk.blocks[0].attn.num_heads, size.num_classes,
                                    trunk.patch_embed.patch_size)
        self.model.load_state_dict(textbook_weights(ours.state_dict()))
        self.out_indices = _quarters(trunk.depth)

    @classmethod
    def check(cls, name: str, method: str) -> None:
        _only('textbook', name, 'absvit')

    def logits(self, images: Tensor) -> Tensor:
        return self.model.logits(images)

    def losses(self, images: Tensor, classes: Tensor) -> Tensor:
        return self.model.losses(images, classes)

    def features(self, images: Tensor) -> list[Tensor]:
        return self.model.features(images, self.out_indices)


ADAPTERS: dict[str, type[Adapter]] = dict(mmvars=OurNetwork, timm=TimmViT, mmseg=MmsegViT,
                                          textbook=Textbook)
"""Libraries by the name they have in front of a contender's; ours needs none."""


def build_ours(name: str, size: Size, options: dict[str, Any]) -> TopDown:
    chosen = {key: value for key, value in options.items() if key in Shortcuts._fields}
    arguments = {key: value for key, value in options.items()
                 if key not in chosen and key not in ('plain', 'carry_over')}
    network = build_network(name, img_size=(size.height, size.width), num_classes=size.num_classes,
                            shortcuts=chosen or None, **size.overrides | arguments)
    _make_telling(network)
    return network


def _make_telling(network: TopDown) -> None:
    """Weights under which a comparison of outputs shows every term.

    Fresh ones hide much: biases are zero, and what goes back dies out after a decoder or two.
    """
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.normal_(std=.1)
        if isinstance(network.feedback, Feedback):
            for parameter in network.feedback.decoders.parameters():
                if parameter.ndim == 2:  # keep the length of what passes
                    parameter.normal_(std=parameter.shape[1]**-.5)


def _mmseg_backbone() -> Callable[..., nn.Module]:
    """Not a plain import: the benchmark runs without OpenMMLab, too."""
    return import_module('mmseg.models.backbones').VisionTransformer


def _only(library: str, name: str, family: str) -> None:
    if not (name.startswith(f'{family}_') and name.endswith('_patch16')):
        raise InputError(f'{library} has {family}_tiny, {family}_small and {family}_base here, '
                         f'got {name!r}')


def _quarters(depth: int) -> tuple[int, ...]:
    """The last block of each quarter: 2, 5, 8, 11 of twelve."""
    return tuple(sorted({max(0, depth * part // 4 - 1) for part in range(1, 5)}))


_MMSEG_NAMES: tuple[tuple[str, str], ...] = (
    ('patch_embed.proj.', 'patch_embed.projection.'), ('blocks.', 'layers.'), ('norm1.', 'ln1.'),
    ('norm2.', 'ln2.'), ('attn.qkv.', 'attn.attn.in_proj_'), ('attn.proj.', 'attn.attn.out_proj.'),
    ('mlp.fc1.', 'ffn.layers.0.0.'), ('mlp.fc2.', 'ffn.layers.1.'))


def _mmseg_weights(state: dict[str, Tensor]) -> dict[str, Tensor]:
    renamed = {}
    for name, tensor in state.items():
        for ours, theirs in _MMSEG_NAMES:
            name = name.replace(ours, theirs)
        renamed[f'ln1.{name[5:]}' if name.startswith('norm.') else name] = tensor
    renamed.pop('trained_grid', None)
    return renamed
