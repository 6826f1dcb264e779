"""A run that is killed ends with the same weights; the same seed gives the same weights; nothing that was kept is lost."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings, strategies as st

from helpers import Forked, weights
from mixrepro import guards
from mixrepro.data.datasets import load
from mixrepro.methods.catalogue import method
from mixrepro.metrics.catalogue import measure
from mixrepro.networks import zoo
from mixrepro.training import loop, store as store_module
from mixrepro.training.computed import computed
from mixrepro.training.loop import batches, rate, train_run, with_best
from mixrepro.training.spec import Spec, canonical, from_json, name_of, to_json
from mixrepro.training.store import Corrupt, Run, Store, history, keep, kept, seal, unseal

SPEC = Spec("digits", "mixup", "tiny-cnn", epochs=5, n_train=300, augment="crop", batch=32)
TRAIN = """
import json, sys, torch
from mixrepro.training.loop import train_run
from mixrepro.training.spec import from_json
from mixrepro.training.store import Store
torch.set_num_threads(1)
train_run(from_json(json.loads(sys.argv[1])), Store(sys.argv[2]), "cpu")
"""


def start(spec: Spec, folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", TRAIN, json.dumps(to_json(spec)), str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Run:
    "The run, never disturbed."
    return train_run(SPEC, Store(tmp_path_factory.mktemp("whole")), "cpu")


def test_nothing_is_kept_that_a_setting_of_the_process_has_rounded(whole, tmp_path, monkeypatch):
    store = Store(tmp_path)
    for ask in (lambda: train_run(SPEC, store, "cpu"), lambda: measure([whole], "temperature", "cpu"), lambda: computed("one", {}, lambda: 1, store)):
        with torch.autocast("cpu"), pytest.raises(TypeError, match="is kept for everybody, and torch.autocast would round it"): ask()
    for name, mode in zip(guards.ROUNDING, ("BF16", "any")):
        monkeypatch.setenv(name, mode)
        with pytest.raises(TypeError, match=f"and the variable {name}={mode} would round it: start Python without it"): train_run(SPEC, store, "cpu")
        monkeypatch.setenv(name, "strict")
    for part in (torch.backends, torch.backends.mkldnn, torch.backends.mkldnn.conv):
        part.fp32_precision = "tf32"
        try:
            with pytest.raises(TypeError, match="fp32_precision = 'tf32' would round it: set it to 'none'"): train_run(SPEC, store, "cpu")
        finally: part.fp32_precision = "none"
    assert not any(tmp_path.rglob("done.json"))
    guards.check_unrounded("what is strict")
    monkeypatch.setenv(guards.ROUNDING[0], "BF16")
    assert train_run(whole.spec, Store(whole.folder.parents[1])).done, "what is there is read all the same"


def test_same_seed_same_weights_in_another_process(whole, tmp_path):
    process = start(SPEC, tmp_path)
    assert process.wait(120) == 0, process.stdout.read()
    assert weights(Store(tmp_path).run(SPEC)) == weights(whole)
    strip = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert strip(history(Store(tmp_path).run(SPEC))) == strip(history(whole))


@pytest.mark.parametrize("spec", [SPEC, replace(SPEC, method="erm", optimizer="sgd", lr=.05, schedule="cosine", weight_decay=1e-4),
                                  replace(SPEC, method="ssl-manifold-mixup", n_train=0, batch=100, split="digits-l50-v100-s0")], ids=["adam", "sgd-cosine", "few-labels"])
def test_sigkill_in_mid_epoch_then_again(spec, tmp_path, capsys):
    long = replace(spec, epochs=12)
    process = Forked(train_run, long, Store(tmp_path), "cpu", steps=42 if "ssl" in spec.method else 35)
    said = process.stdout.read()
    assert process.wait() == -signal.SIGKILL and "epoch   3/" in said and "epoch   4/" not in said
    run = Store(tmp_path).run(long)
    assert not run.done and (run.folder / "checkpoint.pt").is_file()
    train_run(long, Store(tmp_path), "cpu")
    assert "going on after epoch" in capsys.readouterr().out
    undisturbed = train_run(long, Store(tmp_path / "other"), "cpu")
    assert weights(run) == weights(undisturbed)


def test_two_processes_on_one_run(whole, tmp_path):
    both = [Forked(train_run, SPEC, Store(tmp_path), "cpu") for _ in range(2)]
    said = [p.stdout.read() for p in both]
    assert [p.wait() for p in both] == [0, 0], said
    assert weights(Store(tmp_path).run(SPEC)) == weights(whole)
    assert sum("epoch   1/5" in s for s in said) == 1, "it was trained once"


def test_a_corrupt_checkpoint_is_set_aside(tmp_path, capsys, monkeypatch):
    store, real = Store(tmp_path), loop.train_epoch
    def stop(*args):
        if args[-1] == 2: raise RuntimeError("stopped")
        return real(*args)
    monkeypatch.setattr(loop, "train_epoch", stop)
    with pytest.raises(RuntimeError, match="stopped"): train_run(SPEC, store, "cpu")
    monkeypatch.setattr(loop, "train_epoch", real)
    checkpoint = store.run(SPEC).folder / "checkpoint.pt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    assert train_run(SPEC, store, "cpu").done
    assert "checkpoint.pt is corrupt" in capsys.readouterr().err and checkpoint.with_name("checkpoint.pt.corrupt-1").exists()


def test_a_diverging_run_says_so(tmp_path):
    spec = replace(SPEC, method="erm", optimizer="sgd", lr=1e30, epochs=2)
    with pytest.raises(FloatingPointError, match="is not a number in epoch [12]: lower lr"): train_run(spec, Store(tmp_path), "cpu")


ONE_STEP = Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=20, batch=32, augment="none", optimizer="sgd", momentum=0., lr=1e38)


@pytest.mark.parametrize("method, network", [("erm", "tiny-cnn"), ("mmd-vae", "vae-small")])
@pytest.mark.parametrize("lr", [1e38, 1e15])
def test_a_run_that_diverges_by_its_last_step_is_not_done(tmp_path, method, network, lr):
    "The loss of the only step is a number; what comes after it is none, in the weights or in the first logits."
    spec, store = replace(ONE_STEP, method=method, network=network, lr=lr, optimizer="adam" if lr < 1e20 else "sgd"), Store(tmp_path)
    for _ in range(2):  # and again, from whatever was kept
        with pytest.raises(FloatingPointError, match="in epoch 1: lower lr"): train_run(spec, store, "cpu")
        assert not store.run(spec).done and not store.runs()
        assert not (store.run(spec).folder / "history.csv").exists() and not (store.run(spec).folder / "checkpoint.pt").exists()


def test_a_checkpoint_of_a_network_that_diverged_is_not_finished(tmp_path):
    "An older version kept one after the last epoch, and was stopped before it marked the run as done."
    spec, store = replace(SPEC, epochs=1), Store(tmp_path)
    real = loop.finish
    try:
        loop.finish = lambda *args: (_ for _ in ()).throw(RuntimeError("stopped"))
        with pytest.raises(RuntimeError, match="stopped"): train_run(spec, store, "cpu")
    finally: loop.finish = real
    state = store_module.load_checkpoint(store.run(spec))
    state["net"]["head.bias"][:] = float("nan")
    store_module.save_checkpoint(store.run(spec), state)
    with pytest.raises(FloatingPointError, match="1 of [0-9]+ weights, such as head.bias, are not numbers in epoch 1"): train_run(spec, store, "cpu")
    assert not store.run(spec).done


@pytest.mark.parametrize("way, network", [("erm", "tiny-cnn"), ("mmd-vae", "vae-small"), ("kl-vae", "vae-small")])
def test_held_out_images_that_a_network_in_training_mode_would_learn_from_are_told_of(way, network):
    "Batch norm took their statistics and kept them: the score was another one, and the network afterwards too."
    test = load("digits", "test").subset(20)
    net = zoo.build(network, test.shape, test.k if way == "erm" else None, torch.Generator().manual_seed(0)).train()
    with pytest.warns(UserWarning, match="the network is in training mode, .*: call net.eval.. before it is scored"):
        method(way).score(net, test.floats(), test.y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop.score(net, method(way), test, SPEC)
        method(way).score(net.eval(), test.floats(), test.y)


def test_the_score_of_a_network_that_says_nothing():
    test, nan = load("digits", "test").subset(50), float("nan")
    for bad in (nan, float("inf")):
        class Bad(torch.nn.Module):
            def forward(self, x): return torch.where(torch.arange(10) == 3, bad, x.flatten(1)[:, :10])
        with pytest.raises(FloatingPointError, match="50 of 50 rows of logits"): loop.score(Bad(), method("erm"), test, SPEC)
    class Black(torch.nn.Module):
        def forward(self, x): return x * nan
    with pytest.raises(FloatingPointError, match="mse is not a number"): loop.score(Black(), method("mmd-vae"), test, SPEC)


@given(scores=st.lists(st.floats(0, 1) | st.just(float("nan")), min_size=1, max_size=15), kind=st.sampled_from(["accuracy", "nll"]))
def test_nan_is_never_the_best(scores, kind):
    rows = []
    for v in scores: rows.append(with_best(rows, {}, {kind: v}))
    for t, row in enumerate(rows):
        numbers, last = [v for v in scores[:t + 1] if v == v], scores[:t + 1][-10:]
        if numbers: assert row[f"{kind}_best"] == (max if kind == "accuracy" else min)(numbers)
        else: assert row[f"{kind}_best"] != row[f"{kind}_best"]
        assert (row[f"{kind}_median10"] != row[f"{kind}_median10"]) == any(v != v for v in last)


@pytest.mark.parametrize("by, chosen", [("valid_accuracy", 3), ("valid_nll", 4)])
def test_the_chosen_epoch_has_a_number(tmp_path, by, chosen):
    run = Run(SPEC, tmp_path)
    (tmp_path / "history.csv").write_text("epoch,valid_accuracy,valid_nll\n1,nan,nan\n2,0.5,0.9\n3,0.6,0.8\n4,0.55,0.7\n")
    assert store_module.selected(run, by)["epoch"] == chosen
    (tmp_path / "history.csv").write_text("epoch,valid_accuracy,valid_nll\n1,nan,nan\n")
    with pytest.raises(ValueError, match=f"{by} of .* is not a number in any epoch"): store_module.selected(run, by)


@pytest.mark.parametrize("n, losses", [(10, [4, 4, 2]), (9, [4, 4]), (8, [4, 4]), (3, [3])])
def test_every_example_counts_the_same_in_the_recorded_loss(n, losses):
    "Of batches whose losses are 1, 2, 3 times their number."
    class Numbered:
        raw = False
        def __init__(self): self.seen = 0
        def at(self, t): return self
        def loss(self, net, x, y, rng, index):
            self.seen += 1
            assert len(x) == losses[self.seen - 1]
            return self.seen + 0 * next(net.parameters()).sum()
    train, net = load("digits", "train").subset(torch.arange(n)), torch.nn.Linear(1, 1)
    spec = replace(SPEC, batch=4, augment="none")
    rngs = {k: torch.Generator().manual_seed(0) for k in loop.STREAMS}
    found = loop.train_epoch(net, Numbered(), train, spec, loop.optimizer(spec, net), rngs, 0)
    assert found == pytest.approx(sum((i + 1) * size for i, size in enumerate(losses)) / sum(losses), abs=1e-6)
    if len(set(losses)) == 1: assert found == sum(range(1, len(losses) + 1)) / len(losses), "to the last bit where all are of one size"


def test_one_training_image_is_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="training needs 2 examples at least, got 1"): batches(1, 4, torch.Generator())


@pytest.mark.parametrize("victim", ["spec.json", "history.csv", "weights.safetensors", "environment.json"])
def test_a_flipped_byte_is_found_and_repaired(victim, tmp_path, capsys):
    spec = replace(SPEC, epochs=1)
    run = train_run(spec, Store(tmp_path), "cpu")
    good = weights(run)
    path = run.folder / victim
    data = bytearray(path.read_bytes()); data[len(data) // 2] ^= 1; path.write_bytes(data)
    assert not run.done and f"{victim} is corrupt" in capsys.readouterr().err
    assert weights(train_run(spec, Store(tmp_path), "cpu")) == good


def test_a_deleted_file_is_a_run_to_do(tmp_path):
    run = train_run(replace(SPEC, epochs=1), Store(tmp_path), "cpu")
    (run.folder / "history.csv").unlink()
    assert not run.done and not (run.folder / "done.json").exists()


def test_a_store_that_is_a_file(tmp_path):
    (tmp_path / "runs").write_text("")
    with pytest.raises(OSError, match="cannot write to the store"): train_run(SPEC, Store(tmp_path / "runs"), "cpu")


@pytest.mark.parametrize("why", [errno.ENOLCK, errno.EOPNOTSUPP], ids=os.strerror)
def test_a_file_system_that_gives_no_locks(tmp_path, monkeypatch, why):
    def refuse(*_): raise OSError(why, os.strerror(why))
    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(OSError, match=f"cannot write to the store {tmp_path} .{re.escape(os.strerror(why))}.: .* set MIXREPRO_HOME"): train_run(SPEC, Store(tmp_path))


def test_a_full_disk_keeps_the_last_checkpoint(tmp_path, monkeypatch):
    store, real, calls = Store(tmp_path), store_module.write_atomic, []
    def full(path, data):
        calls.append(path)
        if len(calls) == 3: raise OSError(28, "No space left on device")
        return real(path, data)
    monkeypatch.setattr(store_module, "write_atomic", full)
    monkeypatch.setattr("mixrepro.training.loop.KEEPING", float("inf"))  # after each epoch
    with pytest.raises(OSError, match="No space left"): train_run(SPEC, store, "cpu")
    assert len(store_module.load_checkpoint(store.run(SPEC))["rows"]) == 2


@given(payload=st.binary(max_size=200), at=st.integers(0, 231), bit=st.integers(0, 7))
def test_a_seal_notices_any_flipped_bit(payload, at, bit):
    data = bytearray(seal(payload))
    assert unseal(bytes(data)) == payload
    data[at % len(data)] ^= 1 << bit
    with pytest.raises(Corrupt): unseal(bytes(data))


@given(value=st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
                          lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4), max_leaves=8).filter(lambda v: v is not None))
@settings(max_examples=40)
def test_metrics_come_back(value, tmp_path_factory):
    run = Run(SPEC, tmp_path_factory.mktemp("run"))
    keep(run, "m", value)
    assert kept(run, "m") == value


@given(n=st.integers(2, 300), size=st.integers(2, 64), seed=st.integers(0, 2 ** 32))
def test_batches_are_a_partition(n, size, seed):
    parts = batches(n, size, torch.Generator().manual_seed(seed))
    seen = torch.cat(parts).tolist()
    assert len(set(seen)) == len(seen) >= n - 1 and set(seen) <= set(range(n)) and all(2 <= len(p) <= size for p in parts)


def test_rates_against_torch_schedulers():
    opt = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=.1)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(opt, 20)
    cosine = replace(SPEC, schedule="cosine", epochs=20, lr=.1)
    step = replace(SPEC, schedule="step", milestones=(8, 15), epochs=20, lr=.1)
    for t in range(20):
        assert rate(cosine, t) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        assert rate(step, t) == pytest.approx(.1 * .1 ** sum(t >= m for m in (8, 15)))
        opt.step(); theirs.step()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=25))
def test_best_last_and_median(values):
    import numpy as np
    rows = []
    for v in values: rows.append(with_best(rows, {}, {"accuracy": v, "nll": v}))
    assert rows[-1]["accuracy"] == values[-1] and rows[-1]["accuracy_best"] == max(values) and rows[-1]["nll_best"] == min(values)
    assert rows[-1]["accuracy_median10"] == pytest.approx(np.median(values[-10:]))


@given(seed=st.integers(0, 99), epochs=st.integers(1, 999), lr=st.floats(1e-6, 1), alpha=st.floats(.01, 10))
def test_a_spec_survives_json_and_its_name_is_stable(seed, epochs, lr, alpha):
    spec = replace(SPEC, seed=seed, epochs=epochs, lr=lr, method_args=dict(alpha=alpha))
    assert from_json(json.loads(json.dumps(to_json(spec)))) == spec
    assert name_of(from_json(json.loads(json.dumps(to_json(spec))))) == name_of(spec)


def test_every_field_of_a_spec_changes_its_name():
    other = dict(dataset="synthetic-blobs", method="erm", network="small-cnn", seed=1, epochs=6, n_train=200, batch=16, optimizer="sgd", lr=.5, momentum=.5, nesterov=True,
                 weight_decay=.1, schedule="cosine", milestones=(1,), augment="none", precision="bfloat16", method_args=dict(alpha=.5), network_args=dict(width=4))
    assert set(other) == set(canonical(SPEC)) - {"needs"}
    names = {name_of(replace(SPEC, **{k: v})) for k, v in other.items()}
    assert len(names | {name_of(SPEC)}) == len(other) + 1


def test_a_run_on_a_label_split(tmp_path, monkeypatch):
    from mixrepro.data.datasets import load
    from mixrepro.data.splits import read_split, write_split
    from mixrepro.training.loop import start
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path / "data"))
    train = load("digits", "train")
    path = write_split("digits", train.y, 50, seed=3, n_validation=20)
    spec, store = Spec("digits", "erm", "tiny-cnn", epochs=1, split=path.stem), Store(tmp_path / "runs")
    seen, *_ = start(spec, store, "cpu")
    want = train.subset(read_split(path).labelled)
    assert torch.equal(seen.x, want.x) and torch.equal(seen.y, want.y) and len(seen) == 50
    run = train_run(spec, store)
    assert json.loads((run.folder / "spec.json").read_text())["spec"]["split"] == "digits-l50-v20-s3"
    assert name_of(spec) != name_of(Spec("digits", "erm", "tiny-cnn", epochs=1)) and store.runs()[0].spec == spec
    path.write_text(path.read_text().replace('"labelled": [', '"labelled": [1, '))
    with pytest.raises(ValueError, match="is not a whole split file"): train_run(Spec("digits", "mixup", "tiny-cnn", epochs=1, split=path.stem), store)
    with pytest.raises(ValueError, match="is not one of digits"): Spec("digits", "erm", "tiny-cnn", split="cifar10-l40-v0-s0")


# ---- the commit of a run ------------------------------------------------------------------------------------------

@pytest.fixture
def repository(tmp_path) -> Path:
    "A repository of one commit."
    def git(*args): subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", tmp_path, *args], check=True, capture_output=True)
    git("init", "-q"); git("commit", "-q", "--allow-empty", "-m", "one")
    return tmp_path


def test_commit_of_a_clone(repository, tmp_path_factory):
    head = subprocess.run(["git", "-C", repository, "log", "-1", "--format=%H"], capture_output=True, text=True).stdout.strip()
    assert loop.commit(repository) == head and len(head) == 40
    empty = tmp_path_factory.mktemp("empty")
    assert loop.commit(empty) == ""
    subprocess.run(["git", "-C", empty, "init", "-q"], check=True)
    assert loop.commit(empty) == ""  # no commit yet
    shallow = tmp_path_factory.mktemp("worktree")
    (shallow / ".git").write_text("gitdir: nowhere")
    assert loop.commit(shallow) == ""


@pytest.mark.parametrize("git", [None, "exit 128", "echo fatal: dubious ownership >&2; exit 128", "exec nowhere", "echo half; kill -9 $$"], ids=str)
def test_commit_where_git_is_missing_or_refuses(repository, tmp_path_factory, monkeypatch, git):
    path = tmp_path_factory.mktemp("bin")
    if git: (path / "git").write_text(f"#!/bin/sh\n{git}\n"); (path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(path))
    assert loop.commit(repository) == ""


def test_commit_is_of_the_clone_also_within_a_hook_of_another_one(repository, tmp_path_factory, monkeypatch):
    head = loop.commit(repository)
    other = tmp_path_factory.mktemp("other")
    for words in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "two"]):
        subprocess.run(["git", "-c", "user.name=b", "-c", "user.email=b@b", "-C", other, *words], check=True)
    assert loop.commit(other) not in ("", head)
    monkeypatch.setenv("GIT_DIR", str(other / ".git")); monkeypatch.setenv("GIT_WORK_TREE", str(other))
    assert loop.commit(repository) == head


def test_a_run_ends_well_without_git(repository, tmp_path_factory):
    "No program at all is on the path, in a folder that is a clone."
    env = os.environ | dict(PATH=str(tmp_path_factory.mktemp("no programs")), MIXREPRO_HOME=str(repository))
    done = subprocess.run([sys.executable, "-c", TRAIN, json.dumps(to_json(replace(SPEC, epochs=1))), repository / "runs"], env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    run = Store(repository / "runs").run(replace(SPEC, epochs=1))
    assert run.done and json.loads((run.folder / "environment.json").read_text())["commit"] == ""


def test_the_home_of_a_store_is_a_persons(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Store("~/runs").root == tmp_path / "runs" and not Path("~").exists()
