"""Versions are pinned; the Makefile makes .venv, keeps it and heals it, tried on a small project that stands in."""

import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = frozenset(PROJECT["optional-dependencies"])
BASE, OWN = Path(sys._base_executable), "{}.{}".format(*sys.version_info)
MAKE, UNSHARE = shutil.which("make"), shutil.which("unshare")

# --- Versions


def pins() -> dict[str, list[tuple[Requirement, set[str]]]]:
    "Each pinned name, its pins (one a marker), and who asks for it."
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"): continue
        spec, _, via = line.partition("# via ")
        pin, askers = Requirement(spec), {canonicalize_name(v.split(" ")[0]) for v in via.split(", ")}
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)) and pin.url is None, f"not a version: {line}"
        found.setdefault(canonicalize_name(pin.name), []).append((pin, askers))
    return found


def asked(name: str, extras: frozenset[str]) -> list[Requirement]:
    "What a package with these extras asks for, here or elsewhere; ours is read from pyproject.toml."
    lists = PROJECT["optional-dependencies"]
    try: texts = sum((lists[e] for e in extras), PROJECT["dependencies"]) if name == "mixrepro" else requires(name)
    except PackageNotFoundError: texts = None
    return [Requirement(t) for t in texts or []]


def here(r: Requirement, extras: frozenset[str] = frozenset()) -> bool:
    "Whether a requirement holds on this interpreter."
    return r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras | {""})


def test_every_package_that_is_installed_is_pinned():
    pinned, seen, todo = pins(), set(), [("mixrepro", EXTRAS)]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen: continue
        seen.add((name, extras))
        todo += [(canonicalize_name(r.name), frozenset(r.extras)) for r in asked(name, extras) if here(r, extras)]
    names = {name for name, _ in seen} - {"mixrepro"} | {"setuptools", "wheel"}
    assert len(names) > 150, "the walk ended early"
    count = {name: sum(here(pin) for pin, _ in pinned.get(name, [])) for name in names}
    assert sorted(name for name, n in count.items() if n != 1) == [], "run: make constraints"


def test_no_pin_belongs_to_nothing():
    pinned = pins()
    for name, lines in pinned.items():
        for _, via in lines:
            assert via and via <= pinned.keys() | {"mixrepro"}, f"{name} is asked for by {via}: run make constraints"
            for asker in via:
                wants = {canonicalize_name(r.name) for r in asked(asker, EXTRAS)}
                assert not wants or name in wants, f"{asker} does not ask for {name}: run make constraints"
    assert sum("mixrepro" in via for lines in pinned.values() for _, via in lines) > 25


def test_no_place_stands_in_the_constraints():
    text = (ROOT / "constraints.txt").read_text()
    assert "make constraints" in text.splitlines()[1] and not re.search(r"://|^-|@|/", text, re.M)


def test_the_pythons_are_the_same_everywhere():
    pythons = re.search(r"^PYTHONS := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(pythons) == [c.split(" ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert sorted(pythons) == ["3.11", "3.12", "3.13"] and PROJECT["requires-python"] == ">=3.11,<3.14"
    readme = (ROOT / "README.md").read_text()
    assert "Python 3.11, 3.12 or 3.13" in readme and "Python 3.14 is" in readme
    assert "3 GB to download, about 6 GB in `.venv/`" in readme


# --- A project that stands in

WHEEL = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = "Metadata-Version: 2.1\nName: {}\nVersion: {}\nProvides-Extra: dev\n"
BACKEND = f'''
import os, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    with open("builds", "a") as f: f.write("x")
    time.sleep(float(os.environ.get("STANDIN_SLEEP", 0)))
    failure = int(os.environ.get("STANDIN_FAILS", 0))
    if failure: raise OSError(failure, os.strerror(failure))
    with zipfile.ZipFile(os.path.join(folder, "mixrepro-0-py3-none-any.whl"), "w") as z:
        z.writestr("mixrepro.pth", os.getcwd())
        z.writestr("mixrepro-0.dist-info/WHEEL", {WHEEL!r})
        z.writestr("mixrepro-0.dist-info/METADATA", {METADATA.format("mixrepro", 0)!r})
        z.writestr("mixrepro-0.dist-info/RECORD", "")
    return "mixrepro-0-py3-none-any.whl"
'''
PYPROJECT = '''[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
'''


def empty_wheel(folder: Path, name: str, version: str):
    "A package that pip takes, with nothing in it."
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        for file, text in dict(WHEEL=WHEEL, METADATA=METADATA.format(name, version), RECORD="").items():
            z.writestr(f"{name}-{version}.dist-info/{file}", text)


def standin(folder: Path) -> Path:
    "A clone of a project named mixrepro: the real Makefile, an empty package, no dependency."
    (folder / "mixrepro").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    files = {"mixrepro/__init__.py": "", "constraints.txt": "setuptools==98\nwheel==98\n", "pyproject.toml": PYPROJECT}
    for name, text in (files | {"backend.py": BACKEND, "ipykernel.py": ""}).items(): (folder / name).write_text(text)
    return folder


def script(file: Path, text: str) -> Path:
    "A command."
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def shim(file: Path) -> Path:
    "A command that is there and does not run."
    return script(file, f"echo 'shim: {file.name}: command not found' >&2; exit 127")


def pretend(file: Path, version: str, prefix=None, ensurepip=True, pip=None) -> Path:
    "An interpreter that says it is another one; with pip, its environments get a copy of that, which is quicker."
    code = textwrap.dedent(f"""
        import pathlib, shutil, sys, venv
        args = [a for a in sys.argv[1:] if a not in ("-E", "-I")]
        if args[:2] == ["-m", "venv"]:
            venv.main(args[2:] + ["--without-pip"] * {bool(pip)})
            site, = pathlib.Path(args[-1]).glob("lib/python*/site-packages")
            if {bool(pip)}: shutil.copytree({str(pip)!r}, site, dirs_exist_ok=True)
        else:
            sys.version_info = (*map(int, {version!r}.split(".")), 0, "final", 0)
            sys.base_prefix, sys._base_executable = {prefix!r} or sys.base_prefix, {str(file)!r}
            if not {ensurepip}: sys.modules["ensurepip"] = None
            sys.argv = ["-c", *args[2:]]
            exec(args[1])
        """)
    script(file, f"exec '{BASE}' '{file}.py' \"$@\"")
    Path(f"{file}.py").write_text(code)
    return file


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> dict[str, str]:
    "Variables without what pip, make and Python were told outside: no network, and environments are made quickly."
    folder = tmp_path_factory.mktemp("surroundings")
    for name in ("setuptools", "wheel"):
        for version in ("98", "99"): empty_wheel(folder, name, version)
    subprocess.run([BASE, "-m", "venv", folder / "environment"], check=True)
    python = pretend(folder / "python3", OWN, pip=folder / f"environment/lib/python{OWN}/site-packages")
    outside = re.compile("PIP_|MAKE|MFLAGS|PYTHON|VIRTUAL_ENV|PROFILE|SPACE_MB|ENVIRONMENT|UV_")
    told = dict(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder), PIP_NO_COMPILE="1")
    return {k: v for k, v in os.environ.items() if not outside.match(k)} | told | dict(PYTHON=str(python), SPACE_MB="1")


def start(folder: Path, *args, before=(), **env) -> subprocess.Popen:
    "make in a folder; a variable that is None is not there."
    env = {k: v for k, v in env.items() if v is not None}
    return subprocess.Popen([*before, MAKE, *(args or ["install"])], cwd=folder, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)


@pytest.fixture(scope="module")
def make(surroundings):
    "Runs make and returns what it says; where it fails, make's own line is the last."
    def run(folder: Path, *args, ok=True, before=(), **env) -> str:
        process = start(folder, *args, before=before, **surroundings | env)
        said = process.communicate(timeout=300)[0]
        assert (process.returncode == 0) == ok, said
        assert ok or re.fullmatch(r"make: \*\*\* \[Makefile:\d+: \w+\] Error 1", said.splitlines()[-1]), said
        return said
    return run


def sentence(said: str) -> str:
    "The last that is said before that line."
    return said.splitlines()[-2]


def imported(folder: Path) -> Path:
    "The clone whose package the environment of a clone imports."
    command = [folder / ".venv/bin/python", "-I", "-c", "import mixrepro; print(ascii(mixrepro.__file__))"]
    return Path(eval(subprocess.run(command, cwd="/", text=True, capture_output=True, check=True).stdout)).parents[1]


@pytest.fixture(scope="module")
def made(tmp_path_factory, make) -> Path:
    "A project whose environment was made as a person makes it."
    folder = standin(tmp_path_factory.mktemp("made") / "project")
    said = make(folder, PYTHON=str(BASE))
    assert said.splitlines()[-1] == ".venv is ready"
    assert said.index("about 6 GB into .venv, 3 GB to download") < said.index("Processing"), "said before it starts"
    return folder


@pytest.fixture
def intact(tmp_path, made) -> Path:
    "A copy of it that says that it was made where it is."
    folder = tmp_path / "project"
    shutil.copytree(made, folder, symlinks=True)
    stamp = folder / ".venv/installed"
    stamp.write_text(stamp.read_text().replace(str(made), str(folder)))
    return folder


# --- What is made, kept, refused


def test_a_whole_environment_is_kept(made, make):
    assert make(made) == "" and imported(made) == made


def test_without_PYTHON_an_environment_is_kept_whatever_python3_is_today(intact, make, tmp_path):
    newer = pretend(tmp_path / "bin/python3", "3.14")
    assert make(intact, PYTHON=None, PATH=f"{newer.parent}:{os.environ['PATH']}") == ""
    assert make(intact, PYTHON=str(newer)) == "", "a variable of the surroundings chooses for a new environment only"


@pytest.mark.parametrize("version, word", [("3.10", "old"), ("2.7", "old"), ("3.14", "immutables"), ("3.20", "new")])
def test_another_version_is_refused(tmp_path, make, version, word):
    python, folder = pretend(tmp_path / f"python{version}", version), standin(tmp_path / "project")
    said = make(folder, f"PYTHON={python}", "install", ok=False)
    assert f"PYTHON={python} is Python {version}, " in sentence(said) and word in sentence(said)
    assert "install Python 3.13 or 3.12 or 3.11, or name one that you have, make PYTHON=" in sentence(said)
    assert not (folder / ".venv").exists() and len(said.splitlines()) == 2


def test_what_is_no_python_is_refused(tmp_path, make, intact):
    cases = dict.fromkeys([shim(tmp_path / "a shim"), "/bin/cat", "/bin/bash"], "does not run as a Python")
    for python, words in (cases | {tmp_path: "PYTHON=", "no-such": "was not found"}).items():
        said = make(intact, f"PYTHON={python}", "install", ok=False)
        assert words in sentence(said) and str(python) in sentence(said) and len(said.splitlines()) == 2, said
    assert make(intact) == "", "the environment is still there"
    bare = pretend(tmp_path / "bare/python3", OWN, ensurepip=False)
    said = make(standin(tmp_path / "other"), f"PYTHON={bare}", "install", ok=False)
    assert f"apt-get install python{OWN}-venv" in sentence(said)


def test_the_search_for_a_python_is_silent_about_those_that_do_not_run(tmp_path, make):
    tools = tmp_path / "bin"; tools.mkdir()
    for name in "bash cat cksum flock ls mv readlink rm sh".split():
        if shutil.which(name): (tools / name).symlink_to(shutil.which(name))
    folder, only = standin(tmp_path / "project"), dict(PYTHON=None, PATH=str(tools), SPACE_MB="999999999")
    assert "no Python was found: install Python 3.13 or 3.12 or 3.11" in make(folder, ok=False, **only)
    pretend(tools / "python3", "3.14"); shim(tools / "python3.13")
    assert "python3 is Python 3.14, which is too new" in make(folder, ok=False, **only)
    pretend(tools / "python3.12", "3.12", ensurepip=False)
    assert "python3.12 is Python 3.12 without ensurepip" in make(folder, ok=False, **only)
    pretend(tools / "python3.11", "3.11")
    said = make(folder, ok=False, **only)
    assert f"Python 3.11 ({tools}/python3.11): about 6 GB" in said and "shim" not in said
    assert "GB are free in" in sentence(said)


# --- What heals


def test_a_wrong_python_once_then_a_right_one(tmp_path, make):
    folder = standin(tmp_path / "project")
    make(folder, f"PYTHON={pretend(tmp_path / 'old', '3.10')}", "install", ok=False)
    subprocess.run([BASE, "-m", "venv", "--without-pip", folder / ".venv"], check=True)
    (folder / ".venv/installed").touch()  # as an earlier Makefile left it
    (folder / ".venv/left").touch()
    assert ".venv is made again: it does not say how it was made" in make(folder)
    assert imported(folder) == folder and not (folder / ".venv/left").exists()


def another(tmp_path) -> tuple[Path, str]:
    "An interpreter that is not ours: a real one where there is one, else one that says that it lives elsewhere."
    around = [shutil.which(f"python3.{n}") for n in (11, 12, 13)]
    code = "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"
    for path in filter(None, around + sorted((Path.home() / ".pyenv/versions").glob("3.1[123].*/bin/python"))):
        about = subprocess.run([path, "-c", code], text=True, capture_output=True)
        if about.returncode == 0 and about.stdout.strip() != OWN: return Path(path), about.stdout.strip()
    return pretend(tmp_path / "elsewhere/python", OWN, prefix="/elsewhere"), OWN


def test_an_environment_of_another_python_is_made_again(intact, make, tmp_path):
    python, version = another(tmp_path)
    said = make(intact, f"PYTHON={python}", "install")
    assert f"made again: it was made by Python {OWN} in {sys.base_prefix}, and PYTHON is Python {version} in " in said
    assert (intact / ".venv/installed").read_text().splitlines()[1] == version and imported(intact) == intact
    assert make(intact, f"PYTHON={python}", "install") == make(intact) == ""


@pytest.mark.parametrize("name", ["a b'c é", '$(touch X) "; touch X; #'])
def test_a_copied_clone_in_a_folder_with_any_name(made, tmp_path, make, name):
    folder = tmp_path / name / "project"
    shutil.copytree(made, folder, symlinks=True)
    said = make(folder)
    assert f".venv is made again: it was made in {made}, and this clone was moved or copied" in said
    assert imported(folder) == folder, "not the original's code"
    assert make(folder) == "" and imported(made) == made
    (folder / "mixrepro/__main__.py").write_text("import sys\nprint(*map(ascii, sys.argv[1:]))\n")
    (folder / "pytest.py").write_text("import sys\nprint('tests', *sys.argv[1:])\n")
    assert make(folder, "reproduce", "PROFILE=a b'c ; touch X") == "'reproduce' '--profile' \"a b'c ; touch X\"\n"
    assert make(folder, "test") == "tests -q -n 3 --dist loadfile --no-loadscope-reorder\n"
    assert not list(tmp_path.rglob("X")) and not Path("X").exists(), "a name was run as a command"


def test_a_python_that_is_gone_or_has_become_another(intact, make, tmp_path):
    python, much = intact / ".venv/bin/python", dict(SPACE_MB="999999999")
    python.unlink(); python.symlink_to(tmp_path / "gone")
    assert f".venv is made again: its Python, in {sys.base_prefix}, is gone" in make(intact, ok=False, **much)
    python.unlink(); python.symlink_to(pretend(tmp_path / "upgraded", "3.13" if OWN != "3.13" else "3.12"))
    said = make(intact, ok=False, **much)
    assert re.search(rf"made again: its Python was {OWN} and is 3.1\d now", said)
    assert "GB are free in" in sentence(said) and python.exists(), "nothing is removed yet"
    make(intact)
    assert imported(intact) == intact


def test_killed_in_the_middle(tmp_path, make, surroundings):
    folder = standin(tmp_path / "project")
    process = start(folder, **surroundings | dict(STANDIN_SLEEP="120"))
    deadline = time.monotonic() + 120
    while not (folder / "builds").exists() and time.monotonic() < deadline: time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL); process.communicate()
    assert (folder / ".venv/installing").exists() and not (folder / ".venv/installed").exists()
    assert ".venv is made again: an installation into it did not come to its end" in make(folder)
    assert imported(folder) == folder and not (folder / ".venv/installing").exists()


def test_other_constraints_are_followed(intact, make):
    def pin(version): (intact / "constraints.txt").write_text(f"setuptools=={version}\nwheel=={version}\n")
    def version(): return next((intact / ".venv/lib").rglob("wheel-9*.dist-info")).name
    assert version() == "wheel-98.dist-info"
    pin(99)
    said = make(intact, ok=False, PIP_FIND_LINKS="")
    assert "brought up to date: pyproject.toml or constraints.txt has changed" in said
    assert "'make constraints' resolves them anew" in sentence(said)
    pin(98)
    assert "brought up to date" in make(intact), "after a failure even what it was is looked at again"
    pin(99)
    make(intact)
    assert version() == "wheel-99.dist-info" and make(intact) == ""


def test_two_makes_at_once(tmp_path, surroundings):
    if not shutil.which("flock"): pytest.skip("without flock two makes at once are not told apart")
    folder = standin(tmp_path / "project")
    both = [start(folder, **surroundings | dict(STANDIN_SLEEP="1")) for _ in range(2)]
    said = [p.communicate(timeout=300)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert (folder / "builds").read_text() == "x", "only one of them installed"
    assert sum("another make is installing into .venv: waiting for it" in s for s in said) == 1


# --- What fails says why, last


def test_offline(tmp_path, make):
    folder = standin(tmp_path / "project")
    nowhere = dict(PIP_NO_INDEX=None, PIP_FIND_LINKS=None, PIP_PROXY="127.0.0.1:9", PIP_RETRIES="1")  # nobody listens there
    said = make(folder, ok=False, **nowhere)
    assert sentence(said).startswith("the package registry could not be reached: check the network"), said
    assert not (folder / ".venv/installed").exists()


def test_a_full_disk(tmp_path, make):
    folder = standin(tmp_path / "project")
    assert sentence(make(folder, ok=False, STANDIN_FAILS="28")).startswith("the disk is full")
    assert sentence(make(folder, ok=False, STANDIN_FAILS="5")).startswith("the installation failed, and says above why")
    assert not (folder / ".venv/installed").exists()
    assert "GB are free in" in sentence(make(folder, ok=False, SPACE_MB="999999999"))
    assert "SPACE_MB=much is no number" in sentence(make(folder, ok=False, SPACE_MB="much"))


def apart(mount: str, place: Path) -> list[str]:
    "What runs a command where something is mounted that nobody else sees; empty where that is not allowed."
    before = [UNSHARE or "unshare", "-rm", "/bin/bash", "-ec", mount + '; cd .; exec "${@:2}"', "mount", str(place)]
    try: return before if subprocess.run([*before, "true"], capture_output=True).returncode == 0 else []
    except OSError: return []


def test_small_and_closed_places(tmp_path, make):
    folder, small = standin(tmp_path / "project"), tmp_path / "small"
    small.mkdir()
    full = apart('mount -t tmpfs -o size=10m none "$1"', small)
    if not full: pytest.skip("mounts of one's own are not allowed here")
    said = make(folder, ok=False, before=full, SPACE_MB="100", TMPDIR=str(small))
    assert f"GB are free in {small}, and 0.05 GB are downloaded to it: " in sentence(said)
    assert "make TMPDIR=" in sentence(said)
    (folder / ".venv").mkdir()
    said = make(folder, ok=False, before=apart('mount -t tmpfs -o size=8m none "$1"', folder / ".venv"), SPACE_MB="0")
    assert sentence(said).startswith("the disk is full"), said
    said = make(folder, ok=False, before=apart('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', folder))
    assert f"{folder}/. cannot be written to" in sentence(said)


def test_a_folder_that_is_no_place_for_an_environment(tmp_path, make, intact):
    assert "has a colon or a line break" in sentence(make(standin(tmp_path / "a:b"), ok=False))
    linked = standin(tmp_path / "linked")
    (linked / ".venv").symlink_to(intact / ".venv")
    assert ".venv is a link to" in sentence(make(linked, ok=False))
    assert make(intact) == "", "another's environment is not emptied"


@pytest.mark.parametrize("uid, said", [(0, ["-m", "jupyterlab", "--allow-root", "nbs/index.ipynb"]), (1000, ["-m", "jupyterlab", "nbs/index.ipynb"])])
def test_lab_opens_for_root_too(tmp_path, uid, said):
    "JupyterLab refuses root unless it is told otherwise, and in a container there is often nobody else."
    shutil.copy(ROOT / "Makefile", tmp_path)
    script(tmp_path / ".venv" / "bin" / "python", "#!/bin/sh\necho \"$@\"\n"), script(tmp_path / "bin" / "id", f"#!/bin/sh\necho {uid}\n")
    done = subprocess.run([MAKE, "-s", "-o", "install", "lab"], cwd=tmp_path, capture_output=True, text=True, timeout=60,
                          env=dict(os.environ, PATH=f"{tmp_path / 'bin'}:{os.environ['PATH']}"))
    assert done.stdout.split() == said and not done.returncode, done.stderr
