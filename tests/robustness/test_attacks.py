"""Attacks: equal to torchattacks, to brute force, and within their bounds."""

import math
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_models import MEAN, STD, small_images, small_network
from mmengine.structures import BaseDataElement, PixelData
from torch import nn

from mmvars.errors import InputError
from mmvars.networks import create_model
from mmvars.robustness import attacks
from mmvars.robustness.attacks import ATTACKS, SEGMENTATION_LOSSES, Attacker, attacked

ORACLE = np.load(Path(__file__).with_name('attacks.npz'))


class Classifier(nn.Module):
    """What an attack uses of one of mmpretrain."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def data_preprocessor(self, data: dict, training: bool) -> dict:
        mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
        return dict(data, inputs=(torch.stack(list(data['inputs'])) - mean) / std)

    def forward(self, inputs, data_samples, mode):
        assert mode == 'tensor'
        return self.network(inputs)

    def test_step(self, data):
        return [sample.new() for sample in data['data_samples']]


class Segmentor(Classifier):
    """What an attack uses of one of mmseg, with windows as mmseg lays them."""

    decode_head = None

    def __init__(self, network: nn.Module, mode: str = 'whole') -> None:
        super().__init__(network)
        self.test_cfg = dict(mode=mode)
        self.calls = 0

    def data_preprocessor(self, data: dict, training: bool) -> dict:
        return dict(data, inputs=torch.stack(list(data['inputs'])) / 255)

    def encode_decode(self, inputs, metas):
        self.calls += 1
        return self.network(inputs)

    def forward(self, inputs, data_samples, mode):
        if self.test_cfg['mode'] == 'slide':
            half = inputs.shape[3] // 2
            parts = (inputs[..., :half], inputs[..., half:])
            logits = torch.cat([self.encode_decode(part, None) for part in parts], 3)
        else:
            logits = self.encode_decode(inputs, None)
        for sample, each in zip(data_samples, logits, strict=True):
            sample.set_data(dict(seg_logits=PixelData(data=each)))
        return data_samples


class Logits(nn.Module):
    """The classes of AbSViT's second pass."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.alpha: float | None = None

    def forward(self, images):
        return self.network.forward_head(self.network(images, alpha=self.alpha).second)


def batch(pixels, labels, segmentation=False) -> dict:
    samples = []
    for index, label in enumerate(labels):
        sample = BaseDataElement(metainfo=dict(img_path=f'a/{index}.png'))
        if segmentation:
            sample.set_data(dict(gt_sem_seg=PixelData(data=label[None])))
        else:
            sample.set_data(dict(gt_label=label[None]))
        samples.append(sample)
    return dict(inputs=list(pixels), data_samples=samples)


@pytest.mark.parametrize('name', ORACLE.files)
def test_equal_to_torchattacks(name, monkeypatch) -> None:
    attack, epsilon = name.split('-')
    fixed = {key: vars(each) | dict(random_start=False) for key, each in ATTACKS.items()}
    monkeypatch.setitem(ATTACKS, attack, attacks.Attack(**fixed[attack]))
    attacker = Attacker(Classifier(small_network()), attack, float(epsilon))
    data, zero = attacker(batch(*small_images()))
    found = torch.stack(data['inputs']).numpy()
    # A gradient that rounding alone keeps from zero may have either sign.
    assert (np.abs(found - ORACLE[name]) < 1e-3).mean() > 0.999
    assert np.abs(found - small_images()[0].numpy()).max() == pytest.approx(float(epsilon))
    assert all(share < 0.5 for share in zero)


@pytest.mark.parametrize('name', ATTACKS)
@pytest.mark.parametrize('epsilon', [0.5, 8])
def test_never_outside_of_the_box(name, epsilon) -> None:
    pixels, _ = small_images()
    labels = torch.arange(6 * 16 * 16).reshape(6, 16, 16) % 3
    model = Segmentor(nn.Conv2d(3, 3, 3, padding=1))
    data, _ = Attacker(model, name, epsilon)(batch(pixels, labels, segmentation=True))
    found = torch.stack(data['inputs'])
    assert found.dtype == torch.float32 and 0 <= found.min() and found.max() <= 255
    assert (found - pixels).abs().max() <= epsilon + 1e-4
    assert (found - pixels).abs().mean() > epsilon / 5  # and it uses it


@pytest.mark.parametrize('name', ['pgd', 'pgd20', *SEGMENTATION_LOSSES])
def test_segmentors_against_brute_force(name) -> None:
    """Logits of a pixel are linear in it, so the worst change of it is a corner of its box."""
    epsilon, rng = 40, np.random.default_rng(0)
    network = nn.Conv2d(3, 4, 1, bias=False)
    network.weight.data = torch.tensor(rng.standard_normal((4, 3, 1, 1)), dtype=torch.float32)
    pixels = torch.tensor(rng.integers(60, 200, (2, 3, 6, 6)), dtype=torch.uint8)
    labels = network(pixels / 255).argmax(1)  # all right at first
    labels[:, 0] = 255
    data, _ = Attacker(Segmentor(network), name, epsilon)(batch(pixels, labels, segmentation=True))
    counts = labels != 255
    found = network(torch.stack(data['inputs']) / 255).argmax(1)
    corners = torch.tensor(list(product((-epsilon, epsilon), repeat=3)))
    moved = pixels + corners[:, None, :, None, None]  # (8, 2, 3, 6, 6)
    best = network(moved.flatten(0, 1) / 255).reshape(8, 2, 4, 6, 6).argmax(2)
    can_fail = (best != labels).any(0) & counts
    fails = (found != labels) & counts
    assert can_fail.sum() > 20 and not (fails & ~can_fail).any()
    assert fails.sum() >= 0.9 * can_fail.sum()


def test_the_gradient_passes_both_passes() -> None:
    """Along any direction it is that of finite differences of the whole network."""
    torch.manual_seed(0)
    network = create_model('absvit_tiny', depth=3, img_size=32, num_classes=5).double().eval()
    for parameter in network.parameters():  # feedback and head start near zero
        parameter.data += 0.1 * torch.randn_like(parameter)
    model = Classifier(nn.Identity())
    model.network = Logits(network)
    pixels, label = 255 * torch.rand(3, 32, 32, dtype=torch.double), torch.tensor([3])
    data = batch(pixels[None], label)

    def loss(image: torch.Tensor, alpha: float | None = None) -> torch.Tensor:
        model.network.alpha = alpha
        inputs = model.data_preprocessor(dict(inputs=[image]), False)['inputs']
        return nn.functional.cross_entropy(model.network(inputs), label).detach()

    (gradient,) = Attacker(model, 'pgd', 1).gradients([pixels], data)
    assert abs(loss(pixels) - loss(pixels, 0)) > 1e-3  # the second pass says something else
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randn(pixels.shape, generator=generator, dtype=torch.double)
        step = 1e-3 * direction
        slope = (loss(pixels + step) - loss(pixels - step)) / 2e-3
        assert float((gradient * direction).sum()) == pytest.approx(float(slope), rel=1e-3)


def test_each_loss_by_hand() -> None:
    """Two pixels, the first right with probability 3/4, the second wrong with 1/4."""
    logits, labels = torch.tensor([[math.log(3), 0.0], [0.0, -math.log(3)]]), torch.tensor([0, 1])
    right, wrong = math.log(4 / 3), math.log(4)
    cosine = 3 / 10**0.5, 1 / 10**0.5
    m = (0.75 + 1) / 2, 0.125
    js_right = (0.75 * math.log(0.75 / m[0]) + 0.25 * math.log(2) - math.log(m[0])) / 2
    m = (0.25 + 1) / 2, 0.375
    js_wrong = (0.25 * math.log(0.25 / m[0]) + 0.75 * math.log(2) - math.log(m[0])) / 2
    expected = dict(
        segpgd=(0.75 * right + 0.25 * wrong) / 2,  # halfway
        cospgd=(cosine[0] * right + cosine[1] * wrong) / 2,
        masked=right / 2,
        balanced=right,  # the class has one pixel
        jensen_shannon=(js_right + js_wrong) / 2,
    )
    for name, value in expected.items():
        loss = SEGMENTATION_LOSSES[name](logits, labels, 0.5)
        assert float(loss) == pytest.approx(value, rel=1e-5), name


def test_windows_are_recomputed_and_the_gradient_is_the_same(monkeypatch) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.GELU(), nn.Conv2d(4, 3, 1))
    pixels = 255 * torch.rand(2, 3, 8, 16)
    data = batch(pixels, torch.randint(3, (2, 8, 16)), segmentation=True)
    sliding = Segmentor(network, 'slide')
    found = Attacker(sliding, 'segpgd', 4).gradients(list(pixels), data)
    assert sliding.calls == 4  # two windows, each once more for its gradient
    assert 'encode_decode' not in vars(sliding)
    monkeypatch.setattr(attacks, 'checkpoint', lambda decode, *args, use_reentrant: decode(*args))
    expected = Attacker(sliding, 'segpgd', 4).gradients(list(pixels), data)
    assert sliding.calls == 4 + 2
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_attacked_stays_as_it_is() -> None:
    """Mode, weights, their gradients and statistics; and each image has its own random start."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(784, 5))
    model = Classifier(network).eval()
    before = deepcopy(model.state_dict())
    pixels, labels = small_images()
    both, _ = Attacker(model, 'pgd', 2)(batch(pixels, labels))
    alone, _ = Attacker(model, 'pgd', 2)(
        {key: value[:1] for key, value in batch(pixels, labels).items()}
    )
    torch.testing.assert_close(both['inputs'][0], alone['inputs'][0])
    starts = [Attacker(model, 'noise', 2, s)(batch(pixels, labels))[0]['inputs'] for s in (0, 0, 1)]
    assert torch.equal(starts[0][2], starts[1][2]) and not torch.equal(starts[0][2], starts[2][2])
    assert not torch.equal(starts[0][2] - pixels[2], starts[0][3] - pixels[3])
    assert not model.training and all(p.grad is None for p in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])


def test_a_model_is_attacked_for_a_while() -> None:
    model = Classifier(small_network())
    data = batch(*small_images())
    with attacked(model, Attacker(model, 'fgsm', 1)):
        results = model.test_step(data)
    seen = [result.zero_gradient for result in results]
    assert len(seen) == 6 and all(0 <= share < 0.5 for share in seen)
    assert 'zero_gradient' not in model.test_step(data)[0]


def test_a_gradient_that_is_masked_shows() -> None:
    class Rounded(nn.Module):
        def forward(self, images):
            return (10 * images.mean((2, 3))).round() + 0 * images.sum()

    model = Classifier(Rounded())
    model.weight = nn.Parameter(torch.zeros(1))
    pixels, labels = small_images()
    _, zero = Attacker(model, 'pgd', 1)(batch(pixels, labels % 3))
    assert zero == [1.0] * 6


def test_images_without_labels_stay_near_their_start() -> None:
    model = Segmentor(nn.Conv2d(3, 3, 1))
    labels = torch.full((2, 8, 8), 255)
    labels[1] = 0
    data, zero = Attacker(model, 'segpgd', 4)(batch(torch.full((2, 3, 8, 8), 99), labels, True))
    assert zero == [None, 0]
    assert (data['inputs'][0] - 99).abs().max() <= 4


def test_what_cannot_be_attacked_is_refused() -> None:
    model = Classifier(small_network())
    with pytest.raises(InputError, match="'segpgd' weighs pixels.*take fgsm, pgd"):
        Attacker(model, 'segpgd', 1)
    pixels, labels = small_images()
    with pytest.raises(InputError, match=r"pixels from 0 to 255.*'a/0.png' are 0 to 1 before"):
        Attacker(model, 'pgd', 1)(batch(pixels / 255, labels))
    blind = Classifier(small_network())
    blind.register_forward_hook(lambda module, inputs, logits: logits.detach())
    with pytest.raises(InputError, match=r'carry no gradient.*test_cfg.keep_logits=True'):
        Attacker(blind, 'pgd', 1)(batch(pixels, labels))
