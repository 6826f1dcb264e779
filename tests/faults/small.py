"""A small reproduction for the campaign of faults: runs that need another, a split of their own, metrics, a computed value, a figure.

It is made by the package's own parts. Only Snakemake, papermill and the kernel are left out (`reproduce` stands in for them, with the same plans and
stamps): a start of them costs more than all the rest. `engine` has the real ones make the same.
"""

import gc
import hashlib
import io
import json
import os
import signal
import sys
import tempfile
from pathlib import Path

import matplotlib
import pandas as pd
import safetensors.torch

from mixrepro import cli
from mixrepro.data.datasets import load
from mixrepro.data.splits import write_split
from mixrepro.files import home, write_atomic, write_if_changed
from mixrepro.metrics.catalogue import measure
from mixrepro.repro.figures import save, use_style
from mixrepro.training.computed import Computation, computed
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, name_of, to_json
from mixrepro.training.store import Store, history, kept, kept_arrays
from mixrepro.workflow import jobs as workflow
from mixrepro.workflow.drawn import altered_since, note

FEW = dict(network="tiny-cnn", epochs=3, n_train=60, augment="crop", batch=30)
SPECS = [Spec("digits", "mixup", **FEW), Spec("digits", "erm", **FEW | dict(n_train=0), split="digits-lmine"),
         Spec("digits", "varmixup", **FEW | dict(epochs=1), method_args=dict(vae_network="vae-small", vae_epochs=1))]
METRICS = ("clean", "fgsm-pixels-on-50")
NAME, FOLDER = "smoke-small", "figures/smoke/small"
OUTPUTS = [f"{FOLDER}/small.{end}" for end in ("svg", "png", "csv", "md")]
STAMP, GROUP = f"{workflow.WORK}/drawn/{NAME}", f"{workflow.WORK}/stamps/small"


def settle(base: Path) -> Path:
    "A project's folder with nothing made in it: the split, and the notebooks' place."
    (base / "nbs" / "training").mkdir(parents=True)
    (base / "nbs" / "training" / "train.ipynb").write_text("{}")
    (base / "settings.ini").write_text("")
    write_split("digits", load("digits", "train").y, 50, 1, root=base / "data").rename(base / "data/splits/digits-lmine.json")
    return base


def inside(base: Path):
    "This process works in a project, as a person would who changed into it."
    os.chdir(base)
    os.environ.update(MIXREPRO_HOME=str(base), MIXREPRO_DATA=str(base / "data"))


def warm(base: Path):
    "This process imports and reads all that its forks would import and read again, each for itself."
    before, cwd = dict(os.environ), os.getcwd()
    try:
        inside(settle(base))
        reproduce()
    finally:
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(before)
    gc.collect()
    gc.freeze()


def every() -> list[Spec]: return [s for spec in SPECS for s in (*spec.needs.values(), spec)]


def sum_of_squares(): return dict(sum=sum(k * k for k in range(100)))


def draw():
    "What a notebook of an artefact does: runs, metrics and a computed value in, a picture, a table and a page out."
    store, base = Store(), home()
    runs = [train_run(spec, store, "cpu") for spec in SPECS]
    clean, struck = (measure(runs, name, "cpu") for name in METRICS)
    more = computed("squares", dict(n=100), sum_of_squares, store)
    table = pd.DataFrame([dict(method=r.spec.method, accuracy=c["accuracy"], attacked=json.dumps(l, sort_keys=True), loss=history(r)[-1]["loss"],
                               squares=more["sum"]) for r, c, l in zip(runs, clean, struck)])
    use_style()
    fig = matplotlib.figure.Figure(figsize=(2, 1.5))
    fig.subplots().plot(table.accuracy)
    note(base, NAME, save(fig, table, table.to_markdown(index=False), base / FOLDER, "small", ("svg", "png", "csv", "md")), runs)


def plan(base: Path) -> dict:
    "As `mixrepro.workflow.jobs.jobs` writes it down."
    write_if_changed(base / workflow.WORK / "plans/small.json", json.dumps([to_json(s) for s in every()]))
    return dict(profile="smoke", groups=dict(small=dict(needs=[], title="small", stamp=GROUP, made_of="training")),
                artefacts=dict(small=dict(stamp=STAMP, made_of="drawing", groups=["small"], runs=[*map(name_of, every())], outputs=OUTPUTS, notebook="", paper="", title="", parameters={})))


def reproduce():
    "What `mixrepro reproduce` does, in this process: what has no true stamp is made."
    base = home()
    with workflow.only_one(base):
        todo = plan(base)
        workflow.check_standing(todo, base)
        workflow.forget(todo, base)
        if not (base / GROUP).is_file():
            for spec in every(): train_run(spec, Store(), "cpu")
            write_atomic(base / GROUP, "training")
        if not (base / STAMP).is_file():
            draw()
            write_atomic(base / STAMP, "drawing")


def look(base: Path) -> dict[str, str]:
    "What a reader is given, as digests: of what is not there, or is set aside as it is read, nothing."
    store, found = Store(base / "runs"), {}
    def tell(name, what): found[name] = hashlib.sha256(what if isinstance(what, bytes) else json.dumps(what, sort_keys=True).encode()).hexdigest()
    for run in map(store.run, every()):
        if not run.done: continue
        tell(f"{run} weights", (run.folder / "weights.safetensors").read_bytes())
        tell(f"{run} history", [{k: v for k, v in row.items() if k != "seconds"} for row in history(run)])
        tell(f"{run} spec", json.loads((run.folder / "spec.json").read_text())["spec"])
        for name in METRICS:
            if (value := kept(run, name)) is not None: tell(f"{run} {name}", value)
        if arrays := kept_arrays(run, "logits"): tell(f"{run} logits", safetensors.torch.save(arrays))
    for at in sorted((base / "runs/computed").glob("*-????????????")):
        if value := kept(Computation(at), "value"): tell("computed", value)
    if not altered_since(base, NAME):
        for f in OUTPUTS:
            if (base / f).is_file(): tell(Path(f).name, (base / f).read_bytes())
    return found


def standing(base: Path) -> dict[str, tuple]:
    "Of each run that is done, what tells whether it was trained again."
    def place(f): return f.stat().st_ino, f.stat().st_mtime_ns
    return {str(r): place(r.folder / "weights.safetensors") for r in map(Store(base / "runs").run, every()) if r.done}


class Apart:
    "A call in a fork of this process, in a project's folder, that ends as the command line ends: a refusal is one sentence."

    def __init__(self, call, *args, base: Path, limit: float = 200., **env):
        self.out = tempfile.TemporaryFile("w+")
        if (pid := os.fork()):
            self.pid = pid
            return
        try:
            for number in (1, 2): os.dup2(self.out.fileno(), number)
            sys.stdout, sys.stderr = (io.TextIOWrapper(os.fdopen(n, "wb", closefd=False), line_buffering=True) for n in (1, 2))
            sys.__stdout__ = sys.stdout
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.alarm(int(limit))
            inside(base)
            os.environ.update(env)
            cli.app = lambda **_: call(*args)
            try: cli.main()
            except SystemExit as e: os._exit(e.code or 0)
        finally: os._exit(99)

    def ended(self) -> tuple[int, str]:  # exit code, negative for a signal; all that was said
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        self.out.seek(0)
        return code, self.out.read()


def apart(call, *args, base: Path, **env) -> tuple[int, str]: return Apart(call, *args, base=base, **env).ended()


def files(base: Path) -> list[Path]:
    "Every kind of file that a reproduction leaves, one of each: of the run whose others need it, of the drawing."
    run = Store(base / "runs").run(SPECS[0]).folder
    at = next((base / "runs/computed").iterdir())
    code = json.loads((run / "done.json").read_text())["made"]["code"]
    return [*(run / f for f in ("spec.json", "history.csv", "weights.safetensors", "environment.json", "done.json")),
            run / "metrics/clean.json", run / "metrics/fgsm-pixels-on-50.json", run / "metrics/logits.safetensors", at / "metrics/value.json",
            base / f"runs/.code/{code}.json", *(base / f for f in OUTPUTS), base / workflow.WORK / f"read/{NAME}.json", base / STAMP, base / GROUP,
            base / workflow.WORK / "plans/small.json", base / "data/splits/digits-lmine.json"]
