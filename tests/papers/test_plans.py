"What holds of every plan at every scale: how many runs, which seeds, and that a cell is named alike at each."

from collections import Counter

import pytest

from mixrepro.papers.catalogue import ARTEFACTS, PAPERS
from mixrepro.repro.artefact import cells, papers_cells, trials
from mixrepro.repro.scale import SCALES, scale
from mixrepro.training.spec import name_of

PLANNED = [id for id, a in ARTEFACTS.items() if a.plan]
SEEDS = {"smoke": 2, "embedded": 10, "overnight": 5, "gpu": 3, "paper": 10}  # of a cell, where nothing else is said
OWN = {"mm-regularizers": {"paper": 5, "embedded": 5}, "mm-table2": {"paper": 5, "embedded": 5},  # five trials: section 5.1, table 2
       "mm-fig9": {"paper": 3, "embedded": 5},                       # "averaged over at least three runs", appendix G
       "mm-fig8": {"embedded": 5}, "mm-table4": {"embedded": 3}, "mm-corollary1": {"embedded": 3},  # dear
       "x-regime": {"embedded": 5, "gpu": 1, "paper": 1}, "x-sizes": {"embedded": 5, "gpu": 1, "paper": 1},
       "mm-fig1": {"embedded": 5, "gpu": 5}, "mm-fig6": {"embedded": 5, "gpu": 5}, "mm-fig7": {"embedded": 5}}  # cheap
SHARED = {"vm-fig4": {"smoke": 1, "embedded": 1, "gpu": 1, "paper": 2},  # an ERM network for each data set
          "vm-fig5": dict.fromkeys(SEEDS, 2), "mm-fig4": dict.fromkeys(SEEDS, 3), "mm-fig9": dict.fromkeys(SEEDS, 1)}
FEWER = {"mm-table1": {"embedded": {10: 3, 5: 7}, "overnight": {5: 7, 3: 3}},  # runs of a cell -> cells, where a row is dear
         "mm-table3": {"embedded": {10: 3, 3: 1}, "overnight": {5: 3, 2: 1}}}


def test_thirty_one_artefacts_and_more_have_a_plan():
    assert len(PLANNED) >= 31 and {ARTEFACTS[id].paper for id in PLANNED} >= set(PAPERS) - {"genlabel"}
    assert set(SCALES) == set(SEEDS) and set(OWN) | set(SHARED) <= set(PLANNED)


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("id", PLANNED)
def test_runs_are_cells_times_seeds_and_the_shared_ones(id, at):
    artefact, n, shared = ARTEFACTS[id], OWN.get(id, {}).get(at, SEEDS[at]), SHARED.get(id, {}).get(at, 0)
    once = artefact.plan(artefact.settings.at(at), scale(at), 0)
    found = cells(artefact, at)
    each = FEWER.get(id, {}).get(at, {n: len(once)})
    assert trials(artefact, at) == n and len(found) == sum(k * count for k, count in each.items()) + shared
    assert len({c[:2] for c in once}) == len(once), "two cells have one name"
    if at not in ("smoke", "overnight"):  # where networks of all depths are one
        assert len({f"{c.spec.dataset}/{name_of(c.spec)}" for c in found}) == len(found), "a run is planned twice"
    seeds = {}
    for c in found[shared:]: seeds.setdefault(c[:2], []).append(c.spec.seed)
    assert all(s == list(range(len(s))) for s in seeds.values()) and list(seeds) == [c[:2] for c in once]
    assert Counter(map(len, seeds.values())) == Counter(each)
    assert {c.spec.seed for c in found[:shared]} <= {0}


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("id", PLANNED)
def test_a_number_of_seeds_is_heard_by_every_plan(id, at):
    for n in (1, 4):
        found = Counter(c.spec.seed for c in cells(ARTEFACTS[id], at, seeds=n)[SHARED.get(id, {}).get(at, 0):])
        assert not found or (set(found) == set(range(n)) and (id in FEWER or len(set(found.values())) == 1))
    with pytest.raises(ValueError, match="seeds must be a number of runs, 0 for the profile's own"): cells(ARTEFACTS[id], at, seeds=-1)


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("id", PLANNED)
def test_every_cell_is_one_of_the_papers(id, at):
    assert {c[:2] for c in cells(ARTEFACTS[id], at)} <= {c[:2] for c in papers_cells(ARTEFACTS[id], cells(ARTEFACTS[id], at))}


@pytest.mark.parametrize("id", PLANNED)
def test_the_papers_own_scale_is_the_papers_settings(id):
    theirs = {c[:2]: c.spec for c in papers_cells(ARTEFACTS[id], cells(ARTEFACTS[id], "paper"))}
    assert all(c.spec == theirs[c[:2]] for c in cells(ARTEFACTS[id], "paper") if c.spec.seed == 0)


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("few, many", [("vm-fig2", "vm-table1"), ("vm-fig3", "vm-table1"), ("mm-knn", "mm-table1"),
    ("mm-fig2", "mm-table1"), ("mm-unbounded-pgd", "mm-knn"), ("mm-fig8", "mm-table1")])
def test_artefacts_share_runs(few, many, at):
    assert {name_of(c.spec) for c in cells(ARTEFACTS[few], at)} <= {name_of(c.spec) for c in cells(ARTEFACTS[many], at)}


@pytest.mark.parametrize("at", SEEDS)
def test_table_3_has_the_analyses_runs_and_figure_6_two_thirds_of_figure_1s(at):
    names = {id: {name_of(c.spec) for c in cells(ARTEFACTS[id], at)} for id in ("mm-knn", "mm-table3", "mm-fig1", "mm-fig6")}
    assert names["mm-knn"] <= names["mm-table3"]
    assert 3 * len(names["mm-fig1"] & names["mm-fig6"]) == 2 * len(names["mm-fig1"])


def test_a_slip_in_an_experiments_scale_is_refused():
    from mixrepro.repro.scale import setting
    with pytest.raises(ValueError, match="unknown profile 'embeded': did you mean 'embedded'"): setting(1, "paper", "", embeded=2)
