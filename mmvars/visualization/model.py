"""What is drawn or exported: a model of a config and a checkpoint, its classes, its images."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.logging import MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, MODELS, init_default_scope
from torch import Tensor, nn
from torch.nn import functional as F

from mmvars.checkpoints.io import check_checkpoint_file, read_checkpoint, read_meta
from mmvars.checkpoints.load import load_heads, load_pretrained
from mmvars.checkpoints.partial import ADDED, check_trunk, recorded_trunk
from mmvars.checkpoints.report import Status
from mmvars.datasets.checks import dataset_class
from mmvars.engine.errors import user_errors
from mmvars.engine.runner import load_config
from mmvars.engine.samples import CheckedPipeline
from mmvars.engine.strict import allowed_constants
from mmvars.errors import InputError, first_of
from mmvars.models.sliding_window import whole_image_metas
from mmvars.networks import PerceiverIO, TopDown, Trunk
from mmvars.predictor import run_files
from mmvars.visualization.figure import default_palette

__all__ = [
    'ClassTable',
    'Model',
    'Network',
    'Sample',
    'annotated_images',
    'build_model',
    'class_sources',
    'dataset_of',
    'image_pipeline',
    'init_backbone',
    'is_segmentor',
    'load_sample',
    'model_files',
    'model_names',
    'network_of',
    'num_classes_of',
    'predict_whole',
    'read_config',
    'refuse_text',
    'swaps_channels',
]

Network = Trunk | TopDown | PerceiverIO
Model = Any  # a segmentor or a classifier: the two frameworks share no type

LABEL_STEPS = ('CheckLabels', 'LoadAnnotations', 'LoadDepthAnnotation')


def read_config(name: str, options: dict | None = None) -> Config:
    """The config that ``name`` means (a path, or the name of a shipped config), with ``options``.

    Raises:
        InputError: If there is no such config, it cannot be read, or an option names nothing.
    """
    cfg, _ = load_config(name, options)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    return cfg


def refuse_text(cfg: Config) -> None:
    """Refuse a model that looks at an image only with a text beside it.

    Raises:
        InputError: Naming the commands that give one.
    """
    if 'text_backbone' in cfg.model:
        raise InputError(
            'this config describes an mmvars.METER, which takes no image without a text: '
            '`mmvars ask` asks it and draws where it looks, `mmvars test` measures it'
        )


def build_model(
    cfg: Config,
    checkpoint: str,
    device: torch.device,
    heads: bool = True,
    allow_new: Sequence[str] = (),
) -> tuple[Model, Mapping]:
    """Build the config's model, fill it, strictly, from the checkpoint, and fuse its backbone.

    The checkpoint is of the whole model; without ``heads`` one of the backbone alone will do, and
    all else stays as it is initialized. What starts with ``allow_new`` it may lack.

    Returns:
        The model in eval mode, and the ``meta`` of the checkpoint (empty where it has none).

    Raises:
        InputError: If the model has no mmvars backbone, or the checkpoint does not fill it.
    """
    check_checkpoint_file(checkpoint, 'checkpoint')  # before the model, which takes seconds
    config = dict(cfg.model)
    if 'data_preprocessor' in cfg:  # the Runner's rule for one that stands outside of the model
        config.setdefault('data_preprocessor', cfg.data_preprocessor)
    with user_errors():
        model = MODELS.build(config)
    network_of(model)
    model = revert_sync_batchnorm(model)
    _load_backbone(model.backbone, checkpoint, allowed_constants(cfg), allow_new)
    meta = load_heads(model, checkpoint) if heads else {}
    model = model.to(device).eval()
    model.backbone.fuse()
    return model, meta


def _load_backbone(
    backbone: Any,
    checkpoint: str,
    allow_constants: tuple[str, ...],
    allow_new: Sequence[str] = (),
) -> None:
    """Fill a backbone; from the config too where the checkpoint holds what trained alone."""
    content = read_checkpoint(checkpoint)
    record = recorded_trunk(read_meta(checkpoint, content), checkpoint)
    if record is not None:
        init_backbone(backbone)
        if not any(key.startswith('backbone.') for key in content['state_dict']):
            check_trunk(backbone.network, record, (), checkpoint)
            return
    names = backbone.network.state_dict()
    new = [part for part in allow_new if any(name.startswith(part) for name in names)]
    report = load_pretrained(backbone, checkpoint, allow_new=new, allow_constants=allow_constants)
    new = [entry.target or '' for entry in report.of(Status.NEW)]
    if absent := [name for name in new if ADDED.search(name)]:
        raise InputError(
            f'checkpoint {checkpoint!r} lacks {first_of(absent)}: use the config that it was '
            'trained with'
        )


def init_backbone(backbone: Any) -> None:
    """Load the weights that the config names, without mmengine's lines for every tensor."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('WARNING')
    try:
        backbone.init_weights()
    finally:
        logger.setLevel(level)


def model_files(words: Sequence[str | None]) -> tuple[str, str | None]:
    """Config and checkpoint of a model: of ``[folder]``, or ``[config, checkpoint]``.

    Raises:
        InputError: If there are more words, or the folder is none of a run.
    """
    if len(words) > 2:
        raise InputError(f'--against takes a run folder, or CONFIG CHECKPOINT; got {len(words)}')
    config, checkpoint = run_files(*words)  # type: ignore[arg-type]
    return config, None if checkpoint is None else str(checkpoint)


def model_names(models: Sequence[tuple[str, str | None]]) -> list[str]:
    """A short name for each model, all different: the last parts of its config or checkpoint.

    Raises:
        InputError: If a model is given twice.
    """
    if len(set(models)) < len(models):
        raise InputError('a config with its checkpoint is given twice: leave one out of --against')
    configs, checkpoints = zip(*models, strict=True)
    paths = configs if len(set(configs)) == len(models) else tuple(map(str, checkpoints))
    if len(set(paths)) < len(models):
        paths = tuple(f'{config}+{checkpoint}' for config, checkpoint in models)
    parts = [Path(os.path.splitext(path)[0]).parts for path in paths]
    longest = max(map(len, parts))
    tails = (['/'.join(each[-count:]) for each in parts] for count in range(1, longest + 1))
    return next((names for names in tails if len(set(names)) == len(models)), list(paths))


def network_of(model: Model) -> Network:
    """The network inside the backbone of a segmentor or classifier.

    Raises:
        InputError: If the model's backbone is none of mmvars.
    """
    backbone = getattr(model, 'backbone', None)
    network = getattr(backbone, 'network', None)
    if not isinstance(network, Network):
        raise InputError(
            f'the backbone {type(backbone).__name__} is none of mmvars: pictures of '
            'attention and exported files need mmvars.AbSViT, ViT, VARS, RVT, FAN or '
            'GFNet as model.backbone.type'
        )
    return network


def is_segmentor(model: Model) -> bool:
    return hasattr(model, 'decode_head')


def swaps_channels(preprocessor: nn.Module) -> bool:
    """Whether a data preprocessor turns BGR to RGB: each framework and stack names it its way."""
    names = ('channel_conversion', '_channel_conversion', 'to_rgb')
    return any(getattr(preprocessor, name, False) for name in names)


def predict_whole(model: Model, images: Tensor) -> np.ndarray:
    """One forward of the whole model, whole images even where tests use sliding windows.

    Args:
        images: ``(1, 3, H, W)``, normalized and padded.

    Returns:
        Labels ``(H, W)`` of a segmentor, probabilities ``(K,)`` of a classifier.
    """
    if not is_segmentor(model):
        return model.predict(images)[0].pred_score.float().cpu().numpy()
    logits = model.encode_decode(images, whole_image_metas(images))
    return model.postprocess_result(logits, None)[0].pred_sem_seg.data[0].cpu().numpy()


def num_classes_of(model: Model) -> int:
    """Number K of classes the model tells apart.

    Raises:
        InputError: If it predicts nothing.
    """
    head = model.decode_head if is_segmentor(model) else getattr(model, 'head', None)
    num_classes = getattr(head, 'num_classes', None)
    if num_classes is None:
        raise InputError(
            f'{type(model).__name__} has neither a decode_head nor a head with '
            'num_classes, so it predicts nothing that could be drawn'
        )
    return num_classes


@dataclass
class ClassTable:
    """Names and colors of K classes; numbers and computed colors where none are known."""

    names: tuple[str, ...]
    palette: list
    named: bool = True

    @classmethod
    def of(cls, num_classes: int, *sources: Mapping | None) -> 'ClassTable':
        """From the first of ``sources`` (data set ``metainfo``) whose classes are K in number."""
        for source in filter(None, sources):
            names, palette = source.get('classes'), source.get('palette')
            if isinstance(names, Sequence) and len(names) == num_classes:
                if not isinstance(palette, Sequence) or len(palette) != num_classes:
                    palette = default_palette(num_classes)
                return cls(tuple(map(str, names)), list(palette))
        return cls(
            tuple(f'class {i}' for i in range(num_classes)),
            default_palette(num_classes),
            named=False,
        )


def dataset_of(cfg: Config) -> dict:
    """The data set of ``test_dataloader`` (or ``val_dataloader``), unwrapped.

    Raises:
        InputError: If the config has none with a pipeline.
    """
    for name in ('test_dataloader', 'val_dataloader'):
        dataset = (cfg.get(name) or {}).get('dataset')
        while dataset and 'pipeline' not in dataset:  # ConcatDataset, RepeatDataset, ...
            dataset = dataset.get('datasets', [dataset.get('dataset')])[0]
        if dataset:
            return dataset
    raise InputError(
        'the config has no test_dataloader (or val_dataloader) with a pipeline, so it '
        'does not say how images are prepared'
    )


def class_sources(dataset: Mapping, checkpoint_meta: Mapping) -> list[Mapping | None]:
    """Where class names and palette stand: the data set's config, its class, the checkpoint."""
    stored = checkpoint_meta.get('dataset_meta')
    return [
        dataset.get('metainfo'),
        getattr(dataset_class(dataset), 'METAINFO', None),
        stored if isinstance(stored, Mapping) else None,
    ]


def annotated_images(cfg: Config, images: Sequence[str]) -> dict[str, dict]:
    """What the config's test data say of those of ``images`` that belong to them.

    Returns:
        Real path -> entry of the data set, for images with annotations. Empty where no image
        stands below ``data_root``: the data set is not looked at then.
    """
    dataset = dataset_of(cfg)
    if not dataset.get('data_root'):
        return {}
    root = os.path.join(os.path.realpath(dataset['data_root']), '')
    if not any(os.path.realpath(image).startswith(root) for image in images):
        return {}
    with user_errors():
        built = DATASETS.build(dict(dataset, pipeline=[]))
    entries = map(built.get_data_info, range(len(built)))
    return {
        os.path.realpath(entry['img_path']): entry
        for entry in entries
        if 'gt_label' in entry or os.path.isfile(entry.get('seg_map_path') or '')
    }


def image_pipeline(cfg: Config, labels: bool = False) -> Compose:
    """The config's own test pipeline, for images with or without labels.

    Without, steps that load or check labels are left out. Images are read by the strict
    ``mmvars.LoadImageFromFile``.

    Raises:
        InputError: If the pipeline loads no image.
    """
    steps, loads_image = [], False
    for step in dataset_of(cfg)['pipeline']:
        name = step['type'] if isinstance(step['type'], str) else step['type'].__name__
        name = name.rpartition('.')[2]
        if name == 'LoadImageFromFile':
            loads_image = True
            step = dict(type='mmvars.LoadImageFromFile') | {
                key: step[key] for key in ('allow', 'backend_args', 'to_float32') if key in step
            }
        if labels or name not in LABEL_STEPS:
            steps.append(step)
    if not loads_image:
        raise InputError(
            'the test pipeline of the config has no LoadImageFromFile, so it cannot '
            'read image files'
        )
    return CheckedPipeline(steps)


@dataclass
class Sample:
    """One image as the data pipeline packs it."""

    inputs: Tensor  # (3, H, W) pixels, 0 to 255, before normalization and padding
    data_sample: Any  # for the data preprocessor
    seam: int | None = None  # where it is two photos side by side: first column of the right one

    @property
    def size(self) -> tuple[int, int]:
        """``(H, W)`` in pixels."""
        return self.inputs.shape[-2], self.inputs.shape[-1]

    def preprocessed(self, model: Model) -> Tensor:
        """Normalized and padded for ``model``: ``(1, 3, H', W')`` with ``H' >= H``, ``W' >= W``."""
        # A sample of its own: preprocessing and prediction write into it.
        blank = type(self.data_sample)(metainfo=dict(self.data_sample.metainfo))
        if hasattr(model, 'text_backbone'):  # whose preprocessor takes a list for frames
            data = {'inputs': self.inputs[None], 'data_samples': [blank]}
            return model.data_preprocessor(data, False)['images']
        data = {'inputs': [self.inputs], 'data_samples': [blank]}
        return model.data_preprocessor(data, False)['inputs']

    @property
    def truth(self) -> np.ndarray | None:
        """What is annotated: labels ``(H, W)``, or class numbers; ``None`` without annotations."""
        if self.data_sample.get('gt_sem_seg') is not None:
            # Tests load labels at the size of the file.
            labels = self.data_sample.gt_sem_seg.data[None].double()
            return F.interpolate(labels, size=self.size)[0, 0].long().numpy()
        if self.data_sample.get('gt_label') is not None:
            return self.data_sample.gt_label.numpy()
        return None

    def picture(self, model: Model) -> np.ndarray:
        """The pixels as ``(H, W, 3)`` uint8, RGB."""
        pixels = self.inputs.flip(0) if swaps_channels(model.data_preprocessor) else self.inputs
        pixels = pixels.float().clamp(0, 255).round().byte()
        return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def load_sample(
    paths: Sequence[str], pipeline: Compose, patch_size: int, annotation: Mapping | None = None
) -> Sample:
    """Read and prepare one image; or two, which become one image with a ``seam``.

    ``annotation`` is what the data set says of the one image, see :func:`annotated_images`.

    Each is prepared as the model's own pipeline does. Where that leaves two at different heights,
    the higher one is scaled down to the height of the other.

    Raises:
        InputError: If a file is no readable 8-bit color image (see ``mmvars.LoadImageFromFile``),
            or is smaller than a patch.
    """
    packed = [pipeline({**(annotation or {}), 'img_path': path}) for path in paths]
    for path, entry in zip(paths, packed, strict=True):
        original = entry['data_samples'].metainfo.get('ori_shape', entry['inputs'].shape[-2:])[:2]
        if min(original) < patch_size:
            raise InputError(
                f'{path!r} is {original[0]}x{original[1]} pixels (height x width), '
                f'smaller than one patch of {patch_size}x{patch_size}: there is '
                'nothing to tell apart in it'
            )
    data_sample, images = packed[0]['data_samples'], [entry['inputs'] for entry in packed]
    if len(images) == 1:
        return Sample(images[0], data_sample)
    height = min(image.shape[-2] for image in images)
    for i, image in enumerate(images):
        if image.shape[-2] != height:
            width = max(round(image.shape[-1] * height / image.shape[-2]), 1)
            scaled = F.interpolate(
                image[None].float(),
                size=(height, width),
                mode='bilinear',
                align_corners=False,
                antialias=True,
            )[0]
            images[i] = scaled.round().clamp(0, 255).to(image.dtype)
    inputs = torch.cat(images, dim=-1)
    shape = tuple(inputs.shape[-2:])
    meta = dict(img_path=' + '.join(map(os.path.basename, paths)), ori_shape=shape, img_shape=shape)
    return Sample(inputs, type(data_sample)(metainfo=meta), images[0].shape[-1])
