"What a person waits for: a word of help, a list, a table and a typing error need none of the large libraries."

import subprocess
import sys

import pytest

from conftest import ROOT

HEAVY = ("torch", "numpy", "nbformat", "pandas", "sklearn", "snakemake", "matplotlib", "papermill")
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
    (("show", "vm-table1", "--profile", "embeded"), "did you mean 'embedded'", 1)])
def test_nothing_heavy(args, says, error):
    out, lines = loaded(*args)
    assert lines[-1] == "[]" and len(lines) == 1 + error and says in (lines[0] if error else out)


def test_a_list_in_a_clone_without_runs(tmp_path, monkeypatch):
    for name in ("nbs", "settings.ini"): (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.setenv("MIXREPRO_HOME", str(tmp_path))
    out, lines = loaded("list")
    assert lines == ["[]"] and "vm-table1" in out and "are ready" in out


def test_what_is_heavy_is_seen():
    assert loaded("list", "--json")[1] != ["[]"]
