"""What stands between a notebook and its figure, on notebooks that take no time: clocks, a person's surroundings, notebooks that end in every way."""

import json
import os
import re
import shutil
import sys
import time
from pathlib import Path

import nbformat
import pytest

from conftest import COMMAND, make_project, mixrepro
from mixrepro.workflow import jobs as workflow
from test_workflow import SMOKE, quick, sentence

NOTEBOOK, ID, FIGURES = "nbs/manifold_mixup/mm-theorem1.ipynb", "mm-theorem1", "figures/smoke/manifold_mixup"
AHEAD, BEHIND = 90, -5 * 365 * 86400


def drawing(project: Path) -> Path:
    "A project whose mm-theorem1 draws a line more at each execution."
    path = quick(project) / NOTEBOOK
    nb = nbformat.read(path, as_version=4)
    nb.cells[1].source = nb.cells[1].source.replace("write_together(", "before = [f.read_text() if f.is_file() else '' for f in files][0]\nwrite_together(").replace(
        'data=os.environ.get("MIXREPRO_DATA")', 'before=len(before)')
    nbformat.write(nb, path)
    return project


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    "A project in which mm-theorem1 was drawn."
    project = drawing(make_project(tmp_path_factory.mktemp("once") / "project"))
    done = mixrepro("reproduce", ID, *SMOKE, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project


def at(path: Path, seconds: float):
    "Set the time of a file, from now."
    os.utime(path, (time.time() + seconds,) * 2)


def edit(project: Path, last: str = "", first: str = "", id: str = NOTEBOOK):
    "Append to the last code cell of a notebook, or put something before it."
    nb = nbformat.read(project / id, as_version=4)
    nb.cells[-1].source = f"{first}\n{nb.cells[-1].source}\n{last}".strip()
    nbformat.write(nb, project / id)


def drawn(project: Path) -> dict: return {f.name: (f.read_bytes(), f.stat().st_ino) for f in (project / FIGURES).iterdir()}


def again(project: Path, *args, **env) -> str:
    "What a second call says; it succeeds."
    done = mixrepro("reproduce", ID, *SMOKE, *args, cwd=project, **env)
    assert done.returncode == 0, done.stdout + done.stderr + (project / "runs/.workflow/snakemake.log").read_text()[-3000:]
    return done.stdout


@pytest.mark.parametrize("seconds", [AHEAD, BEHIND], ids=["ahead", "behind"])
def test_a_clock_that_differs_deletes_nothing_and_draws_what_is_new(once, tmp_path, seconds):
    "The times of the notebook, of the figures, the stamps and the page are of another clock; the notebook's content decides."
    shutil.copytree(once, project := tmp_path / "project", symlinks=True)
    before = drawn(project)
    def shift():
        for f in [*project.rglob("*.ipynb"), *(project / "figures").rglob("*.*"), *(project / "runs").rglob("*")]:
            if f.is_file(): at(f, seconds)
    shift()
    assert "nothing to do" in again(project) and drawn(project) == before
    edit(project, "# a word more")
    shift()
    assert "draw mm-theorem1" in again(project)
    after = drawn(project)
    assert set(after) == set(before) and all(after[k] != before[k] for k in before)
    assert (project / "figures/smoke/report.html").stat().st_mtime == pytest.approx(time.time(), abs=300)  # written anew
    assert "nothing to do" in again(project) and drawn(project) == after
    (project / FIGURES / f"{ID}.svg").unlink()
    shift()
    assert "draw mm-theorem1" in again(project) and set(drawn(project)) == set(before)
    assert "draw mm-theorem1" in again(project, "--force")
