"""Many priors for one image: one look for all of them, against a call for each."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmvars.benchmark.adapters import OurNetwork, Size, build_ours
from mmvars.benchmark.contenders import Case, Contender
from mmvars.benchmark.models import NUM_CLASSES, ModelSpec, method_of
from mmvars.errors import InputError, check_number

__all__ = ['prior_cases']


class _Priors(nn.Module):
    """Outputs ``(B, K)`` or maps of an image for each of some priors ``(k, C)``."""

    def __init__(self, adapter: OurNetwork, method: str, one_look: bool) -> None:
        super().__init__()
        self.adapter = adapter
        self.method = method
        self.one_look = one_look

    def forward(self, images: Tensor, priors: Tensor) -> list[Tensor | list[Tensor]]:
        network, wanted = self.adapter.network, self.adapter.wanted(self.method)
        if self.one_look:
            first = network.look(images)
            found = (network.attend(first, prior=prior, **wanted) for prior in priors)
        else:
            found = (network(images, prior=prior, **wanted) for prior in priors)
        return [self.adapter.read(output, self.method) for output in found]


def prior_cases(specs: Sequence[ModelSpec], num_priors: int, sizes: Sequence[tuple[int, int]],
                batches: Sequence[int], task: str = 'auto',
                overrides: dict | None = None) -> list[Case]:
    """For each network, size and batch: ``look`` once and ``attend`` for each prior, or call.

    Args:
        specs: Networks of ours with a prior and feedback.
        num_priors: Priors an image.
        sizes, batches, task, overrides: As of :func:`~mmvars.benchmark.models.model_cases`.

    Raises:
        InputError: On a network that takes no prior.
    """
    check_number('--priors', num_priors, 1, whole=True)
    cases = []
    for spec in specs:
        for height, width in sizes:
            for batch in batches:
                check_number('--batch-sizes', batch, 1, whole=True)
                method = method_of(task, (height, width))
                size = Size(height, width, batch, 0 if method == 'features' else NUM_CLASSES,
                            overrides or {})
                contenders = _contenders(spec, num_priors, size, method)
                cases.append(Case(
                    f'{spec.text}, {height}x{width}, batch {batch}', height * width, contenders,
                    dict(image_size=[height, width], batch_size=batch,
                         task=f'{method} for {num_priors} priors')))
    return cases


def _contenders(spec: ModelSpec, num_priors: int, size: Size, method: str) -> tuple[Contender, ...]:
    with torch.device('meta'):
        network = build_ours(spec.name, size, spec.options)
    if spec.library != 'mmvars' or network.prior is None or network.feedback is None:
        raise InputError(f'--suite priors measures networks of ours that take a prior, such as '
                         f'absvit_tiny; got {spec.text!r}')

    def build(one_look: bool) -> nn.Module:
        return _Priors(OurNetwork(spec.name, size, spec.options), method, one_look)

    def inputs() -> tuple[Tensor, ...]:
        return (torch.randn(size.batch, 3, size.height, size.width),
                torch.randn(num_priors, network.trunk.embed_dim))

    return (Contender(f'{num_priors} calls', lambda: build(False), inputs, spec.twins),
            Contender('one look', lambda: build(True), inputs, spec.twins))
