"An artefact's cells and settings at the paper's own scale, for a test that holds them against the text."

from dataclasses import asdict

from mixrepro.methods.catalogue import method
from mixrepro.papers.catalogue import find
from mixrepro.repro.artefact import cells
from mixrepro.training.spec import Spec


def planned(id: str, at: str = "paper") -> dict:
    "(row, column) -> its specs, one for each seed."
    found = {}
    for c in cells(find(id), at): found.setdefault(c[:2], []).append(c.spec)
    return found


def grid(rows, *columns) -> set:
    "Every row in every column."
    return {(row, column) for row in rows for column in columns}


def agree(specs, **wanted):
    "Every spec has these values."
    specs = [specs] if isinstance(specs, Spec) else list(specs)
    assert specs, "no run was planned"
    for spec in specs:
        got = {name: getattr(spec, name) for name in wanted}
        assert got == wanted, f"{spec.method} on {spec.dataset}, seed {spec.seed}"


def every(plan: dict) -> list[Spec]:
    "The specs of all cells."
    return [spec for specs in plan.values() for spec in specs]


def args(specs) -> dict:
    "The method's hyper-parameters, given and by default, which all these specs share."
    specs = [specs] if isinstance(specs, Spec) else list(specs)
    one, *others = [asdict(method(s.method, **s.method_args)) for s in specs]
    assert all(other == one for other in others)
    return one
