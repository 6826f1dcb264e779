"One fitted temperature against scikit-learn's, SciPy's search in T, and known miscalibrations; arrays of a run come back or not at all."
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import optimize
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from helpers import seeded
from mixrepro.metrics.accuracy import nll
from mixrepro.metrics.temperature import FLATTEST, SHARPEST, cross_fitted, halves, scaled_metrics, temperature


@st.composite
def sampled(draw):
    "Logits, and labels drawn from the softmax of those logits divided by a known temperature."
    n, k, true = draw(st.integers(50, 400)), draw(st.integers(2, 10)), draw(st.floats(.2, 5))
    rng = seeded(draw(st.integers(0, 10_000)))
    logits = draw(st.sampled_from([1., 4.])) * torch.randn(n, k, generator=rng)
    return logits, torch.multinomial((logits / true).softmax(1), 1, generator=rng)[:, 0], true


@settings(max_examples=40, deadline=None)
@given(sampled())
def test_it_is_the_least_nll_that_scipy_finds(case):
    logits, y, _ = case
    t = temperature(logits, y)
    found = optimize.minimize_scalar(lambda b: nll(logits.double() * b, y), bounds=(1 / FLATTEST, 1 / SHARPEST), method="bounded", options=dict(xatol=1e-9))
    if t == 1: assert (logits.argmax(1) == y).all()
    else: assert nll(logits.double() / t, y) <= found.fun + 1e-9
    assert nll(logits.double() / t, y) <= nll(logits, y) + 1e-12


def test_a_known_temperature_is_found_again():
    rng = seeded(3)
    logits = 6 * torch.randn(20_000, 10, generator=rng)
    for true in (.5, 1., 3.):
        y = torch.multinomial((logits / true).softmax(1), 1, generator=rng)[:, 0]
        assert temperature(logits, y) == pytest.approx(true, rel=.04)
        found = scaled_metrics(logits, y)
        assert found["temperatures"] == pytest.approx([true, true], rel=.06) and found["ece_scaled"] < .02
        if true != 1: assert found["nll_scaled"] < found["nll"] and found["ece"] > .02


@settings(max_examples=40, deadline=None)
@given(sampled(), st.floats(.1, 10))
def test_what_scaling_leaves_and_what_it_lowers(case, loud):
    logits, y, _ = case
    scaled, fitted = cross_fitted(logits, y)
    assert torch.equal(scaled.argmax(1), logits.argmax(1))
    for half, t in zip(halves(len(y)), fitted):
        assert SHARPEST <= t <= FLATTEST and nll(logits[half].double() / t, y[half]) <= nll(logits[half], y[half]) + 1e-9
    again, more = cross_fitted(loud * logits.double(), y)
    some_wrong = all((logits[half].argmax(1) != y[half]).any() for half in halves(len(y)))  # else nothing says a temperature
    if some_wrong and all(1.1 * SHARPEST < u < .9 * FLATTEST for u in (*fitted, *more)):
        assert np.allclose(more, [loud * t for t in fitted], rtol=1e-5) and torch.allclose(again, scaled, rtol=1e-4, atol=1e-6)


def test_it_is_scikit_learns():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 8))
    y = (x @ rng.normal(size=(8, 4)) + 2 * rng.normal(size=(600, 4))).argmax(1)
    fit = LogisticRegression(C=100).fit(x[:100], y[:100])
    theirs = CalibratedClassifierCV(FrozenEstimator(fit), method="temperature").fit(x[100:], y[100:])
    logits = torch.tensor(fit.decision_function(x[100:]))
    mine = temperature(logits, torch.tensor(y[100:]))
    assert mine == pytest.approx(1 / theirs.calibrated_classifiers_[0].calibrators[0].beta_, rel=1e-4)
    assert np.allclose((logits / mine).softmax(1), theirs.predict_proba(x[100:]), atol=1e-5)


def test_a_half_without_a_minimum_says_nothing_or_asks_for_a_guess():
    right, y = torch.eye(3)[[0, 1, 2, 0]], torch.tensor([0, 1, 2, 0])
    with warnings.catch_warnings(action="error"): assert temperature(right, y) == 1 and temperature(right, (y + 1) % 3) == FLATTEST
    assert cross_fitted(right, y)[1] == (1, 1) and torch.equal(cross_fitted(right, y)[0], right.double())
    assert all(math.isfinite(v) for v in cross_fitted(right, y)[0].flatten())


def test_logits_that_say_nothing_have_no_better_temperature():
    with warnings.catch_warnings(action="error"): assert temperature(torch.zeros(6, 3), torch.arange(6) % 3) == FLATTEST


@pytest.mark.parametrize("scale, end, where", [(1e-5, SHARPEST, "below 0.01"), (1., None, ""), (1e4, FLATTEST, "above 100"), (1e30, FLATTEST, "above 100")])
def test_a_least_nll_beyond_what_is_looked_at_is_told(scale, end, where):
    "A network that is sure beyond measure had the temperature 100, and its scaled NLL passed for the least there is."
    logits = 3 * torch.randn(400, 5, generator=seeded(), dtype=torch.float64)
    y = torch.multinomial((logits / 2).softmax(1), 1, generator=seeded(1))[:, 0]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = temperature(scale * logits, y)
    assert [f"the temperature of least NLL lies {where}, where none is looked at" in str(w.message) for w in told] == [True] * bool(where)
    assert found == (end or pytest.approx(2, rel=.2)) and "test_temperature" in (told[0].filename if told else __file__)


@pytest.mark.parametrize("where", ["all", "every second"])
def test_a_class_that_is_ruled_out_changes_no_temperature(where):
    "0 times -inf was NaN, and SciPy's words came out."
    logits, y = 6 * torch.randn(400, 4, generator=seeded()), torch.randint(3, (400,), generator=seeded(1))
    out = logits.index_fill(1, torch.tensor([3]), -math.inf)
    if where == "all":
        assert temperature(out, y) == pytest.approx(temperature(logits[:, :3], y), rel=1e-9)
        assert {k: v for k, v in scaled_metrics(out, y).items() if k != "temperatures"} == pytest.approx({k: v for k, v in scaled_metrics(logits[:, :3], y).items() if k != "temperatures"}, rel=1e-9)
    mixed = torch.where(torch.arange(400)[:, None] % 2 == 0, out, logits)
    low = torch.where(mixed.isfinite(), mixed, -1e5)
    assert temperature(mixed, y) == pytest.approx(temperature(low, y), rel=1e-9) and temperature(mixed.half(), y) > 1
