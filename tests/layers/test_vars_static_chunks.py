"""Inference of VARS-S takes a few channels at a time: nothing but time and memory may change."""

import pytest
import torch

from mmvars.layers import SparseReconstruction, TokenGrid, build_mixer, vars_static

GRID = TokenGrid(4, 6)


@pytest.mark.parametrize('options', [
    {}, dict(preset='thesis'), dict(residual=True), dict(output_filter=False),
    dict(hermitian_filters=True), dict(step_bound='spectral'), dict(num_steps=0),
], ids=str)
@pytest.mark.parametrize('at_once', [1, 5, 12])
@pytest.mark.parametrize('grid', [GRID, TokenGrid(5, 3)])
def test_chunks_change_nothing(options, at_once, grid, monkeypatch):
    mixer = build_mixer('vars_s', 12, 2, GRID[:2], **dict(dict(sparsity=.1), **options)).eval()
    x = torch.randn(2, grid.num_patches, 12)
    expected = mixer(x, grid).detach()  # with gradients: all channels at once
    sizes = []
    whole = SparseReconstruction._reconstruct

    def noting(self, signal, *args):
        sizes.append(signal.shape[1])
        return whole(self, signal, *args)

    monkeypatch.setattr(SparseReconstruction, '_reconstruct', noting)
    atoms = mixer.dictionary.shape[1]
    monkeypatch.setattr(vars_static, '_CHUNK_NUMBERS',
                        at_once * 2 * atoms * grid.height * (grid.width // 2 + 1))
    with torch.no_grad():
        torch.testing.assert_close(mixer(x, grid), expected)
    assert sizes == [at_once] * (12 // at_once) + [12 % at_once] * (12 % at_once > 0)
    sizes.clear()
    mixer(x, grid).sum().backward()
    assert sizes == [12]
    assert all(p.grad.isfinite().all() for p in mixer.parameters() if p.grad is not None)
