"Across the papers: the artefacts that are asked for, and what has a plan."

from mixrepro.papers.across.settings import ARTEFACTS
from mixrepro.repro.scale import SCALES
from plans import planned


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {"x-claims", "x-errata", "x-matrix", "x-combine", "x-cost"}
    assert [id for id, a in ARTEFACTS.items() if a.plan] == ["x-regime", "x-sizes", "x-errata"]


def test_errata():
    "Computed from tables, and on points that are small enough for seconds: no run is planned."
    assert all(planned("x-errata", at) == {} for at in SCALES)
