"Columns of NoisyMix's tables against the printed numbers."

import numpy as np
import pytest

from mixrepro.data.perturbations import PERTURBATIONS
from mixrepro.papers.noisymix.tables import QUIET, SNOW, flip_columns, with_quiet
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
