"Crops and flips: torchvision with the drawn offsets, the law of the draws, independence across the batch, and nothing but copied pixels."
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy.stats import chi2
from torchvision.transforms.v2 import functional as TV

from helpers import seeded
from mixrepro.data.augment import AUGMENTS, Crop, crop_flip, draw_crop, resized_crop


def unlikely(count, expected):
    "Whether counts depart from their expectation with probability below 1e-4 (chi-square)."
    count, expected = count.double().flatten(), expected.double().flatten()
    return ((count - expected) ** 2 / expected).sum() > chi2.ppf(1 - 1e-4, len(count) - 1)


@settings(max_examples=60, deadline=None)
@given(b=st.integers(1, 5), c=st.integers(1, 3), h=st.integers(1, 12), w=st.integers(1, 12), pad=st.integers(0, 6), flip=st.booleans(),
       dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64, torch.bfloat16]), seed=st.integers(0, 99))
def test_equals_torchvision_for_the_drawn_windows(b, c, h, w, pad, flip, dtype, seed):
    x = torch.randint(1, 255, (b, c, h, w), generator=seeded(seed)).to(dtype)
    draw = draw_crop(b, seeded(seed), pad, flip)
    want = torch.stack([TV.crop(TV.pad(a, [pad] * 4), int(u), int(v), h, w) for a, u, v in zip(x, draw.top, draw.left)])
    want = torch.where(draw.mirror[:, None, None, None], TV.horizontal_flip(want), want)
    got = crop_flip(x, seeded(seed), pad, flip)
    assert got.dtype == dtype and torch.equal(got, want) and torch.equal(draw(x), want)
    assert flip or not draw.mirror.any()


@pytest.mark.parametrize("pad", [1, 2, 4])
def test_windows_and_mirrors_have_their_law(pad):
    n, side = 50_000, 2 * pad + 1
    d = draw_crop(n, seeded(pad), pad)
    cell = (d.top * side + d.left) * 2 + d.mirror
    assert not unlikely(cell.bincount(minlength=2 * side ** 2), torch.full((2 * side ** 2,), n / (2 * side ** 2)))


def test_neighbours_in_a_batch_are_drawn_independently():
    "The joint law of two images of one batch is the product, for window and mirror, whichever two; so is that of two batches."
    rng = seeded(5)
    draws = [draw_crop(8, rng, 1) for _ in range(12_000)]
    cell = torch.stack([(d.top * 3 + d.left) * 2 + d.mirror for d in draws])  # 18 outcomes
    pairs = [(cell[:, 0], cell[:, 1]), (cell[:, 2], cell[:, 7]), (cell[:-1, 3], cell[1:, 3]), (cell[:-1, 7], cell[1:, 0])]
    for a, b in pairs: assert not unlikely((a * 18 + b).bincount(minlength=324), torch.full((324,), len(a) / 324))


def test_a_batch_is_not_moved_as_one():
    x = torch.arange(1., 65.).view(1, 1, 8, 8).repeat(64, 1, 1, 1)
    assert len({tuple(a.flatten().tolist()) for a in crop_flip(x, seeded())}) > 40


def test_same_state_same_batch_and_the_next_batch_is_another():
    x, rng = torch.rand(16, 3, 8, 8), seeded()
    first, second = crop_flip(x, rng), crop_flip(x, rng)
    assert torch.equal(first, crop_flip(x, seeded())) and not torch.equal(first, second)
    before = torch.get_rng_state()
    crop_flip(x, rng)
    assert torch.equal(torch.get_rng_state(), before)


def test_table():
    x = torch.rand(32, 1, 9, 9) + 1
    assert AUGMENTS["none"](x, seeded()) is x
    for name, pad, flip in [("crop", 4, False), ("crop-flip", 4, True), ("crop2-flip", 2, True)]:
        assert torch.equal(AUGMENTS[name](x, seeded()), crop_flip(x, seeded(), pad, flip))


def test_gradients_go_to_the_pixels_that_were_kept():
    x = torch.rand(3, 2, 5, 5, requires_grad=True)
    Crop(torch.tensor([1, 0, 2]), torch.tensor([1, 2, 0]), torch.tensor([True, False, True]), 1)(x).sum().backward()
    assert x.grad[0].eq(1).all() and x.grad[1, 0].tolist() == [[0., 1, 1, 1, 1]] * 4 + [[0.] * 5]


@pytest.mark.parametrize("bad, sentence", [(dict(pad=-1), "pad must be 0 or more"),
                                           (dict(x=torch.zeros(4, 8, 8)), r"for images \(4, C, H, W\), got \(4, 8, 8\)"),
                                           (dict(x=torch.zeros(2, 1, 4, 4, device="meta")), "images are on meta but the generator on cpu")])
def test_what_cannot_be_cropped_is_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence): crop_flip(**dict(x=torch.zeros(2, 1, 4, 4), rng=seeded()) | bad)
    with pytest.raises(ValueError, match=r"this draw is for images \(3, C, H, W\)"): draw_crop(3, seeded())(torch.zeros(2, 1, 4, 4))


def test_a_window_lies_where_it_was_drawn_in_autocast_too():
    x = torch.rand(8, 3, 32, 32, generator=seeded(1))
    for kind in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", kind): seen = resized_crop(x, seeded())
        assert torch.equal(seen, resized_crop(x, seeded()))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 8, 6, 3), (2, 28, 28, 1), (2, 8, 8, 4)])
def test_channels_that_stand_last_are_not_shifted_as_pixels(shape):
    for augment in (crop_flip, resized_crop):
        with pytest.raises(ValueError, match=r"seem to have their channels last: use permute\(0, 3, 1, 2\)"): augment(torch.zeros(shape), seeded())
    for fine in ((2, 3, 8, 3), (2, 1, 5, 1), (2, 12, 50, 1), (2, 5, 8, 8)): assert crop_flip(torch.zeros(fine), seeded()).shape == fine


@pytest.mark.cuda
def test_on_the_device_it_moves_as_on_the_cpu():
    x, d = torch.randint(256, (64, 3, 32, 32), dtype=torch.uint8), draw_crop(64, seeded())
    there = Crop(d.top.cuda(), d.left.cuda(), d.mirror.cuda(), d.pad)
    assert torch.equal(there(x.cuda()).cpu(), d(x))
    got = crop_flip(x.cuda(), seeded(1, "cuda"))
    assert got.device.type == "cuda" and torch.equal(got, crop_flip(x.cuda(), seeded(1, "cuda")))
    with pytest.raises(ValueError, match="images are on cuda:0 but the generator on cpu"): crop_flip(x.cuda(), seeded())
