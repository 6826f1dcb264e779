"""Whose corruptions a metric rests on: released arrays in the official layout, whole or spoilt; keys of kept values."""
import hashlib
import os
import re
import shutil
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from helpers import write_c
from mixrepro.data import corrupted, datasets, fetch, sources
from mixrepro.data.corruptions import CORRUPTIONS, corrupt
from mixrepro.data.digits import blobs
from mixrepro.data.readers import published
from mixrepro.data.sources import Source, corruption_source, released_faults
from mixrepro.metrics import catalogue
from mixrepro.metrics.accuracy import accuracy, predict
from mixrepro.metrics.robustness import corruption_mean, robustness
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, kept, open_net

N = 12
MADE = "made here with the constants of CIFAR-10-C"


def md5(path): return hashlib.md5(path.read_bytes()).hexdigest()


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A data root with twelve images of each split as CIFAR-10 in its binary layout, and CIFAR-10-C of them: block s of
    each kind is the images divided by s. The tables of rows and checksums are made to fit; everything else is the
    package's own."""
    layout = replace(datasets.CIFAR10[0], rows={"train": N, "test": N},
                     files={"train": {"data_batch_1.bin": ""}, "test": {"test_batch.bin": ""}})
    (root := tmp_path / "data", home := root / layout.folder)[1].mkdir(parents=True)
    sets = {s: blobs(s, n=N) for s in ("train", "test")}
    for split, files in layout.files.items():
        rows = torch.cat([sets[split].y.to(torch.uint8)[:, None], sets[split].x.flatten(1)], 1).numpy()
        (home / next(iter(files))).write_bytes(rows.tobytes())
    (folder := root / "CIFAR-10-C").mkdir()
    x, y = sets["test"].x, sets["test"].y.numpy()
    for kind in CORRUPTIONS:
        np.save(folder / f"{kind}.npy", torch.cat([x // s for s in range(1, 6)]).permute(0, 2, 3, 1).numpy())
    np.save(folder / "labels.npy", np.tile(y, 5).astype(np.uint8))
    # an extra kind may be missing
    part = fetch.Part("CIFAR-10-C", {f.name: md5(f) for f in folder.iterdir()} | {"saturate.npy": "0" * 32})
    monkeypatch.setitem(fetch.DATA, "cifar10-c",
                        replace(fetch.DATA["cifar10-c"], editions=((fetch.Remote("CIFAR-10-C.tar", (), (part,)),),)))
    monkeypatch.setitem(datasets.DATASETS, "cifar10",
                        partial(published, name="cifar10", layouts=(layout,), classes=datasets.CIFAR10_CLASSES))
    monkeypatch.setattr(corrupted, "ROWS_OF_C", 5 * N)
    monkeypatch.setenv("MIXREPRO_DATA", str(root))
    return root


@pytest.fixture
def runs(disk, tmp_path):
    store = Store(tmp_path / "runs")
    return [train_run(Spec("cifar10", "erm", "tiny-cnn", seed=s, epochs=1, batch=6, augment="none"), store, "cpu")
            for s in (0, 1)]


def by_hand(run, divided: bool) -> list[float]:
    "The accuracy under `fog`, from the images and nothing else."
    test = datasets.load("cifar10", "test")
    cells = [test.x // s if divided else corrupt(test.x, "fog", s) for s in range(1, 6)]
    return [accuracy(predict(open_net(run), x), test.y) for x in cells]


# --- the metric

def whose(found: list[dict]) -> set: return {r["corruptions"] for r in found}


def test_the_metric_reads_the_released_arrays(runs, capsys):
    found = catalogue.measure(runs, "corruptions", "cpu")
    assert whose(found) == {"released"}
    assert [r["accuracy"]["fog"] for r in found] == [by_hand(run, True) for run in runs]
    assert all("seed" not in r and r["images"] == N for r in found)
    assert all(kept(run, "corruptions") is None and kept(run, "corruptions-released") == r for run,
               r in zip(runs, found))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("harm, why", [
    (lambda f: f.unlink(), "fog.npy is missing"),
    (lambda f: os.truncate(f, 9000), "fog.npy has MD5 [0-9a-f]{32}, expected"),
    (lambda f: os.truncate(f, 0), "fog.npy has MD5 [0-9a-f]{32}, expected"),
    (lambda f: f.write_bytes(f.read_bytes()[:-1] + b"?"), "fog.npy has MD5 [0-9a-f]{32}, expected")])
def test_one_spoilt_file_and_all_kinds_are_made_here(runs, disk, capsys, harm, why):
    harm(disk / "CIFAR-10-C" / "fog.npy")
    found = catalogue.measure(runs, "corruptions", "cpu")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "CIFAR-10-C is not whole, so cifar10 is corrupted here instead: " in said
    assert f"run `mixrepro data get cifar10-c --root {disk}`" in said
    assert re.search(why, said)
    assert whose(found) == {"generated"}
    assert [r["accuracy"]["fog"] for r in found] == [by_hand(run, False) for run in runs]
    assert all(len(v) == 5 for r in found for v in r["accuracy"].values())
    assert corruption_mean(found[0]["accuracy"]) >= 0
    assert [kept(run, "corruptions") for run in runs] == found and kept(runs[0], "corruptions-released") is None


def test_missing_labels_are_a_fault_and_a_missing_extra_kind_is_none(disk):
    assert released_faults("cifar10", disk) == []
    (disk / "CIFAR-10-C" / "labels.npy").unlink()
    assert released_faults("cifar10", disk) == [f"{disk / 'CIFAR-10-C' / 'labels.npy'} is missing"]


def test_values_of_two_sources_are_kept_apart_and_both_stay(runs, disk, monkeypatch):
    away = disk / "away"
    shutil.move(disk / "CIFAR-10-C", away)
    made = catalogue.measure(runs, "corruptions", "cpu")          # measured before the arrays came
    shutil.move(away, disk / "CIFAR-10-C")
    released = catalogue.measure(runs, "corruptions", "cpu")
    assert (whose(made), whose(released)) == ({"generated"}, {"released"}) and made != released
    monkeypatch.setattr(catalogue, "open_net", None)              # from here on nothing can be measured, only read
    assert catalogue.measure(runs, "corruptions", "cpu") == released
    shutil.rmtree(disk / "CIFAR-10-C")
    assert catalogue.measure(runs, "corruptions", "cpu") == made


def test_half_measured_runs_get_one_source(runs, disk):
    "One run was measured on released images; the arrays are spoilt; both are then measured on images made here."
    catalogue.measure(runs[:1], "corruptions", "cpu")
    (disk / "CIFAR-10-C" / "snow.npy").unlink()
    assert whose(catalogue.measure(runs, "corruptions", "cpu")) == {"generated"}


def test_other_metrics_and_other_sets_keep_their_names(disk):
    assert [catalogue.key_of(m, "cifar10")
            for m in catalogue.METRICS if "corruptions" not in m] == [m
                                                                      for m in catalogue.METRICS
                                                                      if "corruptions" not in m]
    assert catalogue.key_of("corruptions", "cifar10") == "corruptions-released"
    for name in ("digits", "cifar100", "tiny-imagenet", "synthetic-blobs", "svhn"):
        assert catalogue.key_of("corruptions", name) == "corruptions"


def test_what_was_kept_for_made_corruptions_is_found_again(tmp_path, monkeypatch):
    "A store of before this module: its file is `corruptions.json`."
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path / "data"))
    run = train_run(Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=40, batch=20, augment="none"),
                    Store(tmp_path / "runs"), "cpu")
    catalogue.keep(run, "corruptions", dict(corruptions="generated", old=True))
    assert catalogue.measure([run], "corruptions", "cpu") == [dict(corruptions="generated", old=True)]
    assert [p.name for p in (run.folder / "metrics").iterdir()] == ["corruptions.json"]


# --- the source

def test_a_caption_can_say_it(disk, capsys):
    assert corruption_source("cifar10") == Source("released", "those of the released CIFAR-10-C")
    assert corruption_source("digits").words == MADE
    assert corruption_source("tiny-imagenet").words == MADE.replace("CIFAR-10", "Tiny-ImageNet")
    (disk / "CIFAR-10-C" / "frost.npy").unlink(); (disk / "CIFAR-10-C" / "snow.npy").unlink()
    source = corruption_source("cifar10")
    assert (source.words == MADE and source.why.endswith("snow.npy is missing")
            or source.why.endswith("frost.npy is missing"))
    assert ", and 1 more; run `mixrepro data get" in capsys.readouterr().err


def test_files_are_read_once_and_again_when_they_change(disk, monkeypatch):
    read, fault = [], fetch.file_fault
    monkeypatch.setattr(fetch, "file_fault", lambda path, digest: read.append(path.name) or fault(path, digest))
    assert corruption_source("cifar10").origin == "released" and len(read) == 16
    assert corruption_source("cifar10").origin == "released" and len(read) == 16
    os.utime(disk / "CIFAR-10-C" / "snow.npy", ns=(1, 1))
    assert corruption_source("cifar10").origin == "released" and read[16:] == ["snow.npy"]
    (disk / ".fetch" / "cifar10-c" / "scored.checked").write_text("{")  # the note is spoilt: everything is read
    assert corruption_source("cifar10").origin == "released" and len(read) == 33


def test_a_file_of_the_same_size_and_date_is_read_again(disk):
    "Who copies with dates, as rsync -a does, brings a damaged file under the date of the whole one."
    assert corruption_source("cifar10").origin == "released"
    fog = disk / "CIFAR-10-C" / "fog.npy"
    was, data = fog.stat(), bytearray(fog.read_bytes())
    data[-1] ^= 1
    fog.write_bytes(data)
    os.utime(fog, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert "fog.npy has MD5" in corruption_source("cifar10").why


def test_a_root_that_cannot_be_written_is_read_all_the_same(disk, monkeypatch):
    def refuse(*_): raise PermissionError("read-only")
    monkeypatch.setattr(sources, "write_atomic", refuse)
    for _ in range(2): assert corruption_source("cifar10").origin == "released"


def test_fetching_leaves_the_note_alone(disk):
    corruption_source("cifar10")
    assert fetch._left("cifar10-c", disk) == []


def test_a_folder_made_here_is_no_released_one(disk):
    shutil.rmtree(disk / "CIFAR-10-C")
    write_c(disk / "CIFAR-10-C", n=N, made=True)
    assert corruption_source("cifar10") == Source("generated", MADE)
    with pytest.raises(FileNotFoundError,
                       match="CIFAR-10-C was made here, so the released set has no room: move that folder away"):
        corrupted.load_c("cifar10", "fog", 1, disk, "released")


def test_tiny_imagenet_c_is_counted(tmp_path, monkeypatch):
    parts = tuple(fetch.Part(f"Tiny-ImageNet-C/{kind}", count={"": 1}) for kind in (*CORRUPTIONS, "saturate"))
    monkeypatch.setitem(fetch.DATA, "tiny-imagenet-c",
                        replace(fetch.DATA["tiny-imagenet-c"], editions=((fetch.Remote("t", (), parts),),)))
    for kind in CORRUPTIONS:
        (at := tmp_path / "Tiny-ImageNet-C" / kind / "1" / "n01").mkdir(parents=True)
        (at / "a.JPEG").write_bytes(b"x")
    assert corruption_source("tiny-imagenet", tmp_path) == Source("released", "those of the released Tiny-ImageNet-C")
    (at / "a.JPEG").unlink()
    lines = []
    assert corruption_source("tiny-imagenet", tmp_path, lines.append).origin == "generated"
    assert "jpeg_compression holds 0 pictures, expected 1" in lines[0]


def test_generated_stays_the_default_of_robustness(disk):
    "A part of the test set has no released arrays of its own."
    part = datasets.load("cifar10", "test").subset(5)
    assert robustness(lambda x: x.flatten(1)[:, :10], part, kinds=("contrast",))["corruptions"] == "generated"
