"""Deformed images against scipy, and the accuracies that are measured on them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import ndimage

from helpers import seeded
from mixrepro.data.datasets import STATS, load
from mixrepro.data.deformations import CENTRES, DEFORMATIONS, about_centre, deform, draw_matrices, places, rotation, shearing, warp, zoom
from mixrepro.metrics.deformed import FILLED, deformed, fill_of
from mixrepro.repro.ledger import reported

SEEDS = st.integers(0, 2 ** 32)


def scipy_warp(x, matrix, offset, fill):
    "Image by image, channel by channel."
    return np.stack([[ndimage.affine_transform(c, a, b, order=0, mode="constant", cval=fill) for c in image] for image, a, b in zip(x.numpy(), matrix.numpy(), offset.numpy())])


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.sampled_from(list(DEFORMATIONS)), st.sampled_from(list(CENTRES)), st.integers(1, 33), st.integers(1, 33), st.floats(-1, 2))
def test_each_row_of_table_5_is_scipys_to_the_last_bit(seed, name, centre, h, w, fill):
    x = torch.rand(6, 2, h, w, dtype=torch.float64, generator=seeded(seed))
    matrix = draw_matrices(name, 6, seeded(seed))
    want = scipy_warp(x, matrix, about_centre(matrix, (h, w), centre), fill)
    assert np.array_equal(deform(x, name, seeded(seed), fill, centre).numpy(), want)


@settings(deadline=None, max_examples=40)
@given(SEEDS, st.floats(-math.pi, math.pi), st.floats(-3, 3), st.floats(.1, 4), st.floats(-9, 9), st.floats(-9, 9))
def test_compositions_and_shifts_are_scipys_too(seed, angle, slant, scale, down, right):
    one = lambda v: torch.tensor([v], dtype=torch.float64)
    matrix, offset = rotation(one(angle)) @ shearing(one(slant)) @ zoom(one(scale)), torch.tensor([[down, right]], dtype=torch.float64)
    x = torch.rand(1, 3, 12, 9, dtype=torch.float64, generator=seeded(seed))
    assert np.array_equal(warp(x, matrix, offset, -1.).numpy(), scipy_warp(x, matrix, offset, -1.))


@settings(deadline=None, max_examples=40)
@given(st.integers(-8, 8), st.integers(-8, 8), st.integers(-4, 4), st.integers(-4, 4), st.integers(-4, 4), st.integers(-4, 4))
def test_ties_go_to_the_higher_index_as_in_scipy(down, right, a, b, c, d):
    """Halves are exact in binary, so every place here is on a pixel or exactly half way between two."""
    matrix, offset = torch.tensor([[[a, b], [c, d]]], dtype=torch.float64) / 2, torch.tensor([[down, right]], dtype=torch.float64) / 2
    x = torch.arange(1., 43, dtype=torch.float64).view(1, 1, 6, 7)
    row, col = places(matrix, offset, (6, 7))
    assert ((2 * row) % 1 == 0).all() and ((2 * col) % 1 == 0).all()
    got = warp(x, matrix, offset)
    assert np.array_equal(got.numpy(), scipy_warp(x, matrix, offset, 0.))
    for r, q, value in zip(row.flatten().tolist(), col.flatten().tolist(), got.flatten().tolist()):
        inside = 0 <= r <= 5 and 0 <= q <= 6
        assert value == (x[0, 0, math.floor(r + .5), math.floor(q + .5)].item() if inside else 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64, torch.bfloat16])
def test_every_kind_of_number_is_only_moved(dtype):
    x = (255 * torch.rand(4, 3, 8, 8, generator=seeded())).to(dtype)
    for name in DEFORMATIONS:
        out = deform(x, name, seeded(1), 3)
        assert out.dtype == dtype and out.shape == x.shape
        assert set(out.float().unique().tolist()) <= {3., *x.float().unique().tolist()}


def test_a_quarter_turn_about_the_middle_is_a_rotation_of_the_array():
    quarter = torch.tensor([[[0., 1.], [-1., 0.]]], dtype=torch.float64)
    for n in (5, 6):
        x = torch.rand(1, 2, n, n, generator=seeded())
        assert torch.equal(warp(x, quarter, about_centre(quarter, (n, n), "middle")), torch.rot90(x, 1, (2, 3)))


def test_a_zoom_shows_the_share_of_the_image_that_it_says():
    ramp = torch.linspace(0, 1, 320, dtype=torch.float64).view(1, 1, 1, 320).expand(1, 1, 320, 320)
    for name, (kind, much) in DEFORMATIONS.items():
        if kind is not zoom: continue
        seen = deform(ramp, name, seeded(), fill=-1., centre="middle")
        seen = seen[seen >= 0]
        assert seen.max() - seen.min() == pytest.approx(min(much, 1), abs=.01), name
        assert len(seen) / 320 ** 2 == pytest.approx(min(1 / much, 1) ** 2, abs=.02), name


@given(SEEDS)
@settings(deadline=None, max_examples=10)
def test_draws_stay_in_range_and_differ_between_images(seed):
    for name, (kind, much) in DEFORMATIONS.items():
        m = draw_matrices(name, 50, seeded(seed))
        if kind is rotation: angle = torch.atan2(m[:, 1, 0], m[:, 0, 0])
        elif kind is shearing: angle = torch.atan2(-m[:, 0, 1], m[:, 1, 1])
        else: assert torch.equal(m, much * torch.eye(2, dtype=torch.float64).expand(50, 2, 2)); continue
        assert angle.abs().max() <= much and len(angle.unique()) == 50


def test_the_rows_are_those_of_the_paper():
    assert list(DEFORMATIONS) == list(dict.fromkeys(reported("manifold_mixup", "mm-table5").column))


def test_what_cannot_be_deformed_is_refused_in_a_sentence():
    x, eye = torch.rand(2, 1, 4, 4), torch.eye(2).expand(2, 2, 2)
    for bad in ((x[0], eye, torch.zeros(2, 2)), (x, eye[:1], torch.zeros(2, 2)), (x, eye, torch.zeros(2))):
        with pytest.raises(ValueError, match=r"images \(N, C, H, W\) need matrices \(N, 2, 2\) and offsets \(N, 2\), got"): warp(*bad)
    with pytest.raises(ValueError, match="unknown deformation 'rotate 20': did you mean 'rotation 20'"): deform(x, "rotate 20", seeded())
    with pytest.raises(ValueError, match="unknown centre 'midle': did you mean 'middle'"): deform(x, "rotation 20", seeded(), centre="midle")
    with pytest.raises(ValueError, match="unknown fill 'white'"): deformed([], load("digits", "test"), "white")


@pytest.mark.parametrize("fill", [(1, 2), torch.ones(4), [], torch.ones(3, 1)])
def test_what_stands_outside_has_the_images_channels(fill):
    for x in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 3, 8, 8, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="must be one number, or one for each of 3 channels, got"): deform(x, "rotation 80", seeded(), fill=fill)


@pytest.mark.parametrize("fill", [.49, (.49, .48, .44), 256, -1, float("nan")])
def test_bytes_are_not_filled_with_what_they_cannot_hold(fill):
    x = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8, generator=seeded())
    with pytest.raises(ValueError, match=r"images are torch.uint8, so what stands outside must be whole numbers of 0..255, got"): deform(x, "rotation 80", seeded(), fill=fill)
    outside = deform(x, "rotation 80", seeded(), fill=(1., 2, 3)) != deform(x, "rotation 80", seeded(), fill=(4, 5, 6))
    assert outside.any() and torch.equal(deform(x.float(), "rotation 80", seeded(), fill=.49) == .49, outside)
    assert deform(x.short() - 300, "rotation 80", seeded(), fill=-300).min() == -300


class Brightness(torch.nn.Module):
    "Class 1 where the mean of an image is above a half."
    def forward(self, x): return torch.stack([.5 - x.mean((1, 2, 3)), x.mean((1, 2, 3)) - .5], 1)


def test_the_measured_accuracy_is_that_of_the_deformed_images():
    test = load("digits", "test")
    bright = test.__class__(test.x, (test.floats().mean((1, 2, 3)) > .5).long(), ("dark", "bright"), "digits", "test")
    for fill, centre in (("black", "code"), ("mean", "middle")):
        (got,) = deformed([Brightness()], bright, fill, centre, rows=("rotation 80", "zoom out 120%"), seed=3, batch=len(bright))
        for row, accuracy in got["accuracy"].items():
            x = deform(bright.floats(), row, seeded(3), fill_of(fill, "digits"), centre)
            assert accuracy == (Brightness()(x).argmax(1) == bright.y).double().mean().item()
    assert fill_of("mean", "digits") == STATS["digits"][0] and len(FILLED) == 13


def test_the_mean_fill_is_zero_after_normalisation():
    from mixrepro.networks.staged import Normalize
    mean, std = STATS["cifar10"]
    x = deform(torch.rand(5, 3, 16, 16, generator=seeded()), "zoom out 180%", seeded(), fill_of("mean", "cifar10"))
    assert Normalize(mean, std)(x)[:, :, 0, 0].abs().max() < 1e-6
