"What selection by validation gains, and columns as rows, against scipy."
import math

import pandas as pd
import pytest
from hypothesis import strategies as st
from scipy import stats

from conftest import ROOT
from mixrepro.papers.manifold_mixup.pages import choosing, compact
from mixrepro.repro.ledger import table

share = st.integers(0, 20).map(lambda n: n / 20)  # coarse, so that equals occur

def test_what_choosing_gains_is_scipys_interval():
    last, there = [11., 14., 12.5], [10., 10.5, 12.]
    rows = pd.DataFrame(dict(way="code", seed=range(3), epoch=4, chosen=there, last=last, least=9.))
    low, high = stats.ttest_rel(last, there).confidence_interval(.95)
    assert choosing(rows, ["way"])["gained by choosing"].item() == f"+1.67 [{low:+.2f}, {high:+.2f}]"

@pytest.mark.parametrize("seeds", [1, 3])
def test_a_table_of_the_ledger_as_rows(seeds):
    values = {("erm", "a"): [50., 52., 51.], ("mixup", "a"): [55., 58., 56.],
              ("erm", "b"): [70., 71., 70.], ("mixup", "b"): [60., 66., 61.]}
    measured = pd.DataFrame([dict(method=m, dataset="digits", metric=c, seed=s, value=v)
                             for (m, c), vs in values.items() for s, v in enumerate(vs[:seeds])])
    printed = [(m, c, v, math.nan, pd.NA) for m, v in (("erm", 40.), ("mixup", 45.)) for c in "ab"]
    paper = pd.DataFrame(printed, columns=["row", "column", "mean", "spread", "n"])
    data, _ = table(paper, measured, {c: ("digits", c) for c in "ab"}, at="embedded")
    rows = compact(data, "mixup", {"erm": "ERM", "mixup": "Mixup"})
    assert rows[""].tolist() == ["a", "b"] and rows["Gain of Mixup, paper"].tolist() == ["+5.00", "+5.00"]
    directions = ["undecided (n = 1)"] * 2 if seeds == 1 else ["same direction", "opposite direction"]
    assert rows["Direction"].tolist() == directions
    assert all(("±" in cell) == (seeds > 1) for cell in rows["ERM, ours"])
    ps = [float(stats.ttest_rel(values["mixup", c], values["erm", c]).pvalue) for c in "ab"]
    assert rows["p, Holm"].tolist() == ([""] * 2 if seeds == 1 else [f"{p:.2g}" for p in (2 * min(ps), max(*ps, 2 * min(ps)))])


def test_the_page_says_why_one_row_of_table_3_is_not_run():
    page = (ROOT / "figures/embedded/manifold_mixup/mm-table3.md").read_text()
    assert "Fortified Networks are not implemented: they put denoising autoencoders into the network, and the paper gives only the number." in page
