"""A model in eval mode from a config and a checkpoint."""

from argparse import Namespace
from collections.abc import Mapping

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import nn

from mmvars.checkpoints import Account, load_pretrained, read_checkpoint
from mmvars.checkpoints.containers import select_weights
from mmvars.checkpoints.fit import fit_tensors
from mmvars.checkpoints.source import Source
from mmvars.engine.launch import clear_errors, load_config
from mmvars.engine.runner import allowed_constants
from mmvars.errors import InputError
from mmvars.visualization.host import network_of

__all__ = ['build_model', 'class_metainfo', 'read_config']


def read_config(name: str, options: Mapping | None = None) -> Config:
    """The config that ``name`` means (a path, or the name of a shipped config), with ``options``.

    Raises:
        InputError: If there is no such config, it cannot be read, or an option names nothing.
    """
    cfg, _ = load_config(Namespace(config=name, cfg_options=options, launcher='none',
                                   local_rank=0))
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return cfg


def build_model(cfg: Config, checkpoint: str, device: torch.device,
                heads: bool = True) -> tuple[nn.Module, Mapping]:
    """Build the config's model and fill it, strictly, from the checkpoint.

    Args:
        cfg: The config.
        checkpoint: A checkpoint of the whole model; of the backbone alone will do without
            ``heads``.
        device: Where to put the model.
        heads: Whether all that is not the backbone is filled too.

    Returns:
        The model in eval mode, and the ``meta`` of the checkpoint (empty where it has none).

    Raises:
        InputError: If the model has no mmvars backbone, or the checkpoint does not fill it.
    """
    config = dict(cfg.model)
    if 'data_preprocessor' in cfg:  # the Runner's rule for one that stands outside of the model
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with clear_errors():
        model = MODELS.build(config)
    network_of(model)
    model = revert_sync_batchnorm(model)
    load_pretrained(model.backbone, checkpoint, allow_constants=allowed_constants(cfg))
    meta = _load_heads(model, checkpoint) if heads else {}
    return model.to(device).eval(), meta


def class_metainfo(dataset: Mapping, checkpoint_meta: Mapping) -> list[Mapping]:
    """Where class names and palette stand: the data set's config, its class, the checkpoint."""
    dataset_class = DATASETS.get(dataset['type'])
    stored = checkpoint_meta.get('dataset_meta')
    return [dataset.get('metainfo') or {}, getattr(dataset_class, 'METAINFO', {}),
            stored if isinstance(stored, Mapping) else {}]


def _load_heads(model: nn.Module, checkpoint: str) -> Mapping:
    """Fill all that is not the backbone, as strictly as :func:`load_pretrained` fills that.

    Returns:
        The ``meta`` of the checkpoint.
    """
    heads = nn.ModuleDict({name: part for name, part in model.named_children()
                           if name != 'backbone'})
    account = Account(f'{checkpoint} into the heads of {type(model).__name__}')
    content = read_checkpoint(checkpoint)
    tensors = select_weights(content, 'auto', account)
    outside = {key: Source(key, value, getattr(value, 'shape', None))
               for key, value in tensors.items() if not key.startswith('backbone.')}
    if len(outside) == len(tensors):
        raise InputError(f'{checkpoint} holds a backbone alone, and predictions need the heads '
                         'too: give a checkpoint of the whole model')
    fitted = fit_tensors(heads, outside, account)
    account.raise_problems('The checkpoint must be one of the model that the config describes.')
    heads.load_state_dict(fitted)
    meta = content.get('meta')
    return meta if isinstance(meta, Mapping) else {}
