"""Our corruptions beside fifty images that went through the original generator, where those are at hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import SHARED
from mixrepro.data import corruptions
from mixrepro.data.corruptions import CORRUPTIONS, TABLES, corrupt
from mixrepro.data.fidelity import averages, beside, power

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform")
FIXED = tuple(k for k in CORRUPTIONS if k not in RANDOM)


def shared():
    if not (SHARED / "cifar10c_reference" / "first50_test.npz").exists():
        pytest.skip("the reference images are not here: set MIXREPRO_SHARED_DATA to the folder that holds cifar10c_reference and cifar10")
    return SHARED


@pytest.fixture(scope="module")
def reference():
    "Clean images uint8 (50, 3, 32, 32), and for each kind the generator's, uint8 (5, 50, 3, 32, 32)."
    folder = shared()
    sheet = np.asarray(Image.open(folder / "cifar10" / "test_00.webp").convert("RGB"))
    clean = torch.from_numpy(sheet[:64].reshape(2, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(50, 3, 32, 32).copy())
    with np.load(folder / "cifar10c_reference" / "first50_test.npz") as z:
        made = {k: torch.from_numpy(z[k]).permute(0, 1, 4, 2, 3) for k in CORRUPTIONS}
    return clean, made


@pytest.mark.parametrize("kind", FIXED)
def test_what_is_not_random_equals_the_generators(kind, reference):
    clean, made = reference
    for s in range(1, 6):
        d = (corrupt(clean, kind, s).float() - made[kind][s - 1]).abs()
        assert d.max() <= 1 and d.mean() < (0 if kind in ("pixelate", "jpeg_compression", "contrast") else .005) + 1e-9


@pytest.mark.parametrize("kind", RANDOM)
def test_what_is_random_has_the_generators_statistics(kind, reference):
    """Change, its mean, its spread and its spectrum, for one draw of the generator against twelve of ours, in units of our spread from draw to draw.
    A wrong constant or border rule shows as ten and more. Frost is drawn, not photographed, and is held to 15% and 35% instead."""
    clean, made = reference
    x = clean.float()
    for s in range(1, 6):
        def summary(y): d = y.float() - x; return torch.stack([d.abs().mean(), d.mean(), d.std(), *power(d).log()]).double()
        ours, theirs = torch.stack([summary(corrupt(clean, kind, s, seed=k)) for k in range(12)]), summary(made[kind][s - 1])
        gap = (ours.mean(0) - theirs).abs()
        if kind == "frost": assert gap[0] / theirs[0] < .15 and gap[2] / theirs[2] < .15 and gap[3:].max() < .35
        else: assert (gap / (ours.std(0) + 1e-3)).max() < 5.5, (s, gap / (ours.std(0) + 1e-3))


def test_motion_blur_has_the_generators_kernel(reference):
    "The generator's angle is unknown; at the best of all angles nearly every pixel agrees."
    clean, made = reference
    angles = torch.arange(-45, 45.1, .25, dtype=torch.float64)
    for s, (radius, sigma) in enumerate(TABLES["cifar"]["motion_blur"]):
        for i in range(3):
            ours = corruptions._bytes(corruptions._smear(clean[i:i + 1].float().repeat(len(angles), 1, 1, 1), angles, radius, sigma), .5 / 257)
            assert (ours.float() - made["motion_blur"][s, i]).abs().mean((1, 2, 3)).min() < .02


@pytest.fixture(scope="module")
def photographs():
    folder = shared() / "corruption_samples" / "frost"
    if not folder.is_dir(): pytest.skip("the photographs of frost are not here: set MIXREPRO_SHARED_DATA to the folder that holds corruption_samples")
    return folder


def test_frost_with_the_photographs_has_the_generators_statistics(reference, photographs):
    "As for the other random ones; twenty draws, because one of fifty images uses each photograph ten times only."
    clean, made = reference
    for s in range(1, 6):
        def summary(y): d = y.float() - clean; return torch.stack([d.abs().mean(), d.mean(), d.std(), *power(d).log()]).double()
        ours, theirs = torch.stack([summary(corrupt(clean, "frost", s, seed=k, frost=photographs)) for k in range(20)]), summary(made["frost"][s - 1])
        assert ((ours.mean(0) - theirs).abs() / (ours.std(0) + 1e-3)).max() < 5.5, s


def test_the_images_of_the_generator_hold_crops_of_the_photographs(reference, photographs):
    """Frost is the one random corruption that can be undone: (y - a x) / b is a crop of a photograph. At severity 5 nearly every image has a place in one of
    the five reduced photographs where our formula gives the generator's bytes."""
    clean, made = reference
    image, ice, scale = TABLES["cifar"]["frost"][4]
    pool, found = corruptions.photographs(photographs, scale), 0
    for x, y in zip(clean[:6].float(), made["frost"][4][:6].float()):
        best = []
        for t in pool:
            crops = t.float().unfold(1, 32, 1).unfold(2, 32, 1).movedim(0, 2)[:, :, :, ::4, ::4]
            best.append(((x[:, ::4, ::4] * image + crops * ice).clamp(0, 255) - y[:, ::4, ::4] - .5).abs().mean((2, 3, 4)).min().item())
        found += min(best) < .8
    assert found >= 5


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_the_notebooks_table_holds(kind, reference):
    "Bytes within a hundredth of a grey level on average, or as far from theirs as two of our draws are from each other."
    clean, made = reference
    c = averages(clean, made[kind], kind)
    if kind in FIXED: assert c["difference"] < .01 and c["redrawn"] == 0 and c["bytes off"] < .005
    else:
        assert abs(c["difference"] / c["redrawn"] - 1) < .12 and abs(c["mean"] - c["mean of theirs"]) < 1 and abs(c["sd"] / c["sd of theirs"] - 1) < .08
        assert all(abs(c[f"power {k}"] - 1) < .12 for k in range(4))


# --- the comparison itself, which needs no images from elsewhere

def test_a_wrong_constant_shows():
    x = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)) // 2 + 64
    def gap(kind, s): return beside(x, corrupt(x, kind, 3, seed=9), kind, s)
    assert abs(gap("gaussian_noise", 3)["power 2"] - 1) < .02 < abs(gap("gaussian_noise", 4)["power 2"] - 1)
    assert gap("brightness", 3)["difference"] == 0 and gap("brightness", 2)["difference"] > 5 and gap("brightness", 2)["bytes off"] > .9
    assert abs(gap("impulse_noise", 3)["sd"] / gap("impulse_noise", 3)["sd of theirs"] - 1) < .03


def test_power_is_parsevals():
    d = torch.randn(9, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    radius = np.hypot(*np.meshgrid(np.fft.fftfreq(32) * 32, np.fft.fftfreq(32) * 32))
    count = np.bincount(np.searchsorted((2.5, 6.5, 11.5), radius).ravel())
    assert (power(d).numpy() * count).sum() == pytest.approx(d.square().mean().item() * 32 * 32)
    assert torch.allclose(power(torch.full((1, 1, 32, 32), 3.)), torch.tensor([9. * 1024 / count[0], 0, 0, 0], dtype=torch.float64))
