"""A call of ours to what is deprecated is an error; what libraries call of each other is their affair.

Most libraries warn from a line of their own, so the module that a warning is attributed to does not tell who called.
These filters look up the stack instead: past Python's own modules and past the library that warns, the first frame is
the caller's. Ours are the package, the tests, the cells of a notebook, `python -c`.
"""

import linecache
import os
import re
import sys
import warnings


def owner(frame) -> str:
    "Whose code a frame runs: 'ours', the name of an installed package, or '' for Python's own and what was generated."
    name = frame.f_globals.get("__name__") or ""
    root = name.partition(".")[0]
    file = frame.f_globals.get("__file__") or getattr(sys.modules.get(name), "__file__", None)
    if root == "mixrepro": return "ours"
    if not root or root in sys.stdlib_module_names: return ""
    if not file: return "ours" if root == "__main__" else root
    installed = file.startswith(sys.prefix + os.sep) or {"site-packages", "dist-packages"} & set(file.split(os.sep))
    return root if installed else "ours"


def warns(frame) -> bool:
    "Whether the line that a frame is at warns by itself, and not something that it calls, such as a function in C."
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return "warn" in line or not line


class Caller:
    "Stands where a filter has the name of a module: matches where the deprecated thing is called by us."

    pattern = r"mixrepro(\.|$)"  # as a filter of text: scikit-learn builds such for what it runs in parallel

    def match(self, module: str) -> bool:
        if re.match(self.pattern, module): return True
        frame, library = sys._getframe(1), ""
        while frame:
            who = owner(frame)
            if who == "ours": return True
            if who and library != who:
                if library or not warns(frame): return False
                library = who
            frame = frame.f_back
        return False


KINDS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
FORK = re.compile("(?s).*multi-threaded, use of fork")  # tests fork on purpose
FILTERS = [("ignore", FORK, DeprecationWarning, None, 0),
           *(("error", None, kind, Caller(), 0) for kind in KINDS),
           ("error", re.compile("(?is).*deprecat"), Warning, Caller(), 0)]


def install():
    "Before all other filters, for this process or until the `catch_warnings` around it ends."
    warnings.filters[:] = FILTERS + [f for f in warnings.filters if f not in FILTERS]  # a child has them already, behind pytest's
    warnings.simplefilter("default", append=True)  # changes nothing, but Python forgets what it has warned of already
