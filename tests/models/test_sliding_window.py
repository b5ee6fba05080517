"""Inference of the segmentor against mmseg's own, with the same weights."""

import copy
import weakref

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from mmengine.structures import PixelData

from mmvars.errors import InputError
from mmvars.models.sliding_window import (
    InferenceOptions,
    class_groups,
    running_argmax,
    sliding_windows,
)

pytest.importorskip('mmseg.models', exc_type=ImportError)  # needs mmcv's ops in one stack

from mmseg.models.decode_heads import FCNHead  # noqa: E402
from mmseg.registry import MODELS as MMSEG  # noqa: E402
from mmseg.structures import SegDataSample  # noqa: E402

WHOLE = dict(mode='whole')
SLIDE = dict(mode='slide', crop_size=(48, 64), stride=(31, 40))
BY_CLASS = [
    dict(keep_logits=False),
    dict(logits_dtype='float32'),
    dict(logits_device='cpu', logits_dtype='float16'),
    dict(logits_dtype='bfloat16'),
]
CASES = [
    ((48, 64), 1, False),
    ((32, 40), 3, True),
    ((33, 150), 1, True),
    ((97, 131), 3, False),
    ((130, 64), 2, True),
]
CLOSE = 1e-5  # of the largest logit, in float32


@MMSEG.register_module(force=True)
class OwnPredictHead(FCNHead):
    """A head whose last step is its own, as in mask classification."""

    def predict(self, inputs, batch_img_metas, test_cfg):
        return 2 * super().predict(inputs, batch_img_metas, test_cfg)


def build(
    test_cfg=None,
    type='mmvars.EncoderDecoder',
    classes=7,
    backbone=None,
    head='FCNHead',
    data_preprocessor=None,
    **head_cfg,
):
    backbone = backbone or dict(
        type='mmvars.AbSViT',
        img_size=64,
        out_indices=(0, 1),
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, patch_size=16),
    )
    width = dict(in_channels=24, in_index=1) | head_cfg
    torch.manual_seed(1)
    return MODELS.build(
        dict(
            type=type,
            backbone=backbone,
            test_cfg=test_cfg,
            data_preprocessor=data_preprocessor,
            decode_head=dict(
                type=f'mmseg.{head}',
                channels=8,
                num_classes=classes,
                num_convs=1,
                norm_cfg=dict(type='GN', num_groups=2),
                **width,
            ),
        )
    ).eval()


def stock(test_cfg, **options):
    return build(ConfigDict(test_cfg), 'mmseg.EncoderDecoder', **options)


def samples(size, batch=1, **meta):
    """Data samples as a data loader makes them."""
    made = [
        SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, *size, dtype=torch.long)))
        for _ in range(batch)
    ]
    for sample in made:
        sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size) | meta)
    return made


@torch.no_grad()
def predict(model, images, given):
    return model.predict(images, copy.deepcopy(given))


def same(ours, theirs):
    """All predictions, bit for bit, types and places included."""
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert set(a.keys()) == set(b.keys()) >= {'seg_logits', 'pred_sem_seg'}
        assert a.metainfo == b.metainfo
        for name in ('seg_logits', 'pred_sem_seg'):
            x, y = a.get(name).data, b.get(name).data
            assert x.dtype == y.dtype and torch.equal(x, y), name


def close(ours, theirs, bound, sure=None):
    """Logits within ``bound`` of the largest, and the labels where the two best are apart."""
    for a, b in zip(ours, theirs, strict=True):
        logits, labels = b.seg_logits.data, b.pred_sem_seg.data
        scale = logits.abs().max()
        if 'seg_logits' in a:
            assert (a.seg_logits.data - logits).abs().max() <= bound * scale
        best = logits.topk(2, dim=0).values
        clear = best[0] - best[1] > 2 * (sure or bound) * scale
        assert clear.float().mean() > 0.5
        assert a.pred_sem_seg.data.dtype == labels.dtype
        assert torch.equal(a.pred_sem_seg.data[:, clear], labels[:, clear])


@pytest.mark.parametrize('size, batch, align_corners', CASES)
@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE], ids=['whole', 'slide'])
def test_without_options_predictions_are_those_of_mmseg_bit_for_bit(
    test_cfg, size, batch, align_corners
):
    images = torch.randn(batch, 3, *size)
    ours = build(test_cfg, align_corners=align_corners)
    theirs = stock(test_cfg, align_corners=align_corners)
    for original in (size, (71, 200)):  # as it is, and resized
        given = samples(size, batch, ori_shape=original)
        same(predict(ours, images, given), predict(theirs, images, given))
    same(predict(ours, images, None), predict(theirs, images, None))
    metas = [sample.metainfo for sample in samples(size, batch)]
    with torch.no_grad():
        expected = theirs.inference(images, copy.deepcopy(metas))
        assert torch.equal(ours.inference(images, metas), expected)
    assert metas[0]['img_shape'] == size, 'the caller keeps its meta information'


META = {
    'padded': dict(img_padding_size=[0, 5, 0, 9], pad_shape=(97, 131), ori_shape=(120, 180)),
    'padded by the pipeline': dict(padding_size=[3, 0, 2, 0], ori_shape=(95, 128)),
    'padded and as large': dict(padding_size=[3, 0, 2, 0], ori_shape=(97, 131)),
    'flipped': dict(flip=True, flip_direction='horizontal', ori_shape=(97, 131)),
    'flipped and resized': dict(flip=True, flip_direction='vertical', ori_shape=(50, 60)),
    'smaller': dict(ori_shape=(40, 70)),
}


@pytest.mark.parametrize(
    'classes, kind',
    [
        *((dict(classes=7), kind) for kind in META),
        *((dict(classes=2, out_channels=1), kind) for kind in ('padded', 'flipped and resized')),
        (dict(classes=5, head='OwnPredictHead', align_corners=True), 'flipped and resized'),
    ],
    ids=str,
)
@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE], ids=['whole', 'slide'])
def test_padding_flips_and_one_channel(test_cfg, kind, classes):
    meta = META[kind]
    if classes.get('out_channels') == 1:
        classes = classes | dict(
            threshold=0.5, loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True)
        )
    images, given = torch.randn(2, 3, 97, 131), samples((97, 131), 2, **meta)
    ours, mmseg = build(test_cfg, **classes), stock(test_cfg, **classes)
    theirs = predict(mmseg, images, given)
    same(predict(ours, images, given), theirs)
    same(predict(ours, images[:1], given[:1]), predict(mmseg, images[:1], given[:1]))
    found = predict(build(test_cfg | dict(logits_dtype='float32'), **classes), images, given)
    if classes.get('out_channels') != 1:
        return close(found, theirs, CLOSE)
    for a, b in zip(found, theirs, strict=True):
        torch.testing.assert_close(a.seg_logits.data, b.seg_logits.data)
        clear = (b.seg_logits.data - 0.5).abs() > 1e-5
        assert torch.equal(a.pred_sem_seg.data[clear], b.pred_sem_seg.data[clear])
        assert a.pred_sem_seg.data.dtype == b.pred_sem_seg.data.dtype


@pytest.mark.parametrize('windows', [2, 4, 100])
@pytest.mark.parametrize('batch', [1, 2])
def test_windows_in_one_forward_change_rounding_only(batch, windows):
    images, given = torch.randn(batch, 3, 97, 131), samples((97, 131), batch, ori_shape=(80, 99))
    ours, theirs = build(SLIDE | dict(window_batch=windows)), stock(SLIDE)
    shown = []
    hook = ours.backbone.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    close(predict(ours, images, given), predict(theirs, images, given), CLOSE)
    assert sum(shown) == 9 * batch and max(shown) == min(windows, 9) * batch
    hook.remove()
    images = images.double()
    close(predict(ours.double(), images, given), predict(theirs.double(), images, given), 1e-13)


@pytest.mark.parametrize('head', ['FCNHead', 'OwnPredictHead'])
@pytest.mark.parametrize('options', BY_CLASS, ids=str)
@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE | dict(window_batch=4)], ids=str)
def test_class_by_class_changes_rounding_only(test_cfg, options, head, monkeypatch):
    monkeypatch.setattr('mmvars.models.sliding_window.WORK_BYTES', 2 * 4 * 131 * 180)
    images, given = torch.randn(2, 3, 97, 131), samples((97, 131), 2, ori_shape=(120, 180))
    ours = predict(build(test_cfg | options, head=head), images, given)
    theirs = predict(stock(test_cfg, head=head), images, given)
    rounding = {'float16': 2**-11, 'bfloat16': 2**-8}.get(options.get('logits_dtype'), CLOSE)
    # Sums of windows are rounded once a window, and only a head of its own makes us sum them.
    summed = head == 'OwnPredictHead' and test_cfg['mode'] == 'slide'
    bound = rounding * 6 if summed else rounding
    close(ours, theirs, bound, sure=None if summed else CLOSE)
    for sample in ours:
        assert ('seg_logits' in sample) == options.get('keep_logits', True)
        if 'seg_logits' in sample:
            dtype = getattr(torch, options.get('logits_dtype', 'float32'))
            assert sample.seg_logits.data.dtype == dtype


def test_many_small_windows_are_summed_where_that_is_the_smaller():
    """Rows and columns of the head's logits: 33 windows of 12 x 16 are more than 48 x 96 pixels."""
    backbone = dict(
        type='mmvars.ViT',
        img_size=64,
        out_indices=(0, 1),
        arch=dict(embed_dims=24, num_layers=2, num_heads=3, patch_size=4),
    )
    test_cfg = dict(mode='slide', crop_size=(48, 64), stride=(48, 1))
    images, given = torch.randn(1, 3, 48, 96), samples((48, 96))
    theirs = predict(stock(test_cfg, backbone=backbone), images, given)
    ours = build(test_cfg | dict(logits_dtype='float32'), backbone=backbone)
    assert ours._small_logits(images, [{}], InferenceOptions.from_cfg(ours.test_cfg)) is None
    close(predict(ours, images, given), theirs, CLOSE)


@pytest.mark.parametrize('keep', [False, True])
@pytest.mark.parametrize('test_cfg', [WHOLE, SLIDE], ids=['whole', 'slide'])
def test_no_tensor_holds_all_classes_in_full_size(test_cfg, keep, monkeypatch):
    """By the largest tensor that any operation makes."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **kwargs or {})
            for tensor in made if isinstance(made, (tuple, list)) else [made]:
                if isinstance(tensor, torch.Tensor):
                    self.numel = max(self.numel, tensor.untyped_storage().nbytes() // 4)
            return made

    images, plane = torch.randn(1, 3, 97, 131), 97 * 131
    given = samples((97, 131), ori_shape=(97, 130))
    monkeypatch.setattr('mmvars.models.sliding_window.WORK_BYTES', 2 * 4 * plane)
    options = dict(keep_logits=False) if not keep else dict(logits_dtype='float16')
    with Largest() as mmseg:
        predict(stock(test_cfg, classes=60), images, given)
    with Largest() as ours:
        predict(build(test_cfg | options, classes=60), images, given)
    assert mmseg.numel >= 60 * plane
    assert ours.numel <= (30 if keep else 6) * plane  # images are 3, labels 2, float16 half


@pytest.mark.parametrize(
    'backbone, extra',
    [
        (dict(type='mmvars.ViT'), dict(patch_size=16)),
        (dict(type='mmvars.VARS', mixer='vars_sd'), dict(trunk='deit_convstem')),
    ],
    ids=['ViT', 'VARS'],
)
def test_every_backbone_family(backbone, extra):
    arch = dict(embed_dims=24, num_layers=2, num_heads=3) | extra
    backbone = dict(backbone, img_size=64, out_indices=(0, 1), arch=arch)
    images, given = torch.randn(1, 3, 97, 131), samples((97, 131))
    theirs = predict(stock(SLIDE, backbone=backbone), images, given)
    same(predict(build(SLIDE, backbone=backbone), images, given), theirs)
    less = SLIDE | dict(window_batch=3, keep_logits=False)
    close(predict(build(less, backbone=backbone), images, given), theirs, CLOSE)


@pytest.mark.parametrize('size', [(1, 1), (5, 9), (10, 10), (11, 29), (57, 64)])
@pytest.mark.parametrize('crop, stride', [((10, 7), (10, 7)), ((9, 12), (1, 5)), ((8, 8), (7, 3))])
def test_windows_cover_every_pixel(size, crop, stride):
    seen = torch.zeros(size)
    windows = sliding_windows(size, crop, stride)
    for window in windows:
        assert seen[window].shape == tuple(map(min, size, crop))
        seen[window] += 1
    assert seen.min() >= 1 and len(windows) == len(set(map(str, windows)))


def test_running_argmax_is_argmax():
    logits = torch.randint(0, 4, (9, 20, 30)).float()  # many are equal
    logits[torch.rand(logits.shape) < 0.05] = float('nan')
    logits[torch.rand(logits.shape) < 0.05] = float('-inf')
    best, start = None, 0
    for part in logits.split([1, 4, 2, 2]):
        labels = part.argmax(0, keepdim=True)
        best = running_argmax(best, part.amax(0, keepdim=True), labels + start)
        start += len(part)
    assert torch.equal(best[1], logits.argmax(0, keepdim=True))


@pytest.mark.parametrize('num_classes', [1, 2, 3, 7, 150, 151])
@pytest.mark.parametrize('planes', [0.1, 1, 2, 3.5, 100, 1e6])
def test_groups_of_classes(num_classes, planes, monkeypatch):
    monkeypatch.setattr('mmvars.models.sliding_window.WORK_BYTES', int(planes * 4 * 1000))
    groups = class_groups(num_classes, 1000)
    covered = [index for group in groups for index in range(num_classes)[group]]
    assert covered == list(range(num_classes))
    sizes = [group.stop - group.start for group in groups]
    assert max(sizes) <= max(planes, 3) and min(sizes) >= min(num_classes, 2)


def test_options_are_checked_at_construction_and_again_when_they_change():
    with pytest.raises(InputError, match="test_cfg has no 'window_bacth'"):
        build(dict(window_bacth=4))
    model, images = build(), torch.randn(1, 3, 32, 32)
    assert model.test_cfg == dict(mode='whole')
    model.test_cfg.keep_logits = False
    assert 'seg_logits' not in predict(model, images, samples((32, 32)))[0]
    model.test_cfg.keep_logits = 0
    with pytest.raises(InputError, match='keep_logits must be True or False'):
        predict(model, images, None)


def augmented(kind, test_cfg, **options):
    """Two images in three versions each, as a data loader makes them, and what comes of them."""
    model = build(test_cfg, data_preprocessor=dict(type='mmseg.SegDataPreProcessor'), **options)
    model = MODELS.build(dict(type=kind, module=model))
    torch.manual_seed(2)
    flips = (False, 'horizontal', 'vertical')
    given = [
        samples(
            (97, 131), 2, flip=bool(flip), flip_direction=flip, img_path='x', ori_shape=(70, 90)
        )
        for flip in flips
    ]
    data = dict(inputs=[list(torch.randn(2, 3, 97, 131)) for _ in flips], data_samples=given)
    return model, data


@pytest.mark.parametrize(
    'classes',
    [
        dict(classes=7),
        dict(
            classes=2,
            out_channels=1,
            threshold=0.5,
            loss_decode=dict(type='mmseg.CrossEntropyLoss', use_sigmoid=True),
        ),
    ],
    ids=['many', 'one'],
)
@pytest.mark.parametrize('listed', [False, True])
def test_augmented_tests_are_those_of_mmseg_and_keep_one_version(classes, listed):
    if 'threshold' in classes:  # so that there are both labels
        images, given = torch.randn(1, 3, 97, 131), samples((97, 131))
        probable = predict(build(SLIDE, **classes), images, given)[0].seg_logits.data
        classes = classes | dict(threshold=probable.sigmoid().median().item())
    found = []
    for kind in ('mmvars.SegTTAModel', 'mmseg.SegTTAModel'):
        model, data = augmented(kind, SLIDE, **classes)
        if listed:
            data = list(data.values())
            model.module.test_step = lambda pair, step=model.module.test_step: step(
                dict(inputs=pair[0], data_samples=pair[1])
            )
        made, step, alive = [], model.module.test_step, []

        def watched(version, made=made, step=step, alive=alive):
            alive.append(sum(reference() is not None for reference in made))
            done = step(version)
            made.extend(weakref.ref(sample.seg_logits.data) for sample in done)
            return done

        model.module.test_step = watched
        found.append(model.test_step(data))
        assert alive == ([0, 0, 0] if kind.startswith('mmvars') else [0, 2, 4])
    same(*found)
    assert all('gt_sem_seg' in s and len(s.pred_sem_seg.data.unique()) > 1 for s in found[0])


def test_augmented_tests_need_logits():
    with pytest.raises(InputError, match='averages logits, and test_cfg.keep_logits is False'):
        augmented('mmvars.SegTTAModel', dict(mode='whole', keep_logits=False))
