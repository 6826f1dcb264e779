"""The loss of mixed hidden states, against a double loop with scipy's quadrature and against least squares."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.integrate import quad

from mixrepro.metrics.mixed_loss import linear_floor, mixed_loss, simplex

SEEDS = st.integers(0, 10_000)


def draw(seed, *shapes):
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(s, generator=rng, dtype=torch.float64) for s in shapes]


@settings(deadline=None, max_examples=10)
@given(SEEDS, st.integers(2, 4), st.integers(1, 3))
def test_a_linear_f_costs_what_a_double_loop_says(seed, n, k):
    h, y, A, b = draw(seed, (n, k), (n, 3), (k, 3), (3,))
    def error(lam, i, j): return (((lam * h[i] + (1 - lam) * h[j]) @ A + b - lam * y[i] - (1 - lam) * y[j]) ** 2).sum().item()
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    want = np.mean([quad(error, 0, 1, args=p)[0] for p in pairs])
    assert mixed_loss(lambda z: z @ A + b, h, y, nodes=2).item() == pytest.approx(want, rel=1e-9)


def test_more_nodes_integrate_what_is_no_polynomial():
    h, y = draw(0, (3, 2), (3, 2))
    error = lambda lam, i, j: ((torch.tanh(3 * (lam * h[i] + (1 - lam) * h[j])) - lam * y[i] - (1 - lam) * y[j]) ** 2).sum().item()
    want = np.mean([quad(error, 0, 1, args=(i, j))[0] for i in range(3) for j in range(3) if i != j])
    f = lambda z: torch.tanh(3 * z)
    assert mixed_loss(f, h, y, nodes=40).item() == pytest.approx(want, rel=1e-6) != pytest.approx(mixed_loss(f, h, y, nodes=1).item(), rel=1e-6)


@pytest.mark.parametrize("d, k", [(2, 1), (2, 3), (3, 1), (3, 2), (3, 4), (7, 5), (7, 6), (7, 8)])
def test_the_proof_holds_from_d_minus_1_dimensions_on(d, k):
    A, H, b = simplex(d, k)
    assert A.shape == H.shape == (k, d)
    error = (A.T @ H + b[:, None] - torch.eye(d, dtype=torch.float64)).norm().item()
    assert (error < 1e-12) == (k >= d - 1)
    assert torch.linalg.matrix_rank(H) == min(k, d - 1)


@settings(deadline=None, max_examples=15)
@given(SEEDS, st.integers(2, 4), st.integers(1, 3), st.integers(1, 3))
def test_no_linear_map_goes_below_the_floor(seed, d, k, each):
    """Hidden states at random; of all linear maps the best, by least squares over a fine grid of mixtures."""
    y = torch.eye(d, dtype=torch.float64).repeat(each, 1)
    (h,) = draw(seed, (len(y), k))
    i, j = (~torch.eye(len(y), dtype=torch.bool)).nonzero().T
    at, weight = np.polynomial.legendre.leggauss(2)
    mixes = lambda a: torch.cat([a[i] * (1 + t) / 2 + a[j] * (1 - t) / 2 for t in at])
    X = torch.cat([mixes(h), torch.ones(2 * len(i), 1, dtype=torch.float64)], 1)  # both nodes have the same weight
    W = torch.linalg.lstsq(X, mixes(y)).solution
    assert mixed_loss(lambda z: z @ W[:-1] + W[-1], h, y, nodes=2).item() >= linear_floor(d, k, len(y)) - 1e-10


@pytest.mark.parametrize("d, k", [(3, 1), (5, 2), (5, 4), (10, 3)])
@pytest.mark.parametrize("each", [1, 3])
def test_the_construction_reaches_the_floor(d, k, each):
    A, H, b = simplex(d, k)
    loss = mixed_loss(lambda z: z @ A + b, H.T.repeat(each, 1), torch.eye(d, dtype=torch.float64).repeat(each, 1)).item()
    assert loss == pytest.approx(linear_floor(d, k, d * each), abs=1e-12) and (loss > .01) == (k < d - 1)


@pytest.mark.parametrize("d, k", [(1, 1), (0, 3), (3, 0)])
def test_too_few_classes_or_dimensions_are_refused(d, k):
    with pytest.raises(ValueError, match=f"2 classes and 1 hidden dimension at least, got d = {d} and dim.H. = {k}"): simplex(d, k)
