"""What pysaliency 0.2.22 says of small maps: how pysaliency.npz was recorded.

Running this file needs that package (MIT) in an environment of its own; mmvars does not.
"""

from pathlib import Path

import numpy as np

RECORDED = Path(__file__).with_name('pysaliency.npz')
SIGMA = 1.7


def cases() -> dict[str, np.ndarray]:
    """Maps of different sizes: smooth, with ties, with negative numbers, mostly zero, constant."""
    rng = np.random.RandomState(0)
    sparse = rng.rand(15, 12)
    sparse[sparse < 0.8] = 0
    return {
        'smooth': np.cumsum(np.cumsum(rng.rand(14, 19), axis=0), axis=1) / 100,
        'ties': np.round(4 * rng.rand(11, 23)) / 4,
        'negative': rng.randn(17, 13),
        'sparse': sparse,
        'constant': np.full((9, 9), 0.5),
    }


def fixations() -> list[np.ndarray]:
    """Points of each case, one of them twice."""
    rng = np.random.RandomState(1)
    points = []
    for values in cases().values():
        height, width = values.shape
        each = rng.rand(12, 2) * (width, height)
        points.append(np.concatenate([each, each[:1]]))
    return points


def main() -> None:
    import pysaliency
    from pysaliency import metrics

    if not hasattr(np, 'trapz'):  # removed since its release
        np.trapz = np.trapezoid

    maps, points = cases(), fixations()
    rng = np.random.RandomState(2)
    stimuli = pysaliency.Stimuli([rng.randint(0, 256, (*m.shape, 3)) for m in maps.values()])
    data = pysaliency.FixationTrains.from_fixation_trains(
        [each[:, 0] for each in points],
        [each[:, 1] for each in points],
        [range(len(each)) for each in points],
        range(len(points)),
        [0] * len(points),
    )
    blurred = pysaliency.FixationMap(stimuli, data, kernel_size=SIGMA)
    recorded = {}
    for number, (name, values) in enumerate(maps.items()):
        own = data[data.n == number]
        density = blurred.saliency_map(stimuli[number])

        class Model(pysaliency.SaliencyMapModel):
            def _saliency_map(self, stimulus, values=values):
                size = np.shape(stimulus)[:2]
                return values if size == values.shape else np.zeros(size)

        # Of this image alone, so that the noise of each begins with the seed.
        alone = pysaliency.Stimuli([stimuli.stimuli[number]])
        own_alone = pysaliency.FixationTrains.from_fixation_trains(
            [own.x], [own.y], [range(len(own.x))], [0], [0]
        )
        shuffled = Model().AUC_per_image(stimuli, data, nonfixations='shuffled')[number]
        recorded |= {
            f'{name}.density': density,
            f'{name}.nss': metrics.NSS(values, own.x, own.y).mean(),
            f'{name}.auc_judd': Model().AUC_Judd(alone, own_alone),
            f'{name}.auc_judd_ties': Model().AUC_Judd(alone, own_alone, jitter=False),
            f'{name}.auc_shuffled': shuffled,
            f'{name}.cc': metrics.CC(values, density),
            f'{name}.kl': metrics.MIT_KLDiv(values, density),
            f'{name}.sim': metrics.SIM(values, density),
        }
    np.savez_compressed(RECORDED, **recorded)


if __name__ == '__main__':
    main()
