"""What a row of a published table says, and how it may be built."""

from dataclasses import dataclass, field
from typing import Any

__all__ = ['PublishedRow', 'Reading']


@dataclass(frozen=True)
class Reading:
    """One way to build a row's network.

    Attributes:
        label: What sets it apart, for the table.
        network: Name of the network.
        mixer: Name of its mixer; ``None`` for its own.
        options: Options of the mixer.
        overrides: Sizes that replace the network's.
        top_down: Design of its top-down attention; ``None`` for one bottom-up pass.
        library: ``'mmvars'``, whose :func:`mmvars.networks.build_network` takes all the above; or
            ``'timm'``, which takes the name alone.
    """

    label: str
    network: str
    mixer: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    overrides: dict[str, Any] = field(default_factory=dict)
    top_down: str | None = None
    library: str = 'mmvars'


@dataclass(frozen=True)
class PublishedRow:
    """A row as printed.

    Attributes:
        name: As in the table, with its host where the table leaves that out.
        params: Millions of parameters; ``None`` where the table prints none.
        gflops: What the table calls GFLOPs: thousands of millions of multiply-adds; or ``None``.
        readings: Ways to build it; none where there is no code for it here.
        remark: Where the numbers agree and where they do not, and why.
        digits: Digits of ``params`` after the point. ``gflops`` always has one.
    """

    name: str
    params: float | None
    gflops: float | None
    readings: tuple[Reading, ...]
    remark: str
    digits: int = 1
