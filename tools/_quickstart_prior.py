"""Priors of the quickstart: class prototypes, and what asking for single classes does.

_quickstart_prior.py prototypes CONFIG WEIGHTS DECODERS TARGET
_quickstart_prior.py ask CONFIG HEAD_CHECKPOINT CHECKPOINT TARGET
"""

import sys
from collections.abc import Iterator

import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.registry import DATASETS, init_default_scope
from torch import Tensor
from torch.nn import functional as F

from mmvars.checkpoints import load_pretrained
from mmvars.checkpoints.load import load_heads
from mmvars.checkpoints.partial import write_partial
from mmvars.data import PHOTO_CLASSES
from mmvars.registry import MODELS
from mmvars.write import write_text

RIDGE = 0.1  # of the mean eigenvalue of the tokens' second moments
LEAST_SHARE = 0.01  # of an image's pixels; smaller parts of a class are not asked for


def prototypes(config: str, weights: str, decoders: str, target: str) -> None:
    """Write pre-tuned decoders again, with the prototypes of the classes as priors beside them.

    The prototypes are the rows of a ridge regression from the output tokens of the first pass over
    the training images, less ``prior.center``, to the classes. Their cosines are smaller than those
    of class means, hence the config's ``alpha``. They were chosen on the validation images, where
    their token mask is 13 times stronger on its own class than on others (class means: 4 times);
    with each training image left out in turn, the two are alike (5 times). The row of 'other' stays
    zero: no token is like it.
    """
    cfg = Config.fromfile(config)
    cfg.model.backbone.update(
        pretrained=weights, init_cfg=dict(type='Pretrained', checkpoint=decoders)
    )
    model = build(cfg)
    model.init_weights()
    network = model.backbone.network
    prior = network.prior
    sums = torch.zeros_like(prior.prototypes)
    gram = sums.new_zeros(sums.shape[1], sums.shape[1])
    for batch in batches(cfg, cfg.train_dataloader.dataset.data_prefix):
        data = model.data_preprocessor(batch)
        labels = data['data_samples'][0].gt_sem_seg.data
        with torch.no_grad():
            output = network.forward_first_pass(data['inputs']).output
        tokens = output.grid.patch_tokens(output.tokens)[0] - prior.center
        classes = F.interpolate(labels[None].float(), output.grid[:2]).long().flatten()
        gram += tokens.T @ tokens
        sums.index_add_(0, classes, tokens)
    ridge = RIDGE * gram.trace() / len(gram) * torch.eye(len(gram))
    prior.prototypes.copy_(torch.linalg.solve(gram + ridge, sums.T).T)
    prior.prototypes[0] = 0
    tensors = network.state_dict()
    parts = {name: tensors[name] for name in tensors if not name.startswith('trunk.')}
    write_partial(target, network, parts)


def ask(config: str, head_checkpoint: str, checkpoint: str, target: str) -> None:
    """Ask for every class of every validation image, and write what comes of it.

    One network, image and head: only the prior changes. Beside it stands the head alone, which was
    trained before anything was asked.
    """
    cfg = Config.fromfile(config)
    alone, model = loaded(cfg, head_checkpoint), loaded(cfg, checkpoint)
    classes = len(PHOTO_CLASSES)
    scores = torch.zeros(4, 2, classes)  # the table's columns; IoU's two parts
    num_questions = 0
    for batch in batches(cfg, cfg.test_dataloader.dataset.data_prefix):
        (sample,) = batch['data_samples']
        labels = sample.gt_sem_seg.data[0]
        shares = torch.bincount(labels.flatten(), minlength=classes) / labels.numel()

        def answer(prior: int, model=model, sample=sample, batch=batch) -> Tensor:
            sample.set_metainfo(dict(prior=prior))
            return predict(model, batch)

        absent = [index for index in range(1, classes) if shares[index] == 0]
        before, unasked = answer(0, alone), answer(0)
        misled = answer(absent[num_questions % len(absent)])
        for index in range(1, classes):
            if shares[index] >= LEAST_SHARE:
                num_questions += 1
                for row, prediction in enumerate((before, unasked, answer(index), misled)):
                    here, there = labels == index, prediction == index
                    scores[row, :, index] += torch.stack(
                        [(here & there).sum(), (here | there).sum()]
                    )
    iou = 100 * scores[:, 0, 1:] / scores[:, 1, 1:]
    rows = [*zip(PHOTO_CLASSES[1:], iou.T, strict=True), ('mean', iou.mean(dim=1))]
    text = '\n'.join(
        [
            f'IoU in {num_questions} questions for a class of the image:',
            f'{"":<10} {"head alone":>10} {"no prior":>10} {"its prior":>10} {"absent class":>13}',
            *(
                f'{name:<10} {row[0]:>10.1f} {row[1]:>10.1f} {row[2]:>10.1f} {row[3]:>13.1f}'
                for name, row in rows
            ),
            'One run, one seed; the kind of prior was chosen on these images. Asking helps where',
            'the column of its prior is above all others.',
            '',
        ]
    )
    write_text(target, text)


def build(cfg: Config) -> torch.nn.Module:
    """The config's model in eval mode, its weights not loaded yet."""
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


def loaded(cfg: Config, checkpoint: str) -> torch.nn.Module:
    """The config's model with the weights of a checkpoint."""
    model = build(cfg)
    load_pretrained(model.backbone, checkpoint)
    load_heads(model, checkpoint)
    return model


def batches(cfg: Config, data_prefix: dict) -> Iterator[dict]:
    """The whole images below a folder, one at a time, as in the test."""
    dataset = DATASETS.build(cfg.test_dataloader.dataset | dict(data_prefix=data_prefix))
    return (pseudo_collate([sample]) for sample in dataset)


@torch.no_grad()
def predict(model: torch.nn.Module, batch: dict) -> Tensor:
    """Classes ``(H, W)`` of the one image of a batch."""
    return model.test_step(batch)[0].pred_sem_seg.data[0].cpu()


if __name__ == '__main__':
    {'prototypes': prototypes, 'ask': ask}[sys.argv[1]](*sys.argv[2:])
