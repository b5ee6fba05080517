"""METER: one text or many an image, losses, scores, and the optimizer's groups."""

import copy
import itertools

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch.nn import functional as F

from mmvars.errors import InputError
from mmvars.models.prior_loss import prior_loss
from mmvars.registry import MODELS

pytest.importorskip('mmpretrain')
pytest.importorskip('transformers')
from mmpretrain.structures import DataSample

TEXTS = ['what color is the circle', 'red square', 'a blue circle and a green square', 'not']
ARCH = dict(embed_dims=32, num_layers=2, num_heads=2, patch_size=8)
TEXT_PRIOR = dict(type='text', text_dim=32)
BACKBONES = {
    'vit': dict(type='mmvars.ViT'),
    'perceiver_io': dict(design='perceiver_io', prior=TEXT_PRIOR),
    'feedback': dict(design='feedback', reconstruction_loss_weight=0.3),
    'mask_attention': dict(design='mask_attention', prior=TEXT_PRIOR),
    'absvit': dict(prior=TEXT_PRIOR, reconstruction_loss_weight=0.3),
    'released': dict(prior=TEXT_PRIOR, modulation='project', alpha=5.0),
}
HEADS = {
    'vqa': dict(type='mmvars.VQAHead', num_answers=3, answers=['red', 'blue', 'green']),
    'retrieval': dict(type='mmvars.RetrievalHead'),
}


@pytest.fixture
def config(text_folder):
    """Config of a tiny METER by backbone and head."""

    def build(backbone='absvit', head='vqa', **options):
        return dict(
            type='mmvars.METER',
            backbone=dict(
                dict(type='mmvars.AbSViT', arch=ARCH, img_size=32, out_type='featmap_cls_token'),
                **BACKBONES[backbone],
            ),
            text_backbone=dict(
                type='mmvars.TextBackbone', name=str(text_folder), max_length=20, text_vector='eos'
            ),
            head=dict(HEADS[head]),
            fusion=dict(hidden_dim=24, num_layers=2, num_heads=3),
            **options,
        )

    return build


@pytest.fixture
def images():
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(cfg):
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    model.init_weights()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and not name.startswith('text_backbone.'):
                parameter.add_(0.2 * torch.randn_like(parameter))  # what starts at 0.02 hides a lot
    return model


def questions(targets=True):
    samples = [DataSample(question=text) for text in TEXTS[:2]]
    if targets:
        samples[0].set_gt_score(torch.tensor([1.0, 0.3, 0.0]))
        samples[1].set_gt_score(torch.tensor([0.0, 0.0, 0.6]))
    return samples


def captions():
    return [DataSample(text=TEXTS[:3]), DataSample(text=[TEXTS[3], TEXTS[1], TEXTS[2]])]


def samples_of(head):
    return questions() if head == 'vqa' else captions()


@pytest.mark.parametrize(
    'backbone, head', [*zip(BACKBONES, itertools.cycle(['retrieval', 'vqa']), strict=False)]
)
def test_all_that_trains_gets_a_gradient(config, images, backbone, head):
    """DDP stops where one does not."""
    model = build(config(backbone, head))
    losses = model(images, samples_of(head), mode='loss')
    expected = {'loss_vqa'} if head == 'vqa' else {'loss_rank', 'loss_matching'}
    if 'reconstruction_loss_weight' in BACKBONES[backbone]:
        expected.add('backbone.loss_reconstruction')
    assert losses.keys() == expected
    sum(losses.values()).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    assert not without
    frozen = {name for name, each in model.named_parameters() if not each.requires_grad}
    assert {'head.matching.weight', 'head.matching.bias'} == {
        name for name in frozen if not name.startswith('backbone.')
    } or head == 'vqa'


@pytest.mark.parametrize('backbone', BACKBONES)
def test_texts_that_share_a_first_pass_count_alone(config, images, backbone):
    """And the image is seen as each of them asks for it, unless the backbone has no prior."""
    model = build(config(backbone, 'retrieval')).eval()
    passes = []
    model.backbone.trunk.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    features = model(images, captions())
    assert len(passes) == 1
    texts = [text for sample in captions() for text in sample.text]
    for row, (text, image) in enumerate(zip(texts, [0, 0, 0, 1, 1, 1], strict=True)):
        alone = model(images[image, None], [DataSample(text=[text])])
        torch.testing.assert_close(features[row, None], alone, rtol=1e-4, atol=1e-5)
    seen = []
    model.fusion.image_projection.register_forward_hook(lambda _, args, __: seen.append(args[0]))
    model(images[:1], [DataSample(text=TEXTS[:2])])
    assert len(seen[0]) == (1 if backbone in ('vit', 'feedback') else 2)
    if len(seen[0]) == 2:
        assert (seen[0][0] - seen[0][1]).abs().max() > 1e-4


def test_all_tokens_of_pass_2_are_fused_class_token_first(config, images):
    model = build(config('absvit')).eval()
    tokens, fused = [], []
    model.backbone.trunk.norm.register_forward_hook(lambda *args: tokens.append(args[-1]))
    model.fusion.image_projection.register_forward_hook(lambda *args: fused.append(args[1][0]))
    model(images, questions(False))
    assert len(tokens) == 2 and torch.equal(fused[0], tokens[1])


@pytest.mark.parametrize('backbone', ['vit', 'perceiver_io', 'absvit'])
def test_scores_are_those_of_every_pair(config, images, backbone):
    model = build(config(backbone, 'retrieval')).eval()
    scores = model.score(images, TEXTS)
    assert scores.shape == (2, 4) and not scores.requires_grad
    for image, text in itertools.product(range(2), range(4)):
        (sample,) = model(images[image, None], [DataSample(text=[TEXTS[text]])], mode='predict')
        torch.testing.assert_close(sample.pred_score, scores[image, text, None])
    for chunk_size in (1, 4, 6):
        chunked = model.score(images, model.text_backbone(TEXTS), chunk_size)
        torch.testing.assert_close(chunked, scores)
    _, sample = model(images, captions(), mode='predict')
    torch.testing.assert_close(sample.pred_score, scores[1, [3, 1, 2]])
    assert sample.pred_label.tolist() == [int(sample.pred_score.argmax())]


def test_the_text_learns_through_what_the_image_becomes(config, images):
    """The gradient of pass 2 by finite differences, along the vector of the text."""
    model = build(config('absvit')).eval()
    text = model.text_backbone(TEXTS[:2])
    vector = text.vector.detach().double().requires_grad_()
    model.double()
    first = model.backbone.forward_first_pass(images.double())

    def total(vector):
        maps, _ = model._second_pass(first, text._replace(vector=vector), 2)[-1]
        return maps.square().sum()

    (gradient,) = torch.autograd.grad(total(vector), vector)
    step = 1e-5 * torch.randn_like(vector)
    difference = (total(vector + step) - total(vector - step)) / 2
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-4, atol=0)
    assert gradient.norm() > 1e-3


def test_the_loss_of_answers(config, images):
    """Binary cross entropy written out, summed over answers, averaged over questions."""
    model = build(config()).eval()
    scores = model.head(model(images, questions(False))).sigmoid()
    targets = torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.0, 0.6]])
    bits = targets * scores.log() + (1 - targets) * (1 - scores).log()
    loss = model(images, questions(), mode='loss')['loss_vqa']
    torch.testing.assert_close(loss, -bits.sum(dim=1).mean())
    for sample, score in zip(model(images, questions(), mode='predict'), scores, strict=True):
        torch.testing.assert_close(sample.pred_score, score)
    for label, answer in enumerate(['red', 'blue', 'green']):
        model.head.layers[3].bias.data = 1000 * F.one_hot(torch.tensor(label), 3).float()
        sample, _ = model(images, questions(False), mode='predict')
        assert sample.pred_answer == answer and sample.pred_label.tolist() == [label]


def test_the_losses_of_retrieval(config, images):
    """The own caption against all; and a classifier that stays as it is, on the first two."""
    model = build(config('absvit', 'retrieval')).eval()
    features = model(images, captions()).view(2, 3, -1)
    losses = model(images, captions(), mode='loss')
    rank = features @ model.head.rank.weight[0] + model.head.rank.bias
    torch.testing.assert_close(losses['loss_rank'], -rank.log_softmax(dim=1)[:, 0].mean())
    logs = model.head.matching(features).log_softmax(dim=-1)
    torch.testing.assert_close(losses['loss_matching'], -(logs[:, 0, 1] + logs[:, 1, 0]).mean() / 2)
    fresh = MODELS.build(dict(HEADS['retrieval'], in_dim=8))
    torch.testing.assert_close(fresh.rank.weight[0], fresh.matching.weight[1])


@pytest.mark.parametrize('head', HEADS)
def test_the_prior_loss_is_of_the_own_texts(config, images, head):
    cfg = config('absvit', head, prior_loss_cfg=dict(weight=0.5, temperature=0.2))
    model = build(cfg).eval()
    seen = []
    model.backbone.network.trunk.norm.register_forward_hook(lambda *args: seen.append(args[-1]))
    samples = samples_of(head)
    loss = model(images, samples, mode='loss')['loss_prior']
    class_tokens = seen[-1][:, 0][:: 1 if head == 'vqa' else 3]  # of pass 2
    own = [TEXTS[0], TEXTS[1 if head == 'vqa' else 3]]
    projection = model.backbone.network.prior.projection
    priors = projection(model.text_backbone(own).vector.detach())
    expected = 0.5 * prior_loss(class_tokens, priors, temperature=0.2)
    torch.testing.assert_close(loss, expected)
    words = model.text_backbone.model.embeddings.word_embeddings.weight  # pass 2 depends on them
    gradients = torch.autograd.grad(loss, [projection.weight, words], retain_graph=True)
    expected = torch.autograd.grad(expected, [projection.weight, words])
    torch.testing.assert_close(gradients, expected)
    assert all(gradient.any() for gradient in gradients)


def test_images_of_equal_texts_are_no_negatives_of_each_other(config, images):
    model = build(config(prior_loss_cfg=dict(weight=0.5))).eval()
    samples = questions()
    assert model(images, samples, mode='loss')['loss_prior'] > 0.01
    samples[1].question = samples[0].question
    assert model(images, samples, mode='loss')['loss_prior'] == 0


@pytest.mark.parametrize('backbone', BACKBONES)
def test_every_parameter_is_in_one_group_with_its_rate(config, backbone):
    model = MODELS.build(config(backbone, 'retrieval'))
    wrapper = build_optim_wrapper(
        model,
        dict(
            constructor='mmvars.METEROptimWrapperConstructor',
            optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01),
            paramwise_cfg=dict(head_lr_mult=5, fusion_lr_mult=10),
        ),
    )
    groups = wrapper.optimizer.param_groups
    names = {id(each): name for name, each in model.named_parameters() if each.requires_grad}
    grouped = [names[id(each)] for group in groups for each in group['params']]
    assert sorted(grouped) == sorted(names.values())
    for group in groups:
        (parameter,) = group['params']
        name = names[id(parameter)]
        factor = 5 if name.startswith('head.') else 10 if name.startswith('fusion.') else 1
        factor *= 3 if '.feedback.' in name or '.prior.' in name else 1
        assert group['lr'] == pytest.approx(1e-3 * factor), name
        assert group['weight_decay'] == (0.01 if parameter.ndim > 1 else 0), name
    rates = {round(group['lr'] / 1e-3) for group in groups}
    assert rates == ({1, 5, 10} if backbone == 'vit' else {1, 3, 5, 10})


def test_what_does_not_fit_is_refused(config, images, tmp_path):
    def refused(match, cfg):
        with pytest.raises(InputError, match=match):
            MODELS.build(cfg)

    def changed(**options):
        cfg = copy.deepcopy(config())
        for key, value in options.items():
            cfg[key] = {**cfg[key], **value} if isinstance(value, dict) else value
        return cfg

    refused(
        r"give mmvars.AbSViT out_type='featmap_cls_token'",
        changed(backbone=dict(out_type='featmap')),
    )
    refused(
        r"is a LearnedQuery: write prior=dict\(type='text', text_dim=32\)",
        changed(backbone=dict(prior='learned_query')),
    )
    refused(
        'text backbone has 32 channels: write text_dim=32',
        changed(backbone=dict(prior=dict(type='text', text_dim=16))),
    )
    refused('in_dim of the head is 7', changed(head=dict(in_dim=7)))
    refused('num_answers is 4, but answers has 3', changed(head=dict(num_answers=4)))
    file = tmp_path / 'answers.txt'
    refused('cannot be read.*one in each line', changed(head=dict(answers=str(file))))
    file.write_text('red\nblue\n')
    refused(f"num_answers is 3, but '{file}' has 2", changed(head=dict(answers=str(file))))
    refused(
        'this one has none: leave it out',
        dict(config('vit'), prior_loss_cfg=dict(weight=0.1)),
    )
    refused(r"not \['scale'\]", dict(config(), prior_loss_cfg=dict(scale=0.1)))
    refused('form of prior_loss_cfg', dict(config(), prior_loss_cfg=dict(form='printed')))
    model = build(config())
    with pytest.raises(InputError, match=r"data sample with 'question' for each of 2 images"):
        model(images, [DataSample(text='red')] * 2)
    with pytest.raises(
        InputError, match=r'gt_score of shape \(3,\) in every data sample, got None'
    ):
        model(images, questions(False), mode='loss')
    samples = questions(False)
    for sample in samples:
        sample.set_gt_score(torch.zeros(4))
    with pytest.raises(InputError, match=r'got \(4,\): set model\.head\.num_answers=4$'):
        model(images, samples, mode='loss')
    with pytest.raises(InputError, match=r'needs head=.*RetrievalHead.*got VQAHead'):
        model.score(images, TEXTS)
    model = build(config(head='retrieval'))
    with pytest.raises(InputError, match='equally many texts, but their .text. have 2 and 3'):
        model(images, [DataSample(text=TEXTS[:3]), DataSample(text=TEXTS[:2])])
    with pytest.raises(InputError, match='two texts of each image at least'):
        model(images, [DataSample(text='red')] * 2, mode='loss')
