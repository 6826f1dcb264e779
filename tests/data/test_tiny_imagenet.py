"""Tiny-ImageNet: its folder, its kept images, and what is not whole."""
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image

from helpers import SHARED, moments
from mixrepro.data import tiny_imagenet as D
from mixrepro.data.datasets import STATS, load


@pytest.fixture
def tiny(small_tiny, tmp_path):
    "A copy of it, for breaking; its test part only."
    shutil.copytree(small_tiny, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("decoded-*", "train"))
    return tmp_path


def test_tiny_imagenet_is_read_as_pillow_and_torchvision_read_it(small_tiny):
    train, test = (load("tiny-imagenet", s, small_tiny) for s in ("train", "test"))
    assert (len(train), len(test), train.shape, train.classes) == (1000, 100, (3, 64, 64), ("goldfish, Carassius auratus", "tree frog"))
    assert train.standin == "Tiny-ImageNet, with 2 of its 200 classes" and "stands in for" in repr(train)
    theirs = torchvision.datasets.ImageFolder(small_tiny / "tiny-imagenet-200" / "train")
    want = {Path(p).name: y for p, y in theirs.samples}
    for i in (0, 1, 7, 499, 500, 777):
        name = f"n0{1 + i // 500}_{i % 500}.JPEG"
        pixels = np.asarray(Image.open(small_tiny / "tiny-imagenet-200" / "train" / name[:3] / "images" / name).convert("RGB"))
        assert np.array_equal(train.x[i].permute(1, 2, 0), pixels) and train.y[i] == want[name]
    assert test.y.tolist() == [0] * 50 + [1] * 50 and (test.x[:50, 1].float().mean() < 5) and (test.x[50:, 1].float().mean() > 90)


def test_kept_images_are_used_until_a_file_changes(tiny, monkeypatch):
    first, folder = load("tiny-imagenet", "test", tiny), tiny / "tiny-imagenet-200"
    def refuse(*_): raise AssertionError("decoded again")
    monkeypatch.setattr(D, "decode", refuse)
    assert torch.equal(load("tiny-imagenet", "test", tiny).x, first.x)
    Image.new("RGB", (64, 64), (255, 255, 255)).save(folder / "val" / "images" / "val_0.JPEG")
    with pytest.raises(AssertionError, match="decoded again"): load("tiny-imagenet", "test", tiny)
    monkeypatch.undo()
    again = load("tiny-imagenet", "test", tiny)
    assert (again.x[0] == 255).all() and torch.equal(again.x[1:], first.x[1:]) and torch.equal(load("tiny-imagenet", "test", tiny).x, again.x)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_damaged_file_of_kept_images_is_made_again(tmp_path_factory, data):
    path, x = tmp_path_factory.mktemp("kept") / "kept.npz", torch.arange(3000, dtype=torch.uint8).view(10, 300)
    D.cached(path, "key", lambda: x)
    whole = path.read_bytes()
    if data.draw(st.booleans()): path.write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert torch.equal(D.cached(path, "key", lambda: x), x)
    assert torch.equal(D.cached(path, "key", lambda: x), x) and not list(path.parent.glob("*.part"))


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tiny, monkeypatch):
    def full(*_): raise OSError(28, "no space left on device")
    monkeypatch.setattr(D.os, "fsync", full)
    with pytest.warns(UserWarning, match="the decoded images are not kept, so every call will decode them again: .*no space left"):
        assert len(load("tiny-imagenet", "test", tiny)) == 100
    assert not [p for p in (tiny / "tiny-imagenet-200").iterdir() if "decoded" in p.name]


@pytest.mark.parametrize("harm, error, sentence", [
    (lambda f: (f / "wnids.txt").unlink(), FileNotFoundError, "wnids.txt is missing"),
    (lambda f: (f / "words.txt").unlink(), FileNotFoundError, "words.txt is missing"),
    (lambda f: (f / "val/val_annotations.txt").unlink(), FileNotFoundError, "val_annotations.txt is missing"),
    (lambda f: (f / "val/images/val_3.JPEG").unlink(), FileNotFoundError, "val_3.JPEG is missing"),
    (lambda f: (f / "wnids.txt").write_text("n01\n"), ValueError, "val names the class 'n02', which wnids.txt does not list"),
    (lambda f: (f / "wnids.txt").write_text("n01\nn02\nn03\n"), ValueError, "val holds 0 images of class n03, expected 50"),
    (lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\nval_1"), ValueError, "val names the class ''"),
    (lambda f: (f / "val/val_annotations.txt").write_text("val_0.JPEG\tn01\t0\n"), ValueError, "val holds 1 images of class n01, expected 50"),
    (lambda f: os.truncate(f / "val/images/val_3.JPEG", 600), ValueError, "val_3.JPEG is not a whole image"),
    (lambda f: (f / "val/images/val_3.JPEG").write_text("<html>"), ValueError, "val_3.JPEG is not a whole image"),
    (lambda f: Image.new("RGB", (64, 32)).save(f / "val/images/val_3.JPEG"), ValueError, "val_3.JPEG has 64 x 32 pixels, expected 64 x 64")])
def test_a_folder_of_tiny_imagenet_that_is_not_whole_is_refused(tiny, harm, error, sentence):
    harm(tiny / "tiny-imagenet-200")
    with pytest.raises(error, match=sentence + ".*: run `mixrepro data get tiny-imagenet --root"): load("tiny-imagenet", "test", tiny)


def test_seventeen_real_classes_of_tiny_imagenet(tmp_path_factory):
    path = SHARED / "tiny_imagenet" / "tiny-imagenet-subset.zip"
    if not path.is_file(): pytest.skip("no part of Tiny-ImageNet at hand: set MIXREPRO_SHARED_DATA to a folder that holds tiny_imagenet/")
    with zipfile.ZipFile(path) as z: z.extractall(root := tmp_path_factory.mktemp("real-tiny"))
    train, test = (load("tiny-imagenet", s, root) for s in ("train", "test"))
    assert (len(train), len(test), train.k) == (8500, 850, 17)
    assert train.y.bincount().tolist() == [500] * 17 and test.y.bincount().tolist() == [50] * 17
    assert train.standin == test.standin == "Tiny-ImageNet, with 17 of its 200 classes" and train.classes[:2] == ("centipede", "Chihuahua")
    theirs = torchvision.datasets.ImageFolder(root / "tiny-imagenet-200" / "train")
    order = sorted(range(8500), key=lambda i: (theirs.targets[i], len(theirs.samples[i][0]), theirs.samples[i][0]))
    assert train.y.tolist() == [theirs.targets[i] for i in order]
    for i in range(0, 8500, 500): assert np.array_equal(train.x[i].permute(1, 2, 0), np.asarray(theirs[order[i]][0]))
    for c, (mean, std) in enumerate(zip(*STATS["tiny-imagenet"])):  # the constants are those of all 200 classes
        ours = moments(train.x[:, c].numpy())
        assert abs(ours[0] - mean) < .02 and abs(ours[1] - std) < .005
