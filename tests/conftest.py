"""What all tests share: where the project is, one thread, and a copy of the project to work in."""

import contextlib
import gc
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

gc.disable()  # until all is collected: what is loaded is looked through again and again, and none of it is garbage
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads of two processes that wait for each other are slower than one
STARTUP = str(Path(__file__).resolve().parent / "startup")
sys.path.insert(0, STARTUP)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [STARTUP, os.environ.get("PYTHONPATH")]))  # of what tests start

import deprecations
import hypothesis
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from forks import Forks
from helpers import SHARED, write_tiny_imagenet
import unsynced

ROOT = Path(__file__).resolve().parents[1]
COMMAND = Path(sys.executable).with_name("mixrepro")
SMOKE = ("--profile", "smoke")
# What the tests reproduce as a user does: networks that need others, runs that two artefacts share, a picture, a theorem. A kernel's start costs
# more than most notebooks, so all others are drawn in forks of one process.
BY_THE_ENGINE = ("vm-table1", "vm-fig2", "mm-theorem1")
# Those that fork a training come before test_device, whose gradients on a fake GPU start autograd's threads: no fork may train after that.
LONGEST = tuple(f"test_{name}.py" for name in ("gates", "drawings", "workflow", "engine", "readme", "training", "parts", "device", "package", "environment"))
HEEDED_LATE = {"MIXREPRO_HOME", "MIXREPRO_DATA", "SNAKEMAKE_PROFILE"}  # when they are needed, and not as Python starts
torch.set_num_threads(1)
unsynced.install()
gc.set_threshold(100_000, 20, 100)  # to look for garbage after every 700 objects, as Python does, is a tenth of the suite
# The same examples at every run, so that a change of the code is what a failure comes from; HYPOTHESIS_PROFILE=default looks for new ones.
hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    "Modules are imported here, within pytest's own care of warnings."
    deprecations.install()
    return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item, nextitem):
    deprecations.install()
    return (yield)


def pytest_collection_modifyitems(items):
    "The longest files first, so that no worker is left alone with one at the end; what needs CUDA waits for a machine that has it."
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
    if torch.cuda.is_available(): return
    for item in items:
        if item.get_closest_marker("cuda"): item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish():
    "What is loaded by now stays: statsmodels collects garbage at each call, a tenth of a second with all of this to look through."
    gc.freeze()
    gc.enable()


def pytest_unconfigure():
    gc.unfreeze()  # or libraries complain at the end of what was never freed
    for f in forks: f.end()


def pytest_terminal_summary(terminalreporter, config):
    "What the campaign of faults came to, where it was run."
    for line in getattr(config, "faults_told", ()): terminalreporter.write_line(line)


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


def quick(project: Path) -> Path:
    "A project where mm-theorem1 and vm-fig1 only write down what they were given: the way there is what is looked at."
    for paper, id in (("manifold_mixup", "mm-theorem1"), ("varmixup", "vm-fig1")):
        cells = [nbformat.v4.new_code_cell('profile: str = "smoke"  # scale\nword: str = ""  # any text\nother: str = "x"  # another\nn: int = 0  # a number'),
                 nbformat.v4.new_code_cell(f"""import json, os
from pathlib import Path
from mixrepro.files import home, write_together
files = [home() / "figures" / profile / "{paper}" / f"{id}.{{end}}" for end in ("svg", "png", "csv", "md")]
write_together(dict.fromkeys(files, json.dumps(dict(word=word, other=other, n=n, data=os.environ.get("MIXREPRO_DATA")))))""")]
        cells[0].metadata["tags"] = ["parameters"]
        kernel = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), project / f"nbs/{paper}/{id}.ipynb")
    return project


forks = []


def mixrepro(*args, cwd: Path, timeout=400, fresh=False, **variables) -> subprocess.CompletedProcess:
    "The command line, as a person would call it in a folder; in a fork, unless it is to be fresh or is given what a start of Python reads."
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"} | variables
    if fresh or set(variables) - HEEDED_LATE:
        return subprocess.run([COMMAND, *map(str, args)], cwd=cwd, env=env, text=True, capture_output=True, timeout=timeout)
    if not forks or forks[0].process.poll() is not None: forks[:] = [Forks()]
    return forks[0].run([*map(str, args)], cwd, env, timeout)


def mixrepro_here(*args, cwd: Path, **env) -> subprocess.CompletedProcess:
    "The same in this process, for what is answered at once: a start costs seconds."
    from mixrepro import cli
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.chdir(cwd)
        patch.delenv("MIXREPRO_HOME", raising=False)
        patch.setattr(sys, "argv", ["mixrepro", *map(str, args)])
        for name, value in env.items(): patch.setenv(name, value)
        with pytest.raises(SystemExit) as end: cli.main()
    said = [(stream.flush(), stream.buffer.getvalue().decode())[1] for stream in (out, err)]
    return subprocess.CompletedProcess(args, end.value.code, *said)


def sentence(done: subprocess.CompletedProcess) -> str:
    "The refusal: non-zero exit, one line that begins with the program's name, and no traceback."
    lines = [l for l in done.stderr.splitlines() if l.strip()]
    assert done.returncode != 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert lines and lines[-1].startswith("mixrepro: "), done.stderr
    return lines[-1]


VERDICTS = re.compile(r"same direction|opposite direction|undecided|is contradicted|\bholds\b|no difference resolved|masked gradient|"
                      r"ahead of|is found for|are resolved for|is the smaller one|by the 95% interval")
NO_VERDICTS = {"withheld", "baseline", "not run", "stand-in", "other schedule", "not in the paper", "no number in the paper",
               "the paper gives a figure only"}


def check_pages(project: Path, artefacts) -> None:
    "Every page and notebook of the smoke scale says that it is a check, and none holds a verdict; those of the errata are the same at every scale."
    from mixrepro.repro.scale import banner
    assert (above := banner("smoke"))
    for a in artefacts:
        text = (project / "figures/smoke" / a.paper / f"{a.id}.md").read_text()
        assert text.startswith(above + "\n\n") and text.count(above) == 1, a.id
        cells = nbformat.read(project / f"runs/.workflow/notebooks/smoke-{a.id}.ipynb", as_version=4).cells
        outputs = [o for c in cells for o in c.get("outputs", [])]
        shown = [str(o.get("text", "")) + "".join(map(str, o.get("data", {}).values())) for o in outputs]
        assert any(above in s for s in shown), a.id
        if a.id == "x-errata": continue
        assert not [m for s in (text, *shown) for m in VERDICTS.findall(s)], a.id
        assert not re.search(r"\bnan\b", text), f"{a.id} shows nan for what does not exist"
        data = pd.read_csv(project / "figures/smoke" / a.paper / f"{a.id}.csv")
        for words in (data[c].dropna() for c in ("direction", "value") if c in data):
            assert pd.api.types.is_numeric_dtype(words) or set(words) <= NO_VERDICTS, a.id


def python_blocks(markdown: str) -> list[str]:
    "The Python of a page's code blocks."
    return re.findall(r"^```python\n(.*?)^```$", markdown, re.M | re.S)


# ---- real data, where a copy is at hand, and miniatures -------------------------------------------------------------

def sheets(split):
    "The lossless source: sheets of 40 x 25 tiles."
    tiles = [np.asarray(Image.open(f).convert("RGB")) for f in sorted((SHARED / "cifar10").glob(f"{split}_*.webp"))]
    return np.concatenate([a.reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for a in tiles])


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    "CIFAR-10 in its binary version, written from the source; (root, {split: (x, y)})."
    if not (SHARED / "cifar10" / "labels.npz").is_file():
        pytest.skip("no copy of CIFAR-10 at hand: set MIXREPRO_SHARED_DATA to a folder that holds cifar10/")
    from mixrepro.data.readers import CIFAR10
    labels = np.load(SHARED / "cifar10" / "labels.npz")
    source = {s: (sheets(s), labels[s].astype(np.int64)) for s in ("train", "test")}
    folder = (root := tmp_path_factory.mktemp("data")) / "cifar-10-batches-bin"
    folder.mkdir()
    for split, (x, y) in source.items():
        table = np.concatenate([y.astype(np.uint8)[:, None], x.reshape(len(x), -1)], 1)
        for file, part in zip(CIFAR10[0].files[split], np.split(table, len(x) // 10_000)): (folder / file).write_bytes(part.tobytes())
    return root, source


@pytest.fixture
def official(cifar):
    "CIFAR-10 in its official binary layout, rebuilt from the lossless copy."
    return cifar[0] / "cifar-10-batches-bin"


@pytest.fixture(scope="session")
def digits_of_mnist(tmp_path_factory):
    "The four official files, rebuilt; (root, {split: (x, y)})."
    from mixrepro.data.readers import MNIST
    if not (SHARED / "mnist" / "mnist.npz").is_file(): pytest.skip("no copy of MNIST at hand: set MIXREPRO_SHARED_DATA to a folder that holds mnist/")
    z, truth = np.load(SHARED / "mnist" / "mnist.npz"), {}
    (folder := (root := tmp_path_factory.mktemp("data")) / "MNIST" / "raw").mkdir(parents=True)
    for split in ("train", "test"):
        truth[split] = z[f"x_{split}"], z[f"y_{split}"]
        for (file, (shape, _)), a in zip(MNIST[split].items(), truth[split]):
            head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
            (folder / file).write_bytes(head + a.tobytes())
    return root, truth


@pytest.fixture(scope="session")
def small_tiny(tmp_path_factory):
    "Tiny-ImageNet with two classes of flat images, complete; its folder must not be changed."
    write_tiny_imagenet(root := tmp_path_factory.mktemp("tiny"))
    return root
