"""The campaign of faults: each is done to a copy of a small reproduction, and afterwards every result is what it is in an undisturbed store.

`make faults` runs it. A result that is missing in the end, or a run that stood and was trained again, is lost; a result that is shown at any time and is
another than the undisturbed one is changed.
"""

import errno
import os
import resource
import shutil
import signal
import sys

import pytest

import small
from campaign import Campaign, read
from conftest import ROOT
from mixrepro.training.store import Store

pytestmark = pytest.mark.faults


@pytest.fixture(scope="session")
def campaign(tmp_path_factory, pytestconfig) -> Campaign:
    "The undisturbed store, and at the end the table."
    folder = tmp_path_factory.mktemp("undisturbed")
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
def renamings(campaign, tmp_path_factory) -> int:
    "How many files a reproduction from nothing writes."
    base = campaign.copy(tmp_path_factory.mktemp("count") / "project", empty=True)
    code, said = small.apart(lambda: print("steps", with_steps("replace", 0, None, False, small.reproduce)), base=base)
    assert code == 0, said
    return int(said.rsplit("steps", 1)[1])


PARTS = 12  # of a reproduction


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

@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("call", ["fsync", "replace"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO], ids=errno.errorcode.get)
def test_a_disk_that_fails(campaign, empty, renamings, part, call, code):
    "From some step on nothing can be written, to the end of the process; then there is room again."
    at = 1 + part * (renamings - 1) // 5
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


@pytest.mark.parametrize("reader", [True, False], ids=["read", "reproduced"])
@pytest.mark.parametrize("how", SPOILT)
@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file(campaign, whole, kind, how, reader):
    "It is read first, or reproduced first."
    path = small.files(whole)[KINDS.index(kind)]
    path.write_bytes(SPOILT[how](path.read_bytes()))
    if kind == "split":
        code, said = small.apart(small.draw, base=whole)
        shutil.copy(campaign.whole / path.relative_to(whole), path)  # as the sentence asks for
    else: said = ""
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


# ---- the campaign itself --------------------------------------------------------------------------------------------

def test_a_planted_loss_is_seen(campaign, whole, monkeypatch):
    "A campaign that cannot fail says nothing: weights that changed with their sums mended, a result that never comes back, a run trained again."
    run = Store(whole / "runs").run(small.SPECS[0])
    before, stood = read(whole)[0], small.standing(whole)
    assert before == campaign.expected
