"""Every command that the README prints is executed: as printed, or with the reduction that stands beside it here."""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, make_project, mixrepro, python_blocks, quick

README = (ROOT / "README.md").read_text()
PROGRAMS = (".venv/bin/", "make", "mixrepro", "papermill", "nbdev_", "jupyter", "pip", "python", "git", "sh", "mkdir", "cd", "export", "uv ")


def commands(page: str) -> list[str]:
    "The commands of a page: the lines of its shell blocks, and what stands in code style and begins with a program's name."
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.M | re.S)
    lines = [re.sub(r"\s+#.*", "", l).strip() for b in blocks for l in b.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"^```.*?^```$", "", page, flags=re.M | re.S)
    spans = [s for s in re.findall(r"`([^`\n]+)`", prose) if s.startswith(PROGRAMS) and " " in s]
    return list(dict.fromkeys(c for c in lines + spans if c))


# command -> what is added to it here, what its answer holds
DRY = "-- --dry-run"
REPRODUCE = ".venv/bin/mixrepro reproduce"
TABLE = {
    f"{REPRODUCE} mm-fig1": (DRY, "This was a dry-run"),                                        # minutes
    f"{REPRODUCE} mm-table4 --profile paper -p seeds=1 --cores 2 --on-cpu": (DRY, "This was a dry-run"),  # an hour
    f"{REPRODUCE} vm-table1 --profile gpu": (DRY, "This was a dry-run"),                        # hours on a GPU
    f"{REPRODUCE} vm-table1 --profile paper": (DRY, "This was a dry-run"),
    f"{REPRODUCE} mm-table1 --profile gpu": (DRY, "This was a dry-run"),
    f"{REPRODUCE} --profile overnight --minutes 480": ("--help", "--minutes"),  # a night
    f"{REPRODUCE} vm-fig2 mm-fig1": (DRY, "This was a dry-run"),
    f"{REPRODUCE} --profile paper -- --executor slurm --jobs 100": ("--dry-run", "This was a dry-run"),  # on a cluster: test_slurm.py
    ".venv/bin/python -m pip install -c constraints.txt -e '.[cluster]'": ("--dry-run --no-deps --no-build-isolation", "Would install mixrepro"),  # no download
    "uv pip install .": ("--dry-run --no-deps --no-build-isolation --python .venv/bin/python", "+ mixrepro"),  # where uv is
    "pip install .": ("--dry-run --no-deps --no-build-isolation", "Would install mixrepro"),
    "mkdir -p runs && .venv/bin/papermill nbs/varmixup/vm-table1.ipynb runs/vm-table1.ipynb -p profile smoke": ("--prepare-only", ""),  # in full: test_workflow.py
    ".venv/bin/mixrepro list": ("", "of 80 are ready"),
    ".venv/bin/mixrepro show vm-table1": ("", "VarMixup"),
    ".venv/bin/mixrepro compare": ("figures/embedded", "verdicts"),                           # a clean checkout may be no clone
    ".venv/bin/mixrepro report": ("--profile smoke", "report.html"),                            # of the one artefact reproduced here
    ".venv/bin/mixrepro outputs": ("", "notebooks written"),
    ".venv/bin/mixrepro data list": ("", "cifar10-c"),
    ".venv/bin/mixrepro data get cifar10": ("--from {cifar}", "cifar-10-batches-bin"),          # a folder here instead of a download
    ".venv/bin/mixrepro data get cifar10 svhn": ("--help", "Fetch data sets"),                  # as the one before; SVHN is nowhere but on its authors' server
    ".venv/bin/mixrepro data verify cifar10": ("", "cifar10: whole"),
    ".venv/bin/mixrepro data make cifar10-c": ("--kind contrast", "cifar10-c-made"),            # one corruption of nineteen
    ".venv/bin/mixrepro data split cifar10 --labelled 4000 --validation 1000": ("", "cifar10-l4000-v1000-s0.json"),
    ".venv/bin/mixrepro data add flowers PICTURES --size 32": ("--help", "--size"),              # pictures: tests/data/test_folder.py
    ".venv/bin/mixrepro adopt": ("", "figures adopted"),
    ".venv/bin/mixrepro doctor": ("", "the store can be written"),
    ".venv/bin/mixrepro bench": ("--n 4 --size 8 --severity 1", "jpeg_compression"),            # ten thousand images
    ".venv/bin/mixrepro bench gpu": ("--device cpu --part cells --minutes .1", "into runs/.workflow/bench/bench-cells.csv"),  # no GPU, six seconds
    ".venv/bin/nbdev_clean && .venv/bin/nbdev_export": ("", ""),
}


def test_the_reader_of_commands():
    page = "run `make x` or `mixrepro`, not `nbs/a`\n```sh\na --b   # why\n\nc \\\n  d\n```\n```python\nmake = 1\n```\n| `pip install .` | `--json` |\n"
    assert commands(page) == ["a --b", "c    d", "make x", "pip install ."]


def test_every_command_has_an_entry_and_every_entry_a_command():
    made = {c for c in commands(README) if c.startswith("make")}
    assert {"make reproduce", "make test"} <= made
    assert set(commands(README)) - made == set(TABLE)


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    "A clone as the README leaves it, whose environment is this one; one artefact was reproduced in it."
    clone = make_project(tmp_path_factory.mktemp("readme") / "clone")
    for name in ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "Makefile", "constraints.txt"): shutil.copy(ROOT / name, clone)
    for name in ("mixrepro", "figures/embedded"): shutil.copytree(ROOT / name, clone / name, ignore=shutil.ignore_patterns("__pycache__"))
    (clone / ".venv").symlink_to(sys.prefix)
    theorem = clone / "nbs/manifold_mixup/mm-theorem1.ipynb", clone / "nbs/varmixup/vm-fig1.ipynb"
    kept = [f.read_bytes() for f in theorem]
    done = mixrepro("reproduce", "mm-theorem1", "--profile", "smoke", cwd=quick(clone))
    assert done.returncode == 0, done.stderr
    for f, content in zip(theorem, kept): f.write_bytes(content)
    return clone


def run(command: str, clone: Path, data: Path = None) -> subprocess.CompletedProcess:
    "In a shell, as a person would; the command line's own in a fork, unless a shell has something to do or a start is what matters."
    words = shlex.split(command)
    if words[0].endswith("bin/mixrepro") and words[1] != "doctor":
        return mixrepro(*words[1:], cwd=clone, **(dict(MIXREPRO_DATA=str(data)) if data else {}))
    env = {k: v for k, v in os.environ.items() if k not in ("MIXREPRO_HOME", "MIXREPRO_DATA")} | dict(PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if data: env["MIXREPRO_DATA"] = str(data)
    return subprocess.run(["bash", "-c", command], cwd=clone, env=env, capture_output=True, text=True, timeout=400)


OF_CIFAR = [c for c in TABLE if re.search(r" data (get|verify|make|split) cifar10", c) and TABLE[c][0] != "--help"]


@pytest.mark.parametrize("command", [c for c in TABLE if c not in OF_CIFAR])
def test_command(clone, command):
    more, answer = TABLE[command]
    if command.startswith("uv ") and not shutil.which("uv"): pytest.skip("uv is not installed")
    if "slurm" in command and not importlib.util.find_spec("snakemake_executor_plugin_slurm"): answer = "invalid choice: 'slurm'"
    done = run(f"{command} {more}", clone)
    assert (done.returncode == 0) == (not answer.startswith("invalid")), done.stdout + done.stderr
    assert answer in done.stdout + done.stderr and "Traceback" not in done.stderr


def test_commands_of_one_data_set_one_after_the_other(clone, official, tmp_path):  # noqa: F811
    for command in OF_CIFAR:
        more, answer = TABLE[command]
        done = run(f"{command} {more.format(cifar=official)}", clone, tmp_path)
        assert done.returncode == 0 and answer in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("command", OF_CIFAR)
def test_commands_of_a_data_set_that_is_not_there(clone, command, tmp_path):
    "The reductions name a folder that is not there, so that nothing is downloaded."
    done = run(f"{command} {TABLE[command][0].format(cifar='nowhere')}", clone, tmp_path)
    assert done.returncode == 1 and re.fullmatch(r"mixrepro: .*(there is nothing at nowhere|cifar10 is not in|mixrepro data get cifar10).*\n", done.stderr), done.stderr


@pytest.mark.parametrize("command", [c for c in commands(README) if c.startswith("make")])
def test_make_knows_the_target(clone, command):
    "What it would do; the Makefile's own tests do it."
    done = run(f"{command} -n", clone)
    assert done.returncode == 0, done.stderr


def test_nothing_of_it_dirties_a_clone(clone):
    "What the commands leave is ignored by git, or came with the clone."
    shutil.copy(ROOT / ".gitignore", clone)
    def git(*args): return subprocess.run(["git", "-C", clone, *args], capture_output=True, text=True, check=True).stdout
    git("init", "-q")
    ignored = set(git("ls-files", "--others", "--ignored", "--exclude-standard", "--directory").split())
    assert {"runs/", "figures/smoke/"} <= ignored
    assert [l for l in git("ls-files", "--others", "--exclude-standard").splitlines() if l != ".venv" and not (ROOT / l).exists()] == []


def test_what_stands_and_what_was_found_is_of_now():
    "The README's table and its counts are those of the notebooks and the ledger that lie here."
    from mixrepro.workflow.again import made_again, shaky
    from mixrepro.workflow.front import found, status
    assert status(ROOT) in README, "run nbs/index.ipynb and make readme"
    assert found(ROOT / "figures/embedded/across/x-claims.csv", shaky(ROOT / "figures/embedded")) in README, "run nbs/index.ipynb and make readme"
    assert made_again(ROOT / "figures/embedded") in README, "run nbs/index.ipynb and make readme"


def test_the_example_is_one_program():
    "It runs as printed, in an environment with the package alone: test_package.py."
    assert len(python_blocks(README)) == 2 and all(compile(b, "README", "exec") for b in python_blocks(README))
