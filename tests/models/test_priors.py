"""``data_samples[i].prior`` reaches the backbone, in every way a framework calls it."""

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import PixelData

from mmvars.errors import InputError
from mmvars.models.arguments import stack_priors

pytest.importorskip('mmseg.models', exc_type=ImportError)
pytest.importorskip('mmpretrain.models', exc_type=ImportError)

from mmpretrain.structures import DataSample  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

WIDTH, SIZE = 24, (48, 64)
ARCH = dict(embed_dims=WIDTH, num_layers=2, num_heads=3)
PROTOTYPES = dict(type='class_prototype', num_classes=5)
SLIDE = dict(mode='slide', crop_size=(32, 48), stride=(16, 16))
TEST_CFGS = [
    dict(mode='whole'),
    dict(mode='whole', keep_logits=False),
    SLIDE,
    SLIDE | dict(window_batch=3),
    SLIDE | dict(window_batch=3, logits_dtype='float32'),
]


def backbone_cfg(prior='learned_query', type='mmvars.AbSViT', **options):
    arguments = {} if type != 'mmvars.AbSViT' else dict(prior=prior, alpha=10.0)
    return dict(type=type, arch=ARCH, img_size=64, **arguments, **options)


def segmentor(test_cfg=None, **options):
    torch.manual_seed(1)
    model = MODELS.build(
        dict(
            type='mmvars.EncoderDecoder',
            backbone=backbone_cfg(out_indices=(0, 1), **options),
            test_cfg=test_cfg,
            data_preprocessor=dict(type='mmseg.SegDataPreProcessor'),
            decode_head=dict(
                type='mmseg.FCNHead',
                channels=8,
                num_classes=5,
                num_convs=1,
                dropout_ratio=0.0,
                norm_cfg=dict(type='GN', num_groups=2),
            ),
        )
    )
    return scaled(model)


def classifier(**options):
    torch.manual_seed(1)
    return scaled(
        MODELS.build(
            dict(
                type='mmvars.ImageClassifier',
                backbone=backbone_cfg(out_type='pooled', **options),
                head=dict(type='mmpretrain.LinearClsHead', num_classes=5),
            )
        )
    )


def scaled(model):
    """Weights large enough for a prior to make a difference that rounding does not."""
    for parameter in model.backbone.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(8)
    if hasattr(getattr(model.backbone.network, 'prior', None), 'prototypes'):
        model.backbone.network.prior.prototypes.normal_()
    return model.eval()


def set_prior(sample, prior, way):
    if way == 'metainfo':
        sample.set_metainfo(dict(prior=prior))
    else:
        sample.prior = prior
    return sample


def seg_samples(priors, way='metainfo'):
    samples = []
    for prior in priors:
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 5, (1, *SIZE))))
        sample.set_metainfo(dict(ori_shape=SIZE, img_shape=SIZE, img_path='x'))
        samples.append(sample if prior is None else set_prior(sample, prior, way))
    return samples


def cls_samples(priors, way='metainfo'):
    samples = [DataSample().set_gt_label(1) for _ in priors]
    return [
        sample if prior is None else set_prior(sample, prior, way)
        for sample, prior in zip(samples, priors, strict=True)
    ]


def vectors():
    generator = torch.Generator().manual_seed(3)
    return list(torch.randn(2, WIDTH, generator=generator))


both_ways = pytest.mark.parametrize('way', ['metainfo', 'field'])
all_kinds = pytest.mark.parametrize(
    'options, priors, way',
    [
        (dict(), vectors, 'metainfo'),
        (dict(prior='given'), vectors, 'field'),
        (dict(prior=PROTOTYPES), lambda: [2, 4], 'metainfo'),
        (dict(prior=PROTOTYPES), lambda: [torch.tensor(2), torch.tensor([4])], 'field'),
    ],
)


def as_tensor(priors):
    return torch.stack([torch.as_tensor(prior).reshape(-1).squeeze() for prior in priors])


def another(options):
    return [1, 0] if options.get('prior') == PROTOTYPES else [torch.ones(WIDTH), torch.ones(WIDTH)]


@all_kinds
def test_the_loss_of_a_segmentor(options, priors, way):
    model, images = segmentor(**options).train(), torch.randn(2, 3, *SIZE)
    samples = seg_samples(priors(), way)
    losses = model.loss(images, samples)
    direct = model.decode_head.loss(model.backbone(images, as_tensor(priors())), samples, None)
    torch.testing.assert_close(losses['decode.loss_ce'], direct['loss_ce'])
    for sample, prior in zip(samples, another(options), strict=True):
        set_prior(sample, prior, way)
    other = model.loss(images, samples)
    assert not torch.isclose(losses['decode.loss_ce'], other['decode.loss_ce'])


@all_kinds
@pytest.mark.parametrize('test_cfg', TEST_CFGS, ids=str)
@torch.no_grad()
def test_the_predictions_of_a_segmentor(test_cfg, options, priors, way):
    """As of one that has each prior as its own, image by image."""
    model, images = segmentor(test_cfg, **options), torch.randn(2, 3, *SIZE)
    results = model.predict(images, seg_samples(priors(), way))
    others = model.predict(images, seg_samples(another(options), way))
    forward = model.backbone.forward
    for index, prior in enumerate(priors()):
        prior = torch.as_tensor(prior).reshape(-1).squeeze()
        model.backbone.forward = lambda x, _, prior=prior: forward(x, prior)
        (direct,) = model.predict(images[index : index + 1], seg_samples([None]))
        assert (results[index].pred_sem_seg.data == direct.pred_sem_seg.data).float().mean() > 0.99
        if 'seg_logits' in direct:
            torch.testing.assert_close(results[index].seg_logits.data, direct.seg_logits.data)
            assert not torch.allclose(
                results[index].seg_logits.data, others[index].seg_logits.data, atol=0.01
            )


def test_the_plain_forward_of_a_segmentor():
    model, images = segmentor(), torch.randn(2, 3, *SIZE)
    direct = model.decode_head(model.backbone(images, torch.stack(vectors())))
    assert torch.equal(model(images, seg_samples(vectors()), mode='tensor'), direct)
    assert not torch.allclose(model(images, mode='tensor'), direct)


@both_ways
@torch.no_grad()
def test_augmented_tests_of_a_segmentor(way):
    model, images = segmentor(SLIDE | dict(window_batch=2)), torch.rand(2, 3, *SIZE)
    tta = MODELS.build(dict(type='mmvars.SegTTAModel', module=model))
    data = dict(
        inputs=[list(images), list(images.flip(-1))],
        data_samples=[seg_samples(vectors(), way), seg_samples(vectors(), way)],
    )
    for sample in data['data_samples'][1]:
        sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    results = tta.test_step(data)
    model.backbone.forward = lambda x, prior, call=model.backbone.forward: call(
        x, torch.stack(vectors()).repeat(len(x) // 2, 1)
    )
    data['data_samples'] = [seg_samples([None, None]) for _ in range(2)]
    for sample in data['data_samples'][1]:
        sample.set_metainfo(dict(flip=True, flip_direction='horizontal'))
    for result, direct in zip(results, tta.test_step(data), strict=True):
        assert torch.equal(result.pred_sem_seg.data, direct.pred_sem_seg.data)


@all_kinds
def test_a_classifier(options, priors, way):
    model, images = classifier(**options), torch.randn(2, 3, 64, 64)
    feats = model.backbone(images, as_tensor(priors()))
    direct = model.head.predict(feats, None)
    results = model.predict(images, cls_samples(priors(), way))
    others = model.predict(images, cls_samples(another(options), way))
    for result, expected, other in zip(results, direct, others, strict=True):
        torch.testing.assert_close(result.pred_score, expected.pred_score)
        assert not torch.allclose(result.pred_score, other.pred_score, atol=1e-3)
    logits = model(images, cls_samples(priors(), way), mode='tensor')
    torch.testing.assert_close(logits, model.head(feats))
    others = model(images, cls_samples(another(options), way), mode='tensor')
    assert not torch.allclose(logits, others, atol=1e-3)
    model.train()
    samples = cls_samples(priors(), way)
    loss = model.loss(images, samples)['loss_top_down']
    direct = model.head.loss(model.backbone(images, as_tensor(priors())), samples)['loss'] / 2
    torch.testing.assert_close(loss, direct)


@torch.no_grad()
def test_augmented_tests_of_a_classifier():
    model, images = classifier(prior='given'), torch.rand(2, 3, 64, 64)
    tta = MODELS.build(dict(type='mmpretrain.AverageClsScoreTTA', module=model))
    priors = torch.stack(vectors())
    results = tta.test_step(
        dict(
            inputs=[list(images), list(images.flip(-1))],
            data_samples=[cls_samples(vectors()), cls_samples(vectors())],
        )
    )
    scores = (
        sum(model.head(model.backbone(x, priors)).softmax(-1) for x in (images, images.flip(-1)))
        / 2
    )
    for result, score in zip(results, scores, strict=True):
        torch.testing.assert_close(result.pred_score, score)


def test_without_a_prior_it_is_the_models_own():
    model, images = segmentor(), torch.randn(2, 3, *SIZE)
    own = model.decode_head(model.backbone(images))
    assert torch.equal(model(images, seg_samples([None, None]), mode='tensor'), own)
    query = model.backbone.network.prior.query.detach()
    torch.testing.assert_close(model(images, seg_samples([query, query]), mode='tensor'), own)


@pytest.mark.parametrize(
    'options, priors, message',
    [
        (
            dict(),
            [torch.ones(WIDTH), None],
            r'data_samples\[1\].prior is missing, but other images',
        ),
        (
            dict(),
            [torch.ones(WIDTH), 3],
            r'data_samples\[0\].prior is a vector of width 24 and '
            r'data_samples\[1\].prior a class id',
        ),
        (
            dict(),
            [torch.ones(WIDTH), torch.ones(7)],
            r'data_samples\[1\].prior a vector of width 7',
        ),
        (
            dict(),
            [torch.ones(7), torch.ones(7)],
            r'prior must have shape \(24,\) or \(2, 24\), got '
            r'\(2, 7\)',
        ),
        (dict(), [torch.ones(2, WIDTH)] * 2, r'data_samples\[0\].prior must be a vector'),
        (dict(), ['dog', 'cat'], r"data_samples\[0\].prior must be a vector .*; got 'dog'"),
        (dict(), [True, True], r'data_samples\[0\].prior must be a vector'),
        (dict(), [torch.full((WIDTH,), torch.nan)] * 2, r'prior must be a vector of finite'),
        (dict(), [1.5, 2.5], r'data_samples\[0\].prior must be a vector'),
        (dict(), [3, 3], 'LearnedQuery knows no classes'),
        (dict(prior=PROTOTYPES), [3, 5], r'prior names class \[3, 5\]; the classes are 0 to 4'),
        (dict(prior='given'), [None, None], r'has no prior of its own; .*data_samples\[i\].prior'),
        (
            dict(type='mmvars.ViT'),
            [torch.ones(WIDTH)] * 2,
            'mmvars.ViT has no top-down attention and takes no prior',
        ),
        (dict(design='feedback'), [torch.ones(WIDTH)] * 2, 'feeds back without a prior'),
    ],
)
def test_what_cannot_be_a_prior_is_refused(options, priors, message):
    images = torch.randn(2, 3, *SIZE)
    model = segmentor(**options)
    for call in (model.loss, model.predict):
        with pytest.raises(InputError, match=message):
            call(images, seg_samples(priors))
    model = classifier(**options)
    for call in (model.loss, model.predict):
        with pytest.raises(InputError, match=message):
            call(torch.randn(2, 3, 64, 64), cls_samples(priors))


def test_kinds_of_priors():
    images = torch.zeros(2, 3, 8, 8)
    assert stack_priors([{}, dict(prior=None)], images) is None
    assert stack_priors([], images) is None and stack_priors(None, images) is None
    ids = stack_priors([dict(prior=3), dict(prior=torch.tensor(1))], images)
    assert ids.tolist() == [3, 1] and not ids.is_floating_point()
    array = torch.arange(4.0).double().numpy()
    vectors = stack_priors([dict(prior=array), dict(prior=[0.0, 1.0, 2.0, 3.0])], images)
    assert vectors.tolist() == [array.tolist()] * 2


def test_a_transform_sets_it():
    """With the stock transforms that pack a sample: ``meta_keys``."""
    from mmpretrain.datasets import PackInputs
    from mmseg.datasets import PackSegInputs

    model = segmentor(prior='given')
    results = dict(
        img=torch.rand(*SIZE, 3).numpy(),
        prior=torch.ones(WIDTH).numpy(),
        img_path='x',
        ori_shape=SIZE,
        img_shape=SIZE,
    )
    keys = ('img_path', 'ori_shape', 'img_shape', 'prior')
    packed = PackSegInputs(meta_keys=keys)(dict(results))
    batch = dict(inputs=[packed['inputs']] * 2, data_samples=[packed['data_samples']] * 2)
    assert len(model.test_step(batch)) == 2
    packed = PackInputs(meta_keys=keys)(dict(results))
    batch = dict(inputs=[packed['inputs']] * 2, data_samples=[packed['data_samples']] * 2)
    assert len(classifier(prior='given').test_step(batch)) == 2
