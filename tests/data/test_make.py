"""Sets made here: their layout, killed and concurrent writers, full disks, foreign folders, mistakes."""
import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from hypothesis import given, settings, strategies as st

import mixrepro
from mixrepro.data import make as M
from mixrepro.data.corruptions import CORRUPTIONS, TABLES, corrupt
from mixrepro.data.datasets import load
from mixrepro.data.frost import PHOTOGRAPHS
from mixrepro.data.corrupted import read_c, read_made, read_p
from mixrepro.data.make import check_made, make, make_c, make_p
from mixrepro.data.perturbations import PERTURBATIONS, frames, perturb

N = 12
X = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (N, 3, 16, 16), dtype=np.uint8))
Y = torch.arange(N) % 3
KINDS = ("contrast", "gaussian_noise", "brightness", "pixelate")
fork = multiprocessing.get_context("fork")


def hwc(x): return x.movedim(-3, -1).numpy()
def contents(folder): return {f.name: f.read_bytes() for f in sorted(Path(folder).glob("*.npy"))}
def hidden(folder): return sorted(f.name for f in Path(folder).iterdir() if f.name.startswith(".") and f.name != ".lock")


# --- the layout

def test_c_is_the_released_layout(tmp_path):
    folder = make_c(X, Y, tmp_path / "set", name="noise")
    assert sorted(f.name for f in folder.iterdir()) == sorted([*(f"{k}.npy" for k in CORRUPTIONS), "labels.npy", "made.json", ".lock"])
    assert np.load(folder / "labels.npy").tolist() == Y.tolist() * 5
    for kind in CORRUPTIONS:
        a = np.load(folder / f"{kind}.npy")
        assert a.shape == (5 * N, 16, 16, 3) and a.dtype == np.uint8
        for s in range(1, 6): assert np.array_equal(a[(s - 1) * N:s * N], hwc(corrupt(X, kind, s)))
    made = read_made(folder)
    assert made["made"].startswith("here") and made["name"] == "noise" and made["same"]["seed"] == 0 and made["same"]["table"] == "cifar"
    assert made["same"]["version"] == mixrepro.__version__
    assert made["constants"] == json.loads(json.dumps({k: TABLES["cifar"][k] for k in CORRUPTIONS}))
    assert check_made(folder) == made


def test_p_is_the_released_layout(tmp_path):
    folder = make_p(X, Y, tmp_path / "set", seed=4)
    assert np.load(folder / "labels.npy").tolist() == Y.tolist()
    for kind in PERTURBATIONS:
        a = np.load(folder / f"{kind}.npy")
        assert a.shape == (N, frames(kind), 16, 16, 3) and np.array_equal(a, hwc(perturb(X, kind, 4)))


@given(n=st.integers(1, 9), c=st.sampled_from([1, 3]), batch=st.one_of(st.none(), st.integers(1, 12)), h=st.integers(16, 20),
       seed=st.integers(0, 2**40),
       form=st.sampled_from(["tensor", "array", "path"]), table=st.sampled_from(list(TABLES)))
@settings(max_examples=15, deadline=None)
def test_neither_batches_nor_the_form_of_the_images_change_a_byte(tmp_path_factory, n, c, batch, h, seed, form, table):
    folder = tmp_path_factory.mktemp("s")
    x = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, c, h, 18), dtype=np.uint8))
    images = {"tensor": x, "array": hwc(x) if c == 3 else hwc(x)[..., 0], "path": folder / "images.npy"}[form]
    np.save(folder / "images.npy", hwc(x))
    make_c(images, None, folder / "c", ("gaussian_noise", "fog"), table, seed, batch)
    make_p(images, None, folder / "p", ("gaussian_noise", "tilt"), table, seed, batch)
    for kind in ("gaussian_noise", "fog"):
        for s in (1, 5): assert np.array_equal(read_c(folder / "c", kind, s).x, hwc(corrupt(x, kind, s, seed, table=table)))
    for kind in ("gaussian_noise", "tilt"): assert np.array_equal(read_p(folder / "p", kind).x, hwc(perturb(x, kind, seed, table=table)))
    assert read_c(folder / "c", "fog", 2).y is None


@pytest.mark.parametrize("shape, dtype", [((3, 4, 5), "uint8"), ((7,), "int64"), ((2, 1, 1, 1, 3), "uint8")])
def test_an_array_is_what_numpy_would_save(tmp_path, shape, dtype):
    a = np.random.default_rng(0).integers(0, 200, shape).astype(dtype)
    digest = M._write_array(tmp_path / "a.npy", shape, dtype, iter(np.array_split(a, 2)))
    np.save(tmp_path / "b.npy", a)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes() and digest == M.sha256(tmp_path / "b.npy")


def test_films_of_the_middle(tmp_path):
    a = read_p(make_p(X, Y, tmp_path, ("rotate", "shot_noise"), table="cifar", crop=10), "rotate").x
    assert a.shape == (N, 31, 10, 10, 3) and np.array_equal(a, hwc(perturb(X, "rotate", crop=10)))
    with pytest.raises(ValueError, match="made with another what"): make_p(X, Y, tmp_path, "rotate")
    with pytest.raises(ValueError, match="crop must be from 8 to 16"): make_p(X, Y, tmp_path / "other", "rotate", crop=17)


def test_no_step_works_on_more_than_its_share(tmp_path, monkeypatch):
    "The bar is that memory does not grow with the number of images: no call ever gets more than a part."
    seen = []
    monkeypatch.setattr(M, "corrupt", lambda x, *a, **k: seen.append(len(x)) or x)
    monkeypatch.setattr(M, "perturb", lambda x, kind, *a: seen.append(31 * len(x)) or x[:, None].expand(-1, 31, -1, -1, -1))
    many = X[:1].expand(20_000, -1, -1, -1)
    make_c(many, None, tmp_path / "c", "fog")
    make_p(many[:2000], None, tmp_path / "p", "tilt")
    assert max(seen) * X[0].numel() <= M.PIECE and sum(seen) == 100_000 + 62_000


def test_progress_counts_every_image_once(tmp_path):
    seen = []
    make_c(X, Y, tmp_path, KINDS[:2], batch=5, progress=lambda *a: seen.append(a))
    assert [d for k, d, t in seen if k == "contrast"] == [12 * s + d for s in range(5) for d in (5, 10, 12)] and all(t == 60 for *_, t in seen)
    seen.clear()
    make_c(X, Y, tmp_path, KINDS[:3], progress=lambda *a: seen.append(a))
    assert seen[:2] == [("contrast", 60, 60), ("gaussian_noise", 60, 60)] and len(seen) == 7


# --- by name

def test_a_data_set_by_name(tmp_path):
    folder = make("digits-c", tmp_path, kinds=("fog",), seed=2)
    digits = load("digits", "test")
    assert folder == tmp_path / "digits-c-made" and read_made(folder)["name"] == "digits"
    part = read_c(folder, "fog", 3)
    assert np.array_equal(part.x, hwc(corrupt(digits.x, "fog", 3, 2))) and part.y.tolist() == digits.y.tolist() and part.origin == "made here"
    assert make("digits-p", tmp_path, kinds="translate", split="train").name == "digits-train-p-made"


def test_a_users_own_images(tmp_path):
    np.save(tmp_path / "photos.npy", np.zeros((3, 64, 70, 3), np.uint8)); np.save(tmp_path / "labels.npy", np.arange(3))
    folder = make(tmp_path / "photos.npy", tmp_path / "out", kinds="brightness")
    assert folder == tmp_path / "out" / "photos-c-made" and read_made(folder)["same"]["table"] == "tiny-imagenet" and read_c(folder, "brightness",
            5).y.tolist() == [0, 1, 2]
    films = make(str(tmp_path / "photos.npy"), folder=tmp_path / "films", sequences=True, kinds=["translate"], table="cifar")
    assert films == tmp_path / "films" and read_p(films, "translate").x.shape == (3, 16, 64, 70, 3)


@pytest.mark.parametrize("side, table", [(32, "cifar"), (64, "tiny-imagenet"), (224, "imagenet")])
def test_the_constants_follow_the_size(tmp_path, side, table):
    np.save(tmp_path / "a.npy", np.zeros((1, side, side), np.uint8))
    assert read_made(make(tmp_path / "a.npy", tmp_path, kinds="contrast"))["same"]["table"] == table


# --- killed, twice at once, no room

def child(folder, pause=0.):
    "Make the set in a process of its own."
    torch.set_num_threads(1)
    make_c(X, Y, folder, KINDS, batch=4, progress=lambda *a: time.sleep(pause))


@pytest.mark.parametrize("trial", range(10))
def test_killed_at_a_random_moment_the_next_call_finishes(tmp_path, trial):
    whole = contents(make_c(X, Y, tmp_path / "whole", KINDS))
    process = fork.Process(target=child, args=(tmp_path / "killed", .002))
    process.start()
    time.sleep(random.uniform(.01, .3))
    os.kill(process.pid, signal.SIGKILL); process.join()
    folder = tmp_path / "killed"
    before = contents(folder)
    assert all(before[name] == whole[name] for name in before)  # what has a name is whole
    entered = {k: (folder / f"{k}.npy").stat().st_mtime_ns for k in (read_made(folder) or {"files": ()})["files"]} if folder.exists() else {}
    make_c(X, Y, folder, KINDS)
    assert contents(folder) == whole and not hidden(folder) and check_made(folder)
    assert all((folder / f"{k}.npy").stat().st_mtime_ns == stamp for k, stamp in entered.items())  # what was entered was not made again


def test_two_at_once(tmp_path):
    process = fork.Process(target=child, args=(tmp_path / "set", .01))
    process.start()
    try:
        while not (tmp_path / "set" / "made.json").exists(): time.sleep(.005)
        with pytest.raises(BlockingIOError, match="another process is making a set in .*: wait until it has ended"): make_c(X, Y, tmp_path / "set",
                KINDS)
        make_c(X, Y, tmp_path / "set", KINDS, wait=-1)
        process.join()
        assert process.exitcode == 0 and contents(tmp_path / "set") == contents(make_c(X, Y, tmp_path / "alone", KINDS))
    finally:
        process.kill(); process.join()


def small_files(folder, out):
    "Make the set where no file may be larger than 20 kB; report the error."
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    try: make_c(X, Y, folder, KINDS)
    except OSError as e: out.put((type(e).__name__, e.errno, str(e)))


def test_no_room_for_a_file_is_one_sentence_and_no_half_file(tmp_path):
    out = fork.Queue()
    process = fork.Process(target=small_files, args=(tmp_path / "set", out))
    process.start()
    kind, number, sentence = out.get(timeout=60); process.join()
    assert number == errno.EFBIG and "could not write" in sentence and "contrast.npy: file too large" in sentence and "\n" not in sentence
    assert sorted(contents(tmp_path / "set")) == ["labels.npy"] and not hidden(tmp_path / "set")
    make_c(X, Y, tmp_path / "set", KINDS)
    check_made(tmp_path / "set")


def test_a_full_disk_is_named_before_and_during(tmp_path, monkeypatch):
    monkeypatch.setattr(M.shutil, "disk_usage", lambda path: type("usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="needs 0.00 GB for contrast, .* free some space or name fewer kinds") as e: make_c(X, Y, tmp_path / "a", KINDS)
    assert e.value.errno == errno.ENOSPC and not contents(tmp_path / "a")
    monkeypatch.undo()
    def full(fd): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(M.os, "fsync", full)
    with pytest.raises(OSError, match="no space left on device; free some space and run again"): make_c(X, Y, tmp_path / "b", KINDS)
    monkeypatch.undo()
    assert not contents(tmp_path / "b") and not hidden(tmp_path / "b")


def test_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="could not write .*: .*; a file stands where a folder is needed"): make_c(X, Y, tmp_path / "file" / "set",
            KINDS)
    def refuse(*a, **k): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(M.Path, "mkdir", refuse)
    with pytest.raises(PermissionError, match="permission denied; choose a folder that can be written"): make_c(X, Y, tmp_path / "locked", KINDS)


@pytest.mark.skipif(os.geteuid() == 0, reason="for root no folder is read-only")
def test_a_read_only_folder(tmp_path):
    (tmp_path / "set").mkdir(mode=0o555)
    with pytest.raises(PermissionError, match="choose a folder that can be written"): make_c(X, Y, tmp_path / "set", KINDS)


# --- never mixed

@pytest.mark.parametrize("change, what", [(dict(seed=1), "seed"), (dict(table="imagenet"), "table"), (dict(images=X.flip(0)), "images"),
                                          (dict(labels=Y + 1), "labels"),
                                          (dict(images=X[:6], labels=Y[:6], seed=3), "seed and images and labels"), (dict(labels=None), "labels")])
def test_another_set_does_not_get_into_the_folder(tmp_path, change, what):
    before = contents(make_c(X, Y, tmp_path, "contrast"))
    with pytest.raises(ValueError, match=f"holds a set made with another {what}: remove it or choose another folder"):
        make_c(**dict(images=X, labels=Y, folder=tmp_path, kinds=KINDS) | change)
    assert contents(tmp_path) == before


def test_nor_frost_of_other_photographs(tmp_path):
    "Neither from a folder nor handed in; a set of before, which notes none, goes on."
    white, grey = (torch.full((3, 200, 200), v, dtype=torch.uint8) for v in (255, 99))
    for name, x in (("white", white), ("grey", grey)):
        (tmp_path / name).mkdir()
        for f in PHOTOGRAPHS: Image.fromarray(hwc(x)).save(tmp_path / name / f)
    make_c(X, Y, tmp_path / "set", ["frost", "contrast"], frost=tmp_path / "white")
    before = contents(tmp_path / "set")
    for other in (tmp_path / "grey", [grey], grey[None]):
        with pytest.raises(ValueError, match="holds a set made with another frost: remove it or choose another folder"):
            make_c(X, Y, tmp_path / "set", ["frost", "fog"], frost=other)
    assert contents(make_c(X, Y, tmp_path / "set", ["frost", "contrast"], frost=tmp_path / "white")) == before
    made = read_made(tmp_path / "set")
    assert len(made["same"].pop("frost")) == 64
    (tmp_path / "set/made.json").write_text(json.dumps(made))
    assert before.items() <= contents(make_c(X, Y, tmp_path / "set", ["frost", "pixelate"], frost=tmp_path / "white")).items()


def test_images_that_change_while_they_are_read(tmp_path):
    "The array that was made of old ones and new ones does not count."
    np.save(tmp_path / "x.npy", hwc(X))
    def progress(kind, done, total):
        if kind != "fog" or done != total: return
        np.save(tmp_path / "new.npy", hwc(X.flip(0))); (tmp_path / "new.npy").replace(tmp_path / "x.npy")
    with pytest.raises(ValueError, match="x.npy changed while it was read: make the set again once it stays as it is"):
        make_c(tmp_path / "x.npy", Y, tmp_path / "set", ["contrast", "fog", "pixelate"], progress=progress)
    assert [*read_made(tmp_path / "set")["files"]] == ["contrast"]
    with pytest.raises(ValueError, match="made with another images"): make_c(tmp_path / "x.npy", Y, tmp_path / "set", "contrast")


def test_nor_another_version_nor_films(tmp_path, monkeypatch):
    make_c(X, Y, tmp_path, "contrast")
    with pytest.raises(ValueError, match="made with another what"): make_p(X, Y, tmp_path, "tilt")
    monkeypatch.setattr(mixrepro, "__version__", "99")
    with pytest.raises(ValueError, match="made with another version"): make_c(X, Y, tmp_path, "fog")


def test_a_released_set_is_left_alone_and_read_as_such(tmp_path):
    np.save(tmp_path / "fog.npy", np.arange(10 * 192, dtype=np.uint8).reshape(10, 8, 8, 3)); np.save(tmp_path / "labels.npy", np.arange(10))
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="holds a set that was not made here .fog.npy, labels.npy.: the two are never mixed"): make_c(X, Y,
            tmp_path, KINDS)
    part = read_c(tmp_path, "fog", 2)
    assert part.origin == "released" and part.made is None and part.y.tolist() == [2, 3] and np.array_equal(part.x,
            np.load(tmp_path / "fog.npy")[2:4])
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir() if f.name != ".lock"} == before


def test_strangers_and_damage_are_named(tmp_path):
    folder = make_c(X, Y, tmp_path / "set", KINDS)
    np.save(folder / "fog.npy", np.zeros((5 * N, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="fog.npy is not entered in made.json"): read_c(folder, "fog", 1)
    data = bytearray((folder / "contrast.npy").read_bytes()); data[-1] ^= 1; (folder / "contrast.npy").write_bytes(data)
    (folder / "pixelate.npy").unlink()
    with pytest.raises(ValueError, match="missing or altered in .*: contrast, pixelate; remove"): check_made(folder)
    (folder / "brightness.npy").write_bytes((folder / "brightness.npy").read_bytes()[:5000])
    with pytest.raises(ValueError, match="brightness.npy is not a whole .npy file"): read_c(folder, "brightness", 1)
    (folder / "made.json").write_text("{")
    with pytest.raises(ValueError, match="made.json cannot be read"): read_c(folder, "contrast", 1)
    with pytest.raises(ValueError, match="was not made here, so there is nothing to compare with"): check_made(tmp_path)


@pytest.mark.parametrize("films", [False, True])
@pytest.mark.parametrize("spoil", [lambda y: y[::-1], lambda y: y[:-1], lambda y: y.astype(np.int32) + 1, None])
def test_labels_that_are_not_those_of_the_set(tmp_path, spoil, films):
    "Nobody looked at them: accuracies against others' labels, and a set that is whole for who asks."
    def made(): return (make_p if films else make_c)(X, Y, tmp_path / "set", "brightness")
    at, right = tmp_path / "set/labels.npy", np.load(made() / "labels.npy")
    np.save(at, spoil(right)) if spoil else at.write_bytes(b"no array")
    with pytest.raises(ValueError, match="missing or altered in .*set: labels; remove"): check_made(tmp_path / "set")
    assert check_made(made()) and np.array_equal(np.load(at), right)


@pytest.mark.parametrize("array, call, message", [
    (np.zeros((7, 8, 8, 3), np.uint8), lambda f: read_c(f, "fog", 1), "expected five blocks"),
                                                  (np.zeros((10, 8, 8)), lambda f: read_c(f, "fog", 1), "expected 4 axes of uint8"),
    (np.zeros((10, 8, 8, 3), np.uint8), lambda f: read_c(f, "fog", 0), "severity must be"),
                                                  (np.zeros((10, 8, 8, 3), np.uint8), lambda f: read_p(f, "fog"), "expected 5 axes"),
    (np.zeros((15, 8, 8, 3), np.uint8), lambda f: read_c(f, "fog", 1), "10 labels for the 15 images")])
def test_odd_arrays_are_refused(tmp_path, array, call, message):
    np.save(tmp_path / "fog.npy", array); np.save(tmp_path / "labels.npy", np.arange(10))
    with pytest.raises(ValueError, match=message): call(tmp_path)


# --- mistakes

@pytest.mark.parametrize("change, error, message", [
    (dict(images=X.float()), TypeError, "images must be uint8, got torch.float32"),
                                                    (dict(images=X[:, :2]), ValueError, r"\(N, C, H, W\) with C = 1 or 3"),
    (dict(images=X.numpy()), ValueError, r"\(N, H, W, C\)"), (dict(images=X[:0]), ValueError, "at least one"),
                                                    (dict(images="no.npy"), FileNotFoundError, "no file at no.npy"),
    (dict(images=None), TypeError, "got NoneType"), (dict(labels=Y[:5]), ValueError, r"labels must be 12 integers .* got int64 \(5,\)"),
    (dict(labels=Y.float()), ValueError, "got float32"), (dict(kinds=["fgo"]), ValueError, "unknown corruption 'fgo': did you mean 'fog'"),
    (dict(table="cifar10"), ValueError, "unknown table of constants"), (dict(batch=0), ValueError, "batch must be at least 1"),
    (dict(images=X[..., :7]), ValueError, "at least 8 x 8")])
def test_mistakes_are_named_and_leave_nothing(tmp_path, change, error, message):
    with pytest.raises(error, match=message) as e: make_c(**dict(images=X, labels=Y, folder=tmp_path / "set", kinds=KINDS) | change)
    assert "\n" not in str(e.value) and not list((tmp_path / "set").glob("*_noise.npy"))


def test_files_that_are_no_arrays(tmp_path):
    (tmp_path / "a.npy").write_bytes(b"no array"); np.savez(tmp_path / "b.npz", a=1); (tmp_path / "b.npz").rename(tmp_path / "b.npy")
    for name in "ab":
        with pytest.raises(ValueError, match="numpy.save"): make_c(tmp_path / f"{name}.npy", None, tmp_path / "set")
    with pytest.raises(ValueError, match="unknown set to make 'cifar10c': did you mean 'cifar10-c'"): make("cifar10c", tmp_path)
    np.save(tmp_path / "c.npy", hwc(X))
    with pytest.raises(FileNotFoundError, match="no labels at no.npy: give the path"): make(tmp_path / "c.npy", tmp_path, labels="no.npy")
