"Local linearity error against closed forms and brute force; what it leaves alone; what must be refused."
import itertools
import math

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.digits import blobs
from mixrepro.methods.attacks import cross_entropy, slope
from mixrepro.metrics import catalogue, linearity as module
from mixrepro.metrics.linearity import RADII, departure, linearity, linearity_errors, search
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store


def small(seed=0): return build("tiny-cnn", (1, 32, 32), 10, seeded(seed))


# ---- closed forms ---------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), k=st.integers(2, 6), eps=st.floats(1e-3, .5))
def test_a_linear_loss_of_a_linear_network_has_no_error(seed, k, eps):
    rng = seeded(seed)
    w, x, y = torch.randn(12, k, dtype=torch.float64, generator=rng), torch.rand(5, 3, 2, 2, dtype=torch.float64, generator=rng), torch.arange(5) % k
    found = linearity_errors(lambda z: z.flatten(1) @ w + 1, x, y, rng, (eps,), 5, loss=lambda net, z, y: net(z)[torch.arange(5), y])
    assert found.max() < 1e-13


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), eps=st.floats(.01, .2), ways=st.sampled_from([(0,), (1,), (1, -1)]))
def test_a_bowl_is_highest_in_the_corners(seed, eps, ways):
    rng = seeded(seed)
    a, x = torch.rand(6, dtype=torch.float64, generator=rng) + .1, .25 + .5 * torch.rand(4, 1, 2, 3, dtype=torch.float64, generator=rng)
    found = linearity_errors(nn.Flatten(), x, torch.zeros(4).long(), rng, (eps / 2, eps), 10, ways, loss=lambda net, z, y: net(z) ** 2 @ a)
    assert torch.allclose(found, torch.tensor([[eps ** 2 / 4], [eps ** 2]], dtype=torch.float64) * a.sum(), rtol=1e-9)


def test_a_saddle_takes_the_higher_of_its_two_sides():
    x = torch.full((1, 1, 1, 2), .5, dtype=torch.float64)
    for a in ([3., -1.], [1., -3.]):
        sided = lambda net, z, y: z.flatten(1) ** 2 @ torch.tensor(a, dtype=torch.float64)
        best = max(linearity_errors(nn.Identity(), x, torch.zeros(1).long(), seeded(s), (.1,), 20, (0,), loss=sided)[0, 0] for s in range(20))
        assert best == pytest.approx(3 * .1 ** 2, rel=1e-3)  # a walk in finite steps swings around the other side's 0


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("eps", [8 / 255, .2])
def test_cross_entropy_of_a_linear_network_by_brute_force(k, eps):
    rng = seeded(k)
    w, b = 8 * torch.randn(2, k, dtype=torch.float64, generator=rng), torch.randn(k, dtype=torch.float64, generator=rng)
    x, y = torch.rand(60, 1, 1, 2, dtype=torch.float64, generator=rng), torch.randint(k, (60,), generator=rng)
    net = lambda z: z.flatten(1) @ w + b
    found = linearity_errors(net, x, y, rng, (eps,))[0]
    p = net(x).softmax(1)
    grad = (p - F.one_hot(y, k)) @ w.T  # of the cross-entropy, by hand
    highest, ce = torch.zeros(60, dtype=torch.float64), lambda at: F.cross_entropy(at @ w + b, y, reduction="none")
    low, high = (x.flatten(1) - eps).clamp(0, 1), (x.flatten(1) + eps).clamp(0, 1)
    for s, t in itertools.product(torch.linspace(0, 1, 41, dtype=torch.float64), repeat=2):
        at = torch.stack([torch.lerp(low[:, i], high[:, i], f) for i, f in enumerate((s, t))], 1)
        gap = ce(at) - ce(x.flatten(1)) - ((at - x.flatten(1)) * grad).sum(1)
        highest = torch.maximum(highest, gap.abs())
    assert (found <= highest + 1e-9).all()  # cross-entropy is convex: the highest point of the box is one of its corners, and those are on the grid
    assert found.sum() > .95 * highest.sum() and (found > highest * (1 - 1e-9)).double().mean() > .85


# ---- properties -----------------------------------------------------------------------------------------------------

def test_the_gradient_of_the_departure_is_the_difference_of_two_slopes():
    net, s = small().eval(), blobs("test", n=6, size=32)
    net = build("tiny-cnn", s.shape, s.k, seeded()).eval().double()
    x = s.floats().double()
    loss = lambda z: cross_entropy(net, z, s.y)
    gap, grad = departure(loss, x)
    moved = (x + .1 * torch.rand(x.shape, dtype=x.dtype, generator=seeded())).clamp(0, 1)
    signed = loss(moved) - loss(x) - ((moved - x) * grad).flatten(1).sum(1)
    value, got = slope(gap, moved)
    assert torch.allclose(value, signed.abs().detach(), atol=1e-12) and torch.allclose(grad, slope(loss, x)[1])
    assert torch.allclose(got, (slope(loss, moved)[1] - grad) * signed.sign().view(-1, 1, 1, 1), atol=1e-12)
    assert gap(x).abs().max() == 0


def test_the_error_never_falls_with_the_radius_and_is_the_best_value_seen():
    s = load("digits", "test").subset(30)
    errors = linearity_errors(small(), s.floats(), s.y, seeded(), (.001, .002, .01, .02, .5))
    assert errors.shape == (5, 30) and errors.dtype == torch.float64 and (errors > 0).all() and (errors[1:] >= errors[:-1]).all()
    seen = []
    trace = lambda z: seen.append(v := ((z - .5) ** 2).flatten(1).sum(1) * z.flatten(1)[:, 0].cos()) or v
    top = search(trace, torch.full((3, 1, 2, 2), .5), torch.zeros(3, 1, 2, 2), .3, seeded(), 7)
    assert torch.allclose(top, torch.stack(seen).amax(0), atol=1e-6) and len(seen) == 7 + 2


def test_what_a_smaller_box_holds_counts_in_a_larger_one(monkeypatch):
    monkeypatch.setattr(module, "search", lambda gap, x, way, eps, rng, steps: torch.full((len(x),), {.1: 3., .2: 1., .3: 4.}[eps]))  # a search that lost its way
    s = load("digits", "test").subset(2)
    assert linearity_errors(small(), s.floats(), s.y, seeded(), (.1, .2, .3)).tolist() == [[3, 3], [3, 3], [4, 4]]


def test_every_point_lies_in_the_box_and_in_the_range_of_a_pixel():
    s = load("digits", "test").subset(10)
    x, seen = s.floats(), []
    net = small()
    def spy(z): seen.append(z.detach().clone()); return net(z)
    linearity_errors(spy, x, s.y, seeded(), (.1,), 30)
    def away(z): return (z[:, None] - x).abs().amax((2, 3, 4)).amin(1).max()  # of some image each: sure ones are searched by themselves
    for z in seen: assert z.min() >= -1e-6 and z.max() <= 1 + 1e-6 and away(z) <= .1 + 1e-6
    assert max(map(away, seen)) > .09 and seen[-1].min() >= 0 and seen[-1].max() <= 1


def test_examples_do_not_know_of_each_other():
    s, net = load("digits", "test").subset(12), small().double()
    x = s.floats().double()
    together = linearity_errors(net, x, s.y, seeded(), (8 / 255,))
    others = torch.cat([x[:1], torch.rand(11, 1, 32, 32, dtype=x.dtype, generator=seeded(1))])
    assert linearity_errors(net, others, s.y, seeded(), (8 / 255,))[0, 0] == pytest.approx(together[0, 0].item(), rel=1e-6)  # the same draws


def test_the_network_is_left_as_it_was():
    s, net = load("digits", "test").subset(12), small().train()
    state = {k: v.clone() for k, v in net.state_dict().items()}
    linearity_errors(net, s.floats(), s.y, seeded(), (8 / 255,), 3)
    assert net.training and all(torch.equal(v, state[k]) for k, v in net.state_dict().items()) and all(p.grad is None for p in net.parameters())
    assert linearity(net, s, steps=3) == linearity(net.eval(), s, steps=3)  # measured in evaluation mode either way


def test_the_mean_is_over_the_whole_set_and_every_network_has_the_same_starts():
    s, nets = load("digits", "test").subset(25), [small(0), small(1), small(0)]
    a, b, c = linearity(nets, s, (4 / 255, 8 / 255), 5)
    assert a == c != b and a["radii"] == [4 / 255, 8 / 255] and a["images"] == 25
    rng = seeded(0)
    parts = [linearity_errors(nets[0], s.floats(i), s.y[i], rng, (4 / 255, 8 / 255), 5) for i in torch.arange(25).split(10)]
    assert linearity(nets[0], s, (4 / 255, 8 / 255), 5, batch=10)["linearity"] == pytest.approx(torch.cat(parts, 1).mean(1).tolist(), rel=1e-9)


def test_starts_along_the_slope_find_more_than_a_random_one():
    s, net = load("digits", "test").subset(60), small()
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    train = load("digits", "train")
    for i in torch.randperm(len(train), generator=seeded()).split(64):
        opt.zero_grad(); F.cross_entropy(net(train.floats(i)), train.y[i]).backward(); opt.step()
    both, random = (linearity_errors(net, s.floats(), s.y, seeded(), (8 / 255,), n, ways).mean() for n, ways in ((10, (1, -1)), (20, (0,))))
    assert both > random


def test_as_a_metric_of_runs_it_is_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogue, "load", lambda name, split: load(name, split).subset(20))
    run = train_run(Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=40, batch=20, augment="none"), Store(tmp_path))
    first = catalogue.measure([run], "linearity", "cpu")
    assert first[0]["radii"] == list(RADII) and first[0]["linearity"] == sorted(first[0]["linearity"]) and math.isfinite(first[0]["linearity"][-1])
    assert (run.folder / "metrics" / "linearity.json").is_file() and catalogue.measure([run], "linearity", "cpu") == first


# ---- refusals -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("radii", [(), (8 / 255, 2 / 255), (.1, .1), (0., .1), (-.1,), (2., 8.)])
def test_radii_must_rise_within_the_range_of_a_pixel(radii):
    with pytest.raises(ValueError, match="radii must rise within"): linearity(small(), load("digits", "test").subset(4), radii)


def test_bad_images_and_bad_networks():
    s = load("digits", "test").subset(4)
    with pytest.raises(TypeError, match="divide uint8 images by 255"): linearity_errors(small(), s.x, s.y, seeded())
    with pytest.raises(ValueError, match="normalise inside the network"): linearity_errors(small(), 2 * s.floats(), s.y, seeded())
    net = small()
    net.head.weight.data[:] = float("nan")
    with pytest.raises(ValueError, match="the loss of 4 examples is not finite: the network has diverged"): linearity(net, s)
    for steps in (0, 2.5, True):
        with pytest.raises(ValueError, match="number of steps must be an integer from 1"): linearity(small(), s, steps=steps)
