"""Heads that mmseg does not have."""

from typing import Any

from mmcv.cnn import build_norm_layer
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor

from mmvars.registry import MODELS

__all__ = ['LinearHead']


@MODELS.register_module()
class LinearHead(BaseDecodeHead):
    """Batch norm and a 1x1 convolution: what a linear map reads from patch tokens.

    As the released linear heads of DINOv2 are, on the last map; with
    ``in_index=[0, 1, 2, 3]`` and ``input_transform='resize_concat'`` on four maps side by side.
    The norm is part of the evaluation: frozen features differ in scale from trunk to trunk.

    Args:
        in_channels: Channels of the map, or of each map.
        norm_cfg: Config of the norm.
        dropout_ratio: Share of the channels that is dropped in training.
        **options: Further arguments of mmseg's decode heads: ``num_classes``, ``in_index``,
            ``input_transform``, ``loss_decode``, ...
    """

    def __init__(
        self,
        in_channels: int | list[int],
        norm_cfg: dict | None = None,
        dropout_ratio: float = 0.0,
        **options: Any,
    ) -> None:
        channels = in_channels if isinstance(in_channels, int) else sum(in_channels)
        super().__init__(in_channels, channels, dropout_ratio=dropout_ratio, **options)
        self.norm = build_norm_layer(norm_cfg or dict(type='SyncBN'), channels)[1]

    def forward(self, inputs: list[Tensor]) -> Tensor:
        """Logits ``(B, num_classes, h, w)`` of the maps of a backbone."""
        return self.cls_seg(self.norm(self._transform_inputs(inputs)))
