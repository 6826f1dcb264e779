"Columns of NoisyMix's tables against the printed numbers."

import numpy as np
import pytest
from scipy import stats

from mixrepro.data.perturbations import PERTURBATIONS
from mixrepro.papers.noisymix.tables import QUIET, SNOW, flip_columns, widened, with_quiet
from mixrepro.repro.ledger import reported


@pytest.mark.parametrize("id, baseline", [("nm-table13", 2.675), ("nm-table14", 2.25)])
def test_what_follows_from_the_printed_columns(id, baseline):
    "Of eight films without noise; no network's 2.67 is a ratio to another's in percent."
    table = with_quiet(reported("noisymix", id)).pivot(index="row", columns="column", values="mean")
    assert table.loc["erm", QUIET] == pytest.approx(baseline) and table[SNOW].isna().all()
    quiet = [c for c in table if c not in (QUIET, SNOW, "mean") and "noise" not in c]
    assert len(quiet) == 8 and np.allclose(table[QUIET], table[quiet].mean(axis=1))


def test_columns_of_images_average_to_the_columns():
    "A metric image by image, as the intervals need it."
    rng = np.random.default_rng(0)
    images = {k: rng.random(50) for k in (*PERTURBATIONS, "snow")}
    means = flip_columns({k: v.mean() for k, v in images.items()})
    assert all(v.mean() == pytest.approx(means[k]) for k, v in flip_columns(images).items())
    assert means["mean"] == pytest.approx(np.mean([v.mean() for k, v in images.items() if k != "snow"]))


def test_what_a_wider_network_changes_is_welchs_interval():
    "Section 4.3; the standard deviation of five normal values is their range over 2.326 on average."
    two, three = (reported("noisymix", f"nm-table{i}") for i in (2, 3))
    found = widened(two, three).set_index(["method", "column"])
    for (method, column), r in found.iterrows():
        (m, s), (n, t) = ((row["mean"], float(np.ptp([float(v) for v in row["spread"].split("/")])) / 2.32593) for row in (
            d[(d.row == method) & (d.column == column)].iloc[0] for d in (three, two)))
        test = stats.ttest_ind_from_stats(m, s, 5, n, t, 5, equal_var=False)
        assert r.effect == pytest.approx(m - n) and ((r.low > 0) or (r.high < 0)) == (test.pvalue < .05)
    assert len(found) == 32 and {m for m in found.index.levels[0] if found.loc[(m, "cifar100-c"), "high"] < 0} == {"erm", "puzzlemix", "nfm"}
