"Seeds and test images together, pooled spreads, powers, margins and many comparisons: against SciPy, least squares and draws of which the truth is known."
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from scipy import stats

from mixrepro.repro.estimates import (MOST, PRIOR, Estimate, Images, Mean, Measured, Published, among, at_seeds, block_residual, crossed, over_seeds, power,
                                      seeds_to_decide, welch, with_pooled)
from mixrepro.repro.ledger import HOLM, sheet, together
from mixrepro.repro.rows import KEYS, gained, reported
from mixrepro.repro.verdicts import decide, gain_verdict, holm, within


@pytest.fixture(scope="module", autouse=True)
def no_collection():
    "statsmodels collects garbage in each correction, a tenth of a second that thousands of them cannot wait for."
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gc.collect", lambda *generation: 0)
        yield


def draw(rng, s, n, sd_seed, sd_image, sd_rest, mean=0.):
    return mean + rng.normal(0, sd_seed, (s, 1)) + rng.normal(0, sd_image, (1, n)) + rng.normal(0, sd_rest, (s, n))


def coverage(how, draws, rng, *truth):
    intervals = [how(draw(rng, *truth)).interval for _ in range(draws)]
    return np.mean([low <= 0 <= high for low, high in intervals])


@pytest.mark.parametrize("s", [3, 5, 10])
@pytest.mark.parametrize("truth", [(.5, 1, 1), (.1, 1, 1), (.02, 1, .5), (0, 1, 1)], ids=["seeds", "both", "images", "no seeds"])
def test_ninety_five_percent_are_ninety_five(s, truth):
    "1,000 draws: three standard errors are 2.1 points. With three seeds Satterthwaite's degrees of freedom cost up to 2.5 points."
    found = coverage(crossed, 1000, np.random.default_rng(s), s, 200, *truth)
    assert (.9 if s == 3 else .925) <= found <= .985, found


def test_seeds_alone_do_not_cover_other_images():
    rng = np.random.default_rng(0)
    assert coverage(lambda d: over_seeds(Measured(d.mean(1))), 500, rng, 5, 200, .02, 1, .5) < .5


def test_right_or_wrong_is_no_normal_value_and_is_covered_too():
    "Two methods on one test set: what a seed gets right is 0 or 1, hard images are hard for both."
    rng, hits, truth, n = np.random.default_rng(1), 0, .03, 400
    for _ in range(600):
        hard, shift = rng.normal(1, 1, n), rng.normal(0, .05, (2, 5, 1))
        a, b = (rng.random((5, n)) < np.clip(stats.norm.cdf(hard + shift[k]) + (truth if k else 0) * (hard < 3), 0, 1) for k in (0, 1))
        low, high = crossed(b.astype(float) - a).interval
        hits += low <= .0285 <= high
    assert .92 <= hits / 600 <= .99, hits / 600


def test_the_image_part_is_scipys_bootstrap_over_images():
    d = draw(np.random.default_rng(2), 6, 300, .1, .8, .8)
    boot = stats.bootstrap((d.mean(0),), np.mean, n_resamples=4000, rng=np.random.default_rng(0), method="basic")
    assert math.sqrt(crossed(d).images[0]) == pytest.approx(boot.standard_error, rel=.04)
    seeds = stats.bootstrap((d.mean(1),), np.mean, n_resamples=4000, rng=np.random.default_rng(0), method="basic")
    assert math.sqrt(crossed(d).seeds[0]) == pytest.approx(seeds.standard_error * math.sqrt(6 / 5), rel=.05)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), st.integers(2, 30), st.integers(0, 999))
def test_the_parts_are_those_of_a_two_way_analysis(s, n, seed):
    d = draw(np.random.default_rng(seed), s, n, 1, 1, 1)
    x = np.array([[i == k for k in range(s)] + [j == k for k in range(1, n)] for i in range(s) for j in range(n)], dtype=float)
    fitted = x @ np.linalg.lstsq(x, d.ravel())[0]
    rest = ((d.ravel() - fitted)**2).sum() / ((s - 1) * (n - 1))
    e = crossed(d)
    assert e.both[0] == pytest.approx(rest / (s * n)) and e.effect == pytest.approx(d.mean())
    assert e.seeds[0] == pytest.approx(d.mean(1).var(ddof=1) / s) and e.images[0] == pytest.approx(d.mean(0).var(ddof=1) / n)
    assert e.variance >= max(e.seeds[0], e.images[0])
    assert crossed(-d).interval == pytest.approx(tuple(-v for v in reversed(e.interval)))


def test_pooled_is_the_contrast_of_ordinary_least_squares():
    "Methods and seeds as columns of a design; the standard error of a difference of two methods from the covariance of the coefficients."
    rng, m, s = np.random.default_rng(3), 5, 4
    v = rng.normal(size=(m, s)) + rng.normal(size=(1, s)) + np.arange(m)[:, None]
    x = np.array([[i == k for k in range(m)] + [j == k for k in range(1, s)] for i in range(m) for j in range(s)], dtype=float)
    beta, rest, *_ = np.linalg.lstsq(x, v.ravel())
    df = m * s - x.shape[1]
    c = np.zeros(x.shape[1]); c[3], c[0] = 1, -1
    se = math.sqrt(c @ np.linalg.inv(x.T @ x) @ c * rest[0] / df)
    table = {f"m{i}": dict(enumerate(v[i])) for i in range(m)}
    e = gained(table["m3"], table["m0"], 1, "m3", block_residual(table))
    shared, own = block_residual(table), (v[3] - v[0]).var(ddof=1) / s
    assert (math.sqrt(2 * shared.variance / s), shared.df) == (pytest.approx(se), df)
    assert e.pooled and e.effect == pytest.approx(c @ beta)
    assert (e.variance, e.df) == (pytest.approx((PRIOR * se**2 + (s - 1) * own) / (PRIOR + s - 1)), PRIOR + s - 1), "Smyth's moderated t"


def test_pooled_intervals_cover_and_are_shorter():
    rng, hits, own, mine, theirs = np.random.default_rng(4), 0, 0, [], []
    for _ in range(800):
        v = rng.normal(size=(6, 3)) + 3 * rng.normal(size=(1, 3))
        table = {i: dict(enumerate(row)) for i, row in enumerate(v)}
        e, alone = (gained(table[1], table[0], 1, "1", r) for r in (block_residual(table), None))
        hits += e.interval[0] <= 0 <= e.interval[1]; own += alone.interval[0] <= 0 <= alone.interval[1]
        mine.append(np.ptp(e.interval)); theirs.append(np.ptp(alone.interval))
    assert .925 <= hits / 800 <= .98 and .925 <= own / 800 <= .98 and np.median(mine) < .75 * np.median(theirs)


@pytest.mark.parametrize("sds", [(1,) * 8 + (2,), (2,) + (1,) * 8, tuple(np.linspace(2, 1, 9))], ids=["one", "baseline", "each"])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_cover_where_methods_spread_unlike(sds, seeds):
    "Up to twice another's standard deviation is what no test finds among so few seeds."
    rng, hits, whole = np.random.default_rng(9), [], []
    for _ in range(120):
        v = rng.normal(size=(9, seeds)) * np.array(sds)[:, None] + rng.normal(size=(1, seeds))
        table = {i: dict(enumerate(row)) for i, row in enumerate(v)}
        shared = block_residual(table)
        for m in range(1, 9):
            e, both = gained(table[m], table[0], 1, str(m)), among(shared, m, 0)
            for kept, of in ((hits, with_pooled(e, both)), (whole, replace(e, seeds=(2 * both.variance / seeds, both.df)) if both else e)):
                kept.append(of.interval[0] <= 0 <= of.interval[1])
    assert np.mean(hits) > max(.88, np.mean(whole) + .005), (np.mean(hits), np.mean(whole))


def test_a_method_that_spreads_more_keeps_its_own():
    rng = np.random.default_rng(5)
    table = {i: dict(enumerate(rng.normal(size=5) * (30 if i == 5 else 1))) for i in range(6)}
    residual = block_residual({k: v for k, v in table.items() if k != 5})
    own = gained(table[5], table[0], 1, "5")
    assert with_pooled(own, residual) == own and with_pooled(gained(table[1], table[0], 1, "1"), residual).pooled


def test_images_and_pooled_together_cover():
    rng, hits = np.random.default_rng(6), 0
    for _ in range(400):
        image, block = rng.normal(0, 1, (1, 150)), rng.normal(0, .3, (3, 1))
        made = {i: draw(rng, 3, 150, .1, .5, 1) + image + block for i in range(5)}
        table = {i: {s: Mean.of(row.mean(), Images(row)) for s, row in enumerate(v)} for i, v in made.items()}
        e = gained(table[1], table[0], 1, "1", block_residual(table))
        hits += e.interval[0] <= 0 <= e.interval[1]
    assert e.over == "seeds and test images, pooled" and .92 <= hits / 400 <= .99, hits / 400


@settings(deadline=None, max_examples=40)
@given(st.floats(.3, 3), st.integers(3, 8))
def test_as_many_seeds_as_a_power_of_80_percent_needs(d, n):
    "Against SciPy's noncentral t, where it can be computed, and against the definition."
    e = Estimate(d, n, (1 / n, n - 1))
    needed = seeds_to_decide(e)
    def exact(s): return stats.nct.sf(stats.t.ppf(.975, s - 1), s - 1, d * math.sqrt(s)) + stats.nct.cdf(-stats.t.ppf(.975, s - 1), s - 1, d * math.sqrt(s))
    assert exact(needed) >= .795 and (needed == 2 or exact(needed - 1) < .805)


def test_the_seeds_that_would_decide_do():
    "Drawn anew with as many seeds as it says, the effect is decided four times in five."
    rng, e = np.random.default_rng(7), crossed(draw(np.random.default_rng(8), 4, 250, .3, .5, 1., .25))
    e = Estimate(.25, 4, (.3**2 / 4 + 1 / 1000, 3), (.5**2 / 250 + 1 / 1000, 249), (1 / 1000, 747))
    s = seeds_to_decide(e)
    found = [crossed(draw(rng, s, 250, .3, .5, 1., .25)).interval[0] > 0 for _ in range(500)]
    assert 5 < s < 40 and .73 < np.mean(found) < .88, (s, np.mean(found))


def test_where_the_images_are_the_limit_no_seed_helps():
    e = crossed(draw(np.random.default_rng(9), 5, 100, .01, 1, .1, .1))
    assert seeds_to_decide(e) == math.inf and power(at_seeds(e, 10_000)) < .8
    assert seeds_to_decide(Estimate(1e-5, 3, (1., 2))) == MOST


@settings(deadline=None)
@given(st.lists(st.floats(-2, 2).map(lambda v: round(v, 2)), min_size=3, max_size=8), st.floats(.1, 3))
def test_small_is_two_one_sided_tests(values, margin):
    if np.ptp(values) < .02: return
    e = over_seeds(Measured(values))
    p = max(stats.ttest_1samp(values, -margin, alternative="greater").pvalue, stats.ttest_1samp(values, margin, alternative="less").pvalue)
    if abs(p - .05) > 1e-9: assert within(e, margin) == (p < .05)
    ninety = stats.ttest_1samp(values, 0).confidence_interval(.9)
    if abs(p - .05) > 1e-9: assert within(e, margin) == (-margin < ninety.low and ninety.high < margin)
    word = gain_verdict(1., e, margin).word
    assert word == {True: "same direction" if e.effect > 0 else "opposite direction", False: "no difference" if p < .05 else "undecided"}[e.p < .05]


@given(st.lists(st.none() | st.floats(0, 1), max_size=12))
def test_holm_is_its_own_definition(ps):
    "For each comparison: the largest, over those as small or smaller, of p times how many are not smaller."
    found, known = holm(ps), [p for p in ps if p is not None]
    for p, h in zip(ps, found):
        if p is None: assert h is None; continue
        order = sorted(known)
        assert h == pytest.approx(min(1, max((len(order) - k) * q for k, q in enumerate(order) if q <= p)))
        assert h >= p


def test_what_is_wrong_in_the_family_is_wrong_once_in_twenty():
    rng = np.random.default_rng(10)
    wrong = sum(any(h < .05 for h in holm(list(rng.uniform(size=20)))) for _ in range(2000)) / 2000
    assert .03 < wrong < .07


def test_the_papers_side_is_welchs_test():
    own = welch(Published(10.71, (.44,), 5), Published(10.26, (.32,), 5))
    theirs = stats.ttest_ind_from_stats(10.71, .44, 5, 10.26, .32, 5, equal_var=False)
    assert own.p == pytest.approx(theirs.pvalue) and own.df == pytest.approx(theirs.df) if hasattr(theirs, "df") else own.p == pytest.approx(theirs.pvalue)
    assert decide(own, ("gain", "loss", "no difference")).word == "undecided"


def long(cells, images=None):
    rows = pd.DataFrame([(m, "digits", "clean", s, v) for m, vs in cells.items() for s, v in enumerate(vs)], columns=[*KEYS, "value"])
    return rows if images is None else rows.assign(images=[Images(v) for vs in images.values() for v in vs])


def test_a_table_with_images_and_contrasts():
    rng = np.random.default_rng(11)
    images = {m: [(rng.random(300) < p) * 1. for _ in range(4)] for m, p in dict(erm=.5, mixup=.6, iat=.9, varmixup=.75).items()}
    measured = long({m: [v.mean() for v in vs] for m, vs in images.items()}, images)
    paper = reported("varmixup", "vm-table1").query("column == 'cifar10'")
    made = sheet(paper, measured, {"cifar10": ("digits", "clean")}, scale=100, at="embedded", contrasts=(("varmixup", "best of", ("erm", "mixup", "iat")),))
    data = made.data.set_index("method")
    assert data.loc["varmixup over mixup", "against"] == "mixup", "the paper's best on clean images"
    e = crossed(100 * np.array([a - b for a, b in zip(images["varmixup"], images["mixup"])]))
    assert data.loc["varmixup over mixup", "our gain (points)"] == pytest.approx(e.effect) and data.loc["varmixup over mixup", "paper gain (points)"] == pytest.approx(-1.59)
    assert set(data["interval over"]) == {"", "seeds and test images, pooled"} and "; intervals over seeds and test images, pooled" in made.text
    ps = data.p.dropna()
    assert len(ps) == 4 and data[HOLM].dropna().tolist() == pytest.approx(holm(ps.tolist()))
    with pytest.raises(ValueError, match="its 300 images average to .* and not to .*: change both or leave the images out"):
        sheet(paper, measured.assign(value=measured.value / 2), {"cifar10": ("digits", "clean")}, at="embedded")


def test_two_tables_are_one_family():
    measured = long({"erm": [90, 91, 92.], "mixup": [94, 95, 96.5], "varmixup": [91, 90, 93.]})
    columns = [reported("varmixup", "vm-table1").query(f"column == '{c}'") for c in ("cifar10", "cifar10-c")]
    one, two = (sheet(p, measured, {p["column"].iloc[0]: ("digits", "clean")}, at="embedded") for p in columns)
    both = together([one, two])
    ps = [r.gain.p for s in (one, two) for r in s.found]
    assert [r.holm for s in both for r in s.found] == holm(ps) and both[0].data["our gain (points)"].equals(one.data["our gain (points)"])
    assert "corrected for 4 comparisons" in both[1].text and "corrected for 2 comparisons" in two.text
    assert together([]) == []


def test_what_says_the_same_is_equal_with_images_too():
    d = np.arange(12.).reshape(3, 4)**2
    assert crossed(d) == crossed(d.copy()) and replace(crossed(d), n=3) == crossed(d)
