"""ViT and AbSViT as OpenMMLab backbones: OpenMMLab's names outside, ours inside."""

from collections.abc import Sequence

from torch import Tensor, nn

from mmvars.errors import InputError, check_choice, check_number
from mmvars.models.arguments import ARCHITECTURES, prompt_arguments, size_arguments
from mmvars.models.base import BackboneTrainOutput, TrunkBackbone
from mmvars.networks import TopDownOutput
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

    _family = 'vit'
    _transfers = ('end2end', 'linear', 'prompt')

    def __init__(self, arch: str | dict = 'base', img_size: int | Sequence[int] = 224,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1,
                 out_type: str = 'featmap', final_norm: bool = True, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, with_cp: bool = False, transfer: str = 'end2end',
                 prompt_cfg: dict | None = None, init_cfg: dict | list[dict] | None = None) -> None:
        check_choice(f'transfer of {type(self).__name__}', transfer, self._transfers)
        if prompt_cfg is not None and transfer != 'prompt':
            raise InputError(f"prompt_cfg needs transfer='prompt', got transfer={transfer!r}")
        self.transfer = transfer
        network = size_arguments(arch) | dict(
            name=f'{self._family}_tiny_patch16', img_size=img_size, in_chans=in_channels,
            num_classes=0, drop_path_rate=drop_path_rate, grad_checkpointing=with_cp,
            **self._extra_parts())
        if transfer == 'prompt':
            network |= prompt_arguments(prompt_cfg)
        super().__init__(network, out_indices, out_type, final_norm, frozen_stages, init_cfg)

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
