"""Every artefact's notebook at smoke scale; the way there, by Snakemake and kernels, is what test_workflow follows with a few of them."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from conftest import BY_THE_ENGINE, ROOT, check_pages, make_project
from mixrepro.papers.catalogue import ARTEFACTS
from mixrepro.repro.artefact import cells, state
from mixrepro.training.spec import name_of

DRAWN = [a for a in ARTEFACTS.values() if state(a, ROOT) == "ready" and a.id not in BY_THE_ENGINE]

# Two seeds cost twice one: what is dear is drawn with a single one, which is another case to get right.
ONCE = {"vm-fig3", "vm-transfer", "vm-autoencoders", "vm-kl", "vm-offmanifold", "mm-corollary1", "mm-table4", "mm-fig1", "mm-fig4", "mm-fig6", "mm-fig7", "x-matrix", "x-combine",
        "mm-table2", "mm-table3", "nm-table1", "nm-table2", "nm-table5", "nm-table6", "nm-table11", "nm-table12", "nm-fig1", "nm-fig4", "nm-fig6", "gl-genmix-error", "gl-genmix-toy", "gl-images", "gl-margin", "gl-toy", "x-regime"}


def seeds_of(id: str) -> int:  # 0: as many as the scale says
    return int(id in ONCE)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    project = make_project(tmp_path_factory.mktemp("drawn") / "project")
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"}
    return project, subprocess.run([sys.executable, Path(__file__).with_name("draw.py"), *(f"{a.id}=1" if seeds_of(a.id) else a.id for a in DRAWN)], cwd=project, env=env,
                                   text=True, capture_output=True, timeout=1800)


def test_every_notebook_comes_to_its_end_and_writes_what_it_names(drawn):
    project, done = drawn
    assert done.returncode == 0, done.stderr[-8000:]
    for a in DRAWN:
        for f in a.files(project / "figures/smoke"): assert f.stat().st_size > (1000 if f.suffix == ".svg" else 0), f
        for c in cells(a, "smoke", seeds_of(a.id)): assert (project / "runs" / c.spec.dataset / name_of(c.spec) / "done.json").is_file()


def test_every_page_says_that_it_is_a_check_and_none_holds_a_verdict(drawn): check_pages(drawn[0], DRAWN)


def test_a_notebook_that_fails_is_named_and_the_others_go_on(tmp_path):
    project = make_project(tmp_path / "project")
    path = project / "nbs/noisymix/nm-fig3.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(3, nbformat.v4.new_code_cell("raise ValueError('the cell that fails')"))
    nbformat.write(nb, path)
    done = subprocess.run([sys.executable, Path(__file__).with_name("draw.py"), "nm-fig3", "vm-fig1"], cwd=project, text=True, capture_output=True)
    assert done.returncode == 1 and "the cell that fails" in done.stderr and "failed: nm-fig3" in done.stderr.splitlines()
    assert (project / "figures/smoke/varmixup/vm-fig1.svg").is_file() and not (project / "figures/smoke/noisymix").exists()
