"Clouds and rings against scipy's laws."

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from helpers import seeded
from mixrepro.data import toys as D
from mixrepro.data.datasets import STATS, load
from mixrepro.data.spirals import as_points


def test_clouds_are_normal():
    p, y = D.draw_clouds(3000, seeded(1))
    for c in range(9):
        z = (p[y == c] - D.CLOUD_CENTRES[c]).flatten().double().numpy() / .1 ** .5
        assert stats.kstest(z, "norm").pvalue > 1e-3
    assert D.CLOUD_CENTRES[1].tolist() == [-10, 0] and y.bincount().tolist() == [3000] * 9
    by_scipy = np.array([stats.multivariate_normal(m, .1).logpdf(p[:50].double().numpy()) for m in D.CLOUD_CENTRES.numpy()]).T
    assert np.allclose(D.cloud_density(p[:50]), by_scipy)


def test_a_rings_density_has_mass_one():
    "Over a strip across a circle, and all around it."
    side = torch.linspace(-2.5, 2.5, 601)
    y, x = torch.meshgrid(side / 2, side, indexing="ij")
    density = D.ring_density(torch.stack([x, y], -1).view(-1, 2), n=60, noise=.05).exp().view(601, 601, 2).numpy()
    mass = integrate.simpson(integrate.simpson(density, x=side.numpy(), axis=1), x=side.numpy() / 2, axis=0)
    assert np.allclose(mass, 1, atol=.01)


def test_sets():
    for name, n in (("nine-clouds", (45_000, 9_000)), ("two-rings", (2000, 2000))):
        train, test = (load(name, split) for split in ("train", "test"))
        assert (len(train), len(test)) == n and len(torch.cat([train.x, test.x]).flatten(1).unique(dim=0)) == sum(n) and train.shape == (2, 1, 1)
        mean, std = (torch.tensor(v).view(2, 1, 1) for v in STATS[name])
        assert torch.allclose(((train.x - mean) / std)[..., 0, 0], as_points(train.x, D.TRUTH[name][0]), atol=1e-4)
        assert 0 < train.x.min() and train.x.max() < 1, "nothing is cut off"

def test_bad_input():
    with pytest.raises(ValueError, match="1 point at least"): D.draw_clouds(0, seeded())
    with pytest.raises(ValueError, match="noise 0 or more"): D.draw_rings(3, seeded(), -.1)


def test_a_slice_of_points_that_was_written_to_does_not_move_the_set_in_silence():
    "Images at rest are bytes, so that floats of them are copies; a slice of points is none."
    points = load("spirals", "train")
    first = points.floats(torch.arange(5))
    first.mul_(2)  # a copy: nothing happens to the set
    second = points.floats(slice(0, 5))
    assert torch.equal(first, 2 * second)
    second.mul_(2)
    for index in (slice(None), torch.arange(5)):
        with pytest.raises(ValueError, match="what floats of a slice gives .* has been written to: write to a clone"): points.floats(index)
    assert torch.equal(load("spirals", "train").floats(torch.arange(5)), first / 2)
