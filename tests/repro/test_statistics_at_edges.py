"What cannot be, and what has no spread, at the doors of the statistics; degrees of freedom and p-values against SciPy."
import math
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mixrepro.papers.across.compositions import word_of
from mixrepro.papers.manifold_mixup.leads import alike
from mixrepro.papers.varmixup.autoencoders import compared
from mixrepro.repro import claim
from mixrepro.repro.charts import dots
from mixrepro.repro.claim import Effect, estimated, unpaired
from mixrepro.repro.estimates import Estimate, Measured, Published, crossed, over_seeds, welch
from mixrepro.repro.ledger import Words
from mixrepro.repro.rows import Row
from mixrepro.repro.verdicts import Verdict, gain_verdict, within


@pytest.mark.parametrize("value", [0., .5, -.5, 100.])
@pytest.mark.parametrize("margin", [None, 1., 1e-3])
def test_equal_differences_decide_no_claim(value, margin):
    "Two seeds that happen to give one difference say nothing of a third: a claim must not hold where a verdict is undecided."
    e = over_seeds(Measured([value] * 2))
    assert gain_verdict(1., e, margin).word == "undecided (no spread)"
    found = estimated("a over b", e, margin=margin)
    assert claim.tested(found) == ("undecided", None) and found.needs is None, "nor how many seeds would do"


@pytest.mark.parametrize("rows", [300, 539, 9, 7000])
@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_equal_differences_stay_equal_in_a_tables_six_digits(rows, seeds):
    "Two rows of the test set more, seed by seed: shares of them are rounded on the way through a file."
    right = [int(.8 * rows) - 3 * s - s * s for s in range(seeds)] if rows > 9 else [5, 6, 7, 4, 3][:seeds]
    b, a = ({s: float(f"{100 * (k + more) / rows:.6g}") for s, k in enumerate(right)} for more in (0, 2))
    assert claim.tested(claim.seed_by_seed("a over b", a, b, 1)) == ("undecided", None)
    data = pd.DataFrame([dict(model=m, seed=s, v=v) for m, by in (("a", a), ("b", b)) for s, v in by.items()])
    (e,) = claim.Paired("x", "a", "b", "v")({"x": data})
    assert claim.tested(e) == ("undecided", None) and e.ours == pytest.approx(200 / rows, abs=1e-4)
    more = a | {0: a[0] + 100 / rows}  # but one row more of one seed is a spread
    e = claim.seed_by_seed("a over b", more, b, 1)
    assert e.high - e.low == pytest.approx(np.diff(over_seeds(Measured([more[s] - b[s] for s in b])).interval)[0])


def test_p_values_of_separate_samples_are_scipys():
    rng = np.random.default_rng(0)
    for _ in range(50):
        mean, n, sd = rng.normal(size=2), rng.integers(2, 7, 2), rng.lognormal(sigma=1.5, size=2)
        a, b = (Published(m, (s,), int(k)) for m, s, k in zip(mean, sd, n))
        theirs = stats.ttest_ind_from_stats(mean[0], sd[0], n[0], mean[1], sd[1], n[1], equal_var=False).pvalue
        assert unpaired("a over b", a, b, 1).p == pytest.approx(theirs, rel=1e-9)


def test_alikeness_uses_the_degrees_of_freedom_of_the_interval():
    "Two one-sided tests at the estimate's own degrees, not at those of as many seeds: crossed, Welch, pooled."
    rng = np.random.default_rng(1)
    for _ in range(50):
        e = crossed(rng.normal(0, .1, (3, 1)) + rng.normal(0, 2., 200) + rng.normal(0, .3, (3, 200)))
        for margin in (.1, .2, .3, .5):
            word = claim.tested(estimated("a over b", e, margin=margin))[0]
            assert (word == "holds") == within(e, margin)
    kept = Effect("a over b", ours=0., low=-1., high=1., n=3, over="seeds and test images", margin=.8)
    assert claim.tested(kept)[0] == "undecided", "an interval without its degrees of freedom is taken at its widest"


@pytest.mark.parametrize("d", [np.full((2, 5), .3), [[0, 1], [1, 0]], np.zeros((3, 4))], ids=["equal", "crosswise", "zeros"])
def test_differences_that_leave_no_variance_are_undecided(d):
    assert gain_verdict(1., crossed(d)).word == "undecided (no spread)" and crossed(d).p is None


@pytest.mark.parametrize("sd", [0., 1e-170, 1e-90, 1e-9, 1e80, 1e120])
def test_welch_at_tiny_and_huge_spreads(sd):
    a, b = Published(1., (sd,), 5), Published(0., (sd,), 3)
    e = welch(a, b)
    assert math.isfinite(e.df) and (sd in (0., 1e-170) or e.df == pytest.approx((1/5 + 1/3)**2 / (1/25/4 + 1/9/2)))


@pytest.mark.parametrize("make", [lambda: crossed([1., 2.]), lambda: crossed([[1., math.nan], [0., 1.]]), lambda: Measured([1e200, 1.]),
                                  lambda: Published(1., (-1.,), 3), lambda: within(Estimate(0., 3, (1., 2)), math.nan),
                                  lambda: within(Estimate(0., 3, (1., 2)), math.inf)])
def test_what_no_statistic_can_be_made_of_is_refused(make):
    with pytest.raises(ValueError, match="crossed needs a row|must be finite|a spread must be|a margin must be"): make()


@pytest.mark.parametrize("n", range(2, 12))
@pytest.mark.parametrize("gap", [0., 8.35, -63.4508, .1])
def test_one_value_for_all_seeds_has_no_interval_on_any_page(n, gap):
    "NumPy's deviation of equal numbers is not always 0."
    d = Measured([gap] * n)
    assert alike(d, 100., at="embedded").word == "undecided (no spread)"
    rows = pd.DataFrame([dict(method=m, metric="probe (%)", seed=s, value=v) for m, v in (("a", 10 + gap), ("b", 10.)) for s in range(n)])
    assert "one autoencoder for all seeds, no interval" in compared(rows, "probe (%)", "a", "b", dict(a="A", b="B"), "embedded")
    fig, ax = plt.subplots()
    dots(ax, {"erm": d.values})
    plt.close(fig)
    assert len(ax.collections) == 0, "no bar of width 0"


@pytest.mark.parametrize("p, decided", [(.05, False), (math.nextafter(.05, 0), True)])
def test_a_p_value_of_exactly_the_level_decides_nothing(p, decided):
    "A page says: yes where it is below .05; 1 - .95 is above .05 by rounding, so .05 was below it."
    row = Row("mixup", "c", "d", "m", Published(), None, None, Verdict("gain", 1., .1, 1.9, p), Verdict(""), holm=p)
    assert Words("%", {}).holm(row) == f"{'yes' if decided else 'no'} (p = 0.05)" and (word_of(row) == "above") == decided
    asked = claim.Claim("varmixup", "1", "mixup is better", ())
    found = claim.Found(asked, (Effect("a over b", None, 1., .1, 1.9, p, 5),), "embedded")
    assert (claim.alone(found)[0] == "holds") == (claim.verdict(replace(found, holm=p)) == "holds") == decided
    coin = claim.Found(asked, (Effect("a over b", 1., coin=p),), "embedded")
    assert ("coin" in coin.follows) != decided
