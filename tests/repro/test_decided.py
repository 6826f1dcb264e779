"What a gallery's files say is decided, against a count by hand."
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from conftest import ROOT
from mixrepro.repro.decided import comparisons, decided, p_of


def test_the_committed_gallery_can_be_counted():
    found = decided(ROOT / "figures" / "embedded")
    assert (found["after Holm"] <= found["decided"]).all() and (found["decided"] <= found["comparisons"]).all() and len(found) > 5
    assert found.iloc[:-1].sum().tolist() == found.loc["all"].tolist()


def test_files_with_and_without_p_values(tmp_path):
    rng, rows = np.random.default_rng(0), []
    for k in range(20):
        d = rng.normal(k / 10, 1, 5)
        low, high = stats.ttest_1samp(d, 0).confidence_interval(.95)
        rows.append({"method": f"m{k}", "column": "c", "our gain (points)": d.mean(), "gain low (points)": low, "gain high (points)": high, "our n": 5,
                     "p": stats.ttest_1samp(d, 0).pvalue})
    (folder := tmp_path / "paper").mkdir()
    new = pd.DataFrame([*rows, {"method": "erm", "column": "c", "our n": 5}])
    new.to_csv(folder / "new.csv", index=False); new.drop(columns="p").to_csv(folder / "old.csv", index=False)
    one, two = comparisons(folder / "new.csv"), comparisons(folder / "old.csv")
    assert len(one) == len(two) == 20 and np.allclose(one.p, two.p) and set(two.artefact) == {"old"}
    counts = decided(tmp_path)
    excludes = ((new["gain low (points)"] > 0) | (new["gain high (points)"] < 0)).sum()
    assert counts.loc["new"].tolist() == counts.loc["old"].tolist() and counts.loc["old", "decided"] == excludes
    ps = np.sort(one.p)
    passed = 0
    while passed < 20 and ps[passed] * (20 - passed) < .05: passed += 1
    assert counts.loc["new", "after Holm"] == passed and counts.loc["all", "comparisons"] == 40


def test_units_in_one_file_and_what_has_no_width(tmp_path):
    (folder := tmp_path / "paper").mkdir()
    pd.DataFrame({"method": ["a", "b", "c"], "our gain (points)": [1., math.nan, 2.], "gain low (points)": [.5, math.nan, 2.], "gain high (points)": [1.5, math.nan, 2.],
                  "our gain (nats)": [math.nan, -.2, math.nan], "gain low (nats)": [math.nan, -.3, math.nan], "gain high (nats)": [math.nan, -.1, math.nan],
                  "our n": 3}).to_csv(folder / "x.csv", index=False)
    found = comparisons(folder / "x.csv")
    assert found.effect.tolist() == [1., -.2, 2.] and math.isnan(found.p.iloc[2]) and found.p.iloc[1] == pytest.approx(p_of(-.2, -.3, -.1, 3))
