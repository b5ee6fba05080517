"""The targets of speed, and what is measured for each: `mmvars benchmark --suite readme`."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from mmvars.benchmark.contenders import Case, mixer_cases, parse_tokens
from mmvars.benchmark.models import model_cases, parse_model
from mmvars.benchmark.priors import prior_cases

__all__ = ['EXPERIMENTS', 'QUANTITIES', 'Experiment', 'Target']

QUANTITIES = ('time', 'saved', 'growth', 'seconds')


@dataclass(frozen=True)
class Target:
    """One row of the table.

    Attributes:
        text: What is compared.
        limit: What the ratio should not exceed; with ``at_least``, what it should reach.
        contender: Of the experiment's cases; of ``'seconds'``: a module.
        reference: What its value is divided by, where the quantity is a ratio.
        quantity: ``'time'``: ratio of times, round by round. ``'saved'``: ratio of what training
            keeps for the backward pass. ``'growth'``: exponent p of time ~ N^p over the cases.
            ``'seconds'``: of CPU time.
        at_least: Whether more is better.
        group: Which of the experiment's cases; ``None`` for all, with ``size`` likewise.
        size: Which of them.
    """

    text: str
    limit: float
    contender: str
    reference: str = ''
    quantity: str = 'time'
    at_least: bool = False
    group: str | None = None
    size: int | None = None

    def reads(self, group: str, size: int) -> bool:
        """Whether its value comes from such a case."""
        return self.group in (None, group) and self.size in (None, size)


@dataclass(frozen=True)
class Experiment:
    """Cases measured under the same settings, and the targets that read them.

    Attributes:
        targets: The rows.
        cases: Makes what is measured; ``None`` for import times.
        settings: What differs from the command's settings.
    """

    targets: tuple[Target, ...]
    cases: Callable[[], list[Case]] | None
    settings: dict[str, Any] = field(default_factory=dict)


_NAMES = dict(tiny='Ti', base='B')
_WIDTHS = {192: (192, 6), 768: (768, 12)}


def _inference(size: str, height: int, width: int) -> Experiment:
    ours, unit, textbook = f'absvit_{size}', f'timm/vit_{size}', f'textbook/absvit_{size}'
    model, at_224 = _NAMES[size], (height, width) == (224, 224)
    what = 'inference' if at_224 else 'features'
    targets = [Target(f'AbSViT-{model} {what} at {height}x{width} / timm ViT-{model}',
                      2. if at_224 else 2.05, ours, unit)]
    names = [unit, ours]
    if (height, width) == (512, 1024):
        names.append(textbook)
        targets.append(Target(f'textbook AbSViT-{model} / ours, features at {height}x{width}', 2.,
                              textbook, ours, at_least=True))
    return Experiment(tuple(targets), partial(_models, names, (height, width)))


def _training(size: str, batch: int) -> Experiment:
    ours, unit = f'absvit_{size}', f'timm/vit_{size}'
    checkpointed = f'{ours}:grad_checkpointing=True'
    what = f'AbSViT-{_NAMES[size]} training step at 224x224, batch {batch}'
    of_timm = f"timm ViT-{_NAMES[size]}'s"
    return Experiment((
        Target(f'{what} / {of_timm}', 2.1, ours, unit),
        Target(f'{what}: memory saved for backward / {of_timm}', 2., ours, unit, 'saved'),
        Target(f'the same with gradient checkpointing / {of_timm} without', .3, checkpointed, unit,
               'saved'),
    ), partial(_models, [unit, ours, checkpointed], (224, 224), batch, training=True),
        dict(mode='training'))


def _mixers(limits: dict[tuple[int, int], dict[str, float]],
            growth: Sequence[int] = ()) -> Experiment:
    """Targets of VARS by number of tokens and width, and of growth over several numbers."""
    names = dict(vars_d='VARS-D', vars_sd='VARS-SD', vars_s='VARS-S')
    mixers = list(dict.fromkeys(mixer for row in limits.values() for mixer in row))
    tokens = list(dict.fromkeys([*(number for number, _ in limits), *growth]))
    targets = [Target(f'{names[mixer]} at N = {number}, width {width} / fused softmax', limit,
                      mixer, 'self_attention', group=_mixer_group(width), size=number)
               for (number, width), row in limits.items() for mixer, limit in row.items()]
    targets += [Target(f'growth exponent of {names[mixer]} in N, {growth[0]} to {growth[-1]}, '
                       f'width {width}', 1.05, mixer, quantity='growth', group=_mixer_group(width))
                for width in _WIDTHS if growth for mixer in mixers]
    return Experiment(tuple(targets), partial(
        mixer_cases, ['self_attention', *mixers], list(_WIDTHS.values()),
        [parse_tokens(str(number)) for number in tokens]))


def _mixer_group(width: int) -> str:
    return 'dim {}, {} heads'.format(*_WIDTHS[width])


def _models(names: list[str], size: tuple[int, int], batch: int = 1,
            training: bool = False) -> list[Case]:
    return model_cases([parse_model(name) for name in names], [size], [batch], training=training)


def _priors(size: str, num_priors: int = 4) -> Experiment:
    target = Target(f'AbSViT-{_NAMES[size]}: {num_priors} priors on one image / {num_priors} calls',
                    .65, 'one look', f'{num_priors} calls')
    return Experiment((target, ), partial(prior_cases, [parse_model(f'absvit_{size}')], num_priors,
                                          [(224, 224)], [1]))


_GPU = Experiment(
    (Target('on a GPU, bf16, compiled: AbSViT-B features at 512x512, batch 8 / timm ViT-B', 2.,
            'absvit_base', 'timm/vit_base'), ),
    partial(_models, ['timm/vit_base', 'absvit_base'], (512, 512), 8),
    dict(device='cuda', dtype='bfloat16', compiled=True))

EXPERIMENTS: tuple[Experiment, ...] = (
    _inference('tiny', 224, 224),
    _inference('base', 224, 224),
    _inference('tiny', 512, 512),
    _inference('base', 512, 512),
    _inference('tiny', 512, 1024),
    _inference('base', 512, 1024),
    _training('tiny', 8),
    _mixers({(1024, 192): dict(vars_d=.35, vars_sd=.5), (1024, 768): dict(vars_d=.62, vars_sd=.95),
             (8100, 768): dict(vars_d=.15, vars_sd=.2)}, growth=(1024, 2025, 4096, 8100)),
    _mixers({(4096, 192): dict(vars_s=.6), (4096, 768): dict(vars_s=1.5)}),
    _priors('tiny'),
    _priors('base'),
    _GPU,
    Experiment((Target('`import mmvars` on top of `import mmseg`, seconds', .3, 'mmvars',
                       quantity='seconds'),
                Target('`import mmvars.models` on top of `import mmseg.models`, seconds', .3,
                       'mmvars.models', quantity='seconds')), None),
)
"""All of them, in the order of the table."""
