"Every public function says what it takes and gives, in types that exist; the package tells type checkers so."
import ast
import importlib
import inspect
import typing
from functools import cache

import pytest

from conftest import ROOT

MODULES = sorted(".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "mixrepro").rglob("*.py")
                 if p.name not in ("_modidx.py", "__init__.py", "__main__.py"))


def is_static(f: ast.FunctionDef) -> bool:
    "Whether a caller hands over a method's first argument, too."
    return any(getattr(d, "id", "") == "staticmethod" for d in f.decorator_list)


def public(tree: ast.Module) -> dict[str, tuple[ast.FunctionDef, bool]]:
    "Functions that a module exports, and methods of its classes: by name, with whether the first argument is bound."
    lists = [n.value for n in tree.body if isinstance(n, ast.Assign) and getattr(n.targets[0], "id", "") == "__all__"]
    names, found = {name for made in lists for name in ast.literal_eval(made)}, {}
    for n in tree.body:
        if isinstance(n, ast.FunctionDef) and n.name in names: found[n.name] = n, False
        if not isinstance(n, ast.ClassDef) or n.name not in names: continue
        mine = [f for f in n.body if isinstance(f, ast.FunctionDef)]
        found |= {f"{n.name}.{f.name}": (f, not is_static(f)) for f in mine
                  if not f.name.startswith("_") or f.name.startswith("__")}
    return found


def bare(f: ast.FunctionDef, bound: bool) -> list[str]:
    "The arguments of a function that have no type, and `return`."
    a = f.args
    args = [*a.posonlyargs, *a.args, *filter(None, [a.vararg]), *a.kwonlyargs, *filter(None, [a.kwarg])][bound:]
    return [x.arg for x in args if x.annotation is None] + ["return"] * (f.returns is None)


@cache
def parsed(name: str) -> ast.Module: return ast.parse((ROOT / (name.replace(".", "/") + ".py")).read_text())


def for_checkers(tree: ast.Module, there: dict) -> dict:
    "What a module imports for type checkers alone."
    brought = dict(there)
    for n in tree.body:
        if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING":
            exec(compile(ast.Module(n.body, []), there["__name__"], "exec"), brought)
    return brought


def unknown(module, tree: ast.Module) -> list[str]:
    "Public functions whose types name what is not there."
    there, found = for_checkers(tree, vars(module)), []
    for name in public(tree):
        thing = module
        for part in name.split("."): thing = inspect.getattr_static(thing, part)
        for inner in ("__func__", "fget", "func"): thing = getattr(thing, inner, thing)
        try: typing.get_type_hints(inspect.unwrap(thing), there)
        except NameError as e: found.append(f"{name}: {e}")
    return found


@pytest.mark.parametrize("name", MODULES)
def test_every_public_function_has_types(name):
    found = {f: missing for f, (node, bound) in public(parsed(name)).items() if (missing := bare(node, bound))}
    assert not found, f"write types into the notebook's signatures: {found}"


@pytest.mark.parametrize("name", MODULES)
def test_types_exist(name):
    assert unknown(importlib.import_module(name), parsed(name)) == []


def test_what_is_missing_is_seen(tmp_path, monkeypatch):
    text = ("__all__ = ['f', 'A']\ndef f(x, *y: int, z: 'Nowhere' = 1): pass\ndef g(x): pass\n"
            "class A:\n    def m(self, a) -> None: pass\n    @staticmethod\n    def s(a: int) -> None: pass\n"
            "    def _own(self, a): pass\n")
    (tmp_path / "lacking.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    tree = ast.parse(text)
    assert {f: bare(*of) for f, of in public(tree).items()} == {"f": ["x", "return"], "A.m": ["a"], "A.s": []}
    assert unknown(importlib.import_module("lacking"), tree) == ["f: name 'Nowhere' is not defined"]


def test_the_wheel_says_that_it_is_typed():
    assert (ROOT / "mixrepro/py.typed").read_text() == "" and '"py.typed"' in (ROOT / "pyproject.toml").read_text()
