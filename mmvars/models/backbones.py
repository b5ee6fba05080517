"""All backbones: the arguments of an OpenMMLab config, and the network they build.

What a backbone does with its network is in :mod:`mmvars.models.base`.
"""

from collections.abc import Sequence

from mmvars.errors import InputError, check_choice
from mmvars.models.arguments import build_network, prompt_arguments, register_backbone
from mmvars.models.base import Backbone
from mmvars.networks import TOP_DOWN_DESIGNS

__all__ = ['FAN', 'RVT', 'VARS', 'AbSViT', 'GFNet', 'ViT']

_VARS_TRUNKS = ('rvt', 'deit_convstem', 'gfnet', 'gfnet_convstem')


@register_backbone
class ViT(Backbone):
    """Plain vision transformer, the bottom-up twin of :class:`AbSViT`.

    All feature maps have the stride of the patch (no pyramid), as in the released segmentation
    models; UperNet takes them directly.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'`` (patch 16), ``'tiny_patch8_gap'`` (patch 8,
            average pooling), or a dict with ``embed_dims``, ``num_layers``, ``num_heads`` and
            optionally ``patch_size``, ``mlp_ratio``, ``global_pool``. Or any plain vision
            transformer of timm, ``'timm/vit_small_patch14_dinov2.lvd142m'``, or its first blocks,
            ``dict(trunk='timm/...', num_layers=10)``. Or a VisionTransformer of MMPretrain,
            ``'mmpretrain/dinov2-small'``, or a dict with ``trunk='mmpretrain/base'`` and
            ``patch_size``, ``layer_scale_init_value``, ``pre_norm`` or ``global_pool``, see
            :func:`~mmvars.networks.mmpretrain_zoo.build_mmpretrain_trunk`.
        img_size: Pixels the positions are stored for: side or (height, width); ``None``: 224, or
            the size that the network of timm was pretrained with. Inputs of any size are accepted;
            their positions are resampled.
        in_channels: Image channels.
        out_indices, out_type, final_norm, frozen_stages, init_cfg, pretrained: See
            :class:`~mmvars.models.base.Backbone`.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Gradient checkpointing, block by block.
        transfer: What of the backbone trains: ``'end2end'`` everything, ``'linear'`` nothing,
            ``'bias'`` its bias vectors, ``'prompt'`` the prompts, ``'lora'`` low-rank updates of
            its attention. Heads always train. With all but the first ``drop_path_rate`` is off.
        prompt_cfg: For ``transfer='prompt'``: ``num_tokens`` (50), ``deep`` (True), ``dropout``
            (0.).
        lora_cfg: For ``transfer='lora'``: arguments of peft's ``LoraConfig``, such as ``r`` (4),
            ``lora_alpha``, ``lora_dropout``, ``target_modules`` (the projections of queries, keys
            and values). Needs ``pip install "mmvars[lora]"``.
        channels_last: Store the weights of convolutions in ``torch.channels_last``.

    Raises:
        InputError: On any value that cannot be used, here as in all backbones.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        transfer: str = 'end2end',
        prompt_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        channels_last: bool = False,
        lora_cfg: dict | None = None,
        pretrained: bool | str | None = None,
    ) -> None:
        network = build_network(
            arch,
            ('vit', 'timm'),
            img_size,
            in_channels,
            drop_path_rate,
            with_cp,
            channels_last,
            **prompt_arguments(transfer, prompt_cfg),
        )
        super().__init__(
            network,
            out_indices,
            out_type,
            final_norm,
            frozen_stages,
            init_cfg,
            transfer,
            lora_cfg,
            pretrained=pretrained,
        )


@register_backbone
class AbSViT(Backbone):
    """Vision transformer with top-down attention from analysis by synthesis (Section 2.5).

    On a ViT, or on any trunk whose token mixer has a value path: RVT, FAN, DeiT*, with VARS mixers
    too. The features are those of the last pass.

    Args:
        arch: As for :class:`ViT`; or a name or dict with ``trunk`` as for :class:`VARS`
            (``'rvt_tiny'``, ...) or :class:`FAN` (``'fan_small'``, ...).
        img_size, in_channels, drop_path_rate, with_cp, channels_last: As for :class:`ViT`.
        out_indices, out_type, final_norm, frozen_stages, init_cfg, pretrained: See
            :class:`~mmvars.models.base.Backbone`. A plain ViT's file needs
            ``allow_new=('prior', 'feedback')``.
        transfer: As for :class:`ViT`, where all but ``'linear'`` train the prior too;
            ``'top-down'`` trains prior and feedback, ``'top-down-lite'`` prior, gates and low-rank
            updates of the decoders.
        prompt_cfg: As for :class:`ViT`, on ViT sizes.
        lora_cfg: As for :class:`ViT`, for ``'top-down-lite'`` too.
        mixer, mixer_cfg: As for :class:`VARS`; ``mixer=None`` for the trunk's own.
        design: ``'absvit'``, or one of its rivals: ``'absvit_qkv'`` (signal on query, key and
            value; Table 2.5), ``'feedback'`` (no reweighting), ``'mask_attention'`` (the mask on
            the values), ``'perceiver_io'`` (reweighted output, one pass; Table 2.3).
        prior: What to look for: ``'learned_query'``, ``'given'`` (a prior in every call, such as
            ``data_samples[i].prior``), or one vector a class, asked for by class ids, -1 for
            none: ``dict(type='class_prototype', num_classes=K)`` from a file or a classifier,
            ``dict(type='learned_classes', num_classes=K)`` learned. Or
            ``dict(type='text', text_dim=D)``: a learned linear map of a text vector ``(D,)``, which
            each call passes; without one nothing is asked for.
        alpha: Scale of the top-down signal; 1 in the release, 10 for scenes with several objects
            (Section 2.7).
        modulation: What the tokens carry back: ``'weight'``, themselves times their weights
            (Section 2.5), or ``'project'``, multiples of the prior, as in the released
            vision-language models, whose alpha is 5 (the thesis says 10). For designs with a prior
            and decoders.
        num_passes: Passes through the trunk: 2, or more rounds of feedback.
        first_pass_scale: Scale of the images in pass 1; below 1 it is cheaper, and another
            function.
        reconstruction_loss_weight: See :class:`~mmvars.models.base.Backbone`; 0.1 for ImageNet
            (A.5), 0 in the released segmentation recipe.
        reconstruction_loss: ``'l2'`` (Eq. 2.13) or ``'cosine'``, which the thesis found similar.
        stop_gradient: Whether the reconstruction loss trains the decoders alone (Eq. 2.13). With
            ``False`` it reaches the whole network, which the thesis found to harm its
            discriminative power (Section 2.5, "Trade-off").
        code_sparsity: lambda of Eq. 2.12: adds ``lambda ||u||_1`` to the reconstruction loss, u the
            codes of ``mixer='vars_s'``, ``'vars_d'`` or ``'vars_sd'``. Not for FSDP, whose units it
            enters by another way than ``forward``.
        double_value_bias: Whether the top-down signal brings the bias of the value projection
            along once more, as in the released models, which is the default. With ``False``,
            ``alpha=0`` is pass 1, except on RVT, whose transposed convolution between stages has a
            bias. On a trunk of timm it never does, and feedback through decoders is gated, see
            :class:`mmvars.networks.Feedback`: such a design starts as its trunk.
    """

    def __init__(
        self,
        arch: str | dict = 'base',
        img_size: int | Sequence[int] | None = None,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        transfer: str = 'end2end',
        prompt_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
        *,
        mixer: str | None = None,
        mixer_cfg: dict | None = None,
        design: str = 'absvit',
        prior: str | dict = 'learned_query',
        alpha: float = 1.0,
        num_passes: int = 2,
        first_pass_scale: float = 1.0,
        reconstruction_loss_weight: float = 0.0,
        double_value_bias: bool | None = None,
        channels_last: bool = False,
        lora_cfg: dict | None = None,
        pretrained: bool | str | None = None,
        reconstruction_loss: str = 'l2',
        stop_gradient: bool = True,
        code_sparsity: float = 0.0,
        modulation: str = 'weight',
    ) -> None:
        check_choice('design', design, TOP_DOWN_DESIGNS)
        network = build_network(
            arch,
            ('vit', *_VARS_TRUNKS, 'fan', 'timm'),
            img_size,
            in_channels,
            drop_path_rate,
            with_cp,
            channels_last,
            **prompt_arguments(transfer, prompt_cfg),
            mixer=mixer,
            mixer_cfg=mixer_cfg,
            top_down=design,
            prior=prior,
            alpha=alpha,
            num_passes=num_passes,
            first_pass_scale=first_pass_scale,
            double_value_bias=double_value_bias,
            reconstruction_loss=reconstruction_loss,
            stop_gradient=stop_gradient,
            code_sparsity=code_sparsity,
            modulation=modulation,
        )
        if not reconstruction_loss_weight and (
            reconstruction_loss != 'l2' or not stop_gradient or code_sparsity
        ):
            raise InputError(
                'reconstruction_loss, stop_gradient and code_sparsity have no effect while '
                'reconstruction_loss_weight is 0: set it, such as to 0.1, or leave them out'
            )
        super().__init__(
            network,
            out_indices,
            out_type,
            final_norm,
            frozen_stages,
            init_cfg,
            transfer,
            lora_cfg,
            reconstruction_loss_weight,
            pretrained,
        )


@register_backbone
class VARS(Backbone):
    """Attention by recurrent sparse reconstruction in an RVT, DeiT*, GFNet or ViT (Section 1.3).

    Runs at any image size. The maps of RVT-Ti have strides 16 (192 channels) and 32 (384 channels);
    all others have the stride of their patch throughout.

    Args:
        arch: ``'rvt_tiny'``, ``'rvt_small'``, ``'rvt_base'``, ``'deit_convstem_tiny'`` (``_small``,
            ``_base``), ``'gfnet_tiny'``, ``'gfnet_convstem_tiny'``, the RVT sizes with ``_plus``,
            those of :class:`ViT`, or a dict with ``trunk`` (``'rvt'``, ``'deit_convstem'``,
            ``'gfnet'``, ``'gfnet_convstem'``, ``'vit'``), ``embed_dims``, ``num_layers``,
            ``num_heads`` (for RVT one number a stage) and optionally ``mlp_ratio``; for ViT also
            ``patch_size`` and ``global_pool``.
        mixer: Token mixer of all blocks: ``'vars_s'``, ``'vars_d'``, ``'vars_sd'``,
            ``'performer'`` (the modified baselines of Table 1.2), or the trunk's own with ``None``.
        mixer_cfg: ``preset`` (``'release'`` or ``'thesis'``) and options of the mixer, see
            :func:`mmvars.layers.resolve_mixer_cfg`: ``num_steps``, ``sparsity``, ... The preset is
            ``'release'``, but for ``'vars_s'`` outside of RVT ``'thesis'``, see
            :func:`mmvars.networks.create_model`.
        img_size: Pixels (side, or height and width) that static atoms, filters, masks and
            positions are made for. Inputs of any size are accepted.
        in_channels, drop_path_rate, with_cp, channels_last: As for :class:`ViT`.
        out_indices, out_type, final_norm, frozen_stages, init_cfg: See
            :class:`~mmvars.models.base.Backbone`.
        transfer, lora_cfg: As for :class:`ViT`; there are no prompts.
    """

    def __init__(
        self,
        arch: str | dict = 'rvt_tiny',
        mixer: str | None = 'vars_sd',
        mixer_cfg: dict | None = None,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        channels_last: bool = False,
        transfer: str = 'end2end',
        lora_cfg: dict | None = None,
    ) -> None:
        network = build_network(
            arch,
            ('vit', *_VARS_TRUNKS),
            img_size,
            in_channels,
            drop_path_rate,
            with_cp,
            channels_last,
            mixer=mixer,
            mixer_cfg=mixer_cfg,
        )
        super().__init__(
            network, out_indices, out_type, final_norm, frozen_stages, init_cfg, transfer, lora_cfg
        )


@register_backbone
class RVT(Backbone):
    """The robust vision transformer: :class:`VARS` with an RVT trunk and its own attention.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, each also with ``_plus`` (masked attention), or
            a dict as for :class:`VARS` without ``trunk``.
        mixer: As for :class:`VARS`; ``'performer'`` is RVT*.

    All other arguments are as for :class:`VARS`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        mixer: str | None = None,
        mixer_cfg: dict | None = None,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        channels_last: bool = False,
        transfer: str = 'end2end',
        lora_cfg: dict | None = None,
    ) -> None:
        network = build_network(
            arch,
            ('rvt',),
            img_size,
            in_channels,
            drop_path_rate,
            with_cp,
            channels_last,
            mixer=mixer,
            mixer_cfg=mixer_cfg,
        )
        super().__init__(
            network, out_indices, out_type, final_norm, frozen_stages, init_cfg, transfer, lora_cfg
        )


@register_backbone
class GFNet(Backbone):
    """The global filter network: :class:`VARS` with a GFNet trunk and its own filters.

    Args:
        arch: ``'tiny'``, ``'convstem_tiny'`` (GFNet*), or a dict as for :class:`VARS` without
            ``trunk``.

    All other arguments are as for :class:`VARS`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        mixer: str | None = None,
        mixer_cfg: dict | None = None,
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        channels_last: bool = False,
        transfer: str = 'end2end',
        lora_cfg: dict | None = None,
    ) -> None:
        network = build_network(
            arch,
            ('gfnet',),
            img_size,
            in_channels,
            drop_path_rate,
            with_cp,
            channels_last,
            mixer=mixer,
            mixer_cfg=mixer_cfg,
        )
        super().__init__(
            network, out_indices, out_type, final_norm, frozen_stages, init_cfg, transfer, lora_cfg
        )


@register_backbone
class FAN(Backbone):
    """The fully attentional network (Table 2.2); with top-down attention: :class:`AbSViT`.

    All maps have stride 16. The last one comes after the class stage and the final norm.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'tiny_hybrid'``,
            ``'small_hybrid'``, ``'base_hybrid'``, or a dict with ``embed_dims``, ``num_layers``,
            ``num_heads`` and optionally ``mlp_ratio``.
        img_size: Checked as in all backbones; nothing depends on it.
        drop_path_rate: Stochastic depth, the same in all blocks.
        transfer, lora_cfg: As for :class:`ViT`; there are no prompts.

    All other arguments are as for :class:`ViT`.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        img_size: int | Sequence[int] = 224,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = -1,
        out_type: str = 'featmap',
        final_norm: bool = True,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        init_cfg: dict | list[dict] | None = None,
        channels_last: bool = False,
        transfer: str = 'end2end',
        lora_cfg: dict | None = None,
    ) -> None:
        network = build_network(
            arch, ('fan',), img_size, in_channels, drop_path_rate, with_cp, channels_last
        )
        super().__init__(
            network, out_indices, out_type, final_norm, frozen_stages, init_cfg, transfer, lora_cfg
        )
