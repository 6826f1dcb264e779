"Tables of many columns against pandas on the printed numbers of the paper."

import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mixrepro.repro.columns import leaders, led_alike, led_by, side_by_side
from mixrepro.repro.ledger import reported

PAPER, OURS = "paper mean (%)", "our mean (%)"


def of(paper: dict, ours: dict) -> pd.DataFrame:  # (method, column) -> a mean
    return pd.DataFrame([{"method": m, "column": c, PAPER: paper.get((m, c)), OURS: v} for (m, c), v in ours.items()])


@settings(max_examples=30)
@given(st.lists(st.lists(st.integers(0, 3), min_size=4, max_size=4), min_size=2, max_size=5), st.booleans())
def test_who_leads_is_who_has_no_better_one(rows, lowest):
    "By counting, column by column; few values, so that many lead together."
    means = {(f"m{i}", f"c{j}"): float(v) for i, row in enumerate(rows) for j, v in enumerate(row)}
    found = leaders(of(means, {k: -v for k, v in means.items()}), {}, lowest)
    for j in range(4):
        column = [row[j] for row in rows]
        def unbeaten(sign): return {f"m{i}" for i, v in enumerate(column) if not any(sign * w > sign * v for w in column)}
        up, down = unbeaten(1), unbeaten(-1)
        assert set(found.loc[f"c{j}", "paper"].split(" and ")) == (down if lowest else up)
        assert set(found.loc[f"c{j}", "ours"].split(" and ")) == (up if lowest else down)
    assert sum(led_by(found["paper"], f"m{i}") for i in range(len(rows))) == sum(len(w.split(" and ")) for w in found["paper"])
    assert led_alike(found) == sum(len({row[j] for row in rows}) == 1 for j in range(4))


def test_means_that_are_equal_but_for_rounding_lead_together():
    ours = {("cutmix", "tilt"): (.3 + .2 + .1) / 3, ("noisymix", "tilt"): (.1 + .2 + .3) / 3}
    assert len(set(ours.values())) == 2, "as sums of floats they are not"
    for lowest in (False, True): assert led_by(leaders(of(ours, ours), {}, lowest)["ours"], "noisymix") == 1


@pytest.mark.parametrize("id", ["nm-table7", "nm-table13"])
def test_a_printed_table_side_by_side_is_the_printed_table(id):
    printed = reported("noisymix", id)
    data = printed.rename(columns={"row": "method", "mean": PAPER}).assign(**{OURS: 1.})
    paper, ours = side_by_side(data, {"erm": "ERM", "snow": "Snow"})
    want = printed.pivot(index="row", columns="column", values="mean")
    for _, row in paper.set_index("method").rename({"ERM": "erm"}).iterrows():
        for column, value in want.loc[row.name].items(): assert row["Snow" if column == "snow" else column.replace("_", " ")] == value
    if "mean" not in want: assert paper["mean"].tolist() == pytest.approx(want.loc[data.method.unique()].mean(axis=1).tolist())
    assert (ours.drop(columns="method") == 1).all(axis=None)
