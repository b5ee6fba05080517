"""What top-down attention is given in a row of a figure."""

from dataclasses import dataclass

from torch import Tensor

from mmvars.networks.steering import scale_of
from mmvars.prompts import Box, Mask, Points
from mmvars.visualization.figure import Half
from mmvars.visualization.model import Network

__all__ = ['PanelConfig']


@dataclass(frozen=True)
class PanelConfig:
    """What top-down attention is given in one row of panels; ``None``: what the network has."""

    name: str | None = None  # of the prior in the figure
    prior: Tensor | None = None  # (C,)
    class_index: int | None = None  # the class of this model that the prior stands for, if any
    alpha: float | None = None
    place: Points | Box | Mask | None = None  # in each image, whose tokens the prior is
    half: Half | None = None  # of two photos side by side, the one whose class the prior is

    def label(self, network: Network) -> str:
        """What stands beside the row."""
        alpha = scale_of(network, self.alpha)
        half = f' ({self.half})' if self.half else ''
        lines = [
            '' if self.name is None else f'prior: {self.name}{half}',
            '' if alpha is None else f'α = {alpha:g}',
        ]
        return '\n'.join(filter(None, lines))
