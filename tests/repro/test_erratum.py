"An erratum's form: data and a page that lose none of its findings, and the interval of a difference."

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, strategies as st
from scipy import stats

from mixrepro.repro.erratum import Erratum, Finding, apart, frame, page
from mixrepro.repro.ledger import by_cell

WORDS = st.text(st.characters(categories=["L", "N"], include_characters=" |,"), min_size=1, max_size=12)
FINDINGS = st.builds(Finding, WORDS, st.dictionaries(WORDS, st.floats(-1e6, 1e6), min_size=1, max_size=3), st.booleans(), WORDS)
ERRATA = st.one_of(st.builds(Erratum, WORDS, WORDS, WORDS, st.lists(FINDINGS, min_size=1, max_size=4).map(tuple)),
                   st.builds(Erratum, WORDS, WORDS, WORDS, why=WORDS))


@given(st.lists(ERRATA, min_size=1, max_size=4))
def test_data_and_page_lose_nothing(errata):
    data, lines = frame(errata), page(errata).splitlines()
    assert len(data) == sum(sum(len(f.numbers) for f in e.findings) or 1 for e in errata)
    values = [v for e in errata for f in e.findings for v in f.numbers.values()]
    assert not values or data.value.dropna().tolist() == values
    for n, (e, line) in enumerate(zip(errata, lines[2:]), 1):
        assert line.startswith(f"| {n} |") and line.endswith(f"| {e.verdict} |")
        assert line.replace("\\|", "").count("|") == 7  # a bar in a text makes no column
        assert line.count("*does not hold:*") == sum(not f.holds for f in e.findings)


def test_an_erratum_says_what_it_rests_on():
    for more in ({}, dict(findings=(Finding("so", {"a": 1.}, True),), why="so")):
        with pytest.raises(ValueError, match="eq. 1: an erratum has findings, or says why, and not both"):
            Erratum("a-paper", "eq. 1", "a thing", **more)


def sample(mean, sd, n):
    "Numbers of exactly that mean and standard deviation."
    z = np.random.default_rng(n).normal(size=n)
    return mean + sd * (z - z.mean()) / z.std(ddof=1)


def test_a_difference_of_two_printed_means_has_welchs_interval():
    table = pd.DataFrame([("a", "c", 69.29, ".3", 10), ("b", "c", 82.57, ".9", 4)], columns=["row", "column", "mean", "spread", "n"])
    at = by_cell(table)
    gap = apart(at["b", "c"], at["a", "c"])
    theirs = stats.ttest_ind(sample(82.57, .9, 4), sample(69.29, .3, 10), equal_var=False).confidence_interval(.95)
    assert (gap.effect, gap.low, gap.high) == pytest.approx((13.28, *theirs)) and gap.word == "higher"
    assert apart(at["b", "c"], at["b", "c"]).word == "undecided"
