"A value is computed once, by one process, and a torn or changed file is never read as a result."

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mixrepro.training.computed import Computation, computed
from mixrepro.training.store import Store, as_read, keep, kept, working_on

def test_two_that_ask_at_once_share_one_computation(tmp_path, capsys):
    calls, answers, store = [], [], Store(tmp_path)
    def work(): calls.append(1); time.sleep(.2); return dict(pid=[1.5])
    both = [threading.Thread(target=lambda: answers.append(computed("shared", dict(a=1), work, store))) for _ in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert answers == [dict(pid=[1.5])] * 2 and len(calls) == 1
    assert "another process is working on computed/shared-" in capsys.readouterr().out


def test_what_was_killed_is_computed_again(tmp_path):
    code = "import os, sys\nfrom mixrepro.training.computed import computed\nfrom mixrepro.training.store import Store\n" \
           "computed('shared', dict(a=1), lambda: os.kill(os.getpid(), 9), Store(sys.argv[1]))"
    assert subprocess.run([sys.executable, "-c", code, tmp_path]).returncode == -9
    assert computed("shared", dict(a=1), lambda: dict(pid=[2.5]), Store(tmp_path)) == dict(pid=[2.5])


def test_the_settings_are_kept_beside_the_value_and_their_order_does_not_count(tmp_path):
    store = Store(tmp_path)
    assert computed("t", dict(a=1, b=[.1]), lambda: 5, store) == computed("t", dict(b=[.1], a=1), lambda: 6, store) == 5
    at, = (tmp_path / "computed").iterdir()
    assert kept(Computation(at), "value") == dict(settings=dict(a=1, b=[.1]), value=5) and str(Computation(at)).startswith("computed/t-")
    assert store.runs() == [], "no run"


@pytest.mark.parametrize("spoil", [lambda t: t[:-20], lambda t: "", lambda t: t.replace("5", "7"), lambda t: "[]"])
def test_a_changed_file_is_set_aside(tmp_path, spoil, capsys):
    store = Store(tmp_path)
    computed("t", {}, lambda: 5, store)
    file, = tmp_path.glob("computed/*/metrics/value.json")
    file.write_text(spoil(file.read_text()))
    assert computed("t", {}, lambda: 6, store) == 6 and "was set aside" in capsys.readouterr().err
    assert json.loads(file.read_text())["value"]["value"] == 6


@pytest.mark.parametrize("other", [dict(settings=dict(n=2), value=7), dict(settings=dict(n=1)), [7], 7])
def test_a_value_of_other_settings_is_set_aside_though_its_sum_fits(tmp_path, other, capsys):
    store = Store(tmp_path)
    computed("t", dict(n=1), lambda: 5, store)
    at, = map(Computation, (tmp_path / "computed").iterdir())
    keep(at, "value", other, at.read()[1]["code"])
    assert computed("t", dict(n=1), lambda: 6, store) == 6 and "value.json is corrupt (it is of other settings): it was set aside" in capsys.readouterr().err


def test_a_false_value_is_a_value(tmp_path):
    calls = []
    for _ in range(2): assert computed("zero", {}, lambda: calls.append(1) or 0, Store(tmp_path)) == 0
    assert len(calls) == 1


def test_the_first_answer_is_the_one_that_is_read(tmp_path):
    first, second = (computed("t", {}, lambda: dict(b=(1, 2), a={}), Store(tmp_path)) for _ in range(2))
    assert first == second == dict(a={}, b=[1, 2]) and [*first] == [*second]


@pytest.mark.parametrize("value, read", [({2: 1, 10: 2}, {"2": 1, "10": 2}), ({1.5: {3: None}}, {"1.5": {"3": None}}),
                                         (dict(a=np.float32(.5), b=np.int64(3), c=np.bool_(True)), dict(a=.5, b=3, c=True)),
                                         ([np.arange(2), torch.ones(1), (1, -0.)], [[0, 1], [1.], [1, -0.]])])
def test_what_json_spells_otherwise_is_kept_as_it_is_read(tmp_path, value, read, capsys):
    "Names that are numbers are in another order as texts, so that the sum did not fit and the value was lost."
    calls = []
    for _ in range(2): assert repr(computed("t", {}, lambda: calls.append(1) or value, Store(tmp_path))) == repr(as_read(read, ""))
    assert len(calls) == 1 and not capsys.readouterr().err


@pytest.mark.parametrize("value", [{1, 2}, b"a", 1j, {(1, 2): 3}, {1: "a", "1": "b"}])
def test_what_json_cannot_hold_is_refused_in_a_sentence(tmp_path, value):
    with pytest.raises(TypeError, match="^computed/t-.*/value cannot be kept, as JSON has no place for it .*: make it of texts"):
        computed("t", {}, lambda: value, Store(tmp_path))


def test_what_another_process_writes_after_it_is_not_read_as_ones_own(tmp_path, monkeypatch):
    "Code of another clone, which shares the store, may compute the same anew as soon as the lock is free."
    @contextmanager
    def and_then(at, root):
        with working_on(at, root): yield
        keep(at, "value", dict(settings={}, value="of other code"), "other")
    monkeypatch.setattr("mixrepro.training.computed.working_on", and_then)
    assert computed("t", {}, lambda: 5, Store(tmp_path)) == 5
