"The notebooks of artefacts show what lies in figures/embedded."

import nbformat
import pytest

from conftest import ROOT, mixrepro
from mixrepro.papers.catalogue import ARTEFACTS
from mixrepro.papers.genlabel.claims import GENLABEL_CLAIMS
from mixrepro.papers.manifold_mixup.claims import MANIFOLD_MIXUP_CLAIMS
from mixrepro.papers.noisymix.claims import NOISYMIX_CLAIMS
from mixrepro.papers.varmixup.claims import VARMIXUP_CLAIMS
from mixrepro.repro.artefact import state
from mixrepro.workflow.jobs import WORK
from mixrepro.workflow.outputs import carry_all, old, published

READY = [a for a in ARTEFACTS.values() if state(a, ROOT) == "ready"]


@pytest.mark.parametrize("artefact", READY, ids=lambda a: a.id)
def test_a_notebook_shows_the_numbers_of_figures_embedded(artefact):
    assert old(artefact, ROOT) == ""


@pytest.mark.parametrize("artefact", READY, ids=lambda a: a.id)
def test_a_notebook_shows_its_picture_and_its_answer(artefact):
    outputs = [o for c in nbformat.read(ROOT / artefact.notebook, as_version=4).cells for o in c.get("outputs", [])]
    kinds = {kind for o in outputs for kind in o.get("data", {})}
    pictures = any(kind.startswith("image/") for kind in kinds)
    assert "text/markdown" in kinds and (pictures or not {"png", "svg"} & set(artefact.outputs))
    page = (ROOT / "figures/embedded" / artefact.paper / f"{artefact.id}.md").read_text()
    answers = [o.data["text/markdown"] for o in outputs if "published" in o.metadata.get("text/markdown", {})]
    assert answers and page.startswith(answers[-1].strip()[:200])


@pytest.mark.parametrize("notebook, claims", [
    ("varmixup/05_claims", VARMIXUP_CLAIMS), ("manifold_mixup/09b_claims", MANIFOLD_MIXUP_CLAIMS),
    ("noisymix/09_claims", NOISYMIX_CLAIMS), ("genlabel/06_claims", GENLABEL_CLAIMS)])
def test_a_notebook_of_claims_shows_how_many_there_are(notebook, claims):
    last = nbformat.read(ROOT / f"nbs/{notebook}.ipynb", as_version=4).cells[-1]
    assert [o.data["text/plain"] for o in last.outputs] == [str(len(claims))]


def test_a_number_that_changes_is_noticed(tmp_path):
    a = READY[0]
    for path in (a.notebook, *map(str, a.files("figures/embedded"))):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    assert old(a, tmp_path) == "" and published(tmp_path / a.notebook).keys() == {"csv", "md"}
    table = tmp_path / "figures/embedded" / a.paper / f"{a.id}.csv"
    table.write_text(table.read_text().replace("1", "2", 1))
    assert old(a, tmp_path).endswith(f"shows other numbers than figures/embedded/{a.paper}/{a.id}.csv")


@pytest.mark.parametrize("text", ["[]", "3", "[" * 100_000, "{}", '{"cells": [3], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}', "", "\ufeff{}"])
def test_a_copy_that_is_no_notebook_keeps_no_other_back(tmp_path, text):
    first, second = READY[:2]
    for a in (first, second):
        for path in (tmp_path / a.notebook, copy := tmp_path / WORK / "notebooks" / f"embedded-{a.id}.ipynb"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes((ROOT / a.notebook).read_bytes())
    copy.with_name(f"embedded-{first.id}.ipynb").write_text(text, encoding="utf-8")
    changed, left = carry_all([first.id, second.id], tmp_path, "embedded")
    assert {*left} == {first.id} and (tmp_path / first.notebook).read_bytes() == (ROOT / first.notebook).read_bytes()


@pytest.mark.parametrize("lost, kind", [("its answer", "text/markdown"), ("its picture", "image/png")])
def test_a_copy_whose_outputs_were_lost_takes_none_from_its_notebook(tmp_path, lost, kind):
    "Jupyter stops waiting for outputs on a busy machine, and the cell counts as done: the notebook lost its answer, or its picture."
    a = ARTEFACTS["vm-fig2"]
    for path in (a.notebook, *map(str, a.files("figures/embedded"))):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / path).read_bytes())
    copy, whole = tmp_path / WORK / "notebooks/embedded-vm-fig2.ipynb", nbformat.read(ROOT / a.notebook, as_version=4)
    copy.parent.mkdir(parents=True)
    nbformat.write(whole, copy)
    assert carry_all([a.id], tmp_path, "embedded")[1] == {}
    before = (tmp_path / a.notebook).read_bytes()
    for c in whole.cells:
        if c.get("outputs"): c.outputs = [o for o in c.outputs if kind not in o.get("data", {})]
    nbformat.write(whole, copy)
    assert carry_all([a.id], tmp_path, "embedded") == ([], {a.id: f"its last execution does not show {lost}: reproduce it with --force"})
    assert (tmp_path / a.notebook).read_bytes() == before


def test_a_copy_whose_log_says_that_outputs_are_missing_is_left(tmp_path):
    a = ARTEFACTS["vm-fig2"]
    for path in (a.notebook, *map(str, a.files("figures/embedded")), copy := tmp_path / WORK / "notebooks/embedded-vm-fig2.ipynb"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes((ROOT / (a.notebook if path is copy else path)).read_bytes())
    (log := tmp_path / WORK / "logs/embedded-vm-fig2.log").parent.mkdir()
    log.write_text("Executing Cell 3\n")
    assert carry_all([a.id], tmp_path, "embedded") == ([], {})
    log.write_text("Executing Cell 3\nTimeout waiting for IOPub output\n")
    assert carry_all([a.id], tmp_path, "embedded") == ([], {a.id: "its last execution does not show all that it should: reproduce it with --force"})


def test_the_command_names_what_it_leaves(project):
    done = mixrepro("outputs", READY[0].id, cwd=project)
    assert done.returncode == 1 and f"{READY[0].id} left as it is: it was not reproduced here" in done.stdout
    assert done.stderr.count("\n") == 1 and done.stderr.startswith("mixrepro: ")
