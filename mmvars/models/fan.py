"""FAN as an OpenMMLab backbone."""

from collections.abc import Sequence

from mmvars.models.arguments import named_network
from mmvars.models.base import TrunkBackbone
from mmvars.registry import MODELS

__all__ = ['FAN']


@MODELS.register_module()
class FAN(TrunkBackbone):
    """The fully attentional network (Table 2.2); with top-down attention: :class:`AbSViT`.

    All maps have stride 16. The last one comes after the class stage and the final norm.

    Args:
        arch: ``'tiny'``, ``'small'``, ``'base'``, ``'large'``, ``'tiny_hybrid'``,
            ``'small_hybrid'``, ``'base_hybrid'``, or a dict with ``embed_dims``, ``num_layers``,
            ``num_heads`` and optionally ``mlp_ratio``.
        img_size: Checked as in all backbones; nothing depends on it.
        in_channels: Image channels.
        out_indices, out_type, final_norm, frozen_stages, init_cfg: See
            :class:`~mmvars.models.base.TrunkBackbone`.
        drop_path_rate: Stochastic depth, the same in all blocks.
        with_cp: Gradient checkpointing, block by block.

    Raises:
        InputError: On any value that cannot be used.
    """

    def __init__(self, arch: str | dict = 'tiny', img_size: int | Sequence[int] = 224,
                 in_channels: int = 3, out_indices: int | Sequence[int] = -1,
                 out_type: str = 'featmap', final_norm: bool = True, drop_path_rate: float = 0.,
                 frozen_stages: int = -1, with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None) -> None:
        network = named_network(arch, ('fan', )) | dict(
            img_size=img_size, in_chans=in_channels, num_classes=0, drop_path_rate=drop_path_rate,
            grad_checkpointing=with_cp)
        super().__init__(network, out_indices, out_type, final_norm, frozen_stages, init_cfg)

    def _unused_modules(self) -> list:
        # Where the last block is no output, neither is what comes after it.
        trunk = self.network.trunk
        unused = super()._unused_modules()
        return unused + ([trunk.cls_attn_blocks] if trunk.norm in unused else [])

    def _freeze(self) -> None:
        super()._freeze()
        trunk = self.network.trunk
        if trunk.cls_attn_blocks in self._unused_modules():
            trunk.cls_token.requires_grad_(False)
