"""Imports go one way and never in a circle, those inside functions among them; a public name has one home."""
import ast
import subprocess
import sys
import json
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from conftest import ROOT

LAYERS = (("core", "files", "download", "guards", "fingerprint", "extras", "outside"), ("data",), ("networks",), ("methods",), ("training",), ("metrics",),
          ("repro",),
          ("papers",), ("workflow", "cli"), ("__main__",))  # each may import those before it
AGAINST = {}  # module -> why it imports from a later layer
MODULES = {".".join(p.relative_to(ROOT).with_suffix("").parts): p
           for p in (ROOT / "mixrepro").rglob("*.py") if p.name not in ("_modidx.py", "__init__.py")}
ONE_HOME = ("core", "files", "download", "guards", "fingerprint", "extras", "outside", "data", "training", "metrics")
SHARED_NAMES = {}  # name -> why two modules have it


def imports(name: str, path: Path) -> set[str]:
    "The modules of the package that a module imports, wherever the statement stands."
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import): found |= {a.name for a in node.names}
        if isinstance(node, ast.ImportFrom):
            base = name.split(".")[:-node.level] if node.level else []
            at = ".".join([*base, *([node.module] if node.module else [])])
            found |= {at} | {f"{at}.{a.name}" for a in node.names}
    return found & MODULES.keys()


GRAPH = {name: imports(name, path) for name, path in MODULES.items()}


def layer(name: str) -> int:
    "The place of a module among the layers."
    part = name.split(".")[1]
    return next(i for i, parts in enumerate(LAYERS) if part in parts)


def circle(graph) -> list[str]:
    "A circle of imports, or nothing."
    try: TopologicalSorter(graph).prepare()
    except CycleError as e: return e.args[1]
    return []


def test_the_graph_is_seen():
    assert len(GRAPH) > 80 and "mixrepro.data.streams" in GRAPH["mixrepro.data.corruptions"]
    assert "mixrepro.data.tabular" in GRAPH["mixrepro.data.fetch"]  # inside a function
    assert circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) and not circle({"a": {"b", "c"}, "b": {"c"}})


def test_no_circle(): assert circle(GRAPH) == []


def test_a_circle_inside_functions_would_be_found(tmp_path):
    (tmp_path / "streams.py").write_text("def late():\n    from mixrepro.data.corruptions import corrupt\n    return "
                                         "corrupt")
    new = imports("mixrepro.data.streams", tmp_path / "streams.py")
    assert new == {"mixrepro.data.corruptions"} and circle(GRAPH | {"mixrepro.data.streams": new})


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_go_one_way(name):
    back = sorted(other for other in GRAPH[name] if layer(other) > layer(name))
    assert bool(back) == (name in AGAINST), f"{name} imports {', '.join(back) or 'nothing'} from a later layer"


def test_a_public_name_has_one_home():
    homes = defaultdict(set)
    for name, path in MODULES.items():
        if name.split(".")[1] not in ONE_HOME: continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                for public in ast.literal_eval(node.value): homes[public].add(name)
    twice = {public: sorted(at) for public, at in homes.items() if len(at) > 1 and public not in SHARED_NAMES}
    assert not twice


@cache
def names_of(path: Path) -> set[str]:
    "What a module defines or imports at its top."
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): found.add(node.name)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {a.asname or a.name.split(".")[0] for a in node.names}
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store): found.add(node.id)
    return found


READERS = [p for at in ("nbs", "tests", "data_scripts") for p in sorted((ROOT / at).rglob("*.*"))
           if p.suffix in (".ipynb", ".py") and ".ipynb_checkpoints" not in p.parts]


@pytest.mark.parametrize("path", READERS, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_is_imported_from_the_package_is_there(path):
    "A name that moved is found by reading, not by running an hour of notebooks."
    if path.suffix == ".py": sources = [path.read_text()]
    else: sources = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    for source in (s for s in sources if "mixrepro" in s):
        code = "\n".join(line for line in source.splitlines() if not line.lstrip().startswith(("%", "!")))
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mixrepro"): continue
            for a in node.names:
                whole = f"{node.module}.{a.name}"
                module = whole in MODULES or (ROOT / whole.replace(".", "/")).is_dir()
                name = node.module in MODULES and a.name in names_of(MODULES[node.module])
                assert module or name, f"{node.module} has no {a.name}"


def test_what_is_slow_to_import_waits_until_it_is_needed():
    "A notebook of an artefact and every call of the command line begin without torchvision, which doubles the time of torch."
    code = "import sys, mixrepro.cli, mixrepro.workflow.study; print([m for m in ('torchvision', 'torchmetrics', 'snakemake') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "[]\n", done.stdout + done.stderr
