"""What imagecorruptions 1.1.2 makes of one small image: how reference.npz was recorded.

Running this file needs that package (Apache-2.0), scikit-image and SciPy, which mmvars does not.
What NumPy, SciPy and scikit-image have removed since its release is put back first, and frost gets
random textures in place of photographs.
"""

import sys
import types
from pathlib import Path

import cv2
import numpy as np

RECORDED = Path(__file__).with_name('reference.npz')
HEIGHT, WIDTH = 37, 46


def image(name: str = '') -> np.ndarray:
    """Smooth areas, edges, fine noise, grays and both ends of the range (37, 46, 3).

    For spatter, whose drops are large, it is three times as large; for motion_blur narrower than
    the longest line.
    """
    rng = np.random.RandomState(0)
    smooth = cv2.resize(rng.uniform(-80, 335, (5, 6, 3)), (WIDTH, HEIGHT))
    smooth[10:20, 8:30] = (200, 29, 90)
    pixels = np.clip(smooth + rng.uniform(-12, 12, smooth.shape), 0, 255).astype(np.uint8)
    pixels[25:30] = pixels[25:30, :, :1]
    if name == 'spatter':
        return pixels.repeat(3, axis=0).repeat(3, axis=1)
    return pixels[:, :32].copy() if name == 'motion_blur' else pixels


def textures() -> list[np.ndarray]:
    """Textures for frost: smaller and larger than the image, in each direction."""
    rng = np.random.RandomState(1)
    shapes = ((20, 24), (60, 80), (30, 90), (50, 30), (36, 47), (64, 64))
    return [rng.randint(0, 256, (*shape, 3)).astype(np.uint8) for shape in shapes]


class Replay:
    """The methods of a Generator, with the numbers that the reference draws for a seed."""

    def __init__(self, seed: int) -> None:
        self.state, self.generator = np.random.RandomState(seed), np.random.default_rng(seed)
        self.normal, self.uniform = self.state.normal, self.state.uniform
        self.poisson = self.state.poisson

    def standard_normal(self, size, dtype):
        return self.state.standard_normal(size)

    def random(self, size, dtype):
        return self.generator.random(size)

    def integers(self, low, high=None, size=None, dtype=None):
        return self.state.randint(low, high, size)


def main() -> None:
    import scipy.ndimage
    import skimage.filters
    import skimage.util

    gaussian, random_noise = skimage.filters.gaussian, skimage.util.random_noise
    np.float_ = np.float64
    removed = types.ModuleType('scipy.ndimage.interpolation')
    removed.map_coordinates = scipy.ndimage.map_coordinates
    sys.modules[removed.__name__] = removed

    import imagecorruptions
    from imagecorruptions import corruptions

    corruptions.gaussian = lambda *args, multichannel=False, **kwargs: gaussian(
        *args, channel_axis=-1 if multichannel else None, **kwargs
    )
    corruptions.cv2.imread = lambda path: textures()[int(path[-5]) - 1][..., ::-1]

    def corrupted(name: str, severity: int) -> np.ndarray:
        np.random.seed(severity)
        corruptions.sk.util.random_noise = lambda *args, **kwargs: random_noise(
            *args, rng=np.random.default_rng(severity), **kwargs
        )
        return imagecorruptions.corrupt(image(name), severity, name)

    names = imagecorruptions.get_corruption_names('all')
    recorded = {name: np.stack([corrupted(name, s) for s in range(1, 6)]) for name in names}
    np.savez_compressed(RECORDED, **recorded)


if __name__ == '__main__':
    main()
