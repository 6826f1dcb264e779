"""The notebooks are the source: they are clean, exporting them changes nothing, all of them run, and the README is theirs."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest

from conftest import ROOT

ARTEFACT = "(vm|mm|nm|gl|x)-"  # how the names of artefacts' notebooks begin; the workflow executes them, see test_workflow.py
NOTEBOOKS = sorted(p for p in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in p.parts)


def copy(tmp_path) -> Path:
    "The files that nbdev reads and writes."
    for name in ("nbs", "mixrepro"): shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
    for name in ("settings.ini", "pyproject.toml", "README.md"): shutil.copy(ROOT / name, tmp_path)
    return tmp_path


def changed(a: Path, b: Path, pattern: str) -> list[str]:
    "Files that differ between two trees, or are in one of them only."
    names = {p.relative_to(base) for base in (a, b) for p in base.rglob(pattern) if "__pycache__" not in p.parts and ".ipynb_checkpoints" not in p.parts}
    return sorted(str(n) for n in names if not ((a / n).is_file() and (b / n).is_file() and (a / n).read_bytes() == (b / n).read_bytes()))


def nbdev(command: str, cwd: Path, *args):
    done = subprocess.run([Path(sys.executable).with_name(command), *args], cwd=cwd, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_notebooks_are_clean(tmp_path):
    nbdev("nbdev_clean", copy(tmp_path))
    assert changed(ROOT / "nbs", tmp_path / "nbs", "*.ipynb") == [], "run nbdev_clean"


def test_export_leaves_no_difference(tmp_path):
    nbdev("nbdev_export", copy(tmp_path))
    assert changed(ROOT / "mixrepro", tmp_path / "mixrepro", "*.py") == [], "run nbdev_export"


def test_a_changed_notebook_is_noticed(tmp_path):
    copy(tmp_path)
    nb = tmp_path / "nbs/00_core.ipynb"
    nb.write_text(nb.read_text().replace('SOURCES = (', 'SOURCES_OF_CHOICES = ('))
    nbdev("nbdev_export", tmp_path, "--path", "nbs/00_core.ipynb")
    assert changed(ROOT / "mixrepro", tmp_path / "mixrepro", "*.py") == ["_modidx.py", "core.py"] or "core.py" in changed(ROOT / "mixrepro", tmp_path / "mixrepro", "*.py")


RUN = """import gc
gc.disable()  # what most notebooks import: once for both workers, and not looked through for garbage by either
import pytest, torchvision
import sklearn.datasets, sklearn.linear_model, sklearn.metrics, sklearn.model_selection, sklearn.neighbors
from execnb.shell import CaptureShell
from matplotlib.backend_bases import FigureCanvasBase
from nbdev.test import nbdev_test
from mixrepro.metrics.catalogue import read_ahead
from mixrepro.workflow import study
read_ahead()
CaptureShell.__init__.__defaults__ = (None, "png", False, None)  # each figure is drawn, not at twice the resolution
FigureCanvasBase.draw_idle = lambda *_, **__: None  # and at its cell's end, not at each call of pyplot besides
CaptureShell()
gc.freeze()
gc.enable()
nbdev_test(path={path!r}, skip_file_re={skip!r}, n_workers=2)"""


def test_every_notebook_runs():
    skip = f"^([_.]|{ARTEFACT})"
    done = subprocess.run([sys.executable, "-c", RUN.format(path="nbs", skip=skip)], cwd=ROOT, text=True, capture_output=True, env=os.environ | dict(OMP_NUM_THREADS="1"))
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-6000:]


def test_artefacts_notebooks_are_told_by_their_names():
    from mixrepro.papers.catalogue import ARTEFACTS, PAPERS
    rooms = {p for p in NOTEBOOKS if p.parent.name in PAPERS}
    assert {p for p in rooms if re.match(ARTEFACT, p.name)} == {p for p in NOTEBOOKS if p.stem in ARTEFACTS}
    assert all(re.match(r"0\d[a-z]?_", p.name) for p in rooms if not re.match(ARTEFACT, p.name)) and {p.parent.name for p in rooms} == set(PAPERS)


def test_readme_is_the_index(tmp_path):
    nbdev("jupyter", ROOT, "nbconvert", "--config", "nbs/readme_config.py", "nbs/index.ipynb", "--output-dir", str(tmp_path))
    assert (tmp_path / "README.md").read_text() == (ROOT / "README.md").read_text(), "run: make readme"


def test_ruff_finds_nothing():
    done = subprocess.run([Path(sys.executable).with_name("ruff"), "check", "mixrepro"], cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_settings_and_pyproject_agree():
    settings = configparser.ConfigParser(); settings.read(ROOT / "settings.ini"); s = settings["DEFAULT"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    import mixrepro
    assert s["version"] == mixrepro.__version__ and "version" in project["dynamic"]
    assert s["lib_name"] == project["name"] and s["description"] == project["description"]
    assert project["requires-python"] == f">={s['min_python']},<3.14" and s["keywords"].split() == project["keywords"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: str(p.relative_to(ROOT)))
def test_notebook_is_small_and_says_nothing_of_a_machine(path):
    text = path.read_text()
    assert len(text) < 300_000, "a notebook is at most 300 KB"
    assert not re.search(r"/(home|root|work|tmp|Users)/\w", text), "a path of a machine stands in the notebook"
    assert "[IPKernelApp]" not in text and "Warning:" not in text, "a warning stands in the notebook's output"


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if re.match(ARTEFACT, p.name) or p.name == "train.ipynb"], ids=lambda p: p.stem)
def test_parameters_are_tagged(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    assert len(cells) == 1 and all(re.match(r"\w+: \w+ = .+  # .+", line) for line in cells[0].source.splitlines()), "name: type = default  # help"


WIDTH = 120  # characters: JupyterLab cuts what is longer


def too_long(lines) -> list[str]:
    "The lines that are longer than a notebook shows."
    return [line for line in lines if len(line) > WIDTH]


def code_lines(path: Path) -> list[str]:
    "The lines of code of a notebook, or of a module from its first cell on: above it nbdev writes title and names."
    if path.suffix == ".ipynb":
        cells = nbformat.read(path, as_version=4).cells
        return [line for c in cells if c.cell_type == "code" for line in c.source.splitlines()]
    return path.read_text().split("# %% ../", 1)[-1].splitlines()


def test_a_long_line_is_noticed(tmp_path):
    names, line = f'"""{"Title " * 30}"""\n\n__all__ = [{"1, " * 50}]\n\n# %% ../nbs/a.ipynb #1\n', "x = " + "1" * 117
    (tmp_path / "a.py").write_text(f"{names}{line}\n{line[1:]}\n")
    cells = [nbformat.v4.new_markdown_cell("word " * 50), nbformat.v4.new_code_cell(f"a = 1\n{line}")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    for name in ("a.py", "a.ipynb"): assert too_long(code_lines(tmp_path / name)) == [line]


MODULES = sorted(p for p in (ROOT / "mixrepro").rglob("*.py") if p.name != "_modidx.py")


@pytest.mark.parametrize("path", [*NOTEBOOKS, *MODULES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_code_line_is_over_120_characters(path):
    found = too_long(code_lines(path))
    assert not found, f"wrap {len(found)} lines by their meaning, the first is: {found[0]}"
