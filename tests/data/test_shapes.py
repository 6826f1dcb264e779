"V, Ket, Y and circles: distances by brute force, shares by areas and volumes, sets that are drawn anew and stay the same."

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from helpers import seeded
from mixrepro.data.datasets import STATS, load
from mixrepro.data.shapes import NOISE, POINTS, SHAPES, SPAN, Shell, Strokes, distances_to, draw_shape, shape_set
from mixrepro.data.spirals import as_points


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), segments=st.integers(1, 4))
def test_distance_to_strokes_by_brute_force(seed, segments):
    ends = torch.randn(segments, 2, 2, generator=seeded(seed))
    p, t = 2 * torch.randn(50, 2, generator=seeded(seed + 1)), torch.linspace(0, 1, 801)[:, None]
    dense = torch.cat([a + t * (b - a) for a, b in ends])
    found = Strokes(tuple(tuple(map(tuple, e.tolist())) for e in ends)).away(p)
    assert torch.allclose(found, torch.cdist(p, dense).amin(1), atol=2e-2) and (found <= torch.cdist(p, dense).amin(1) + 1e-5).all()


@pytest.mark.parametrize("d", (2, 3))
def test_a_shell_is_filled_evenly_in_radius_and_direction(d):
    "The radius by a Kolmogorov test at 1e-3, each coordinate's mean within 4 standard errors."
    low, high = .3, .9
    p = Shell(d, low, high).draw(3000, seeded(d)).double()
    cdf = lambda r: (r**d - low**d) / (high**d - low**d)
    assert stats.kstest(p.norm(dim=1).numpy(), cdf).pvalue > 1e-3
    assert (p.mean(0).abs() < 4 * p.std(0) / 3000**.5).all()


def test_sets_are_the_same_each_time_and_their_halves_are_not():
    for name in SHAPES:
        one, same, other = (load(name, "train"), shape_set("train", name=name), shape_set("train", name=name, seed=1))
        assert torch.equal(one.x, same.x) and not torch.equal(one.x, other.x) and len(load(name, "test")) == POINTS["test"]
        assert STATS[name][0] == (.5,) * one.shape[0]
    before = torch.get_rng_state(); load("shape-y", "test"); assert torch.equal(before, torch.get_rng_state())


def test_noise_is_what_tells_the_two_circles_apart():
    clean, noisy = load("circle-2d", "train"), load("circle-2d-noisy", "train")
    def wrong(s): return (distances_to("circle-2d", as_points(s.x, SPAN)).argmin(1) != s.y).double().mean().item()
    assert NOISE["circle-2d"] == 0 == wrong(clean) and .02 < wrong(noisy) < .2


def test_bad_input():
    for bad in (dict(n=1), dict(n=9, noise=-1.)):
        with pytest.raises(ValueError, match="shape-v needs 2 points at least, one of each class, and noise 0 or more"):
            draw_shape("shape-v", bad.pop("n"), seeded(), **bad)
    with pytest.raises(ValueError, match="unknown shape 'circle-4d': did you mean"): distances_to("circle-4d", torch.zeros(1, 2))
    assert np.isfinite(distances_to("shape-y", torch.zeros(1, 2)).numpy()).all()
