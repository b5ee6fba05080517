"""Any vision transformer of timm as a trunk: timm builds it, the loop over its blocks is ours."""

import contextlib
import difflib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.layers import resample_abs_pos_embed
from timm.models import adapt_input_conv, beit, eva, vision_transformer
from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from mmvars.errors import InputError, check_flag, check_number
from mmvars.layers import TokenGrid, patch_grid
from mmvars.networks.timm_blocks import add_top_down, relative_positions
from mmvars.networks.trunk import Trunk, TrunkOutput, checkpointed

__all__ = ['PREFIX', 'TimmTrunk', 'build_timm_trunk', 'model_arguments', 'trunk_of_model']

PREFIX = 'timm/'
"""What stands before timm's own name in ``arch``."""

_FILTERS = {
    VisionTransformer: vision_transformer.checkpoint_filter_fn,
    Eva: eva.checkpoint_filter_fn,
    Beit: beit.checkpoint_filter_fn,
}
"""Class of a network -> what makes a state dict of it from a published one."""

_FAMILIES = ['vision_transformer', 'deit', 'eva', 'beit']  # modules of timm


class TimmTrunk(Trunk):
    """A vision transformer of timm whose blocks take a top-down input each.

    Images of any size: rotary embeddings and absolute or relative positions follow the grid by
    timm's own functions. A side that is no multiple of the patch is padded with zeros at its end.

    Where a network augments its rotary coordinates in training, each pass draws anew.

    Args:
        model: A network of timm: of ``vision_transformer``, ``eva`` or ``beit``.
        name: Its name, with ``'timm/'``.
        injection: Where a top-down input enters, one of :data:`mmvars.layers.INJECTIONS`.
        grad_checkpointing: See :class:`~mmvars.networks.Trunk`.

    Attributes:
        model: timm's network; its names are those of the state dict after ``model.``.
        full_depth: Blocks that the network of this name has, of which the trunk may have the first.

    Raises:
        InputError: If the network, or a block of it, is of a class that is not known.
    """

    has_gated_feedback = True
    num_prompt_tokens = 0

    def __init__(
        self,
        model: nn.Module,
        name: str,
        injection: str = 'value',
        grad_checkpointing: bool = False,
    ) -> None:
        nn.Module.__init__(self)  # norm and head stay where timm has them
        check_flag('grad_checkpointing (with_cp of a backbone)', grad_checkpointing)
        if not isinstance(model, VisionTransformer | Eva | Beit):
            raise InputError(
                f'arch={name!r} is a {type(model).__name__}; top-down attention goes into '
                f"timm's plain vision transformers (VisionTransformer, Eva, Beit), such as "
                f"'timm/vit_small_patch14_dinov2.lvd142m'"
            )
        for block in model.blocks:
            add_top_down(block, injection, name)
        self.model: Any = model
        self.name = name
        self.full_depth = len(model.blocks)
        self.mixer_cfg = {}
        self.top_down_tokens = nn.Identity()
        self.grad_checkpointing = grad_checkpointing
        self.embed_dim = model.embed_dim
        self.num_prefix = self.num_block_prefix = model.num_prefix_tokens
        # A distilled network's classifier reads its second token too.
        self.global_pool = 'distilled' if hasattr(model, 'dist_token') else model.global_pool

    @property
    def blocks(self) -> Any:
        return self.model.blocks

    @property
    def norm(self) -> nn.Module:  # type: ignore[override]
        """The final norm of all tokens; an identity where timm normalizes after the pooling."""
        return self.model.norm

    @property
    def fc_norm(self) -> nn.Module:  # type: ignore[override]
        """Norm of dense features where :attr:`norm` is an identity: the one after the pooling."""
        return self.model.fc_norm if isinstance(self.norm, nn.Identity) else nn.Identity()

    @property
    def head(self) -> nn.Module:  # type: ignore[override]
        return self.model.head

    @property
    def patch_embed(self) -> Any:  # type: ignore[override]
        return self.model.patch_embed

    @property
    def in_chans(self) -> int:
        return self.model.patch_embed.proj.weight.shape[1]  # LoRA may be around it

    @property
    def has_class_token(self) -> bool:
        return getattr(self.model, 'cls_token', None) is not None

    @property
    def strides(self) -> tuple[int, ...]:
        return (self.patch_embed.feat_ratio(),) * self.depth

    def forward_embed(self, images: Tensor) -> tuple[Tensor, TokenGrid]:
        """``(B, in_chans, H, W)`` to tokens ``(B, num_prefix + h w, C)``.

        Raises:
            InputError: If the image is smaller than a patch.
        """
        patch, sides = self.strides[0], images.shape[-2:]
        if min(sides) < patch:
            raise InputError(
                f'images must be at least one patch ({patch} pixels) high and wide, got '
                f'{sides[0]}x{sides[1]}'
            )
        grid = TokenGrid(-(-sides[0] // patch), -(-sides[1] // patch), self.num_prefix)
        tokens = self.model.patch_embed(images)
        if isinstance(self.model, Beit):
            return self._embed_beit(tokens, grid), grid
        tokens = self.model._pos_embed(tokens)
        if isinstance(self.model, Eva):  # its rotary embedding is made in each pass
            tokens = tokens[0]
        tokens = self.model.norm_pre(tokens)
        if self.num_prompt_tokens:
            tokens = self._with_prompts(tokens, self.prompt_embeddings, num_replaced=0)
        return tokens, grid

    def forward_blocks(
        self,
        tokens: Tensor,
        grid: TokenGrid,
        top_down: Sequence[Tensor] | None = None,
        out_indices: Sequence[int] = (),
        keep_block_io: bool = False,
        pooled_only: bool = False,
    ) -> TrunkOutput:
        """See :meth:`Trunk.forward_blocks`; all tokens are computed in any case.

        Differs in ``block_io``: the output of the last block is given after the final norm, since
        that is what the feedback starts from.
        """
        intermediates, block_io = [], []
        positions = self._positions(grid, tokens)
        last = self.depth - 1
        for index, (block, position) in enumerate(zip(self.blocks, positions, strict=True)):
            signal = None if top_down is None else top_down[index]
            block_input = tokens
            if index and hasattr(self, 'deep_prompt_embeddings'):
                prompts = self.deep_prompt_embeddings[index - 1 : index]
                block_input = self._with_prompts(tokens, prompts, self.num_prompt_tokens)
            if index == last and signal is not None:
                block_input = self.top_down_tokens(block_input)
            if self.grad_checkpointing and self.training:
                tokens = checkpointed(block, block_input, position, signal)
            else:
                tokens = block(block_input, position, signal)
            if index in out_indices:
                intermediates.append(tokens)
            if keep_block_io:
                output = self.norm(tokens) if index == last else tokens
                block_io.append((block_input, output))
        if len(intermediates) != len(out_indices):
            raise InputError(
                f'out_indices must be different block numbers from 0 to {last}, got '
                f'{tuple(out_indices)}'
            )
        grids = (grid,) * len(intermediates)
        return TrunkOutput(self.norm(tokens), grid, tuple(intermediates), grids, tuple(block_io))

    def add_prompts(self, num_tokens: int, deep: bool = True, dropout: float = 0.0) -> None:
        """Put learned tokens T after class and register tokens.

        They carry no position, :meth:`pool` does not read them, and they start uniform with
        Glorot's bound for a layer of ``3 P^2`` inputs and C outputs.

        Args:
            num_tokens: T.
            deep: Overwrite them with new ones before every block but the first.
            dropout: Dropout on them.

        Raises:
            InputError: For a BEiT.
        """
        check_number('num_prompt_tokens', num_tokens, 1, whole=True)
        check_flag('deep_prompts', deep)
        check_number('prompt_dropout', dropout, 0, 1)
        if isinstance(self.model, Beit):
            raise InputError(
                f'arch={self.name!r}: the biases of relative positions of a BEiT have no place for '
                'prompts; use another trunk, or LoRA'
            )
        self.num_prompt_tokens, width = num_tokens, self.embed_dim
        self.num_prefix = self.num_block_prefix = self.model.num_prefix_tokens + num_tokens
        self.prompt_dropout = nn.Dropout(dropout)
        bound = math.sqrt(6 / (3 * self.strides[0] ** 2 + width))
        self.prompt_embeddings = nn.Parameter(torch.empty(1, num_tokens, width))
        nn.init.uniform_(self.prompt_embeddings, -bound, bound)
        if deep and self.depth > 1:
            shape = self.depth - 1, num_tokens, width
            self.deep_prompt_embeddings = nn.Parameter(torch.empty(shape))
            nn.init.uniform_(self.deep_prompt_embeddings, -bound, bound)
        for block in self.blocks:
            if hasattr(block.attn, 'num_prefix_tokens'):  # which it does not rotate
                block.attn.num_prefix_tokens = self.num_prefix

    def pool(self, output: TrunkOutput) -> Tensor:
        """What timm's own classifier reads, ``(B, C)``: class token, mean, attention pooling."""
        return self.model.forward_head(self._without_prompts(output.tokens), pre_logits=True)

    def forward_head(self, output: TrunkOutput) -> Tensor:
        if isinstance(self.head, nn.Identity):
            return super().forward_head(output)  # which refuses
        # A distilled network has two classifiers.
        return self.model.forward_head(self._without_prompts(output.tokens))

    def adapt_state_dict(self, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state_dict`` in the names, and for the patches, positions and channels, of ``model``.

        Args:
            state_dict: As timm or the authors of the network published it. What timm does not
                know stays as it is.
        """
        model: Any = self.model
        options: dict[str, Any] = {}
        if any(family in self.name for family in ('flexivit', 'radio')):  # as timm creates these
            options = dict(interpolation='bilinear', antialias=False)
        if isinstance(model, VisionTransformer):
            options['adapt_layer_scale'] = True  # DeiT III
        filter_fn = next(each for kind, each in _FILTERS.items() if isinstance(model, kind))
        # That of BEiT looks for the module of each key; here the last blocks may be left out.
        beyond = {k: v for k, v in state_dict.items() if (self.layer_id(k) or 0) >= self.depth}
        known = {key: value for key, value in state_dict.items() if key not in beyond}
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it leaves out
            adapted = beyond | filter_fn(known, model, **options)
        name = 'patch_embed.proj.weight'
        if name in adapted and adapted[name].shape[1:2] != (self.in_chans,):
            adapted[name] = adapt_input_conv(self.in_chans, adapted[name])
        return adapted

    def layer_id(self, name: str) -> int | None:
        return super().layer_id(name.removeprefix('model.'))

    def no_weight_decay(self) -> set[str]:
        names = self.model.no_weight_decay() if hasattr(self.model, 'no_weight_decay') else ()
        return {f'model.{name}' for name in names}

    def embed_modules(self) -> list[Any]:
        after = ('blocks', 'norm', 'fc_norm', 'head_drop', 'head', 'head_dist', 'attn_pool')
        parts = (*self.model._modules.items(), *self.model._parameters.items())
        return [part for name, part in parts if part is not None and name not in after]

    def pool_modules(self) -> list[Any]:
        pooling = getattr(self.model, 'attn_pool', None)
        norm = [] if isinstance(self.norm, nn.Identity) else [self.model.fc_norm]
        return norm if pooling is None else [*norm, pooling]

    def _without_prompts(self, tokens: Tensor) -> Tensor:
        if not self.num_prompt_tokens:
            return tokens
        rest = self.model.num_prefix_tokens
        return torch.cat([tokens[:, :rest], tokens[:, self.num_prefix :]], dim=1)

    def _with_prompts(self, tokens: Tensor, prompts: Tensor, num_replaced: int) -> Tensor:
        prompts = self.prompt_dropout(prompts.expand(tokens.shape[0], -1, -1))
        rest = self.model.num_prefix_tokens
        return torch.cat([tokens[:, :rest], prompts, tokens[:, rest + num_replaced :]], dim=1)

    def _embed_beit(self, patches: Tensor, grid: TokenGrid) -> Tensor:
        model = self.model
        tokens = torch.cat([model.cls_token.expand(patches.shape[0], -1, -1), patches], dim=1)
        if model.pos_embed is not None:
            stored = model.patch_embed.grid_size
            tokens = tokens + resample_abs_pos_embed(model.pos_embed, grid[:2], stored)
        return model.pos_drop(tokens)

    def _positions(self, grid: TokenGrid, tokens: Tensor) -> Iterable[Any]:
        """What each block needs of the grid beside the tokens."""
        model, position = self.model, None
        if getattr(model, 'rope', None) is not None:
            position = model.rope.get_embed(shape=list(grid[:2]))
            if model.rope_mixed:  # one a block
                return position[: self.depth]
        elif isinstance(model, Beit):
            position = relative_positions(grid, model.patch_embed.grid_size, tokens.device)
            if model.rel_pos_bias is not None:
                shared = position.bias(model.rel_pos_bias.relative_position_bias_table)
                position = position._replace(shared=shared)
        return [position] * self.depth


def build_timm_trunk(
    name: str,
    injection: str = 'value',
    img_size: int | Sequence[int] | None = None,
    in_chans: int = 3,
    num_classes: int | None = None,
    drop_path_rate: float = 0.0,
    grad_checkpointing: bool = False,
    depth: int | None = None,
) -> TimmTrunk:
    """A network of timm by its name there.

    Args:
        name: ``'timm/'`` and timm's name, with or without a tag of weights.
        injection, grad_checkpointing: See :class:`TimmTrunk`.
        img_size: Pixels that positions are stored for, side or (height, width); ``None``: those
            of the pretrained network.
        in_chans: Image channels.
        num_classes: Classes of the head; ``None``: those of the pretrained network.
        drop_path_rate: Stochastic depth of the last block; rises linearly from 0.
        depth: Blocks to keep, from the first on; ``None``: all.

    Raises:
        InputError: If timm has no such network (with the nearest names), it is of no class that
            takes top-down inputs, or an argument cannot be used.
    """
    model_name = name.removeprefix(PREFIX)
    _check_name(name, model_name)
    arguments = model_arguments(img_size, in_chans, num_classes, drop_path_rate)
    is_beit = timm.models.is_model_in_modules(model_name, ['beit'])
    if not is_beit:
        arguments |= dict(dynamic_img_size=True, dynamic_img_pad=True)
    model = timm.create_model(model_name, **arguments)
    if img_size is not None:
        patch_grid(img_size, model.patch_embed.feat_ratio())
    if is_beit:
        model.patch_embed.strict_img_size = False
        model.patch_embed.dynamic_img_pad = True
    return trunk_of_model(model, name, injection, grad_checkpointing, depth)


def model_arguments(
    img_size: Any, in_chans: Any, num_classes: Any, drop_path_rate: Any
) -> dict[str, Any]:
    """Arguments of timm's networks, checked; what is ``None`` is left out."""
    check_number('in_chans', in_chans, 1, 1000, whole=True)
    check_number('drop_path_rate', drop_path_rate, 0, 1)
    arguments = dict(in_chans=in_chans, drop_path_rate=drop_path_rate)
    if num_classes is not None:
        check_number('num_classes', num_classes, 0, 1_000_000, whole=True)
        arguments['num_classes'] = num_classes
    if img_size is not None:
        patch_grid(img_size, 1)
        arguments['img_size'] = img_size if isinstance(img_size, int) else tuple(img_size)
    return arguments


def trunk_of_model(
    model: Any, name: str, injection: str, grad_checkpointing: bool, depth: int | None
) -> TimmTrunk:
    """A trunk of the first ``depth`` blocks of a network of timm, all with ``None``."""
    full_depth = len(model.blocks)
    if depth is not None:
        check_number('depth', depth, 1, full_depth, whole=True)
        model.blocks = model.blocks[:depth]
    trunk = TimmTrunk(model, name, injection, grad_checkpointing)
    trunk.full_depth = full_depth
    return trunk


def _check_name(name: str, model_name: str) -> None:
    architecture, tag = timm.models.split_model_name_tag(model_name)
    if not timm.is_model(architecture):
        choices = [name for family in _FAMILIES for name in timm.list_models(module=family)]
        nearest = sorted(choices, key=lambda each: _likeness(architecture, each))[-3:]
        raise InputError(
            f'arch={name!r}: timm {timm.__version__} has no network {architecture!r}; did you mean '
            f'{" or ".join(map(repr, reversed(nearest)))}?'
        )
    if not timm.models.is_model_in_modules(architecture, _FAMILIES):
        raise InputError(
            f"arch={name!r} is none of timm's plain vision transformers (its modules "
            f'{", ".join(_FAMILIES)}), such as timm/vit_small_patch14_dinov2.lvd142m'
        )
    tags = [known.partition('.')[2] for known in timm.list_pretrained(architecture)]
    if tag and tag not in tags:
        raise InputError(
            f'arch={name!r}: timm {timm.__version__} knows no weights {tag!r} of {architecture}; '
            f'it knows {", ".join(tags) or "none"}; or leave .{tag} out'
        )


def _likeness(name: str, known: str) -> tuple[int, float]:
    """Words of ``name`` that ``known`` has (``dinov2_vits14``: dinov2), and their likeness."""
    words = known.split('_')
    shared = [
        word
        for word in name.lower().split('_')
        if any(each.startswith(word) or word.startswith(each) for each in words if len(each) > 2)
    ]
    return len(shared), difflib.SequenceMatcher(None, name.lower(), known).ratio()
