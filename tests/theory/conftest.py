"""Exact solutions of sparse coding problems, to compare with."""

from collections.abc import Callable

import pytest
import torch
from sklearn.linear_model import Lasso
from torch import Tensor


@pytest.fixture(scope='session')
def lasso() -> Callable[[Tensor, Tensor, float], Tensor]:
    return _lasso


@pytest.fixture(scope='session')
def assert_optimal() -> Callable[[Tensor, Tensor, Tensor, float], None]:
    return _assert_optimal


def _lasso(matrix: Tensor, target: Tensor, sparsity: float) -> Tensor:
    """Scikit-learn's solution (coordinate descent), ``(M, D)``."""
    solver = Lasso(sparsity / len(matrix), fit_intercept=False, tol=1e-12, max_iter=100_000)
    columns = [solver.fit(matrix.numpy(), column.numpy()).coef_ for column in target.T]
    return torch.stack([torch.from_numpy(column) for column in columns], dim=-1)


def _assert_optimal(matrix: Tensor, target: Tensor, code: Tensor, sparsity: float) -> None:
    """KKT: columns in use correlate with the error by exactly +-sparsity, others by no more."""
    correlation = matrix.mT @ (target - matrix @ code)
    used = code != 0
    assert 0 < used.sum() < used.numel()
    torch.testing.assert_close(correlation[used], sparsity * code[used].sign(), atol=1e-8, rtol=0)
    assert correlation[~used].abs().max() <= sparsity + 1e-8
