"""The official files: the real CIFAR-10 and MNIST bit for bit, torchvision's readers, files that are absent, cut, altered or hostile."""
import gzip
import hashlib
import json
import os
import pickle
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from scipy.io import savemat

from helpers import SHARED
from mixrepro.data import readers as D
from mixrepro.data.datasets import load


# ---- the real thing -------------------------------------------------------------------------------------------------

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


def test_cifar10_classes_fit_the_pictures(cifar):
    "The first test images are a cat, two ships, an airplane and two frogs."
    assert [D.CIFAR10_CLASSES[c] for c in load("cifar10", "test", cifar[0]).y[:6]] == ["cat", "ship", "ship", "airplane", "frog", "frog"]


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
    return D.published(split, root, verify, "cifar", layouts, tuple(map(str, range(100))))


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
        D.published("test", tmp_path, True, "cifar100", (layout,), tuple(map(str, range(10))))


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


def read_svhn(root, split): return D.published(split, root, True, "svhn", (small(D.SVHN[0]),), tuple("0123456789"))


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

@pytest.mark.parametrize("split, n", [("train", 60_000), ("test", 10_000)])
def test_mnist_is_read_bit_for_bit_and_has_the_recorded_md5s(digits_of_mnist, split, n):
    root, truth = digits_of_mnist
    got = load("mnist", split, root)  # verify=True: every file fits its MD5
    theirs = torchvision.datasets.MNIST(root, train=split == "train")
    assert len(got) == n and got.shape == (1, 28, 28) and got.k == 10 and got.standin == ""
    assert np.array_equal(got.x[:, 0], truth[split][0]) and torch.equal(got.x[:, 0], theirs.data) and torch.equal(got.y, theirs.targets)
    if (path := SHARED / "PROVENANCE.md").is_file(): assert all(md5 in path.read_text() for _, md5 in D.MNIST[split].values())


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
