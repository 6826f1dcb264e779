"Arithmetic against hand counts and PyTorch's own counter, memory against known sizes and the profiler, totals against the formula; refusals."
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.methods.attacks import cross_entropy, slope
from mixrepro.methods.catalogue import method
from mixrepro.metrics.cost import Bench, Cost, Worker, cost, flops, peak_bytes, ratios, seconds, with_needs
from mixrepro.networks.zoo import build
from mixrepro.training.loop import batches
from mixrepro.training.spec import Spec, name_of

VAE = dict(vae_network="vae-small", vae_epochs=3)


def spec(name, **kw):
    return Spec("digits", name, "vae-small" if name.endswith("vae") else "tiny-cnn", **dict(epochs=2, n_train=100, batch=16, augment="crop", method_args=VAE if "var" in name else {}) | kw)


# ---- arithmetic -----------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(b=st.integers(1, 5), i=st.integers(1, 9), o=st.integers(1, 9), k=st.sampled_from([1, 3]), stride=st.integers(1, 2), side=st.integers(4, 9))
def test_layers_take_what_a_hand_count_says(b, i, o, k, stride, side):
    linear, conv, x, images = nn.Linear(i, o), nn.Conv2d(i, o, k, stride, k // 2), torch.rand(b, i), torch.rand(b, i, side, side)
    places = ((side + 2 * (k // 2) - k) // stride + 1) ** 2
    for layer, given, want in ((linear, x, 2 * b * i * o), (conv, images, 2 * b * o * i * k * k * places)):
        assert flops(lambda: layer(given)) == want
        assert flops(lambda: layer(given).sum().backward()) == 2 * want  # the weights' gradient
        assert flops(lambda: layer(given.clone().requires_grad_()).sum().backward()) == 3 * want  # and the input's
        assert flops(lambda: torch.autograd.grad(layer(leaf := given.clone().requires_grad_()).sum(), leaf)) == 2 * want  # the input's alone


@pytest.mark.parametrize("network", ["small-cnn", "vae-small"])
def test_a_training_step_is_what_pytorchs_counter_says(network):
    net, x = build(network, (1, 32, 32), 10, seeded()), torch.rand(4, 1, 32, 32)
    with FlopCounterMode(display=False) as theirs: net(x).square().mean().backward()
    assert flops(lambda: net(x).square().mean().backward()) == theirs.get_total_flops() > 0


@pytest.mark.parametrize("name, weight", [("at", 1), ("iat", 2)])
def test_a_step_of_an_attack_costs_one_slope(name, weight):
    net, x, y = build("small-cnn", (1, 32, 32), 10, seeded()), torch.rand(8, 1, 32, 32), torch.arange(8)
    erm = flops(lambda: method("erm").loss(net, x, y, seeded()).backward())
    one = flops(lambda: slope(lambda z: cross_entropy(net, z, y), x))
    for k in (1, 7):
        assert flops(lambda: method(name, steps=k).loss(net, x, y, seeded()).backward()) == weight * erm + k * one
    assert one / erm == pytest.approx(2 / 3, rel=.05)  # forward and one of the two parts of backward, of three


def test_trades_and_the_mixings():
    net, x, y = build("small-cnn", (1, 32, 32), 10, seeded()), torch.rand(8, 1, 32, 32), torch.arange(8)
    of = lambda name, **kw: flops(lambda: method(name, **kw).loss(net, x, y, seeded()).backward())
    assert of("mixup") == of("erm") and of("trades", steps=5) - of("trades", steps=4) == of("at", steps=5) - of("at", steps=4)


def test_the_frozen_decoder_is_in_varmixups_step():
    train, net, vae = load("digits", "train").subset(16), build("tiny-cnn", (1, 32, 32), 10, seeded()), build("vae-small", (1, 32, 32), 10, seeded())
    ready = method("varmixup").prepare(train, seeded(), vae=vae)
    x, index = train.floats(), torch.arange(16)
    erm, ours = (flops(lambda: m.loss(net, x, train.y, seeded(), index).backward()) for m in (method("erm"), ready))
    assert ours - erm == flops(lambda: vae.decode(ready.made.codes))


# ---- memory ---------------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_memory_follows_tensors_as_they_come_and_go(sizes, stays):
    held, now, peak = [], 0, 0
    for n, stay in zip(sizes, stays):
        now += 4 * n
        peak = max(peak, now)
        if not stay: now -= 4 * n
    def work():
        for n, stay in zip(sizes, stays):
            a = torch.empty(n)
            a.add_(1); a.view(-1).mul_(2)  # in place: nothing new
            if stay: held.append(a)
            del a
    assert peak_bytes(work) == peak


def test_what_was_there_before_does_not_count():
    rest, other = torch.zeros(1000), torch.ones(1000)
    assert peak_bytes(lambda: rest.add_(other).mul_(2)) == 0 and peak_bytes(lambda: torch.add(rest, other, out=rest)) == 0
    assert peak_bytes(lambda: rest.add_(other * 2)) == 4000


def test_memory_is_what_the_profiler_saw():
    net, x, y = build("small-cnn", (1, 32, 32), 10, seeded()), torch.rand(32, 1, 32, 32), torch.arange(32) % 10
    work = lambda: F.cross_entropy(net(x), y).backward()
    work()
    net.zero_grad(set_to_none=True)
    ours = peak_bytes(work)
    net.zero_grad(set_to_none=True)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as p: work()
    now, theirs = 0, 0
    events = sorted((e for e in p.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns())
    for e in events: theirs = max(theirs, now := now + e.nbytes())
    assert ours == pytest.approx(theirs, rel=.1)  # it also sees what a kernel takes for itself


def test_twice_the_batch_takes_twice_the_memory_and_attacks_take_more():
    one, two, trades = (c.peak_bytes for c in cost([spec("erm"), spec("erm", batch=32), spec("trades")], rounds=1, warm=1, device="cpu"))
    assert two == pytest.approx(2 * one, rel=.1) and trades > 1.4 * one


# ---- runs -----------------------------------------------------------------------------------------------------------

def test_a_step_is_a_step_of_the_training_loop():
    w = Worker(spec("erm"), lambda name: load(name, "train"), "cpu")
    before = [p.clone() for p in w.net.parameters()]
    w.step()
    assert w.optimizer.state[next(w.net.parameters())]["step"] == 1 and any(not torch.equal(a, b) for a, b in zip(before, w.net.parameters()))
    parts = batches(100, 16, seeded())
    assert w.steps == 2 * len(parts) == 14 and w.images == 200
    assert Worker(spec("erm", n_train=97), lambda name: load(name, "train"), "cpu").images == 2 * 96  # a last batch of one is left out
    assert len(Worker(spec("erm", batch=128), lambda name: load(name, "train"), "cpu").one) == 100


def test_a_run_costs_its_steps_its_preparation_and_what_it_needs():
    (c,) = cost([spec("varmixup")], rounds=2, warm=1, device="cpu")
    vae = c.needs["vae"]
    assert vae.spec == c.spec.needs["vae"] and vae.needs == {} and vae.prepare_flops == 0
    for unit in ("seconds", "flops"):
        own = getattr(c, unit) * 200 / 16 + getattr(c, f"prepare_{unit}")
        assert c.total(unit) == pytest.approx(own + getattr(vae, unit) * 300 / 16 + getattr(vae, f"prepare_{unit}"), rel=1e-12)
    net = build("vae-small", (1, 32, 32), 10, seeded())
    assert c.prepare_flops == flops(lambda: net.encode(load("digits", "train").subset(100).floats()))
    assert c.seconds > 0 and c.prepare_seconds > 0


def test_arithmetic_and_memory_are_the_same_each_time_and_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXREPRO_HOME", str(tmp_path))
    state, threads, specs = torch.get_rng_state(), torch.get_num_threads(), [spec(m) for m in ("erm", "at", "varmixup", "adv-varmixup")]
    a, b = (cost(specs, rounds=1, warm=1, device="cpu") for _ in range(2))
    counts = lambda c: (c.flops, c.peak_bytes, c.prepare_flops, c.total("flops"))
    assert list(map(counts, a)) == list(map(counts, b))
    assert list(tmp_path.iterdir()) == [] and torch.equal(state, torch.get_rng_state()) and torch.get_num_threads() == threads


def test_what_is_needed_is_found_once():
    specs = [spec("varmixup"), spec("mixup-r", method_args=VAE), spec("erm")]
    found = with_needs(specs)
    assert len(found) == 4 and set(found) == {name_of(s) for s in (*specs, specs[0].needs["vae"])}


# ---- ratios ---------------------------------------------------------------------------------------------------------

def made(name, seconds, flops, size, needs={}, **kw):
    return replace(Cost(spec(name), 16, 14, 200, seconds, flops, size, 0., 0, needs=needs), **kw)


@settings(max_examples=25, deadline=None)
@given(st.floats(1e-6, 1e6))
def test_ratios_do_not_depend_on_units(unit):
    rows = [ratios([made("erm", .5 * u, 10, 7), made("varmixup", u, 20, 7, {"vae": made("mmd-vae", u, 5, 3)})]) for u in (1., unit)]
    for a, b in zip(*rows):
        for k in a:
            if k.endswith("_ratio"): assert a[k] == pytest.approx(b[k], rel=1e-9)
    assert rows[0][0]["run_flops_ratio"] == 1 and rows[0][1]["step_seconds_ratio"] == 2
    ours = rows[0][1]
    assert ours["run_seconds_ratio"] == pytest.approx(4) and ours["run_flops_ratio"] == pytest.approx(2.5) and ours["needs"] == "mmd-vae"


def test_two_runs_of_one_method_are_two_rows():
    few, many = made("at", 2., 20, 1), made("at", 4., 40, 1)
    rows = ratios({"erm": made("erm", 1., 10, 1), "AT, few steps": few, "AT, many": many})
    assert [(r["method"], r["step_flops_ratio"], r["step_seconds_ratio"]) for r in rows] == [("erm", 1, 1), ("AT, few steps", 2, 2), ("AT, many", 4, 4)]
    assert ratios({"a": few, "b": many}, base="b")[0]["run_flops_ratio"] == .5
    with pytest.raises(ValueError, match="unknown base row 'erm'"): ratios({"AT": few})


def test_what_was_counted_goes_with_what_a_clock_said_elsewhere():
    bench = Bench([spec("erm"), spec("varmixup")], warm=1, device="cpu")
    here, there = bench.costs(bench.times(1)), bench.costs({n: (1., 2.) for n in bench.workers})
    for a, b in zip(here, there):
        assert (a.flops, a.peak_bytes, a.total("flops")) == (b.flops, b.peak_bytes, b.total("flops")) and (b.seconds, b.prepare_seconds) == (1., 2.)
    assert there[1].total() == 200 / 16 + 2 + there[1].needs["vae"].total()


def test_a_run_on_few_labels_takes_its_labelled_images_along():
    few = spec("ssl-baseline", split="digits-l20-v0-s0", n_train=0)
    w = Worker(few, lambda name: load(name, "train"), "cpu")
    assert len(w.method.made.labelled) == 20 and w.images == 2 * len(load("digits", "train")), "the labelled are among the others"
    w.step()


def test_refusals():
    erm, at = made("erm", 1., 1, 1), made("at", 2., 2, 2)
    for bad, sentence in (([at], "unknown base row 'erm'"), ([erm, erm], "2 costs of 1 methods have no names"),
                          ([erm, replace(at, device="cuda")], "digits/cpu and digits/cuda do not compare"),
                          ([erm, replace(at, spec=replace(at.spec, dataset="synthetic-blobs"))], "do not compare")):
        with pytest.raises(ValueError, match=sentence): ratios(bad)
    with pytest.raises(ValueError, match="unknown unit 'hours'"): erm.total("hours")
    with pytest.raises(ValueError, match="at least 1 step is timed, got rounds=0"): cost([spec("erm")], rounds=0)
    with pytest.raises(ValueError, match="at least 1 step goes before one that is counted or timed, got warm=0"): Bench([spec("erm")], warm=0)
    with pytest.raises(ZeroDivisionError): seconds(lambda: 1 / 0)
