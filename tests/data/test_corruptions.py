"""The corruptions against things we did not write: Pillow, SciPy and colorsys, closed forms."""
import colorsys
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import fft, ndimage, stats

from helpers import photographs
from mixrepro.data import corruptions
from mixrepro.data.corruptions import CATEGORIES, CORRUPTIONS, EXTRA, SMALLEST, TABLES, benchmark, corrupt
from mixrepro import core
from mixrepro.data import corruptions as C, frost
from mixrepro.data.frost import PHOTOGRAPHS, frost_textures, photographs as frost_photographs, reduced
from mixrepro.data.streams import fold, image_keys, integers, normal, uniform

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "speckle_noise", "spatter")
ALL = CORRUPTIONS + EXTRA
FIXED = tuple(k for k in ALL if k not in RANDOM)
ALPHA = 1e-4


PHOTOS = photographs(64, 32)


def change(x, *a, **k): return (corrupt(x, *a, **k).float() - x.float()).abs().mean().item()


# --- the contract, for every kind

def test_the_fifteen_in_order():
    assert len(CORRUPTIONS) == 15 and sum(CATEGORIES.values(), ()) == CORRUPTIONS and [len(v) for v in CATEGORIES.values()] == [3, 4, 4, 4]
    for table in TABLES.values(): assert tuple(table) == ALL and all(len(rows) == 5 for rows in table.values())


@pytest.mark.parametrize("table, checksum", [("cifar", 1446727930), ("tiny-imagenet", 4204423866), ("imagenet", 1124412868)])
def test_constants_are_the_generators(table, checksum):
    """The numbers in ImageNet-C/create_c of hendrycks/robustness: make_cifar_c.py at ca360085, make_tinyimagenet_c.py at 7a64e6a1 and make_imagenet_c.py at
    e0377d46. Zoom blur by the length and step of its np.arange, frost with the factor of its resize, elastic over the side of the image."""
    numbers = [c for kind in ALL for row in TABLES[table][kind] for c in row]
    assert zlib.crc32(np.round(numbers, 6).astype("<f8").tobytes()) == checksum


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kind", ALL)
def test_every_severity_gives_other_bytes_and_leaves_the_input_alone(kind, table):
    x, before = PHOTOS[:6], PHOTOS[:6].clone()
    made = [corrupt(x, kind, s, table=table) for s in range(1, 6)]
    assert all(y.dtype == torch.uint8 and y.shape == x.shape and y.is_contiguous() for y in made) and torch.equal(x, before)
    assert all(not torch.equal(a, b) for a, b in zip([x, *made], made))


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_decides_what_is_random_and_nothing_else(kind):
    first = corrupt(PHOTOS, kind, 3, seed=1)
    assert torch.equal(first, corrupt(PHOTOS, kind, 3, seed=1))
    assert torch.equal(first, corrupt(PHOTOS, kind, 3, seed=2)) == (kind in FIXED)
    torch.manual_seed(0); state = torch.get_rng_state()
    corrupt(PHOTOS, kind, 3)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("severity", [1, 5])
def test_an_image_alone_is_as_in_its_batch(kind, severity):
    whole = corrupt(PHOTOS[:24], kind, severity, seed=3)
    alone = torch.cat([corrupt(PHOTOS[i:i + 1], kind, severity, seed=3, index=torch.tensor([i])) for i in range(24)])
    assert torch.equal(whole, alone)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(whole[order], corrupt(PHOTOS[order], kind, severity, seed=3, index=order))


@pytest.mark.parametrize("kind", ALL)
def test_neither_chunks_nor_threads_change_a_byte(kind, monkeypatch):
    whole, before = corrupt(PHOTOS, kind, 4), torch.get_num_threads()
    try:
        for chunk, threads in ((1, 1), (7 * 3072, 1), (5 * 3072, 3)):
            monkeypatch.setattr(corruptions, "CHUNK", chunk)
            torch.set_num_threads(threads)
            assert torch.equal(whole, corrupt(PHOTOS, kind, 4))
            assert torch.get_num_threads() == threads  # left as it was
    finally: torch.set_num_threads(before)


def test_memory_does_not_grow_with_the_batch(monkeypatch):
    "No step ever sees more than a chunk."
    seen = []
    monkeypatch.setitem(corruptions.KINDS, "fog", lambda x, *a: seen.append(x.numel()) or x)
    corrupt(PHOTOS.repeat(20, 1, 1, 1), "fog", 1)
    assert max(seen) <= corruptions.CHUNK and sum(seen) == 20 * PHOTOS.numel()


@pytest.mark.parametrize("kind", ALL)
def test_a_view_gives_the_bytes_of_its_copy(kind):
    view = PHOTOS.flip(3)[::2].to(memory_format=torch.channels_last)
    assert torch.equal(corrupt(view, kind, 2), corrupt(view.clone(memory_format=torch.contiguous_format), kind, 2))


@pytest.mark.parametrize("kind", ALL)
@given(h=st.integers(8, 96), w=st.integers(8, 96), c=st.sampled_from([1, 3]), n=st.integers(1, 3), severity=st.integers(1, 5),
       table=st.sampled_from(list(TABLES)), fill=st.sampled_from(["random", 0, 255]), seed=st.integers(0, 2**40))
@settings(max_examples=6, deadline=None)
def test_any_size_and_any_values(kind, h, w, c, n, severity, table, fill, seed):
    h, w = (max(k, SMALLEST[table]) for k in (h, w))
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)) if fill == "random" else \
        torch.full((n, c, h, w), fill, dtype=torch.uint8)
    y = corrupt(x, kind, severity, seed=seed, table=table)
    assert y.shape == x.shape and y.dtype == torch.uint8
    if fill == 0 and kind in ("gaussian_noise", "impulse_noise"): assert y.float().mean() < 40
    if kind == "defocus_blur" and fill != "random": assert (x - y).max() <= 1  # the original's single-precision kernel may sum to a hair below 1
    if kind in ("gaussian_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate", "elastic_transform", "contrast") and fill != "random":
        assert torch.equal(x, y)  # a flat image has nothing to blur


@pytest.mark.parametrize("kind", [k for k in CORRUPTIONS if "noise" not in k and k not in ("frost", "jpeg_compression")] + ["gaussian_blur"])
def test_a_grey_image_is_damaged_alike_in_one_and_in_three_channels(kind):
    "Not the noises, which draw for each value, the frost, which has a colour, and JPEG, which converts colours with a rounding of its own."
    grey = PHOTOS[:8, :1]
    for s in (1, 3, 5): assert torch.equal(corrupt(grey, kind, s).expand(-1, 3, -1, -1), corrupt(grey.expand(-1, 3, -1, -1), kind, s))


@pytest.mark.parametrize("table, side, n", [("cifar", 32, 64), ("tiny-imagenet", 64, 20), ("imagenet", 224, 4)])
@pytest.mark.parametrize("kind", ALL)
def test_severity_orders_the_damage(kind, table, side, n):
    """At the size a table is for, the mean change grows with the severity. Exceptions, by the constants of the generator and seen in its own images too:
    glass blur (more passes come with a smaller sigma), the elastic transform (the affine part falls from 1 to 5), frost (the image's own weight falls),
    fog at 224 px (its decay falls), spatter (water, then mud), saturate (two fade, three enrich)."""
    x = PHOTOS if side == 32 else photographs(n, side)
    c = [change(x, kind, s, table=table) for s in range(1, 6)]
    if kind == "elastic_transform": assert c[0] > c[-1]
    elif kind == "glass_blur": assert min(c[3:]) > max(c[:2])
    elif kind == "frost" or (kind, table) == ("fog", "imagenet"): assert max(c[2:]) > c[0]
    elif kind == "spatter": assert c[:3] == sorted(c[:3]) and c[3] < c[4]
    elif kind == "saturate": assert c[0] < c[1] and c[2:] == sorted(c[2:])
    else: assert c == sorted(c)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ALL)
def test_a_gpu_gives_the_same_bytes(kind):
    for s in (1, 3, 5):
        here, there = corrupt(PHOTOS, kind, s), corrupt(PHOTOS.cuda(), kind, s)
        assert there.is_cuda and (here != there.cpu()).float().mean() < 1e-4


@pytest.mark.parametrize("kind", CORRUPTIONS + EXTRA)
def test_in_autocast_the_bytes_are_the_same_or_it_is_refused(kind):
    x = PHOTOS[:3]
    for half in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", half):
            if kind != "pixelate": assert torch.equal(corrupt(x, kind, 3), made(x, kind)); continue
            with pytest.raises(TypeError, match="pixelate is computed in single precision, and torch.autocast would round it: call it outside"): corrupt(x, kind, 3)


def made(x, kind):
    with torch.autocast("cpu", enabled=False): return corrupt(x, kind, 3)


# --- mistakes

@pytest.mark.parametrize("change, error, message", [
    (dict(kind="snw"), ValueError, "unknown corruption 'snw': did you mean 'snow'"),
    (dict(table="imagnet"), ValueError, "unknown table of severities 'imagnet': did you mean 'imagenet'"),
    (dict(x=PHOTOS[..., :9], table="imagenet"), ValueError, "at least 16 x 16 pixels for the constants of 'imagenet', got 32 x 9"),
    (dict(severity=0), ValueError, "severity must be 1, 2, 3, 4 or 5, got 0"), (dict(severity=2.5), ValueError, "got 2.5"),
    (dict(severity=3.), ValueError, "got 3.0"),
    (dict(x=PHOTOS.numpy()), TypeError, "got ndarray"), (dict(x=PHOTOS / 255), TypeError, "got torch.float32: scale to 0..255, round"),
    (dict(x=PHOTOS[0]), ValueError, r"\(N, C, H, W\)"),
    (dict(x=PHOTOS[:, :2]), ValueError, "C = 1 or 3"), (dict(x=PHOTOS[:0]), ValueError, "empty"),
    (dict(x=PHOTOS[..., :7]), ValueError, "at least 8 x 8"),
    (dict(index=torch.arange(3)), ValueError, "each of the 64 images"), (dict(index=torch.arange(64) - 1), ValueError, r"\[0, 2\*\*31\)"),
    (dict(kind="frost", frost=torch.zeros(2, 3, 20, 20, dtype=torch.uint8)), ValueError, "larger than the images"),
    (dict(kind="frost", frost=torch.zeros(2, 3, 60, 60)), ValueError, "uint8"), (dict(frost=frost_textures()), ValueError, "only 'frost'")])
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message) as e: corrupt(**dict(x=PHOTOS, kind="fog", severity=1) | change)
    assert len(str(e.value)) < 420 and "\n" not in str(e.value)


def test_benchmark_prints_what_it_returns(capsys):
    seconds = benchmark(4)
    printed = capsys.readouterr().out
    assert list(seconds) == [*CORRUPTIONS, "total"] and all(k in printed for k in seconds)
    assert seconds["total"] == pytest.approx(sum(seconds[k] for k in CORRUPTIONS))
    assert "peak memory" in printed and list(benchmark(4, severity=0, kinds=EXTRA, size=64, table="tiny-imagenet")) == [*EXTRA, "total"]
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [len(r) for r in rows if r[0] in EXTRA] == [7] * 4 and all(abs(sum(map(float, r[1:6])) - float(r[6])) < .004 for r in rows if r[0] in EXTRA)


# --- noise against its law

FLAT = torch.arange(0, 256, 15, dtype=torch.uint8).repeat(40).view(-1, 1, 1, 1).repeat(1, 1, 32, 32)  # 40 images of each of 18 greys
def by_level(y): return {int(v): y[FLAT[:, 0, 0, 0] == v].flatten().numpy() for v in FLAT.unique()}


def matches(seen, probability):
    "Chi-square test of bytes against 256 probabilities, rare ones pooled."
    n, order = len(seen), np.argsort(probability)
    pool = np.cumsum(probability[order]) * n < 8
    count = np.bincount(seen, minlength=256)[order]
    assert count[probability[order] <= 0].sum() == 0
    f = np.concatenate([[count[pool].sum()], count[~pool]]); e = np.concatenate([[probability[order][pool].sum()], probability[order][~pool]]) * n
    if e[0] < 8: f, e = np.concatenate([[f[0] + f[1]], f[2:]]), np.concatenate([[e[0] + e[1]], e[2:]])
    return len(f) < 2 or stats.chisquare(f, e * f.sum() / e.sum()).pvalue > ALPHA / 18


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_gaussian_noise_has_its_law(severity):
    sigma = TABLES["cifar"]["gaussian_noise"][severity - 1][0]
    for v, seen in by_level(corrupt(FLAT, "gaussian_noise", severity)).items():
        below = stats.norm.cdf(((np.arange(256) + 1) / 255 - v / 255) / sigma); below[255] = 1
        assert matches(seen, np.diff(below, prepend=0)), v


def test_gaussian_noise_moments_on_mid_grey():
    "Far from both ends: truncation takes half a level from the mean and adds a twelfth to the variance."
    y, s = by_level(corrupt(FLAT, "gaussian_noise", 1))[120].astype(float), .04 * 255
    assert abs(y.mean() - 119.5) < 4 * s / len(y)**.5 and abs(y.var() / (s**2 + 1 / 12) - 1) < 4 * (2 / len(y))**.5


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_shot_noise_has_its_law(severity):
    photons = TABLES["cifar"]["shot_noise"][severity - 1][0]
    for v, seen in by_level(corrupt(FLAT, "shot_noise", severity)).items():
        if v == 0: assert not seen.any(); continue
        k = np.arange(4 * photons)
        law = np.bincount((np.minimum(k / photons, 1) * 255).astype(int), stats.poisson.pmf(k, v / 255 * photons), 256)
        assert matches(seen, law / law.sum()), v


@pytest.mark.parametrize("severity", range(1, 6))
def test_impulse_noise_hits_its_share_half_black_half_white(severity):
    amount = TABLES["cifar"]["impulse_noise"][severity - 1][0]
    y = corrupt(torch.full((60, 3, 32, 32), 99, dtype=torch.uint8), "impulse_noise", severity)
    hit = y[y != 99]
    assert set(hit.unique().tolist()) == {0, 255}
    assert stats.binomtest(len(hit), y.numel(), amount).pvalue > ALPHA and stats.binomtest(int((hit == 0).sum()), len(hit), .5).pvalue > ALPHA


def damage_field(what, n=40):
    "What the randomness did to n copies of one image, float (n, 32, 32)."
    key = image_keys(9, "x", torch.arange(n))
    if what == "plasma": return corruptions._plasma(key, 32, .7).double()  # growing noise: at real decays all maps share the coarsest step's shape
    if what == "scatter": return (corruptions._scatter(key, 32, 32, 1) - torch.arange(1024).view(32, 32))[:, 2:, 2:].double()
    return corrupt(PHOTOS[1:2].expand(n, -1, -1, -1).contiguous(), what, 5, seed=9).double().mean(1)


@pytest.mark.parametrize("severity", [1, 3, 5])
@pytest.mark.parametrize("table", TABLES)
def test_speckle_noise_has_its_law(severity, table):
    sigma = TABLES[table]["speckle_noise"][severity - 1][0]
    for v, seen in by_level(corrupt(FLAT, "speckle_noise", severity, table=table)).items():
        if v == 0: assert not seen.any(); continue
        below = stats.norm(v, v * sigma).cdf(np.arange(256) + 1.); below[255] = 1
        assert matches(seen, np.diff(below, prepend=0)), v


@pytest.mark.parametrize("what", ["gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "plasma", "scatter"])
def test_damage_is_independent_across_images_at_any_shift(what):
    """Smooth fields correlate by chance, so only the phases are compared: unrelated ones give about max N(0, 1/1024) = 0.17 over all pairs and
    shifts, a shifted copy gives 1."""
    d = damage_field(what)
    assert phase_correlation(d - d.mean(0)) < .25
    moved = d - d.mean(0)
    moved[7] = moved[3].roll((5, -9), (0, 1))
    assert phase_correlation(moved) > .99  # one copy among 780 pairs is seen


def phase_correlation(d):
    f = torch.fft.fft2(d)
    f = f / f.abs().clamp(min=1e-9)
    return max(torch.fft.ifft2(f[i] * f[j].conj()).real.abs().max().item() for i in range(len(d)) for j in range(i))


# --- blurs, geometry and codecs against other libraries

def as_pil(x): return Image.fromarray(x.permute(1, 2, 0).numpy())
def as_tensor(im): return torch.from_numpy(np.array(im)).permute(2, 0, 1)


@given(side=st.tuples(st.integers(8, 70), st.integers(8, 70)), severity=st.integers(1, 5), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_pixelate_is_pillows_to_the_bit(side, severity, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, *side), dtype=np.uint8))
    for name, table in TABLES.items():
        if min(side) < SMALLEST[name]: continue
        h, w = (int(n * table["pixelate"][severity - 1][0]) for n in side)
        columns = as_pil(x[0]).resize((w, side[0]), Image.BOX)  # columns first, as ever; Pillow 13 begins with the cheaper direction
        theirs = columns.resize((w, h), Image.BOX).resize((side[1], side[0]), Image.BOX)
        assert torch.equal(corrupt(x, "pixelate", severity, table=name)[0], as_tensor(theirs))


LUMINANCE = np.array([[16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
                      [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
                      [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99]])


def standard(grey, quality):
    "Cosines of 8 x 8 blocks in steps of the standard's table (annex K), scaled by the quality as the IJG's software does."
    steps = np.clip((LUMINANCE * (5000 // quality if quality < 50 else 200 - 2 * quality) + 50) // 100, 1, 255)
    share = fft.dctn((grey - 128).reshape(-1, 4, 8, 4, 8).swapaxes(2, 3), axes=(3, 4), norm="ortho") / steps
    coarse = np.sign(share) * np.floor(np.abs(share) + .5 + 1e-9) * steps  # halves go away from zero
    back = np.clip(np.round(fft.idctn(coarse, axes=(3, 4), norm="ortho") + 128), 0, 255)
    return back.swapaxes(2, 3).reshape(grey.shape)


@pytest.mark.parametrize("quality", sorted({row[0] for table in TABLES.values() for row in table["jpeg_compression"]}))
def test_jpeg_is_the_standards_for_a_grey_image(quality):
    "The codec's whole numbers tip a coefficient over here and there; a quality of one more or less is far off."
    grey = PHOTOS[:, 1:2]
    ours, blocks = corruptions.jpeg_compression(grey, None, quality).numpy(), grey.numpy().astype(float)
    off, less, more = (np.abs(ours - standard(blocks, q)).mean() for q in (quality, quality - 1, quality + 1))
    assert off < .3 and min(less, more) > .8


def test_jpeg_keeps_brightness_and_halves_the_resolution_of_colour():
    x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    x[:, 0, :, ::2], x[:, 2, :, 1::2] = 200, 255  # red beside blue, column by column
    y = corruptions.jpeg_compression(x, None, 95).float()
    grey = torch.tensor([.299, .587, .114])[:, None, None]
    assert ((y - x.float()) * grey).sum(1).abs().max() < 30 and (y - x.float())[:, 0].abs().mean() > 30
    wide = x.repeat_interleave(8, 3)  # eight columns of each: apart from the seams each has its own colour
    off = corruptions.jpeg_compression(wide, None, 95).float() - wide.float()
    assert off.view(3, 32, 32, 8)[..., 2:-2].abs().mean() < 3


@pytest.mark.parametrize("severity", range(1, 6))
def test_jpeg_is_torchvisions_to_the_bit(severity):
    "Where torchvision still has its own."
    try: from torchvision.io import decode_jpeg, encode_jpeg
    except ImportError: pytest.skip("this torchvision has no JPEG of its own")
    quality, = TABLES["cifar"]["jpeg_compression"][severity - 1]
    for x in (PHOTOS, PHOTOS[:, :1], photographs(3, 41)):
        with warnings.catch_warnings(action="ignore"):  # deprecated, which is why it is only a test
            theirs = torch.stack([decode_jpeg(encode_jpeg(image, quality)) for image in x])
        assert torch.equal(corrupt(x, "jpeg_compression", severity), theirs)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("side", [32, 45])
def test_zoom_blur_is_scipys(severity, side):
    def enlarge(a, z):
        kept = int(np.ceil(side / z)); top = (side - kept) // 2
        big = ndimage.zoom(a[:, top:top + kept, top:top + kept], (1, z, z), order=1)
        cut = (big.shape[1] - side) // 2
        return big[:, cut:cut + side, cut:cut + side]
    x = photographs(4, side)
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], .01)
    for ours, a in zip(corrupt(x, "zoom_blur", severity), x.double().numpy()):
        theirs = (a + sum(enlarge(a, z) for z in factors)) / (len(factors) + 1)
        assert np.abs(ours.numpy() - np.floor(theirs + 1e-6)).mean() < 1e-3


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("severity", range(1, 6))
def test_defocus_blur_is_a_softened_disk(severity, table):
    radius, sigma = TABLES[table]["defocus_blur"][severity - 1]
    v, e = (np.arange(-8, 9), 1) if radius <= 8 else (np.arange(-radius, radius + 1), 2)
    disk = (v[:, None]**2 + v**2 <= radius**2).astype(float)  # from a radius of 8 on it touches the grid's border, and the kernel sums to 1.01
    edge = np.exp(-np.arange(-e, e + 1)**2 / (2 * sigma**2))
    kernel = ndimage.convolve(disk / disk.sum(), np.outer(edge, edge) / edge.sum()**2, mode="mirror")
    theirs = np.minimum(ndimage.correlate(PHOTOS[:8].double().numpy(), kernel[None, None], mode="mirror"), 255.5)
    assert np.abs(corrupt(PHOTOS[:8], "defocus_blur", severity, table=table).numpy() - theirs + .5).mean() < .3
    assert np.abs(corrupt(PHOTOS[:8], "defocus_blur", severity, table=table).numpy() - theirs + .5).max() <= .51


@pytest.mark.parametrize("severity", range(1, 6))
def test_brightness_is_colorsys(severity):
    amount, x = TABLES["cifar"]["brightness"][severity - 1][0], PHOTOS[:1, :, ::4, ::4]
    y = corrupt(x, "brightness", severity)
    for (r, g, b), ours in zip((x[0].flatten(1).T / 255).tolist(), y[0].flatten(1).T.tolist()):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        theirs = np.array(colorsys.hsv_to_rgb(h, s, min(v + amount, 1))) * 255
        assert ((theirs - ours > -1e-3) & (theirs - ours < 1 + 1e-3)).all()


@pytest.mark.parametrize("severity", range(1, 6))
def test_contrast_moves_towards_the_channel_mean(severity):
    c, a = TABLES["cifar"]["contrast"][severity - 1][0], PHOTOS.numpy() / 255.
    m = a.mean((2, 3), keepdims=True)
    theirs = np.clip((a - m) * c + m, 0, 1) * 255
    assert (corrupt(PHOTOS, "contrast", severity).numpy() != np.floor(theirs + 1e-9)).mean() < 1e-4


def test_glass_blur_is_the_walk():
    "Pixel by pixel as the generator walks, with SciPy's Gaussian, offsets from our streams."
    x, sigma, reach, passes, key = PHOTOS[:2], *TABLES["tiny-imagenet"]["glass_blur"][4], image_keys(0, "glass_blur/5", torch.arange(2))
    def blur(a): return np.floor(ndimage.gaussian_filter(a.astype(float), (0, sigma, sigma), mode="nearest") + 1e-4)
    for i, ours in enumerate(corrupt(x, "glass_blur", 5, table="tiny-imagenet").numpy()):
        a = blur(x[i].numpy())
        steps = [integers(fold(key[:, i:i + 1], k), (2, 32, 32), -reach, reach)[0].numpy() for k in range(passes)]
        for k in range(passes):
            for r in range(32 - reach, reach, -1):
                for c in range(32 - reach, reach, -1): a[:, r, c] = a[:, r + steps[k][0, r, c], c + steps[k][1, r, c]]
        assert (ours != blur(a)).mean() < 1e-3


def test_motion_blur_of_a_point_is_the_kernel_backwards():
    "Horizontal, radius 2, sigma 1: a pixel reads itself and four to its right, so a point smears to its left."
    x = torch.zeros(1, 1, 11, 11); x[..., 5, 7] = 255
    y = corruptions._smear(x, torch.zeros(1, dtype=torch.float64), 2, 1.)[0, 0]
    kernel = np.exp(-np.arange(5)**2 / 2)
    expected = np.concatenate([np.zeros(3), (kernel / kernel.sum())[::-1] * 255, np.zeros(3)])
    assert np.abs(y[5].numpy() - expected).max() < 1e-3 and y[:5].sum() == y[6:].sum() == 0


@pytest.mark.parametrize("gap, mode", [(0, "mirror"), (1, "reflect")])
def test_bilinear_reading_is_scipys(gap, mode):
    rng = np.random.default_rng(0)
    at = rng.uniform(-12, 44, (2, 1, 20, 20))
    ours = corruptions._bilinear(PHOTOS[:1].double(), *torch.from_numpy(at), gap)[0, 0].numpy()
    assert np.abs(ours - ndimage.map_coordinates(PHOTOS[0, 0].double().numpy(), at[:, 0], order=1, mode=mode)).max() < 1e-9


def test_affine_map_moves_the_three_points():
    "Reading the coordinate planes themselves, the three corners of the triangle are read from where the draw put them."
    key = image_keys(4, "x", torch.arange(5))
    rows, columns = corruptions._affine_places(key, 32, 32, 0.)
    assert torch.equal(rows, torch.arange(32.)[:, None].expand(5, 32, 32)) and torch.equal(columns, torch.arange(32.).expand(5, 32, 32))
    moved = uniform(key, (3, 2), -1, 1) * 3
    rows, columns = (a.numpy() for a in corruptions._affine_places(key, 32, 32, 3.))
    for i in range(5):
        for (x, y), (dx, dy) in zip(((26, 26), (26, 6), (6, 6)), moved[i].tolist()):
            at = np.array([[y + dy], [x + dx]])
            if at.max() > 31: continue
            read_x, read_y = (ndimage.map_coordinates(plane[i], at, order=1)[0] for plane in (columns, rows))
            assert abs(read_x - x) < .06 and abs(read_y - y) < .06


@pytest.mark.parametrize("severity", range(1, 6))
def test_elastic_transform_is_scipys_with_our_draws(severity):
    "Two readings with two border rules, the displacement smoothed with a border of its own."
    alpha, sigma, affine = TABLES["cifar"]["elastic_transform"][severity - 1]
    key = image_keys(0, f"elastic_transform/{severity}", torch.arange(6))
    rows, columns = corruptions._affine_places(fold(key, 0), 32, 32, affine * 32)
    wild = uniform(fold(key, 1), (2, 32, 32), -1, 1).double().numpy()
    for i, ours in enumerate(corrupt(PHOTOS[:6], "elastic_transform", severity).numpy()):
        dy, dx = (ndimage.gaussian_filter(f, sigma * 32, mode="reflect", truncate=3) * alpha * 32 for f in wild[i])
        at = np.mgrid[:32, :32] + np.stack([dy, dx])
        for c in range(3):
            moved = ndimage.map_coordinates(PHOTOS[i, c].double().numpy(), (rows[i].numpy(), columns[i].numpy()), order=1, mode="mirror")
            theirs = np.floor(ndimage.map_coordinates(moved, at, order=1, mode="reflect") + 1e-4)
            assert np.abs(ours[c] - theirs).max() <= 1 and (ours[c] != theirs).mean() < 3e-3


@pytest.mark.parametrize("severity", range(1, 6))
def test_snow_is_the_recipe_with_our_draws(severity):
    "SciPy enlarges, loops smear, NumPy mixes."
    mean, sd, zoom, threshold, radius, sigma, share = TABLES["cifar"]["snow"][severity - 1]
    key = image_keys(0, f"snow/{severity}", torch.arange(4))
    angle = np.deg2rad(uniform(fold(key, 1), (1,))[:, 0].double().numpy() * 90 - 135)
    kernel = np.exp(-np.arange(2 * radius + 1)**2 / (2 * sigma**2)); kernel /= kernel.sum()
    kept = int(np.ceil(32 / zoom)); top = (32 - kept) // 2
    for i, ours in enumerate(corrupt(PHOTOS[:4], "snow", severity).numpy()):
        flakes = normal(fold(key, 0), (32, 32))[i].double().numpy() * sd + mean
        big = ndimage.zoom(flakes[top:top + kept, top:top + kept], zoom, order=1) if zoom != 1 else flakes
        cut = (len(big) - 32) // 2
        layer = big[cut:cut + 32, cut:cut + 32].copy()
        layer[layer < threshold] = 0
        layer, smeared = np.floor(np.clip(layer, 0, 1) * 255), np.zeros((32, 32))
        for t, k in enumerate(kernel):
            y, x = np.ceil(t * np.sin(angle[i]) - .5), np.ceil(t * np.cos(angle[i]) - .5)
            smeared += k * layer[np.ix_(np.clip(np.arange(32) + int(y), 0, 31), np.clip(np.arange(32) + int(x), 0, 31))]
        smeared = np.floor(smeared + .5 / 257) / 255
        a = PHOTOS[i].double().numpy() / 255
        grey = .299 * a[0] + .587 * a[1] + .114 * a[2]
        theirs = np.clip(share * a + (1 - share) * np.maximum(a, 1.5 * grey + .5) + smeared + np.rot90(smeared, 2), 0, 1) * 255
        assert (np.abs(ours - np.floor(theirs + 1e-6)) > 0).mean() < .01 and np.abs(ours - theirs).max() < 2.1


def test_fog_keeps_the_brightest_value():
    "The formula with our plasma, and its one invariant: where the plasma is 1 and the image at its brightest, nothing changes."
    key = image_keys(0, "fog/4", torch.arange(8))
    amount, decay = TABLES["cifar"]["fog"][3]
    a, cloud = PHOTOS[:8].double().numpy() / 255, corruptions._plasma(key, 32, decay).double().numpy()[:, None]
    top = a.max((1, 2, 3), keepdims=True)
    theirs = np.clip((a + amount * cloud) * top / (top + amount), 0, 1) * 255
    assert (corrupt(PHOTOS[:8], "fog", 4).numpy() != np.floor(theirs)).mean() < 2e-3
    white = torch.full((4, 1, 32, 32), 255, dtype=torch.uint8)
    assert (corrupt(white, "fog", 5).amax((1, 2, 3)) >= 254).all()


def test_plasma_is_a_fractal_in_range():
    key = image_keys(0, "x", torch.arange(50))
    rough = []
    for decay in (1.5, 2., 3.):
        p = corruptions._plasma(key, 32, decay)
        assert p.amin((1, 2)).eq(0).all() and p.amax((1, 2)).eq(1).all()
        rough.append((p[:, 1:] - p[:, :-1]).abs().mean().item())
    assert rough == sorted(rough, reverse=True)


def test_textures_that_a_caller_has_written_to_are_not_handed_out_again():
    "They are remembered: the next frost would have been laid on from what the caller made of them."
    drawn, x = frost_textures(160, .2), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    kept = drawn.clone()
    try:
        drawn.mul_(0)
        with pytest.raises(ValueError, match="what frost_textures gives is kept .* but it has been written to: write to a clone"):
            corrupt(x, "frost", 1)
    finally: frost_textures.there.clear()
    assert torch.equal(frost_textures(160, .2), kept) and corrupt(x, "frost", 1).any()


def test_photographs_of_frost_can_be_handed_in():
    ice = torch.zeros(3, 3, 50, 60, dtype=torch.uint8)
    for k in range(3): ice[k] = 20 * (k + 1)
    black = torch.zeros(90, 3, 32, 32, dtype=torch.uint8)
    level = corrupt(black, "frost", 1, frost=ice).flatten(1).float()
    assert (level.std(1) == 0).all() and level[:, 0].unique().tolist() == [4., 8., 12.]  # weight .2
    place = torch.arange(3000).view(1, 1, 50, 60) % 251
    crop = corrupt(black[:50], "frost", 1, frost=(place).to(torch.uint8))
    assert len(crop.flatten(1).unique(dim=0)) > 40  # the crops differ


def ice_folder(folder, sizes=((90, 60), (56, 50), (56, 50), (70, 48), (66, 49))):
    "Five files named as the photographs are, each of one colour and its own size."
    for k, (name, size) in enumerate(zip(PHOTOGRAPHS, sizes)):
        Image.new("RGBA" if name.endswith("png") else "RGB", tuple(5 * n for n in size), (50 * k, 0, 100)).save(Path(folder) / name)
    return folder


def test_a_folder_of_photographs_is_read_and_reduced(tmp_path):
    ice_folder(tmp_path)
    black = torch.zeros(120, 3, 32, 32, dtype=torch.uint8)
    y = corrupt(black, "frost", 5, frost=tmp_path)
    assert torch.equal(y, corrupt(black, "frost", 5, frost=str(tmp_path))) and torch.equal(y, corrupt(black, "frost", 5, frost=frost_photographs(tmp_path, .2)))
    red = y[:, 0, 0, 0].long()
    assert all((abs(red - .45 * 50 * k) < 2).any() for k in range(5)) and (y.flatten(2).float().std(2) == 0).all()
    assert [tuple(t.shape[1:]) for t in frost_photographs(tmp_path, .2)] == [(60, 90), (50, 56), (50, 56), (48, 70), (49, 66)]
    with pytest.raises(ValueError, match="larger than the images, 64 x 64, got 60 x 90"): corrupt(black.repeat(1, 1, 2, 2), "frost", 1, frost=tmp_path)
    (tmp_path / "frost2.png").unlink()
    with pytest.raises(FileNotFoundError, match="lacks frost2.png: give the folder with the frost photographs"): corrupt(black, "frost", 1, frost=tmp_path)


@pytest.mark.parametrize("scale, shape", [(.2, (63, 112)), (.3, (94, 168)), (1, (315, 560))])
def test_a_reduction_reads_between_pixels_as_pillow_does_without_smoothing(scale, shape):
    "Pillow's affine transform reads at the same places, with the same weights."
    x = photographs(1, 400)[0, :, :315].repeat(1, 1, 2)[..., :560]
    ours = reduced(x.float(), scale).add(.5).to(torch.uint8)
    theirs = as_pil(x).transform(shape[::-1], Image.AFFINE, (1 / scale, 0, 0, 0, 1 / scale, 0), Image.BILINEAR)
    assert ours.shape[1:] == shape and (ours.int() - as_tensor(theirs)).abs()[:, 1:-1, 1:-1].max() <= 1


@pytest.mark.parametrize("scale, sides, spreads, fine", [
    (.2, 160, (17.9, 22, 22, 29.3, 43), (91, 259, 259, 696, 699)), (.3, 160, (17, 20.9, 20.9, 26.8, 40.8), (58, 149, 149, 423, 408)),
    (1., 448, (18, 22, 22, 28.9, 43.1), (48, 68, 68, 235, 305))])
def test_frost_textures_have_the_colour_and_the_contrast_of_the_photographs(scale, sides, spreads, fine):
    "Mean, spread and the power of fine structure (10 to 17 cycles in 32 px) of the five photographs of the generator at its three sizes, measured once."
    t = frost_textures(sides, scale).double()
    radius = torch.hypot(*torch.meshgrid(*[torch.fft.fftfreq(sides) * 32] * 2, indexing="ij"))
    for texture, mean, spread, power in zip(t, (130, 204, 204, 157, 114), spreads, fine):
        assert abs(texture.mean() - mean) < 4 and abs(texture.mean(0).std() / spread - 1) < .3
        f = torch.fft.fft2(texture.mean(0)).abs().square()[(radius > 10) & (radius < 17)].mean() / sides**2
        assert .75 < f / power < 1.3
    assert not torch.equal(t[1], t[2])


# --- the four more

def test_the_four_more_stand_apart():
    assert EXTRA == ("speckle_noise", "gaussian_blur", "spatter", "saturate") and not set(EXTRA) & set(CORRUPTIONS)


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("table, side", [("cifar", 32), ("tiny-imagenet", 64), ("imagenet", 224)])
def test_gaussian_blur_is_scipys(severity, table, side):
    sigma, x = TABLES[table]["gaussian_blur"][severity - 1][0], photographs(2, side)
    theirs = ndimage.gaussian_filter(x.double().numpy(), (0, 0, sigma, sigma), mode="nearest", truncate=4)
    assert (corrupt(x, "gaussian_blur", severity, table=table).numpy() != np.floor(theirs + 1e-4)).mean() < 1e-3


@pytest.mark.parametrize("severity", range(1, 6))
@pytest.mark.parametrize("table", TABLES)
def test_saturate_is_colorsys(severity, table):
    factor, added = TABLES[table]["saturate"][severity - 1]
    x = PHOTOS[:2, :, ::2, ::2].clone()
    x[:, :, 0, :4] = torch.tensor([[0, 9, 80, 80], [0, 9, 80, 81], [0, 9, 81, 80]], dtype=torch.uint8)  # black, grey, and two that are the largest
    y = corrupt(x, "saturate", severity, table=table)
    for (r, g, b), ours in zip((x.movedim(1, -1).reshape(-1, 3) / 255).tolist(), y.movedim(1, -1).reshape(-1, 3).tolist()):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        theirs = np.array(colorsys.hsv_to_rgb(h, min(max(s * factor + added, 0), 1), v)) * 255
        assert ((theirs - ours > -1e-3) & (theirs - ours < 1 + 1e-3)).all(), (r, g, b)


def test_saturate_keeps_the_value_and_leaves_an_image_without_colour():
    for s in range(1, 6):
        assert torch.equal(corrupt(PHOTOS, "saturate", s).amax(1), PHOTOS.amax(1))
        assert torch.equal(corrupt(PHOTOS[:, :1], "saturate", s), PHOTOS[:, :1])


@pytest.mark.parametrize("severity", [1, 3])
@pytest.mark.parametrize("table", TABLES)
def test_water_adds_turquoise_where_the_liquid_is(severity, table):
    "SciPy smooths our draws; where it is dry nothing changes, elsewhere red, green and blue rise as 175 : 238 : 238, at most by the amount."
    mean, sd, sigma, threshold, amount, _ = TABLES[table]["spatter"][severity - 1]
    x, key = photographs(3, 64) // 4, image_keys(0, f"spatter/{severity}", torch.arange(3))
    liquid = ndimage.gaussian_filter(normal(key, (64, 64)).double().numpy() * sd + mean, (0, sigma, sigma), mode="nearest")
    rise = (corrupt(x, "spatter", severity, table=table).float() - x).numpy()
    assert (rise[np.broadcast_to((liquid < threshold - 1e-5)[:, None], rise.shape)] == 0).all() and (rise >= 0).all()
    assert np.abs(rise[:, 1] * 175 / 238 - rise[:, 0]).max() < 1 and np.array_equal(rise[:, 1], rise[:, 2])
    for top, wet in zip(rise.max((1, 2, 3)), (liquid >= threshold).any((1, 2))): assert abs(top - wet * int(238 * amount)) <= 1


@pytest.mark.parametrize("severity", [4, 5])
@pytest.mark.parametrize("table", TABLES)
def test_mud_covers_with_brown(severity, table):
    mean, sd, sigma, threshold, edge, _ = TABLES[table]["spatter"][severity - 1]
    x, key = photographs(3, 64), image_keys(0, f"spatter/{severity}", torch.arange(3))
    liquid = ndimage.gaussian_filter(normal(key, (64, 64)).double().numpy() * sd + mean, (0, sigma, sigma), mode="nearest")
    cover = ndimage.gaussian_filter((liquid > threshold).astype(float), (0, edge, edge), mode="nearest")[:, None]
    cover[cover < .8] = 0
    theirs = x.numpy() * (1 - cover) + np.array([63, 42, 20]).reshape(3, 1, 1) * cover
    assert (np.abs(corrupt(x, "spatter", severity, table=table).numpy() - np.floor(theirs + 1e-4)) > 1).mean() < 1e-3 and (cover > 0).any()


def test_a_dry_lens_changes_nothing():
    assert torch.equal(corruptions.spatter(PHOTOS[:3], image_keys(0, "x", torch.arange(3)), .1, .01, .7, .7, .5, 0), PHOTOS[:3])


# --- the sizes of Tiny-ImageNet and ImageNet

@pytest.mark.parametrize("table, side", [("tiny-imagenet", 64), ("imagenet", 224)])
@pytest.mark.parametrize("kind", ALL)
def test_larger_images_alone_are_as_in_their_batch(kind, table, side):
    x = photographs(3, side)
    whole = corrupt(x, kind, 5, seed=2, table=table)
    assert whole.dtype == torch.uint8 and whole.shape == x.shape
    assert torch.equal(whole[1:2], corrupt(x[1:2], kind, 5, seed=2, table=table, index=torch.tensor([1])))
    assert torch.equal(whole, corrupt(x, kind, 5, seed=3, table=table)) == (kind in FIXED)


def test_elastic_lengths_at_224_px_are_the_generators_multiples_of_244():
    assert [[round(c * 224 / 244, 12) for c in row] for row in TABLES["imagenet"]["elastic_transform"]] == [
        [2, .7, .1], [2, .08, .2], [.05, .01, .02], [.07, .01, .02], [.12, .01, .02]]


@pytest.mark.parametrize("severity, factors", [(1, np.arange(1, 1.11, .01)), (3, np.arange(1, 1.21, .02)), (5, np.arange(1, 1.31, .03))])
def test_wider_zoom_steps_are_scipys(severity, factors):
    x = photographs(1, 56)
    def enlarge(a, z):
        kept = int(np.ceil(56 / z)); top = (56 - kept) // 2
        big = ndimage.zoom(a[:, top:top + kept, top:top + kept], (1, z, z), order=1)
        cut = (big.shape[1] - 56) // 2
        return big[:, cut:cut + 56, cut:cut + 56]
    theirs = (x[0].double().numpy() + sum(enlarge(x[0].double().numpy(), z) for z in factors)) / (len(factors) + 1)
    assert np.abs(corrupt(x, "zoom_blur", severity, table="imagenet")[0].numpy() - np.floor(theirs + 1e-6)).mean() < 1e-3


# ---- large images ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("h, w, c", [(65, 64, 3), (96, 70, 1), (64, 131, 3)])
def test_zoom_blur_without_its_matrix_gives_the_same_bytes(h, w, c):
    x = torch.randint(0, 256, (2, c, h, w), dtype=torch.uint8, generator=torch.Generator().manual_seed(h))
    for count, step in ((7, .01), (26, .01), (11, .03)):
        matrix = C._zoom_matrix.__wrapped__(h, w, count, step, x.device)
        want = C._bytes(torch.sparse.mm(matrix, x.reshape(-1, h * w).double().t().contiguous()).t(), 1e-6).reshape(x.shape)
        assert torch.equal(C.zoom_blur(x, None, count, step), want)


def test_images_of_many_sizes_share_few_textures_and_the_tables_stay_small():
    sides = {frost.texture_side(h, w) for h in range(32, 700, 7) for w in range(32, 700, 9)}
    assert sides == {160, 224, 320, 448, 640, 896, 1280, 1792} and all(frost.texture_side(n, n) >= 2 * n for n in (80, 81, 300, 5000))
    for n in range(300, 360): C._smooth_side(n, 10., torch.device("cpu"))
    assert core.weight([*C._smooth_side.there.values()]) <= 1 << 26 and len(C._smooth_side.there) > 20


def test_a_large_texture_is_drawn_in_squares_that_fit():
    "The same ice as in squares that fit the longest needle, but for a light below a thousandth."
    def ice(large):
        with pytest.MonkeyPatch.context() as m:
            m.setattr(frost, "LARGE", large)
            return frost._ice(200, 14., 1., torch.Generator().manual_seed(1))
    assert (ice(448) - ice(100)).abs().max() < 1e-3
