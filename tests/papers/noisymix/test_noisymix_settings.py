"NoisyMix at its own scale: what has a plan, against the text."

from mixrepro.papers.noisymix.settings import ARTEFACTS
from mixrepro.repro.scale import SCALES
from plans import planned

NUMBERED = {"table": 14, "fig": 8, "theorem": 3}  # of the text and its appendices


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {f"nm-{kind}{i}" for kind, n in NUMBERED.items() for i in range(1, n + 1)}
    assert [id for id, a in ARTEFACTS.items() if a.plan] == ["nm-fig5"]


def test_fig5():
    "The 15 corruptions of an image: nothing is trained."
    assert all(planned("nm-fig5", at) == {} for at in SCALES)
