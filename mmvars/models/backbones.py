"""ViT and AbSViT as OpenMMLab backbones: OpenMMLab's names outside, ours inside."""

from collections.abc import Sequence
from typing import NamedTuple

from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvars.checkpoints import load_pretrained
from mmvars.errors import InputError, check_number
from mmvars.models.arguments import (ARCHITECTURES, prompt_arguments, size_arguments,
                                     split_init_cfg)
from mmvars.networks import TopDownOutput, TrunkOutput, build_network
from mmvars.registry import MODELS

__all__ = ['AbSViT', 'ARCHITECTURES', 'BackboneTrainOutput', 'ViT']

OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap')


class BackboneTrainOutput(NamedTuple):
    """What a host model needs of one training forward; nothing is kept in the backbone.

    Attributes:
        feats: As :meth:`ViT.forward` returns them.
        bottom_up_feats: The last output of pass 1 in the same form, a tuple of one; ``None`` where
            there is one pass only.
        losses: The backbone's own losses, weighted, by name.
    """

    feats: tuple[Tensor, ...]
    bottom_up_feats: tuple[Tensor, ...] | None
    losses: dict[str, Tensor]


@MODELS.register_module()
class ViT(BaseModule):
    """Plain vision transformer, the bottom-up twin of :class:`AbSViT`.

    All feature maps have the stride of the patch (no pyramid), as in the released segmentation
    models; UperNet takes them directly.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'`` (patch 16), ``'tiny_patch8_gap'`` (patch 8,
            average pooling), or a dict with ``embed_dims``, ``num_layers``, ``num_heads`` and
            optionally ``patch_size``, ``mlp_ratio``, ``global_pool``.
        img_size: Pixels the positions are stored for: side or (height, width). Inputs of any size
            are accepted; their positions are resampled.
        in_channels: Image channels.
        out_indices: Blocks whose output is returned, 0-based, negative from the end.
        out_type: ``'featmap'``: maps ``(B, C, h, w)``. ``'cls_token'``: ``(B, C)``.
            ``'avg_featmap'``: mean of the patch tokens ``(B, C)``.
        final_norm: Apply the final norm to the last block's output, as the release does; outputs
            of earlier blocks are never normalised.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        frozen_stages: -1: nothing; 0: the embedding; k: the embedding and the first k blocks are
            frozen and kept in eval mode.
        with_cp: Gradient checkpointing, block by block.
        transfer: What of the backbone trains: ``'end2end'`` everything, ``'linear'`` nothing,
            ``'prompt'`` the prompts (and an AbSViT's prior), ``'top-down'`` (AbSViT) prior and
            feedback. Heads always train.
        prompt_cfg: For ``transfer='prompt'``: ``num_tokens`` (50), ``deep`` (True), ``dropout``
            (0.).
        init_cfg: As everywhere in OpenMMLab. ``type='Pretrained'`` loads strictly: a file that
            does not fill this backbone is an error, not a line in the log. ``allow_new`` lists key
            prefixes that the file may lack (``('prior', 'feedback')`` to start an AbSViT from a
            plain ViT).

    Raises:
        InputError: On any value that cannot be used.
    """

    _family = 'vit'
    _transfers = ('end2end', 'linear', 'prompt')

    def __init__(self, arch: str | dict = 'base', img_size: int | Sequence[int] = 224,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1,
                 out_type: str = 'featmap', final_norm: bool = True, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, with_cp: bool = False, transfer: str = 'end2end',
                 prompt_cfg: dict | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        self._pretrained, others = split_init_cfg(init_cfg)
        super().__init__(init_cfg=others)
        if out_type not in OUT_TYPES:
            raise InputError(f'out_type must be one of {OUT_TYPES}, got {out_type!r}')
        if not final_norm and out_type != 'featmap':
            raise InputError(f"final_norm=False needs out_type='featmap', got {out_type!r}")
        if transfer not in self._transfers:
            raise InputError(f'transfer must be one of {self._transfers} for '
                             f'{type(self).__name__}, got {transfer!r}')
        if prompt_cfg is not None and transfer != 'prompt':
            raise InputError(f"prompt_cfg needs transfer='prompt', got transfer={transfer!r}")
        size = size_arguments(arch) | dict(
            img_size=img_size,
            in_chans=in_channels, num_classes=0, drop_path_rate=drop_path_rate,
            grad_checkpointing=with_cp)
        if transfer == 'prompt':
            size |= prompt_arguments(prompt_cfg)
        self.network = build_network(f'{self._family}_tiny_patch16', **size, **self._extra_parts())
        self.embed_dims = self.network.trunk.embed_dim
        self.num_layers = self.network.trunk.depth
        self.out_indices = self._checked_indices(out_indices)
        self.out_type = out_type
        self.final_norm = final_norm
        self.frozen_stages = frozen_stages
        self.transfer = transfer
        check_number('frozen_stages', frozen_stages, -1, self.num_layers, whole=True)
        self._freeze()

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before the patches; what CAM tools ask for."""
        return 1 + self.network.trunk.num_prompt_tokens

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Features of images ``(B, in_channels, H, W)``, one entry for each of ``out_indices``."""
        return self._features(self.network(x, out_indices=self.out_indices).final)

    def forward_train(self, x: Tensor) -> BackboneTrainOutput:
        """Features and own losses in one forward, for host models that know mmvars."""
        return BackboneTrainOutput(self(x), None, {})

    def init_weights(self) -> None:
        """Load the ``Pretrained`` file if there is one; fresh weights are set at construction."""
        super().init_weights()
        if self._pretrained is not None:
            print_log(load_pretrained(self, **self._pretrained).summary(), logger='current')

    def train(self, mode: bool = True) -> 'ViT':
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The embedding and prompts are layer 0 and block i is layer i + 1; a block's feedback decoder
        belongs to its block; final norm and prior are the last layer.

        Returns:
            ``(depth, number of layers)``, the latter ``num_layers + 2``.
        """
        num_layers = self.num_layers + 2
        name = param_name.removeprefix(prefix).removeprefix('network.')
        parts = name.split('.')
        if parts[:2] in (['trunk', 'blocks'], ['feedback', 'decoders']):
            return int(parts[2]) + 1, num_layers
        if parts[0] == 'trunk' and parts[1] not in ('norm', 'fc_norm'):
            return 0, num_layers
        return num_layers - 1, num_layers

    def _extra_parts(self) -> dict:
        return {}

    def _checked_indices(self, out_indices: int | Sequence[int]) -> tuple[int, ...]:
        given = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices, )
        depth = self.num_layers
        indices = tuple(i + depth if isinstance(i, int) and i < 0 else i for i in given)
        if (not indices or any(not isinstance(i, int) or not 0 <= i < depth for i in indices)
                or list(indices) != sorted(set(indices))):
            raise InputError(f'out_indices must be increasing block numbers in [{-depth}, '
                             f'{depth - 1}], got {out_indices!r}')
        return indices

    def _features(self, output: TrunkOutput) -> tuple[Tensor, ...]:
        feats = [self._formatted(tokens, output) for tokens in output.intermediates]
        if self.out_indices[-1] == self.num_layers - 1 and self.final_norm:
            feats[-1] = self._last_feature(output)
        return tuple(feats)

    def _last_feature(self, output: TrunkOutput) -> Tensor:
        """The last block's output after the final norm; ``fc_norm`` stands after the mean."""
        fc_norm = self.network.trunk.fc_norm
        if self.out_type == 'featmap':
            return output.grid.to_map(fc_norm(output.tokens))
        feature = self._formatted(output.tokens, output)
        return fc_norm(feature) if self.out_type == 'avg_featmap' else feature

    def _formatted(self, tokens: Tensor, output: TrunkOutput) -> Tensor:
        if self.out_type == 'cls_token':
            return tokens[:, 0]
        if self.out_type == 'avg_featmap':
            return output.grid.patch_tokens(tokens).mean(dim=1)
        return output.grid.to_map(tokens)

    def _frozen_modules(self) -> list[nn.Module]:
        trunk = self.network.trunk
        if self.frozen_stages < 0:
            return []
        return [trunk.patch_embed, *trunk.blocks[:self.frozen_stages]]

    def _freeze(self) -> None:
        """Leave ``requires_grad`` on what trains *and* what a loss can reach (DDP needs both)."""
        trunk = self.network.trunk
        if self.transfer != 'end2end':
            trainable = tuple(self._trainable_prefixes())
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(trainable))
        frozen = self._frozen_modules() + self._unused_modules()
        if self.frozen_stages >= 0:
            trunk.cls_token.requires_grad_(False)
            trunk.pos_embed.requires_grad_(False)
        for module in frozen:
            module.requires_grad_(False)

    def _trainable_prefixes(self) -> list[str]:
        if self.transfer == 'prompt':
            return ['trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings', 'prior.']
        return ['prior.', 'feedback.'] if self.transfer == 'top-down' else []

    def _unused_modules(self) -> list[nn.Module]:
        """Modules that no output depends on."""
        trunk = self.network.trunk
        last = self.out_indices[-1]
        unused = list(trunk.blocks[last + 1:])
        if last < self.num_layers - 1 or not self.final_norm:
            unused += [trunk.norm, trunk.fc_norm]
        elif self.out_type == 'cls_token':
            unused += [trunk.fc_norm]
        return unused


@MODELS.register_module()
class AbSViT(ViT):
    """Vision transformer with top-down attention from analysis by synthesis (Section 2.5).

    The features are those of pass 2. Takes all arguments of :class:`ViT`, and:

    Args:
        prior: What to look for: ``'learned_query'``, ``'given'``, or
            ``dict(type='class_prototype', num_classes=K)``.
        alpha: Scale of the top-down signal; 1 in the release, 10 for scenes with several objects
            (Section 2.7).
        reconstruction_loss_weight: Weight of the summed layer-wise reconstruction loss (Eq. 2.13)
            in :meth:`forward_train`; 0.1 for ImageNet (A.5), 0 in the released segmentation recipe.
    """

    _family = 'absvit'
    _transfers = ('end2end', 'linear', 'prompt', 'top-down')

    def __init__(self, *args, prior: str | dict = 'learned_query', alpha: float = 1.,
                 reconstruction_loss_weight: float = 0., **kwargs) -> None:
        check_number('alpha', alpha)
        check_number('reconstruction_loss_weight', reconstruction_loss_weight, 0)
        self._parts = dict(prior=prior, alpha=alpha)
        super().__init__(*args, **kwargs)
        self.reconstruction_loss_weight = reconstruction_loss_weight

    def forward(self, x: Tensor, prior: Tensor | None = None,
                alpha: float | Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of pass 2 for images ``(B, in_channels, H, W)``.

        Args:
            prior: Prior for this call: ``(C,)``, ``(B, C)``, or class ids; ``None`` for the own.
            alpha: Scale for this call, a number or ``(B,)``.
        """
        output = self.network(x, prior=prior, alpha=alpha, out_indices=self.out_indices)
        return self._features(output.final)

    def forward_train(self, x: Tensor) -> BackboneTrainOutput:
        weight = self.reconstruction_loss_weight
        output: TopDownOutput = self.network(x, out_indices=self.out_indices,
                                             reconstruction=weight > 0)
        losses = {}
        if weight > 0:
            losses['loss_reconstruction'] = weight * output.reconstruction.sum()
        return BackboneTrainOutput(self._features(output.final),
                                   (self._last_feature(output.bottom_up), ), losses)

    def _extra_parts(self) -> dict:
        return self._parts

    def _unused_modules(self) -> list[nn.Module]:
        # Pass 1 runs every block and the final norm; only what pass 2 alone uses can be unused.
        last = self.out_indices[-1]
        unused = [decoder.readout for decoder in self.network.feedback.decoders[last + 1:]]
        return unused + [m for m in super()._unused_modules() if m is self.network.trunk.fc_norm]
