"""Execute artefacts' notebooks at smoke scale, each in a fork of one process that has imported everything: a start of a kernel costs more than the notebook."""

import gc
import os
import sys
import traceback
from functools import cache
from pathlib import Path

import execnb.shell
import matplotlib
import nbformat
import papermill
import statsmodels.stats.multitest  # noqa: F401  slow to import, and most artefacts need it
import tabulate  # noqa: F401
import torch
from execnb.shell import CaptureShell
from papermill.engines import Engine, papermill_engines

from mixrepro.data.corruptions import CORRUPTIONS, corrupt
from mixrepro.data.datasets import load
from mixrepro.metrics.catalogue import read_ahead
from mixrepro.papers.catalogue import ARTEFACTS, find
from mixrepro.workflow import study

execnb.shell.set_matplotlib_formats = None  # what is published is drawn; shown in the notebook it would be drawn three times more


def stored(output: dict) -> dict:
    "An output as nbformat keeps it: texts whole."
    def whole(text): return "".join(text) if isinstance(text, list) else text
    if "text" in output: return output | dict(text=whole(output["text"]))
    return output | dict(data={kind: whole(v) for kind, v in output["data"].items()}) if "data" in output else output


class Here(Engine):
    "Cells run in this process."
    @classmethod
    def execute_managed_notebook(cls, manager, kernel_name, **_):
        shell = CaptureShell()
        for cell in manager.nb.cells:  # papermill's own bookkeeping would write the notebook before and after each
            if cell.cell_type != "code": continue
            cell.outputs = [nbformat.from_dict(stored(o)) for o in shell.run(cell.source)]
            if shell.exc: raise shell.exc


def named_once(networks):
    "The names of some cells' networks, found once for the same list."
    known = {}  # with the list, so that no other takes its place

    def names(cells):
        if id(cells) not in known: known[id(cells)] = cells, networks(cells)
        return known[id(cells)][1]
    return names


def told(asked: str) -> tuple[str, int]:
    "An artefact's id, and the number of its seeds; 0 for as many as the scale says."
    id, _, seeds = asked.partition("=")
    return id, int(seeds or 0)


def drawn(asked: str) -> int:  # an artefact's id, or with the number of its seeds: mm-fig1=1
    "Execute one notebook in a fork; its exit status."
    id, seeds = told(asked)
    if (child := os.fork()): return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        notebook = find(id).notebook
        papermill.execute_notebook(notebook, f"runs/.workflow/notebooks/smoke-{id}.ipynb", dict(profile="smoke") | ({"seeds": seeds} if seeds else {}), engine_name="here", progress_bar=False)
    except BaseException:
        print(f"{id}:\n{traceback.format_exc()[-3000:]}", file=sys.stderr, flush=True)
        os._exit(1)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    papermill_engines.register("here", Here)
    matplotlib.use("agg")
    for kind in CORRUPTIONS:  # the tables of the noises and the frost's textures: once, not in each fork
        for severity in range(1, 6): corrupt(load("digits-few", "test").x[:1], kind, severity)
    torch.optim.Adam([torch.zeros(1)])  # the first optimizer imports torch's compiler: once, not in each fork
    read_ahead()
    study.cells = cache(study.cells)  # each page asks of which others' networks it is drawn
    study.networks = named_once(study.networks)
    for a in ARTEFACTS.values(): study.networks(study.cells(a, "smoke", 1))
    CaptureShell()
    nbformat.validate(nbformat.v4.new_notebook())  # compiles the schema
    gc.freeze()  # what is loaded by now is not looked through by any fork
    Path("runs/.workflow/notebooks").mkdir(parents=True, exist_ok=True)
    if failed := [id for id in sys.argv[1:] if drawn(id)]: sys.exit(f"failed: {' '.join(failed)}")
