"Flip probabilities against the definition in plain loops; films by seed, in portions, from a folder; means and rates."
import tracemalloc
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.digits import blobs
from mixrepro.data.images import ImageSet
from mixrepro.data.make import make_p
from mixrepro.data.perturbations import PERTURBATIONS, frames, perturb
from mixrepro.metrics import catalogue, flips as F
from mixrepro.repro.rows import reported
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store


def naive(said, noise):
    "One film's flips by the words of the definition."
    flips, last = 0, said[0]
    for now in said[1:]:
        flips += now != last
        if not noise: last = now
    return flips / (len(said) - 1)


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 20), st.integers(2, 31), st.integers(1, 4), st.integers(0, 10_000), st.booleans())
def test_flips_are_the_definition(m, n, k, seed, noise):
    said = torch.randint(k, (m, n), generator=seeded(seed))
    found = F.flipped(said, noise)
    assert found.tolist() == pytest.approx([naive(row, noise) for row in said.tolist()])
    assert ((0 <= found) & (found <= 1)).all() and (k > 1 or not found.any())


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 12), st.integers(2, 10), st.integers(0, 10_000))
def test_what_flips_do_not_see(m, n, seed):
    said, rng = torch.randint(5, (m, n), generator=seeded(seed)), seeded(seed + 1)
    films, names = torch.randperm(m, generator=rng), torch.randperm(5, generator=rng)
    for first in (True, False):
        found = F.flipped(said, first)
        assert torch.equal(F.flipped(said[films], first), found[films]) and torch.equal(F.flipped(names[said], first), found)
    later = torch.cat([said[:, :1], said[:, 1:][:, torch.randperm(n - 1, generator=rng)]], 1)
    assert torch.equal(F.flipped(later, True), F.flipped(said, True))         # noise: the order of the frames after the first
    assert torch.equal(F.flipped(said.flip(1), False), F.flipped(said, False))  # the others: the film run backwards


class Levels(nn.Module):
    "The class is a bin of the mean grey level, so the flips of a film can be worked out from its bytes."
    edges = torch.linspace(0, 1, 41)
    def forward(self, x): return nn.functional.one_hot(torch.bucketize(x.mean((1, 2, 3)), self.edges[1:-1]), 40).float()


@pytest.mark.parametrize("kind", ["gaussian_noise", "brightness", "rotate", "translate", "motion_blur", "snow"])
def test_a_network_is_asked_about_every_frame(kind):
    test = load("digits", "test").subset(9)
    (found,) = F.flips([Levels()], test, (kind,), seed=3)
    film = perturb(test.x, kind, seed=3)
    said = np.digitize((film.float() / 255).mean((2, 3, 4)).numpy(), Levels.edges[1:-1].numpy(), right=True)
    want = [naive(row, "noise" in kind) for row in said.tolist()]
    assert found["arrays"]["flipped"].shape == (1, 9) and found["arrays"]["flipped"][0].tolist() == pytest.approx(want)
    assert found["flips"][kind] == pytest.approx(np.mean(want)) and (kind in ("translate", "gaussian_noise") or np.mean(want) > 0)


def test_portions_and_batches_change_nothing(monkeypatch):
    test, net = blobs("test", n=7), Levels()
    want = F.flips([net], test, ("shot_noise", "tilt"))[0]
    made = []
    monkeypatch.setattr(F, "perturb", lambda x, *args: made.append(len(x)) or perturb(x, *args))
    monkeypatch.setattr(F, "FILM_BYTES", 3 * 31 * 3072)
    got = F.flips([net], test, ("shot_noise", "tilt"))[0]
    assert made == [3, 3, 1] * 2 and got["flips"] == want["flips"]
    assert torch.equal(got["arrays"]["flipped"], want["arrays"]["flipped"])
    assert torch.equal(F.classes_of(net, perturb(test.x, "tilt"), batch=5), F.classes_of(net, perturb(test.x, "tilt")))


def test_memory_is_that_of_a_portion(monkeypatch):
    "Arrays from a folder are mapped: of 20 MB of films a portion of 1 MB is held, and the making of none is asked for."
    sizes = []
    monkeypatch.setattr(F, "FILM_BYTES", 1 << 20)
    x = np.zeros((220, 31, 32, 32, 3), np.uint8)
    monkeypatch.setattr(F, "stored_films", lambda *_: x)
    test = ImageSet(torch.zeros(220, 3, 32, 32, dtype=torch.uint8), torch.arange(220) % 4, tuple("abcd"), "blobs", "test")
    tracemalloc.start()
    for film in F.films(test, "tilt", torch.arange(220), folder="x"): sizes.append(film.numel())
    peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert sum(sizes) == x.size and max(sizes) <= 1 << 20 and peak < 4 << 20


def test_seed_and_place_decide_a_film():
    test, net = load("digits", "test").subset(40), Levels()
    one, again, other = (F.flips([net], test, ("gaussian_noise", "snow"), images=20, seed=s)[0] for s in (0, 0, 1))
    assert torch.equal(one["arrays"]["flipped"], again["arrays"]["flipped"]) and one["images"] == 20
    assert not torch.equal(one["arrays"]["flipped"], other["arrays"]["flipped"])
    every = F.flips([net], test, ("snow",))[0]["arrays"]["flipped"][0]
    assert torch.equal(every[F.balanced(test.y, 20)], one["arrays"]["flipped"][1])


def test_each_film_is_made_once_for_all_networks(monkeypatch):
    made = []
    monkeypatch.setattr(F, "perturb", lambda x, kind, *args: made.append(kind) or perturb(x, kind, *args))
    one, two = F.flips([Levels(), lambda x: -Levels()(x)], blobs("test", n=4), ("tilt", "spatter"))
    assert made == ["tilt", "spatter"] and one["flips"] != two["flips"]


def test_released_arrays_are_read_where_they_lie(tmp_path, monkeypatch):
    clean = blobs("test", n=8)
    test = ImageSet(clean.x, clean.y, clean.classes, "cifar10", "test")
    made = make_p(test.x, None, tmp_path / "made", ("gaussian_noise", "tilt"), seed=5)
    (folder := tmp_path / "CIFAR-10-P").mkdir()
    for f in made.glob("*.npy"): f.rename(folder / f.name)
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    (read,), (here,) = (F.flips([Levels()], test, ("gaussian_noise", "tilt"), images=6, **how) for how in (dict(source="released"), dict(seed=5)))
    assert read["flips"] == here["flips"] and read["films"] == "released" and "seed" not in read and here["films"] == "generated"
    with pytest.raises(ValueError, match="and the test set 3 images .* pass the whole test split"):
        F.flips([Levels()], test.subset(3), ("tilt",), source="released")
    with pytest.raises(FileNotFoundError, match="snow.npy is missing"): F.flips([Levels()], test, ("snow",), source="released")
    with pytest.raises(ValueError, match="unknown source of films 'relaesed': did you mean 'released'"): F.flips([Levels()], test, source="relaesed")


def test_frames_follow_the_table():
    test = blobs("test", n=2, size=64)
    (found,) = F.flips([Levels()], test, ("translate",))
    assert found["table"] == "tiny-imagenet" and next(F.films(test, "translate", torch.arange(2), table="tiny-imagenet")).shape[1] == frames("translate", "tiny-imagenet") == 31


def test_a_network_that_has_diverged_is_refused():
    with pytest.raises(ValueError, match="62 of 62 rows of logits hold NaN"): F.flips([lambda x: x.flatten(1)[:, :3] * torch.nan], blobs("test", n=2), ("tilt",))


# ---- means and rates ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("id", ["nm-table13", "nm-table14"])
def test_the_printed_means_are_plain_means_of_probabilities(id):
    "The columns average to the printed mean within its rounding: nothing is divided."
    table = reported("noisymix", id).pivot(index="row", columns="column", values="mean")
    assert len(table) == 8
    for _, row in table.iterrows(): assert F.mean_flips(row.to_dict(), F.AS_PRINTED) == pytest.approx(row["mean"], abs=.0501 + .05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000))
def test_means_and_rates_by_hand(seed):
    rng = np.random.default_rng(seed)
    found, base = ({k: float(v) for k, v in zip(F.FILMED, rng.uniform(.01, 1, 11))} for _ in range(2))
    by = F.Baseline("made", base)
    assert F.mean_flips(found) == pytest.approx(sum(found[k] for k in PERTURBATIONS) / 10)
    assert F.mean_flips(found, F.AS_PRINTED) - F.mean_flips(found) == pytest.approx((found["snow"] - found["spatter"]) / 10)
    assert F.mean_flip_rate(found, by) == pytest.approx(sum(found[k] / base[k] for k in PERTURBATIONS) / 10)
    assert F.mean_flip_rate({k: 3 * v for k, v in found.items()}, by) == pytest.approx(3 * F.mean_flip_rate(found, by))
    assert F.mean_flip_rate(base, by) == pytest.approx(1)
    images = {k: np.array([v, 2 * v]) for k, v in found.items()}
    assert F.mean_flip_rate(images, by) == pytest.approx([F.mean_flip_rate(found, by), 2 * F.mean_flip_rate(found, by)])


def test_a_baseline_is_the_mean_over_its_seeds():
    seeds = [dict(flips=dict(tilt=.1, snow=.4)), dict(flips=dict(tilt=.3, snow=0.))]
    assert F.baseline("erm, five seeds", seeds).flips == pytest.approx(dict(tilt=.2, snow=.2))
    with pytest.raises(ValueError, match="erm never flips under snow"): F.baseline("erm", seeds[1:])
    with pytest.raises(ValueError, match="flip probabilities hold NaN"): F.Baseline("erm", dict(tilt=float("nan")))


def test_a_run_keeps_its_flips(tmp_path, monkeypatch):
    "Made once, image by image too; the number of images stands in the name."
    test = load("digits", "test").subset(12)
    monkeypatch.setattr(catalogue, "load", lambda name, split: test if split == "test" else load(name, split))
    monkeypatch.setattr(catalogue, "METRICS", catalogue.METRICS | {"flips-on-500": partial(F.flips, images=5)})
    run = train_run(Spec("digits", "erm", "tiny-cnn", epochs=2, n_train=200, batch=20, augment="none"), Store(tmp_path), "cpu")
    [every], [few] = (catalogue.measure([run], name, "cpu") for name in ("flips", "flips-on-500"))
    assert (every["images"], few["images"]) == (12, 5) and set(every["flips"]) == set(F.FILMED) and every == catalogue.kept(run, "flips")
    monkeypatch.setattr(catalogue, "open_net", None)
    [images] = catalogue.of_images([run], "flips", "cpu")
    assert {k: v.mean() for k, v in images["flips"].items()} == pytest.approx(every["flips"]) and catalogue.measure([run], "flips", "cpu") == [every]
    assert F.mean_flips(images["flips"]).mean() == pytest.approx(F.mean_flips(every["flips"])) and F.mean_flips(images["flips"]).shape == (12,)
    assert catalogue.key_of("flips", "cifar10") == "flips" and set(catalogue.AT_SOME.values()) <= {*catalogue.METRICS, *catalogue.READ}


def test_a_kind_that_a_folder_lacks_is_missed_before_the_first_one_is_measured(tmp_path):
    "The films before it, hours of them, would have been read for nothing."
    test, asked = blobs("test", n=4), []
    np.save(tmp_path / "brightness.npy", np.zeros((4, 3, 32, 32, 3), np.uint8))
    def net(x): asked.append(len(x)); return Levels()(x)
    with pytest.raises(FileNotFoundError, match="tilt.npy is missing"): F.flips([net], test, ("brightness", "tilt"), source=F.RELEASED, folder=tmp_path)
    assert not asked and F.flips([net], test, ("brightness",), source=F.RELEASED, folder=tmp_path)[0]["flips"] == {"brightness": 0.}
