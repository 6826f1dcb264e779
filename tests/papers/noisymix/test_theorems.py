"NoisyMix's theorems against scipy, finite differences and brute force in float64."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate, stats

from helpers import seeded
from mixrepro.papers.noisymix import bound as B
from mixrepro.papers.noisymix import stability as S
from mixrepro.papers.noisymix import theorems as T


def smooth(k, seed, **more): return T.network("smooth", k, seeded(seed), **more)


def coefficients(loss, step=.01):
    "The first three coefficients of a loss in eps, by a polynomial through seven points."
    at = step * np.arange(-3, 4)
    return np.polynomial.polynomial.polyfit(at, [loss(e) for e in at], 6)[:3]


@settings(max_examples=20, deadline=None)
@given(a=st.floats(.3, 4), b=st.floats(.3, 4))
def test_moments_and_rules_of_lambda(a, b):
    def mean(k): return sum(w * stats.beta(c, d).moment(k) for w, c, d in ((a / (a + b), b, a + 1), (b / (a + b), a, b + 1)))
    assert T.mixture_moments(a, b) == pytest.approx([mean(1), mean(2)], rel=1e-9)  # 1 - lambda has the mirrored Betas
    assert T.beta_moments(a, b) == pytest.approx([stats.beta(b, a).moment(k) for k in (1, 2)], rel=1e-9)
    for rule, moments in ((T.mixture_rule, T.mixture_moments), (T.beta_rule, T.beta_moments)):
        lam, w = rule(a, b, 6)
        assert [(w * (1 - lam)**k).sum().item() for k in (1, 2)] == pytest.approx(moments(a, b), rel=1e-9)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 999), a=st.floats(.5, 3), b=st.floats(.5, 3))
def test_both_lemmas_are_identities(seed, a, b):
    case = T.draw_case(seeded(seed), 4, alpha=a, beta=b)
    f = smooth(3, seed)
    p, P = (lambda z: .5 * f(z)[..., 0]), T.probabilities(lambda z: .5 * f(z))
    assert abs(T.nfm_mixed(p, case, nodes=96) - T.nfm_tilted(p, case, nodes=96)) < 1e-10
    two = [S.stability_loss(P, case, nodes=96, rule=rule) for rule in (T.beta_rule, T.mixture_rule)]
    assert abs(two[0] - two[1]) < 1e-10


def test_lemma_1_by_scipys_quadrature():
    "Two points, no noise: the double sum of eq. 5 with scipy's integral over lambda."
    case = T.draw_case(seeded(4), 2, sigma_add=0., sigma_mult=0.)
    p = T.logit(smooth(1, 4))
    def at(l, i, j):
        out, y = p(l * case.x[i] + (1 - l) * case.x[j]).item(), l * case.y[i] + (1 - l) * case.y[j]
        return np.logaddexp(0, out) - y.item() * out
    whole = sum(integrate.quad(at, 0, 1, (i, j))[0] for i in range(2) for j in range(2)) / 4
    assert T.nfm_tilted(p, case, nodes=40) == pytest.approx(whole, abs=1e-10)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), kind=st.sampled_from(["linear", "smooth"]))
def test_theorem_1_has_the_losss_derivatives(seed, kind):
    case = T.draw_case(seeded(seed), 4, alpha=1.5)
    p = T.logit(T.network(kind, 1, seeded(seed)))
    by_loss = coefficients(lambda e: T.nfm_tilted(p, case, e))
    assert T.theorem1(p, case) == pytest.approx(by_loss, abs=2e-5)
    printed = T.theorem1(p, case, printed=True)
    assert printed[0] == pytest.approx(by_loss[0]) and printed[2] == pytest.approx(by_loss[2], abs=2e-5)


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 999), shared=st.booleans())
def test_theorem_2_has_the_losss_derivatives(seed, shared):
    case, f = T.draw_case(seeded(seed), 3), smooth(3, seed)
    P = T.probabilities(lambda z: .5 * f(z))
    by_loss = coefficients(lambda e: S.stability_loss(P, case, e, shared=shared))
    assert S.theorem2(P, case, shared=shared) == pytest.approx(by_loss, abs=5e-5)


def test_proposition_1_leaves_third_order():
    left = S.third_order(T.draw_case(seeded()), 0, range(3, 10))
    for _, part in left.groupby("what"):
        assert part.slope.iloc[0] == pytest.approx(3, abs=.1) and part["over eps^3"].abs().min() > .01


def test_theorem_3_first_half_over_seeds():
    "Over draws of points and networks the gap over eps^2 is not below 0 where eps is small."
    for seed in range(4):
        gaps = B.nfm_gaps(seed, (8, 9))
        assert (gaps["over eps^2"] > -1e-6).all()
    assert min(B.without(0, 2.**-9).values()) < -.01 < B.without(0, 2.**-9)["none"]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 999), a=st.floats(.3, 4), b=st.floats(.3, 4))
def test_theorem_3s_radii_and_regulariser_are_the_printed_sums(seed, a, b):
    "NoisyMix paper, eqs. 45, 47 and 48, by loops; in eq. 48 the expectation over lambda is squared, not the square's."
    case, eps, f = T.draw_case(seeded(seed), 4, alpha=a, beta=b, sigma_add=.7, sigma_mult=.3), .1, smooth(1, seed)
    lam = [(w, stats.beta(c, d)) for w, c, d in ((a / (a + b), a + 1, b), (b / (a + b), b + 1, a))]
    less = sum(w * (1 - law.mean()) for w, law in lam)  # E[1 - lambda]
    x, step = case.x.numpy(), 1e-5
    def p(z): return f(torch.tensor(z)).numpy()[..., 0]
    def cos(u, v): return u @ v / np.linalg.norm(u) / np.linalg.norm(v)
    slopes = [np.array([(p(v + e) - p(v - e)) / (2 * step) for e in step * np.eye(2)]) for v in x]
    c_x = min(np.linalg.norm(v) for v in x) / 2**.5
    radii = [eps * less * c_x * 2**.5 * abs(cos(g, v)) for g, v in zip(slopes, x)]
    assert B.radii(T.logit(f), case, eps).numpy() == pytest.approx(radii, rel=1e-6)
    signs, whole = [np.array([s, t]) for s in (-1, 1) for t in (-1, 1)], 0.
    for g, v in zip(slopes, x):
        def spread(ways): return np.mean([w @ w * cos(g, w)**2 for w in ways])
        noise = .7**2 * spread(signs) + .3**2 * spread([s / 3**.5 * v for s in signs])
        share = 1 / (1 + np.exp(-p(v)))
        whole += share * (1 - share) * g @ g * (less**2 * spread(x) + noise) / (2 * len(x))
    assert B.regulariser(T.logit(f), case) == pytest.approx(whole, rel=1e-6)


def test_the_adversary_never_finds_less_than_random_search():
    p = T.logit(T.network("ReLU", 1, seeded(7), bias=0.))
    case = B.labelled(B.centred(seeded(7)), p)
    radius = torch.full((8,), .7, dtype=torch.float64)
    d = torch.randn(20_000, 1, 2, generator=seeded(8), dtype=torch.float64)
    d = d / d.norm(dim=-1, keepdim=True) * torch.rand(20_000, 1, 1, generator=seeded(9)).double().sqrt()
    searched = T.h_loss(p(case.x + .7 * d), case.y).amax(0)
    found = B.worst(p, case, radius)
    assert (found > searched - 1e-4).all() and (found - searched).max() < .02


def test_an_exact_expansion_has_no_slope_and_a_law_has_numbers():
    from mixrepro.papers.noisymix import theorems as T
    with pytest.raises(ValueError, match="remainders that are finite and not 0"): T.fitted_slope(T.remainders(lambda e: 1., (1.,), range(1, 8)))
    for make in (T.mixture_moments, T.beta_moments, lambda a, b: T.beta_rule(a, b, 4)):
        for bad in (float("nan"), float("inf")):
            with pytest.raises(ValueError, match="must be finite"): make(1., bad)
