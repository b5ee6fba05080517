"""The prior loss (Eq. 2.15), as printed and as CLIP has it, over one process and over two."""

import math
import os
import socket
import subprocess
import sys

import pytest
import torch
from mmengine.registry import MODELS

from mmvars.errors import InputError
from mmvars.models.prior_loss import prior_loss

OUTPUTS = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
PRIORS = torch.tensor([[1.0, 1.0], [0.0, 1.0], [-1.0, 2.0]])


def by_hand(logits, allowed):
    """Mean of ``-log(exp(l_ii) / sum_k exp(l_ik))``, k over ``allowed[i]``, with plain floats."""
    return sum(
        math.log(sum(math.exp(logits[i][k]) for k in kept)) - logits[i][i]
        for i, kept in enumerate(allowed)
    ) / len(logits)


ALL = [{0, 1, 2}] * 3


def test_the_thesis_form_is_equation_2_15():
    logits = [[1, 2, 2], [0, 2, 1], [-1, 4, 1]]  # of each prior with all outputs
    expected = by_hand(logits, ALL)
    assert prior_loss(OUTPUTS, PRIORS, form='thesis').item() == pytest.approx(expected, rel=1e-6)


def test_the_clip_form_has_both_directions_of_cosines():
    half, fifth = 2**-0.5, 5**-0.5
    cosines = [[half, half, 1], [0, 1, half], [-fifth, 2 * fifth, half * fifth]]
    logits = [[value / 0.5 for value in row] for row in cosines]
    columns = [list(column) for column in zip(*logits, strict=True)]
    expected = (by_hand(logits, ALL) + by_hand(columns, ALL)) / 2
    actual = prior_loss(OUTPUTS, PRIORS, temperature=0.5).item()
    assert actual == pytest.approx(expected, rel=1e-6)
    one_direction = by_hand(logits, ALL)
    assert abs(actual - one_direction) > 1e-2


def test_images_of_one_label_are_no_negatives_of_each_other():
    labels = torch.tensor([4, 7, 4])
    logits = [[1, 2, 2], [0, 2, 1], [-1, 4, 1]]
    expected = by_hand(logits, [{0, 1}, {0, 1, 2}, {1, 2}])
    actual = prior_loss(OUTPUTS, PRIORS, labels, 'thesis').item()
    assert actual == pytest.approx(expected, rel=1e-6)
    assert prior_loss(OUTPUTS, PRIORS, torch.zeros(3)) == 0


def test_it_is_finite_in_half_precision_and_trains_both():
    outputs = (100 * OUTPUTS).half().requires_grad_()
    priors = (100 * PRIORS).half().requires_grad_()
    for form in ('thesis', 'clip'):
        loss = prior_loss(outputs, priors, form=form)
        loss.backward()
        assert loss.isfinite() and loss.dtype == torch.float32
        assert outputs.grad.isfinite().all() and priors.grad.isfinite().all()
        assert outputs.grad.any() and priors.grad.any()


def test_mistakes_are_named():
    with pytest.raises(InputError, match='form of the prior loss must be one of clip, thesis'):
        prior_loss(OUTPUTS, PRIORS, form='CLIP')
    with pytest.raises(InputError, match=r'of one shape, got \(3, 2\) and \(2, 2\)'):
        prior_loss(OUTPUTS, PRIORS[:2])


def classifier(prior, weight=0.5, **options):
    pytest.importorskip('mmpretrain.models', exc_type=ImportError)
    torch.manual_seed(1)
    backbone = dict(
        type='mmvars.AbSViT',
        arch=dict(embed_dims=16, num_layers=2, num_heads=2),
        img_size=32,
        prior=prior,
    )
    return MODELS.build(
        dict(
            type='mmvars.ImageClassifier',
            backbone=dict(backbone, out_type='pooled') | options,
            head=dict(type='mmpretrain.LinearClsHead', num_classes=4),
            prior_loss_weight=weight,
        )
    )


def samples(labels, priors=()):
    from mmpretrain.structures import DataSample

    made = [DataSample().set_gt_label(label) for label in labels]
    for sample, prior in zip(made, priors, strict=False):
        sample.set_field(prior, 'prior')
    return made


@pytest.mark.parametrize('kind', ['class', 'text'])
def test_a_classifier_aligns_its_feature_with_the_prior(kind):
    images, labels = torch.randn(3, 3, 32, 32), [2, 0, 2]
    prior = dict(type='learned_classes', num_classes=4)
    asked = torch.randn(3, 12) if kind == 'text' else None
    model = classifier(dict(type='text', text_dim=12) if kind == 'text' else prior)
    losses = model.loss(images, samples(labels, () if asked is None else asked))
    (features,) = model.backbone(images, asked)
    table = model.backbone.network.prior
    priors = table.prototypes[labels] if kind == 'class' else table(asked, 3)
    expected = 0.5 * prior_loss(features, priors, torch.tensor(labels))
    torch.testing.assert_close(losses['loss_prior'], expected)
    losses['loss_prior'].backward()
    assert all(parameter.grad.any() for parameter in table.parameters())


@pytest.mark.parametrize(
    ('prior', 'options', 'message'),
    [
        ('learned_query', dict(design='feedback'), 'this backbone has no prior'),
        ('class_prototype', dict(out_type='featmap'), "out_type='pooled', got out_type='featmap'"),
    ],
)
def test_a_classifier_without_a_prior_is_refused(prior, options, message):
    prior = dict(type=prior, num_classes=4) if prior == 'class_prototype' else prior
    with pytest.raises(InputError, match=message):
        classifier(prior, **options)


def test_a_prior_loss_without_priors_is_refused():
    model = classifier(dict(type='text', text_dim=12))
    with pytest.raises(InputError, match='data_samples.i..prior is missing'):
        model.loss(torch.randn(2, 3, 32, 32), samples([0, 1]))


@pytest.mark.parametrize(('weight', 'priors'), [(0.5, ()), (0.0, (1, 0))])
def test_class_priors_that_nobody_has_loaded_are_refused(weight, priors):
    """Asked by the labels of the prior loss, or by class ids of the data samples."""
    model = classifier(dict(type='text', text_dim=12, num_classes=4), weight)
    images = torch.randn(2, 3, 32, 32)
    with pytest.raises(InputError, match='are all zero, which asks for nothing: .* --text FOLDER'):
        model.loss(images, samples([0, 1], priors))
    model.backbone.network.prior.texts.normal_()
    assert all(value.isfinite() for value in model.loss(images, samples([0, 1], priors)).values())


PROCESS = """
import os
import torch
from torch import distributed as dist
from mmvars.models.prior_loss import prior_loss

dist.init_process_group('gloo')
torch.manual_seed(0)
outputs, priors = (torch.randn(6, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
labels = torch.tensor([0, 1, 2, 0, 3, 4])
half = slice(3 * dist.get_rank(), 3 * dist.get_rank() + 3)
for form in ('thesis', 'clip'):
    for detached in (False, True):
        loss = prior_loss(outputs[half], priors[half].detach() if detached else priors[half],
                          labels[half], form)
        grads = torch.autograd.grad(loss, [outputs] + [priors] * (not detached))
        values = [loss.detach(), *grads]
        for value in values:
            dist.all_reduce(value)
            value /= 2
        if dist.get_rank() == 0:
            print(form, detached, float(values[0]), *(float(g.square().sum()) for g in grads),
                  flush=True)
dist.barrier()
os._exit(0)
"""


@pytest.mark.slow
def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    script = tmp_path / 'process.py'
    script.write_text(PROCESS)
    processes = [
        subprocess.Popen(
            [sys.executable, str(script)],
            env=os.environ
            | dict(RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port)),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    lines = processes[0].communicate(timeout=120)[0].splitlines()
    assert processes[1].wait(60) == processes[0].returncode == 0
    torch.manual_seed(0)
    outputs, priors = (torch.randn(6, 4, dtype=torch.double, requires_grad=True) for _ in range(2))
    labels = torch.tensor([0, 1, 2, 0, 3, 4])
    assert len(lines) == 4
    for line in lines:
        form, detached, *numbers = line.split()
        asked = priors.detach() if detached == 'True' else priors
        loss = prior_loss(outputs, asked, labels, form)
        grads = torch.autograd.grad(loss, [outputs] + [priors] * (detached == 'False'))
        expected = [float(loss.detach()), *(float(g.square().sum()) for g in grads)]
        assert [float(number) for number in numbers] == pytest.approx(expected, rel=1e-5)
