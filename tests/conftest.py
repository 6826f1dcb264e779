"""What all tests share: where the project is, one thread, and a copy of the project to work in."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two processes that wait for each other are slower than one
STARTUP = str(Path(__file__).resolve().parent / "startup")
sys.path.insert(0, STARTUP)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))  # of what tests start

import deprecations
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("mixrepro")
torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    "Modules are imported here, within pytest's own care of warnings."
    deprecations.install()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    deprecations.install()
    return (yield)


@pytest.fixture(scope="session")
def root() -> Path:
    "The project's folder."
    return ROOT


@pytest.fixture
def project(tmp_path) -> Path:
    "A folder with the project's notebooks and nothing else, for reproducing in."
    return make_project(tmp_path / "project")


def make_project(folder: Path) -> Path:
    "A project's folder whose notebooks are the real ones, and whose store and figures are empty."
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "settings.ini", folder)
    shutil.copytree(ROOT / "nbs", folder / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    return folder


def mixrepro(*args, cwd: Path, timeout=400, **env) -> subprocess.CompletedProcess:
    "The command line, as a person would call it in a folder."
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"} | env
    return subprocess.run([COMMAND, *map(str, args)], cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout)
