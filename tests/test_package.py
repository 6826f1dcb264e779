"""What is built and shipped, and what it says in an installation that has only part of what it needs."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from conftest import ROOT, python_blocks

BUILD = "import sys; from setuptools import build_meta as b; print(b.build_wheel(sys.argv[1]) if sys.argv[2] == 'wheel' else b.build_sdist(sys.argv[1]))"


def build(source: Path, kind: str, to: Path) -> Path:
    "A wheel or a source archive, by the build system that pyproject.toml names."
    to.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, "-c", BUILD, to, kind], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return to / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:  # the wheel, the source archive
    "Both, built from a copy of what a clone holds."
    source, to = tmp_path_factory.mktemp("build") / "clone", tmp_path_factory.mktemp("dist")
    keep = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "settings.ini", "Makefile", "constraints.txt", "mixrepro", "nbs", "tests", "figures", "data_scripts")
    for name in keep:
        if (ROOT / name).is_dir(): shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints"))
        else: source.mkdir(exist_ok=True); shutil.copy(ROOT / name, source)
    return build(source, "wheel", to), build(source, "sdist", to)


def test_the_wheel_holds_the_package_and_nothing_else(built):
    names = {n for n in zipfile.ZipFile(built[0]).namelist() if ".dist-info/" not in n}
    package = {p.relative_to(ROOT).as_posix() for p in (ROOT / "mixrepro").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert names == package and {"mixrepro/workflow/Snakefile", "mixrepro/reported/varmixup.csv", "mixrepro/__main__.py"} <= names


def test_the_source_archive_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as tar:
        names = {n.split("/", 1)[-1] for n in tar.getnames()}
        tar.extraction_filter = getattr(tarfile, "data_filter", None)  # Python 3.11.3 and before have none
        tar.extractall(tmp_path)
    assert not [n for n in names if n.split("/")[0] in ("tests", "nbs", "figures", "data_scripts")]
    assert {"LICENSE", "README.md", "pyproject.toml", "mixrepro/workflow/Snakefile"} <= names
    again = build(next(tmp_path.iterdir()), "wheel", tmp_path / "dist")
    assert sorted(zipfile.ZipFile(again).namelist()) == sorted(zipfile.ZipFile(built[0]).namelist())


def wanted(names: list[str], extras: set) -> dict:  # name -> distribution
    "Installed distributions and all that they need."
    found, queue = {}, [Requirement(n) for n in names]
    while queue:
        r = queue.pop()
        key = (r.name.lower(), *sorted(r.extras))
        if key in found: continue
        found[key] = d = distribution(r.name)
        for child in map(Requirement, d.requires or []):
            if not child.marker or any(child.marker.evaluate({"extra": e}) for e in ("", *r.extras)): queue.append(child)
    return found


def environment(folder: Path, wheel: Path, extra: str = "") -> Path:  # its Python
    "A virtual environment with the wheel and what it asks for, as links to the packages of this one: nothing is fetched, and nothing else can be imported."
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next((folder / "lib").iterdir()) / "site-packages"
    metadata = next(n for n in zipfile.ZipFile(wheel).namelist() if n.endswith("/METADATA"))
    needs = [Requirement(l.split(":", 1)[1]) for l in zipfile.ZipFile(wheel).read(metadata).decode().splitlines() if l.startswith("Requires-Dist:")]
    needs = [f"{r.name}{[*r.extras] or ''}" for r in needs if not r.marker or r.marker.evaluate({"extra": extra})]
    for d in wanted(needs, {extra}).values():
        for file in d.files or []:
            top = file.parts[0]
            if top in ("..", "__pycache__") or (site / top).exists(): continue
            (site / top).symlink_to(Path(d.locate_file(top)).resolve())
    subprocess.run([sys.executable, "-m", "pip", "--python", folder / "bin/python", "install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", wheel], check=True)
    return folder / "bin/python"


@pytest.fixture(scope="module")
def bare(built, tmp_path_factory) -> Path: return environment(tmp_path_factory.mktemp("env b") / "bare", built[0])


@pytest.fixture(scope="module")
def full(built, tmp_path_factory) -> Path: return environment(tmp_path_factory.mktemp("env") / "repro", built[0], "repro")


def call(python: Path, *args, cwd: Path) -> subprocess.CompletedProcess:
    "The installed command, in an environment that knows nothing of this clone."
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MIXREPRO", "PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run([python.with_name("mixrepro"), *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=300)


def sentence(done: subprocess.CompletedProcess) -> str:
    "The refusal: non-zero exit, one line on the error stream, no traceback."
    lines = done.stderr.splitlines()
    assert done.returncode and len(lines) == 1 and lines[0].startswith("mixrepro: "), done.stdout + done.stderr
    return lines[0]



def test_the_environment_is_bare(bare, tmp_path):
    code = "import importlib.util as u, mixrepro; print(mixrepro.__file__, [n for n in ('pandas', 'matplotlib', 'requests', 'nbformat', 'snakemake', 'papermill', 'nbdev', 'pytest') if u.find_spec(n)])"
    said = subprocess.run([bare, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True).stdout
    assert said.startswith(str(bare.parents[1])) and said.strip().endswith("[]")


def test_help_of_the_bare_package(bare, tmp_path):
    for args in (["--help"], ["reproduce", "--help"], ["data", "--help"]):
        done = call(bare, *args, cwd=tmp_path)
        assert done.returncode == 0 and done.stderr == "" and "Usage: mixrepro" in done.stdout


@pytest.mark.parametrize("which, args", [*(("bare", a) for a in ("list", "list --json", "reproduce", "reproduce vm-fig2 -- -n", "show vm-table1", "report")),
                                         ("full", "list"), ("full", "reproduce")])
def test_where_there_is_no_clone(which, args, request, tmp_path):
    said = sentence(call(request.getfixturevalue(which), *args.split(), cwd=tmp_path))
    assert f"no notebooks under {tmp_path}, or above it: they come with a clone" in said and "set MIXREPRO_HOME" in said


def test_what_the_bare_package_lacks_in_a_clone(bare, built, tmp_path):
    "The advice is a command that pip accepts, and what it installs holds what was missing."
    for name in ("nbs", "settings.ini"): (tmp_path / name).symlink_to(ROOT / name)
    assert "are ready" in call(bare, "list", cwd=tmp_path).stdout
    for args, module in (["reproduce", "vm-fig2"], "snakemake"), (["data", "get", "cifar10"], "requests"):
        said = sentence(call(bare, *args, cwd=tmp_path))
        assert f"mixrepro: {module} is not installed, and this needs it: " in said
        command = shlex.split(said.split("needs it: ")[1])
        assert command == [str(bare), "-m", "pip", "install", f"{built[0]}[repro]"]
        done = subprocess.run([sys.executable, *command[1:3], "--python", bare, *command[3:], "--dry-run", "--no-deps", "--no-index"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert not (tmp_path / "runs").exists()


def test_what_the_bare_package_imports(bare, tmp_path):
    "What reads data sets and measures does; what makes tables says in a sentence what brings pandas."
    code = "import mixrepro.metrics.catalogue, mixrepro.data.fetch, mixrepro.training.loop\nimport mixrepro.repro.ledger"
    done = subprocess.run([bare, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "ModuleNotFoundError: pandas is not installed, and this needs it: pip install 'mixrepro[repro]'"


def test_the_advice_where_the_wheel_is_gone(built, tmp_path):
    "Then the packages themselves are named."
    wheel = Path(shutil.copy(built[0], tmp_path))
    python = environment(tmp_path / "env", wheel)
    wheel.unlink()
    command = shlex.split(sentence(call(python, "data", "get", "cifar10", cwd=tmp_path)).split("needs it: ")[1])
    assert command[:4] == [str(python), "-m", "pip", "install"] and {"papermill", "snakemake", "requests"} <= {Requirement(r).name for r in command[4:]}


def test_doctor(bare, full, tmp_path):
    done = call(bare, "doctor", cwd=tmp_path)
    assert "checks failed: see the lines marked WRONG" in sentence(done)
    wrong = [l for l in done.stdout.splitlines() if l.startswith("WRONG")]
    assert len(wrong) == 2 and "papermill" in wrong[0] and "[repro]" in wrong[0] and "no notebooks under" in wrong[1]
    assert "nbdev" not in wrong[0]
    for name in ("nbs", "settings.ini"): (tmp_path / name).symlink_to(ROOT / name)
    done = call(full, "doctor", cwd=tmp_path)
    assert done.returncode == 0 and "WRONG" not in done.stdout, done.stdout + done.stderr
    note = next(l for l in done.stdout.splitlines() if "nbdev" in l)
    assert note.startswith("note ") and "[dev]" in note
    assert not list(tmp_path.glob("runs/.probe"))


def test_bench_of_the_bare_package(bare, tmp_path):
    done = call(bare, "bench", "--n", "4", "--size", "8", "--severity", "1", cwd=tmp_path)
    assert done.returncode == 0 and "jpeg_compression" in done.stdout, done.stderr


def test_the_library_example_runs_as_printed(bare, tmp_path):
    code = "\n".join(python_blocks((ROOT / "README.md").read_text()))
    done = subprocess.run([bare, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and re.search(r"accuracy on 539 held-out digits: \d\d\.\d%", done.stdout), done.stderr


def test_the_loops_of_the_tutorial_need_the_package_alone(bare, tmp_path):
    "VarMixup, NoisyMix, GenLabel, AugMix and PuzzleMix as printed; timm's convention wants timm. No store, no file."
    cells = [c["source"] for c in json.loads((ROOT / "nbs/tutorials/02_own_loop.ipynb").read_text())["cells"] if c["cell_type"] == "code"]
    shown = ["".join(c) for c in cells if not "".join(c).startswith("#| hide")]
    code = "\n".join(shown[:next(i for i, c in enumerate(shown) if "timm" in c)])
    done = subprocess.run([bare, "-I", "-c", code + "\nprint(loss.isfinite().item())"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout == "True\n" and "VarMixup" in code and "PuzzleMix" in code, done.stderr
    assert [*tmp_path.iterdir()] == []


def test_a_fault_of_ours_is_not_taken_for_a_missing_package(bare, tmp_path):
    "A module of ours that cannot be imported shows its traceback."
    code = "import sys; sys.modules['mixrepro.data.fetch'] = None; sys.argv = ['mixrepro', 'data', 'list']; from mixrepro.cli import main; main()"
    done = subprocess.run([bare, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" in done.stderr and "mixrepro: " not in done.stderr
