"""The campaign of faults: each is done to a copy of a small reproduction, and afterwards every result is what it is in an undisturbed store.

`make faults` runs it. A result that is missing in the end, or a run that stood and was trained again, is lost; a result that is shown at any time and is
another than the undisturbed one is changed.
"""

import contextlib
import errno
import gzip
import io
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from scipy.io import savemat

import small
from campaign import Campaign, read
from conftest import COMMAND, ROOT, mixrepro_here, sentence
from mixrepro import fingerprint
from mixrepro.data.datasets import load
from mixrepro.data.splits import write_split
from mixrepro.download import unpack
from mixrepro.files import sha256
from mixrepro.metrics import catalogue
from mixrepro.training import loop, made
from mixrepro.training.store import Store
from test_download import BAD, DATA, EVIL, get
from webserver import Web

pytestmark = pytest.mark.faults


@pytest.fixture(scope="session")
def memory():
    "Where all of it lies: in memory, where there is a file system of that kind, for each file is flushed to its disk."
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def tmp_path(memory):
    with tempfile.TemporaryDirectory(dir=memory) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(scope="session")
def campaign(memory, pytestconfig) -> Campaign:
    "The undisturbed store, and at the end the table."
    folder = memory / "undisturbed"
    small.warm(folder / "warm")
    small.settle(folder / "empty")
    shutil.copytree(folder / "empty", folder / "whole")
    for _ in range(2):
        code, said = small.apart(small.reproduce, base=folder / "whole")
        assert code == 0, said
    found = Campaign(folder / "whole", folder / "empty", read(folder / "whole")[0])
    assert len(found.expected) == 26, "weights, history and spec of 4 runs, 3 metrics of 3 of them, a computed value, 4 files of a figure"
    yield found
    pytestconfig.faults_told = [found.total(), *(f"written to {f}" for f in found.write(ROOT / "runs/.workflow"))]


@pytest.fixture
def whole(campaign, tmp_path): return campaign.copy(tmp_path / "project")


@pytest.fixture
def empty(campaign, tmp_path): return campaign.copy(tmp_path / "project", empty=True)


# ---- it is ended ----------------------------------------------------------------------------------------------------

class Steps:
    "Calls of a function of `os` are counted, and something happens at one of them."
    def __init__(self, name: str, at: int, do, after: bool = False):
        real, self.seen = getattr(os, name), 0
        def step(*args, **kw):
            self.seen += 1
            if self.seen == at and not after: do()
            found = real(*args, **kw)
            if self.seen == at and after: do()
            return found
        setattr(os, name, step)


def with_steps(name, at, do, after, call):
    steps = Steps(name, at, do, after)
    call()
    return steps.seen


@pytest.fixture(scope="session")
def renamings(campaign, memory) -> int:
    "How many files a reproduction from nothing writes."
    base = campaign.copy(memory / "count", empty=True)
    code, said = small.apart(lambda: print("steps", with_steps("replace", 0, None, False, small.reproduce)), base=base)
    assert code == 0, said
    return int(said.rsplit("steps", 1)[1])


PARTS = 6  # of a reproduction


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_ended_at_a_renaming(campaign, empty, renamings, part, after, number):
    at = 1 + part * (renamings - 1) // (PARTS - 1)
    def end(): os.kill(os.getpid(), number)
    code, said = small.apart(with_steps, "replace", at, end, after, small.reproduce, base=empty)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[number], said
    lost, changed, more = campaign.heal(empty)
    expect = {signal.SIGTERM: "mixrepro: ended by SIGTERM", signal.SIGINT: "mixrepro: interrupted"}.get(number, "")
    campaign.tell("ended at a renaming", f"{number.name} {'after' if after else 'before'} it", lost, changed, said + more, empty, expect)


@pytest.mark.parametrize("part", range(8))
def test_killed_at_a_moment(campaign, empty, part):
    "By the processor's time, which does not depend on what else the machine does."
    def late():
        def kill(*_): os.kill(os.getpid(), signal.SIGKILL)
        signal.signal(signal.SIGPROF, kill)
        signal.setitimer(signal.ITIMER_PROF, .05 + .12 * part)
        small.reproduce()
        kill()
    code, said = small.apart(late, base=empty)
    assert code == -9, said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("killed at a moment", "SIGKILL", lost, changed, said + more, empty)


# ---- the disk -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails(campaign, empty, renamings, part, call, code):
    "From some step on nothing can be written, to the end of the process; then there is room again."
    at = 1 + part * (renamings - 1) // 3
    def fail(*_, **__): raise OSError(code, os.strerror(code))
    def failing(): setattr(os, call, fail); fail()
    done, said = small.apart(with_steps, call, at, failing, False, small.reproduce, base=empty)
    assert done == 1 and said.count("mixrepro: ") == 1, said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("a disk that fails", f"{errno.errorcode[code]} from a step of {call} on", lost, changed, said + more, empty,
                  "mixrepro: could not write .*; .*what stood there before is unchanged")


@pytest.mark.parametrize("most", [0, 100, 1000, 10_000, 30_000, 100_000])
def test_a_limit_of_the_file_size(campaign, empty, most):
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
        small.reproduce()
    # Its own words go to a file, too.
    done, said = small.apart(limited, base=empty)
    lost, changed, more = campaign.heal(empty)
    campaign.tell("a disk that fails", "a limit of the file size, by the system", lost, changed, said + more, empty)


# ---- files that are not as they were written ------------------------------------------------------------------------

KINDS = ["spec.json", "history.csv", "weights.safetensors", "environment.json", "done.json", "metric", "another metric", "arrays of a metric",
         "computed value", "table of the code", "svg", "png", "csv", "md", "note of what was read", "stamp of a figure", "stamp of runs", "plan", "split"]


def flipped(at):
    def spoil(data):
        k = min(int(at * len(data)), len(data) - 1)
        return data[:k] + bytes([data[k] ^ 1]) + data[k + 1:]
    return spoil


SPOILT = {"a byte at the beginning": flipped(0), "a byte in the middle": flipped(.5), "a byte at the end": flipped(1), "cut in half": lambda d: d[:len(d) // 2],
          "emptied": lambda d: b"", "zeros": lambda d: bytes(len(d)), "more at the end": lambda d: d + b"\n1", "null": lambda d: b"null",
          "a list": lambda d: b"[]", "an object": lambda d: b"{}", "nested deeply": lambda d: b"[" * 100_000, "no text": lambda d: b"\xff\xfe" + d}


@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file(campaign, whole, kind, how):
    "It is read first, or, every other time, reproduced first."
    reader = (KINDS.index(kind) + [*SPOILT].index(how)) % 2 == 0
    path = small.files(whole)[KINDS.index(kind)]
    path.write_bytes(SPOILT[how](path.read_bytes()))
    said = ""
    if kind == "split":  # what a person gave: it is asked for again
        code, said = small.apart(small.draw, base=whole)
        path.write_bytes((campaign.whole / path.relative_to(whole)).read_bytes())
    lost, changed, more = campaign.heal(whole, reader)
    campaign.tell("damaged bytes", f"{kind}: {how}", lost, changed, said + more, whole)


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_a_file_that_is_gone(campaign, whole, kind):
    small.files(whole)[KINDS.index(kind)].unlink()
    lost, changed, said = campaign.heal(whole)
    campaign.tell("gone", kind, lost, changed, said, whole)


@pytest.mark.parametrize("folder", ["runs/digits", "runs/computed", "runs/.code", "runs/.locks", "runs/.workflow", "runs", "figures", small.FOLDER])
def test_a_folder_that_is_gone(campaign, whole, folder):
    shutil.rmtree(whole / folder)
    lost, changed, said = campaign.heal(whole)
    campaign.tell("gone", f"the folder {folder}", lost, changed, said, whole)


# ---- a folder and a file in each other's place, and no right to write ------------------------------------------------

@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_stands_where_a_file_is_wanted(campaign, whole, kind):
    path = small.files(whole)[KINDS.index(kind)]
    kept = path.read_bytes()
    path.unlink()
    path.mkdir()
    _, said = small.apart(small.draw, base=whole)
    if path.is_dir(): path.rmdir()  # as a person does who reads the sentence
    if kind == "split": path.write_bytes(kept)
    lost, changed, more = campaign.heal(whole)
    campaign.tell("a folder where a file is wanted", kind, lost, changed, said + more, whole)


@pytest.mark.parametrize("name", ["runs", "runs/digits", "run", "metrics", "runs/.code", "runs/.locks", "runs/computed", "figures", small.FOLDER,
                                  "runs/.workflow", "runs/.workflow/plans", "runs/.workflow/read", "runs/.workflow/drawn"])
def test_a_file_stands_where_a_folder_is_wanted(campaign, whole, name):
    run = Store(whole / "runs").run(small.SPECS[0]).folder
    path = dict(run=run, metrics=run / "metrics").get(name, whole / name)
    shutil.rmtree(path)
    path.write_text("")
    if name in ("runs/.code", "runs/.locks"): shutil.rmtree(run)  # something has to be written there
    done, said = small.apart(small.reproduce, base=whole)
    if not done: done, said = small.apart(small.draw, base=whole)
    path.unlink()
    lost, changed, more = campaign.heal(whole)
    campaign.tell("a file where a folder is wanted", name, lost, changed, said + more, whole, "mixrepro: (cannot write to|could not write|.Errno 20. Not a directory:) .*")


@pytest.mark.parametrize("name", ["runs", "runs/digits", "run", "runs/.code", "runs/computed", "figures/smoke", "runs/.workflow/plans", "runs/.workflow/read"])
def test_a_folder_that_cannot_be_written(campaign, whole, name):
    "By a user who is not root, for whom nothing is read-only."
    run = Store(whole / "runs").run(small.SPECS[0]).folder
    path = dict(run=run).get(name, whole / name)
    for f in path.iterdir(): shutil.rmtree(f) if f.is_dir() else f.unlink()
    if name == "runs/.code": shutil.rmtree(run)
    for p in [whole, *whole.rglob("*")]: p.chmod(0o777 if p.is_dir() else 0o666)
    path.chmod(0o555)
    def as_nobody():
        if not os.geteuid(): os.seteuid(65534)
        small.reproduce()
        small.draw()
    done, said = small.apart(as_nobody, base=whole)
    path.chmod(0o777)
    assert done == 1, said
    lost, changed, more = campaign.heal(whole)
    campaign.tell("no right to write", name, lost, changed, said + more, whole, "mixrepro: (cannot write to|could not write|.Errno 20. Not a directory:) .*")


# ---- clocks ---------------------------------------------------------------------------------------------------------

YEAR = 365 * 24 * 3600.


@pytest.mark.parametrize("by", [-YEAR, -60., 60., YEAR], ids=lambda by: f"{by:+.0f} s")
@pytest.mark.parametrize("of", ["runs", "figures", "nbs", "data"])
def test_files_of_another_clock(campaign, whole, of, by):
    for f in (whole / of).rglob("*"): os.utime(f, (time.time() + by,) * 2)
    lost, changed, said = campaign.heal(whole)
    assert "made again" not in said
    campaign.tell("a clock", f"all times of {of} {'ahead' if by > 0 else 'behind'}", lost, changed, said, whole)


@pytest.mark.parametrize("by", [-YEAR, YEAR], ids=lambda by: f"{by:+.0f} s")
@pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])
def test_a_process_of_another_clock(campaign, empty, by, half):
    "One node has begun, one whose clock is another goes on."
    if half:
        def end(): os.kill(os.getpid(), signal.SIGKILL)
        small.apart(with_steps, "replace", 20, end, False, small.reproduce, base=empty)
    def late():
        now = time.time
        time.time = lambda: now() + by
        small.reproduce()
        for f in [*empty.rglob("*")]: os.utime(f, (time.time(),) * 2)
    code, said = small.apart(late, base=empty)
    assert code == 0, said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("a clock", f"of a node that {'goes on with' if half else 'makes'} it, {'ahead' if by > 0 else 'behind'}", lost, changed, said + more, empty)


# ---- what it stands in ----------------------------------------------------------------------------------------------

GITS = {"none": None, "one that fails": "exit 3", "one that says other bytes": "printf '\\377\\376'", "one that refuses the owner": "echo dubious >&2; exit 128"}


@pytest.mark.parametrize("git", GITS)
def test_git(campaign, empty, git):
    (empty / ".git").mkdir()
    (empty / "bin").mkdir()
    if GITS[git]: (empty / "bin/git").write_text(f"#!/bin/sh\n{GITS[git]}\n"); (empty / "bin/git").chmod(0o755)
    code, said = small.apart(small.reproduce, base=empty, PATH=str(empty / "bin"))
    assert code == 0, said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("git", git, lost, changed, said + more, empty)


# ---- several at once ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("calls", [("reproduce", "reproduce"), ("draw", "draw"), ("reproduce", "draw"), ("draw", "draw", "draw")], ids="+".join)
@pytest.mark.parametrize("killed", [False, True], ids=["", "one killed"])
def test_several_at_once(campaign, empty, calls, killed):
    several = [small.Apart(getattr(small, c), base=empty) for c in calls]
    if killed: time.sleep(.3); os.kill(several[0].pid, signal.SIGKILL)
    ends = [one.ended() for one in several]
    said = "".join(s for _, s in ends)
    assert all(code == 0 or "another process is reproducing in" in s for code, s in ends[killed:]), said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("several at once", "+".join(calls) + ", one of them killed" * killed, lost, changed, said + more, empty)


# ---- what is another's ----------------------------------------------------------------------------------------------

def stopped(base: Path):
    "The first run, ended in its third epoch."
    real = loop.train_epoch
    def stop(*args):
        if args[-1] == 2: raise SystemExit
        return real(*args)
    loop.train_epoch = stop
    loop.train_run(small.SPECS[0], Store(), "cpu")


def of_another(what: str, base: Path):
    "Put what is another run's in the place of a run's own."
    store = Store(base / "runs")
    mine, other = (store.run(small.SPECS[k]).folder for k in (1, 0))
    if what == "folder": shutil.rmtree(mine); shutil.copytree(other, mine)
    elif what == "checkpoint":
        small.apart(stopped, base, base=base)
        shutil.rmtree(mine, ignore_errors=True); mine.mkdir()
        shutil.copy(other / "checkpoint.pt", mine)
    elif what in ("spec with its sum mended", "spec with its sum and the seal mended"):
        text = (mine / "spec.json").read_text()
        (mine / "spec.json").write_text(text.replace('"epochs": 3', '"epochs": 4'))
        said = json.loads((mine / "done.json").read_text()) | {"spec.json": sha256(mine / "spec.json")}
        (mine / "done.json").write_text(json.dumps(said))
        if "seal" in what: mended(mine / "done.json")
    elif what == "computed value":
        at = next((base / "runs/computed").iterdir())
        kept = at.rename(at.with_name("squares-000000000000"))
        shutil.copytree(kept, at)
    else: shutil.copy(other / what, mine / what)


@pytest.mark.parametrize("what", ["folder", "checkpoint", "spec with its sum mended", "spec with its sum and the seal mended", "computed value", "spec.json", "history.csv",
                                  "weights.safetensors", "done.json", "metrics/clean.json", "metrics/fgsm-pixels-on-50.json", "metrics/logits.safetensors"])
def test_what_is_of_another_run(campaign, whole, what):
    base = whole
    if what == "checkpoint": shutil.rmtree(base / "runs/digits")
    of_another(what, base)
    lost, changed, said = campaign.heal(base, again=what == "checkpoint")
    campaign.tell("copied from another", what, lost, changed, said, base, "is corrupt .* was set aside")


# ---- other code -----------------------------------------------------------------------------------------------------

def edited(module: str, old: str, new: str):
    "The package with another text in some module, as a process that starts later would read it."
    module, was = f"mixrepro.{module}", made.CODE
    assert old in was.texts[module], "the edit fits"
    code = fingerprint.Code(was.texts | {module: was.texts[module].replace(old, new)})
    for m in [*sys.modules.values()]:
        if getattr(m, "CODE", None) is was: m.CODE = code
    for m in (made, catalogue):
        for f in vars(m).values():
            if hasattr(f, "cache_clear") and getattr(f, "__module__", "") == m.__name__: f.cache_clear()


EDITS = {"a constant of the method": ("methods.vicinal", "alpha + 1., dtype", "8 * alpha + 1., dtype", "methods.vicinal.draw_lambda changed"),
         "the loop": ("training.loop", "share = len(index)", "share = 1. * len(index)", "training.loop.train_epoch changed"),
         "a metric": ("methods.attacks", "def slope(", "def slope(more=1, *, ", "methods.attacks.slope changed")}
SAME = {"a docstring": ("training.loop", '"One pass over the training set."', '"A pass."'), "a comment": ("methods.vicinal", "# of the draw; () is", "# () is"),
        "a blank line": ("methods.vicinal", "    g = torch._standard_gamma", "\n    # drawn\n\n    g = torch._standard_gamma")}


@pytest.mark.parametrize("first", ["reproduce", "draw"])
@pytest.mark.parametrize("what", EDITS)
def test_other_code(campaign, whole, what, first):
    "It is named and made again under the other code, and once more under its own."
    def under(): edited(*EDITS[what][:3]); getattr(small, first)(); small.draw()
    code, said = small.apart(under, base=whole)
    assert code == 0 and f"{EDITS[what][3]}, so it is made again" in said, said
    lost, changed, more = campaign.heal(whole, again=True)
    campaign.tell("other code", what, lost, changed, said + more, whole, "so it is made again")
    assert f"{EDITS[what][3]}, so it is made again" in more


@pytest.mark.parametrize("what", EDITS)
@pytest.mark.parametrize("how", ["asked", "as it is"])
def test_other_code_that_is_dear(campaign, whole, what, how):
    def under():
        made.CHEAP = 0.
        edited(*EDITS[what][:3])
        small.draw()
        print(*made.caveats())
    code, said = small.apart(under, base=whole, **{made.WAY: "as-is"} if how == "as it is" else {})
    assert code == (how == "asked") and ("call with --refresh" if code else "Of other code, shown as it is") in said, said
    lost, changed, more = campaign.heal(whole)
    campaign.tell("other code", f"{what}, dear, {how}", lost, changed, said + more, whole, EDITS[what][3])


def test_other_code_whose_table_is_damaged(campaign, whole):
    "What a fingerprint stood for cannot be told any more, but that it is another can."
    for f in (whole / "runs/.code").iterdir(): f.write_text("null")
    def under(): edited(*EDITS["a constant of the method"][:3]); small.draw()
    code, said = small.apart(under, base=whole)
    assert code == 0, said
    lost, changed, more = campaign.heal(whole, again=True)
    campaign.tell("other code", "and its table is damaged", lost, changed, said + more, whole, "its code changed, so it is made again")


@pytest.mark.parametrize("what", SAME)
def test_the_same_code(campaign, whole, what):
    def under(): edited(*SAME[what]); small.reproduce(); small.draw()
    stood = small.standing(whole)
    code, said = small.apart(under, base=whole)
    assert code == 0 and "made again" not in said and small.standing(whole) == stood, said
    lost, changed, more = campaign.heal(whole)
    campaign.tell("other code", f"{what}, which is none", lost, changed, said + more, whole)


def test_another_split_under_its_name(campaign, whole):
    path = whole / "data/splits/digits-lmine.json"
    write_split("digits", load("digits", "train").y, 50, 2, root=whole / "more").replace(path)
    code, said = small.apart(small.draw, base=whole)
    assert code == 0, said
    shutil.copy(campaign.whole / "data/splits/digits-lmine.json", path)
    lost, changed, more = campaign.heal(whole, again=True)
    campaign.tell("other data", "another split under its name", lost, changed, said + more, whole, "the split digits-lmine changed, so it is made again")


# ---- what comes from elsewhere --------------------------------------------------------------------------------------

def bomb(kind: str) -> bytes:
    "An archive of a few kilobytes that unpacks to 1.2 GB."
    if kind == "zip":
        with zipfile.ZipFile(out := io.BytesIO(), "w", zipfile.ZIP_DEFLATED) as z:
            with z.open("set/a.bin", "w", force_zip64=True) as f:
                for _ in range(1200): f.write(bytes(10 ** 6))
        return out.getvalue()
    with tarfile.open(fileobj=(out := io.BytesIO()), mode=f"w:{kind}", **{"preset": 0} if kind == "xz" else {"compresslevel": 1}) as t:
        m = tarfile.TarInfo("set/a.bin"); m.size = 1200 * 10 ** 6
        t.addfile(m, open("/dev/zero", "rb"))
    return out.getvalue()


ARCHIVES = {name: (data, why, "zip" if "zip" in name else "tar.gz" if "gz" in name else "tar") for name, (data, why) in EVIL.items()}


@pytest.mark.parametrize("what", [*ARCHIVES, "bomb.zip", "bomb.gz", "bomb.xz", "bomb.bz2"])
def test_a_hostile_archive(campaign, whole, what):
    "Beside a store, into its folder of data: refused in a sentence, and nothing is left of it."
    kind = what.rpartition(".")[2]
    data, why, end = ARCHIVES.get(what) or (bomb(kind), "unpacks to more than", "zip" if kind == "zip" else f"tar.{kind}")
    (archive := whole / f"set.{end}").write_bytes(data)
    before = {p for p in whole.rglob("*") if p.suffix != ".lock"}
    code, said = small.apart(unpack, archive, whole / "data", {"set": "set"}, base=whole)
    left = {p for p in whole.rglob("*") if p.suffix != ".lock"} - before
    assert code == 1 and said.count("mixrepro: ") == 1 and not left, (said, left)
    lost, changed, more = campaign.heal(whole)
    campaign.tell("a hostile archive", what, lost, changed, said + more, whole, f"mixrepro: .*({why}|could not write)")


@pytest.fixture
def web():
    server = Web({"/set.bin": DATA})
    yield server
    server.close()


MOODS = {f"the line is cut {n} times": [f"cut:{40_000 + 30_000 * k}" for k in range(n)] for n in (1, 2, 3)} | {
    "the line is silent": ["stall:50000"], "busy": [503, (503, "0")], "pays no heed to ranges": ["cut:50000", "ignore"],
    "cut, other bytes, then the file": ["cut:50000", "other"]}


@pytest.mark.parametrize("mood", [*BAD, *MOODS])
def test_a_network(campaign, web, tmp_path, mood):
    "What appears is the file; where it cannot be had nothing appears, and the next call gets it."
    web.moods["/set.bin"], said = list(BAD[mood][0] if mood in BAD else MOODS[mood]), ""
    try: get(web, tmp_path)
    except OSError as e: said = f"mixrepro: {e}"
    assert bool(said) == (mood in BAD)
    there = (tmp_path / "set.bin").exists()
    changed = {"set.bin"} if there and (tmp_path / "set.bin").read_bytes() != DATA else set()
    web.moods = {}
    lost = set() if get(web, tmp_path).read_bytes() == DATA else {"set.bin"}
    campaign.tell("a network", mood, lost, changed, said, tmp_path, f"could not fetch set.bin: 127.0.0.1 {BAD[mood][1]}" if mood in BAD else "")


class Runs:
    "A pickle that runs a command as it is read."
    def __reduce__(self): return os.system, ("touch ran",)


def mat() -> bytes:
    "A MATLAB file of SVHN's form that unpacks to 1.2 GB."
    savemat(out := io.BytesIO(), dict(X=np.zeros((32, 32, 3, 400_000), "u1"), y=np.ones((400_000, 1), "u1")), do_compression=True)
    return out.getvalue()


BATCH, DIGITS = "cifar-10-batches-py/data_batch_1", "mnist/train-images-idx3-ubyte.gz"
READ = {"a pickle that runs a command": (BATCH, lambda: pickle.dumps(Runs()), "cifar10"),
        "a pickle of an array that is not there": (BATCH, lambda: pickle.dumps(dict(data=np.zeros((2, 3072), "u1"), labels=[0])).replace(b"K\x02M\x00\x0c", b"J\x00\x00\x00\x7fM\x00\x0c"), "cifar10"),
        "a pickle nested deeply": (BATCH, lambda: b"(" * 100_000 + b".", "cifar10"),
        "gzip that unpacks to a gigabyte": (DIGITS, lambda: gzip.compress(bytes(10 ** 9), 1), "mnist"),
        "gzip of nothing": (DIGITS, lambda: gzip.compress(b""), "mnist"), "half a gzip": (DIGITS, lambda: gzip.compress(DATA)[:-9], "mnist"),
        "an idx file that claims more": (DIGITS, lambda: gzip.compress(bytes([0, 0, 8, 3]) + b"\xff" * 12), "mnist"),
        "a MATLAB file that unpacks to a gigabyte": ("svhn/train_32x32.mat", mat, "svhn"), "no MATLAB file": ("svhn/train_32x32.mat", lambda: DATA, "svhn")}
MOST = 700 << 20  # bytes that a refusal may take beside what is loaded


@pytest.mark.parametrize("what", READ)
def test_a_hostile_file_of_a_data_set(campaign, whole, what):
    file, content, name = READ[what]
    (path := whole / "data" / file).parent.mkdir(parents=True)
    path.write_bytes(content())
    def reading():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try: load(name, "train")
        finally: print("took", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10)
    code, said = small.apart(reading, base=whole)
    assert code == 1 and said.count("mixrepro: ") == 1 and not (whole / "ran").exists(), said
    assert int(re.search(r"took (\d+)", said)[1]) < MOST, said
    lost, changed, more = campaign.heal(whole)
    campaign.tell("a hostile file", what, lost, changed, said + more, whole, "mixrepro: .*" + path.name)


NAMES = [("show", "../../x"), ("reproduce", "{x}$(touch ran)"), ("reproduce", "vm-fig2", "--profile", "../smoke"), ("show", "\udcff"), ("reproduce", "-p", "a\nb"),
         ("reproduce", "vm-fig2", "-p", "seeds=" + "9" * 5000), ("reproduce", "vm-fig2", "-p", "seeds=1e999"), ("data", "get", "../x"), ("data", "verify", "/etc/passwd"),
         ("data", "get", "openml:-1"), ("data", "make", "../x"), ("data", "split", "digits", "--labelled", "-5"), ("reproduce", "--minutes", "nan"), ("bench", "../x")]


@pytest.mark.parametrize("args", NAMES, ids=lambda a: " ".join(a)[:40].encode("ascii", "backslashreplace").decode())
def test_a_hostile_name(campaign, whole, args):
    shutil.rmtree(whole / "nbs")
    shutil.copytree(ROOT / "nbs", whole / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    before = {p for p in whole.rglob("*") if p.suffix != ".lock" and p.name != "lock"}
    done = mixrepro_here(*args, cwd=whole, MIXREPRO_DATA=str(whole / "data"))
    said = sentence(done)
    assert not {p for p in whole.rglob("*") if p.suffix != ".lock" and p.name != "lock"} - before
    lost, changed, more = campaign.heal(whole)
    campaign.tell("a hostile name", " ".join(args)[:60].encode("ascii", "backslashreplace").decode(), lost, changed, said + more, whole, "mixrepro: ")


# ---- the real engine ------------------------------------------------------------------------------------------------

ID = "mm-theorem1"
CELL = """import os, sys
from pathlib import Path
sys.path[:0] = {paths!r}
import small
from mixrepro.files import home, write_together
os.environ["MIXREPRO_DATA"] = str(home() / "data")
{before}
small.draw()
write_together({{home() / "figures/smoke/manifold_mixup" / f"{id}.{{end}}": "drawn" for end in ("svg", "png", "csv", "md")}})"""


def by_the_engine(base: Path, before: str = "") -> Path:
    "A clone of the notebooks whose one artefact makes the small reproduction."
    shutil.rmtree(base / "nbs")
    shutil.copytree(ROOT / "nbs", base / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    code = CELL.format(paths=[str(Path(__file__).parent), str(ROOT / "tests")], before=before, id=ID)
    cells = [nbformat.v4.new_code_cell('profile: str = "smoke"'), nbformat.v4.new_code_cell(code)]
    cells[0].metadata["tags"] = ["parameters"]
    about = dict(kernelspec=dict(name="python3", language="python", display_name="python3"))
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), base / f"nbs/manifold_mixup/{ID}.ipynb")
    return base


FORKS = "import sys; from mixrepro.workflow import warm; warm.ENOUGH = 1; from mixrepro.cli import main; sys.argv[0] = 'mixrepro'; sys.exit(main())"


def started(base: Path, forked: bool = False, **env) -> subprocess.Popen:
    "A reproduction; its kernel is a fork of a process that has imported already, or one of its own."
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"} | env
    def hears():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the campaign may have been begun by nohup
    command = [sys.executable, "-c", FORKS] if forked else [COMMAND]
    return subprocess.Popen([*command, "reproduce", ID, "--profile", "smoke"], cwd=base, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True, preexec_fn=hears)


def own(base: Path) -> list:
    "The processes that work in a project."
    def there(p):
        with contextlib.suppress(psutil.Error): return p.cwd() == str(base) and p.pid != os.getpid()
    return [p for p in psutil.process_iter() if there(p)]


KERNEL = json.dumps(dict(argv=["/nowhere/python", "-f", "{connection_file}"], display_name="x", language="python"))
AROUND = {"no kernel": dict(JUPYTER_PATH="jupyter"), "a foreign MPLBACKEND": dict(MPLBACKEND="TkAgg"), "a HOME that cannot be written": dict(HOME="/dev/null/x", XDG_CACHE_HOME=""),
          "no folder for temporary files": dict(TMPDIR="/dev/null/x"), "a terminal of ASCII alone": dict(LC_ALL="C", PYTHONIOENCODING="ascii"), "no git": {}}


@pytest.mark.parametrize("forked", [False, True], ids=["", "forked"])
@pytest.mark.parametrize("what", AROUND)
def test_the_engine_in_odd_surroundings(campaign, empty, what, forked):
    (empty / "jupyter/kernels/python3").mkdir(parents=True)
    (empty / "jupyter/kernels/python3/kernel.json").write_text(KERNEL)
    env = {k: v.replace("jupyter", str(empty / "jupyter")) for k, v in AROUND[what].items()}
    if what == "no git":
        (empty / ".git").mkdir()
        (empty / "bin").mkdir()
        for tool in ("bash", "sh", "touch", "mkdir", "rm", "grep", "printf"): (empty / "bin" / tool).symlink_to(shutil.which(tool))
        env = dict(PATH=str(empty / "bin"))
    one = started(by_the_engine(empty), forked, **env)
    said = one.communicate(timeout=400)[0]
    assert one.returncode == 0, said
    lost, changed, more = campaign.heal(empty)
    campaign.tell("the engine's surroundings", what + ", a forked kernel" * forked, lost, changed, said + more, empty)


STOPS = "import signal\nreal, left = os.replace, [{at}]\ndef stop(*args):\n    left[0] -= 1\n    if not left[0]: open('begun', 'w').close(); {do}\n    real(*args)\nos.replace = stop"
PAUSE = "__import__('time').sleep(600)"


SIGNALS = dict(SIGTERM="mixrepro: ended by SIGTERM", SIGHUP="mixrepro: ended by SIGHUP", SIGINT="mixrepro: interrupted")
ENDS = [("SIGKILL of all", 20), ("SIGKILL of mixrepro", 9), ("SIGTERM", 14), ("SIGINT", 30), ("SIGHUP", 17), ("the kernel is killed", 25)]


@pytest.mark.parametrize("forked", [False, True], ids=["", "forked"])
@pytest.mark.parametrize("what, at", ENDS)
def test_the_engine_is_ended(campaign, empty, what, at, forked):
    "At a renaming inside the kernel; nothing works on, and the same command goes on."
    do = "os.kill(os.getpid(), signal.SIGKILL)" if "kernel" in what else PAUSE
    one = started(by_the_engine(empty, STOPS.format(at=at, do=do)), forked)
    while not (empty / "begun").exists(): assert one.poll() is None, one.stdout.read(); time.sleep(.05)
    if what == "SIGKILL of all":
        for p in own(empty): p.kill()
    elif what == "SIGKILL of mixrepro": one.kill()
    elif what in SIGNALS: os.kill(one.pid, getattr(signal, what))
    said = one.communicate(timeout=400)[0]
    until = time.time() + 60
    while own(empty) and time.time() < until: time.sleep(.1)
    assert not own(empty) and one.returncode, said
    one = started(by_the_engine(empty), forked)
    more = one.communicate(timeout=400)[0]
    assert one.returncode == 0, more
    lost, changed, healed = campaign.heal(empty)
    expect = SIGNALS.get(what, "mixrepro: .*its kernel died" if "kernel" in what else "")
    campaign.tell("the engine is ended", what + ", a forked kernel" * forked, lost, changed, said + healed, empty, expect)


# ---- the campaign itself --------------------------------------------------------------------------------------------

def mended(path: Path, **changed):
    "The JSON of a run's done.json with other entries and the sum that fits them."
    said = json.loads(path.read_text()) | changed
    said.pop("sealed")
    path.write_text(json.dumps(said | dict(sealed=sha256(json.dumps(said, sort_keys=True).encode()))))


def test_what_is_planted_is_seen(campaign, whole, monkeypatch):
    "A campaign that cannot fail says nothing: weights that changed with all their sums mended, a run trained again, a result that never comes back."
    run = Store(whole / "runs").run(small.SPECS[0])
    data = (run.folder / "weights.safetensors").read_bytes()
    (run.folder / "weights.safetensors").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    mended(run.folder / "done.json", **{"weights.safetensors": sha256(run.folder / "weights.safetensors")})
    lost, changed, _ = campaign.heal(whole)
    assert f"{run} weights" in changed and not lost
    monkeypatch.setattr(small, "reproduce", lambda: shutil.rmtree(run.folder))
    lost, _, _ = campaign.heal(whole)
    assert f"{run} (trained again)" in lost
    monkeypatch.setattr(small, "draw", lambda: None)
    lost, _, _ = campaign.heal(whole)
    assert f"{run} weights" in lost
    trial = Campaign(campaign.whole, campaign.empty, campaign.expected)
    with pytest.raises(AssertionError): trial.tell("planted", "a loss", {"a"}, set(), "", whole)
    with pytest.raises(AssertionError): trial.tell("planted", "a change", set(), {"a"}, "", whole)
    with pytest.raises(AssertionError): trial.tell("planted", "silence", set(), set(), "", whole, "a sentence")
    assert trial.total() == "3 faults of 1 kinds: 1 results lost, 1 changed"
