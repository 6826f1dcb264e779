"Outlines and painted copies, against scipy and against their own statistics."
import numpy as np
import pytest
import torch
from scipy import ndimage

from mixrepro.data import datasets as D, renditions as R
from mixrepro.data.digits import enlarge, held_out, scans
from mixrepro.data.photo_digits import _photos as photos, crops, photo_digits, photo_halves

TEST = photo_digits("test", size=64)


def test_an_outline_is_a_dilation_less_the_strokes():
    raw, y = scans()
    scan = enlarge(raw[held_out(y)][:20], 8)
    ink = scan[:, 0].numpy() > 127
    rim = ndimage.binary_dilation(ink, np.ones((1, 5, 5))) & ~ink
    assert np.array_equal(R.outlines(scan)[:, 2].numpy() == 0, rim) and R.outlines(scan).unique().tolist() == [0, 255]


def test_renditions_are_three_of_each_test_image_and_none_is_the_image():
    s = R.photo_renditions()
    assert len(s) == 3 * 539 and torch.equal(s.y, TEST.y.repeat(3)) and s.standin == "ImageNet-R"
    for third in s.x.split(539): assert (third.float() - TEST.x.float()).abs().mean((1, 2, 3)).min() > 20
    with pytest.raises(ValueError, match="unknown split 'train'"): R.photo_renditions("train")


def test_a_painted_copy_has_the_styles_statistics_and_the_images_shape():
    x, style = photo_digits("train", size=64).x[:200], R.styles(200)
    copy = R.painted(x, style).double()
    def apart(a, b): return (a.double().mean((2, 3)) - b.double().mean((2, 3))).abs().mean().item()
    assert apart(copy, style) < .25 * apart(x, style) and apart(copy, x) > 4 * apart(copy, style)
    def coarse(a): return R.coarse(a.float())[:, 1].flatten(1)
    def fine(a): return (a.float() - R.coarse(a.float()))[:, 1].flatten(1)
    def alike(a, b): return torch.stack([torch.corrcoef(torch.stack(p))[0, 1] for p in zip(a, b)]).nanmean().item()
    assert alike(coarse(copy), coarse(x)) > .8 > .3 > abs(alike(coarse(copy), coarse(style)))
    assert alike(fine(copy), fine(style)) > .7 > .3 > abs(alike(fine(copy), fine(x)))


def test_no_style_is_a_background_and_all_draws_are_fixed():
    "Styles stand on their heads in other colours; the same crops otherwise."
    rng = torch.Generator().manual_seed(128)
    plain = crops(photo_halves("train", 64), 30, 64, rng)
    turned = R.styles(30).flip(2)
    assert all(sorted(a.double().mean((1, 2)).tolist()) == sorted(b.double().mean((1, 2)).tolist()) for a, b in zip(plain, turned))
    assert not any(torch.equal(a, b) for a, b in zip(plain, turned))
    assert torch.equal(R.styles(30), R.styles(30))


def test_the_painted_set_holds_images_and_copies_in_pairs():
    both, plain = R.photo_stylized("train"), photo_digits("train", size=64)
    assert len(both) == 2 * 1258 and torch.equal(both.x[::2], plain.x) and both.y.equal(plain.y.repeat_interleave(2))
    assert torch.equal(both.x[1:80:2], R.painted(plain.x[:40], R.styles(1258)[:40]))
    n = 60
    assert torch.equal(both.subset(2 * n).x[::2], plain.subset(n).x), "n images and their copies"
    assert D.STATS["photo-digits-64"] == D.STATS["photo-digits-64-stylized"]
    assert D.load("photo-digits-64-stylized", "test").name == D.tested_on("photo-digits-64-stylized") == "photo-digits-64"


def test_halves_of_photographs_that_a_caller_has_written_to_are_not_cut_again():
    "They are views of what is kept: the next data set would have been pasted on what the caller made of them."
    kept = photo_digits("test", size=8).x
    try:
        photo_halves("test", 8)[0].zero_()
        with pytest.raises(ValueError, match="what photo_halves gives is kept .* but it has been written to: write to a clone"): photo_digits("test", size=8)
    finally: photos.cache_clear()
    assert torch.equal(photo_digits("test", size=8).x, kept)
