"The catalogue: complete, unambiguous, and nothing but the tree decides what is ready."
from collections import Counter
from pathlib import Path

from dataclasses import replace

import nbformat
import pytest
from hypothesis import given, strategies as st

from conftest import ROOT
from mixrepro.papers.catalogue import ARTEFACTS, PAPERS, find
from mixrepro.repro.artefact import FIGURE, TABLE, state


def test_every_paper_has_its_number_of_artefacts():
    counted = Counter(a.paper for a in ARTEFACTS.values())
    asked = Counter(varmixup=8, manifold_mixup=21, noisymix=25, genlabel=15, across=5)
    assert counted >= asked and list(counted) == list(PAPERS)


def test_numbered_figures_and_tables_have_no_gap():
    def numbers(prefix): return sorted(int(id.removeprefix(prefix)) for id in ARTEFACTS if id.startswith(prefix))
    for prefix, n in {"vm-fig": 5, "vm-table": 1, "mm-fig": 9, "mm-table": 5, "nm-fig": 8, "nm-table": 14, "nm-theorem": 3, "gl-theorem": 2}.items():
        assert numbers(prefix) == list(range(1, n + 1)), prefix


@pytest.mark.parametrize("artefact", ARTEFACTS.values(), ids=list(ARTEFACTS))
def test_an_entry_is_in_order(artefact):
    assert ARTEFACTS[artefact.id] is artefact is find(artefact.id)
    assert artefact.outputs in (TABLE, FIGURE) and ("-fig" not in artefact.id or artefact.outputs == FIGURE)
    assert artefact.title == artefact.title.strip() and artefact.title[0].isupper() and 10 < len(artefact.title) < 90 and "|" not in artefact.title
    assert artefact.notebook == f"nbs/{artefact.paper}/{artefact.id}.ipynb"

def test_titles_and_files_are_all_different():
    assert len({a.title for a in ARTEFACTS.values()}) == len(ARTEFACTS)
    files = [p for a in ARTEFACTS.values() for p in a.files("figures/smoke")]
    assert len(set(files)) == len(files) and files[0] == Path("figures/smoke/varmixup/vm-table1.csv")


@given(id=st.sampled_from(sorted(ARTEFACTS)), cut=st.integers(0, 3))
def test_a_typo_is_refused_with_a_near_name(id, cut):
    typo = id[:3 + cut] + "zz" + id[3 + cut:]
    with pytest.raises(ValueError, match=f"unknown artefact '{typo}': did you mean '") as e: find(typo)
    assert str(e.value).split("did you mean '")[1].split("'")[0] in ARTEFACTS


def test_a_plan_and_a_notebook_make_it_ready(tmp_path):
    a, draft = find("vm-fig1"), replace(find("gl-toy"), plan=None)
    (tmp_path/draft.notebook).parent.mkdir(parents=True); (tmp_path/draft.notebook).touch()
    assert state(draft, tmp_path) == "planned"  # a draft without a plan stops nothing
    (tmp_path/a.notebook).mkdir(parents=True)
    assert state(a, tmp_path) == "planned"  # a folder of that name is no notebook
    (tmp_path/a.notebook).rmdir(); (tmp_path/a.notebook).touch(); (tmp_path/draft.notebook).unlink()
    assert [i for i in ARTEFACTS if state(ARTEFACTS[i], tmp_path) == "ready"] == ["vm-fig1"]


SEEN_OTHERWISE = {"vm-fig4": "its title names the judge and the data that it has seen", "vm-cost": "its title names network and data",
                  "mm-fig7": "an axis names the digits", "nm-fig5": "each picture has its name"}


@pytest.mark.parametrize("id", [id for id, a in ARTEFACTS.items() if {"svg", "png"} & set(a.outputs)])
def test_a_picture_of_a_stand_in_names_it(id):
    from mixrepro.workflow.study import Captioned
    source = "\n".join(c.source for c in nbformat.read(ROOT / ARTEFACTS[id].notebook, 4).cells if c.cell_type == "code")
    if Captioned(id).departures.standins or "study.reads(" in source: assert "study.subtitle()" in source or id in SEEN_OTHERWISE
