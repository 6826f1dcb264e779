"NoisyMix's points around a polygon: places against matplotlib, shares against the square, halves that share no point."

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from matplotlib.path import Path as Outline

from helpers import seeded
from mixrepro.data.band import SPREAD, SQUARE_SIDE, VERTICES, WIDTH, band, draw_band, from_outline, in_polygon, star
from mixrepro.data.spirals import as_points


@settings(max_examples=25, deadline=None)
@given(points=st.integers(3, 9), seed=st.integers(0, 99))
def test_inside_as_matplotlib_has_it(points, seed):
    vertices = star(points) + .3 * torch.randn(2 * points, 2, generator=seeded(seed))
    p = torch.rand(300, 2, generator=seeded(seed + 100)) * 8 - 4
    assert np.array_equal(in_polygon(p, vertices), Outline(vertices.numpy()).contains_points(p.numpy()))


def test_classes_before_noise():
    "Off the band the class follows from the place; on it a coin, within 4 standard errors."
    n = 40_000
    _, y, place = draw_band(n, seeded(1))
    place = 2 * place
    on, within = from_outline(place, VERTICES) <= WIDTH / 2, torch.as_tensor(Outline(VERTICES.numpy()).contains_points(place.numpy()))
    assert torch.equal(y[~on] == 0, within[~on])
    for part in (on & within, on & ~within): assert abs(y[part].double().mean() - .5) < 4 * .5 / part.sum()**.5
    x, z = VERTICES.double().T
    area = .5 * (x * z.roll(-1) - z * x.roll(-1)).sum() / SQUARE_SIDE**2  # the shoelace's share of the square
    assert abs(within.double().mean() - area) < 4 * (area * (1 - area) / n)**.5


def test_noise_and_scale():
    p, _, place = draw_band(40_000, seeded(2))
    away = (p - place).double()
    assert away.mean(0).abs().max() < 4 * .2 / 200 and (away.std(0) / .2 - 1).abs().max() < 4 / 80_000**.5
    assert torch.equal(*(draw_band(9, seeded(3), noise=0.)[k] for k in (0, 2))) and .45 * 4 < place.abs().max() <= .5 * 4
    whole, half = (draw_band(50, seeded(4), width=0., noise=0., scale=s) for s in (1., .5))
    assert torch.allclose(whole[0] / 2, half[0]) and torch.equal(whole[1], half[1])


def test_halves_of_one_draw_and_fresh_points():
    p, y, _ = draw_band(500, torch.Generator().manual_seed(2 * 7))
    halves = [band(split, seed=7) for split in ("train", "test")]
    assert torch.allclose(torch.cat([as_points(s.x, SPREAD) for s in halves]), p, atol=1e-5)
    assert torch.equal(torch.cat([s.y for s in halves]), y) and [len(s) for s in halves] == [250, 250]
    fresh = band("test", seed=7, fresh=777)
    assert len(fresh) == 777 and not torch.equal(fresh.x[:250], halves[1].x) and len(band("train", n=40)) == 20
    before = torch.get_rng_state(); band("train"); assert torch.equal(before, torch.get_rng_state())
