"Manifold Mixup's errata: what the computations give, and that nothing is typed: a corrected text or table withdraws its erratum."

import numpy as np
import pytest
import torch

from mixrepro.metrics.mixed_loss import simplex
from mixrepro.papers.manifold_mixup import errata as e
from mixrepro.repro.ledger import reported
from tables import holds, put


def test_how_often_lambda_is_near_the_ends():
    draws = np.random.default_rng(0).beta(2, 2, 200_000)
    assert e.near_the_ends(2.) == pytest.approx((abs(draws - .5) >= .45).mean(), abs=.002) and e.near_the_ends(1.) == pytest.approx(.1)
    assert e.ordinary_examples(.9).verdict == "not confirmed"  # the text would be right there


def test_percentages_of_the_introduction():
    semi, supervised = reported("manifold_mixup", "mm-table2"), reported("manifold_mixup", "mm-table1")
    assert e.relative_to_vat(semi).findings[0].numbers == pytest.approx({"VAT": 100 * 3.6 / 13.86, "VAT-EM": 100 * 2.87 / 13.13})
    assert holds(e.relative_to_vat(put(semi, "vat", "cifar10", 13.13))) == [False]
    assert list(e.halved_nll(supervised).findings[0].numbers.values()) == pytest.approx([100 * (1 - a / b) for a, b in ((.0957, .1945), (.1407, .1945), (.1419, .2312), (.0957, .2312))])
    assert holds(e.halved_nll(put(supervised, "manifold-mixup", "cifar10 preactresnet18 nll", .0972))) == [False]


def test_the_dimension_depends_on_the_bias():
    assert holds(e.flat_dimension()) == [True, False]
    for d, k in ((2, 2), (3, 6)):  # both biases solve the theorem's equation, with an A of another rank
        A, H, b = simplex(d, k)
        assert torch.allclose(A.T @ H + b[:, None], torch.eye(d, dtype=A.dtype)) and torch.linalg.matrix_rank(A) == d - 1


def test_words_that_a_table_does_not_bear_out():
    "Counted by hand from tables 4 and 5, and from table 1b; what a corrected table withdraws."
    table4, table5, table1 = (reported("manifold_mixup", f"mm-table{k}") for k in (4, 5, 1))
    wide = {c: dict(zip(g["row"], g["mean"])) for c, g in table5.groupby("column")}
    best, below = sum(max(r, key=r.get) == "manifold-mixup" for r in wide.values()), sum(r["manifold-mixup"] < r["erm"] for r in wide.values())
    assert list(e.consistently(table5).findings[0].numbers.values()) == [len(wide), best, below] == [17, 13, 3]
    assert e.in_all_cases(table4).findings[0].numbers == pytest.approx({"task A": 0. - 1.6, "task B": 18.40 - 21.25, "task C": 66.09 - 63.05})
    assert holds(e.deeper_and_worse(table1)) == [True]
    assert holds(e.deeper_and_worse(put(table1, "mixup", "cifar100 preactresnet34 error", 20.9))) == [False]
    assert holds(e.unequal_lengths(reported("manifold_mixup", "mm-blocked"))) == [True]


def test_competitive_on_svhn_is_welchs_t():
    from scipy import stats
    semi = reported("manifold_mixup", "mm-table2")
    theirs = stats.ttest_ind_from_stats(5.70, .48, 5, 5.63, .20, 5, equal_var=False)
    gap, low, high = e.behind(semi, "ssl-manifold-mixup", "vat", "svhn")
    assert (gap / theirs.statistic) == pytest.approx((.48 ** 2 / 5 + .20 ** 2 / 5) ** .5) and low < 0 < high and theirs.pvalue > .05
    assert holds(e.competitive(semi)) == [False] and holds(e.competitive(put(semi, "ssl-manifold-mixup", "svhn", 7.5))) == [True]
