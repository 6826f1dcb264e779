"The whole package, its comments and docstrings taken out and all of it laid out anew, has the same fingerprint; one other constant has another."

import ast
import re
import symtable
from enum import Enum
from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st

from mixrepro.fingerprint import CODE, Code, bound, data_files, differences, put_in_words, reach, sentence_of

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


NOTICED = {  # a, b, the edit; f of a is looked at, c beside holds X
    'a table that another module adds to': ("from .b import T\nT['x'] = 3\ndef f(): return T", 'T = dict(y=1)', 'y=1', 'y=2'),
    'a table that is joined elsewhere': ('from .b import T\nT |= dict(x=3)\ndef f(): return T', 'T = dict(y=1)', 'y=1', 'y=2'),
    'a table that is joined from elsewhere': ('from .b import T\nT |= dict(x=3)\nfrom . import b\ndef f(): return b.g()', 'T = dict(y=1)\ndef g(): return T', 'x=3', 'x=4'),
    'what stands above a change of its own': ('from .b import X\nX = X + 1\ndef f(): return X', 'X = 3', 'X = 3', 'X = 4'),
    'a function in a branch': ('import sys\nif sys.maxsize > 9:\n    def g(v): return v * 3\nelse:\n    def g(v): return v\ndef f(v): return g(v)', '', 'v * 3', 'v * 4'),
    'a class in a try': ('try:\n    class K: size = 3\nexcept ValueError: K = None\ndef f(): return K.size', '', 'size = 3', 'size = 4'),
    'an import in a branch': ('if 1:\n    from .b import X\nelse:\n    from .b import Y as X\ndef f(): return X', 'X = 3\nY = 4', 'X = 3', 'X = 5'),
    'what an import falls back on': ('try: import nothing_such as m\nexcept ImportError: from . import b as m\ndef f(): return m.X', 'X = 3', 'X = 3', 'X = 5'),
    'from where an import falls back': ('try: from nothing import X\nexcept ImportError: from .b import X\ndef f(): return X', 'X = 3\nY = 4', 'from .b import X', 'from .b import Y as X'),
    'a walrus in an assignment': ('A = [(B := 3), 4]\ndef f(): return B', '', 'B := 3', 'B := 5'),
    'a walrus in a default': ('def g(v=(B := 3)): return v\ndef f(): return B', '', 'B := 3', 'B := 5'),
    'what a pattern finds': ('match (3, 4):\n    case (x, y): pass\ndef f(): return y', '', '(3, 4)', '(3, 5)'),
    'a global that a function sets': ('K = 1\ndef setup():\n    global K\n    K = 3\nsetup()\ndef f(): return K', '', 'K = 3', 'K = 4'),
    'a global that only a function makes': ('def setup():\n    global K\n    K = 3\nsetup()\ndef f(): return K', '', 'K = 3', 'K = 4'),
    'a list handed to a function that fills it': ('L = []\ndef fill(to, v): to.append(v)\nfill(L, 3)\ndef f(): return L', '', 'fill(L, 3)', 'fill(L, 4)'),
    'how a function fills what it is handed': ('L = []\ndef fill(to, v): to.append(v * 2)\nfill(L, 3)\ndef f(): return L', '', 'v * 2', 'v * 3'),
    'a list handed to a function whose answer is taken': ('L = []\ndef fill(to, v):\n    to.append(v)\n    return v\nN = fill(L, 3)\ndef f(): return L', '', 'fill(L, 3)', 'fill(L, 4)'),
    'a list that is shuffled': ('import random\nL = [1, 2, 3]\nrandom.Random(3).shuffle(L)\ndef f(): return L', '', 'Random(3)', 'Random(4)'),
    'an attribute by setattr': ("class K: size = 3\nsetattr(K, 'size', 5)\ndef f(): return K.size", '', '5)', '6)'),
    'a tensor changed in place': ('import torch\nW = torch.ones(3)\nW.mul_(2)\ndef f(): return W', '', 'mul_(2)', 'mul_(3)'),
    'what is entered among the globals': ("A = 1\nglobals()['B'] = 3\ndef f(): return B", '', '= 3', '= 4'),
    'globals that are updated': ('A = 1\nglobals().update(B=3)\ndef f(): return B', '', 'B=3', 'B=4'),
    'a table of another module': ("from .b import T\nT['x'] = 3\ndef f(): return T['x']", 'T = {}', '= 3', '= 4'),
    'a constant of another module': ('from . import b\nb.X = 3\ndef f(): return b.g()', 'X = 1\ndef g(): return X', 'b.X = 3', 'b.X = 4'),
    'a function of another module replaced': ('from . import b\ndef mine(v): return v * 3\nb.g = mine\ndef f(): return b.h(2)', 'def g(v): return v\ndef h(v): return g(v)', 'v * 3', 'v * 4'),
    'a class of another module changed': ('from .b import K\nK.size = 3\ndef f(): return K().size', 'class K: size = 1', 'K.size = 3', 'K.size = 4'),
    "a method of another module's class": ('from .b import K\ndef run(self): return 3\nK.run = run\ndef f(): return K().go()', 'class K:\n    def run(self): return 1\n    def go(self): return self.run()', 'return 3', 'return 4'),
    'a class of another module by setattr': ("from .b import K\nsetattr(K, 'size', 3)\ndef f(): return K().size", 'class K: size = 1', ', 3)', ', 4)'),
    'registered with another module': ('from .b import register\n@register\ndef mine(v): return v * 3\nfrom . import b\ndef f(): return b.g()', 'T = []\ndef register(h):\n    T.append(h)\n    return h\ndef g(): return [h(1) for h in T]', 'v * 3', 'v * 4'),
    'registered by a call': ('from . import b\ndef mine(v): return v * 3\nb.register(mine)\ndef f(): return b.g()', 'T = []\ndef register(h): T.append(h)\ndef g(): return [h(1) for h in T]', 'b.register(mine)\n', ''),
    'a switch of another package': ('import torch\ntorch.set_default_dtype(torch.float32)\ndef f(): return torch.ones(3)', '', 'float32', 'float64'),
    'an attribute of another package': ('import torch\ntorch.backends.cudnn.allow_tf32 = False\ndef f(): return torch.ones(3)', '', 'False', 'True'),
    'a switch that another module sets': ('import numpy as np\ndef f(): return np.ones(3)', 'import numpy as np\nnp.random.seed(3)', 'seed(3)', 'seed(4)'),
    'a star of a star': ('from .b import *\ndef f(): return X', 'from .c import *', 'X = 3', 'X = 4'),
    'an attribute that a module finds': ('from . import b\ndef f(): return b.anything', 'def __getattr__(name): return 3', 'return 3', 'return 4'),
    'a name that a module finds': ('from .b import anything\ndef f(): return anything', 'def __getattr__(name): return 3', 'return 3', 'return 4'),
    'a module by its name': ("from importlib import import_module\ndef f(): return import_module('mixrepro.p.b').X", 'X = 3', 'X = 3', 'X = 4'),
    'a module by a name that is relative': ("from importlib import import_module\ndef f(): return import_module('.b', __package__).X", 'X = 3', 'X = 3', 'X = 4'),
    'a module by how its name begins': ("from importlib import import_module\ndef f(k): return import_module(f'mixrepro.p.{k}').X", 'X = 3', 'X = 3', 'X = 4'),
    'a module that asks for itself': ('import sys\nX = 3\ndef f(k): return getattr(sys.modules[__name__], k)', '', 'X = 3', 'X = 4'),
    'an expression in a text': ("X = 3\ndef f(): return eval('X + 1')", '', 'X = 3', 'X = 4'),
    'a subclass that enters itself': ("T = {}\nclass Base:\n    def __init_subclass__(cls): T[cls.__name__] = cls\nclass K(Base): size = 3\ndef f(): return T['K'].size", '', 'size = 3', 'size = 4'),
    'a subclass elsewhere that enters itself': ('from .b import Base\nclass K(Base): size = 3\nfrom . import b\ndef f(): return b.g()', 'T = {}\nclass Base:\n    def __init_subclass__(cls): T[cls.__name__] = cls\ndef g(): return T', 'size = 3', 'size = 4'),
    'subclasses that are asked for': ('class Base: pass\nclass K(Base): size = 3\ndef f(): return [k.size for k in Base.__subclasses__()]', '', 'size = 3', 'size = 4'),
    'a method that is registered': ('T = []\ndef register(h):\n    T.append(h)\n    return h\nclass K:\n    @register\n    def run(self): return 3\ndef f(): return T', '', 'return 3', 'return 4'),
    'another name for a type': ('from dataclasses import dataclass\nKind = int\n@dataclass\nclass K:\n    size: Kind = 3\ndef f(): return K()', '', 'Kind = int', 'Kind = float'),
    'a type that chooses the function': ('from functools import singledispatch\n@singledispatch\ndef g(v): return 1\n@g.register\ndef _(v: int): return 2\ndef f(): return g(3)', '', 'v: int', 'v: float'),
    'what a check does to what it is given': ('def check_size(v): v.clamp_(0, 3)\ndef f(v):\n    check_size(v)\n    return v', '', '(0, 3)', '(0, 4)'),
    'what a check adds to what it is given': ('def check_size(v): v += 3\ndef f(v):\n    check_size(v)\n    return v', '', '+= 3', '+= 4'),
    'what is called a checkpoint': ('def checkpoint(n): n.go(3)\ndef f(n):\n    checkpoint(n)\n    return n', '', 'go(3)', 'go(4)'),
    'an import of another method': ('from .b import X\nclass K:\n    def one(self):\n        from .c import X\n        return X\n    def two(self): return X\ndef f(): return K().two()', 'X = 1', 'X = 1', 'X = 2'),
    "a global that has a local's name outside": ('X = 3\ndef f():\n    X = 5\n    def g():\n        global X\n        return X\n    return g()', '', 'X = 3', 'X = 4'),
    'an import of a class': ('class K:\n    from .b import go\ndef f(): return K.go()', 'def go(): return 3', 'return 3', 'return 4'),
    'a decorator of another module': ('from .b import twice\n@twice\ndef f(): return 1', 'def twice(h): return lambda: h() * 2', 'h() * 2', 'h() * 3'),
    'a type made by a call': ("K = type('K', (), dict(size=3))\ndef f(): return K.size", '', 'size=3', 'size=4'),
    'a class that computes': ('class K:\n    sizes = []\n    for k in range(3): sizes.append(k)\ndef f(): return K.sizes', '', 'range(3)', 'range(4)'),
    'a member of an enumeration': ('from enum import Enum\nclass C(Enum): RED = 3\ndef f(): return C.RED.value', '', 'RED = 3', 'RED = 4'),
    'an operator': ('class V:\n    def __matmul__(self, o): return 3\nA = V()\ndef f(): return A @ A', '', 'return 3', 'return 4'),
    'super': ('class A:\n    def go(self): return 3\nclass B(A):\n    def go(self): return super().go() + 1\ndef f(): return B().go()', '', 'return 3', 'return 4'),
    'a nonlocal': ('def f():\n    k = 3\n    def g():\n        nonlocal k\n        k += 2\n    g()\n    return k', '', '+= 2', '+= 3'),
    'another name for a module': ('from . import b\nother = b\ndef f(): return other.X', 'X = 3', 'X = 3', 'X = 4'),
    'an attribute by a computed name': ("from . import b\ndef f(k): return getattr(b, 'X' + k)", 'X1 = 3', 'X1 = 3', 'X1 = 4'),
    'metadata of a field': ("from dataclasses import dataclass, field, fields\n@dataclass\nclass K:\n    a: int = field(default=1, metadata=dict(scale=3))\ndef f(): return fields(K)[0].metadata['scale']", '', 'scale=3', 'scale=4'),
    'a default factory': ('from dataclasses import dataclass, field\n@dataclass\nclass K:\n    a: list = field(default_factory=lambda: [3])\ndef f(): return K().a', '', '[3]', '[4]'),
    'a metaclass': ('class M(type):\n    def __call__(cls): return 3\nclass K(metaclass=M): pass\ndef f(): return K()', '', 'return 3', 'return 4'),
    'a descriptor': ('class D:\n    def __get__(self, o, k): return 3\nclass K: size = D()\ndef f(): return K().size', '', 'return 3', 'return 4'),
    'a star among the arguments': ('ARGS = (1, 3)\ndef g(*a): return a\ndef f(): return g(*ARGS)', '', '(1, 3)', '(1, 4)'),
    'a context': ('from contextlib import contextmanager\n@contextmanager\ndef at(): yield 3\ndef f():\n    with at() as v: return v', '', 'yield 3', 'yield 4'),
    'the order of a table': ('T = dict(a=1, b=2)\ndef f(): return [*T]', '', 'dict(a=1, b=2)', 'dict(b=2, a=1)'),
    'a sign': ('def f(v): return v - 1', '', 'v - 1', 'v + 1'),
    'what is caught': ('def f(v):\n    try: return v[0]\n    except IndexError: return 3', '', 'IndexError', 'KeyError'),
    'what a generator yields': ('def g():\n    yield from (1, 3)\ndef f(): return [*g()]', '', '(1, 3)', '(1, 4)'),
    'an entry that is deleted': ("T = dict(a=1, b=2)\ndel T['b']\ndef f(): return T", '', "del T['b']\n", '')}


UNNOTICED = {  # a, b, the edit; f of a is looked at, c beside holds X
    'a comment': ('def f(v): return v  # one', '', '# one', '# two'),
    'what a checker reads': ("from typing import TYPE_CHECKING\nif TYPE_CHECKING: from .b import X\ndef f(v: 'X'): return v", 'X = 3', 'X = 3', 'X = 4'),
    'a function beside in a branch': ('def f(v): return v\nif 1:\n    def g(v): return 3', '', 'return 3', 'return 4'),
    'a table of another module that nobody reads': ("from .b import T\nT['x'] = 3\ndef f(): return 1", 'T = {}', '= 3', '= 4'),
    'what a check says': ("def check_size(v):\n    if v > 3: raise ValueError('too large')\ndef f(v):\n    check_size(v)\n    return v", '', 'too large', 'large'),
    'what a check refuses': ("def check_size(v):\n    names = []\n    names.append(v)\n    if v > 3: raise ValueError('too large')\ndef f(v):\n    check_size(v)\n    return v", '', 'v > 3', 'v > 4'),
    "an argument's type": ('def f(v: int): return v', '', 'v: int', 'v: float'),
    'a printed word': ("def f(v):\n    print('one')\n    return v", '', 'one', 'two'),
    'a warning': ("import warnings\ndef f(v):\n    warnings.warn('one')\n    return v", '', 'one', 'two'),
    'a private function of another module': ('from .b import g\ndef f(): return g()', 'def g(): return 1\ndef h(): return 3', 'return 3', 'return 4'),
    'an attribute that nobody reads': ("from .b import K\nsetattr(K, 'also', 3)\ndef f(): return K()", 'class K: size = 1', ', 3)', ', 4)'),
    'what is registered elsewhere': ('from .b import register\n@register\ndef mine(v): return v * 3\ndef f(): return 1', 'T = []\ndef register(h):\n    T.append(h)\n    return h', 'v * 3', 'v * 4'),
    'the name of a local': ('def f(v):\n    import math\n    return math.pi * v', '', 'import math\n', 'import math  # circle\n'),
    "a string's quotes": ("def f(): return 'a'", '', "'a'", '"a"'),
    'brackets': ('def f(v): return v + 1', '', 'v + 1', '(v + 1)'),
    "a number's form": ('def f(v): return v + 1000', '', '1000', '1_000'),
    'an order of imports': ('import math\nimport cmath\ndef f(v): return math.pi', '', 'import math\nimport cmath', 'import cmath\nimport math'),
    'where a name is imported': ('from .b import X\ndef f(): return X', 'X = 3', 'from .b import X\ndef f(): return X', 'def f():\n    from .b import X\n    return X'),
    'what an assertion says': ("def f(v):\n    assert v, 'one'\n    return v", '', "'one'", "'two'"),
    'a docstring of a class': ("class K:\n    'one'\n    a = 3\ndef f(): return K.a", '', "'one'", "'two'"),
    'the main program': ("def f(): return 1\nif __name__ == '__main__': print(f(), 3)", '', ', 3)', ', 4)'),
    'what is exported': ("__all__ = ['f']\ndef f(): return 1", '', "['f']", "['f', 'g']"),
    'a table of no number': ("TITLES = dict(a='one')\ndef f(): return 1", '', 'one', 'two'),
    'a test of a type in a branch': ('def f(): return 1\ntry: import nothing_such\nexcept ImportError: nothing_such = None', '', 'None', '0')}


def of_package(**modules): return Code({"mixrepro": "", "mixrepro.p": ""} | {f"mixrepro.p.{k.replace('_', '.')}": v for k, v in modules.items()})


@pytest.mark.parametrize("what", [*NOTICED, *UNNOTICED])
def test_what_an_edit_does_is_told_by_what_python_would_do(what):
    a, b, old, new = (NOTICED | UNNOTICED)[what]
    assert old in a + b + "X = 3"
    before, after = (reach(of_package(**{k: v.replace(old, to) for k, v in dict(a=a, b=b, c="X = 3").items()}), ["mixrepro.p.a:f"]) for to in (old, new))
    assert (before.name != after.name) == (what in NOTICED) == bool(differences(before.parts, after.parts))


def test_a_package_that_brings_names():
    before, after = (reach(of_package(a="from .c import X\ndef f(): return X", c="from .d import X", c_d=f"X = {v}"), ["mixrepro.p.a:f"]).name for v in (3, 4))
    assert before != after


def test_a_file_of_the_package(tmp_path):
    text = {"mixrepro.p.a": "import numpy as np\ndef f(at): return np.load(at / 'frost.npy')\ndef g(at): return np.load(at / 'snow.npy')"}
    def names():
        code = Code(text, data_files(tmp_path))
        return [reach(code, [f"mixrepro.p.a:{k}"]) for k in "fg"]
    (tmp_path / "data").mkdir()
    (tmp_path / "data/frost.npy").write_bytes(b"1")
    f, g = names()
    (tmp_path / "data/frost.npy").write_bytes(b"2")
    later, same = names()
    assert differences(f.parts, later.parts) == ["mixrepro.data/frost.npy"] and f.name != later.name and g.name == same.name


def made_by(k):
    def inner(v): return v * k
    return inner


class Plain:
    def __init__(self, k): self.k, self.me = k, self


class Colour(Enum): RED, BLUE = 1, 2


@pytest.mark.parametrize("one, other", [(made_by(3), made_by(4)), (Plain(3), Plain(4)), (Colour.RED, Colour.BLUE), (1j, 2j), (slice(3), slice(4)), (re.compile("a"), re.compile("b")), (made_by(np.ones(2)), made_by(np.zeros(2))), (made_by(np.float32), made_by(np.float64)), (made_by(torch.ones(2)), made_by(np.ones(2))), (made_by(torch.nn.Linear(2, 2)), made_by(torch.nn.Linear(2, 2))), (made_by(pd.DataFrame(dict(a=range(100)))), made_by(pd.DataFrame(dict(a=[k + (k == 50) for k in range(100)])))),
                                        (partial(sorted, key=made_by(3)), partial(sorted, key=made_by(4))), (partial(sorted, kind=torch.float32), partial(sorted, kind=torch.float64))], ids=["closure", "instance", "enum", "complex", "slice", "pattern", "enclosed array", "enclosed type", "enclosed tensor", "enclosed network", "enclosed table", "partial of a closure", "partial of a type"])
def test_objects_of_a_table_are_told_apart(one, other):
    assert put_in_words(one, set()) == put_in_words(one, set()) != put_in_words(other, set())


@pytest.mark.parametrize("value", [np.random.default_rng(0), np.random.RandomState(0), (k for k in ()), np], ids=["generator", "state", "iterator", "module"])
def test_nothing_is_told_by_where_it_lies(value):
    "An address is another one in each process, and the folder of a module on each machine: a value would be of other code each time."
    assert not re.search("0x|/", put_in_words(made_by(value), set()))


def test_two_functions_without_a_name_are_two():
    def of(first): return reach(Code({"mixrepro.a": f"T = [lambda v: {first},\n     lambda v: 4]"}), ["mixrepro.a:<lambda> 1", "mixrepro.a:<lambda> 2"])
    assert of(3).name == of(3).name != of(5).name


def test_what_a_definition_refuses_is_read_once():
    "Each page asks for most of them."
    where = "mixrepro.files:sha256"
    assert CODE.refusal(where) is CODE.refusal(where) and CODE.refusal(where).digest != CODE.definition(where).digest
