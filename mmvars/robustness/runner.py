"""A model under corruptions, through the test loop of its config."""

import hashlib
import io
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform, CenterCrop
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.dist import broadcast_object_list, is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from PIL import Image
from torch import nn
from torch.utils.data import Dataset

from mmvars.datasets.corrupt import Corrupt, insert_corrupt
from mmvars.datasets.files import contents_digest, evenly_spaced, image_name
from mmvars.engine.hooks import FuseHook
from mmvars.engine.samples import CheckedPipeline, check_pipelines
from mmvars.errors import InputError
from mmvars.robustness.attacks import ATTACKS, ATTACKS_VERSION, Attacker, attacked
from mmvars.robustness.corruptions import CORRUPTIONS_VERSION
from mmvars.robustness.protocols import CLEAN, Protocol, Setting
from mmvars.robustness.rows import Rows
from mmvars.robustness.scores import ImageScores
from mmvars.robustness.shifts import ShiftedData
from mmvars.visualization.attention import attention_maps
from mmvars.visualization.figure import HeatMap
from mmvars.visualization.model import Sample, is_segmentor

__all__ = [
    'Evaluation',
    'Images',
    'Shown',
    'imagenet_c_pipeline',
    'leaves',
    'run_settings',
]

_SECONDS_BETWEEN_LINES = 30


class View(Dataset):
    """Some images of a data set."""

    def __init__(self, dataset: Any, indices: Sequence[int]) -> None:
        self.dataset = dataset
        self.indices = indices
        self.metainfo = getattr(dataset, 'metainfo', {})

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[index]]

    def __deepcopy__(self, memo: dict) -> 'View':
        return self  # mmengine copies the section of the config that this stands in


@dataclass(frozen=True)
class Shown:
    """One image in a setting, and what the model says of it.

    Attributes:
        image: ``(H, W, 3)`` uint8, RGB, as it is prepared, before the normalization.
        output: Labels ``(h, w)``, or probabilities ``(K,)``.
        truth: Labels ``(h, w)``, -1 where there is none; or the number of the class.
        maps: Attention at the size of ``image``, where the model has any.
    """

    image: np.ndarray
    output: np.ndarray
    truth: np.ndarray
    maps: list[HeatMap]


class Images:
    """The images of a data set that are tested, evenly spaced.

    Args:
        dataset: All of them.
        count: How many are tested; ``None``: all.
        class_ids: Of a classifier: there are only those of these classes.

    Attributes:
        dataset: All of them.
        pipelines: The data sets below it, with their pipelines.
        indices: In the data set.
        names: Folder and file of each.
        total: How many there are.
    """

    def __init__(
        self, dataset: Any, count: int | None, class_ids: Collection[int] | None = None
    ) -> None:
        self.dataset = dataset
        self.pipelines = [(leaf, leaf.pipeline) for leaf in leaves(dataset)]
        all_of: Sequence[int] = range(len(dataset))
        if class_ids is not None:
            all_of = [k for k in all_of if dataset.get_data_info(k).get('gt_label') in class_ids]
        self.total = len(all_of)
        self.indices = [all_of[k] for k in evenly_spaced(self.total, count)]
        paths = [dataset.get_data_info(index).get('img_path') for index in self.indices]
        if None in paths:
            raise InputError(
                f'the data set {type(dataset).__name__} has images without a file (img_path); '
                'the random numbers of a corruption follow from the name of the file: write the '
                'images to files, and take mmpretrain.CustomDataset'
            )
        self.names = [image_name(path) for path in paths]

    def digest(self) -> str:
        """Of labels and files: others of the same names have another."""
        infos = [self.dataset.get_data_info(index) for index in self.indices]
        parts = [str([info.get('gt_label') for info in infos])]
        for key in ('img_path', 'seg_map_path'):
            parts.append(contents_digest([info.get(key) or '' for info in infos]))
        return hashlib.sha256(' '.join(parts).encode()).hexdigest()[:16]


class Evaluation:
    """One model, tested in one setting after the other.

    Args:
        runner: Its test loop has the data, the metrics and the model, whose weights are loaded
            here.
        protocol: What is measured.
        shifted: The images of the settings but the clean one; ``None``: those of the test loop.

    Attributes:
        names: Setting -> names of its images.
    """

    def __init__(
        self, runner: Runner, protocol: Protocol, shifted: ShiftedData | None = None
    ) -> None:
        self.runner = runner
        self.protocol = protocol
        self.shifted = shifted
        self.loop = runner.test_loop
        self.class_ids = shifted.class_ids if shifted else None
        self._own = self._listed = Images(
            self.loop.dataloader.dataset, protocol.images, self.class_ids
        )
        self._listed_for: Setting | None = None
        self.names, self.totals, self.digests = self._list_images()
        runner.call_hook('before_run')
        runner.load_or_resume()
        self.model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self.segmentation = is_segmentor(self.model)
        meta = self.loop.evaluator.dataset_meta or {}
        self.classes: Sequence[str] | None = meta.get('classes')
        self.palette: list | None = meta.get('palette')
        self.num_classes = _num_classes(self.model) or len(self.classes or ())
        if not self.num_classes:
            raise InputError(
                f'neither {type(self.model).__name__} nor the data set say how many classes there '
                'are: set test_dataloader.dataset.metainfo.classes=NAME,NAME,...'
            )
        self.weights = _digest(self.model)
        ignored = [getattr(metric, 'ignore_index', None) for metric in self.loop.evaluator.metrics]
        self.scores = ImageScores(
            self.num_classes, next((value for value in ignored if value is not None), 255)
        )
        self.loop.evaluator.metrics.append(self.scores)
        if self.class_ids is not None:
            self.model.register_forward_hook(self._restrict)
        runner.register_hook(FuseHook())
        self.progress = _ProgressHook()
        runner.register_hook(self.progress)

    def images(self, setting: Setting) -> Images:
        """The images of a setting."""
        if self.shifted is None or setting == CLEAN:
            return self._own
        if setting != self._listed_for:  # not kept: ImageNet-C is 75 data sets
            dataset = self.shifted.build(setting)
            check_pipelines(dataset)
            self._listed, self._listed_for = Images(dataset, self.protocol.images), setting
        return self._listed

    def _list_images(
        self,
    ) -> tuple[dict[Setting, list[str]], dict[Setting, int], dict[Setting, str]]:
        names: dict[Setting, list[str]] = {}
        totals: dict[Setting, int] = {}
        digests: dict[Setting, str] = {}
        own = self._own.digest()
        last: list[str] = []
        for setting in self.protocol.settings:
            images = self.images(setting)
            totals[setting] = images.total
            digests[setting] = own if images is self._own else images.digest()
            last = names[setting] = last if images.names == last else images.names
        if self.shifted is not None and self.protocol.imagenet_c:
            stored = {setting: every for setting, every in names.items() if setting != CLEAN}
            self.shifted.check_images(stored)
        return names, totals, digests

    def identities(self, cfg: Config) -> list[tuple[dict[str, Any], list[Setting]]]:
        """All that rows depend on, of a config as it was read, and the settings that it is of.

        Not where the data are, nor what reads them how fast: another machine may go on.
        """
        loader = dict(cfg.test_dataloader)
        root = getattr(leaves(self._own.dataset)[0], 'data_root', None)
        common = dict(
            model=_without(cfg.model, 'init_cfg', 'pretrained'),
            data_preprocessor=_without(cfg.get('data_preprocessor')),
            batch_size=loader.get('batch_size'),
            test_cfg=_without(cfg.test_cfg),
            test_evaluator=_without(cfg.test_evaluator),
            weights=self.weights,
            attacks_version=ATTACKS_VERSION,
            corruptions_version=CORRUPTIONS_VERSION,
            seed=self.protocol.seed,
            imagenet_c=self.protocol.imagenet_c,
            **({'class_ids': self.class_ids} if self.class_ids else {}),
        )
        identities: list[tuple[dict[str, Any], list[Setting]]] = []
        for setting, names in self.names.items():
            if self.shifted is None or setting == CLEAN:
                dataset = _without(loader['dataset'], 'data_root', 'backend_args', root=root)
            else:
                dataset = _without(self.shifted.dataset, 'backend_args')
            identity = dict(common, dataset=dataset, images=names, content=self.digests[setting])
            if not identities or identity != identities[-1][0]:
                identities.append((identity, []))
            identities[-1][1].append(setting)
        return identities

    def pipeline(self, original: CheckedPipeline, setting: Setting) -> CheckedPipeline:
        """The pipeline of a data set in a setting."""
        if setting == CLEAN or setting.change in ATTACKS:
            return original
        if self.shifted is not None:
            whole = self.protocol.imagenet_c
            return CheckedPipeline(stored_pipeline(original.transforms)) if whole else original
        corrupt = Corrupt(str(setting.change), int(setting.level), self.protocol.seed)
        prepare = imagenet_c_pipeline if self.protocol.imagenet_c else insert_corrupt
        return CheckedPipeline(prepare(original.transforms, corrupt))

    @property
    def own_steps(self) -> dict[str, str]:
        """What is done to images of ImageNet-C in place of the steps of the config, for the report.

        Setting -> steps; that of the first corruption stands for all.
        """
        if not self.protocol.imagenet_c:
            return {}
        setting = self.protocol.grid[0]
        steps = self.pipeline(self.images(setting).pipelines[0][1], setting).transforms
        return {f'steps of {setting.name}': ', '.join(map(repr, steps))}

    def run(self, setting: Setting) -> dict[str, Any]:
        """Test in a setting, in all processes of the run; the row is that of the main process."""
        images = self._prepare(setting)
        loader = dict(
            self.runner.cfg.test_dataloader,
            dataset=View(images.dataset, images.indices),
            sampler=dict(type='DefaultSampler', shuffle=False),
            persistent_workers=False,
        )
        self.loop.dataloader = Runner.build_dataloader(loader)
        self.progress.setting = setting
        with self._under(setting):
            metrics = self.loop.run()
        return dict(
            metrics={key: _number(value) for key, value in metrics.items()}, **self.scores.row
        )

    @torch.no_grad()
    def show(self, setting: Setting, position: int) -> Shown:
        """One image in a setting, by its position among those that are tested."""
        images = self._prepare(setting)
        data = pseudo_collate([images.dataset[images.indices[position]]])
        self.model.eval()
        with self._under(setting) as attacker:
            if attacker is not None:
                data, _ = attacker(data)
        whole = Sample(data['inputs'][0], data['data_samples'][0])
        image, maps = whole.picture(self.model), attention_maps(self.model, whole)
        result = self.model.test_step(data)[0]
        if not self.segmentation:
            truth = result.gt_label.cpu().numpy()[0]
            return Shown(image, result.pred_score.cpu().numpy(), truth, maps)
        truth = result.gt_sem_seg.data.squeeze(0).cpu().long()
        truth[truth == self.scores.ignore_index] = -1
        output = result.pred_sem_seg.data.squeeze(0).cpu().long()
        return Shown(image, output.numpy(), truth.numpy(), maps)

    def _prepare(self, setting: Setting) -> Images:
        images = self.images(setting)
        for leaf, original in images.pipelines:
            leaf.pipeline = self.pipeline(original, setting)
        return images

    @contextmanager
    def _under(self, setting: Setting) -> Iterator[Attacker | None]:
        """While it lasts, the model is under attack, if the setting is one."""
        if setting.change not in ATTACKS:
            yield None
            return
        attacker = Attacker(
            self.model,
            str(setting.change),
            setting.level,
            self.protocol.seed,
            self.scores.ignore_index,
        )
        with attacked(self.model, attacker):
            yield attacker

    def _restrict(self, model: nn.Module, inputs: Any, outputs: Any) -> None:
        """Of a classifier, take the probability of all classes that cannot be right."""
        if isinstance(outputs, list) and self.class_ids is not None:  # not the logits
            for sample in outputs:
                restrict_classes(sample, self.class_ids)


def run_settings(
    evaluation: Evaluation,
    rows: Rows,
    on_row: Callable[[Setting, dict, str], None],
    settings: Sequence[Setting] | None = None,
) -> None:
    """Make all rows of a protocol that are not there.

    Args:
        evaluation: The model and its data, in all processes of a distributed run.
        rows: Where rows are kept.
        on_row: Called in the main process with each new row, and the time that is left.
        settings: Those to make now; ``None``: all of the protocol.
    """
    every, seconds = evaluation.protocol.settings, []
    while True:
        shared = [rows.claim_next(settings or every) if is_main_process() else None]
        broadcast_object_list(shared)
        (setting,) = shared
        if setting is None:
            return
        start = time.monotonic()
        row = evaluation.run(setting)
        seconds.append(time.monotonic() - start)
        if is_main_process():
            rows.write(setting, row)
            left = len(rows.missing(every)) * sum(seconds) / len(seconds)
            on_row(setting, row, f'{seconds[-1]:.0f} s' + f', {_duration(left)} left' * (left > 0))


def imagenet_c_pipeline(pipeline: Sequence, corrupt: BaseTransform) -> list:
    """A pipeline of mmpretrain that makes images as those of ImageNet-C are, and takes them whole.

    The authors scaled the short side to 256 pixels, cut 224 x 224 from the center, corrupted that,
    and saved it as a JPEG of quality 85.
    """
    from mmpretrain.datasets.transforms import ResizeEdge

    loaded = insert_corrupt(pipeline, corrupt)
    resize = ResizeEdge(256, edge='short', backend='pillow')
    load = loaded[: loaded.index(corrupt)]
    return [*load, resize, CenterCrop(224), corrupt, SaveAsJPEG(), loaded[-1]]


def stored_pipeline(pipeline: Sequence) -> list:
    """A pipeline of mmpretrain that takes stored images of ImageNet-C, whole."""
    crop = CenterCrop(224)
    loaded = insert_corrupt(pipeline, crop)
    return [*loaded[: loaded.index(crop) + 1], loaded[-1]]


def restrict_classes(sample: Any, class_ids: Sequence[int]) -> None:
    """Take the probability of all other classes from a prediction, in place.

    What is left is the softmax of the logits of ``class_ids`` alone; labels keep their numbers.
    Where all of these are so improbable that they are 0, the answer is wrong: all but the true
    class are as probable.
    """
    allowed = torch.zeros_like(sample.pred_score)
    allowed[list(class_ids)] = 1
    score = sample.pred_score * allowed
    total = score.sum()
    if not torch.isfinite(total):
        raise InputError('the model gives probabilities of NaN: correct its weights or precision')
    if total == 0:
        score = allowed
        score[sample.gt_label] = 0
        total = score.sum()
    sample.set_pred_score(score / total).set_pred_label(score.argmax(dim=0, keepdim=True))


class SaveAsJPEG(BaseTransform):
    """What is left of an image (BGR) that is saved as a JPEG and read again."""

    def __init__(self, quality: int = 85) -> None:
        self.quality = quality

    def transform(self, results: dict) -> dict:
        file = io.BytesIO()
        pixels = np.ascontiguousarray(results['img'][..., ::-1]).astype(np.uint8)
        Image.fromarray(pixels).save(file, 'JPEG', quality=self.quality)
        results['img'] = np.array(Image.open(file))[..., ::-1].astype(results['img'].dtype)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}(quality={self.quality})'


class _ProgressHook(Hook):
    """Says now and then how far a setting is."""

    setting = Setting()

    def before_test_epoch(self, runner: Runner) -> None:
        self._said = time.monotonic()

    def after_test_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if is_main_process() and time.monotonic() > self._said + _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            batches = len(runner.test_loop.dataloader)
            print(f'    {self.setting.name}: batch {batch_idx + 1} of {batches}', flush=True)


def _num_classes(model: nn.Module) -> int | None:
    """Number of classes that a model tells apart, where it says so."""
    head = getattr(model, 'decode_head' if is_segmentor(model) else 'head', None)
    if isinstance(head, nn.ModuleList):  # a cascade, whose last head decides
        head = head[-1]
    inner = getattr(model, 'model', None)  # of timm or Hugging Face, in mmpretrain's wrapper
    return getattr(head, 'num_classes', None) or getattr(inner, 'num_classes', None)


def _number(metric: Any) -> float | None:
    """A metric, if it is one number: not a confusion matrix, nor a number for each class."""
    try:
        return float(metric)
    except (TypeError, ValueError, RuntimeError):  # of other objects, text, tensors
        return None


def leaves(dataset: Any) -> list[Any]:
    """The data sets with a pipeline below the wrappers of one."""
    inner = [getattr(dataset, 'dataset', None), *(getattr(dataset, 'datasets', None) or ())]
    found = [leaf for each in inner if each is not None for leaf in leaves(each)]
    if not found and not hasattr(dataset, 'pipeline'):
        raise InputError(
            f'the data set {type(dataset).__name__} of test_dataloader has no pipeline of '
            'transforms, so nothing can corrupt its images; take one of mmengine.BaseDataset'
        )
    return found or [dataset]


def _without(value: Any, *names: str, root: str | None = None) -> Any:
    """``value`` without the entries of these names, and paths without the root, at any depth."""
    if isinstance(value, dict):
        return {k: _without(v, *names, root=root) for k, v in value.items() if k not in names}
    if isinstance(value, (list, tuple)):
        return [_without(each, *names, root=root) for each in value]
    if isinstance(value, (bool, int, float, type(None))):
        return value
    return str(value).removeprefix(str(root)) if root else str(value)


def _digest(model: nn.Module) -> str:
    """Of the names and values of all weights."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        digest.update(f'{name} {tuple(value.shape)} {value.dtype}'.encode())
        digest.update(content.tobytes())
    return digest.hexdigest()[:16]


def _duration(seconds: float) -> str:
    hours, minutes = divmod(round(seconds / 60), 60)
    if hours:
        return f'{hours} h {minutes} min'
    return f'{minutes} min' if minutes else f'{seconds:.0f} s'
