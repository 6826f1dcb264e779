"""The perturbation sequences against things we did not write: torchvision and Pillow, SciPy, colorsys, OpenCV where it is installed, closed forms."""
import colorsys
import hashlib
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import ndimage, sparse, stats
from torchvision.transforms import InterpolationMode, functional as tv

from helpers import photographs
from mixrepro.data import corruptions, perturbations, water
from mixrepro.data.perturbations import EXTRA_PERTURBATIONS, HARDER, PERTURBATIONS, SEQUENCES, frames, perturb
from mixrepro.data.streams import image_keys, normal

ALL = (*PERTURBATIONS, *EXTRA_PERTURBATIONS, *HARDER)
RANDOM = tuple(k for k in ALL if "noise" in k or k in ("spatter", "snow"))
SHORT = PERTURBATIONS + EXTRA_PERTURBATIONS  # the harder noises go through the same code


PHOTOS = photographs(8, 32, seed=1)
def as_pil(x): return Image.fromarray(x.permute(1, 2, 0).numpy())
def as_tensor(im): return torch.from_numpy(np.array(im)).permute(2, 0, 1)


# --- the contract, for every kind

def test_the_lists_are_the_reference_ones():
    assert PERTURBATIONS == ("gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "spatter", "brightness", "translate", "rotate", "tilt",
                             "scale")
    assert set(EXTRA_PERTURBATIONS) == {"speckle_noise", "gaussian_blur", "snow", "shear"} and len(set(ALL)) == 20
    assert all(set(t) == set(ALL) == set(perturbations.FILMS) for t in SEQUENCES.values())
    assert {k: frames(k) for k in ALL if frames(k) != 31} == {"motion_blur": 21, "translate": 16}
    assert {k: frames(k, "imagenet") for k in ALL if frames(k, "imagenet") != 31} == {"translate": 41}


@pytest.mark.parametrize("table, checksum", [("cifar", 236753357), ("tiny-imagenet", 3169615119), ("imagenet", 1290366362)])
def test_constants_are_the_generators(table, checksum):
    """The numbers in ImageNet-P/create_p of hendrycks/robustness: make_cifar_p.py at 3d6c46d2, make_tinyimagenet_p.py and make_imagenet_p.py at e0377d46.
    How many frames, what stays, then the first value of what changes and its step."""
    numbers = np.concatenate([np.hstack(SEQUENCES[table][kind]) for kind in ALL])
    assert zlib.crc32(np.round(numbers, 6).astype("<f8").tobytes()) == checksum


@pytest.mark.parametrize("kind", ALL)
def test_shape_type_and_an_input_left_alone(kind):
    x, before = PHOTOS[:2], PHOTOS[:2].clone()
    films = perturb(x, kind)
    assert films.dtype == torch.uint8 and films.shape == (2, frames(kind), 3, 32, 32) and films.is_contiguous() and torch.equal(x, before)
    assert all(not torch.equal(a, b) for a, b in zip(films[0], films[0, 1:]))  # every frame is another


@pytest.mark.parametrize("kind", ALL)
def test_the_seed_decides_what_is_random_and_nothing_else(kind):
    torch.manual_seed(0); state = torch.get_rng_state()
    first = perturb(PHOTOS[:4], kind, seed=1)
    assert torch.equal(first, perturb(PHOTOS[:4], kind, seed=1))
    assert torch.equal(first, perturb(PHOTOS[:4], kind, seed=2)) == (kind not in RANDOM)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("kind", SHORT)
def test_an_image_alone_is_as_in_its_batch(kind):
    whole, order = perturb(PHOTOS, kind, seed=3), torch.tensor([5, 0, 7, 2, 1, 6, 3, 4])
    assert torch.equal(whole[order], perturb(PHOTOS[order], kind, seed=3, index=order))
    for i in (0, 5): assert torch.equal(whole[i:i + 1], perturb(PHOTOS[i:i + 1], kind, seed=3, index=torch.tensor([i])))


@pytest.mark.parametrize("kind", SHORT)
def test_neither_chunks_nor_threads_change_a_byte(kind, monkeypatch):
    whole, before = perturb(PHOTOS, kind), torch.get_num_threads()
    try:
        for chunk, threads in ((1, 1), (3 * 3072, 2)):
            monkeypatch.setattr(corruptions, "CHUNK", chunk)
            torch.set_num_threads(threads)
            assert torch.equal(whole, perturb(PHOTOS, kind)) and torch.get_num_threads() == threads
    finally: torch.set_num_threads(before)


@pytest.mark.parametrize("kind", SHORT)
@given(h=st.integers(16, 40), w=st.integers(16, 40), c=st.sampled_from([1, 3]), n=st.integers(1, 3), table=st.sampled_from(list(SEQUENCES)),
       fill=st.sampled_from(["random", 0, 255]), seed=st.integers(0, 2**40))
@settings(max_examples=4, deadline=None)
def test_any_size_and_any_values(kind, h, w, c, n, table, fill, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, c, h, w), dtype=np.uint8)) if fill == "random" else \
        torch.full((n, c, h, w), fill, dtype=torch.uint8)
    films = perturb(x, kind, seed, table=table)
    assert films.shape == (n, frames(kind, table), c, h, w) and films.dtype == torch.uint8
    if fill != "random" and kind in ("motion_blur", "gaussian_blur", "zoom_blur"): assert (films == fill).all()  # a flat image has nothing to blur
    if fill == 0 and kind not in ("spatter", "brightness", "snow", "gaussian_noise"): assert not films.any()


@pytest.mark.parametrize("kind", [k for k in SHORT if "noise" not in k and k != "spatter"])
def test_a_grey_image_moves_alike_in_one_and_in_three_channels(kind):
    grey = PHOTOS[:2, :1]
    assert torch.equal(perturb(grey, kind).expand(-1, -1, 3, -1, -1), perturb(grey.expand(-1, 3, -1, -1), kind))


@pytest.mark.cuda
@pytest.mark.parametrize("kind", ALL)
def test_a_gpu_gives_the_same_bytes(kind):
    there = perturb(PHOTOS.cuda(), kind)
    assert there.is_cuda and (perturb(PHOTOS, kind) != there.cpu()).float().mean() < 1e-4


@pytest.mark.parametrize("change, error, message", [
    (dict(kind="snw"), ValueError, "unknown perturbation 'snw': did you mean 'snow'"),
                                                    (dict(table="tiny"), ValueError, "unknown table of constants 'tiny'"),
    (dict(x=PHOTOS.numpy()), TypeError, "got ndarray"), (dict(x=PHOTOS / 255), TypeError, "got torch.float32"),
                                                    (dict(x=PHOTOS[0]), ValueError, r"\(N, C, H, W\)"),
    (dict(x=PHOTOS[:0]), ValueError, "empty"), (dict(x=PHOTOS[..., :7]), ValueError, "at least 8 x 8"),
                                                    (dict(crop=4), ValueError, "crop must be from 8 to 32"),
    (dict(crop=33), ValueError, "got 33"), (dict(index=torch.arange(3)), ValueError, "each of the 8 images")])
def test_mistakes_are_named(change, error, message):
    with pytest.raises(error, match=message) as e: perturb(**dict(x=PHOTOS, kind="tilt") | change)
    assert len(str(e.value)) < 420 and "\n" not in str(e.value)


# --- noise against its law, and independence

@pytest.mark.parametrize("kind", [k for k in ALL if "noise" in k])
def test_noise_begins_clean_and_has_its_law(kind):
    levels = torch.tensor([70, 100, 140], dtype=torch.uint8).repeat(30)  # thirty images of each of three greys
    films, constant = perturb(levels.view(-1, 1, 1, 1).expand(-1, 1, 16, 16).contiguous(), kind), SEQUENCES["cifar"][kind][1]
    assert (films[:, 0, 0, 0, 0] == levels).all()
    for v in (70, 100, 140):
        seen = films[levels == v, 1:].flatten().double()
        variance = {"gau": (255 * constant)**2, "spe": (constant * v)**2, "sho": 255 * v / constant}[kind[:3]]
        assert abs(seen.mean() - (v - .5)) < 5 * (variance / len(seen))**.5 + .1 and abs(seen.var() / (variance + 1 / 12) - 1) < .03
        if kind[:3] == "gau":
            law = np.diff(stats.norm.cdf((np.arange(-1, 256) + 1 - v) / (255 * constant))); law[255] += 1 - law.sum()
            count = np.bincount(seen.int(), minlength=256); keep = law * len(seen) > 8
            assert stats.chisquare(count[keep], law[keep] * count[keep].sum() / law[keep].sum()).pvalue > 1e-5


@pytest.mark.parametrize("kind", ["gaussian_noise", "shot_noise", "speckle_noise"])
def test_noise_is_independent_between_images_and_between_frames(kind):
    d = perturb(torch.full((6, 1, 32, 32), 128, dtype=torch.uint8), kind)[:, 1:7].double().flatten(0, 1).flatten(1)
    f = torch.fft.rfft(d - d.mean(1, keepdim=True))
    f = f / f.abs().clamp(min=1e-9)
    largest = max(torch.fft.irfft(f[i] * f[j].conj()).abs().max().item() for i in range(len(f)) for j in range(i))
    assert largest < .25  # a copy at any shift would give 1


def test_snow_and_spatter_differ_between_images():
    same = PHOTOS[:1].expand(6, -1, -1, -1).contiguous()
    for kind in ("snow", "spatter"):
        films = perturb(same, kind)
        assert len({f.numpy().tobytes() for f in films}) > 4


# --- geometry against torchvision on Pillow images, SciPy and OpenCV

@pytest.mark.parametrize("kind, arguments", [("rotate", lambda i: (i - 15, 1., 0.)), ("scale", lambda i: (0, (70 + 2 * i) / 100, 0.)),
                                             ("shear", lambda i: (0, 1., float(i - 15)))])
@given(h=st.integers(12, 40), w=st.integers(12, 40), seed=st.integers(0, 999))
@settings(max_examples=3, deadline=None)
def test_linear_maps_are_torchvisions_on_pillow(kind, arguments, h, w, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, h, w), dtype=np.uint8))
    film = perturb(x, kind)[0]
    theirs = [tv.affine(as_pil(x[0]), a, [0, 0], s, [shear, 0.], InterpolationMode.BILINEAR) for a, s, shear in map(arguments, range(31))]
    off = (film.int() - torch.stack([as_tensor(im) for im in theirs]).int()).abs()
    assert off.max() <= 1 and (off > 0).float().mean() < (5e-4 if kind == "rotate" else .01)  # the last bit decides at a whole level


def test_rotation_is_scipys_inside():
    "Where both read inside of the image: the same bilinear interpolation about the same centre."
    film = perturb(PHOTOS[:2], "rotate")
    for i in (3, 12, 24):
        a = np.deg2rad(i - 15); m = np.array([[np.cos(a), -np.sin(a)], [np.sin(a), np.cos(a)]])  # on (row, column)
        c = np.array([15.5, 15.5])
        for ours, x in zip(film[:, i], PHOTOS):
            theirs = np.stack([ndimage.affine_transform(b.double().numpy(), m, c - m @ c, order=1) for b in x])
            assert np.abs(ours.numpy() - theirs)[:, 6:26, 6:26].max() <= 1


@given(h=st.integers(16, 40), w=st.integers(16, 40), seed=st.integers(0, 999))
@settings(max_examples=5, deadline=None)
def test_translation_is_torchvisions(h, w, seed):
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, 3, h, w), dtype=np.uint8))
    for i, ours in enumerate(perturb(x, "translate")[0]): assert torch.equal(ours, as_tensor(tv.affine(as_pil(x[0]), 0, [i - 7, 0], 1., [0.])))
    for i, ours in enumerate(perturb(x, "translate")[0]): assert np.array_equal(ours, ndimage.shift(x[0].numpy(), (0, 0, i - 7), order=0))


def test_zoom_blur_is_the_running_mean_of_torchvisions_zooms():
    for ours, x in zip(perturb(PHOTOS, "zoom_blur"), PHOTOS):
        total = x.float() / 255
        assert torch.equal(ours[0], x)
        for i in range(1, 31):
            total = total + tv.to_tensor(tv.affine(as_pil(x), 0, [0, 0], 1 + .004 * i, [0.], InterpolationMode.BILINEAR))
            assert (ours[i] != as_tensor(tv.to_pil_image(total / (i + 1)))).float().mean() < 2e-3


def plane(angle, side):
    "Homography of a tilted plane from its four corners, each turned and projected by itself."
    t, f = np.deg2rad(angle), np.hypot(side, side)
    def seen(x, y):
        p = np.array([x - side / 2, y - side / 2, 1.])
        p = np.array([p[0] * np.cos(t) - p[2] * np.sin(t), p[1], p[0] * np.sin(t) + p[2] * np.cos(t)])  # about the vertical axis
        p = np.array([p[0], p[1] * np.cos(t) - p[2] * np.sin(t), p[1] * np.sin(t) + p[2] * np.cos(t)])  # about the horizontal axis
        depth = p[2] + f
        return f * p[0] / depth + side / 2, f * p[1] / depth + side / 2
    rows, right = [], []
    for x, y in ((0, 0), (side, 0), (0, side), (side, side)):
        u, v = seen(x, y)
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]; right += [u, v]
    return np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)


@pytest.mark.parametrize("side, table, step", [(32, "cifar", .75), (20, "tiny-imagenet", 1.)])
def test_tilt_is_a_projected_plane_read_by_scipy(side, table, step):
    x = photographs(3, side)
    film = perturb(x, "tilt", table=table)
    grid = np.stack([*np.mgrid[:side, :side][::-1], np.ones((side, side))]).reshape(3, -1)
    for i in (0, 7, 15, 30):
        u, v, d = np.linalg.inv(plane(step * (i - 15), side)) @ grid
        at = np.rint(np.stack([v / d, u / d]) * 32) / 32
        for ours, image in zip(film[:, i], x):
            padded = np.pad(image.double().numpy(), ((0, 0), (2, 2), (2, 2)))  # black beyond the border, also between the border and the first pixel
            theirs = np.stack([ndimage.map_coordinates(b, at + 2, order=1, mode="constant").reshape(side, side) for b in padded])
            off = np.abs(ours.numpy() - np.floor(theirs + .5))
            assert off.max() <= 1 and (off > 0).mean() < 2e-3


def test_tilt_is_opencvs():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: the comparison with SciPy stands for it")
    for i in (0, 9, 30):
        for ours, x in zip(perturb(PHOTOS, "tilt")[:, i], PHOTOS):
            theirs = as_tensor(cv2.warpPerspective(x.permute(1, 2, 0).contiguous().numpy(), perturbations._homography(.75 * (i - 15), 32, 32),
                                                   (32, 32)))
            assert (ours.int() - theirs.int()).abs().float().mean() < .5  # version 5 reads exact places, not multiples of 1/32


# --- blur, brightness, weather

@pytest.mark.parametrize("frame, axis, origin", [(0, 2, -6), (20, 2, 6), (10, 1, -6)])
def test_motion_blur_along_an_axis_is_scipys(frame, axis, origin):
    k = np.exp(-np.arange(13)**2 / (2 * 1.8**2)); k /= k.sum()
    weights = k if origin < 0 else k[::-1]
    weights = np.concatenate([np.zeros(12), k]) if frame == 20 else np.concatenate([k[::-1], np.zeros(12)])
    for ours, x in zip(perturb(PHOTOS, "motion_blur")[:, frame], PHOTOS):
        theirs = ndimage.correlate1d(x.double().numpy(), weights, axis=axis, mode="nearest")
        assert np.abs(ours.numpy() - np.floor(theirs + .002)).mean() < .01


@pytest.mark.parametrize("table, first, step", [("cifar", .3, .015), ("imagenet", .25, .035)])
def test_gaussian_blur_is_scipys(table, first, step):
    for ours, x in zip(perturb(PHOTOS, "gaussian_blur", table=table), PHOTOS):
        for i in (0, 13, 30):
            s = first + step * i
            off = np.abs(ours[i].numpy() - np.floor(ndimage.gaussian_filter(x.double().numpy(), (0, s, s), mode="nearest", truncate=7.) + 1e-9))
            assert off.max() <= 1 and off.mean() < 5e-3  # the kernel's far tail decides where a mean is a whole level


def test_brightness_is_colorsys():
    rng, film = np.random.default_rng(0), perturb(PHOTOS, "brightness")
    for n, i, y, x in zip(rng.integers(0, 8, 300), rng.integers(0, 31, 300), *rng.integers(0, 32, (2, 300))):
        h, s, v = colorsys.rgb_to_hsv(*(PHOTOS[n, :, y, x] / 255).tolist())
        want = np.array(colorsys.hsv_to_rgb(h, s, min(max(v + (i - 15) * .015, 0), 1))) * 255
        assert np.abs(film[n, i, :, y, x].numpy() - want).max() < 1 + 1e-5  # a whole level may be cut off to the one below


def test_snow_on_black_is_the_same_flakes_turned():
    "On black the whitened image is a constant, and what falls is a layer and the layer turned by half a circle."
    film = perturb(torch.zeros(8, 3, 32, 32, dtype=torch.uint8), "snow").int()
    assert film.min() == 19  # .15 * 127.5
    assert torch.equal(film, film.flip(3, 4)) and (film.max(4).values.max(3).values > 60).any()
    light = (film - 19).float().sum((2, 3, 4))
    assert (light.max(1).values / light.min(1).values.clamp(min=1)).median() < 1.6  # a smear moves light, it does not make any


# --- water

def steps_of(edge):
    "Distances by Dijkstra over the graph of steps."
    h, w = edge.shape
    node, cost, n = np.arange(h * w).reshape(h, w), {1: 65536, 2: 91750, 5: 143976}, h * w
    a, b, c = [], [], []
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            if (q := dy * dy + dx * dx) not in cost: continue
            here = node[max(0, -dy):h - max(0, dy), max(0, -dx):w - max(0, dx)].ravel()
            a += here.tolist(); b += (here + dy * w + dx).tolist(); c += [cost[q]] * len(here)
    graph = sparse.csr_matrix((c, (a, b)), (n, n))
    return sparse.csgraph.dijkstra(graph, indices=node[edge], min_only=True).reshape(h, w) / 65536


@given(h=st.integers(3, 20), w=st.integers(3, 20), seed=st.integers(0, 999), many=st.sampled_from([.01, .1]))
@settings(max_examples=15, deadline=None)
def test_distance_is_the_shortest_path(h, w, seed, many):
    edge = np.random.default_rng(seed).random((2, h, w)) < many
    edge[:, seed % h, seed % w] = True
    assert np.abs(water.distance(torch.from_numpy(edge)).numpy() - np.stack([steps_of(e) for e in edge])).max() < 1e-5


def edges_of(a, low=50, high=150):
    "Canny pixel by pixel: sizes, ridges, then a walk from the strong ones."
    h, w = a.shape
    gx, gy = (ndimage.sobel(a.astype(int), axis, mode="nearest") for axis in (1, 0))
    size = np.pad(np.abs(gx) + np.abs(gy), 1)
    weak = np.zeros((h, w), bool)
    for y in range(h):
        for x in range(w):
            m, u, v = size[y + 1, x + 1], abs(int(gx[y, x])), abs(int(gy[y, x]))
            if m <= low: continue
            if v * 2**15 < u * 13573: weak[y, x] = m > size[y + 1, x] and m >= size[y + 1, x + 2]
            elif v * 2**15 > u * 13573 + u * 2**16: weak[y, x] = m > size[y, x + 1] and m >= size[y + 2, x + 1]
            else:
                s = -1 if (gx[y, x] < 0) != (gy[y, x] < 0) else 1
                weak[y, x] = m > size[y, x + 1 - s] and m > size[y + 2, x + 1 + s]
    return ndimage.binary_propagation(weak & (size[1:-1, 1:-1] > high), np.ones((3, 3)), mask=weak)


@given(h=st.integers(3, 20), w=st.integers(3, 20), seed=st.integers(0, 999), smooth=st.sampled_from([0, 1, 2]))
@settings(max_examples=15, deadline=None)
def test_edges_are_those_of_a_walk_over_pixels(h, w, seed, smooth):
    a = ndimage.gaussian_filter(np.random.default_rng(seed).normal(128, 120, (2, h, w)), (0, smooth, smooth))
    a = ((a - a.mean()) * (1 + smooth) + 128).clip(0, 255).astype(np.uint8)
    assert np.array_equal(water.edges(torch.from_numpy(a)), np.stack([edges_of(b) for b in a]))


@given(h=st.integers(2, 20), w=st.integers(2, 20), top=st.integers(1, 256), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_equalize_is_a_rank(h, w, top, seed):
    a = np.random.default_rng(seed).integers(0, top, (1, h, w), dtype=np.uint8)
    rank = np.array([(a.ravel() <= v).sum() - (a == a.min()).sum() for v in a.ravel()]).reshape(a.shape)
    rest = a.size - (a == a.min()).sum()
    assert np.abs(water.equalize(torch.from_numpy(a)).numpy() - (rank / rest * 255 if rest else a)).max() <= .5 + 1e-4


def liquid():
    "Five smooth pictures of whole numbers, some places dry."
    a = ndimage.uniform_filter(np.random.default_rng(0).integers(0, 4096, (5, 44, 36)), (0, 5, 5))
    a = ndimage.uniform_filter(a, (0, 3, 3))
    return np.where(a > 2100, (a // 12).clip(0, 255), 0).astype(np.uint8)


def test_relief_is_as_it_was_when_compared_with_opencv():
    "The digest of a result that OpenCV 4.14 gives byte for byte; the next test compares again where OpenCV is installed."
    light = water.relief(torch.from_numpy(liquid()))
    assert hashlib.sha256(light.to(torch.uint8).numpy().tobytes()).hexdigest() == "60d9a8705bda21210e6ced128273f81994b7d71ae1c815c411a471cd5645cbc6"


def test_relief_is_opencvs():
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed: its result is recorded as a digest")
    for a, ours in zip(liquid(), water.relief(torch.from_numpy(liquid()))):
        d = np.minimum(cv2.distanceTransform(255 - cv2.Canny(a, 50, 150), cv2.DIST_L2, 5), 20)
        d = cv2.equalizeHist(cv2.blur(d, (3, 3)).astype(np.uint8))
        theirs = cv2.blur(cv2.filter2D(d, cv2.CV_8U, np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]])), (3, 3))
        assert np.array_equal(ours, theirs)


def test_water_only_brightens_and_runs_down():
    film = perturb(PHOTOS, "spatter").int()
    assert (film - PHOTOS[:, None].int()).min() >= 0 and (film > PHOTOS[:, None]).any()
    dark = perturb(torch.zeros(64, 3, 32, 32, dtype=torch.uint8), "spatter")[:, :, 0].double()
    share = dark.sum(3) @ torch.arange(32.).double() / dark.sum((2, 3)).clamp(min=1)  # mean row of the light
    wet = (dark.sum((2, 3)) > 0).all(1)
    assert wet.sum() > 20 and (share[wet, 12] - share[wet, 0]).mean() > 3
    assert dark.max() <= .6 * 175


def test_the_liquid_falls_as_numpys_convolution_has_it():
    "Frame 1 of the film is frame 0 of the liquid convolved downwards."
    mean, sd, sigma, threshold, fall = SEQUENCES["imagenet"]["spatter"][1:]
    keys, x = image_keys(0, "x", torch.arange(1)), torch.zeros(1, 1, 40, 40, dtype=torch.uint8)
    field = ndimage.gaussian_filter(normal(keys, (40, 40))[0].mul(sd).add(mean).double().numpy(), sigma, mode="nearest")
    field[field < threshold] = 0
    for frame in perturbations.spatter_film(x, keys, 4, mean, sd, sigma, threshold, fall):
        byte = (field * 255).astype(np.uint8)
        drops = byte * water.relief(torch.from_numpy(byte)[None])[0].numpy()
        grey = np.dot((175, 238, 238), (.299, .587, .114))
        assert np.abs(frame[0, 0].numpy() - np.floor(drops / max(drops.max(), 1) * .6 * grey)).max() <= 1
        field = np.apply_along_axis(lambda column: np.convolve(column, fall, mode="same"), 0, field)


# --- crop

@pytest.mark.parametrize("kind", SHORT)
def test_a_crop_of_what_moves_sees_the_margin_and_the_rest_does_not(kind):
    x = photographs(2, 48)
    cut = perturb(x, kind, crop=32)
    assert cut.shape == (2, frames(kind), 3, 32, 32)
    inside = perturb(x[:, :, 8:40, 8:40], kind)
    if kind in perturbations.WIDE: assert torch.equal(cut, perturb(x, kind)[..., 8:40, 8:40])
    assert torch.equal(cut, inside) == (kind not in perturbations.WIDE or kind == "zoom_blur")  # a zoom needs no margin
