"""Build everything that configs name, and print what came of it as JSON, one line a config.

Run in a fresh process by the sweep, which writes the groups of configs as JSON to its standard
input. Each group has a process of its own, forked after the imports below, which take longer than a
group. Nothing of mmvars, mmseg or mmpretrain is imported here: the configs alone must bring in what
they name. Models are built on torch's meta device, so that even the largest takes no memory; and
since a tensor there is nothing but its shape, weights are not initialized, and of blocks that are
alike one is run.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable, Hashable, Iterator
from functools import partial

import timm.layers.weight_init
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.optim import build_optim_wrapper
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOOPS,
    METRICS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    VISUALIZERS,
    init_default_scope,
)

INPUT = (64, 96)
"""Height and width of the image that is sent through the backbones."""

SHAPES: dict[str, list[torch.Size]] = {}
"""Backbone's config, as JSON -> shapes of its features."""

OUTPUTS: dict[Hashable, torch.Tensor] = {}
"""Kind of a block and what it was given -> its output."""


def describe(path: str) -> dict:
    """Build the config's model, optimizer, pipelines and other parts; returns what is tested."""
    cfg = Config.fromfile(path)
    init_default_scope(cfg.default_scope)
    model = build(cfg.model)
    names = [name for name, _ in model.named_parameters()]
    keys = cfg.optim_wrapper.get('paramwise_cfg', {}).get('custom_keys', {})
    backbone = getattr(model, 'backbone', model)  # a classifier of timm is one piece
    key = json.dumps(cfg.model.get('backbone', cfg.model), sort_keys=True)  # data sets share them
    if key not in SHAPES:
        SHAPES[key] = feature_shapes(backbone)
    trunk = getattr(backbone, 'trunk', None)
    return dict(
        config=path,
        backbone_parameters=sum(p.numel() for p in backbone.parameters()),
        parameters=sum(p.numel() for p in model.parameters()),
        channels=[shape[1] for shape in SHAPES[key]],
        strides=[image_size(backbone)[0] // shape[2] for shape in SHAPES[key] if len(shape) == 4],
        mixer=getattr(trunk, 'mixer', None),
        exempt=exempt_names(model, trunk),
        decay=decay_of(cfg, model),
        trainable=trainable_parts(model),
        heads=heads(model),
        matched_keys=[key for key in keys if any(key in name for name in names)],
        num_classes={
            split: class_count(cfg[f'{split}_dataloader'].dataset)
            for split in ('train', 'val', 'test')
        },
        num_transforms=[len(Compose(pipeline).transforms) for pipeline in pipelines(cfg)],
        resolved=resolve_types(cfg),
    )


def build(config: dict) -> torch.nn.Module:
    """On the meta device; models of other packages compute with tensors when they are built."""
    others = ('mmpretrain.ImageClassifier', 'mmpretrain.TimmClassifier')
    with torch.device('cpu' if config.type in others else 'meta'):
        model = MODELS.build(config).to('meta')
    for module in model.modules():
        for block in getattr(module, 'blocks', ()) if hasattr(module, 'pre_block') else ():
            kind = str(block), *(entry.shape for entry in block.state_dict().values())
            block.forward = partial(run_once, block.forward, kind)
    return model


def run_once(forward: Callable[..., torch.Tensor], kind: Hashable, *inputs: object) -> torch.Tensor:
    """``forward(*inputs)``; where a block of this kind had inputs of these shapes, its output."""
    key = kind, *(getattr(value, 'shape', value) for value in inputs)
    if key not in OUTPUTS:
        OUTPUTS[key] = forward(*inputs)
    return OUTPUTS[key]


def exempt_names(model: torch.nn.Module, trunk: torch.nn.Module | None) -> list[str]:
    """Parameters with more than one dimension that the trunk exempts from weight decay."""
    if trunk is None:
        return []
    prefix = next(name for name, module in model.named_modules() if module is trunk)
    exempt = trunk.no_weight_decay()
    return [
        name
        for name, p in model.named_parameters()
        if p.ndim > 1 and name.removeprefix(f'{prefix}.') in exempt
    ]


def trainable_parts(model: torch.nn.Module) -> list[str]:
    """Heads, and parts of the backbone's network, that have parameters which train."""
    names = (name.split('.') for name, p in model.named_parameters() if p.requires_grad)
    return sorted({'.'.join(name[: 3 if name[0] == 'backbone' else 1]) for name in names})


def feature_shapes(backbone: torch.nn.Module) -> list[torch.Size]:
    """Shapes of the features, measured in a forward on the meta device."""
    backbone.eval()
    with torch.no_grad():
        images = torch.zeros(1, 3, *image_size(backbone), device='meta')
        if (timm := getattr(backbone, 'model', None)) is not None:
            return [timm.forward_head(timm.forward_features(images), pre_logits=True).shape]
        prototypes = getattr(
            getattr(getattr(backbone, 'network', None), 'prior', None), 'prototypes', None
        )
        prior = () if prototypes is None else (prototypes[0],)  # it has none of its own
        return [feat.shape for feat in backbone(images, *prior)]


def image_size(backbone: torch.nn.Module) -> tuple[int, int]:
    """Any, where it may be any; the classifiers of other packages have a fixed one."""
    return INPUT if type(backbone).__module__.startswith(('mmvars.', 'mmseg.')) else (224, 224)


def heads(model: torch.nn.Module) -> dict[str, dict]:
    """What every head takes and tells apart."""
    if (timm := getattr(model, 'model', None)) is not None:
        linear = timm.get_classifier()
        return dict(
            head=dict(in_channels=linear.in_features, in_index=-1, num_classes=linear.out_features)
        )
    return {
        name: dict(
            in_channels=head.in_channels,
            in_index=getattr(head, 'in_index', -1),
            num_classes=head.num_classes,
        )
        for name in ('decode_head', 'auxiliary_head', 'head')
        if (head := getattr(model, name, None)) is not None
    }


def decay_of(cfg: Config, model: torch.nn.Module) -> dict[str, list[str]]:
    """What the optimizer does against the rule that all but 1-D parameters are decayed."""
    wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    rates = {
        id(p): group['weight_decay']
        for group in wrapper.optimizer.param_groups
        for p in group['params']
    }
    exceptions: dict[str, list[str]] = {'flat_decayed': [], 'others_not_decayed': []}
    for name, p in model.named_parameters():
        if p.requires_grad and (p.ndim == 1) == (rates[id(p)] > 0):
            exceptions['flat_decayed' if p.ndim == 1 else 'others_not_decayed'].append(name)
    return exceptions


def class_count(dataset: Config) -> int:
    """Classes that a data set's class declares, or its config."""
    while 'datasets' in dataset:
        dataset = dataset.datasets[0]
    return len((dataset.get('metainfo') or DATASETS.get(dataset.type).METAINFO)['classes'])


def pipelines(cfg: Config) -> Iterator[list]:
    """Every pipeline of the config."""
    for split in ('train', 'val', 'test'):
        dataset = cfg[f'{split}_dataloader'].dataset
        for part in dataset.get('datasets', [dataset]):
            yield part.pipeline
    yield cfg.tta_pipeline


def resolve_types(cfg: Config) -> int:
    """Look up every other type that the Runner would build; returns how many."""
    constructor = cfg.optim_wrapper.get('constructor', 'DefaultOptimWrapperConstructor')
    loops = [loop for loop in (cfg.train_cfg, cfg.val_cfg, cfg.test_cfg) if 'type' in loop]
    count = 0
    for registry, entries in (
        (HOOKS, [*cfg.default_hooks.values(), *cfg.custom_hooks]),
        (METRICS, [cfg.val_evaluator, cfg.test_evaluator]),
        (VISUALIZERS, [cfg.visualizer]),
        (MODELS, [cfg.tta_model]),
        (OPTIMIZERS, [cfg.optim_wrapper.optimizer]),
        (OPTIM_WRAPPERS, [cfg.optim_wrapper]),
        (OPTIM_WRAPPER_CONSTRUCTORS, [dict(type=constructor)]),
        (PARAM_SCHEDULERS, cfg.param_scheduler),
        (DATASETS, [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]),
        (DATA_SAMPLERS, [cfg.train_dataloader.sampler, cfg.val_dataloader.sampler]),
        (LOOPS, loops),
    ):
        for entry in entries:
            with registry.switch_scope_and_registry(None) as scoped:
                if scoped.get(entry['type']) is None:
                    raise KeyError(f'{entry["type"]} is in no registry of {registry.name}')
            count += 1
    return count


def print_facts(paths: list[str]) -> None:
    """Describe every config; an error is reported like a result, so that all are seen."""
    for path in paths:
        try:
            facts = describe(path)
        except Exception as error:
            facts = dict(config=path, error=f'{type(error).__name__}: {error}')
        print('SWEEP' + json.dumps(facts), flush=True)


def main() -> int:
    """Describe every group in a process of its own, one after the other."""
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)  # the optimizer logs a line for each parameter
    timm.layers.weight_init._trunc_normal_ = lambda weight, *_: weight
    status = 0
    for paths in json.load(sys.stdin):
        if (child := os.fork()) == 0:
            print_facts(paths)
            os._exit(0)
        status |= os.waitpid(child, 0)[1]
    return int(status != 0)


if __name__ == '__main__':
    sys.exit(main())
