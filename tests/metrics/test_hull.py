"Places between hidden states against SciPy's Dirichlet, and an iterated attack against a loop written out."

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.metrics.attacked import PGD, Iterated, attacked
from mixrepro.metrics.concentration import hull, in_hull, states, unsure
from mixrepro.networks.zoo import build


@given(of=st.integers(1, 5), seed=st.integers(0, 2 ** 32))
@settings(max_examples=20, deadline=None)
def test_weights_are_uniform_on_the_simplex(of, seed):
    "The shares of `of` different corners are Dirichlet(1, ..., 1): Beta(1, of - 1) each."
    places = in_hull(torch.eye(200, dtype=torch.float64), 400, seeded(seed), of)
    assert torch.allclose(places.sum(1), torch.ones(400, dtype=torch.float64)) and places.min() >= 0
    whole = places[(places > 0).sum(1) == of]
    if of > 1:
        first = whole[whole > 0].view(-1, of)[:, 0].numpy()  # the first by its place among the states, not by its size
        assert stats.kstest(first, stats.beta(1, of - 1).cdf).pvalue > 1e-5


def test_places_of_maps_keep_their_shape():
    h = torch.rand(6, 4, 3, 2, generator=seeded())
    found = in_hull(h, 10, seeded(1))
    assert found.shape == (10, 4, 3, 2) and found.min() >= h.min() and found.max() <= h.max()


def test_a_network_is_asked_at_places_between():
    test = load("spirals", "test")
    net = build("spiral-net", test.shape, 2, seeded(), mean=(.5, .5), std=(.4, .4), width=16)
    (found,) = hull([net], test, n=500)
    assert (found["low_states"], found["entropy_states"]) == unsure(net.eval()(test.floats())) and found["places"] == 500
    flat = in_hull(states(net, test.floats()), 500, seeded(0))
    assert flat.shape == (500, 2) and hull([net], test, n=500) == [found] != hull([net], test, n=500, seed=1)


def by_hand(net, x, y, steps, eps=8 / 255, step=2 / 255):
    "Madry et al. (2017), section 2.1, in NumPy but for the gradient."
    rng = torch.Generator().manual_seed(0)
    at = np.clip((x + eps * (2 * torch.rand(x.shape, generator=rng) - 1)).numpy(), 0, 1)
    for _ in range(steps):
        leaf = torch.tensor(at, dtype=x.dtype, requires_grad=True)
        grad, = torch.autograd.grad(F.cross_entropy(net(leaf), y, reduction="sum"), leaf)
        at = np.clip(np.clip(at + step * np.sign(grad.numpy()), x.numpy() - eps, x.numpy() + eps), 0, 1)
    return torch.tensor(at)


@pytest.mark.parametrize("steps", [1, 7])
def test_the_iterated_attack_is_the_loop(steps):
    test = load("digits", "test").subset(40)
    net, x, y = build("tiny-cnn", test.shape, test.k, seeded(), mean=(.3,), std=(.25,)).eval(), test.floats(), test.y
    ours, still = Iterated(steps).move(net, x, y)
    assert torch.allclose(ours, by_hand(net, x, y, steps), atol=1e-6) and not still.any()
    assert (ours - x).abs().max() <= 8 / 255 + 1e-6 and 0 <= ours.min() and ours.max() <= 1


def test_more_steps_never_help_and_a_network_without_a_gradient_stands():
    test = load("digits", "test").subset(60)
    class Masked(torch.nn.Module):
        def forward(self, x): return 5 * F.one_hot((x.flatten(1)[:, 0] > 2).long(), 10) + 0 * x.flatten(1)[:, :10]
    (found,) = attacked([Masked()], test, PGD)
    assert set(found["flat"].values()) == {60} and len(set(found["accuracy"].values())) == 1
    with pytest.raises(ValueError, match="the radius eps must be above 0"): Iterated(eps=0)
