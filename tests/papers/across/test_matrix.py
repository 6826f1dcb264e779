"The matrix and the compositions: ranks against Demšar's own example, and no word that a changed seed leaves as it is."

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from mixrepro.papers.across.compositions import against_parents, what_was_found
from mixrepro.papers.across.matrix import EVERY_METRIC, critical_difference, matrix_answer, matrix_table, ranked_methods
from mixrepro.metrics.catalogue import READ
from mixrepro.metrics.stability import js_divergence, steadiness
from mixrepro.repro.rows import rows

DEMSAR = """.763 .768 .771 .798  .599 .591 .590 .569  .954 .971 .968 .967  .628 .661 .654 .657  .882 .888 .886 .898  .936 .931 .916 .931  .661 .668 .609 .685
.583 .583 .563 .625  .775 .838 .866 .875  1 1 1 1  .940 .962 .965 .962  .619 .666 .614 .669  .972 .981 .97501 .975  .957 .978 .946 .970"""  # table 6; the thirteenth row prints .975 twice, its printed ranks are no tie


def made(seed=0, better=0., methods=("erm", "gaussian", "a", "b"), seeds=5) -> pd.DataFrame:
    "Measurements of made methods; `a` is better by so many spreads."
    rng = np.random.default_rng(seed)
    return pd.DataFrame([dict(method=m, dataset="digits", seed=s, metric=a.name, value=.5 + rng.normal(0, .01) + a.sign * .01 * better * (m == "a"))
                         for a in EVERY_METRIC for s in range(seeds) for m in methods])


def test_demsars_own_example():
    "Demšar (2006), section 3.2: mean ranks 3.143, 2.000, 2.893, 1.964; a critical difference of 1.25; told apart at .10 and not at .05."
    scores = np.array(DEMSAR.split(), float).reshape(14, 4)
    names = ["C4.5", "C4.5+m", "C4.5+cf", "C4.5+m+cf"]
    table = pd.DataFrame([dict(metric=str(i), family="AUC", method=m, rank=r) for i, row in enumerate(scores)
                          for m, r in zip(names, stats.rankdata(-row))])
    ranked = ranked_methods(table)
    assert ranked.mean.round(3).to_dict() == {"C4.5+m+cf": 1.964, "C4.5+m": 2.0, "C4.5+cf": 2.893, "C4.5": 3.143}
    assert round(critical_difference(4, 14), 2) == round(ranked.cd, 2) == 1.25 and ranked.apart("C4.5") == []
    assert .05 < ranked.pairs.loc["C4.5", "C4.5+m+cf"] < .10


def test_ranks_and_gains_by_hand():
    table = matrix_table(made())
    for a in (EVERY_METRIC[0], EVERY_METRIC[6]):  # one in each direction
        mine = made()[lambda d: d.metric == a.name].pivot(index="seed", columns="method", values="value") * a.scale
        here = table[table.metric == a.name].set_index("method")
        order = list((a.sign * mine.mean()).sort_values(ascending=False).index)
        assert list(here["rank"].sort_values().index) == order
        assert np.isclose(here.loc["a", "our gain"], a.sign * (mine["a"] - mine["erm"]).mean())


def test_what_stability_training_is_to_lower_is_among_the_metrics():
    "NoisyMix paper, section 3.1: the divergence of the predictions on an image and on its neighbour, in thousandths of a nat."
    (js,) = (a for a in EVERY_METRIC if a.name == "JS")
    z, moved, y = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 4
    assert js.metric in READ and js.sign == -1
    assert np.allclose(js.scale * js.pick(steadiness(z, y, {"sphere, 8/255": moved, "sphere, 2/255": z})), 1000 * js_divergence(z, moved))


def test_a_changed_seed_changes_the_number():
    one = made()
    other = one.assign(value=one.value.where(~((one.method == "a") & (one.seed == 3) & (one.metric == "error")), .1))
    before, after = (matrix_table(m).set_index(["method", "metric"]) for m in (one, other))
    changed = (before["our mean"] != after["our mean"])
    assert changed.sum() == 1 and changed["a", "error"] and after.loc[("a", "error"), "our gain"] > before.loc[("a", "error"), "our gain"]


@pytest.mark.parametrize("better, words", [(20., "Above 0 in some metric and below in none: a."), (0., "Above 0 in some metric and below in none: none.")])
def test_what_is_said_follows_from_the_numbers(better, words):
    table = matrix_table(made(better=better))
    assert words in matrix_answer(table, ranked_methods(table), {}, "embedded")


def test_methods_of_one_rank_are_named_together_and_share_a_place():
    one = made(better=20.)
    both = pd.concat([one, one[one.method.isin(["a", "erm"])].replace({"a": "twin", "erm": "erm 2"})])
    table = matrix_table(both)
    text = " ".join(matrix_answer(table, ranked_methods(table), {}, "embedded"))
    alone = " ".join(matrix_answer(matrix_table(one), ranked_methods(matrix_table(one)), {}, "embedded"))
    assert "clean: a;" in alone and "clean: a and twin;" in text and "smooth: a and twin." in text
    mean = ranked_methods(table).mean
    assert f"ERM has place {(mean < mean['erm']).sum() + 1} of 6" in text and mean["erm"] == mean["erm 2"]


@pytest.mark.parametrize("shift, word", [(.2, "1 above"), (-.2, "1 below"), (0., "0 above, 0 below")])
def test_a_composition_is_judged_by_its_numbers(shift, word):
    rng = np.random.default_rng(1)
    values = [dict(method=m, dataset="digits", metric="error", seed=s, value=.5 + rng.normal(0, .01) - shift * (m == "mixup+augmix"))
              for s in range(5) for m in ("erm", "mixup", "mixup+augmix")]
    found = rows(pd.DataFrame(columns=["row", "column", "mean", "spread", "n"]), pd.DataFrame(values), {"error": ("digits", "error")}, None, -1, {},
                 100., at="embedded", contrasts=(("mixup+augmix", "mixup"),))
    assert word in what_was_found(found, {}, "embedded")[0]
    one, = against_parents(found)
    assert one.better == (shift > 0) and one.worse == (shift < 0)


def test_methods_of_one_mean_rank_stand_in_one_order_on_every_processor():
    "NumPy's quickest sort leaves equals in an order that hangs on the instructions of the processor."
    names, ranks = [f"m{k:02d}" for k in range(60)], [20.5, 2., 40.5]
    table = pd.DataFrame([dict(method=m, metric=f"q{j}", family="f", rank=ranks[k % 3]) for j in range(4) for k, m in enumerate(names)])
    assert list(ranked_methods(table).mean.index) == sorted(names, key=lambda m: (ranks[int(m[1:]) % 3], m))
