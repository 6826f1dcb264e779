"Data sets: the real CIFAR-10 bit for bit, torchvision's reader, files that are absent, cut, altered or hostile, and class-balanced parts."
import hashlib
import json
import os
import pickle
import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings, strategies as st
from PIL import Image

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


def test_cifar10_classes_fit_the_pictures(cifar):
    "The first test images are a cat, two ships, an airplane and two frogs."
    assert [D.CIFAR10_CLASSES[c] for c in load("cifar10", "test", cifar[0]).y[:6]] == ["cat", "ship", "ship", "airplane", "frog", "frog"]


def test_cifar10_constants_are_those_of_the_training_split(cifar):
    for channel, want_mean, want_std in zip(cifar[1]["train"][0].swapaxes(0, 1), *D.STATS["cifar10"]):
        count, level = np.bincount(channel.ravel(), minlength=256), np.arange(256) / 255
        mean = np.average(level, weights=count)
        assert abs(mean - want_mean) < 3e-4 and abs(np.average((level - mean) ** 2, weights=count) ** .5 - want_std) < 3e-4


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
    return D._cifar(split, root, verify, "cifar", layouts, tuple(map(str, range(100))))


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
        D._cifar("test", tmp_path, True, "cifar100", (layout,), tuple(map(str, range(10))))


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
