"Leads against scipy's paired t-test."
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from mixrepro.papers.manifold_mixup.leads import by_word, lead
from mixrepro.repro.estimates import no_spread

METHODS = ["erm", "mixup", "factor-mixup"]
PRINTED = pd.Series({"erm": 1., "mixup": 2., "factor-mixup": 9.})

def long(values):
    return pd.DataFrame([dict(method=m, seed=s, value=v) for m, row in zip(METHODS, values) for s, v in enumerate(row)])

@given(arrays(float, (3, 4), elements=st.integers(0, 1000).map(float)), st.booleans())
def test_a_lead_is_the_paired_t_test_against_the_best_of_others(values, higher):
    found = lead(long(values), PRINTED, "factor-mixup", ("erm", "mixup"), higher)
    best = values[:2].max(0) if higher else -values[:2].min(0)
    mine = values[2] if higher else -values[2]
    assert found.ours.values == tuple(mine - best) and found.paper == (7 if higher else -8)
    if no_spread(*found.ours.interval):
        assert found.verdict("embedded").word == "undecided (no spread)"
        return
    theirs = stats.ttest_rel(mine, best)
    assert found.ours.interval == pytest.approx(tuple(theirs.confidence_interval(.95)))
    sides = {(True, True): "holds", (True, False): "does not hold"}
    word = sides.get((abs(theirs.pvalue) < .05, found.ours.mean > 0), "undecided")
    if abs(theirs.pvalue - .05) > 1e-6: assert found.verdict("embedded").word == word

@given(st.permutations(range(12)))
def test_the_order_of_the_rows_does_not_matter(order):
    rows = long([[1., 5., 2., 8.], [3., 1., 4., 1.], [9., 2., 6., 5.]])
    shuffled = rows.iloc[list(order)]
    assert lead(shuffled, PRINTED, "mixup", ("erm",)) == lead(rows, PRINTED, "mixup", ("erm",))

WORDS = st.sampled_from(["holds", "undecided", "does not hold"])

@given(st.dictionaries(st.text("abc", min_size=1), WORDS, min_size=1))
def test_every_name_stands_once_beside_its_word(words):
    read = [part.split(" on ") for part in by_word(words).split("; ")]
    assert {name: word for word, names in read for name in names.split(", ")} == words
