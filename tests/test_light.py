"What a person waits for: a word of help, a list, a table and a typing error need none of the large libraries."

import os
import subprocess
import sys

import pytest

from conftest import ROOT
from mixrepro.cli import fetchable
from mixrepro.data.fetch import DATA
from mixrepro.workflow.listed import lines_kept

HEAVY = ("torch", "numpy", "nbformat", "pandas", "sklearn", "snakemake", "matplotlib", "papermill", "requests")
CODE = """import sys
from mixrepro.cli import main
sys.argv = ["mixrepro", *{args!r}]
try: main()
finally: print([m for m in {heavy!r} if m in sys.modules], file=sys.stderr)"""


def loaded(*args: str) -> tuple[str, list[str]]:
    "What a command prints, and the lines of its error stream, of which the last names what it has imported."
    done = subprocess.run([sys.executable, "-c", CODE.format(args=args, heavy=HEAVY)], cwd=ROOT, text=True, capture_output=True)
    return done.stdout, done.stderr.splitlines()


@pytest.mark.parametrize("args, says, error", [
    (("--version",), "mixrepro 0.1", 0), (("--help",), "reproduce", 0), (("show", "vm-table1"), "VarMixup", 0),
    (("lst",), "Did you mean 'list'", 1), (("show", "vm-tabel1"), "did you mean 'vm-table1'", 1),
    (("show", "vm-table1", "--profile", "embeded"), "did you mean 'embedded'", 1),
    (("reproduce", "vm-table1", "-p", "seed=1"), "did you mean 'seeds'", 1),
    (("data", "get", "cifar10", "cifra100"), "did you mean 'cifar100'", 1), (("data", "verify", "opnml"), "did you mean 'openml'", 1)])
def test_nothing_heavy(args, says, error):
    out, lines = loaded(*args)
    assert lines[-1] == "[]" and len(lines) == 1 + error and says in (lines[0] if error else out)


def test_names_of_data_sets_are_read_as_they_are():
    assert fetchable() == [*DATA]


def test_a_list_in_a_clone_without_runs(tmp_path, monkeypatch):
    for name in ("nbs", "settings.ini"): (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("MIXREPRO_HOME", str(tmp_path))
    out, lines = loaded("list")
    assert lines == ["[]"] and "vm-table1" in out and "are ready" in out


def test_a_file_that_was_edited_in_place_under_its_old_date_is_another(tmp_path):
    (done := tmp_path / "runs/digits/mixup-tiny-cnn-s0-0000000000/done.json").parent.mkdir(parents=True)
    asked = []
    def find(): asked.append(1); return [f"line {len(asked)}"], []
    for text in ("{1}", "{2}"):
        was = done.stat() if done.is_file() else None
        done.write_text(text)
        if was: os.utime(done, ns=(was.st_atime_ns, was.st_mtime_ns))
        assert lines_kept(tmp_path, "smoke", find) == lines_kept(tmp_path, "smoke", find) == [f"line {len(asked)}"]
    assert len(asked) == 2


def test_what_is_heavy_is_seen():
    assert loaded("list", "--json")[1] != ["[]"]


@pytest.mark.parametrize("plain", [dict(PYTHONIOENCODING="ascii", LC_ALL="C"), dict(LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0")])
def test_a_page_where_only_ascii_can_be_written(plain):
    page = (ROOT / "figures/embedded/across/x-errata.md").read_text(encoding="utf-8")
    assert not page.isascii()
    done = subprocess.run([sys.executable, "-m", "mixrepro", "show", "x-errata"], cwd=ROOT, env=os.environ | plain, capture_output=True)
    assert done.returncode == 0 and done.stderr == b"" and done.stdout.decode("ascii") == page.encode("ascii", "backslashreplace").decode() + "\n"


def test_the_package_itself_is_nothing_heavy():
    code = f"import sys, mixrepro; print([m for m in {HEAVY!r} if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True).stdout == "[]\n"


def test_a_list_of_a_store_that_was_asked_before(tmp_path):
    "What was found of its runs is read, and nothing large is imported."
    for f in ("pyproject.toml", "settings.ini", "nbs"): (tmp_path / f).symlink_to(ROOT / f)
    (run := tmp_path / "runs/digits/mixup-tiny-cnn-s0-0000000000").mkdir(parents=True)
    (run / "done.json").write_text("{}")
    assert lines_kept(tmp_path, "embedded", lambda: (["1 run of other code: alpha changed"], [])) == ["1 run of other code: alpha changed"]
    done = subprocess.run([sys.executable, "-c", CODE.format(args=["list"], heavy=HEAVY)], cwd=tmp_path, text=True, capture_output=True)
    assert done.stdout.endswith("are ready\n1 run of other code: alpha changed\n") and done.stderr.splitlines() == ["[]"]
