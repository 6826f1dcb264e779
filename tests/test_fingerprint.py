"The whole package, its comments and docstrings taken out and all of it laid out anew, has the same fingerprint; one other constant has another."

import ast
import symtable

import pytest
from hypothesis import given, settings, strategies as st

from mixrepro.fingerprint import CODE, Code, bound, differences, reach, sentence_of

MODULES = [m for m in sorted(CODE.texts) if m.startswith(("mixrepro.methods", "mixrepro.data", "mixrepro.networks", "mixrepro.training", "mixrepro.metrics"))]


def undressed(text: str) -> str:
    "Code without comments, docstrings, types of arguments, and in Python's own layout."
    tree = ast.parse(text)
    for n in ast.walk(tree):
        if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and len(n.body) > 1 and isinstance(n.body[0], ast.Expr) and isinstance(n.body[0].value, ast.Constant): del n.body[0]
        if isinstance(n, ast.arg): n.annotation = None
        if isinstance(n, ast.FunctionDef): n.returns = None
    return ast.unparse(tree)


def test_comments_docstrings_types_and_layout_count_for_nothing():
    names = MODULES[::9]
    bare = Code({m: undressed(CODE.texts[m]) if m in names else CODE.texts[m] for m in CODE.texts})
    every = [f"{m}:{name}" for m in names for name in CODE.module(m).made if name != "__all__"]
    assert len(names) > 8 and len(every) > 80
    changed = [w for w in every if CODE.definition(w).digest != bare.definition(w).digest]
    assert not changed


def test_a_function_that_only_moves_is_the_same():
    "draw_lambda goes into a module of its own, and the one that it leaves imports it from there."
    here = "mixrepro.methods.vicinal"
    tree = ast.parse(CODE.texts[here])
    moved = next(n for n in tree.body if getattr(n, "name", "") == "draw_lambda")
    tree.body = [n for n in tree.body if n is not moved]
    tree.body.insert(1, ast.parse("from .coefficients import draw_lambda").body[0])
    new = Code(CODE.texts | {here: ast.unparse(tree), "mixrepro.methods.coefficients": f"import math\nimport torch\n{ast.unparse(moved)}"})
    old, now = (reach(c, ["mixrepro.methods.mixup:Mixup"]) for c in (CODE, new))
    assert "methods.vicinal:draw_lambda" in old.parts and "methods.coefficients:draw_lambda" in now.parts
    assert old.name == now.name and differences(old.parts, now.parts) == []


@pytest.mark.parametrize("module", MODULES[::6])
def test_names_are_whose_python_says(module):
    "Python's own table of symbols, function by function: what is global there is read from the module, and nothing else is."
    text = CODE.texts[module]
    tables = {t.get_name(): t for t in symtable.symtable(text, module, "exec").get_children() if t.get_type() == "function"}
    for node in (n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef)):
        imported = {a.asname or a.name.split(".")[0] for n in ast.walk(node) if isinstance(n, (ast.Import, ast.ImportFrom)) for a in n.names}
        loops = {w.id for n in ast.walk(node) if isinstance(n, ast.comprehension) for w in ast.walk(n.target) if isinstance(w, ast.Name)}  # inlined since Python 3.12
        args = node.args
        own = bound(node.body)[0] | {a.arg for a in (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg) if a}
        theirs = {s.get_name() for s in tables[node.name].get_symbols() if s.is_local()}
        assert own - loops == theirs - imported - loops, node.name


EDITS = [("alpha + 1., dtype", "8 * alpha + 1., dtype", ["methods.vicinal.draw_lambda"]), ("if per == \"batch\" else (n,)", "if per == \"example\" else (n,)", ["methods.vicinal.draw_mix"]),
         ("lerp(copied(rows, self.partner), rows, lam)", "lerp(rows, copied(rows, self.partner), lam)", ["methods.vicinal.Mix"]), ("\"Draw partners and", "\"Partners and", []), ("# examples in the batch", "# rows", []),
         ("    shapes = torch.full", "\n\n    # two of them\n    shapes = torch.full", []), ("alpha must be above 0 and finite", "alpha is above 0 or refused", []),
         ("from torch.nn import functional as F", "from torch import fft as F", ["methods.vicinal.bce_softmax", "methods.vicinal.one_hot", "methods.vicinal.soft_ce"])]


@pytest.mark.parametrize("old, new, names", EDITS, ids=range(len(EDITS)))
def test_what_an_edit_changes_is_named(old, new, names):
    here = "mixrepro.methods.vicinal"
    assert old in CODE.texts[here]
    other = Code(CODE.texts | {here: CODE.texts[here].replace(old, new)})
    before, after = (reach(c, [f"{here}:{n}" for n in ("draw_mix", "one_hot", "bce_softmax", "LOSSES")]) for c in (CODE, other))
    assert sorted(differences(before.parts, after.parts)) == sorted(names) and (before.name == after.name) == (not names)


@given(value=st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5), other=st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=5))
@settings(max_examples=60, deadline=None)
def test_constants_are_told_apart(value, other):
    def of(v): return Code({"mixrepro.a": f"X = {v!r}\ndef f(): return X"})
    same = repr(value) == repr(other)
    assert (reach(of(value), ["mixrepro.a:f"]).name == reach(of(other), ["mixrepro.a:f"]).name) == same


def test_a_lambda_of_a_table_is_found_by_its_line():
    from mixrepro.metrics.catalogue import READ
    parts = reach(CODE, [READ["rendered-ranks"]]).parts
    assert "metrics.catalogue:<lambda>" in parts and "metrics.ranked:by_rank" in parts


def test_many_changes_are_counted():
    assert sentence_of([]) == "nothing changed" and sentence_of([*"abcd"]) == "a, b, c and 1 more changed"
