"Auto-PGD: the worst point of linear models, never weaker than PGD, blind to the scale of logits, within the ball; and step by step its authors' package."

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.methods.apgd import apgd, checkpoints, climbed
from mixrepro.methods.attacks import pgd
from mixrepro.methods.erm import ERM
from mixrepro.metrics.robust import AutoPGD
from mixrepro.networks.zoo import build
from mixrepro.training.fit import fit


class Linear(nn.Module):
    def __init__(self, k, d, seed, scale=1.):
        super().__init__()
        self.w = nn.Parameter(scale * torch.randn(k, d, generator=seeded(seed), dtype=torch.float64))
    def forward(self, x): return x.flatten(1) @ self.w.T


class Scaled(nn.Module):
    def __init__(self, net, c): super().__init__(); self.net, self.c = net, c
    def forward(self, x): return self.c * self.net(x)


@pytest.fixture(scope="module")
def trained():
    train, test = load("digits-few", "train"), load("digits-few", "test")
    net = build("tiny-cnn", train.shape, train.k, seeded())
    fit(net, ERM(), train.floats(), train.y, seeded(), 120, 64, 5e-3)
    return net, test.floats()[:80], test.y[:80]


def share(net, x, y):
    with torch.no_grad(): return (net(x).argmax(1) == y).float().mean().item()


@given(seed=st.integers(0, 999), eps=st.floats(.001, .3), steps=st.integers(4, 15))
@settings(max_examples=25, deadline=None)
def test_of_two_classes_and_a_linear_model_it_finds_the_worst_point(seed, eps, steps):
    net, x, y = Linear(2, 9, seed), torch.rand(8, 1, 3, 3, generator=seeded(seed), dtype=torch.float64), torch.arange(8) % 2
    bad = apgd(net, x, y, seeded(), eps, steps)
    worst = (x + eps * (net.w[1 - y] - net.w[y]).sign().view_as(x)).clamp(0, 1)
    assert torch.allclose(bad, worst) or steps < 6 and (bad - x).abs().max() <= eps + 1e-12


def test_of_many_classes_it_misreads_what_can_be_misread():
    "Of a linear model and any number of classes the smallest radius is known. Cross-entropy climbs towards any class, not the nearest, so a few are left."
    within, left = 0, 0
    for k, seed in itertools.product((3, 4, 5, 6), range(25)):
        net, x = Linear(k, 9, seed), .35 + .3 * torch.rand(10, 1, 3, 3, generator=seeded(seed), dtype=torch.float64)
        z, eps = net(x).detach(), .01 * (1 + seed)
        y = z.argmax(1)
        gap, reach = z.gather(1, y[:, None]) - z, (net.w[None] - net.w[y][:, None]).detach().abs().sum(2)
        radius = (gap / reach).nan_to_num(torch.inf).scatter(1, y[:, None], torch.inf).amin(1)
        got, near = net(apgd(net, x, y, seeded(), eps, 40)).argmax(1) != y, radius < .9 * eps
        assert not got[radius > eps].any(), "none that no attack can reach"
        within, left = within + int(near.sum()), left + int((near & ~got).sum())
    assert within > 400 and left <= .05 * within, (within, left)


@pytest.mark.parametrize("eps", [2 / 255, 6 / 255])
def test_it_is_no_weaker_than_pgd_of_as_many_gradients(trained, eps):
    net, x, y = trained
    error = (.25 / len(y)) ** .5  # the largest standard error of a share
    ours = share(net, apgd(net, x, y, seeded(), eps, 20), y)
    for step in (eps / 4, 2 * eps): assert ours <= share(net, pgd(net, x, y, seeded(), eps, step, 20, best=True), y) + error
    assert share(net, apgd(net, x, y, seeded(), eps, 20, restarts=2), y) <= ours + 1e-6, "more starts, no fewer misread"
    assert ours <= share(net, x, y)


def test_it_stays_in_the_ball_and_in_the_range_of_a_pixel(trained):
    net, x, y = trained
    for eps in (1 / 255, .2):
        bad = apgd(net, x[:40], y[:40], seeded(), eps, 8, 2)
        assert bad.min() >= 0 and bad.max() <= 1 and (bad - x[:40]).abs().max() <= eps + 1e-7 and bad.dtype == x.dtype
    assert torch.equal(apgd(net, x[:9], y[:9], seeded(3), .1, 5), apgd(net, x[:9], y[:9], seeded(3), .1, 5))
    assert not torch.equal(apgd(net, x[:9], y[:9], seeded(3), .01, 5), apgd(net, x[:9], y[:9], seeded(4), .01, 5))


def test_the_scale_of_logits_hides_nothing(trained):
    "At a factor of a million every cross-entropy and its gradient are 0 in float32: a plain attack stands still, this one does not."
    net, x, y = trained
    eps, error = 6 / 255, (.25 / len(y)) ** .5
    plain = share(net, apgd(net, x, y, seeded(), eps, 20), y)
    for c in (1e-3, 1e3, 1e6): assert abs(share(net, apgd(Scaled(net, c), x, y, seeded(), eps, 20), y) - plain) <= 2 * error
    two = Linear(2, 12, 4), torch.rand(9, 3, 2, 2, generator=seeded(), dtype=torch.float64), torch.arange(9) % 2
    points = [apgd(Scaled(two[0], c), *two[1:], seeded(), .05, 12) for c in (1., 2. ** -20, 2. ** 60)]
    assert torch.equal(points[0], points[1]) and torch.equal(points[0], points[2])


@given(seed=st.integers(0, 999), c=st.sampled_from([2. ** -20, 8., 2. ** 60]))
@settings(max_examples=10, deadline=None)
def test_by_the_margin_no_factor_on_the_logits_changes_anything(seed, c):
    x, y = torch.rand(6, 1, 3, 3, generator=seeded(seed), dtype=torch.float64), torch.arange(6) % 5
    a, b = (apgd(Linear(5, 9, seed, scale), x, y, seeded(), .1, 9, loss="margin") for scale in (1., c))
    assert torch.equal(a, b)


def test_both_losses_together_are_no_weaker_than_one(trained):
    net, x, y = trained
    both = AutoPGD(15)(net, x, y, 2 / 255)[0]
    assert share(net, both, y) <= share(net, AutoPGD(15, losses=("ce",))(net, x, y, 2 / 255)[0], y)
    assert (both - x).abs().max() <= 2 / 255 + 1e-7


@given(steps=st.integers(1, 300))
def test_checkpoints_rise_and_draw_nearer(steps):
    at = (0, *checkpoints(steps))
    gaps = [b - a for a, b in zip(at, at[1:])]
    assert all(g > 0 for g in gaps) and at[-1] <= steps and gaps[0] >= .22 * steps - 1e-6
    if steps >= 100: assert all(b <= a + 1 for a, b in zip(gaps, gaps[1:]))


def test_step_by_step_it_is_its_authors_own(trained):
    "From one start and in float64, with their package: after a hundred steps the same points."
    theirs = pytest.importorskip("pyautoattack.autopgd_base")
    net, x, y = copy.deepcopy(trained[0]).double(), trained[1][:20].double(), trained[2][:20]
    eps, start = 1.5 / 255, (x + 1.5 / 255 * (2 * torch.rand(x.shape, generator=seeded(8)).double() - 1)).clamp(0, 1)
    attack = theirs.APGDAttack(net, n_iter=100, eps=eps, norm="Linf", seed=0, device="cpu")
    attack.init_hyperparam(x)
    peak, acc, _, bad = attack.attack_single_run(x, y, x_init=start)
    ours = climbed(net, x, y, start, eps, 100, .75, .75)
    assert torch.equal(ours.ever, ~acc.bool()) and 0 < ours.ever.sum() < 20
    for a, b in ((ours.peak, peak), (ours.end()[ours.ever], bad[ours.ever])):
        assert ((a - b).abs().flatten(1).amax(1) < 1e-6).double().mean() > .8, "a sign of a gradient near 0 may part two paths"


def test_bad_input(trained):
    net, x, y = trained
    for args, message in ((dict(eps=0.), "radius eps must be above 0"), (dict(steps=0), "integer from 1, got 0"), (dict(restarts=0), "restarts must be at least 1")):
        with pytest.raises(ValueError, match=message): apgd(net, x[:2], y[:2], seeded(), **args)
    with pytest.raises(TypeError, match="divide uint8 images by 255"): apgd(net, (255 * x[:2]).byte(), y[:2], seeded())
    with pytest.raises(ValueError, match="hand in a torch.Generator"): apgd(net, x[:2], y[:2], None)
    assert apgd(net, x[:2], y[:2], None, start="image", steps=2).shape == x[:2].shape
