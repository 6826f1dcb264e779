"""Data sets: the real CIFAR-10 and MNIST bit for bit, torchvision's readers, files that are absent, cut, altered or hostile, kept images, corrupted
copies, and class-balanced parts."""
import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.io import savemat

from mixrepro.data import datasets as D
from mixrepro.data.datasets import ImageSet, balanced, load

SHARED = Path(os.environ.get("MIXREPRO_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


# ---- the real thing -------------------------------------------------------------------------------------------------

def sheets(split):
    "The lossless source: sheets of 40 x 25 tiles."
    tiles = [np.asarray(Image.open(f).convert("RGB")) for f in sorted((SHARED / "cifar10").glob(f"{split}_*.webp"))]
    return np.concatenate([a.reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for a in tiles])


@pytest.fixture(scope="session")
def cifar(tmp_path_factory):
    "CIFAR-10 in its binary version, written from the source; (root, {split: (x, y)})."
    if not (SHARED / "cifar10" / "labels.npz").is_file():
        pytest.skip("no copy of CIFAR-10 at hand: set MIXREPRO_SHARED_DATA to a folder that holds cifar10/")
    labels = np.load(SHARED / "cifar10" / "labels.npz")
    source = {s: (sheets(s), labels[s].astype(np.int64)) for s in ("train", "test")}
    folder = (root := tmp_path_factory.mktemp("data")) / "cifar-10-batches-bin"
    folder.mkdir()
    for split, (x, y) in source.items():
        table = np.concatenate([y.astype(np.uint8)[:, None], x.reshape(len(x), -1)], 1)
        for file, part in zip(D.CIFAR10[0].files[split], np.split(table, len(x) // 10_000)): (folder / file).write_bytes(part.tobytes())
    return root, source


@pytest.mark.parametrize("split, n", [("train", 50_000), ("test", 10_000)])
def test_cifar10_binary_is_read_bit_for_bit_and_has_the_official_md5s(cifar, split, n):
    root, source = cifar
    got = load("cifar10", split, root)  # verify=True: every file fits its official MD5
    assert len(got) == n and got.shape == (3, 32, 32) and got.standin == ""
    assert np.array_equal(got.x.numpy(), source[split][0]) and np.array_equal(got.y.numpy(), source[split][1])
    assert got.y.bincount().tolist() == [n // 10] * 10


def test_the_real_cifar10_loads_from_the_python_layout_too(cifar, tmp_path):
    "The pixels are the official ones; the file names inside are lost, so the MD5 cannot be met, which is said unless it is allowed."
    layout, (x, y) = D.CIFAR10[1], cifar[1]["test"]
    (tmp_path / layout.folder).mkdir()
    pickled = pickle.dumps({"data": x.reshape(len(x), -1), "labels": y.tolist()}, protocol=2)
    (tmp_path / layout.folder / "test_batch").write_bytes(pickled)
    sentence = "test_batch has MD5 [0-9a-f]{32}, expected 40351d587109b95175f43aff81a1287e"
    with pytest.raises(ValueError, match=sentence): load("cifar10", "test", tmp_path)
    got = load("cifar10", "test", tmp_path, verify=False)
    assert np.array_equal(got.x.numpy(), x) and np.array_equal(got.y.numpy(), y)


def moments(x):
    "Mean and deviation of grey levels in [0, 1], exact: from their counts."
    count, level = np.bincount(x.ravel(), minlength=256), np.arange(256) / 255
    mean = np.average(level, weights=count)
    return mean, np.average((level - mean) ** 2, weights=count) ** .5


def test_cifar10_classes_fit_the_pictures(cifar):
    "The first test images are a cat, two ships, an airplane and two frogs."
    assert [D.CIFAR10_CLASSES[c] for c in load("cifar10", "test", cifar[0]).y[:6]] == ["cat", "ship", "ship", "airplane", "frog", "frog"]


def test_cifar10_constants_are_those_of_the_training_split(cifar):
    for channel, want_mean, want_std in zip(cifar[1]["train"][0].swapaxes(0, 1), *D.STATS["cifar10"]):
        mean, std = moments(channel)
        assert abs(mean - want_mean) < 3e-4 and abs(std - want_std) < 3e-4


def test_one_altered_byte_is_found_and_named(cifar, tmp_path):
    data = bytearray((cifar[0] / "cifar-10-batches-bin" / "test_batch.bin").read_bytes())
    data[15_000_000] ^= 1
    (folder := tmp_path / "cifar-10-batches-bin").mkdir()
    (folder / "test_batch.bin").write_bytes(data)
    sentence = "test_batch.bin has MD5 [0-9a-f]{32}, expected 803d5f7f4d78ea53de84dbe85f74fb6d: run `mixrepro data get cifar10 --root"
    with pytest.raises(ValueError, match=sentence):
        load("cifar10", "test", tmp_path)
    assert len(load("cifar10", "test", tmp_path, verify=False)) == 10_000


def test_binary_md5s_are_the_recorded_ones():
    path = SHARED / "cifar10" / "checksums.json"
    if not path.is_file(): pytest.skip("no record of the binary MD5s at hand: set MIXREPRO_SHARED_DATA to a folder that holds cifar10/")
    known = {f: v["md5"] for f, v in json.loads(path.read_text())["binary_version_checks"].items()}
    assert D.CIFAR10[0].files["train"] | D.CIFAR10[0].files["test"] == known


@pytest.mark.parametrize("theirs, ours", [(torchvision.datasets.CIFAR10, D.CIFAR10), (torchvision.datasets.CIFAR100, D.CIFAR100)])
def test_pickle_names_and_md5s_are_those_of_torchvision(theirs, ours):
    layout = ours[1]
    assert layout.folder == theirs.base_folder
    assert [*layout.files["train"].items()] == [tuple(f) for f in theirs.train_list]
    assert [*layout.files["test"].items()] == [tuple(f) for f in theirs.test_list]


# ---- small copies of each layout ------------------------------------------------------------------------------------

ROWS = {"train": 6, "test": 4}


def small(layout):
    "The same layout with a few images in each file and no MD5s."
    return replace(layout, rows=ROWS, files={s: dict.fromkeys(f, "") for s, f in layout.files.items()})


def write(root, layout, seed=0):
    "Random images in a layout; {split: (x, y)}."
    rng, truth = np.random.default_rng(seed), {}
    (root / layout.folder).mkdir(parents=True)
    classes = 10 if "10-" in layout.folder else 100
    for split, files in layout.files.items():
        x, y = rng.integers(0, 256, (len(files), ROWS[split], 3072), np.uint8), rng.integers(0, classes, (len(files), ROWS[split]))
        for f, xs, ys in zip(files, x, y):
            if layout.read.func is D.read_binary:
                head = [ys[:, None].astype(np.uint8)] if classes == 10 else [(ys[:, None] // 5).astype(np.uint8), ys[:, None].astype(np.uint8)]
                data = np.concatenate([*head, xs], 1).tobytes()
            else:
                labels = {layout.read.keywords["key"]: ys.tolist(), "coarse_labels": (ys // 5).tolist(), "filenames": ["?"] * len(ys)}
                data = pickle.dumps({"data": xs} | labels, protocol=2)
            (root / layout.folder / f).write_bytes(data)
        truth[split] = x.reshape(-1, 3, 32, 32), y.reshape(-1)
    return truth


def read(root, layouts, split, verify=True):
    return D._published(split, root, verify, "cifar", layouts, tuple(map(str, range(100))))


@pytest.mark.parametrize("layout", [*D.CIFAR10, *D.CIFAR100], ids=lambda f: f.folder)
def test_each_layout_gives_back_what_was_written(tmp_path, layout):
    layout = small(layout)
    truth = write(tmp_path, layout)
    for split, (x, y) in truth.items():
        got = read(tmp_path, (layout,), split)
        assert np.array_equal(got.x.numpy(), x) and np.array_equal(got.y.numpy(), y)


@pytest.mark.parametrize("layout, theirs", [(D.CIFAR10[1], torchvision.datasets.CIFAR10), (D.CIFAR100[1], torchvision.datasets.CIFAR100)])
def test_pickles_are_read_as_torchvision_reads_them(tmp_path, layout, theirs):
    write(tmp_path, layout := small(layout))
    (tmp_path / layout.folder / theirs.meta["filename"]).write_bytes(pickle.dumps({theirs.meta["key"]: ["?"]}))
    def fits(f): return [f, hashlib.md5((tmp_path / layout.folder / f).read_bytes()).hexdigest()]
    Small = type("Small", (theirs,), dict(train_list=[fits(f) for f in layout.files["train"]], test_list=[fits(f) for f in layout.files["test"]],
                                          meta=theirs.meta | {"md5": fits(theirs.meta["filename"])[1]}))
    for split in ROWS:
        want, got = Small(tmp_path, train=split == "train"), read(tmp_path, (layout,), split)
        assert np.array_equal(got.x.permute(0, 2, 3, 1).numpy(), want.data) and got.y.tolist() == want.targets


def test_the_binary_version_is_preferred_and_either_is_found(tmp_path):
    binary, pickles = map(small, D.CIFAR10)
    second = write(tmp_path, pickles, seed=1)["test"]
    assert np.array_equal(read(tmp_path, (binary, pickles), "test").x, second[0])
    first = write(tmp_path, binary, seed=2)["test"]
    assert np.array_equal(read(tmp_path, (binary, pickles), "test").x, first[0])


def test_a_pickle_as_python_2_wrote_it():
    "Byte strings for keys and pixels and the old module name: what the official files hold and Python 3 no longer writes."
    pixels = bytes(range(256)) * 12
    array = (b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
             b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xff"
             b"J\xff\xff\xff\xffK\x00tb\x89T\x00\x0c\x00\x00" + pixels + b"tb")
    data = b"\x80\x02}(U\x04data" + array + b"U\x06labels](K\x07eU\x0bbatch_labelU\x01xu."
    x, y = D.read_pickle(data, 1, "labels")
    assert x.numpy().tobytes() == pixels and y.tolist() == [7]


@pytest.mark.parametrize("layout", [small(f) for f in D.CIFAR10], ids=lambda f: f.folder)
@settings(max_examples=25, deadline=None)
@given(cut=st.integers(1, 12_000))
def test_a_file_cut_anywhere_is_refused_with_its_path(tmp_path_factory, layout, cut):
    root = tmp_path_factory.mktemp("cut")
    write(root, layout)
    path = root / layout.folder / next(iter(layout.files["test"]))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=re.escape(str(path))): read(root, (layout,), "test")


def test_a_pickle_that_would_run_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self): return os.mkdir, (str(tmp_path / "ran"),)
    with pytest.raises(ValueError, match="asks for .*mkdir, which no CIFAR file needs"): D.read_pickle(pickle.dumps({"data": Evil()}), 1, "labels")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("table, sentence", [
    ([1, 2], "is a pickle without 'data' and 'labels'"),
    ({"data": np.zeros((2, 3072), np.uint8)}, "is a pickle without 'data' and 'labels'"),
    ({"data": np.zeros((3, 3072), np.uint8), "labels": [0] * 3}, r"holds images \(3, 3072\) of torch.uint8 and 3 labels, expected \(2, 3072\)"),
    ({"data": np.zeros((2, 3072), np.int64), "labels": [0] * 2}, "of torch.int64"),
    ({"data": np.zeros((2, 3072), np.uint8), "labels": [0]}, "and 1 labels")])
def test_a_pickle_of_something_else_is_refused(table, sentence):
    with pytest.raises(ValueError, match=sentence): D.read_pickle(pickle.dumps(table), 2, "labels")


@pytest.mark.parametrize("name, file", [("cifar10", "test_batch.bin"), ("cifar100", "test.bin")])
def test_a_missing_file_is_named_with_the_command_that_fetches_it(tmp_path, monkeypatch, name, file):
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    sentence = re.escape(f"{file} is missing: run `mixrepro data get {name} --root {tmp_path}`, or put the official {file} of ")
    with pytest.raises(FileNotFoundError, match=sentence): load(name, "test")
    monkeypatch.delenv("MIXREPRO_DATA")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=re.escape(f"--root {tmp_path / 'data'}`")): load(name, "test")


def test_a_label_outside_the_classes_is_refused(tmp_path):
    write(tmp_path, layout := small(D.CIFAR100[0]))
    with pytest.raises(ValueError, match="but there are 10 classes"):
        D._published("test", tmp_path, True, "cifar100", (layout,), tuple(map(str, range(10))))


# ---- SVHN -----------------------------------------------------------------------------------------------------------

def write_svhn(root, rows=ROWS, seed=0):
    "SVHN's two files with a few images; {split: (x, y)} as they should come out."
    rng, truth = np.random.default_rng(seed), {}
    (root / "svhn").mkdir(exist_ok=True)
    for split, n in rows.items():
        x, y = rng.integers(0, 256, (32, 32, 3, n), np.uint8), np.arange(n) % 10 + 1
        savemat(root / "svhn" / f"{split}_32x32.mat", {"X": x, "y": y[:, None].astype(np.uint8)}, do_compression=True)
        truth[split] = x.transpose(3, 2, 0, 1), y % 10
    return truth


def read_svhn(root, split): return D._published(split, root, True, "svhn", (small(D.SVHN[0]),), tuple("0123456789"))


def test_svhn_is_read_as_torchvision_reads_it(tmp_path):
    truth = write_svhn(tmp_path)
    for split, (x, y) in truth.items():
        file = f"{split}_32x32.mat"
        md5 = hashlib.md5((tmp_path / "svhn" / file).read_bytes()).hexdigest()
        theirs = type("Small", (torchvision.datasets.SVHN,), dict(split_list={split: ["", file, md5]}))(tmp_path / "svhn", split)
        got = read_svhn(tmp_path, split)
        assert np.array_equal(got.x, theirs.data) and got.y.tolist() == theirs.labels.tolist()
        assert np.array_equal(got.x, x) and got.y.tolist() == y.tolist()


def test_svhn_names_rows_and_md5s_are_those_of_torchvision():
    [layout] = D.SVHN
    for split, files in layout.files.items(): assert [*files.items()] == [tuple(torchvision.datasets.SVHN.split_list[split][1:])]
    assert layout.rows == {"train": 73_257, "test": 26_032}


@settings(max_examples=15, deadline=None)
@given(cut=st.integers(1, 12_000))
def test_an_svhn_file_cut_anywhere_is_refused_with_its_path(tmp_path_factory, cut):
    write_svhn(root := tmp_path_factory.mktemp("cut"))
    path = root / "svhn" / "test_32x32.mat"
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ".*run `mixrepro data get svhn --root"): read_svhn(root, "test")


@pytest.mark.parametrize("table, sentence", [
    ({"X": np.zeros((32, 32, 3, 2), np.uint8)}, "is a MATLAB file without 'X' and 'y'"),
    ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[1]]}, "and 1 labels, expected"),
    ({"X": np.zeros((32, 32, 3, 2)), "y": [[1], [2]]}, r"holds images \(32, 32, 3, 2\) of float64"),
    ({"X": np.zeros((2, 32, 32, 3), np.uint8), "y": [[1], [2]]}, r"holds images \(2, 32, 32, 3\) of uint8 and 2 labels, expected \(32, 32, 3, 2\)"),
    ({"X": np.zeros((32, 32, 3, 2), np.uint8), "y": [[0], [9]]}, "holds labels from 0 to 9, expected 1 to 10")])
def test_a_matlab_file_of_something_else_is_refused(tmp_path, table, sentence):
    savemat(tmp_path / "a.mat", table)
    with pytest.raises(ValueError, match=sentence): D.read_mat((tmp_path / "a.mat").read_bytes(), 2)


# ---- MNIST ----------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def digits_of_mnist(tmp_path_factory):
    "The four official files, rebuilt; (root, {split: (x, y)})."
    if not (SHARED / "mnist" / "mnist.npz").is_file(): pytest.skip("no copy of MNIST at hand: set MIXREPRO_SHARED_DATA to a folder that holds mnist/")
    z, truth = np.load(SHARED / "mnist" / "mnist.npz"), {}
    (folder := (root := tmp_path_factory.mktemp("data")) / "MNIST" / "raw").mkdir(parents=True)
    for split in ("train", "test"):
        truth[split] = z[f"x_{split}"], z[f"y_{split}"]
        for (file, (shape, _)), a in zip(D.MNIST[split].items(), truth[split]):
            head = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes()
            (folder / file).write_bytes(head + a.tobytes())
    return root, truth


@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_mnist_is_read_bit_for_bit_and_has_the_recorded_md5s(digits_of_mnist, split, n):
    root, truth = digits_of_mnist
    got = load("mnist", split, root)  # verify=True: every file fits its MD5
    theirs = torchvision.datasets.MNIST(root, train=split == "train")
    assert len(got) == n and got.shape == (1, 28, 28) and got.k == 10 and got.standin == ""
    assert np.array_equal(got.x[:, 0], truth[split][0]) and torch.equal(got.x[:, 0], theirs.data) and torch.equal(got.y, theirs.targets)
    if (path := SHARED / "PROVENANCE.md").is_file(): assert all(md5 in path.read_text() for _, md5 in D.MNIST[split].values())


def test_mnist_constants_are_those_of_the_training_split(digits_of_mnist):
    for got, [want] in zip(moments(digits_of_mnist[1]["train"][0]), D.STATS["mnist"]): assert abs(got - want) < 5e-5


def test_mnist_files_may_be_packed_and_lie_in_either_folder(digits_of_mnist, tmp_path):
    (folder := tmp_path / "mnist").mkdir()
    for i, file in enumerate(D.MNIST["test"]):
        data = (digits_of_mnist[0] / "MNIST" / "raw" / file).read_bytes()
        if i: (folder / file).write_bytes(data)
        else: (folder / f"{file}.gz").write_bytes(gzip.compress(data, 1))
    got = load("mnist", "test", tmp_path)
    assert np.array_equal(got.x[:, 0], digits_of_mnist[1]["test"][0]) and got.y[:4].tolist() == [7, 2, 1, 0]


def test_an_altered_digit_is_found_and_named(digits_of_mnist, tmp_path):
    shutil.copytree(digits_of_mnist[0] / "MNIST", tmp_path / "MNIST")
    path = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    data = bytearray(path.read_bytes()); data[5000] ^= 1; path.write_bytes(data)
    sentence = re.escape(str(path)) + " has MD5 [0-9a-f]{32}, expected 27ae3e4e09519cfbb04c329615203637: run `mixrepro data get mnist --root"
    with pytest.raises(ValueError, match=sentence): load("mnist", "test", tmp_path)
    assert len(load("mnist", "test", tmp_path, verify=False)) == 10_000
    path.unlink(); (path.parent / f"{path.name}.gz").write_bytes(gzip.compress(bytes(data)))
    with pytest.raises(ValueError, match="ubyte.gz has content of MD5"): load("mnist", "test", tmp_path)


@given(shape=st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple), data=st.data())
def test_an_idx_file_gives_back_its_array_and_no_other_is_taken_for_it(shape, data):
    n = int(np.prod(shape))
    body = data.draw(st.binary(min_size=n, max_size=n))
    whole = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">i4").tobytes() + body
    assert D.read_idx(whole, shape).numpy().tobytes() == body and D.read_idx(whole, shape).shape == shape
    for wrong in (whole[:data.draw(st.integers(0, len(whole) - 1))], whole + b"?"):
        with pytest.raises(ValueError, match="expected"): D.read_idx(wrong, shape)


# ---- Tiny-ImageNet --------------------------------------------------------------------------------------------------

@pytest.fixture(scope="session")
def small_tiny(tmp_path_factory):
    "Tiny-ImageNet with two classes of flat images, complete; its folder must not be changed."
    folder = (root := tmp_path_factory.mktemp("tiny")) / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttree frog\nn03\tabsent\n")
    lines = []
    for c, w in enumerate(("n01", "n02")):
        (images := folder / "train" / w / "images").mkdir(parents=True)
        for i in range(500):
            mode, level = ("L", i % 256) if i % 7 == 0 else ("RGB", (i % 256, 100 * c, 9))
            Image.new(mode, (64, 64), level).save(images / f"{w}_{i}.JPEG")
        for i in range(50):
            Image.new("RGB", (64, 64), (4 * i, 100 * c, 50)).save(folder / "val" / "images" / f"val_{2 * i + c}.JPEG")
            lines.append(f"val_{2 * i + c}.JPEG\t{w}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))
    return root


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
    D._kept(path, "key", lambda: x)
    whole = path.read_bytes()
    if data.draw(st.booleans()): path.write_bytes(whole[:data.draw(st.integers(0, len(whole) - 1))])
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1:])
    assert torch.equal(D._kept(path, "key", lambda: x), x)
    assert torch.equal(D._kept(path, "key", lambda: x), x) and not list(path.parent.glob("*.part"))


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
    for c, (mean, std) in enumerate(zip(*D.STATS["tiny-imagenet"])):  # the constants are those of all 200 classes
        ours = moments(train.x[:, c].numpy())
        assert abs(ours[0] - mean) < .02 and abs(ours[1] - std) < .005


# ---- corrupted copies -----------------------------------------------------------------------------------------------

def write_c(folder, kind="fog", n=10_000, k=10, size=32, made=False):
    "A set in the layout of CIFAR-10-C, full of holes on the disk: a few images of each block begin with its number and their own."
    folder.mkdir(parents=True, exist_ok=True)
    x = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.uint8, (5 * n, size, size, 3))
    for i in (0, 7, n - 1):
        for block in range(5): x[block * n + i, 0, 0] = 1 + block, i % 251, 9
    x.flush()
    np.save(folder / "labels.npy", np.tile(np.arange(n) % k, 5).astype(np.uint8))
    if made: (folder / "made.json").write_text("{}")


@pytest.mark.parametrize("severity", [1, 3, 5])
def test_a_released_set_is_mapped_and_cut_at_the_right_place(tmp_path, severity):
    write_c(tmp_path / "CIFAR-10-C")
    before = (tmp_path / "CIFAR-10-C" / "fog.npy").stat().st_mtime_ns
    s = D.load_c("cifar10", "fog", severity, tmp_path)
    assert (len(s), s.shape, s.classes, s.standin, s.split) == (10_000, (3, 32, 32), D.CIFAR10_CLASSES, "", "test")
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
    (lambda f: os.truncate(f / "fog.npy", 10_000_000), ValueError, "fog.npy is not a whole NumPy array"),
    (lambda f: os.truncate(f / "fog.npy", 0), ValueError, "fog.npy is not a whole NumPy array"),
    (lambda f: (f / "fog.npy").write_text("<html>busy</html>"), ValueError, "fog.npy is not a whole NumPy array"),
    (lambda f: np.save(f / "fog.npy", np.zeros((50, 3, 2, 2), np.uint8)), ValueError, r"has shape \(50, 3, 2, 2\), expected \(50000, 32, 32, 3\)"),
    (lambda f: np.save(f / "fog.npy", np.zeros((5, 32, 32, 3), np.float32)), ValueError, r"holds float32 \(5, 32, 32, 3\), expected 4 axes of uint8"),
    (lambda f: np.save(f / "labels.npy", np.zeros(10_000, np.uint8)), ValueError, "labels.npy holds 10000 labels, expected 50000"),
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
    with pytest.raises(ValueError, match="fog.npy is not a whole NumPy array"): D.load_c("cifar10", "fog", 1, tmp_path)


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


# ---- digits and blobs -----------------------------------------------------------------------------------------------

def test_digits_are_all_there_and_split_once():
    from sklearn.datasets import load_digits
    raw, train, test = load_digits(), load("digits", "train"), load("digits", "test")
    assert len(train) + len(test) == len(raw.target) == 1797 and (train.y.bincount() + test.y.bincount()).tolist() == np.bincount(raw.target).tolist()
    for c in range(10):
        mine = np.flatnonzero(raw.target == c)
        assert (test.y == c).sum() == round(.3 * len(mine))
        want = D.enlarge(torch.from_numpy(raw.images[mine]))
        assert torch.equal(torch.cat([train.x[train.y == c], test.x[test.y == c]]), want)


def test_enlarging_is_pillows_bilinear():
    from sklearn.datasets import load_digits
    scans = load_digits().images[:50].astype(np.float32)
    want = np.stack([np.asarray(Image.fromarray(s).resize((32, 32), Image.Resampling.BILINEAR)) for s in scans]) * 255 / 16
    assert np.abs(D.enlarge(torch.from_numpy(scans))[:, 0].numpy() - want).max() <= .5 + 1e-3


def test_blobs_can_be_learned_and_can_have_any_shape():
    from sklearn.linear_model import LogisticRegression
    train, test = load("synthetic-blobs", "train"), load("synthetic-blobs", "test")
    def small(s): return torch.nn.functional.avg_pool2d(s.floats(), 4).flatten(1).numpy()
    assert LogisticRegression(max_iter=100).fit(small(train), train.y).score(small(test), test.y) > .6  # chance is .1
    odd = D.blobs("train", n=7, size=9, classes=4, channels=2, seed=3)
    assert odd.shape == (2, 9, 9) and odd.y.tolist() == [0, 1, 2, 3, 0, 1, 2]


def test_loading_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for name in ("digits", "synthetic-blobs"): load(name, "train").subset(10, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


# ---- parts ----------------------------------------------------------------------------------------------------------

@given(y=st.lists(st.integers(0, 4), min_size=1, max_size=40), data=st.data(), seed=st.none() | st.integers(0, 9))
def test_balanced_parts_are_balanced_and_nested(y, data, seed):
    y = torch.tensor(y)
    n = data.draw(st.integers(1, len(y)))
    def part(n): return balanced(y, n, None if seed is None else torch.Generator().manual_seed(seed))
    index = part(n)
    assert len(index) == n == len(index.unique()) and index.equal(index.sort().values)
    have, total = y[index].bincount(minlength=5), y.bincount(minlength=5)
    open_ = have[have < total]  # a class that could give more has no fewer than any other, less one
    assert not len(open_) or have.max() - open_.min() <= 1
    if n > 1: assert set(part(n - 1).tolist()) < set(index.tolist())


def test_a_random_part_reaches_every_example():
    y, rng = torch.tensor([0] * 5 + [1] * 20), torch.Generator().manual_seed(0)
    seen = torch.stack([torch.zeros(25).index_fill(0, balanced(y, 4, rng), 1) for _ in range(2000)]).mean(0)
    assert (seen[:5] - 2 / 5).abs().max() < .05 and (seen[5:] - 2 / 20).abs().max() < .03


def test_subset_takes_numpy_numbers_masks_and_tensors():
    s = load("synthetic-blobs", "test")
    assert torch.equal(s.subset(np.int64(20)).x, s.subset(20).x) and torch.equal(s.subset(torch.tensor([-1])).x, s.x[-1:])
    assert (s.subset(s.y == 3).y == 3).all() and s.subset(5).name == s.name
    with pytest.raises(ValueError, match="cannot take 513 of 512 examples"): s.subset(513)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_set_moves_to_the_device_and_is_cut_there():
    s = load("digits", "test")
    there = s.to("cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    assert there.floats([0]).device.type == "cuda" and torch.equal(there.subset(30).x.cpu(), s.subset(30).x)
    assert there.subset(30, rng).y.bincount().tolist() == [3] * 10
    from sklearn.datasets import load_digits
    scans = torch.from_numpy(load_digits().images)
    assert torch.equal(D.enlarge(scans.cuda()).cpu(), D.enlarge(scans))
    with pytest.raises(ValueError, match="images are on cuda:0 but labels on cpu"): replace(there, y=s.y)
