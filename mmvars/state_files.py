"""What a predictor keeps of an image, as a file: the picture, and its first pass.

The picture is prepared again when the file is read. The file is that of one model: hashed are the
bytes of its backbone's weights, the configs of backbone and preparation, and the windows; and the
contents of the file, for what a disk may do to them.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmvars.checkpoints import read_checkpoint
from mmvars.checkpoints.io import read_meta
from mmvars.checkpoints.partial import sha256_of
from mmvars.checkpoints.write import write_checkpoint
from mmvars.errors import InputError
from mmvars.layers import TokenGrid
from mmvars.networks import FirstPassOutput, TopDown, TrunkOutput
from mmvars.states import State, output_of
from mmvars.steering import SteeredModel
from mmvars.visualization.model import dataset_of
from mmvars.write import check_destination

__all__ = ['load_state', 'save_state']

VERSION = '1'


def save_state(engine: SteeredModel, state: State, file: str | Path, overwrite: bool) -> None:
    """Write a state, whole or not at all.

    Raises:
        InputError: If the network has no first pass, or the file cannot be written.
    """
    path = check_destination(file, overwrite=overwrite, suffixes=('.safetensors',))
    if not state.passes:
        raise InputError(
            'this model has no feedback, so that nothing of its forward can be kept: set_image '
            'with the image costs as much'
        )
    if state.is_carried:
        raise InputError(
            'the first pass of this image is that of the frame before: call set_image(image) '
            'without previous to keep its own'
        )
    tensors, grids = {'picture': torch.from_numpy(state.picture)}, []
    for index, (first, norms) in enumerate(zip(state.passes, state.norms, strict=True)):
        output = output_of(first)
        tensors |= {f'{index}.tokens': output.tokens, f'{index}.norms': norms}
        for number, tokens in enumerate(output.intermediates):
            tensors[f'{index}.intermediates.{number}'] = tokens
        if isinstance(first, FirstPassOutput):
            tensors[f'{index}.embedded'] = first.embedded
        grids.append([output.grid, *output.grids, getattr(first, 'grid', output.grid)])
    meta = dict(
        mmvars_state=VERSION,
        grids=json.dumps(grids),
        model=_model_key(engine, state),
    )
    meta['contents'] = _contents(tensors, meta)
    write_checkpoint(path, tensors, meta=meta, overwrite=overwrite)


def load_state(engine: SteeredModel, file: str | Path, picture: np.ndarray | None) -> State:
    """Read a state.

    Args:
        engine: The model that it must be of.
        file: Of :func:`save_state`.
        picture: The image that it must be of; ``None``: any.

    Raises:
        InputError: If it is damaged, or of another image or model.
    """
    content = read_checkpoint(file)
    meta = read_meta(file, content)
    if meta.get('mmvars_state') != VERSION:
        raise InputError(
            f'{file} is no state of this version of mmvars: write one with save_state(FILE)'
        )
    if meta.get('contents') != _contents(content, meta):
        raise InputError(
            f'state {file} is damaged: copy it again, or make it again with set_image and '
            'save_state'
        )
    if picture is not None and not np.array_equal(picture, content['picture'].numpy()):
        raise InputError(
            f'state {file} is of another image than the one that is set: call reset_image() to '
            'take the image of the state, or save_state(FILE) for this one'
        )
    state = engine.start(content['picture'].numpy(), run=False)
    if meta['model'] != _model_key(engine, state):
        raise InputError(
            f'state {file} was made with another model (other weights, another backbone, '
            'preparation of images or windows): make it again with set_image and save_state'
        )
    for index, grids in enumerate(json.loads(meta['grids'])):
        device = engine.device
        tensors = {
            name.partition('.')[2]: value.to(device)
            for name, value in content.items()
            if name.startswith(f'{index}.')
        }
        grid, *inner, embedded_grid = (TokenGrid(*sizes) for sizes in grids)
        intermediates = tuple(tensors[f'intermediates.{i}'] for i in range(len(inner)))
        first: Any = TrunkOutput(tensors['tokens'], grid, intermediates, tuple(inner))
        if isinstance(engine.network, TopDown):
            first = FirstPassOutput(first, tensors['embedded'], embedded_grid)
        state.passes.append(first)
        state.norms.append(tensors['norms'])
    return state


def _model_key(engine: SteeredModel, state: State) -> str:
    """Of the weights, and of what else the first pass of this image depends on.

    Not of the prepared image: its last bits are those of the machine.
    """
    cfg = engine.cfg
    backbone = {k: v for k, v in cfg.model.backbone.items() if k not in ('init_cfg', 'pretrained')}
    preparation = [
        dataset_of(cfg)['pipeline'],
        cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor'),
        tuple(state.inputs.shape),
    ]
    windows = [list(map(str, group)) for group in state.groups]
    words = repr([engine.backbone_sha256, backbone, preparation, windows])
    return hashlib.sha256(words.encode()).hexdigest()


def _contents(tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> str:
    words = [f'{key}={meta[key]}' for key in sorted(meta) if key in ('grids', 'model')]
    return hashlib.sha256('\n'.join([*words, sha256_of(tensors)]).encode()).hexdigest()
