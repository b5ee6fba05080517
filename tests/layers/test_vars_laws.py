"""The law of sparse coding in the mixers that do it: no update raises the energy."""

import pytest
import torch

from mmvars.layers import TokenGrid, VARSStaticDynamic, build_mixer

GRID = TokenGrid(6, 4)


@pytest.mark.parametrize('kind', ['vars_d', 'vars_sd', 'vars_sd_free', 'vars_s'])
def test_the_energy_never_rises_with_the_equations_as_printed(kind):
    options = dict(preset='thesis', num_steps=25, sparsity=0.3)
    if kind == 'vars_sd_free':
        mixer = VARSStaticDynamic(12, 3, (6, 4), **options)
    else:
        mixer = build_mixer(kind, 12, 3, (6, 4), **options)
    trace = mixer.double().trace(2 * torch.randn(8, 24, 12, dtype=torch.double), GRID)
    energies = torch.stack(
        [
            (rebuilt - trace.signal).square().flatten(1).sum(1) / 2
            + 0.3 * code.abs().flatten(1).sum(1)
            for code, rebuilt in zip(trace.codes, trace.reconstructions, strict=True)
        ]
    )
    assert energies.shape == (26, 8)
    assert (energies.diff(dim=0) <= 1e-12 * energies[0]).all()
    assert (energies[-1] < 0.99 * energies[0]).all()
