"A deprecated call of ours fails: in the package, in a test, in a cell and what a cell calls; one between libraries does not."

import os
import subprocess
import sys
import types
import warnings
from pathlib import Path

import nbformat
import numpy as np
import pytest

from conftest import ROOT

LIBRARY = '''
import functools, warnings

def old(kind=DeprecationWarning, words="old is deprecated: use new", level=1):
    warnings.warn(words, kind, stacklevel=level)
def decorated(f):
    @functools.wraps(f)
    def call(*args): warnings.warn("this is deprecated", FutureWarning); return f(*args)
    return call
marked = decorated(lambda: 3)
'''


def module(name: str, source: str, file: Path) -> types.ModuleType:
    "A module as if it had been imported from a file."
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    made = types.ModuleType(name)
    made.__file__ = str(file)
    exec(compile(source, str(file), "exec"), made.__dict__)
    return made


@pytest.fixture
def library(tmp_path): return module("somelib", LIBRARY, tmp_path / "site-packages/somelib.py")


@pytest.mark.parametrize("name, file", [("mixrepro.data.x", "site-packages/mixrepro/data/x.py"), ("test_x", "tests/test_x.py"),
                                        ("another", "project/another.py")])
def test_ours_is_an_error(library, tmp_path, name, file):
    "Whatever line the warning is attributed to, most often the library's own."
    ours = module(name, "def call(*a): return f(*a)", tmp_path / file)
    ours.f = library.old
    for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, UserWarning):
        for level in (1, 2):
            with pytest.raises(kind, match="old is deprecated"): ours.call(kind, "old is deprecated: use new", level)
    with pytest.raises(FutureWarning, match="will change"): ours.call(FutureWarning, "the default will change")
    ours.f = library.marked
    with pytest.raises(FutureWarning): ours.call()
    with pytest.warns(UserWarning, match="look out"): library.old(UserWarning, "look out")


def test_a_call_through_pythons_own_modules_is_still_ours(library):
    from concurrent.futures import ThreadPoolExecutor
    source = "import contextlib, warnings\n@contextlib.contextmanager\ndef old():\n    warnings.warn('old', DeprecationWarning)\n    yield"
    made = module("somelib", source, Path(library.__file__).with_name("other.py"))
    with pytest.raises(DeprecationWarning), made.old(): pass
    with ThreadPoolExecutor(1) as pool, pytest.raises(DeprecationWarning): pool.submit(lambda: library.old()).result()


def test_theirs_is_let_pass(library, tmp_path):
    "A library that calls another's deprecated function, however we came to call the first."
    middle = module("otherlib", "def f(*a): return old(*a)", tmp_path / "site-packages/otherlib.py")
    middle.old = library.old
    for kind in (DeprecationWarning, PendingDeprecationWarning): middle.f(kind)
    ours = module("mixrepro.x", "def call(): return f()", tmp_path / "mixrepro/x.py")
    ours.f = middle.f
    ours.call()


class Old:
    def __array__(self, dtype=None): return np.zeros(2)


def test_a_warning_from_c_belongs_to_who_called(tmp_path):
    "NumPy's, which has no Python frame of its own: ours to mend where we call it, a library's where it does."
    with pytest.raises(DeprecationWarning, match="copy"): np.array(Old(), copy=True)
    source = "import numpy\ndef made(x): return numpy.array(x, copy=True)"
    theirs = module("somelib", source, tmp_path / "site-packages/somelib.py")
    assert (theirs.made(Old()) == 0).all()


def test_scikit_learn_may_rebuild_the_filters_for_what_it_runs_in_parallel(library):
    from sklearn.utils.parallel import Parallel, delayed
    assert Parallel(n_jobs=2, prefer="threads")(delayed(abs)(x) for x in (-1, 2)) == [1, 2]


def test_it_is_in_force_where_a_test_records_warnings(library):
    with warnings.catch_warnings(record=True), pytest.raises(DeprecationWarning): library.old()
    with warnings.catch_warnings(action="ignore"): library.old()  # who says so may


CELLS = {"fine": ("import somelib, exported", "assert exported.fine() == 3"), "cell": ("import somelib", "somelib.old()"),
         "function": ("import exported", "def outer(): return exported.stale()", "outer()")}


def project(folder: Path) -> Path:
    "A project of nbdev's with one exported module, a library beside it and three notebooks."
    for name in ("site-packages", "nbs"): (folder / name).mkdir()
    (folder / "site-packages/somelib.py").write_text(LIBRARY)
    (folder / "exported.py").write_text("import somelib\n\ndef fine(): return 3\n\ndef stale(): return somelib.old()\n")
    (folder / "settings.ini").write_text((ROOT / "settings.ini").read_text().replace("lib_path = mixrepro", "lib_path = ."))
    kernel = dict(kernelspec=dict(name="python3", display_name="Python 3", language="python"))
    for name, cells in CELLS.items():
        nb = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)), metadata=kernel)
        nbformat.write(nb, folder / f"nbs/{name}.ipynb")
    return folder


def said(folder: Path, *command: str) -> tuple[int, str]:
    path = os.pathsep.join([str(folder), str(folder / "site-packages"), os.environ["PYTHONPATH"]])
    done = subprocess.run([Path(sys.executable).with_name(command[0]), *command[1:]], cwd=folder,
                          env=os.environ | dict(PYTHONPATH=path), capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["cell", "function"])
def test_a_notebook_fails_in_the_workflow(tmp_path, name):
    "papermill, in a kernel of a process of its own; that good notebooks run there is what test_workflow.py shows."
    code, text = said(project(tmp_path), "papermill", f"nbs/{name}.ipynb", "out.ipynb", "--no-progress-bar")
    assert code and "DeprecationWarning: old is deprecated: use new" in text, text[-3000:]


def test_a_notebook_fails_in_nbdev_test(tmp_path):
    code, text = said(project(tmp_path), "nbdev_test", "--path", "nbs", "--n_workers", "0")
    named = text.lower().split("failed on the following")[-1]
    assert code and [n for n in CELLS if f"{n}.ipynb" in named] == ["cell", "function"], text[-3000:]
    assert text.count("DeprecationWarning: old is deprecated: use new") >= 2
