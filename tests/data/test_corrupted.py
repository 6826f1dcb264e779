"""Corrupted sets on disk: blocks of the released layout, sets made here, JPEG files, and what is not whole."""
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import write_c
from mixrepro.data import corrupted as D
from mixrepro.data.datasets import DATASETS, STATS, add, load
from mixrepro.data.make import make
from mixrepro.data.readers import CIFAR10_CLASSES


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_released_set_is_mapped_and_cut_at_the_right_place(tmp_path, severity):
    write_c(tmp_path / "CIFAR-10-C")
    before = (tmp_path / "CIFAR-10-C" / "fog.npy").stat().st_mtime_ns
    s = D.load_c("cifar10", "fog", severity, tmp_path)
    assert (len(s), s.shape, s.classes, s.standin, s.split) == (10_000, (3, 32, 32), CIFAR10_CLASSES, "", "test")
    assert D.c_folder("cifar10", tmp_path) == (tmp_path / "CIFAR-10-C", "released")
    assert s.x[[0, 7, 9999], :, 0, 0].tolist() == [[severity, i % 251, 9] for i in (0, 7, 9999)]
    assert s.x[1:7].eq(0).all() and s.y.tolist() == [i % 10 for i in range(10_000)]
    s.x[0] = 99  # stays in memory
    assert np.load(tmp_path / "CIFAR-10-C" / "fog.npy", mmap_mode="r")[(severity - 1) * 10_000, 0, 0, 0] == severity
    assert (tmp_path / "CIFAR-10-C" / "fog.npy").stat().st_mtime_ns == before


@pytest.mark.parametrize("folder", ["CIFAR-100-C", "cifar100-c-made"])
def test_a_set_made_here_says_so(tmp_path, folder):
    write_c(tmp_path / folder, n=300, k=100, made=True)
    s = D.load_c("cifar100-c", "fog", 2, tmp_path)
    assert len(s) == 300 and s.standin == "the released CIFAR-100-C" and s.name == "cifar100-c fog 2"
    assert D.c_folder("cifar100-c", tmp_path) == (tmp_path / folder, "made here")


def test_released_comes_before_made_here_unless_asked(tmp_path):
    write_c(tmp_path / "CIFAR-10-C")
    write_c(tmp_path / "cifar10-c-made", n=40, made=True)
    for origin, n, standin in (("", 10_000, ""), ("released", 10_000, ""), ("made here", 40, "the released CIFAR-10-C")):
        s = D.load_c("cifar10", "fog", 1, tmp_path, origin)
        assert (len(s), s.standin) == (n, standin)
    with pytest.raises(ValueError, match="unknown origin 'made her': did you mean 'made here'"): D.load_c("cifar10", "fog", 1, tmp_path, "made her")
    with pytest.raises(FileNotFoundError, match="cifar100-c-made/fog.npy is missing"): D.load_c("cifar100", "fog", 1, tmp_path, "made here")
    with pytest.raises(FileNotFoundError, match="digits-c-made/fog.npy is missing: make it here with"): D.load_c("digits", "fog", 1, tmp_path)


def test_a_set_made_of_another_data_set_is_not_this_ones(tmp_path):
    make("digits-0to4-c", tmp_path, kinds=("contrast",))
    (tmp_path / "digits-0to4-c-made").rename(tmp_path / "digits-5to9-c-made")
    with pytest.raises(ValueError, match="digits-5to9-c-made was made of digits-0to4, not of digits-5to9, so it has to go"): D.load_c("digits-5to9", "contrast", 1, tmp_path)
    (tmp_path / "digits-5to9-c-made").rename(tmp_path / "digits-0to4-c-made")
    assert len(D.load_c("digits-0to4", "contrast", 1, tmp_path)) == 270


def test_a_set_made_of_pictures_that_had_the_name_before_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path / "data"))
    for k, c in enumerate("aaaaabbbbb"):
        (tmp_path / "pics" / c).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), 20 * k, np.uint8)).save(tmp_path / "pics" / c / f"{k}.png")
    add("mine", tmp_path / "pics")
    make("mine-c", kinds=("contrast",))
    assert len(D.load_c("mine", "contrast", 1)) == 2
    add("mine", tmp_path / "pics", seed=1)
    with pytest.raises(ValueError, match="mine-c-made was made of other pictures than mine is now, so it has to go"): D.load_c("mine", "contrast", 1)
    DATASETS.found.clear(), STATS.found.clear()


def test_what_make_makes_is_what_load_c_loads(tmp_path):
    "Grey images, of a data set that was never released corrupted."
    from mixrepro.data.corruptions import corrupt
    from mixrepro.data.make import make_c
    clean = load("digits", "test").subset(20)
    make_c(clean.x, clean.y, tmp_path / "digits-c-made", kinds=("fog", "pixelate"), seed=3)
    s = D.load_c("digits", "fog", 4, tmp_path)
    assert torch.equal(s.x, corrupt(clean.x, "fog", 4, seed=3)) and torch.equal(s.y, clean.y)
    assert s.standin == "digits-c, which was never released" and s.classes == clean.classes


@pytest.mark.parametrize("harm, error, sentence", [
    (lambda f: (f / "fog.npy").unlink(), FileNotFoundError, "fog.npy is missing"),
    (lambda f: (f / "labels.npy").unlink(), FileNotFoundError, "labels.npy is missing"),
    (lambda f: os.truncate(f / "fog.npy", 10_000_000), ValueError, "fog.npy is not a whole .npy file"),
    (lambda f: os.truncate(f / "fog.npy", 0), ValueError, "fog.npy is not a whole .npy file"),
    (lambda f: (f / "fog.npy").write_text("<html>busy</html>"), ValueError, "fog.npy is not a whole .npy file"),
    (lambda f: np.save(f / "fog.npy", np.zeros((50, 3, 2, 2), np.uint8)), ValueError, r"has shape \(50, 3, 2, 2\), expected \(50000, 32, 32, 3\)"),
    (lambda f: np.save(f / "fog.npy", np.zeros((5, 32, 32, 3), np.float32)), ValueError, r"holds float32 \(5, 32, 32, 3\), expected 4 axes of uint8"),
    (lambda f: np.save(f / "labels.npy", np.zeros(10_000, np.uint8)), ValueError, "labels.npy holds 10000 labels for the 50000 images"),
    (lambda f: np.save(f / "labels.npy", np.arange(50_000) % 11), ValueError, "labels.npy runs from 0 to 10, expected the same labels 0..9"),
    (lambda f: np.save(f / "labels.npy", np.arange(50_000) // 5_000), ValueError, "expected the same labels 0..9 in each of five blocks"),
    (lambda f: np.save(f / "labels.npy", np.zeros(50_000)), ValueError, "labels.npy holds float64")])
def test_a_corrupted_set_that_is_not_whole_is_refused(tmp_path, harm, error, sentence):
    write_c(folder := tmp_path / "CIFAR-10-C")
    harm(folder)
    with pytest.raises(error, match=sentence) as e: D.load_c("cifar10", "fog", 1, tmp_path)
    assert str(folder) in str(e.value) and f"run `mixrepro data get cifar10-c --root {tmp_path}`" in str(e.value)


def test_a_pickled_array_is_not_unpickled(tmp_path):
    write_c(folder := tmp_path / "CIFAR-10-C")
    np.save(folder / "fog.npy", np.array([{}], dtype=object))
    with pytest.raises(ValueError, match="fog.npy is not a whole .npy file"): D.load_c("cifar10", "fog", 1, tmp_path)


def test_tiny_imagenet_c_in_its_released_folders(small_tiny, tmp_path):
    shutil.copytree(small_tiny, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("decoded-*", "train"))
    for c, w in enumerate(("n01", "n02")):
        (images := tmp_path / "Tiny-ImageNet-C" / "frost" / "4" / w).mkdir(parents=True)
        for i in range(50): Image.new("RGB", (64, 64), (200, 50 * c, i)).save(images / f"val_{i}.JPEG")
    s = D.load_c("tiny-imagenet", "frost", 4, tmp_path)
    assert s.y.tolist() == [0] * 50 + [1] * 50 and s.classes[1] == "tree frog" and (s.x[:50, 1] < 10).all() and (s.x[50:, 1] > 40).all()
    assert torch.equal(D.load_c("tiny-imagenet", "frost", 4, tmp_path).x, s.x)
    (tmp_path / "Tiny-ImageNet-C" / "frost" / "4" / "n03").mkdir()
    with pytest.raises(ValueError, match="4 holds 3 classes, expected 2 .Zenodo 2536630 has a wrong frost, 8206060 the right one."):
        D.load_c("tiny-imagenet", "frost", 4, tmp_path)
    sentence = "frost.npy is missing: run `mixrepro data get tiny-imagenet-c"
    with pytest.raises(FileNotFoundError, match=sentence): D.load_c("tiny-imagenet", "frost", 3, tmp_path)


def test_tiny_imagenet_c_made_here_needs_no_words(tmp_path):
    write_c(tmp_path / "Tiny-ImageNet-C", n=400, k=200, size=64, made=True)
    s = D.load_c("tiny-imagenet-c", "fog", 5, tmp_path)
    assert (s.shape, s.k, s.standin) == ((3, 64, 64), 200, "the released Tiny-ImageNet-C") and s.x[399, 0, 0, 0] == 5


# films as folders of frames --------------------------------------------------------------------------------------------

def write_films(folder, films):
    "Films {path: uint8 (frames, H, W, 3)} as numbered pictures."
    for path, film in films.items():
        (at := folder / path).mkdir(parents=True)
        for k, frame in enumerate(film): Image.fromarray(frame).save(at / f"{k}.png")


def test_frames_are_read_as_an_array_would_be(tmp_path):
    rng = np.random.default_rng(0)
    films = {f"tilt/n{c}/val_{i}": rng.integers(0, 256, (12, 7, 5, 3), np.uint8) for c in (2, 1) for i in (3, 1)}
    write_films(tmp_path, films)
    found, order = D.read_p(tmp_path, "tilt"), sorted(films)
    whole = np.stack([films[k] for k in order])
    assert found.x.shape == whole.shape and len(found.x) == 4 and found.y.tolist() == [0, 0, 1, 1]
    for i in (slice(None), slice(1, 3), np.array([3, 0]), np.array([2])): assert np.array_equal(found.x[i], whole[i])
    assert np.array_equal(found.x[2], whole[2]) and found.x[0].nbytes == whole[0].nbytes
    assert found.severity is None and found.origin == "released" and "4 of (12, 7, 5, 3)" in repr(found)


@pytest.mark.parametrize("harm, sentence", [
    (lambda f: (f / "a/x/0.png").write_bytes(b"no picture"), "x/0.png is not a whole image"),
    (lambda f: Image.new("RGB", (9, 9)).save(f / "a/x/0.png"), r"x holds 3 frames of \[\(6, 5\), \(9, 9\)\] pixels, expected some of one size"),
    (lambda f: [p.unlink() for p in (f / "a/x").iterdir()], r"x holds 0 frames of \[\] pixels"),
    (lambda f: (f / "a/y/2.png").unlink(), r"a film has \(2, 6, 5, 3\) values, and the first of them \(3, 6, 5, 3\)"),
    (lambda f: (f / "a/film.mp4").touch(), "tilt holds mp4 films, which nothing here decodes: turn each into a folder of its frames")])
def test_films_that_cannot_be_read_are_named(tmp_path, harm, sentence):
    write_films(tmp_path / "tilt", {f"a/{k}": np.zeros((3, 6, 5, 3), np.uint8) for k in "xy"})
    harm(tmp_path / "tilt")
    with pytest.raises(ValueError, match=sentence): D.read_p(tmp_path, "tilt").x[:]


def test_labels_of_a_made_set_that_are_those_of_others(tmp_path):
    "In range and the same in each block, so that every accuracy would be a wrong number."
    folder = make("digits-c", tmp_path, kinds="brightness")
    y = D.load_c("digits", "brightness", 1, tmp_path).y
    np.save(folder / "labels.npy", np.tile((y.numpy() + 1) % 10, 5))
    with pytest.raises(ValueError, match="labels.npy holds other labels than the set was made with: make it here with"): D.load_c("digits", "brightness", 1, tmp_path)
    make("digits-c", tmp_path, kinds="brightness")
    assert torch.equal(D.load_c("digits", "brightness", 1, tmp_path).y, y)
