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


ABOVE = """
import functools, re
from .b import SHARED, helper, Base
from . import b as other
from .b import *
A = 3
TABLE, LIST, HOOKS, ROWS = {"x": 1, "y": 2}, [], [], {}
for k in range(3): LIST.append(k * 2)
for k in "ab": ROWS[k] = 5
PART = functools.partial(helper, k=1)
RX = re.compile("a+")
LAM = lambda v: v + 6
NAMES = dict(one=helper)
def register(f): HOOKS.append(f); return f
@register
def hooked(v): return v * 7
TABLE.update(q=8)
def setup(): TABLE["z"] = 9
setup()
class K(Base):
    size = 4
    @property
    def half(self): return self.size / 10
    def run(self, v):
        def nested(w): return w * 11
        return nested(v) + self.half
K.late = 12
if A > 2: FLAG = "big"
else: FLAG = "small"
HIDDEN = 33
def f(v=13, *, w=14):
    u: int = 15
    return A, TABLE, LIST, ROWS, HOOKS, PART(v), RX, LAM(v), NAMES, K().run(v), FLAG, u, other.DEEP, SHARED, STAR, other.sub(), f"{A:.3f}", [i * 34 for i in range(35)], v[::2]
@functools.lru_cache(maxsize=31)
def by_name(): return globals()["HIDDEN"]
"""
BESIDE = "from .c import sub\nSHARED = 40\nDEEP = 41\nSTAR = 42\ndef helper(k=43): return k + 44\nclass Root:\n    colour = 45\nclass Base(Root):\n    def __init_subclass__(cls): cls.made = 47\n"
KINDS = {"a constant": ("A = 3", "A = 4"), "an entry of a table": ('"x": 1', '"x": 9'), "a list filled by a loop": ("k * 2", "k * 3"), "how often it is filled": ("range(3)", "range(4)"), "a table filled by a loop": ("= 5\nPART", "= 6\nPART"),
         "an argument of a partial": ("k=1)", "k=2)"), "a regular expression": ('"a+"', '"a*"'), "a lambda": ("v + 6", "v + 7"), "a registry line": ("one=helper", "one=register"), "a function that a decorator registers": ("v * 7", "v * 8"),
         "the decorator": ("@register\n", ""), "an update": ("q=8", "q=9"), "a function that fills": ("= 9\nsetup", "= 8\nsetup"), "whether it is called": ("\nsetup()", ""), "a class attribute": ("size = 4", "size = 5"), "a property": ("/ 10", "/ 11"),
         "a nested function": ("w * 11", "w * 12"), "an attribute set later": ("K.late = 12", "K.late = 13"), "a condition": ("if A > 2", "if A > 5"), "a default": ("v=13", "v=12"), "a default by name": ("w=14", "w=15"), "a variable with a type": ("u: int = 15", "u: int = 16"),
         "a format": (".3f", ".4f"), "a comprehension": ("i * 34", "i * 35"), "a slice": ("[::2]", "[::3]"), "an argument of a decorator": ("maxsize=31", "maxsize=1"), "what is looked up among the globals": ("HIDDEN = 33", "HIDDEN = 34"), "where a name comes from": ("import SHARED, helper, Base", "import DEEP as SHARED, helper, Base"),
         "of another module, a constant": ("SHARED = 40", "SHARED = 1"), "of a module by its name": ("DEEP = 41", "DEEP = 1"), "imported with a star": ("STAR = 42", "STAR = 1"), "a default elsewhere": ("k=43", "k=1"), "a function elsewhere": ("k + 44", "k + 1"), "an attribute that is inherited": ("colour = 45", "colour = 1"),
         "what a base does to its subclasses": ("made = 47", "made = 1"), "what stands behind an import": ("from .c import sub", "def sub(): return 0")}


@pytest.mark.parametrize("what", KINDS)
def test_no_kind_of_edit_gets_through(what):
    old, new = KINDS[what]
    def of(above, beside): return reach(Code({"mixrepro.p": "", "mixrepro.p.a": above, "mixrepro.p.b": beside, "mixrepro.p.c": "def sub(): return 48"}), ["mixrepro.p.a:f", "mixrepro.p.a:by_name"])
    assert (ABOVE + BESIDE).count(old) == 1
    before, after = of(ABOVE, BESIDE), of(ABOVE.replace(old, new), BESIDE.replace(old, new))
    assert before.name != after.name and differences(before.parts, after.parts), what
