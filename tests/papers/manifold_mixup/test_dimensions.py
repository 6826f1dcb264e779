"Corollary 1, measured: claims by SciPy's interval."

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from mixrepro.papers.manifold_mixup import dimensions as D


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    def run(m, k, s): return dict(method=m, seed=s, dim=k, dimension=rng.uniform(1, 2) + 3 * (m == "erm"), scatter=rng.uniform(.1, .2),
                                  accuracy=.9, train_accuracy=1., entropy_hull=rng.uniform(.1, .3) + .4 * (m != "erm"), spectrum=sorted(rng.uniform(0, 1, k), reverse=True))
    return D.tidy(pd.DataFrame([run(m, k, s) for k in (2, 12) for m in ("erm", "manifold-mixup") for s in range(4)]))


def test_the_claim_is_judged_by_a_paired_interval(rows):
    text = D.fewer(rows, at="embedded")
    for k, g in rows.groupby("dim(H)"):
        at = g.pivot(index="seed", columns="model", values="dimension")
        inside = stats.ttest_rel(at["manifold-mixup"], at["erm"]).confidence_interval(.95)
        word = "holds" if inside.high < 0 else "does not hold" if inside.low > 0 else "undecided"
        assert f"{word} at dim(H) = {k} ({(at['manifold-mixup'] - at['erm']).mean():+.1f})" in text
    assert D.fewer(rows[rows.seed == 0], at="embedded").count("undecided (n = 1)") == 2


def test_entropy_between_states_by_a_paired_interval(rows):
    text = D.unsurer(rows, at="embedded")
    for k, g in rows.groupby("dim(H)"):
        at = g.pivot(index="seed", columns="model", values="entropy")
        inside = stats.ttest_rel(at["manifold-mixup"], at["erm"]).confidence_interval(.95)
        assert inside.low > 0 and f"holds at dim(H) = {k} ({(at['manifold-mixup'] - at['erm']).mean():+.2f})" in text
    assert "does not hold at dim(H) = 2" in D.unsurer(rows.assign(entropy=-rows.entropy), at="embedded")
    shown = D.summary(rows, 10)["entropy between states (nats)"]
    assert shown[0] == f"{rows.entropy[(rows['dim(H)'] == 2) & (rows.model == 'erm')].mean():.2f}"
