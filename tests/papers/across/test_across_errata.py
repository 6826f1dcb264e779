"All errata: those of every room, in the order of the papers, the same each time."

import io
import math
from unittest.mock import patch

import pandas as pd
import pytest

from mixrepro.papers.across.errata import ERRATA, errata
from mixrepro.papers.catalogue import PAPERS
from mixrepro.repro.erratum import frame, page, show


@pytest.fixture(scope="module")
def of_rooms(): return {paper: ERRATA[paper]() for paper in PAPERS if paper in ERRATA}


@pytest.fixture(scope="module")
def every(of_rooms):
    with patch.dict(ERRATA, {paper: lambda seed, found=found: found for paper, found in of_rooms.items()}): return errata()


def test_each_room_speaks_of_its_own_paper(every, of_rooms):
    assert all(x.paper == paper for paper, found in of_rooms.items() for x in found)
    assert every == [x for found in of_rooms.values() for x in found] and len(every) >= 23


def test_the_page_and_the_data_hold_every_erratum(every):
    data, text = frame(every), page(every, PAPERS)
    lines = [l for l in text.splitlines() if l.startswith("|")]
    assert len(lines) == len(every) + 2 and {l.replace("\\|", "").count("|") for l in lines} == {7}
    assert list(data.erratum.unique()) == list(range(1, len(every) + 1))
    assert data[data.verdict != "by reading"].value.map(math.isfinite).all()
    assert len(data) == sum(sum(len(f.numbers) for f in x.findings) or 1 for x in every)
    for x, line in zip(every, lines[2:]):
        assert line.endswith(f"| {x.verdict} |") and f"| {PAPERS[x.paper]} |" in line
        assert all(f.claim.replace("|", "\\|") in line and show(v) in line for f in x.findings for v in f.numbers.values())
    assert sum(x.verdict == "by reading" for x in every) <= len(every) / 4 and all(x.where and x.says for x in every)


@pytest.mark.slow  # the committed numbers are compared below
def test_errata_repeat(every): assert frame(every).equals(frame(errata()))


def test_the_committed_numbers_are_these(every, root):
    "Words and verdicts to the letter; of a number that a short training gives, machines differ in the fourth digit."
    def apart(table): return table.drop(columns="value"), table["value"].astype(float)
    words, numbers = apart(pd.read_csv(io.StringIO(frame(every).to_csv(index=False)), keep_default_na=False, na_values={"value": [""]}))
    there, kept = apart(pd.read_csv(root / "figures/embedded/across/x-errata.csv", keep_default_na=False, na_values={"value": [""]}))
    assert words.equals(there)
    assert numbers.to_list() == pytest.approx(kept.to_list(), rel=2e-3, abs=1e-12, nan_ok=True)
