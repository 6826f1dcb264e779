"Columns of NoisyMix's tables against the printed numbers."

import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT
from mixrepro.data.corruptions import CORRUPTIONS
from mixrepro.data.perturbations import PERTURBATIONS
from mixrepro.papers.noisymix.claims import NOISYMIX_CLAIMS
from mixrepro.papers.noisymix.tables import QUIET, SNOW, flip_columns, lead_by_column, widened, with_quiet
from mixrepro.repro.ledger import reported
from mixrepro.repro.rows import from_a_cell


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


def test_table_12_has_the_mean_of_its_ten_columns_seed_by_seed():
    "The page begins with it."
    table = pd.read_csv(ROOT / "figures/embedded/noisymix/nm-table12.csv").dropna(subset="each seed (%)")
    table["seeds"] = table["each seed (%)"].map(lambda cell: np.array(list(from_a_cell(cell).values())))
    seeds = table.pivot(index="method", columns="column", values="seeds")
    for m, row in seeds.iterrows(): assert row.pop("mean") == pytest.approx(np.mean([*row], axis=0), abs=1e-4), m
    assert seeds.shape == (11, 11)


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


@pytest.mark.parametrize("id", [f"nm-table{i}" for i in range(6, 11)])
def test_the_papers_own_contrast_stands_below_fifteen_columns_with_its_intervals(id):
    at = ROOT / "figures/embedded/noisymix" / id
    rows = lead_by_column(SimpleNamespace(labels={}, grid=lambda shown: shown), pd.read_csv(f"{at}.csv"))[1]
    paper = reported("noisymix", id).pivot(index="column", columns="row", values="mean")
    page = [[cell.strip() for cell in line.split("|")[1:-1]] for line in at.with_suffix(".md").read_text().splitlines() if line.startswith("|")]
    assert list(rows.column) == [k.replace("_", " ") for k in CORRUPTIONS]
    for kind, r in zip(CORRUPTIONS, rows.itertuples(index=False)):
        assert float(r.paper) == pytest.approx(paper.loc[kind, "noisymix"] - paper.loc[kind, "augmix"], abs=.005) and "[" in r.ours
        assert list(r) in page


def test_a_bound_is_the_one_that_the_claim_speaks_of():
    "Over n points is n; about n points is what rounds to n, of which 11.49 is printed as 11.5."
    bounds = [(c.says, t.bound) for c in NOISYMIX_CLAIMS for t in c.terms if getattr(t, "bound", 0)]
    for says, bound in bounds:
        how, n = re.search(r"(over|more than|about) (\d+) points?", says).groups()
        assert abs(bound - (int(n) - .5 * (how == "about"))) <= .01 + 1e-9, says
    assert len(bounds) == 11
