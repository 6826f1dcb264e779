"""The environment: every version is pinned; the Makefile makes .venv, keeps it and heals it, tried where a small project stands in for ours."""

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
BASE = Path(sys._base_executable)
MAKE, UNSHARE = shutil.which("make"), shutil.which("unshare")

# --- Versions


def pins() -> dict[str, list[tuple[Requirement, set[str]]]]:
    "Each pinned name, its pins (one a marker), and who asks for it."
    found = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.startswith("#"): continue
        spec, _, via = line.partition("# via ")
        pin = Requirement(spec)
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)) and pin.url is None, f"not a version: {line}"
        found.setdefault(canonicalize_name(pin.name), []).append((pin, {canonicalize_name(v.split(" ")[0]) for v in via.split(", ")}))
    return found


def asked(name: str, extras: set[str]) -> list[Requirement]:
    "What a package of these extras asks for, here or elsewhere; our own lists are read from pyproject.toml."
    if name == "mixrepro":
        texts = PROJECT["dependencies"] + [r for e in extras for r in PROJECT["optional-dependencies"][e]]
        return [Requirement(t) for t in texts]
    try: return [Requirement(t) for t in requires(name) or []]
    except PackageNotFoundError: return []


def here(r: Requirement, extras: set[str]) -> bool:
    "Whether a requirement holds on this interpreter."
    return r.marker is None or any(r.marker.evaluate({"extra": e}) for e in extras | {""})


def test_every_package_that_is_installed_is_pinned():
    pinned, seen, todo = pins(), set(), [("mixrepro", frozenset(PROJECT["optional-dependencies"]))]
    while todo:
        name, extras = todo.pop()
        if (name, extras) in seen: continue
        seen.add((name, extras))
        for r in asked(name, extras):
            if here(r, extras): todo.append((canonicalize_name(r.name), frozenset(r.extras)))
    names = {name for name, _ in seen} - {"mixrepro"}
    assert len(names) > 150, "the walk ended early"
    loose = sorted(n for n in names | {"setuptools", "wheel"} if sum(here(pin, set()) for pin, _ in pinned.get(n, [])) != 1)
    assert loose == [], "run: make constraints"


def test_no_pin_belongs_to_nothing():
    pinned = pins()
    for name, lines in pinned.items():
        for _, via in lines:
            assert via and via <= pinned.keys() | {"mixrepro"}, f"{name}: asked for by {via}"
            extras = set(PROJECT["optional-dependencies"])
            wants = {p: {canonicalize_name(r.name) for r in asked(p, extras)} for p in via}
            assert all(name in w for w in wants.values() if w), f"{name} is not asked for by all of {via}: run make constraints"
    assert sum("mixrepro" in via for lines in pinned.values() for _, via in lines) > 25


def test_no_place_stands_in_the_constraints():
    text = (ROOT / "constraints.txt").read_text()
    assert "make constraints" in text.splitlines()[1] and not re.search(r"://|^-|@|/", text, re.M)


def test_the_pythons_are_the_same_everywhere():
    pythons = re.search(r"^PYTHONS := (.*)", (ROOT / "Makefile").read_text(), re.M)[1].split()
    assert sorted(pythons) == [c.rsplit(" ")[-1] for c in PROJECT["classifiers"] if "Python :: 3." in c] == ["3.11", "3.12", "3.13"]
    assert PROJECT["requires-python"] == ">=3.11,<3.14" and all(f"3.{n}" in (ROOT / "README.md").read_text() for n in (11, 12, 13, 14))


# --- A project that stands in


BACKEND = '''
import os, pathlib, time, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    with open("builds", "a") as f: f.write("x")
    time.sleep(float(os.environ.get("STANDIN_SLEEP", 0)))
    if os.environ.get("STANDIN_FAILS"): raise OSError(int(os.environ["STANDIN_FAILS"]), os.strerror(int(os.environ["STANDIN_FAILS"])))
    with zipfile.ZipFile(os.path.join(folder, "mixrepro-0-py3-none-any.whl"), "w") as z:
        for name, text in {"mixrepro.pth": os.getcwd(), "mixrepro-0.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
                           "mixrepro-0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: mixrepro\\nVersion: 0\\nProvides-Extra: dev\\n",
                           "mixrepro-0.dist-info/RECORD": ""}.items(): z.writestr(name, text)
    return "mixrepro-0-py3-none-any.whl"
'''


def empty_wheel(folder: Path, name: str, version: str):
    "A package that pip takes, with nothing in it."
    about = {"WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n", "RECORD": "",
             "METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as z:
        for file, text in about.items(): z.writestr(f"{name}-{version}.dist-info/{file}", text)


def standin(folder: Path) -> Path:
    "A clone of a project named mixrepro: the real Makefile, a package of one line, no dependency."
    (folder / "mixrepro").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    (folder / "mixrepro/__init__.py").write_text("")
    (folder / "pyproject.toml").write_text('[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n')
    (folder / "constraints.txt").write_text("setuptools==98\nwheel==98\n")
    (folder / "backend.py").write_text(BACKEND)
    return folder


def sentence(said: str) -> str: return said.splitlines()[-2]


def imported(folder: Path) -> Path:
    "Where the package comes from that the environment of a clone imports."
    code = "import mixrepro; print(ascii(mixrepro.__file__))"
    return Path(eval(subprocess.run([folder / ".venv/bin/python", "-I", "-c", code], cwd="/", text=True, capture_output=True, check=True).stdout)).parents[1]


def pretend(file: Path, version: str, prefix=None, ensurepip=True, pip=None) -> Path:
    "An interpreter that calls itself another one, to those who ask it; pip of its environments is copied where that is given, which is quicker."
    code = textwrap.dedent(f"""
        import runpy, sys
        args = [a for a in sys.argv[1:] if a not in ("-E", "-I")]
        if args[0] == "-m":
            sys.argv = args[1:]
            if not {bool(pip)}: runpy.run_module(args[1], run_name="__main__", alter_sys=True)
            import pathlib, shutil, venv
            venv.main([*args[2:], "--without-pip"])
            shutil.copytree({str(pip)!r}, next(pathlib.Path(args[-1], "lib").glob("python*")) / "site-packages", dirs_exist_ok=True)
        else:
            sys.version_info = (*map(int, {version!r}.split(".")), 0, "final", 0)
            sys.base_prefix, sys._base_executable = {prefix!r} or sys.base_prefix, {str(file)!r}
            if not {ensurepip}: sys.modules["ensurepip"] = None
            sys.argv = ["-c", *args[2:]]
            exec(args[1])
        """)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.with_suffix(".py").write_text(code)
    file.write_text(f"#!/bin/sh\nexec '{BASE}' '{file.with_suffix('.py')}' \"$@\"\n")
    file.chmod(0o755)
    return file


OWN = "{}.{}".format(*sys.version_info)


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory) -> dict[str, str]:
    "Variables without what pip, make and Python were told outside; pip asks no network, and our interpreter makes environments quickly."
    folder = tmp_path_factory.mktemp("surroundings")
    for name in ("setuptools", "wheel"):
        for version in ("98", "99"): empty_wheel(folder, name, version)
    subprocess.run([BASE, "-m", "venv", folder / "environment"], check=True)
    python = pretend(folder / "python3", OWN, pip=folder / f"environment/lib/python{OWN}/site-packages")
    outside = re.compile("PIP_|MAKE|MFLAGS|PYTHON|VIRTUAL_ENV|PROFILE|SPACE_MB|ENVIRONMENT|UV_")
    told = dict(PIP_CONFIG_FILE=os.devnull, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(folder), PIP_NO_COMPILE="1", PYTHON=str(python), SPACE_MB="1")
    return {k: v for k, v in os.environ.items() if not outside.match(k)} | told


@pytest.fixture(scope="module")
def make(surroundings):
    "Runs make in a folder and returns what it says; where it fails, its own line stands last, and nothing else after our sentence."
    def run(folder: Path, *args, ok=True, before=(), **env) -> str:
        env = {k: v for k, v in (surroundings | env).items() if v is not None}
        done = subprocess.run([*before, MAKE, *(args or ["install"])], cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=120)
        assert (done.returncode == 0) == ok, done.stdout
        if not ok: assert re.fullmatch(r"make: \*\*\* \[Makefile:\d+: \w+\] Error 1", done.stdout.splitlines()[-1]), done.stdout
        return done.stdout
    return run


@pytest.fixture(scope="module")
def made(tmp_path_factory, make) -> Path:
    "A project whose environment is made."
    folder = standin(tmp_path_factory.mktemp("made") / "project")
    said = make(folder, PYTHON=str(BASE))
    assert "about 6 GB into .venv, 3 GB to download" in said and said.splitlines()[-1] == ".venv is ready"
    assert said.index("about 6 GB") < said.index("Processing"), "said before it starts"
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
    newer = pretend(tmp_path / "bin/python3", "3.14").parent
    assert make(intact, PYTHON=None, PATH=f"{newer}:{os.environ['PATH']}") == ""
    assert make(intact, PYTHON=str(newer / "python3")) == "", "named by the surroundings, not for this make"


@pytest.mark.parametrize("version, word", [("3.10", "too old"), ("2.7", "too old"), ("3.14", "immutables"), ("3.20", "too new")])
def test_another_version_is_refused(tmp_path, make, version, word):
    python, folder = pretend(tmp_path / f"python{version}", version), standin(tmp_path / "project")
    said = make(folder, f"PYTHON={python}", "install", ok=False)
    assert f"is Python {version}, " in sentence(said) and word in sentence(said) and "make PYTHON=/path/to/python" in sentence(said)
    assert not (folder / ".venv").exists() and len(said.splitlines()) == 2


def test_what_is_no_python_is_refused(tmp_path, make, intact):
    broken = tmp_path / "a shim"
    broken.write_text("#!/bin/sh\necho 'shim: python3.12: command not found' >&2\nexit 127\n"); broken.chmod(0o755)
    for python, word in ((broken, "does not run"), ("/bin/cat", "does not run"), ("/bin/bash", "does not run"), (tmp_path, "PYTHON="), ("no-such", "was not found")):
        said = make(intact, f"PYTHON={python}", "install", ok=False)
        assert word in sentence(said) and str(python) in sentence(said) and len(said.splitlines()) == 2, said
    assert make(intact) == "", "the environment is still there"
    no_pip = pretend(tmp_path / "bare/python3", OWN, ensurepip=False)
    said = make(standin(tmp_path / "bare/project"), f"PYTHON={no_pip}", "install", ok=False)
    assert f"apt-get install python{OWN}-venv" in sentence(said)


def test_the_search_for_a_python_is_silent_about_those_that_do_not_run(tmp_path, make):
    tools = tmp_path / "bin"; tools.mkdir()
    for name in "bash cat cksum flock ls mv readlink rm sh".split(): (tools / name).symlink_to(shutil.which(name))
    folder, only = standin(tmp_path / "project"), dict(PYTHON=None, PATH=str(tools), SPACE_MB="999999999")
    assert "no Python was found: install Python 3.13 or 3.12 or 3.11" in make(folder, ok=False, **only)
    pretend(tools / "python3", "3.14")
    assert "python3 is Python 3.14, which is too new" in make(folder, ok=False, **only)
    (tools / "python3.13").write_text("#!/bin/sh\necho 'shim: python3.13: command not found' >&2\nexit 127\n"); (tools / "python3.13").chmod(0o755)
    pretend(tools / "python3.12", "3.12", ensurepip=False)
    assert "python3.12 is Python 3.12 without ensurepip" in make(folder, ok=False, **only)
    pretend(tools / "python3.11", "3.11")
    said = make(folder, ok=False, **only)
    assert f"Python 3.11 ({tools}/python3.11)" in said or "GB are free in" in said
    assert "shim" not in said


# --- What heals


def test_a_wrong_python_once_then_a_right_one(tmp_path, make):
    folder = standin(tmp_path / "project")
    make(folder, f"PYTHON={pretend(tmp_path / 'old', '3.10')}", "install", ok=False)
    subprocess.run([BASE, "-m", "venv", "--without-pip", folder / ".venv"], check=True)  # as an older Makefile left it
    (folder / ".venv/left").touch()
    said = make(folder)
    assert ".venv is made again: an installation into it did not come to its end" in said
    assert imported(folder) == folder and not (folder / ".venv/left").exists()


def another(tmp_path) -> tuple[Path, str]:
    "An interpreter that is not ours: a real one where there is one, else one that says that it lives elsewhere."
    around = [shutil.which(f"python3.{n}") for n in (11, 12, 13)] + sorted((Path.home() / ".pyenv/versions").glob("3.1[123].*/bin/python"))
    for path in filter(None, around):
        about = subprocess.run([path, "-c", "import sys, ensurepip; print('%d.%d' % sys.version_info[:2])"], text=True, capture_output=True)
        if about.returncode == 0 and about.stdout.strip() != OWN: return Path(path), about.stdout.strip()
    return pretend(tmp_path / "elsewhere/python", OWN, prefix="/elsewhere"), OWN


def test_an_environment_of_another_python_is_made_again(intact, make, tmp_path):
    python, version = another(tmp_path)
    said = make(intact, f"PYTHON={python}", "install")
    assert f".venv is made again: it was made by Python {OWN} in {sys.base_prefix}, and PYTHON is Python {version} in " in said
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
    (folder / "mixrepro/repro").mkdir()
    (folder / "mixrepro/repro/cli.py").write_text("import sys\ndef main(): print(*map(ascii, sys.argv[1:]))\n")
    (folder / "pytest.py").write_text("import sys; print('tests', *sys.argv[1:])")
    assert make(folder, "reproduce", "PROFILE=a b'c $$(touch X)").startswith("'reproduce' '--profile' \"a b'c ")
    assert make(folder, "test") == "tests -q -n 2 --dist loadfile\n"
    assert not [p for p in tmp_path.rglob("X")] and not (ROOT / "X").exists(), "the name was run as a command"


def test_a_python_that_is_gone_or_has_become_another(intact, make, tmp_path):
    python, much = intact / ".venv/bin/python", dict(SPACE_MB="999999999")
    python.unlink(); python.symlink_to(tmp_path / "gone")
    assert f".venv is made again: its Python, in {sys.base_prefix}, is gone" in make(intact, ok=False, **much)
    python.unlink(); python.symlink_to(pretend(tmp_path / "upgraded/python", "3.13" if OWN != "3.13" else "3.12"))
    assert re.search(rf"made again: its Python was {OWN} and is 3.1\d now", make(intact, ok=False, **much))
    assert "GB are free in" in sentence(make(intact, ok=False, **much)) and python.exists(), "refused for space before anything is removed"
    make(intact)
    assert imported(intact) == intact


def test_killed_in_the_middle(tmp_path, make, surroundings):
    folder = standin(tmp_path / "project")
    process = subprocess.Popen([MAKE, "install"], cwd=folder, env=surroundings | dict(STANDIN_SLEEP="60"), start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (folder / "builds").exists() and time.monotonic() < deadline: time.sleep(.05)
    os.killpg(process.pid, signal.SIGKILL); process.wait()
    assert (folder / ".venv/installing").exists() and not (folder / ".venv/installed").exists()
    assert ".venv is made again: an installation into it did not come to its end" in make(folder)
    assert imported(folder) == folder and not (folder / ".venv/installing").exists()


def test_other_constraints_are_followed(intact, make):
    def version(): return next((intact / ".venv/lib").rglob("wheel-9*.dist-info")).name
    assert version() == "wheel-98.dist-info"
    (intact / "constraints.txt").write_text("setuptools==99\nwheel==99\n")
    said = make(intact, ok=False, PIP_FIND_LINKS="")
    assert "brought up to date: pyproject.toml or constraints.txt has changed" in said and "registry does not have" in sentence(said)
    (intact / "constraints.txt").write_text("setuptools==98\nwheel==98\n")
    assert "brought up to date" in make(intact), "after a failure even what it was is looked at again"
    (intact / "constraints.txt").write_text("setuptools==99\nwheel==99\n")
    make(intact)
    assert version() == "wheel-99.dist-info" and make(intact) == ""


def test_two_makes_at_once(tmp_path, surroundings):
    if not shutil.which("flock"): pytest.skip("without flock two makes at once are not told apart")
    folder = standin(tmp_path / "project")
    both = [subprocess.Popen([MAKE, "install"], cwd=folder, env=surroundings | dict(STANDIN_SLEEP="1"), text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for _ in range(2)]
    said = [p.communicate(timeout=120)[0] for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert (folder / "builds").read_text() == "x", "only one of them installed"
    assert sum("another make is installing into .venv: waiting for it" in s for s in said) == 1


# --- What fails says why, last


def test_offline(tmp_path, make):
    folder = standin(tmp_path / "project")
    nowhere = dict(PIP_NO_INDEX=None, PIP_FIND_LINKS=None, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1", PIP_TIMEOUT="1")
    said = make(folder, ok=False, **nowhere)
    assert sentence(said).startswith("the package registry could not be reached: check the network"), said
    assert not (folder / ".venv/installed").exists()
    (folder / "constraints.txt").write_text("setuptools==97\nwheel==98\n")
    assert "'make constraints' resolves them anew" in sentence(make(folder, ok=False))


def test_a_full_disk(tmp_path, make):
    folder = standin(tmp_path / "project")
    assert sentence(make(folder, ok=False, STANDIN_FAILS="28")).startswith("the disk is full")
    assert sentence(make(folder, ok=False, STANDIN_FAILS="5")).startswith("the installation failed, and says above why")
    assert not (folder / ".venv/installed").exists()
    assert "GB are free in" in sentence(make(folder, ok=False, SPACE_MB="999999999"))
    assert "SPACE_MB=much" in sentence(make(folder, ok=False, SPACE_MB="much"))


def apart(mount: str, *names) -> list[str]:
    "A command that runs another where something else is mounted, seen by nobody else; empty where that is not allowed."
    before = [UNSHARE or "unshare", "-rm", "/bin/bash", "-ec", mount + '; cd .; exec "${@:2}"', "mount", *names]
    try: return before if subprocess.run([*before, "true"], capture_output=True).returncode == 0 else []
    except OSError: return []


def test_small_and_closed_places(tmp_path, make):
    folder, small = standin(tmp_path / "project"), tmp_path / "small"; small.mkdir()
    if not (full := apart('mount -t tmpfs -o size=10m none "$1"', str(small))): pytest.skip("mounts of one's own are not allowed here")
    env = dict(TMPDIR=str(small))
    said = make(folder, ok=False, before=full, SPACE_MB="100", **env)
    assert f"GB are free in {small}, and 0.1 GB are downloaded to it" in sentence(said) and "make TMPDIR=" in sentence(said)
    venv = tmp_path / "project/.venv"; venv.mkdir()
    said = make(folder, ok=False, before=apart('mount -t tmpfs -o size=8m none "$1"', str(venv)), SPACE_MB="0")
    assert sentence(said).startswith("the disk is full"), said
    said = make(folder, ok=False, before=apart('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', str(folder)))
    assert "cannot be written to" in sentence(said)


def test_a_folder_that_is_no_place_for_an_environment(tmp_path, make, intact):
    assert "has a colon or a line break" in sentence(make(standin(tmp_path / "a:b"), ok=False))
    linked = standin(tmp_path / "linked")
    (linked / ".venv").symlink_to(intact / ".venv")
    assert ".venv is a link to" in sentence(make(linked, ok=False)) and make(intact) == "", "another's environment is not emptied"
