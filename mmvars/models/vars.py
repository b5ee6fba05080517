"""VARS, RVT and GFNet as OpenMMLab backbones."""

from collections.abc import Sequence

from mmengine.logging import print_log

from mmvars.layers import VARSStatic
from mmvars.models.arguments import named_network
from mmvars.models.base import TrunkBackbone
from mmvars.registry import MODELS

__all__ = ['GFNet', 'RVT', 'VARS']


@MODELS.register_module()
class VARS(TrunkBackbone):
    """Attention by recurrent sparse reconstruction in an RVT, DeiT* or GFNet trunk (Section 1.3).

    Runs at any image size. The maps of RVT-Ti have strides 16 (192 channels) and 32 (384 channels);
    all others have stride 16 throughout.

    Args:
        arch: ``'rvt_tiny'``, ``'rvt_small'``, ``'rvt_base'``, ``'deit_convstem_tiny'`` (``_small``,
            ``_base``), ``'gfnet_tiny'``, ``'gfnet_convstem_tiny'``, the RVT sizes with ``_plus``,
            or a dict with ``trunk`` (``'rvt'``, ``'deit_convstem'``, ``'gfnet'``,
            ``'gfnet_convstem'``), ``embed_dims``, ``num_layers``, ``num_heads`` (for RVT one number
            a stage) and optionally ``mlp_ratio``.
        mixer: Token mixer of all blocks: ``'vars_s'``, ``'vars_d'``, ``'vars_sd'``,
            ``'performer'`` (the modified baselines of Table 1.2), or the trunk's own with ``None``.
        mixer_cfg: ``preset`` (``'release'`` or ``'thesis'``) and options of the mixer, see
            :func:`mmvars.layers.mixer_options`: ``num_steps``, ``sparsity``, ``feature_ratio``, ...
            The preset is ``'release'``, but for ``'vars_s'`` outside of RVT ``'thesis'``: see
            :func:`mmvars.networks.build_network`.
        img_size: Pixels (side, or height and width) that static atoms, filters, masks and
            positions are made for. Inputs of any size are accepted.
        in_channels: Image channels.
        out_indices, out_type, final_norm, frozen_stages, init_cfg: See
            :class:`~mmvars.models.base.TrunkBackbone`.
        drop_path_rate: Stochastic depth of the last block, rising linearly from 0.
        with_cp: Gradient checkpointing, block by block.

    Raises:
        InputError: On any value that cannot be used, combinations of trunk and mixer included.
    """

    _trunks = ('rvt', 'deit_convstem', 'gfnet', 'gfnet_convstem')

    def __init__(self, arch: str | dict = 'rvt_tiny', mixer: str | None = 'vars_sd',
                 mixer_cfg: dict | None = None, img_size: int | Sequence[int] = 224,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1,
                 out_type: str = 'featmap', final_norm: bool = True, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        network = named_network(arch, self._trunks) | dict(
            mixer=mixer, mixer_options=mixer_cfg, img_size=img_size, in_chans=in_channels,
            num_classes=0, drop_path_rate=drop_path_rate, grad_checkpointing=with_cp)
        super().__init__(network, out_indices, out_type, final_norm, frozen_stages, init_cfg)

    def init_weights(self) -> None:
        """As everywhere; with VARS-S, also say what its training needs, whoever runs it."""
        super().init_weights()
        if any(isinstance(m, VARSStatic) and hasattr(m, 'step_bound') for m in self.modules()):
            print_log('VARS-S: its step bounds are to be refreshed while it trains. `mmvars train` '
                      "does so; with another script, put dict(type='mmvars.StepSizeHook') into "
                      'custom_hooks', logger='current')


@MODELS.register_module()
class RVT(VARS):
    """The robust vision transformer: :class:`VARS` with an RVT trunk and its own attention.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, each also with ``_plus`` (masked attention), or
            a dict as for :class:`VARS` without ``trunk``.
        mixer: As for :class:`VARS`; ``'performer'`` is RVT*.
        **kwargs: As for :class:`VARS`.
    """

    _trunks = ('rvt', )

    def __init__(self, arch: str | dict = 'tiny', mixer: str | None = None, **kwargs) -> None:
        super().__init__(arch, mixer, **kwargs)


@MODELS.register_module()
class GFNet(VARS):
    """The global filter network: :class:`VARS` with a GFNet trunk and its own filters.

    Args:
        arch: ``'tiny'``, ``'convstem_tiny'`` (GFNet*), or a dict as for :class:`VARS` without
            ``trunk``.
        mixer: As for :class:`VARS`.
        **kwargs: As for :class:`VARS`.
    """

    _trunks = ('gfnet', )

    def __init__(self, arch: str | dict = 'tiny', mixer: str | None = None, **kwargs) -> None:
        super().__init__(arch, mixer, **kwargs)
