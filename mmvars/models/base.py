"""A network as an OpenMMLab backbone: feature maps, frozen parts, losses, layer depths."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmvars.checkpoints import load_pretrained, load_timm_weights
from mmvars.errors import InputError, check_choice, check_flag, check_number
from mmvars.models.arguments import split_init_cfg
from mmvars.models.transfer import added_names, apply_transfer
from mmvars.networks import (
    FirstPassOutput,
    PerceiverIO,
    TopDown,
    TopDownOutput,
    Trunk,
    TrunkOutput,
)

__all__ = ['Backbone', 'BackboneTrainOutput']

OUT_TYPES = ('featmap', 'cls_token', 'avg_featmap', 'pooled', 'featmap_cls_token')


class BackboneTrainOutput(NamedTuple):
    """What ``backbone(x, return_losses=True)`` returns.

    Attributes:
        feats: The features, as without ``return_losses``.
        first_pass_feats: The last feature of pass 1, a tuple of one; ``None`` where there is one
            pass only.
        losses: The backbone's own losses, weighted, by name.
        compared: Map ``(B, C, h, w)`` of the patch tokens of pass 1 as they are compared with the
            prior; ``None`` without a prior.
    """

    feats: tuple[Tensor, ...]
    first_pass_feats: tuple[Tensor, ...] | None
    losses: dict[str, Tensor]
    compared: Tensor | None = None


class Backbone(BaseModule):
    """A network as a backbone; with top-down attention its features are those of the last pass.

    Args:
        network: The network.
        out_indices: Blocks whose output is returned, 0-based, negative from the end.
        out_type: ``'featmap'``: maps ``(B, C, h, w)``. ``'cls_token'``: ``(B, C)``, for trunks with
            a class token. ``'avg_featmap'``: mean of the patch tokens ``(B, C)``. ``'pooled'``:
            that of the two which the trunk's own classifier reads. ``'featmap_cls_token'``: pairs
            of map and class token, as DPT heads read them (``output_cls_token`` of MMSegmentation).
        final_norm: Apply the final norm to the last block's output, as the release does; outputs
            of earlier blocks are never normalized.
        frozen_stages: -1: nothing; 0: the embedding; k: the embedding and the first k blocks are
            frozen and stay in eval mode.
        init_cfg: As everywhere in OpenMMLab. ``type='Pretrained'`` loads strictly: a file that
            does not fill this backbone is an error. ``allow_new`` lists key prefixes that the file
            may lack, ``allow_constants`` options of the mixer (such as ``'num_steps'``) in which
            the file's record may differ.
        transfer: What trains, a key of :data:`~mmvars.models.transfer.TRANSFERS`. Unless it is
            ``'end2end'``, the trunk stays in eval mode: no stochastic depth, and batch norms keep
            their statistics.
        lora_cfg: See :func:`~mmvars.models.transfer.apply_transfer`.
        reconstruction_loss_weight: Weight of the summed layer-wise reconstruction loss (Eq. 2.13)
            in training with ``mmvars.EncoderDecoder`` and ``mmvars.ImageClassifier``.
        pretrained: For a trunk of timm: ``True`` for timm's weights of the tag in ``arch``, or a
            file, see :func:`mmvars.checkpoints.load_timm_weights`. They are loaded by
            ``init_weights()``, before the file of ``init_cfg``.

    Attributes:
        network: A :class:`~mmvars.networks.Trunk`, or one with top-down attention around it.
        out_channels: Channels of each output.
        out_strides: Pixels between neighboring places of each output map.

    Raises:
        InputError: On any value that cannot be used.
    """

    _has_warned = False

    def __init__(
        self,
        network: Trunk | TopDown | PerceiverIO,
        out_indices: int | Sequence[int],
        out_type: str,
        final_norm: bool,
        frozen_stages: int,
        init_cfg: Any,
        transfer: str = 'end2end',
        lora_cfg: dict | None = None,
        reconstruction_loss_weight: float = 0.0,
        pretrained: bool | str | None = None,
    ) -> None:
        self._pretrained, others = split_init_cfg(init_cfg)
        super().__init__(init_cfg=others)
        self.network = network
        trunk = self.trunk
        if pretrained and not hasattr(trunk, 'adapt_state_dict'):
            raise InputError(
                f"mmvars.{type(self).__name__} takes no 'pretrained': write "
                f"init_cfg=dict(type='Pretrained', checkpoint=FILE); only a trunk of timm does, "
                f'got {pretrained!r}'
            )
        if not isinstance(pretrained, bool | str | None):
            raise InputError(f'pretrained must be True, False or a file, got {pretrained!r}')
        self.pretrained = pretrained
        check_choice('out_type', out_type, OUT_TYPES)
        check_flag('final_norm', final_norm)
        if not final_norm and not out_type.startswith('featmap'):
            raise InputError(f"final_norm=False needs out_type='featmap', got {out_type!r}")
        if out_type == 'pooled':
            pooling = getattr(trunk, 'global_pool', 'token')
            if pooling in ('token', 'avg', 'norm_avg'):
                by_token = trunk.has_class_token and pooling == 'token'
                out_type = 'cls_token' if by_token else 'avg_featmap'
        if out_type.endswith('cls_token') and not trunk.has_class_token:
            raise InputError(
                f'out_type={out_type!r} needs a class token, which this trunk does not '
                "have; use out_type='avg_featmap'"
            )
        self.out_indices = _resolve_indices(out_indices, trunk.depth)
        is_last_alone = self.out_indices == (trunk.depth - 1,)
        if out_type == 'pooled' and not is_last_alone:
            raise InputError(
                f"out_type='pooled' needs out_indices=-1 in a trunk whose classifier reads neither "
                f'the class token nor the mean of the patches alone, got {out_indices!r}'
            )
        if out_type.endswith('cls_token') and not trunk.num_block_prefix and not is_last_alone:
            raise InputError(
                f'out_type={out_type!r} needs out_indices=-1 here, since the blocks of '
                f'this trunk have no class token yet, got {out_indices!r}'
            )
        check_number('frozen_stages', frozen_stages, -1, trunk.depth, whole=True)
        self.embed_dims = trunk.embed_dim
        self.num_layers = trunk.depth
        self.out_type = out_type
        self.out_channels = tuple(trunk.widths[i] for i in self.out_indices)
        self.out_strides = tuple(trunk.strides[i] for i in self.out_indices)
        self.final_norm = final_norm
        self.frozen_stages = frozen_stages
        # The last block's raw output is not returned where its final norm follows.
        self._ends_with_norm = final_norm and self.out_indices[-1] == trunk.depth - 1
        self._raw_indices = self.out_indices[:-1] if self._ends_with_norm else self.out_indices
        self._is_class_token_alone = out_type == 'cls_token' and is_last_alone
        if isinstance(network, PerceiverIO) and not self._ends_with_norm:
            raise InputError(
                "design='perceiver_io' reweights the output of the last block alone, "
                'so out_indices must end with it and final_norm be True'
            )
        check_number('reconstruction_loss_weight', reconstruction_loss_weight, 0)
        decoders = getattr(getattr(network, 'feedback', None), 'decoders', ())  # one a block
        if reconstruction_loss_weight and not decoders:
            raise InputError(
                f'reconstruction_loss_weight ({reconstruction_loss_weight:g}) needs '
                f"decoders to train, which only design='absvit', 'absvit_qkv' and "
                f"'feedback' have: leave it at 0"
            )
        self.reconstruction_loss_weight = reconstruction_loss_weight
        self.transfer = transfer
        apply_transfer(network, transfer, lora_cfg)
        self._check_what_trains()
        for part in self._frozen_parts() + self._unused_parts(decoders):
            part.requires_grad_(False)

    @property
    def trunk(self) -> Trunk:
        """The bottom-up network."""
        return self.network if isinstance(self.network, Trunk) else self.network.trunk

    @property
    def prior(self) -> Any:
        """The network's :class:`~mmvars.networks.Prior`; ``None`` without."""
        return getattr(self.network, 'prior', None)

    @property
    def has_pretrained(self) -> bool:
        """Whether :meth:`init_weights` reads a file."""
        return bool(self.pretrained) or self._pretrained is not None

    @property
    def init_file(self) -> str:
        """The ``Pretrained`` file of ``init_cfg``, or ``''``."""
        return '' if self._pretrained is None else str(self._pretrained['path'])

    @property
    def num_extra_tokens(self) -> int:
        """Tokens before the patches inside the blocks, for class activation maps.

        Their tools keep the first output of a layer, which with top-down attention is that of pass
        1. ``network.trunk.top_down_tokens``, before the last block, runs in pass 2 alone.
        """
        return self.trunk.num_block_prefix

    def forward(
        self,
        x: Tensor,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
        return_losses: bool = False,
    ) -> tuple[Tensor, ...] | BackboneTrainOutput:
        """Features of images ``(B, in_channels, H, W)``, one for each of ``out_indices``.

        Args:
            x: Images.
            prior: Prior for this call: ``(C,)``, ``(B, C)``, or class ids; ``None``: the
                network's own.
            alpha: Scale for this call, a number or ``(B,)``; ``None``: the network's own.
            return_losses: Return a :class:`BackboneTrainOutput`.

        Raises:
            InputError: On a prior or a scale that does not fit, or without top-down attention.
        """
        network, weight = self.network, self.reconstruction_loss_weight
        # In eval mode with gradients all tokens are computed: class activation maps read them.
        pooled_only = self._is_class_token_alone and (self.training or not torch.is_grad_enabled())
        if isinstance(network, Trunk):
            if prior is not None or alpha is not None:
                raise self._takes_no_prior()
            feats = self._features(network(x, self._raw_indices, pooled_only))
            return BackboneTrainOutput(feats, None, {}) if return_losses else feats
        if weight and self.training and not return_losses:
            self._warn_of_ignored_loss()
        reconstruction = return_losses and weight > 0
        output = network(x, prior, alpha, self._raw_indices, reconstruction, pooled_only)
        return self._train_output(output) if return_losses else self._features(output.second)

    def forward_first_pass(self, x: Tensor) -> FirstPassOutput | TrunkOutput:
        """All of :meth:`forward` that does not depend on a prior.

        Args:
            x: Images ``(B, in_channels, H, W)``.
        """
        if isinstance(self.network, TopDown):
            return self.network.forward_first_pass(x)
        network: Any = self.network
        run = network.forward_first_pass if isinstance(network, PerceiverIO) else network
        return run(x, self._raw_indices)

    def forward_second_pass(
        self,
        first: FirstPassOutput | TrunkOutput,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
        priors_per_image: int = 1,
        return_losses: bool = False,
    ) -> tuple[Tensor, ...] | BackboneTrainOutput:
        """What :meth:`forward` returns, from the output of :meth:`forward_first_pass`.

        Many captions of an image share its first pass, in training too.

        Args:
            first: Of B images; it can be used any number of times.
            prior, alpha: As in :meth:`forward`, of ``B * priors_per_image`` images.
            priors_per_image: K priors of the first image come first, then those of the second.
            return_losses: As in :meth:`forward`.

        Returns:
            The features of ``B * priors_per_image`` images.
        """
        network: Any = self.network
        first_pass: Any = first if priors_per_image == 1 else first.repeat(priors_per_image)
        if isinstance(network, Trunk):
            if prior is not None or alpha is not None:
                raise self._takes_no_prior()
            feats = self._features(first_pass)
            return BackboneTrainOutput(feats, None, {}) if return_losses else feats
        if isinstance(network, PerceiverIO):
            output = network.forward_second_pass(first_pass, prior, alpha)
        else:
            reconstruction = return_losses and self.reconstruction_loss_weight > 0
            output = network.forward_second_pass(
                first_pass, prior, alpha, self._raw_indices, reconstruction
            )
        return self._train_output(output) if return_losses else self._features(output.second)

    def forward_priors(
        self, x: Tensor, priors: Sequence[Tensor] | Tensor, alpha: float | Tensor | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """What :meth:`forward` returns for each of several priors; pass 1 runs once.

        A second pass runs when the iterator comes to it.

        Args:
            x, priors, alpha: As in :meth:`forward`; the priors one after the other.
        """
        min_ndim = 2 if isinstance(priors, Tensor) and priors.is_floating_point() else 1
        if not isinstance(priors, Sequence | Tensor) or getattr(priors, 'ndim', 2) < min_ndim:
            raise InputError(
                'priors must be a sequence of priors, or a tensor with one in each '
                f'row; for a single prior call forward(x, prior). Got {priors!r}'
            )
        network = self._two_pass_network()
        first = network.forward_first_pass(x)
        pooled_only = self._is_class_token_alone and not torch.is_grad_enabled()
        return (
            self._features(
                network.forward_second_pass(
                    first, prior, alpha, self._raw_indices, pooled_only=pooled_only
                ).second
            )
            for prior in priors
        )

    def forward_frame(
        self,
        x: Tensor,
        previous: TrunkOutput | None = None,
        prior: Tensor | None = None,
        alpha: float | Tensor | None = None,
    ) -> tuple[tuple[Tensor, ...], TrunkOutput]:
        """Features of a video frame, with the output for the frame before in place of pass 1.

        Another function than :meth:`forward`, at about half the cost: the second pass is steered
        by the tokens of the frame before. Call it under ``torch.no_grad()``, or each frame holds
        the graphs of all before it.

        Args:
            x, prior, alpha: As in :meth:`forward`.
            previous: The second value returned for the frame before; ``None`` at the first.
        """
        network = self._two_pass_network()
        first = network.forward_first_pass(x, previous)
        output = network.forward_second_pass(first, prior, alpha, self._raw_indices).second
        return self._features(output), output._replace(intermediates=(), grids=())

    def fuse(self) -> None:
        """Multiply weights out for faster inference; ``train()`` undoes it.

        Call it again after changes that nothing can notice: of ``parameter.data``, and any between
        two calls of a compiled backbone.
        """
        self.network.fuse()

    def unfuse(self) -> None:
        """Undo :meth:`fuse`."""
        self.network.unfuse()

    def init_weights(self) -> None:
        """Load the ``Pretrained`` file if there is one; fresh weights are set at construction."""
        super().init_weights()
        if self.pretrained:
            report = load_timm_weights(self.trunk, self.pretrained)
            print_log(report.summary(), logger='current')
        if any(hasattr(module, 'lipschitz') for module in self.modules()):
            print_log(
                'VARS-S: its Lipschitz constants are to be updated while it trains. `mmvars '
                "train` does so; with another script, put dict(type='mmvars."
                "LipschitzUpdateHook') into custom_hooks",
                logger='current',
            )
        if self._pretrained is not None:
            allow_new = self._pretrained.get('allow_new', ())
            allow_new = [allow_new] if isinstance(allow_new, str) else [*allow_new]
            arguments = self._pretrained | dict(allow_new=allow_new + added_names(self.network))
            print_log(load_pretrained(self, **arguments).summary(), logger='current')
        elif self.transfer != 'end2end' and not self.pretrained:
            print_log(
                f'transfer={self.transfer!r} freezes a trunk that starts from random weights: give '
                "init_cfg=dict(type='Pretrained', checkpoint=FILE), or pretrained=True on a trunk "
                'of timm, unless load_from fills it',
                logger='current',
                level=logging.WARNING,
            )
        gates = [
            parameter
            for name, parameter in self.network.named_parameters()
            if name.endswith('.gate') and name.startswith('feedback.')
        ]
        if gates and not any(gate.requires_grad or gate.any() for gate in gates):
            print_log(
                f'transfer={self.transfer!r} leaves the gates of the feedback closed: the second '
                f"pass repeats the first. Use type='mmvars.ViT', or transfer='top-down'",
                logger='current',
                level=logging.WARNING,
            )

    def train(self, mode: bool = True) -> 'Backbone':
        super().train(mode)
        frozen = self._frozen_parts()
        if self.transfer != 'end2end':  # its parts: checkpointing asks for the mode of the whole
            frozen += self.trunk.children()
        for part in frozen:
            if isinstance(part, nn.Module):
                part.eval()
        for name, module in self.trunk.named_modules():
            if name.endswith(('prompt_dropout', '.lora_dropout')):
                module.train(mode)
        return self

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter for layer-wise learning-rate decay.

        The embedding and prompts are layer 0 and block i is layer i + 1; what leads from one stage
        to the next belongs to the block after it, a feedback decoder to its block; final norm and
        prior are the last layer. Returned beside it is the number of layers, ``num_layers + 2``.
        """
        name = param_name.removeprefix(prefix).removeprefix('network.').removeprefix('trunk.')
        parts, last = name.removeprefix('model.').split('.'), self.num_layers + 1
        if parts[0] == 'feedback':  # decoders and upsamples are numbered as the blocks they lead to
            return int(parts[2]) + 1, last + 1
        if parts[0] in ('norm', 'fc_norm', 'prior', 'cls_attn_blocks', 'attn_pool'):
            return last, last + 1
        block = self.trunk.layer_id(name)
        return (0 if block is None else block + 1), last + 1

    def _features(self, output: TrunkOutput) -> tuple[Tensor, ...]:
        """The outputs of a pass in the form of ``out_type``, the last one normalized."""
        trunk: Any = getattr(self.network, 'trunk', self.network)
        layers = [*zip(output.intermediates, output.grids, strict=True)]
        if self._ends_with_norm:
            layers.append((output.tokens, output.grid))
        feats: list[Any] = []
        for tokens, grid in layers:
            is_last = len(feats) == len(output.intermediates)
            if self.out_type == 'cls_token':
                feats.append(tokens[:, 0])
            elif self.out_type == 'pooled':
                feats.append(trunk.pool(output))
            elif self.out_type == 'avg_featmap':
                mean = grid.patch_tokens(tokens).mean(dim=1)
                feats.append(trunk.fc_norm(mean) if is_last else mean)
            else:
                tokens = trunk.fc_norm(tokens) if is_last else tokens
                maps = grid.to_map(tokens).contiguous()
                feats.append(maps if self.out_type == 'featmap' else (maps, tokens[:, 0]))
        return tuple(feats)

    def _train_output(self, output: TopDownOutput) -> BackboneTrainOutput:
        network: Any = self.network
        first = None if isinstance(network, PerceiverIO) else self._features(output.first)
        losses = {}
        if output.reconstruction is not None:
            weight = self.reconstruction_loss_weight
            losses = {'loss_reconstruction': weight * output.reconstruction.sum()}
        compared = None
        if network.prior is not None:
            tokens, center = output.first.tokens, network.prior.center
            compared = output.first.grid.to_map(tokens if center is None else tokens - center)
        return BackboneTrainOutput(self._features(output.second), first, losses, compared)

    def _takes_no_prior(self) -> InputError:
        return InputError(
            f'mmvars.{type(self).__name__} has no top-down attention and '
            'takes no prior or alpha: leave it out, or use mmvars.AbSViT'
        )

    def _two_pass_network(self) -> TopDown:
        if not isinstance(self.network, TopDown):
            raise InputError(
                f'this mmvars.{type(self).__name__} has a single pass: call forward instead'
            )
        return self.network

    def _check_what_trains(self) -> None:
        """Refuse options that act on nothing that trains."""
        if self.frozen_stages >= 0 and self.transfer not in ('end2end', 'bias', 'lora'):
            raise InputError(
                f'frozen_stages={self.frozen_stages} has no use with transfer={self.transfer!r}, '
                'which freezes the whole trunk: leave it out'
            )
        feedback: Any = getattr(self.network, 'feedback', None)
        if self.reconstruction_loss_weight and not any(
            parameter.requires_grad for parameter in feedback.parameters()
        ):
            raise InputError(
                f'reconstruction_loss_weight ({self.reconstruction_loss_weight:g}) needs decoders '
                f'that train, and transfer={self.transfer!r} freezes them: leave it at 0'
            )

    def _frozen_parts(self) -> list[Any]:
        """Modules and parameters of the frozen stages."""
        if self.frozen_stages < 0:
            return []
        parts = self.trunk.embed_modules()
        for index in range(self.frozen_stages):
            parts += self.trunk.stage_modules(index)
        return parts

    def _unused_parts(self, decoders: Sequence[Any]) -> list[Any]:
        """Modules and parameters that no output depends on: DDP needs ``requires_grad`` off them.

        With top-down attention pass 1 runs every block and the final norm.
        """
        trunk, end = self.trunk, self.out_indices[-1] + 1
        unused: list[Any] = [] if self.out_type == 'pooled' else trunk.pool_modules()
        if not self._ends_with_norm or self.out_type == 'cls_token':
            unused.append(trunk.fc_norm)
        if isinstance(self.network, Trunk):
            unused += [
                part for index in range(end, trunk.depth) for part in trunk.stage_modules(index)
            ]
            if not self._ends_with_norm:
                unused.append(trunk.norm)
                if hasattr(trunk, 'cls_attn_blocks'):  # FAN's class stage is part of the output
                    unused += [trunk.cls_attn_blocks, trunk.cls_token]
        elif not self._is_every_decoder_used():
            unused += [decoder.to_value for decoder in decoders[end:]]
            unused += [decoder.gate for decoder in decoders[end:] if hasattr(decoder, 'gate')]
        return unused

    def _is_every_decoder_used(self) -> bool:
        """Whether a pass between or a loss on every block needs ``to_value`` of all decoders."""
        network: Any = self.network
        if not isinstance(network, TopDown):
            return False
        stops = getattr(network.feedback, 'stop_gradient', True)
        return network.num_passes > 2 or not stops or network.code_sparsity > 0

    def _warn_of_ignored_loss(self) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled() or self._has_warned:
            return
        self._has_warned = True
        print_log(
            f'reconstruction_loss_weight={self.reconstruction_loss_weight:g} has no effect '
            "in this model, which takes the backbone's features alone: use "
            "type='mmvars.EncoderDecoder' or type='mmvars.ImageClassifier', whose loss "
            'contains it',
            logger='current',
            level=logging.WARNING,
        )


def _resolve_indices(out_indices: int | Sequence[int], depth: int) -> tuple[int, ...]:
    """Block numbers from 0 on, increasing."""
    values = tuple(out_indices) if isinstance(out_indices, Sequence) else (out_indices,)
    are_numbers = all(isinstance(i, int) and not isinstance(i, bool) for i in values)
    indices = tuple(i + depth if i < 0 else i for i in values) if are_numbers else ()
    if (
        not indices
        or any(not 0 <= i < depth for i in indices)
        or list(indices) != sorted(set(indices))
    ):
        raise InputError(
            f'out_indices must be increasing block numbers in [{-depth}, '
            f'{depth - 1}], got {out_indices!r}'
        )
    return indices
