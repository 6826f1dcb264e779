"The marks of table 4 by brute force over assignments; effects of made runs against statsmodels' formulas and the truth."
import itertools
import math

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
from hypothesis import given, settings, strategies as st

from conftest import ROOT
from mixrepro.papers.noisymix import marks as M
from mixrepro.papers.noisymix.parts import SECOND_VIEW
from mixrepro.repro.figures import LABELS
from mixrepro.repro.rows import reported


@pytest.fixture(scope="module")
def tables(): return [M.by_row(reported("noisymix", f"nm-table{i}")) for i in (3, 4)]


@pytest.fixture(scope="module")
def fixed(tables): return M.from_text(*tables)


# ---- settings -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("view, n", [("augmentation", 12), ("noise", 14), ("copy", 16)])
def test_settings_less_those_whose_views_are_equal(view, n):
    every = M.settings(view)
    assert len(every) == 16 and not every[[*M.PARTS]].duplicated().any() and (every.left_out == "").sum() == n == len(M.meaningful(view))
    out = every[every.left_out != ""]
    assert out.jsd.all() and not out.augmentation.any() and (view == "augmentation" or not out.noise.any())
    assert all(why.endswith(f"so it is {name.replace(' + jsd', '').replace('jsd', 'none')!r} again") for name, why in zip(out.name, out.left_out))


def test_what_is_left_out_is_said_with_its_reason():
    told = M.told_left_out()
    assert told.startswith("Of the 16 settings of four parts 4 are left out: ") and M.told_left_out("copy") == ""
    for name, why in M.settings().query("left_out != ''")[["name", "left_out"]].to_numpy(): assert f"'{name}' ({why})" in told


def test_the_page_names_each_constraint_and_what_is_left_out(fixed):
    page = (ROOT / "figures/embedded/noisymix/nm-table4.md").read_text()
    for r in M.as_listed(fixed, LABELS).itertuples(): assert r.constraint in page and r.where in page
    assert M.told_left_out() in page


# ---- assignments ----------------------------------------------------------------------------------------------------

def brute(allowed, others):
    "All ways to fill rows from their own settings, no two alike, by listing the product."
    rows = list(allowed)
    found = []
    for choice in itertools.product(*allowed.values()):
        one = dict(zip(rows, choice))
        if len({*choice}) == len(rows) and all(c.allows(*(one[r] for r in c.rows)) for c in others): found.append(one)
    return found


def test_the_rows_that_are_decided(fixed):
    "What the referee found by hand: rows 1 to 5 and 10, and 360 ways for the others."
    left = M.surviving(fixed)
    first, last = {r: {one[r] for one in left} for r in M.ROWS[:5] + M.ROWS[9:]}, {r: {one[r] for one in left} for r in M.OPEN}
    assert len(left) == 360 == math.perm(6, 4) and all(len(v) == 1 for v in first.values())
    assert {M.setting_name(*v) for v in first.values()} == {"none", "noise", "mixing", "mixing + noise", "augmentation",
                                                            "augmentation + mixing + noise + jsd"}
    six = {"augmentation + mixing", "augmentation + noise", "augmentation + mixing + noise", "augmentation + jsd", "augmentation + noise + jsd",
           "augmentation + mixing + jsd"}
    assert all({M.setting_name(on) for on in v} == six for v in last.values())


def test_survivors_are_those_of_a_brute_force(fixed, tables):
    "The open rows by listing every quadruple, with all readings."
    everything = [*fixed, *(c for cs in M.readings(tables[1]).values() for c in cs)]
    allowed = {row: v for row, v in M.domains(fixed, "augmentation").items() if len(v) > 1}
    assert set(allowed) == {*M.OPEN, "row 2"} or set(allowed) == {*M.OPEN}
    single = M.domains(fixed, "augmentation")
    small = {row: [on for on in v if on not in [w[0] for r, w in single.items() if len(w) == 1 and r != row]] for row, v in single.items()}
    want = brute(small, [c for c in everything if len(c.rows) > 1])
    found = M.surviving(everything)
    def key(one): return tuple(M.setting_name(one[r]) for r in M.ROWS)
    assert sorted(map(key, want)) == sorted(map(key, found)) and len({*map(key, found)}) == len(found) == 30


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_counting_is_listing(seed):
    "Random settings for each row; counted without a list and listed."
    rng = np.random.default_rng(seed)
    every = M.meaningful()
    own = {row: {every[i] for i in rng.choice(12, rng.integers(1, 4), replace=False)} for row in M.ROWS}
    constraints = [M.Constraint(row, "", (row,), own[row].__contains__) for row in M.ROWS]
    found = M.surviving(constraints)
    assert M.counted(constraints) == len(found) == len(brute(own, []))
    assert all(one[row] in own[row] for one in found for row in M.ROWS) and all(len({*one.values()}) == 10 for one in found)


@pytest.mark.parametrize("change, lost", [("gain", "row 5 is augmentation alone"), ("pair", "row 1 is erm")])
def test_a_changed_number_frees_a_row(tables, change, lost):
    "The constraints are read off the printed numbers: planted faults show."
    table3, table4 = (t.copy() for t in tables)
    if change == "gain": table4.loc["row 5", "gain"] = 15.
    else: table3.loc["erm", "cifar100"] = 78.9
    left = {c.name for c in M.from_text(table3, table4)}
    assert lost in {c.name for c in M.from_text(*tables)} - left
    assert len(M.surviving(M.from_text(table3, table4))) > 360


def test_one_part_more_is_never_below(fixed, tables):
    "Of what survives, no row with one part more is less robust: looked at pair by pair."
    robust = tables[1]["cifar100-c"]
    for one in M.surviving([*fixed, *M.never_lowers(tables[1], "jsd")]):
        for a, b in itertools.permutations(M.ROWS, 2):
            if one[a] == one[b] | {"jsd"} and one[a] != one[b]: assert robust[a] > robust[b]
    assert len(M.surviving([*fixed, *M.never_lowers(tables[1], "jsd")])) < 360


# ---- effects --------------------------------------------------------------------------------------------------------

def made(truth, view="copy", seeds=4, sd=1., rng=None, shift=3.):
    "Runs with known effects: a setting's value is the sum of `truth` over what is on; a seed shifts all of its runs."
    rng = rng or np.random.default_rng(0)
    moves = shift * rng.normal(size=seeds)
    def value(on): return 60 + sum(v for parts, v in truth.items() if {*parts} <= on)
    return pd.DataFrame([{p: p in on for p in M.PARTS} | dict(seed=s, value=value(on) + moves[s] + sd * rng.normal())
                         for on in M.meaningful(view) for s in range(seeds)])


def random_truth(rng): return {tuple(c): rng.normal() for n in (1, 2, 3) for c in itertools.combinations(M.PARTS, n)}


@pytest.mark.parametrize("seed", range(3))
def test_a_whole_factorial_is_that_of_the_formula(seed):
    "All parts coded -1/2 and 1/2 with all their products and a block for each seed: coefficients are the effects, intervals too."
    rng = np.random.default_rng(seed)
    frame = made(random_truth(rng), rng=rng)
    coded = frame.assign(**{p: frame[p] - .5 for p in M.PARTS})
    fit = smf.ols("value ~ augmentation * mixing * noise * jsd + C(seed)", coded).fit()
    found = M.effects(frame, order=4)
    assert len(found) == 15
    for row in found.itertuples():
        term = row.parts.replace(" + ", ":")
        assert row.estimate == pytest.approx(fit.params[term]) and row.p == pytest.approx(fit.pvalues[term], rel=1e-6)
        assert [row.low, row.high] == pytest.approx(fit.conf_int().loc[term].tolist())


@pytest.mark.parametrize("view", SECOND_VIEW)
def test_without_noise_effects_are_the_truth(view):
    "By hand: differences of values, averaged over the settings of the rest that are there."
    rng = np.random.default_rng(1)
    truth, there = random_truth(rng), M.meaningful(view)
    value = {on: sum(v for parts, v in truth.items() if {*parts} <= on) for on in there}
    found = M.effects(made(truth, view, sd=1e-9)).set_index("parts")
    for p in M.PARTS:
        pairs = [value[on | {p}] - value[on] for on in there if p not in on and on | {p} in value]
        assert found.estimate[p] == pytest.approx(np.mean(pairs), abs=1e-6) and found.over[p] == len(pairs)
    for p, q in itertools.combinations(M.PARTS, 2):
        four = [value[on | {p, q}] - value[on | {p}] - value[on | {q}] + value[on] for on in there
                if not on & {p, q} and {on | {p}, on | {q}, on | {p, q}} <= value.keys()]
        if four: assert found.estimate[f"{p} + {q}"] == pytest.approx(np.mean(four), abs=1e-6)
        else: assert math.isnan(found.estimate[f"{p} + {q}"]) and found.over[f"{p} + {q}"] == 0


def test_intervals_cover():
    "60 made experiments, 9 effects each; within 4 standard errors of 95 %, those of one experiment taken as one draw."
    rng, inside = np.random.default_rng(2), []
    truth = random_truth(rng)
    exact = M.effects(made(truth, "augmentation", sd=1e-9)).set_index("parts").estimate.dropna()
    for _ in range(60):
        found = M.effects(made(truth, "augmentation", rng=rng)).set_index("parts").loc[exact.index]
        inside.append(((found.low <= exact) & (exact <= found.high)).mean())
    assert len(exact) == 9 and abs(np.mean(inside) - .95) < 4 * np.std(inside, ddof=1) / 60**.5
    narrow = M.effects(made(truth, "augmentation"), level=.5)
    wide = M.effects(made(truth, "augmentation"))
    assert ((wide.high - wide.low).dropna() > 2 * (narrow.high - narrow.low).dropna()).all()


def test_seeds_may_differ_between_settings():
    "One run that failed is missing: the seeds' shifts still cancel."
    frame = made({("noise",): 2.}, "augmentation", sd=1e-9).drop(index=[5])
    assert M.effects(frame).set_index("parts").estimate["noise"] == pytest.approx(2, abs=1e-6)


@pytest.mark.parametrize("change, sentence", [
    (lambda f: f.drop(columns=["seed", "jsd"]), "runs need the columns .*: jsd, seed missing"), (lambda f: pd.concat([f, f.iloc[:1]]), "measured more than once: none, seed 0"),
    (lambda f: f.assign(value=np.inf), "every value must be finite"), (lambda f: f[f.seed == 0], "run two seeds or more, the same for all settings"),
    (lambda f: f.assign(seed=range(len(f))), "do not tell 12 settings and 48 seeds apart")])
def test_what_is_no_experiment_is_refused(change, sentence):
    with pytest.raises(ValueError, match=sentence): M.effects(change(made({}, "augmentation")))
