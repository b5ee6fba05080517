"""``mmvars prototypes``: what tells the tokens of each class from all others, as priors."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS
from mmengine.utils import ProgressBar
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import ConcatDataset, DataLoader, Subset

from mmvars.checkpoints import read_checkpoint, write_partial
from mmvars.checkpoints.io import read_meta
from mmvars.checkpoints.partial import check_trunk, recorded_trunk
from mmvars.datasets.checks import check_data_roots, dataset_entries
from mmvars.engine.cpu import pick_device
from mmvars.engine.errors import building, user_errors
from mmvars.engine.options import parse_cfg_options
from mmvars.errors import InputError, check_number, first_of
from mmvars.networks import PHRASINGS, LearnedText, TopDown
from mmvars.parsers.prototypes import parse_args
from mmvars.predictor import run_files
from mmvars.text import TextEncoder, TextPriors, embed, load_text_encoder
from mmvars.visualization.model import (
    ClassTable,
    Model,
    Network,
    Sample,
    build_model,
    image_pipeline,
    init_backbone,
    is_segmentor,
    network_of,
    num_classes_of,
    read_config,
)
from mmvars.write import check_destination

__all__ = ['ClassSums', 'main', 'patch_classes', 'read_prototypes']

RIDGE = 1.0
"""Of :meth:`ClassSums.whitening`, as a share of the mean second moment of the tokens."""

_REMEDY = 'make it with `mmvars prototypes CONFIG CHECKPOINT -o FILE`'


def main(argv: Sequence[str] | None = None) -> int:
    """Make prototypes as the command line says; returns the exit status 0.

    Raises:
        InputError: On arguments, a config or files that cannot be used.
    """
    args = parse_args(argv)
    check_number('--num-workers', args.num_workers, 0, whole=True)
    if args.max_images is not None:
        check_number('--max-images', args.max_images, 1, whole=True)
    config, checkpoint = run_files(args.config, args.checkpoint)
    output = check_destination(args.output, checkpoint, args.overwrite)
    cfg = read_config(config, parse_cfg_options(args.cfg_options))
    device = pick_device(args.device)
    encoder = None if args.text is None else load_text_encoder(args.text)
    with user_errors():
        data = _training_data(cfg)
        checkpoint = checkpoint or cfg.get('load_from')
        made = () if encoder is None else ('prior.projection', 'prior.texts')
        model = _load_model(cfg, checkpoint, device, made)
    network = network_of(model)
    if getattr(network, 'prior', None) is None:
        raise InputError(
            'the network of this config compares no tokens with a prior, so that prototypes are of '
            "no use to it: they are for mmvars.AbSViT with any design but 'feedback'"
        )
    classes = ClassTable.of(num_classes_of(model), data.datasets[0].metainfo)
    _check_text(network, encoder, classes)
    sums = ClassSums(len(classes.names), network.prior.embed_dim)
    count = min(args.max_images or len(data), len(data))
    chosen = torch.linspace(0, len(data) - 1, count).round().long().tolist()
    bar = ProgressBar(count)
    # Without a batch size samples stay as they are: images have sizes of their own.
    for packed in DataLoader(
        Subset(data, chosen), None, num_workers=args.num_workers, collate_fn=_unchanged
    ):
        _add_image(sums, model, Sample(packed['inputs'], packed['data_samples']), device)
        bar.update()
    print()
    center = network.prior.center
    if center is not None and not center.any():  # not pre-tuned
        if checkpoint is None:
            print('prior.center, which was zero, becomes the mean token of these images')
            center.copy_(sums.total / sums.total_count)
        else:  # what trained compares its tokens so
            print(f'prior.center of {checkpoint}, made without `mmvars pretune`, stays zero')
    whitening = sums.whitening(center)
    table = sums.prototypes(center, whitening)
    tensors = {'prior.prototypes': table}
    if encoder is not None:
        sampler = getattr(model, 'prior_sampler', None)
        tensors = _text_map(encoder, classes.names, table, sampler.held_out if sampler else [])
    if center is not None:
        tensors |= {'prior.center': center, 'prior.whitening': whitening}
    meta = dict(classes=json.dumps(classes.names), prototypes_of=f'{count} images')
    others = {
        name: value
        for name, value in network.state_dict().items()
        if not name.startswith(('trunk.', 'prior.'))
    }
    write_partial(output, network, others | tensors, meta, args.overwrite)
    absent = [name for name, n in zip(classes.names, sums.counts, strict=True) if not n]
    if absent:
        print(
            f'warning: no patch of these images is of {first_of(absent)}: the prototypes of these '
            'classes are zero'
        )
    print(f'{output}: prototypes of {len(classes.names) - len(absent)} classes from {count} images')
    return 0


def _check_text(network: Network, encoder: TextEncoder | None, classes: ClassTable) -> None:
    """Refuse a text encoder where it is of no use, and its lack or width where it is needed."""
    prior = network.prior
    if not isinstance(prior, LearnedText):
        if encoder is not None:
            options = dict(type='text', text_dim=_width(encoder), num_classes=len(classes.names))
            typed = ' '.join(
                f'+model.backbone.prior.{key}={value}' for key, value in options.items()
            )
            raise InputError(
                '--text is for a network whose prior is a map from text: set --cfg-options '
                f'{typed} (in a config whose prior is a name, write them there as a dict), or '
                'leave --text out'
            )
        return
    if encoder is None:
        raise InputError(
            'the prior of this network is a map from text: give --text FOLDER, a sentence encoder'
        )
    width = _width(encoder)
    if width != prior.requested_dim:
        raise InputError(
            f'the text vectors of --text have width {width}, and the prior of the network takes '
            f'{prior.requested_dim}: set --cfg-options model.backbone.prior.text_dim={width}'
        )
    if not classes.named or prior.num_classes != len(classes.names):
        raise InputError(
            f'the text prior of this network has {prior.num_classes} classes, and the data '
            f'{len(classes.names)}{"" if classes.named else " without names"}: set --cfg-options '
            f'model.backbone.prior.num_classes={len(classes.names)}, and metainfo.classes of the '
            'training data'
        )


def _width(encoder: TextEncoder) -> int:
    return embed(encoder, ['a']).shape[1]


def _text_map(
    encoder: TextEncoder, names: Sequence[str], prototypes: Tensor, held_out: Sequence[int]
) -> dict[str, Tensor]:
    """The table of names, and the map that is fitted to their phrasings and prototypes."""
    phrases = [phrasing.format(name) for name in names for phrasing in PHRASINGS]
    known = prototypes.clone()
    known[[*held_out]] = 0
    fitted = TextPriors(encoder, phrases, known.repeat_interleave(len(PHRASINGS), dim=0))
    texts = embed(encoder, phrases).view(len(names), len(PHRASINGS), -1)
    return {
        'prior.texts': texts.float(),
        'prior.projection.weight': fitted.map.T.float().contiguous(),
        'prior.projection.bias': (fitted.mean_prior - fitted.mean_text @ fitted.map).float(),
    }


def _unchanged(sample: dict) -> dict:
    return sample


def _training_data(cfg: Config) -> ConcatDataset:
    """The training images with their labels, each once, through the test pipeline.

    Raises:
        InputError: If the config has none, or they are missing.
    """
    check_data_roots(cfg, ('train_dataloader',))
    pipeline = image_pipeline(cfg, labels=True)
    loader = cfg.get('train_dataloader') or {}
    entries = dataset_entries(loader.get('dataset'), 'train_dataloader.dataset')
    datasets = []
    for key, entry in entries:
        with building(key):
            datasets.append(DATASETS.build(dict(entry, pipeline=[])))
        datasets[-1].pipeline = pipeline
    if not datasets:
        raise InputError('the config has no train_dataloader with a dataset, so no labeled images')
    return ConcatDataset(datasets)


def _load_model(
    cfg: Config, checkpoint: str | None, device: torch.device, allow_new: Sequence[str]
) -> Model:
    """The model with the weights of a checkpoint, else those that its config names.

    The checkpoint may lack what is ``allow_new``.
    """
    if checkpoint is not None:
        return build_model(cfg, checkpoint, device, heads=False, allow_new=allow_new)[0]
    model = MODELS.build(cfg.model)
    network_of(model)
    if not model.backbone.has_pretrained:
        raise InputError(
            'the config names no weights, and prototypes of random ones are of no use: give a '
            'CHECKPOINT, or set --cfg-options model.backbone.pretrained=FILE for a trunk of timm, '
            'else model.backbone.init_cfg.type=Pretrained model.backbone.init_cfg.checkpoint=FILE'
        )
    init_backbone(model.backbone)
    return model.to(device).eval()


class ClassSums:
    """Sums over the tokens of each of K classes, in float64.

    Attributes:
        tokens: ``(K, C)``.
        counts: ``(K,)`` tokens of each class.
        total: ``(C,)`` of all tokens, those of no class too.
        squares: ``(C, C)`` of the outer products of all tokens with themselves.
        total_count: Number of these.
    """

    def __init__(self, num_classes: int, width: int) -> None:
        self.tokens = torch.zeros(num_classes, width, dtype=torch.float64)
        self.counts = torch.zeros(num_classes, dtype=torch.float64)
        self.total = torch.zeros(width, dtype=torch.float64)
        self.squares = torch.zeros(width, width, dtype=torch.float64)
        self.total_count = 0

    def add(self, tokens: Tensor, classes: Tensor) -> None:
        """Add tokens ``(n, C)`` of ``classes (n,)``; K stands for none."""
        tokens = tokens.cpu().double()
        named = classes < len(self.counts)
        self.tokens.index_add_(0, classes[named], tokens[named])
        self.counts += torch.bincount(classes[named], minlength=len(self.counts))
        self.total += tokens.sum(dim=0)
        self.squares += tokens.T @ tokens
        self.total_count += len(tokens)

    def means(self, center: Tensor | None) -> Tensor:
        """The mean token of each class less the ``center (C,)``, ``(K, C)``; zeros without any."""
        means = self.tokens / self.counts.clamp_min(1)[:, None]
        if center is not None:
            means -= center.cpu().double()
        return torch.where(self.counts[:, None] > 0, means, 0.0).float()

    def whitening(self, center: Tensor | None) -> Tensor:
        """What makes a direction out of a mean token that tells its region from all other tokens.

        The mean token of a class is mostly what all tokens of such pictures share, and so are its
        cosines with the tokens of other classes. Ridge regression of "is of this class", 1 or 0, on
        the tokens less the ``center`` has the weights ``(M + r I)^-1 mean_k``, up to a factor, with
        the second moments ``M`` of these tokens; ``r`` is ``RIDGE`` times their mean.

        Args:
            center: ``(C,)``, or ``None`` for zeros.

        Returns:
            ``r (M + r I)^-1``, ``(C, C)``, symmetric.
        """
        count = max(self.total_count, 1)
        moments = self.squares / count
        if center is not None:
            center, mean = center.cpu().double(), self.total / count
            shared = torch.outer(mean, center)
            moments = moments - shared - shared.T + torch.outer(center, center)
        ridge = RIDGE * moments.diagonal().mean() * torch.eye(len(moments), dtype=torch.float64)
        return torch.linalg.solve(moments + ridge, ridge).float()

    def prototypes(self, center: Tensor | None, whitening: Tensor) -> Tensor:
        """The direction in which each class stands out.

        Args:
            center: ``(C,)``, or ``None`` for zeros.
            whitening: ``(C, C)``, of :meth:`whitening` with this center.

        Returns:
            ``(K, C)`` of length 1; zeros for a class without tokens.
        """
        return F.normalize(self.means(center) @ whitening, dim=1)


def patch_classes(
    labels: Tensor, num_classes: int, padded: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """The class that most pixels of each patch have.

    Args:
        labels: ``(H, W)``; what is no class, such as the ignored label, stands for no class.
        num_classes: K.
        padded: Height and width of the image with its padding, of no class, below and right.
        grid: Patches in height and width.

    Returns:
        ``(h w,)``, K where most pixels have no class.
    """
    sides = (padded[1] - labels.shape[1], padded[0] - labels.shape[0])
    labels = torch.where((labels >= 0) & (labels < num_classes), labels, num_classes)
    labels = F.pad(labels, (0, sides[0], 0, sides[1]), value=num_classes)
    rows, columns = (
        torch.arange(pixels) * patches // pixels
        for pixels, patches in zip(padded, grid, strict=True)
    )
    patches = rows[:, None] * grid[1] + columns
    votes = torch.bincount(
        (patches * (num_classes + 1) + labels).flatten(),
        minlength=grid[0] * grid[1] * (num_classes + 1),
    )
    return votes.view(-1, num_classes + 1).argmax(dim=1)


@torch.no_grad()
def _add_image(sums: ClassSums, model: Model, sample: Sample, device: torch.device) -> None:
    """Add the tokens of one image to those of its classes."""
    network = network_of(model)
    images = sample.preprocessed(model).to(device)
    if isinstance(network, TopDown):
        output = network.forward_first_pass(images).output
    else:
        output = network.trunk(images)
    grid, padded, truth = output.grid[:2], tuple(images.shape[-2:]), sample.truth
    # Patches of padding alone are of no image; it is below and right.
    rows, columns = (
        (pixels - 1) * patches // all_pixels + 1
        for pixels, patches, all_pixels in zip(sample.size, grid, padded, strict=True)
    )
    tokens = output.grid.patch_tokens(output.tokens)[0].unflatten(0, grid)
    tokens = tokens[:rows, :columns].flatten(0, 1)
    if truth is None:
        raise InputError(
            f'the test pipeline of the config loads no labels of {sample.data_sample.img_path}: '
            'add LoadAnnotations to it'
        )
    labels, num_classes = torch.from_numpy(truth), len(sums.counts)
    if is_segmentor(model):
        classes = patch_classes(labels, num_classes, padded, grid).view(grid)
        sums.add(tokens, classes[:rows, :columns].flatten())
    else:
        sums.add(tokens.mean(dim=0).expand(len(labels), -1), labels)


def read_prototypes(path: str | Path, network: Network) -> tuple[tuple[str, ...], Tensor]:
    """What ``mmvars prototypes`` wrote, for the network that it was made with.

    Args:
        path: The file.
        network: A network with a prior, with its weights.

    Returns:
        Names of the K classes, and prototypes ``(K, C)``, differences from ``prior.center`` where
        there is one.

    Raises:
        InputError: If the file is another, or of another trunk or center.
    """
    content = read_checkpoint(path)
    meta, title = read_meta(path, content), f'prototypes {path}'
    tensors = {
        name.removeprefix('backbone.network.'): value
        for name, value in content.get('state_dict', content).items()
    }
    record, table = recorded_trunk(meta, title), tensors.get('prior.prototypes')
    if record is None or table is None or 'classes' not in meta:
        raise InputError(f'{title}: the file holds no prototypes of classes: {_REMEDY}')
    check_trunk(network, record, tensors, title)
    center, recorded = network.prior.center, tensors.get('prior.center')
    if center is not None and (recorded is None or not torch.equal(center.cpu(), recorded)):
        raise InputError(
            f'{title}: prototypes are differences from prior.center, and that of this network is '
            f'another: {_REMEDY}'
        )
    return tuple(json.loads(meta['classes'])), table
