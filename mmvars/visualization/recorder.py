"""Recording what happens inside of a network, in all passes, by hooks that are removed again."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext

from torch import Tensor, nn

from mmvars.errors import InputError
from mmvars.networks import Trunk
from mmvars.networks.steering import given_priors

__all__ = ['recording']


@contextmanager
def recording(
    network: nn.Module,
    watched: Mapping[str, tuple[nn.Module, Callable]],
    prior: Tensor | None = None,
    alpha: float | None = None,
) -> Iterator[dict[str, list]]:
    """Record calls of a network's modules during one forward; pass by pass, by their order.

    The second pass calls the modules of the first again, so the first record of a module is of
    pass 1, the second of pass 2. The forward itself is unchanged, but that all tokens of the last
    block are computed. It works through any model that has the network inside (segmentor,
    classifier), so the records and the model's prediction come from the same forward.

    Example::

        watched = dict(tokens=(net.trunk.blocks[8], lambda block, args, tokens: tokens))
        with recording(net, watched, prior) as records:
            net(images)
        bottom_up, top_down = records['tokens']

    Args:
        network: A trunk, or a network with top-down attention.
        watched: Name -> module, and what to record of each call of it:
            ``function(module, positional arguments, output)``.
        prior: ``(C,)`` or ``(B, C)``, in place of the network's own; ``None``: its own.
        alpha: Scale of the top-down input, likewise.

    Yields:
        Name -> records, one a pass. Name ``'output'`` has what the network returned.

    Raises:
        InputError: If a trunk is given a prior or a scale.
    """
    steering = {
        name: value for name, value in (('prior', prior), ('alpha', alpha)) if value is not None
    }
    if isinstance(network, Trunk) and steering:
        raise InputError(
            'prior and alpha are for top-down attention, and this network has none: leave them out'
        )
    signature = inspect.signature(network.forward)
    records: dict[str, list] = {name: [] for name in (*watched, 'output')}

    def steer(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        arguments = signature.bind(*args, **kwargs).arguments
        return (), arguments | steering | {'pooled_only': False}

    def record(name: str, function: Callable) -> Callable:
        return lambda *call: records[name].append(function(*call))

    handles = [
        network.register_forward_pre_hook(steer, with_kwargs=True),
        network.register_forward_hook(record('output', lambda module, args, output: output)),
        *(
            module.register_forward_hook(record(name, function))
            for name, (module, function) in watched.items()
        ),
    ]
    try:
        with nullcontext() if prior is None else given_priors(network):
            yield records
    finally:
        for handle in handles:
            handle.remove()
