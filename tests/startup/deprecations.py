"""A call of ours to what is deprecated is an error; what libraries call of each other is their affair.

Most libraries warn from a line of their own, so that the module a warning is attributed to does not tell who called. These filters look up the stack instead:
past the library that warns and past Python's own modules, the first frame is the caller's. Ours are the package, the tests, the cells of a notebook, `python -c`.
"""

import os
import re
import sys
import warnings


def owner(frame) -> str:
    "Whose code a frame runs: 'ours', the name of an installed package, or '' for Python's own and for code that was generated."
    name = frame.f_globals.get("__name__") or ""
    root, file = name.partition(".")[0], frame.f_globals.get("__file__") or getattr(sys.modules.get(name), "__file__", None)
    if root == "mixrepro": return "ours"
    if not root or root in sys.stdlib_module_names: return ""
    if not file: return "ours" if root == "__main__" else root
    return root if file.startswith(sys.prefix + os.sep) or {"site-packages", "dist-packages"} & set(file.split(os.sep)) else "ours"


class Caller:
    "Stands where a filter has the name of a module: matches where the deprecated thing is called by us."
    def match(self, module: str) -> bool:
        if module.partition(".")[0] == "mixrepro": return True
        frame, library = sys._getframe(1), ""
        while frame:
            who = owner(frame)
            if who == "ours": return True
            if library and who and who != library: return False
            library, frame = library or who, frame.f_back
        return False


KINDS = ((None, DeprecationWarning), (None, PendingDeprecationWarning), (None, FutureWarning), (re.compile("(?is).*deprecat"), Warning))
FILTERS = [("error", message, category, Caller(), 0) for message, category in KINDS]


def install():
    "Before all other filters, for this process or until the `catch_warnings` around it ends."
    warnings.filters[:0] = [f for f in FILTERS if f not in warnings.filters]
    warnings.simplefilter("default", append=True)  # changes nothing, but Python forgets what it has warned of already
