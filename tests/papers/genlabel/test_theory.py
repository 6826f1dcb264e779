"GenLabel's theory against scipy's densities, quadrature and brute force in float64."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from helpers import seeded
from mixrepro.papers.genlabel import losses as L
from mixrepro.papers.genlabel import theory as T
from mixrepro.papers.noisymix.theorems import beta_rule, logit, network


@given(sigma1=st.floats(.2, 3), c=st.floats(.3, 3.5), d=st.integers(2, 5), where=st.floats(.02, .95))
@settings(max_examples=25, deadline=None)
def test_the_label_on_the_axis(sigma1, c, d, where):
    tau = -1 / (d - 1) + where * (1 + 1 / (d - 1))
    law, lam = T.Law(sigma1, c, tau, d), torch.linspace(0, 1, 21, dtype=torch.float64)
    S, e = np.full((d, d), tau) + (1 - tau) * np.eye(d), np.eye(d)[0]
    logs = [stats.multivariate_normal(m * e, S / r**2).logpdf(np.outer(2 * lam - 1, e)) for m, r in ((-1, sigma1), (1, c * sigma1))]
    assert np.allclose(law.label(lam), np.exp(logs[1] - np.logaddexp(*logs)), atol=1e-8)


@given(c=st.floats(.3, 3.5), alpha=st.floats(.5, 3))
@settings(max_examples=5, deadline=None)
def test_constants_by_scipys_quadrature(c, alpha):
    law = T.Law(1.5, c)
    for y in (0, 1):
        beta = stats.beta(alpha, alpha)
        g = lambda l: 2 * T.own_label(law, torch.tensor(l, dtype=torch.float64), y).item() * beta.pdf(l)
        found = T.of_class(law, y, alpha=alpha, nodes=256)
        for k, name in enumerate("GAB"):
            assert found[name] == pytest.approx(integrate.quad(lambda l: g(l) * (1 - l)**k, 0, 1, limit=200, epsabs=1e-7)[0], abs=1e-5)


@given(seed=st.integers(0, 999), c=st.sampled_from([.5, 1., 2.]))
@settings(max_examples=6, deadline=None)
def test_the_expansion_has_the_losss_derivatives(seed, c):
    rng = seeded(seed)
    x, y = torch.randn(4, 2, generator=rng, dtype=torch.float64), torch.tensor([0., 1, 1, 0], dtype=torch.float64)
    f, (lam, w), law = logit(network("smooth", 1, rng)), beta_rule(1., 1., 64), T.Law(1.5, c)
    v = T.weights(law, y, lam)
    at = .01 * np.arange(-3, 4)
    by_loss = np.polynomial.polynomial.polyfit(at, [T.shrunk_loss(f, x, y, v, lam, w, e) for e in at], 6)[:3]
    assert T.expansion(f, x, y, v, lam, w) == pytest.approx(by_loss, abs=5e-5)
    printed = T.printed_expansion(f, x, y, law)
    assert (printed[0] == pytest.approx(by_loss[0], abs=1e-6)) == (c == 1), "L_std is the loss of the points at c = 1 only"

@given(a=st.floats(-12, 12), b=st.floats(-12, 12))
@settings(max_examples=60, deadline=None)
def test_the_mean_of_h_over_a_segment(a, b):
    found = L.mean_h(*torch.tensor([[a], [b]], dtype=torch.float64)).item()
    assert found == pytest.approx(integrate.quad(lambda l: np.logaddexp(0, l * a + (1 - l) * b), 0, 1, limit=200)[0], abs=1e-8)


def test_theorem_1s_second_order_losses_are_lemma_1s():
    x, y = L.draw_points(seeded(2), 5)
    phi = torch.tensor([-.4, 0., .3], dtype=torch.float64)
    rows, (A, B) = L.linear_losses(x, y, T.Law(), phi, 4.), L.pair_constants(T.Law(), y)
    for p, found, plain in zip(phi, rows["GenLabel, Taylor"], rows["Mixup, Taylor"]):
        f = lambda z: 4 * (z[..., 0] * p.cos() + z[..., 1] * p.sin())
        assert found == pytest.approx(sum(T.terms(f, x, y, 1., A[:, None], B[:, None])), rel=1e-9)
        assert plain == pytest.approx(sum(T.terms(f, x, y, 1., *torch.tensor([1 / 3, 1 / 6], dtype=torch.float64))), rel=1e-9)
    exact = L.losses_at(lambda z: 4 * z[..., 0], x, y, T.Law(), 512)
    assert all(exact[k] == pytest.approx(rows.iloc[1][k], abs=1e-4) for k in exact)


@given(s=st.floats(.15, 2), t=st.floats(.15, 2), x=st.floats(-.5, 1.5))
@settings(max_examples=40, deadline=None)
def test_proposition_1_is_the_ratio_of_scipys_densities(s, t, x):
    "GenLabel note, proposition 1 without its square, and the softmax printed under it, right for equal sigmas only."
    def share(a, b): return 1 / (1 + np.exp(min(700., stats.norm(0, a).logpdf(x) - stats.norm(1, b).logpdf(x))))
    assert T.gaussian_label(x, s) == pytest.approx(share(s, s), abs=1e-12)
    assert T.by_densities(x, (s, t)) == pytest.approx(share(s, t), abs=1e-12)
    soft = 1 / (1 + np.exp(min(700., (x - 1)**2 / (2 * t**2) - x**2 / (2 * s**2))))
    assert T.by_densities(x, (s, t), logs=False) == pytest.approx(soft, abs=1e-12)
    assert T.printed_label(x, s) == pytest.approx(1 / (1 + np.exp(-(x - .5)**2 / s**2)), abs=1e-12)


@pytest.mark.parametrize("sigma1, c", [(10., 1.), (2., .6), (1., 1.7)])
def test_theorem_1s_losses_by_loops_over_pairs(sigma1, c):
    "GenLabel note, analysis: setting, lemma 1, theorem 1 and its recall, with scipy's densities and a fine rule."
    law, phi, norm = T.Law(sigma1, c), .2, 10.
    x, y = (v.numpy() for v in L.draw_points(seeded(1), 2, law))
    row = L.linear_losses(torch.tensor(x), torch.tensor(y), law, torch.tensor([phi], dtype=torch.float64), norm).iloc[0]
    theta, n, (lam, w) = norm * np.array([np.cos(phi), np.sin(phi)]), len(y), np.polynomial.legendre.leggauss(400)
    lam, w = (lam + 1) / 2, w / 2
    zero, one = (stats.multivariate_normal([m, 0], np.eye(2) / r**2) for m, r in ((-1, sigma1), (1, c * sigma1)))
    def label(z): return 1 / (1 + np.exp(np.minimum(700, zero.logpdf(z) - one.logpdf(z))))
    def loss(s, t): return np.logaddexp(0, s) - t * s
    mixed, gen = np.zeros((2, n, n))
    for i in range(n):
        for j in range(n):
            z = np.outer(lam, x[i]) + np.outer(1 - lam, x[j])
            mixed[i, j], gen[i, j] = w @ loss(z @ theta, lam * y[i] + (1 - lam) * y[j]), w @ loss(z @ theta, label(z))
    s = x @ theta
    g, axis = 1 / (1 + np.exp(-s)), np.outer(2 * lam - 1, [1, 0])  # lambda is the share of class 1
    own = [2 * (label(axis) if k else 1 - label(-axis)) for k in (0, 1)]  # of a point's own class, in a mixed pair
    A = np.array([w @ (own[int(k)] * (1 - lam)) for k in y])
    radius = min(abs(v @ theta) / np.linalg.norm(v) / norm for v in x) * min(np.linalg.norm(v) for v in x) * A
    taylor = loss(s, y) + radius * abs(g - y) * norm + radius**2 / 2 * g * (1 - g) * norm**2
    want = {"Mixup": mixed.mean(), "GenLabel": gen.mean(), "ERM": loss(s, y).mean(),
            "adversarial, Taylor": taylor.mean(),
            "adversarial": loss(s - (2 * y - 1) * radius * norm, y).mean(), "in Theta": ((2 * y - 1) * s >= 0).all()}
    assert {k: row[k] for k in want} == pytest.approx(want, abs=1e-6)
