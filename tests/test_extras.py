"""What `pip install .` brings is enough for the library; all else says in one sentence which extra it needs."""
import json
import subprocess
import sys
import tomllib
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "mixrepro").rglob("*.py")
                 if p.name not in ("_modidx.py", "__init__.py", "__main__.py"))
BLOCKED = """
import importlib, json, sys
blocked, names = json.load(sys.stdin)
sys.modules.update(dict.fromkeys(blocked))  # as if they were not installed, also for who only asks
said = {}
for name in names:
    try: importlib.import_module(name); said[name] = ""
    except Exception as e: said[name] = f"{type(e).__name__}: {e}"
print(json.dumps(said))
"""
ON_CORE = ("core", "files", "download", "guards", "fingerprint", "extras", "data", "networks", "methods", "training", "metrics")


def brought(requirements: list[str]) -> set[str]:  # names of packages
    "What some requirements bring, with all that those ask for, as far as it is installed here."
    found, todo = set(), [Requirement(r) for r in requirements]
    while todo:
        r = todo.pop()
        if (name := canonicalize_name(r.name)) in found and not r.extras: continue
        found.add(name)
        try: asks = map(Requirement, distribution(r.name).requires or [])
        except PackageNotFoundError: continue
        todo += [c for c in asks if not c.marker or any(c.marker.evaluate({"extra": e}) for e in ("", *r.extras))]
    return found


PACKAGES_OF = {m: {canonicalize_name(d) for d in ds} for m, ds in packages_distributions().items()}


@cache
def imported() -> dict[str, str]:  # module -> what refuses it; "" where it is imported
    "All modules, one after the other, in a Python that has only what the core asks for."
    core = brought(PROJECT["dependencies"])
    blocked = [m for m, packages in PACKAGES_OF.items() if not packages & core and m != "mixrepro"]
    assert {"pandas", "matplotlib", "requests", "tqdm", "IPython", "nbformat"} <= {*blocked} and "torch" not in blocked
    done = subprocess.run([sys.executable, "-c", BLOCKED], cwd=ROOT, input=json.dumps([blocked, MODULES]), text=True,
                          capture_output=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_library_needs_no_extra():
    refused = {name: why for name, why in imported().items() if why and name.split(".")[1] in ON_CORE}
    assert not refused and len(MODULES) > 200


@pytest.mark.parametrize("name", ["mixrepro.repro.artefact", "mixrepro.papers.catalogue", "mixrepro.papers.index",
                                  "mixrepro.papers.varmixup.settings", "mixrepro.workflow.jobs", "mixrepro.cli"])
def test_so_does_what_the_command_line_begins_with(name): assert imported()[name] == ""


def test_all_else_names_the_extra_that_brings_what_it_needs():
    sentences = {why for why in imported().values() if why}
    assert sentences
    for said in sentences:
        what, _, advice = said.removeprefix("ModuleNotFoundError: ").partition(" is not installed, and this needs it: ")
        assert advice == "pip install 'mixrepro[repro]'", said
        assert PACKAGES_OF[what] <= brought(PROJECT["optional-dependencies"]["repro"]), what
