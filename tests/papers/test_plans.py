"What holds of every plan at every scale: how many runs, which seeds, and that a cell is named alike at each."

import re
from collections import Counter
from functools import cache

import pytest

from mixrepro.files import home
from mixrepro.methods.catalogue import METHODS
from mixrepro.papers.catalogue import ARTEFACTS, PAPERS
from mixrepro.repro.artefact import cells as planned, papers_cells, trials
from mixrepro.repro.departures import departures
from mixrepro.repro.figures import LABELS
from mixrepro.repro.scale import SCALES, scale
from mixrepro.training.spec import name_of

PLANNED = [id for id, a in ARTEFACTS.items() if a.plan]
cells = cache(planned)  # a plan at a scale takes up to a second
SEEDS = {"smoke": 2, "embedded": 10, "overnight": 5, "gpu": 3, "paper": 10}  # of a cell, where nothing else is said


def plan_of(id, at, seed=0): return ARTEFACTS[id].plan(ARTEFACTS[id].settings.at(at), scale(at), seed)


def shared_of(id, at): return ARTEFACTS[id].shared(ARTEFACTS[id].settings.at(at), scale(at))


def test_thirty_one_artefacts_and_more_have_a_plan():
    assert len(PLANNED) >= 37 and {ARTEFACTS[id].paper for id in PLANNED} >= set(PAPERS)
    assert {name: s.seeds for name, s in SCALES.items()} == SEEDS


@pytest.mark.parametrize("id, n", [("mm-regularizers", 5), ("mm-table2", 5), ("mm-fig9", 3)])
def test_as_many_trials_as_the_paper_says(id, n):
    "Five: section 5.1, table 2; three at least: appendix G."
    assert trials(ARTEFACTS[id], "paper") == n


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("id", PLANNED)
def test_runs_are_cells_times_seeds_and_the_shared_ones(id, at):
    "A dear row may have the first seeds only."
    n, once, shared, found = trials(ARTEFACTS[id], at), plan_of(id, at), shared_of(id, at), cells(ARTEFACTS[id], at)
    assert len({c[:2] for c in once}) == len(once), "two cells have one name"
    assert found[:len(shared)] == shared and {c.spec.seed for c in shared} <= {0}
    seeds = {}
    for c in found[len(shared):]: seeds.setdefault(c[:2], []).append(c)
    assert list(seeds) == [c[:2] for c in once] and all(len(of) <= n for of in seeds.values())
    if all(METHODS[c.spec.method].trains == "autoencoder" for c in once): return  # one for all seeds, where it is dear
    assert max(map(len, seeds.values())) == n
    assert all([c.spec.seed for c in of] == list(range(len(of))) for of in seeds.values())
    if at not in ("smoke", "overnight"):  # where networks of all depths are one
        assert len({f"{c.spec.dataset}/{name_of(c.spec)}" for c in found}) == len(found), "a run is planned twice"


@pytest.mark.parametrize("at", SEEDS)
@pytest.mark.parametrize("id", PLANNED)
def test_a_number_of_seeds_is_heard_by_every_plan(id, at):
    for n in (1, 4):
        found = Counter(c[:2] for c in cells(ARTEFACTS[id], at, seeds=n)[len(shared_of(id, at)):])
        dear = all(METHODS[c.spec.method].trains == "autoencoder" for c in plan_of(id, at))
        assert dear or max(found.values()) == n
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


NAMED_BY_ITSELF = {"mm-table4", "mm-fig7", "mm-table2", "nm-table5", "gl-genmix-error"}  # data and networks have labels of the page's own


@pytest.mark.parametrize("id", [id for id in PLANNED if id not in NAMED_BY_ITSELF])
def test_a_committed_page_departs_from_the_paper_as_its_plan_does(id):
    "A setting, or a recipe, that changes is another run: its page is drawn anew. Names in parentheses are left out: a page may have its own."
    def bare(text):
        while (less := re.sub(r" ?\([^()]*\)", "", text)) != text: text = less
        return text
    a, ours = ARTEFACTS[id], cells(ARTEFACTS[id], "embedded")
    page = bare((home() / f"figures/embedded/{a.paper}/{id}.md").read_text())
    for said in departures(papers_cells(a, ours), ours, LABELS).sentences(LABELS): assert bare(said) in page
