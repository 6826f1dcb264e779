"""Tiny-ImageNet: its folder, its kept images, and what is not whole."""
import os
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image

from helpers import SHARED, moments
from mixrepro.data import corrupted as C, fetch as F, tiny_imagenet as D
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


@pytest.fixture
def whole(tmp_path, monkeypatch):
    "A folder that is whole, if a class has three images and two: (root, the folder)."
    folder = tmp_path / "tiny-imagenet-200"
    monkeypatch.setitem(D.TINY_ROWS, "train", 3); monkeypatch.setitem(D.TINY_ROWS, "test", 2)
    part = F.Part("tiny-imagenet-200", {"wnids.txt": "", "words.txt": "", "val/val_annotations.txt": ""}, {"train": 6, "val": 4}, D.tiny_faults)
    monkeypatch.setitem(F.DATA, "tiny-imagenet", replace(F.DATA["tiny-imagenet"], editions=((F.Remote("t.zip", (), (part,)),),)))
    (folder / "val/images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n01\nn02\n"); (folder / "words.txt").write_text("n01\tgoldfish\nn02\ttree frog\n")
    (folder / "val/val_annotations.txt").write_text("".join(f"val_{i}.JPEG\tn0{1 + i // 2}\t0\n" for i in range(4)))
    for i in range(4): Image.new("L", (64, 64), 40 * i).save(folder / f"val/images/val_{i}.JPEG")
    for w in ("n01", "n02"):
        (folder / "train" / w / "images").mkdir(parents=True)
        for i in range(3): Image.new("RGB", (64, 64), (0, i, 0)).save(folder / "train" / w / f"images/{w}_{i}.JPEG")
    return tmp_path, folder


def sort_into_classes(folder):
    "What many scripts do to the validation images."
    for i in range(4):
        (folder / f"val/n0{1 + i // 2}/images").mkdir(parents=True, exist_ok=True)
        (folder / f"val/images/val_{i}.JPEG").rename(folder / f"val/n0{1 + i // 2}/images/val_{i}.JPEG")


@pytest.mark.parametrize("harm", [
    lambda f: None, lambda f: (f / "train/n01/images/._n01_1.JPEG").write_bytes(b"x"), lambda f: (f / "train/n01/images/n01_1.JPEG").rename(f / "train/n01/images/n01_1.jpg"),
    sort_into_classes, lambda f: (f / "train/.ipynb_checkpoints").mkdir(), lambda f: shutil.copytree(f / "val/images", f / "val/.hidden"), lambda f: (f / "val/images/Thumbs.db").touch()])
def test_what_is_whole_is_read_and_what_is_read_is_whole(whole, harm):
    root, folder = whole
    harm(folder)
    assert F.verify("tiny-imagenet", root) == [] and F.fetch("tiny-imagenet", root) == [folder]
    assert load("tiny-imagenet", "train", root).y.tolist() == [0] * 3 + [1] * 3 and load("tiny-imagenet", "test", root).x[:, 0, 0, 0].tolist() == [0, 40, 80, 120]


@pytest.mark.parametrize("harm, split, sentence", [
    (lambda f: (f / "train/n01/images/n01_1.JPEG").unlink(), "train", "train holds 2 images of class n01, expected 3: that of number 1 is missing"),
    (lambda f: shutil.copy(f / "train/n01/images/n01_1.JPEG", f / "train/n01/images/n01_1.jpg"), "train", "train holds 4 images of class n01, expected 3: n01_1.jpg is one too many"),
    (lambda f: (f / "train/n01/images/n01_1.JPEG").rename(f / "train/n02/images/n02_3.JPEG"), "train", "train holds 2 images of class n01, expected 3: that of number 1"),
    (lambda f: (f / "val/images/val_2.JPEG").rename(f / "val/images/val_9.JPEG"), "test", "val_2.JPEG is missing"),
    (lambda f: os.truncate(f / "val/images/val_3.JPEG", 300), "test", "val_3.JPEG is not a whole image"),
    (lambda f: Image.new("RGB", (64, 32)).save(f / "val/images/val_3.JPEG"), "test", "val_3.JPEG has 64 x 32 pixels, expected 64 x 64")])
def test_what_load_refuses_is_named_by_verify_and_its_remedy_works(whole, harm, split, sentence):
    root, folder = whole
    harm(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=f"{sentence}.*: run `mixrepro data get tiny-imagenet --root") as e: load("tiny-imagenet", split, root)
    assert any(sentence in w for w in F.verify("tiny-imagenet", root))
    if "; delete that file first" in str(e.value): (folder / "val/images/val_3.JPEG").unlink()
    said = []
    with pytest.raises(OSError): F.fetch("tiny-imagenet", root, say=said.append)  # it goes for another copy
    assert "is not whole" in said[0]


def test_a_kind_of_tiny_imagenet_c_is_whole_when_it_can_be_read(tmp_path, monkeypatch):
    monkeypatch.setattr(C, "TINY_CLASSES", 2); monkeypatch.setitem(D.TINY_ROWS, "test", 3)
    for s in range(1, 6):
        for w in ("n01", "n02"):
            (at := tmp_path / "Tiny-ImageNet-C/fog" / str(s) / w).mkdir(parents=True)
            for i in range(3): Image.new("RGB", (64, 64), (i, 0, s)).save(at / f"val_{i}.JPEG")
    fog = tmp_path / "Tiny-ImageNet-C/fog"
    (fog / "3/.ipynb_checkpoints").mkdir(); (fog / "4/n01/._val_0.JPEG").touch(); (fog / "5/n01/val_1.JPEG").rename(fog / "5/n01/val_1.jpg")
    for s in range(1, 6): assert len(C.load_c("tiny-imagenet", "fog", s, tmp_path)) == 6
    part = F.Part("Tiny-ImageNet-C/fog", count={"": 30}, check=C.kind_faults)
    assert F.faults(part, fog, deep=True) == [] and [p.check for p in F.DATA["tiny-imagenet-c"].editions[0][0].parts] == [C.kind_faults] * 15
    (fog / "2/n03").mkdir(); os.truncate(fog / "1/n02/val_2.JPEG", 500)
    (fog / "3/n01/val_0.JPEG").rename(fog / "4/n01/val_7.JPEG")
    for s, sentence in ((2, "2 holds 3 classes, expected 2"), (3, "3 holds 2 images of class n01, expected 3: that of number 0 is missing"), (1, "val_2.JPEG is not a whole image")):
        with pytest.raises(ValueError, match=sentence): C.load_c("tiny-imagenet", "fog", s, tmp_path)
        assert any(sentence in w for w in F.faults(part, fog, deep=True))


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
