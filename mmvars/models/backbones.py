"""ViT and AbSViT as OpenMMLab backbones: OpenMMLab's names outside, ours inside."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.models.arguments import (ARCHITECTURES, named_network, prompt_arguments,
                                     size_arguments)
from mmvars.models.base import BackboneTrainOutput, TrunkBackbone
from mmvars.networks import DESIGNS, TopDownOutput, TrunkOutput
from mmvars.registry import MODELS

__all__ = ['AbSViT', 'ARCHITECTURES', 'ViT']


@MODELS.register_module()
class ViT(TrunkBackbone):
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
        out_indices, out_type, final_norm, frozen_stages, init_cfg: See
            :class:`~mmvars.models.base.TrunkBackbone`. ``init_cfg`` of type Pretrained takes
            ``allow_new``, key prefixes that the file may lack (``('prior', 'feedback')`` to start
            an AbSViT from a plain ViT).
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Gradient checkpointing, block by block.
        transfer: What of the backbone trains: ``'end2end'`` everything, ``'linear'`` nothing,
            ``'prompt'`` the prompts (and an AbSViT's prior), ``'top-down'`` (AbSViT) prior and
            feedback. Heads always train.
        prompt_cfg: For ``transfer='prompt'``: ``num_tokens`` (50), ``deep`` (True), ``dropout``
            (0.).

    Raises:
        InputError: On any value that cannot be used.
    """

    _transfers = ('end2end', 'linear', 'prompt')

    def __init__(self, arch: str | dict = 'base', img_size: int | Sequence[int] = 224,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1,
                 out_type: str = 'featmap', final_norm: bool = True, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, with_cp: bool = False, transfer: str = 'end2end',
                 prompt_cfg: dict | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        check_choice('transfer', transfer, self._transfers)
        if prompt_cfg is not None and transfer != 'prompt':
            raise InputError(f"prompt_cfg needs transfer='prompt', got transfer={transfer!r}")
        self.transfer = transfer
        network = self._sizes(arch) | self._extra_parts() | dict(
            img_size=img_size, in_chans=in_channels, num_classes=0, drop_path_rate=drop_path_rate,
            grad_checkpointing=with_cp)
        if transfer == 'prompt':
            network |= prompt_arguments(prompt_cfg)
        super().__init__(network, out_indices, out_type, final_norm, frozen_stages, init_cfg)

    def _sizes(self, arch: str | dict) -> dict:
        return dict(name='vit_tiny_patch16') | size_arguments(arch)

    def _extra_parts(self) -> dict:
        return {}

    def _freeze(self) -> None:
        if self.transfer != 'end2end':
            trainable = tuple(self._trainable_prefixes())
            for name, parameter in self.network.named_parameters():
                parameter.requires_grad_(name.startswith(trainable))
        super()._freeze()

    def _trainable_prefixes(self) -> list[str]:
        if self.transfer == 'prompt':
            return ['trunk.prompt_embeddings', 'trunk.deep_prompt_embeddings', 'prior.']
        return ['prior.', 'feedback.'] if self.transfer == 'top-down' else []


@MODELS.register_module()
class AbSViT(ViT):
    """Vision transformer with top-down attention from analysis by synthesis (Section 2.5).

    On a ViT, or on any trunk whose token mixer has a value path: RVT, FAN, DeiT*, with VARS mixers
    too. The features are those of the last pass. Takes all arguments of :class:`ViT`, and:

    Args:
        arch: As for :class:`ViT`; or a name or dict with ``trunk`` as for
            :class:`~mmvars.models.VARS` (``'rvt_tiny'``, ...) or :class:`~mmvars.models.FAN`
            (``'fan_small'``, ...).
        mixer: Token mixer, as for :class:`~mmvars.models.VARS`; ``None`` for the trunk's own.
        mixer_cfg: Its options.
        design: ``'absvit'``, or one of its rivals: ``'absvit_qkv'`` (signal on query, key and
            value; Table 2.5), ``'feedback'`` (no reweighting), ``'mask_attention'`` (the mask on
            the values), ``'perceiver_io'`` (reweighted output, one pass; Table 2.3).
        prior: What to look for: ``'learned_query'``, ``'given'``, or
            ``dict(type='class_prototype', num_classes=K)``.
        alpha: Scale of the top-down signal; 1 in the release, 10 for scenes with several objects
            (Section 2.7).
        num_passes: Passes through the trunk: 2, or more rounds of feedback.
        shortcuts: What to leave out at the cost of other outputs, see
            :class:`~mmvars.networks.Shortcuts`: any of ``restart_block``, ``first_pass_scale``,
            ``share_query_key``, ``feedback_rank``.
        reconstruction_loss_weight: Weight of the summed layer-wise reconstruction loss (Eq. 2.13)
            in :meth:`forward_train`; 0.1 for ImageNet (A.5), 0 in the released segmentation recipe.
    """

    _transfers = ('end2end', 'linear', 'prompt', 'top-down')

    def __init__(self, arch: str | dict = 'base', *args, mixer: str | None = None,
                 mixer_cfg: dict | None = None, design: str = 'absvit',
                 prior: str | dict = 'learned_query', alpha: float = 1., num_passes: int = 2,
                 shortcuts: dict | None = None, reconstruction_loss_weight: float = 0.,
                 **kwargs) -> None:
        check_choice('design', design, DESIGNS)
        check_number('reconstruction_loss_weight', reconstruction_loss_weight, 0)
        self._parts = dict(top_down=design, prior=prior, alpha=alpha, num_passes=num_passes,
                           shortcuts=shortcuts, mixer=mixer, mixer_options=mixer_cfg)
        super().__init__(arch, *args, **kwargs)
        if reconstruction_loss_weight and not self.network.reconstructs:
            raise InputError(f'reconstruction_loss_weight ({reconstruction_loss_weight:g}) needs '
                             f'decoders to train, which design={design!r} does not have: leave it '
                             f'at 0')
        last_is_out = self.out_indices[-1] == self.num_layers - 1 and self.final_norm
        if self.network.feedback is None and not last_is_out:
            raise InputError(f'design={design!r} reweights the output of the last block alone, so '
                             f'out_indices must end with it and final_norm be True')
        restart = self.network.shortcuts.restart_block
        if self.out_indices[-1] < restart:
            raise InputError(f'restart_block={restart} starts the second pass above the last of '
                             f'out_indices ({self.out_indices[-1]}): no feedback would reach it')
        self.reconstruction_loss_weight = reconstruction_loss_weight

    def forward(self, x: Tensor, prior: Tensor | None = None,
                alpha: float | Tensor | None = None) -> tuple[Tensor, ...]:
        """Features of the last pass for images ``(B, in_channels, H, W)``.

        Args:
            prior: Prior for this call: ``(C,)``, ``(B, C)``, or class ids; ``None`` for the own.
            alpha: Scale for this call, a number or ``(B,)``.
        """
        output = self.network(x, prior=prior, alpha=alpha, out_indices=self._wanted(),
                              pooled_only=self._only_pooled())
        return self._features(output.final)

    def forward_priors(self, x: Tensor, priors: Sequence[Tensor],
                       alpha: float | Tensor | None = None) -> Iterator[tuple[Tensor, ...]]:
        """Features for several priors on the same images: pass 1 runs once.

        Args:
            x: Images ``(B, in_channels, H, W)``.
            priors: Priors as :meth:`forward` takes them, one after the other.
            alpha: Scale, as in :meth:`forward`.

        Returns:
            An iterator over what :meth:`forward` returns for each of them; a second pass runs when
            its features are asked for.

        Raises:
            InputError: If the design has no second pass, or ``priors`` is no sequence.
        """
        if not isinstance(priors, Sequence | Tensor) or getattr(priors, 'ndim', 2) < 1:
            raise InputError(f'priors must be a sequence of priors, or a tensor with one in each '
                             f'row, got {priors!r}')
        if isinstance(priors, Tensor) and priors.is_floating_point() and priors.ndim == 1:
            raise InputError('priors has shape '
                             f'{tuple(priors.shape)}: for a single prior call forward(x, prior)')
        first = self.network.look(x, self._wanted())
        return (self._features(self.network.attend(
            first, prior, alpha, self._wanted(), pooled_only=self._only_pooled()).final)
            for prior in priors)

    def forward_frame(self, x: Tensor, previous: TrunkOutput | None = None,
                      prior: Tensor | None = None, alpha: float | Tensor | None = None
                      ) -> tuple[tuple[Tensor, ...], TrunkOutput]:
        """Features of a frame of a video, with what was seen in the frame before as pass 1.

        Changes the mathematics: about half the cost, and what is looked for is found where it was
        a frame ago. Call it under ``torch.no_grad()``, or each frame keeps the graphs of all before
        it. Without ``previous`` the same as :meth:`forward`.

        Args:
            x: Images ``(B, in_channels, H, W)``.
            previous: What the call for the frame before returned; ``None`` at the first.
            prior, alpha: As in :meth:`forward`.

        Returns:
            The features, and what the call for the next frame takes as ``previous``.

        Raises:
            InputError: If the design has no second pass, or ``previous`` is of another batch.
        """
        first = self.network.look(x, self._wanted(), previous)
        output = self.network.attend(first, prior, alpha, self._wanted()).final
        return self._features(output), output._replace(intermediates=(), grids=())

    def forward_train(self, x: Tensor) -> BackboneTrainOutput:
        weight = self.reconstruction_loss_weight
        output: TopDownOutput = self.network(x, out_indices=self._wanted(),
                                             reconstruction=weight > 0,
                                             pooled_only=self._only_pooled())
        losses = {}
        if weight > 0:
            losses['loss_reconstruction'] = weight * output.reconstruction.sum()
        one_pass = self.network.feedback is None
        bottom_up = None if one_pass else (self._last_feature(output.bottom_up), )
        return BackboneTrainOutput(self._features(output.final), bottom_up, losses)

    def _sizes(self, arch: str | dict) -> dict:
        is_vit = 'trunk' not in arch if isinstance(arch, dict) else arch in tuple(ARCHITECTURES)
        if is_vit:
            return super()._sizes(arch)
        if self.transfer == 'prompt':
            raise InputError(f"transfer='prompt' is for ViT sizes, got arch={arch!r}")
        return named_network(arch, others=tuple(ARCHITECTURES))

    def _extra_parts(self) -> dict:
        return self._parts

    def _unused_modules(self) -> list[nn.Module]:
        # Pass 1 runs every block and the final norm; only what the last pass alone uses can be
        # unused.
        unused = [m for m in super()._unused_modules() if m is self.network.trunk.fc_norm]
        if self.network.reconstructs:
            feedback = self.network.feedback
            unused += [decoder.readout for decoder in feedback.decoders[self.out_indices[-1] + 1:]]
            unused += feedback.decoders[:feedback.first_block]
            unused += [crossing for index, crossing in feedback.crossings.items()
                       if int(index) < feedback.first_block]
        return unused
