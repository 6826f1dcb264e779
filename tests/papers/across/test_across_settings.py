"Across the papers: the artefacts that are asked for, and what has a plan."

from mixrepro.papers.across.settings import ARTEFACTS
from mixrepro.repro.scale import SCALES
from mixrepro.training.spec import canonical
from plans import planned


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {"x-claims", "x-errata", "x-matrix", "x-combine", "x-cost"}
    assert [id for id, a in ARTEFACTS.items() if a.plan] == ["x-regime", "x-sizes", "x-claims", "x-errata", "x-cost"]


def test_label_noise_is_a_candidate_for_erm_alone_and_changes_no_other_name():
    "Sets of which two fifths of the labels are drawn anew stand behind the sizes, at the embedded scale."
    noisy = {where: specs for (row, where), specs in planned("x-regime", "embedded").items() if "labels anew" in where}
    assert set(noisy) == {"all images, 40% of labels anew", "digits, 40% of labels anew"} and {len(s) for s in noisy.values()} == {3}
    assert {(s.method, s.label_noise, s.n_train) for specs in noisy.values() for s in specs} == {("erm", .4, 0)}
    clean = [s for (_, where), specs in planned("x-regime", "embedded").items() for s in specs if where not in noisy]
    assert {s.label_noise for s in clean} == {0.} and not any("label_noise" in canonical(s) for s in clean)
    assert {canonical(s)["label_noise"] for specs in noisy.values() for s in specs} == {.4}


def test_errata():
    "Computed from tables, and on points that are small enough for seconds: no run is planned."
    assert all(planned("x-errata", at) == {} for at in SCALES)
