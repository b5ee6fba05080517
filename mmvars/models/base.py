"""What all backbones share: a network of mmvars under OpenMMLab's names."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvars.checkpoints import load_pretrained
from mmvars.errors import InputError, check_choice, check_flag, check_number
from mmvars.models.arguments import outside_names, split_init_cfg
from mmvars.networks import TrunkOutput, build_network

__all__ = ['BackboneTrainOutput', 'TrunkBackbone']

OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap')


class BackboneTrainOutput(NamedTuple):
    """What a host model needs of one training forward; nothing is kept in the backbone.

    Attributes:
        feats: As :meth:`TrunkBackbone.forward` returns them.
        bottom_up_feats: The last output of pass 1 in the same form, a tuple of one; ``None`` where
            there is one pass only.
        losses: The backbone's own losses, weighted, by name.
    """

    feats: tuple[Tensor, ...]
    bottom_up_feats: tuple[Tensor, ...] | None
    losses: dict[str, Tensor]


class TrunkBackbone(BaseModule):
    """A :class:`~mmvars.networks.TopDown` network as an OpenMMLab backbone.

    Args:
        network: Arguments of :func:`~mmvars.networks.build_network`.
        out_indices: Blocks whose output is returned, 0-based, negative from the end.
        out_type: ``'featmap'``: maps ``(B, C, h, w)``. ``'cls_token'``: ``(B, C)``, for trunks with
            a class token. ``'avg_featmap'``: mean of the patch tokens ``(B, C)``.
        final_norm: Apply the final norm to the last block's output, as the release does; outputs
            of earlier blocks are never normalised.
        frozen_stages: -1: nothing; 0: the embedding; k: the embedding and the first k blocks are
            frozen and kept in eval mode.
        init_cfg: As everywhere in OpenMMLab. ``type='Pretrained'`` loads strictly: a file that
            does not fill this backbone is an error, not a line in the log. ``allow_new`` lists key
            prefixes that the file may lack, ``allow_constants`` options of the mixer (such as
            ``'num_steps'``) in which the file's record may differ.

    Attributes:
        out_channels: Channels of each output.
        out_strides: Pixels between the places of each output map.

    Raises:
        InputError: On any value that cannot be used.
    """

    def __init__(self, network: dict, out_indices: int | Sequence[int], out_type: str,
                 final_norm: bool, frozen_stages: int,
                 init_cfg: dict | list[dict] | None) -> None:
        self._pretrained, others = split_init_cfg(init_cfg)
        super().__init__(init_cfg=others)
        check_choice('out_type', out_type, OUT_TYPES)
        check_flag('final_norm', final_norm)
        if not final_norm and out_type != 'featmap':
            raise InputError(f"final_norm=False needs out_type='featmap', got {out_type!r}")
        with outside_names():
            self.network = build_network(**network)
        trunk = self.network.trunk
        if out_type == 'cls_token' and not trunk.num_prefix:
            raise InputError("out_type='cls_token' needs a class token, which this trunk does not "
                             "have; use out_type='avg_featmap'")
        self.embed_dims = trunk.embed_dim
        self.num_layers = trunk.depth
        self.out_indices = self._checked_indices(out_indices)
        if (out_type == 'cls_token' and not trunk.num_block_prefix
                and self.out_indices != (self.num_layers - 1, )):
            raise InputError(f"out_type='cls_token' needs out_indices=-1 here, since the blocks of "
                             f'this trunk have no class token yet, got {out_indices!r}')
        self.out_channels = tuple(trunk.widths[i] for i in self.out_indices)
        self.out_strides = tuple(trunk.strides[i] for i in self.out_indices)
        self.out_type = out_type
        self.final_norm = final_norm
        self.frozen_stages = frozen_stages
        check_number('frozen_stages', frozen_stages, -1, self.num_layers, whole=True)
        self._freeze()

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before the patches; what CAM tools ask for."""
        return self.network.trunk.num_prefix

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of images ``(B, in_channels, H, W)``, one entry for each of ``out_indices``."""
        output = self.network(x, out_indices=self._wanted(), pooled_only=self._only_pooled())
        return self._features(output.final)

    def forward_train(self, x: Tensor) -> BackboneTrainOutput:
        """Features and own losses in one forward, for host models that know mmvars."""
        return BackboneTrainOutput(self(x), None, {})

    def init_weights(self) -> None:
        """Load the ``Pretrained`` file if there is one; fresh weights are set at construction."""
        super().init_weights()
        if self._pretrained is not None:
            print_log(load_pretrained(self, **self._pretrained).summary(), logger='current')

    def train(self, mode: bool = True) -> 'TrunkBackbone':
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The embedding and prompts are layer 0 and block i is layer i + 1; what leads from one stage
        to the next belongs to the block after it, a feedback decoder to its block; final norm and
        prior are the last layer.

        Returns:
            ``(depth, number of layers)``, the latter ``num_layers + 2``.
        """
        num_layers = self.num_layers + 2
        name = param_name.removeprefix(prefix).removeprefix('network.')
        part, _, inner = name.partition('.')
        if part == 'feedback':  # decoders and crossings are numbered as the blocks they lead to
            return int(inner.split('.')[1]) + 1, num_layers
        if part != 'trunk' or inner.split('.')[0] in ('norm', 'fc_norm'):
            return num_layers - 1, num_layers
        block = self.network.trunk.block_index(inner)
        return (0 if block is None else block + 1), num_layers

    def _checked_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        given = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices, )
        depth = self.num_layers
        indices = tuple(i + depth if isinstance(i, int) and i < 0 else i for i in given)
        if (not indices or any(not isinstance(i, int) or not 0 <= i < depth for i in indices)
                or any(isinstance(i, bool) for i in given)
                or list(indices) != sorted(set(indices))):
            raise InputError(f'out_indices must be increasing block numbers in [{-depth}, '
                             f'{depth - 1}], got {out_indices!r}')
        return indices

    def _wanted(self) -> tuple[int, ...]:
        """Blocks whose raw output is returned: not the last, where its final norm follows."""
        last_is_normed = self.out_indices[-1] == self.num_layers - 1 and self.final_norm
        return self.out_indices[:-1] if last_is_normed else self.out_indices

    def _only_pooled(self) -> bool:
        """Whether of the last block the class token alone is wanted.

        In eval mode with gradients all tokens are kept: class activation maps look at them.
        """
        return (self.out_type == 'cls_token' and self.out_indices == (self.num_layers - 1, )
                and (self.training or not torch.is_grad_enabled()))

    def _features(self, output: TrunkOutput) -> tuple[Tensor, ...]:
        feats = [self._formatted(tokens, grid)
                 for tokens, grid in zip(output.intermediates, output.grids, strict=True)]
        if len(feats) < len(self.out_indices):
            feats.append(self._last_feature(output))
        return tuple(feats)

    def _last_feature(self, output: TrunkOutput) -> Tensor:
        """The last block's output after the final norm; ``fc_norm`` stands after the mean."""
        fc_norm = self.network.trunk.fc_norm
        if self.out_type == 'featmap':
            return output.grid.to_map(fc_norm(output.tokens))
        feature = self._formatted(output.tokens, output.grid)
        return fc_norm(feature) if self.out_type == 'avg_featmap' else feature

    def _formatted(self, tokens: Tensor, grid) -> Tensor:
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        if self.out_type == 'avg_featmap':
            return grid.patch_tokens(tokens).mean(dim=1)
        return grid.to_map(tokens)

    def _frozen_modules(self) -> list[nn.Module]:
        trunk = self.network.trunk
        if self.frozen_stages < 0:
            return []
        return [trunk.patch_embed,
                *(m for i in range(self.frozen_stages) for m in trunk.block_modules(i))]

    def _freeze(self) -> None:
        """Leave ``requires_grad`` on what trains *and* what a loss can reach (DDP needs both)."""
        for module in self._frozen_modules() + self._unused_modules():
            module.requires_grad_(False)
        if self.frozen_stages >= 0:
            for name in ('cls_token', 'pos_embed'):
                if getattr(self.network.trunk, name, None) is not None:
                    getattr(self.network.trunk, name).requires_grad_(False)

    def _unused_modules(self) -> list[nn.Module]:
        """Modules that no output depends on."""
        trunk = self.network.trunk
        last = self.out_indices[-1]
        unused = [m for i in range(last + 1, self.num_layers) for m in trunk.block_modules(i)]
        if last < self.num_layers - 1 or not self.final_norm:
            unused += [trunk.norm, trunk.fc_norm]
        elif self.out_type == 'cls_token':
            unused += [trunk.fc_norm]
        return unused
