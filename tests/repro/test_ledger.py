"Paper beside measurement: intervals against SciPy's own tests, verdicts that follow from them, tables that lose and invent nothing."
import math
import pickle
from functools import partial

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings, strategies as st
from scipy import stats

from mixrepro.papers.catalogue import ARTEFACTS
from mixrepro.repro import ledger
from mixrepro.repro.ledger import KEYS, Measured, Published, Verdict, checked, d2, gain_verdict, paired, reported, rows, value_verdict
from mixrepro.repro.scale import SCALES, banner

table = partial(ledger.table, at="paper")
values = st.lists(st.floats(0, 100).map(lambda v: round(v, 3)), min_size=2, max_size=12)
CORRUPTED, CLEAN = {"cifar10-c": ("digits", "corrupted")}, {"cifar10": ("digits", "clean")}
DIGITS = CORRUPTED | CLEAN


def long(cells):
    "(method, dataset, metric) -> values by seed, as a long table."
    return pd.DataFrame([(*k, s, v) for k, vs in cells.items() for s, v in enumerate(vs)], columns=[*KEYS, "value"])


def around(mean, sd, n, rng):
    "n values with exactly this mean and standard deviation."
    z = rng.standard_normal(n)
    return mean + sd * (z - z.mean()) / z.std(ddof=1)


@settings(deadline=None)
@given(values)
def test_interval_of_a_mean_is_scipys(v):
    assume(np.std(v) > 1e-3)
    m, theirs = Measured(v), stats.ttest_1samp(v, 0).confidence_interval(.95)
    assert np.allclose(m.interval, theirs, rtol=1e-9) and math.isclose(m.mean, np.mean(v)) and math.isclose(m.sd, np.std(v, ddof=1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9999), st.integers(0, 9999)), min_size=2, max_size=12), st.sampled_from([1, -1]), st.floats(-20, 20))
def test_gain_is_the_paired_t_test(pairs, sign, paper_gain):
    a, b = np.array(pairs).T / 100
    assume(np.ptp(a - b) > .005)
    verdict = gain_verdict(paper_gain, paired(dict(enumerate(a)), dict(enumerate(b)), sign, "m"))
    result = stats.ttest_rel(*((a, b) if sign > 0 else (b, a)))
    assert np.allclose((verdict.low, verdict.high), result.confidence_interval(.95), atol=1e-8)
    assert math.isclose(verdict.effect, sign * (a - b).mean(), abs_tol=1e-9)
    assume(abs(result.pvalue - .05) > 1e-6)
    if result.pvalue > .05: assert verdict.word == "undecided"
    elif paper_gain == 0: assert verdict.word == "undecided (no gain in the paper)"
    else: assert verdict.word == ("same direction" if (verdict.effect > 0) == (paper_gain > 0) else "opposite direction")


@settings(deadline=None)
@given(ours=values, n=st.integers(2, 12), mean=st.floats(0, 100), sd=st.floats(.01, 5), seed=st.integers(0, 99))
def test_value_is_welchs_test(ours, n, mean, sd, seed):
    assume(np.std(ours) > 1e-3)
    theirs = around(mean, sd, n, np.random.default_rng(seed))
    result = stats.ttest_ind(ours, theirs, equal_var=False)
    verdict = value_verdict(mean, sd, n, Measured(ours))
    assert np.allclose((verdict.low, verdict.high), result.confidence_interval(.95), atol=1e-6)
    assume(abs(result.pvalue - .05) > 1e-6)
    assert verdict.word == ("undecided" if result.pvalue > .05 else "higher" if result.statistic > 0 else "lower")


def test_what_cannot_be_said_is_not_said():
    two = Measured([1, 2])
    assert value_verdict(1, .1, 10, Measured([1])).word == gain_verdict(1, Measured([1])).word == "undecided (n = 1)"
    assert value_verdict(82., None, 0, two).word == "undecided (the paper gives no spread)"
    assert value_verdict(82., .1, 0, two).word == "undecided (the paper gives no number of trials)"
    assert value_verdict(None, None, 0, two).word == "not in the paper" and value_verdict(1, .1, 10, two, "stand-in").word == "stand-in"
    assert value_verdict(1, 0., 10, Measured([1, 1])).word == "undecided (no spread)"
    assert gain_verdict(1, Measured([.3 - .1, .1 + .1])).word == "undecided (no spread)"  # equal up to rounding
    assert gain_verdict(1, Measured([0, 0])).word == "undecided (no spread)"
    assert gain_verdict(0., Measured([1, 1.1])).word == "undecided (no gain in the paper)" and gain_verdict(None, Measured([-1, -1.1])).word == "loss"


def test_range_constant_by_simulation():
    rng = np.random.default_rng(0)
    for n in (2, 3, 5, 10): assert abs(np.ptp(rng.standard_normal((200_000, n)), axis=1).mean() / d2(n) - 1) < .01


def test_every_number_of_table_1_once_more():
    "Row by row as in the paper: corrupted ± sd (clean ± sd) for CIFAR-10, CIFAR-100, Tiny-ImageNet."
    want = """
    at 73.12 .31 85.58 .14 45.09 .31 60.28 .13 15.74 .36 22.33 .16
    trades 75.46 .21 88.11 .43 45.98 .41 63.3 .32 16.20 .23 26.12 .38
    iat 81.05 .42 89.7 .33 50.71 .25 62.7 .21 18.69 .45 18.08 .34
    erm 69.29 .21 94.5 .14 47.3 .32 64.5 .10 17.34 .27 49.96 .12
    mixup 74.74 .34 95.5 .35 52.13 .43 76.8 .41 21.55 .37 53.83 .17
    mixup-r 74.27 .22 89.88 .11 43.54 .15 62.24 .21 21.34 .32 53.5 .28
    manifold-mixup 72.54 .14 95.2 .18 41.42 .23 75.3 .48
    varmixup 82.57 .42 93.91 .45 52.57 .39 73.2 .44 24.87 .32 50.98 .11
    adv-varmixup 82.12 .46 92.19 .32 54.0 .41 72.13 .34 25.36 .21 50.58 .23"""
    columns = [c + end for c in ("cifar10", "cifar100", "tiny-imagenet") for end in ("-c", "")]
    rows = [line.split() for line in want.strip().splitlines()]
    printed = {(r[0], c): (float(m), float(s), 10) for r in rows for c, m, s in zip(columns, r[1::2], r[2::2])}
    t = reported("varmixup", "vm-table1")
    assert {(r.row, r.column): (r["mean"], r.spread, r.n) for _, r in t.iterrows()} == printed and len(t) == 52
    # margins over the best baseline of each column, computed independently
    cell = t.set_index(["row", "column"])["mean"]
    baselines = [r[0] for r in rows[:7]]
    for column, var, adv in (("cifar10-c", 1.52, 1.07), ("cifar100-c", .44, 1.87), ("tiny-imagenet-c", 3.32, 3.81)):
        best = max(cell.get((b, column), 0) for b in baselines)
        assert np.allclose([cell["varmixup", column] - best, cell["adv-varmixup", column] - best], [var, adv])


def test_reported_file_is_tidy():
    for artefact in (a for a in ARTEFACTS.values() if a.paper == "varmixup"):
        t = reported("varmixup", artefact.id)
        assert list(t) == "paper artefact row column mean spread n where".split() and not t.duplicated(["row", "column"]).any()
        assert set(t.artefact) <= {artefact.id} and t["mean"].notna().all() and t["where"].notna().all() and (t.spread.isna() == t.n.isna()).all()
    assert reported("varmixup", "vm-transfer").set_index("column")["mean"].to_dict() == {"cifar10-c": 82., "cifar100-c": 53.25}


def test_the_tables_of_manifold_mixup_are_tidy_and_whole():
    every = {a.id: reported("manifold_mixup", a.id) for a in ARTEFACTS.values() if a.paper == "manifold_mixup"}
    for id, t in every.items():
        assert not t.duplicated(["row", "column"]).any() and set(t.artefact) <= {id} and t["mean"].notna().all() and t["where"].notna().all()
    deformed = every["mm-table5"].pivot(index="column", columns="row", values="mean")
    assert deformed.shape == (17, 4) and (deformed["manifold-mixup"] > deformed["erm"]).sum() == 14  # all but three of the four zooms inwards
    assert every["mm-table1"].set_index(["row", "column"])["mean"]["manifold-mixup-all", "cifar10 preactresnet152 error"] == 2.38
    assert every["mm-table2"].groupby("column")["mean"].idxmin().map(every["mm-table2"].row).to_dict() == {"cifar10": "ssl-manifold-mixup", "svhn": "vat-em"}


def test_table_1_on_a_stand_in():
    cells = {(m, "digits", k): around(50 + i + (k == "clean") * 30, 1 + i, 5, np.random.default_rng(i))
             for i, m in enumerate(("erm", "mixup", "varmixup")) for k in ("corrupted", "clean")}
    data, text = table(reported("varmixup", "vm-table1"), long(cells), DIGITS, pooled=False, reasons={(m, "digits"): "stand-in" for m in ("erm", "mixup", "varmixup")})
    assert len(data) == 52 and data["our n"].sum() == 30
    assert set(data[data["our n"] > 0]["value"]) == {"stand-in"} and set(data[data["our n"] == 0]["value"]) == {"not run"}
    row = data[(data.method == "varmixup") & (data.column == "cifar10-c")].iloc[0]
    a, b = (cells[m, "digits", "corrupted"] for m in ("varmixup", "erm"))
    assert np.allclose([row["paper mean (%)"], row["paper sd (%)"], row["paper n"], row["our mean (%)"], row["our sd (%)"]], [82.57, .42, 10, 52, 3])
    assert np.allclose([row["gain low (points)"], row["gain high (points)"]], stats.ttest_rel(a, b).confidence_interval(.95))
    assert np.allclose([row["paper gain (points)"], row["our gain (points)"]], [13.28, 2])
    assert "82.57 ± 0.42 (n = 10) | 52.00 ± 3.00 (n = 5) | +13.28 [+12.96, +13.60] | +2.00 [" in text
    assert text.count("\n| --- |") == 6 and "**tiny-imagenet-c**, not run" in text and "nan" not in text and "None" not in text


def test_markdown_is_a_rectangle_and_says_what_the_data_say():
    ours = long({("erm", "digits", "clean"): [90, 91], ("nfm", "digits", "clean"): [93, 95]})
    data, text = table(reported("varmixup", "vm-table1"), ours, {"cifar10": ("digits", "clean")})
    blocks = [b for b in text.split("\n\n") if b.startswith("|")]
    assert all(len({l.count("|") for l in b.splitlines()}) == 1 for b in blocks)
    assert sum(len(b.splitlines()) - 2 for b in blocks) == len(data) == 53
    extra = data[data.method == "nfm"].iloc[0]
    assert extra["value"] == "not in the paper" and extra["direction"] == "undecided" and math.isnan(extra["paper mean (%)"])
    assert "| nfm |  | 94.00 ± 1.41 (n = 2) |  | +3.50 [" in text


@given(st.floats(.001, 1000))
@settings(max_examples=20, deadline=None)
def test_scale_and_sign(scale):
    cells = {("erm", "digits", "corrupted"): [40., 41, 43], ("mixup", "digits", "corrupted"): [30., 32, 31]}
    data, _ = table(reported("varmixup", "vm-table1"), long(cells).assign(value=lambda d: d.value / scale), CORRUPTED, scale=scale, higher_is_better=False)
    plain, _ = table(reported("varmixup", "vm-table1"), long(cells), CORRUPTED)
    ours, theirs = (d.query("method == 'mixup' and column == 'cifar10-c'").iloc[0] for d in (data, plain))
    assert math.isclose(ours["our mean (%)"], 31)
    assert math.isclose(ours["our gain (points)"], -theirs["our gain (points)"]) and math.isclose(ours["our gain (points)"], 31 / 3)
    assert ours["paper gain (points)"] == -theirs["paper gain (points)"] and ours["direction"] == theirs["direction"] == "opposite direction"


def test_the_papers_own_data_on_its_own_and_on_another_schedule():
    own = long({("erm", "cifar10", "corrupted"): [69.2, 69.4, 69.3], ("mixup", "cifar10", "corrupted"): [70.1, 70.4, 70.2]})
    columns = {"cifar10-c": ("cifar10", "corrupted")}
    verdicts = {s: table(reported("varmixup", "vm-table1"), own, columns, reasons={("erm", "cifar10"): s, ("mixup", "cifar10"): s}) for s in ("", "other schedule")}
    assert list(verdicts[""][0].query("`our n` > 0")["value"]) == ["agrees", "lower"]
    data, text = verdicts["other schedule"]
    assert set(data.query("`our n` > 0")["value"]) == {"other schedule"}
    assert set(data.query("`our n` > 0")["direction"]) == {"baseline", "same direction"}


def test_a_paper_with_a_figure_only_and_a_table_without_baseline():
    ece = long({("erm", "digits", "ece"): [9, 10.], ("mixup", "digits", "ece"): [4, 4.5]})
    data, text = table(reported("varmixup", "vm-fig2"), ece, {"cifar10": ("digits", "ece")}, higher_is_better=False)
    assert list(data["value"]) == ["the paper gives a figure only"] * 2 and list(data["direction"]) == ["baseline", "gain"]
    assert data["paper n"].isna().all()
    data, text = table(reported("varmixup", "vm-cost"), ece[:0], {}, baseline=None, unit="h")
    assert set(data["value"]) == {"not run"} and "Gain" not in text and "| varmixup | 3.00 |  | not run |" in text


def test_ranges_beside_ranges():
    paper = pd.DataFrame([("erm", "c", 50., "49/52", 5), ("mixup", "c", 60., "59/61", 5)], columns=["row", "column", "mean", "spread", "n"])
    data, text = table(paper, long({("erm", "d", "m"): [50, 51.], ("mixup", "d", "m"): [70, 71.5]}), {"c": ("d", "m")}, spread="min/max")
    assert list(data["paper min (%)"]) == [49, 59] and list(data["our max (%)"]) == [51, 71.5] and list(data["value"]) == ["undecided", "higher"]
    assert "| 50.00 (49.00 to 52.00, n = 5) | 50.50 (50.00 to 51.00, n = 2) |" in text and math.isclose(Published.of(paper.iloc[0]).sd, 3 / d2(5))


@pytest.mark.parametrize("change, message", [
    (lambda d: d.drop(columns="metric"), "measurements need the columns .*: metric missing"),
    (lambda d: pd.concat([d, d[:1]]), "measured more than once: erm on digits, clean, seed 0: keep one row"),
    (lambda d: d.assign(value=[1., math.inf, 1, 1]), "not a finite number: erm on digits, clean, seed 1 is inf"),
    (lambda d: d.assign(value=["91.2", "90 %", "1", "1"]), "erm on digits, clean, seed 0 is the text '91.2': read the values as numbers"),
    (lambda d: d.assign(metric="claen"), "unknown measurement 'digits, clean': did you mean 'digits, claen'"),
    (lambda d: d[d.method != "erm"], "the baseline 'erm' was not measured on digits, clean: run it, or name another"),
    (lambda d: d.assign(seed=[0, 1, 0, 2]), "mixup and its baseline must share their seeds: 1, 2 stand on one side only")])
def test_what_is_wrong_with_measurements_is_said(change, message):
    good = long({("erm", "digits", "clean"): [90, 91.], ("mixup", "digits", "clean"): [92, 94.]})
    table(reported("varmixup", "vm-table1"), good, {"cifar10": ("digits", "clean")})
    with pytest.raises(ValueError, match=message): table(reported("varmixup", "vm-table1"), change(good), {"cifar10": ("digits", "clean")})


def test_rows_may_come_in_any_order():
    good = long({("erm", "digits", "clean"): [90, 91, 95.], ("mixup", "digits", "clean"): [92, 94, 95.5]})
    one = table(reported("varmixup", "vm-table1"), good, CLEAN)
    other = table(reported("varmixup", "vm-table1"), good.sample(frac=1, random_state=1), CLEAN)
    assert one[1] == other[1] and checked(good)["digits", "clean"]["mixup"] == {0: 92, 1: 94, 2: 95.5}
    pd.testing.assert_frame_equal(one[0], other[0])


numbers = st.none() | st.floats(-100, 100)


@given(word=st.sampled_from(("agrees", "undecided (n = 1)")), values=st.tuples(numbers, numbers, numbers))
def test_what_says_the_same_is_equal(word, values):
    "Also where there is no number, on every Python: since 3.13 dataclasses compare field by field, and nan there is not equal to itself."
    def again(x): return pickle.loads(pickle.dumps(x))  # other objects, where identity could pass for equality
    for made in (Verdict(word, *values), Published(values[0], (), 3)):
        assert made == again(made) and hash(made) == hash(again(made)) and made != Verdict("lower", *values)


def test_rows_of_the_same_numbers_are_equal():
    measured = long({("erm", "digits", "clean"): [90, 91.], ("mixup", "digits", "clean"): [92, 94.], ("new", "digits", "clean"): [1, 2.]})
    def once(): return rows(reported("varmixup", "vm-table1"), measured.copy(), CLEAN, "erm", 1, {}, at="paper")
    assert once() == once() and any(None in (r.paper.mean, r.paper_gain, r.gain.low) for r in once())


@pytest.mark.parametrize("make", [lambda: Verdict("agrees", math.nan), lambda: Verdict("agrees", 1., 0., np.float64("nan")), lambda: Published(float("nan")),
                                  lambda: Published(1., (math.nan,), 3)])
def test_nan_is_no_number(make):
    with pytest.raises(ValueError, match="is nan: leave it at None where there is no number"): make()


@pytest.mark.parametrize("at", SCALES)
def test_verdicts_are_withheld_where_the_scale_says_so_and_numbers_are_not(at):
    measured = long({("erm", "digits", "clean"): [90, 91, 92.], ("mixup", "digits", "clean"): [94, 95, 96.5], ("varmixup", "digits", "clean"): [91, 90, 93.]})
    paper = reported("varmixup", "vm-table1").query("column == 'cifar10'")
    plain, words = ledger.table(paper, measured, CLEAN, at="paper")
    data, text = ledger.table(paper, measured, CLEAN, at=at)
    same = [c for c in data if c not in ("direction", "value")]
    pd.testing.assert_frame_equal(data[same], plain[same])
    said = {w for c in ("direction", "value") for w in data[data["our n"] > 0][c]}
    if SCALES[at].verdicts: assert (text, said) == (words, {"baseline", "same direction", "undecided", "lower"}) and not banner(at)
    else: assert said == {"baseline", "withheld"} and text.startswith(banner(at) + "\n\n") and not any(w in text for w in ("same direction", "undecided", "lower", "agrees", "yes (", "no ("))


@settings(deadline=None)
@given(st.lists(st.integers(-3, 3).map(lambda v: v / 10), min_size=1, max_size=5), st.integers(0, 100))
def test_a_claim_and_a_gain_on_the_same_differences_say_the_same(differences, level):
    m = Measured([(level + d) - level for d in differences])  # with what rounding leaves
    word = gain_verdict(1., m).word
    claimed = ledger.claim((m.mean, *(m.interval or (None, None))), 1, at="paper")
    assert claimed.word == {"same direction": "holds", "opposite direction": "does not hold"}.get(word, word)
    if len(set(differences)) == 1 < m.n: assert word == "undecided (no spread)" and claimed.low is None


@given(st.lists(st.sampled_from(["same direction", "opposite direction", "gain", "loss", "undecided", "undecided (n = 1)"]), max_size=6))
def test_gains_are_counted_in_grammar(words):
    found = ledger.counted(pd.DataFrame({"method": "mixup", "direction": ["baseline", *words], "our n": 3}), "ERM")
    assert bool(found) == bool(words)
    for text in found:
        parts = text.split(", ")[1:] if len(words) > 1 else []
        assert sum(int(p.split()[0]) for p in parts) == (len(words) if parts else 0)
        assert all(p.split()[1] == ("is" if p.split()[0] == "1" else "are") for p in parts) and "Of 1 " not in text
        if len(words) == 1: assert text.startswith("The one gain over ERM is ")


def test_published_cells_stand_once():
    paper = reported("varmixup", "vm-table1")
    assert len(ledger.by_cell(paper)) == len(paper)
    with pytest.raises(ValueError, match="stands twice: pass the rows of one artefact"): ledger.by_cell(pd.concat([paper, paper]))
