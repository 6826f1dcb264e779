"NoisyMix at its own scale: what has a plan, against the text."

import pytest

from mixrepro.papers.noisymix.settings import ARTEFACTS, Theorems
from mixrepro.repro.scale import SCALES
from plans import planned

WITHOUT_RUNS = {"nm-fig3", "nm-fig5", "nm-theorem1", "nm-theorem2", "nm-theorem3"}
NUMBERED = {"table": 14, "fig": 8, "theorem": 3}  # of the text and its appendices


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {f"nm-{kind}{i}" for kind, n in NUMBERED.items() for i in range(1, n + 1)}
    assert {id for id, a in ARTEFACTS.items() if a.plan} == WITHOUT_RUNS


@pytest.mark.parametrize("id", sorted(WITHOUT_RUNS))
def test_what_trains_nothing(id):
    "Points of the plane, corruptions of an image, theorems."
    assert all(planned(id, at) == {} for at in SCALES)


def test_theorems_have_the_experiments_constants():
    "App. D and the released code: lambda ~ Beta(1, 1), NFM's levels; eps = 2^-1 ... 2^-10."
    s = Theorems.at("embedded")
    assert (s.alpha, s.sigma_add, s.sigma_mult, s.gamma) == (1, .4, .2, 12) and s.powers == tuple(range(1, 11))
