"Folders of pictures against torchvision, splits as properties, every refusal, and a run that notices another picture."
import json
import os
import shutil
import subprocess
import sys
import warnings
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mixrepro.data import folder as F
from mixrepro.data.contents import content_of, files_of
from mixrepro.data.datasets import DATASETS, STATS, add, load
from mixrepro.data.folder import added, changed_since, from_folder, split_pictures
from mixrepro.data.images import ImageSet
from mixrepro.data.sources import corruption_source
from mixrepro.metrics.catalogue import METRICS, fitted, measure
from mixrepro.training.loop import train_run
from mixrepro.training.made import OtherCode, code_of, made_now
from mixrepro.training.spec import Spec, name_of
from mixrepro.training.standing import other
from mixrepro.training.store import Store, open_net, vouch, weights_of


def fill(at, n, seed=0, size=(12, 9), ending="png", mode="RGB"):
    "Pictures of a class, each of its own values."
    rng = np.random.default_rng(seed)
    at.mkdir(parents=True, exist_ok=True)
    for k in range(n):
        x = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(x).convert(mode).save(at / f"{k}.{ending}")
    return at.parent


@pytest.fixture
def sets(tmp_path, monkeypatch):
    "A data root with nothing in it, and beside it 3 classes of 10 pictures."
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path / "data"))
    for k, c in enumerate(("rose", "aster", "tulip")): fill(tmp_path / "flowers" / c, 10, k)
    yield tmp_path
    DATASETS.found.clear(), STATS.found.clear()


@pytest.mark.parametrize("size", [6, 9, 20])
def test_it_is_what_torchvision_reads(tmp_path, size):
    for k, c in enumerate("ab"):
        fill(tmp_path / "s/train" / c, 3, k), fill(tmp_path / "s/train" / c / "deeper", 2, 9 + k, (30, 41), "JPEG")
        fill(tmp_path / "s/val" / c, 2, 5 + k, (9, 17), mode="L")
    to = v2.Compose([v2.Resize(size), v2.CenterCrop(size), v2.PILToTensor()])
    for split, at in (("train", "train"), ("test", "val")):
        ours = ImageSet.from_folder(tmp_path / "s", split, size)
        theirs = ImageFolder(tmp_path / "s" / at, to)
        pairs = sorted((y, x.numpy().tobytes()) for x, y in theirs)
        assert sorted((y, x.numpy().tobytes()) for x, y in zip(ours.x, ours.y.tolist())) == pairs
        assert [*ours.classes] == theirs.classes and ours.split == split and ours.name == "s"


def test_hidden_files_and_other_files_are_no_pictures(sets):
    at = sets / "flowers/rose"
    (at / "._0.png").write_bytes(b"x"), (at / "list.txt").write_text("x"), (at.parent / ".checkpoints").mkdir()
    assert len(ImageSet.from_folder(at.parent, share=0)) == 30


@pytest.mark.parametrize("share", [.01, .2, .5, .99])
@pytest.mark.parametrize("seed", [0, 7])
def test_a_share_of_each_class_is_held_out(sets, share, seed):
    parts = split_pictures(sets / "flowers", share, seed)
    for c in parts["train"]:
        held, kept = parts["test"][c], parts["train"][c]
        assert len(held) == min(max(1, round(10 * share)), 9) and len({*held, *kept}) == 10 == len(held) + len(kept)
    shutil.copytree(sets / "flowers", sets / "elsewhere" / "else")
    def names(parts): return {s: {c: [p.name for p in paths] for c, paths in by.items()} for s, by in parts.items()}
    assert names(split_pictures(sets / "elsewhere" / "else", share, seed)) == names(parts)


def test_a_picture_more_moves_one_other_at_the_most(sets):
    before = split_pictures(sets / "flowers", .3, 0)["test"]
    for k in range(5):
        shutil.copy(sets / "flowers/rose/0.png", sets / "flowers/rose" / f"new{k}.png")
        after = split_pictures(sets / "flowers", .3, 0)["test"]
        assert len({*before["rose"]} - {*after["rose"]}) <= 1 and after["tulip"] == before["tulip"]
        before = after


def spoil(at, how):
    "A folder with something wrong in it."
    if how == "damaged": (at / "rose/3.png").write_bytes((at / "rose/3.png").read_bytes()[:60])
    if how == "empty class": shutil.rmtree(at / "rose"), (at / "rose").mkdir()
    if how == "one class": shutil.rmtree(at / "rose"), shutil.rmtree(at / "aster")
    if how == "empty": shutil.rmtree(at), at.mkdir()
    if how == "gone": shutil.rmtree(at)
    if how == "flat": shutil.rmtree(at), fill(at, 3)
    if how == "other sizes": fill(at / "rose", 2, size=(5, 5))
    if how == "one picture": shutil.rmtree(at / "rose"), fill(at / "rose", 1)
    if how == "transparent": Image.new("RGBA", (12, 9)).save(at / "rose/3.png")
    if how == "other classes":
        at.rename(at.parent / "part"), at.mkdir()
        shutil.copytree(at.parent / "part", at / "train"), (at.parent / "part").rename(at / "test")
        (at / "test/rose").rename(at / "test/lily")
    if how == "called otherwise": (at / "rose").rename(at / "training"), (at / "aster").rename(at / "TEST"), shutil.rmtree(at / "tulip")
    if how == "webp": Image.new("RGB", (12, 9)).save(at / "rose/some.webp")
    if how == "loop": (at / "rose/up").symlink_to("..")
    if how == "link": (at / "rose/x.png").symlink_to("gone.png")
    if how == "linked class": (at / "poppy").symlink_to("rose")
    if how == "two lines": (at / "rose/3.png").rename(at / "rose/3\n.png")
    if how == "bytes": (at / "rose/3.png").rename(os.fsdecode(os.fsencode(at / "rose") + b"/\xff.png"))
    if how == "no test":
        at.rename(at.parent / "part"), at.mkdir(), (at.parent / "part").rename(at / "train")


@pytest.mark.parametrize("into", [[], ["train", "test"]], ids=["", "of both splits"])
def test_several_bad_pictures_are_one_sentence(sets, into):
    at = sets / "flowers"
    for split in into: shutil.copytree(at, sets / "apart" / split)
    at = sets / "apart" if into else at
    bad = sorted(at.rglob("rose/[1-3].png"))
    for p in bad: p.write_bytes(p.read_bytes()[:60])
    Image.new("RGBA", (12, 9)).save(at.joinpath(*into[:1], "tulip", "3.png"))
    more = len(bad) + 1 - 3
    for call in (lambda: ImageSet.from_folder(at, size=8), lambda: add("mine", at, size=8)):
        with pytest.raises(ValueError, match=f"rose/1.png is not a whole image .*rose/2.png is.* and {more} more: no picture is left out, so replace them or remove") as e: call()
        assert e.value.__suppress_context__ and str(e.value).count("no picture is left out") == 1, "a notebook shows one traceback"


@pytest.mark.parametrize("how, sentence", [
    ("damaged", "rose/3.png is not a whole image .*: no picture is left out, so replace it or remove it"),
    ("empty class", r"rose holds no pictures \(.jpeg, .jpg, .png\): remove it or fill it"),
    ("one class", "flowers holds one class only, 'tulip': a classifier needs two at least"),
    ("empty", "flowers holds no class folders"), ("flat", "flowers holds no class folders"),
    ("gone", "flowers is no folder: name one that holds"),
    ("other sizes", "pictures have different sizes, .*aster/.*png 12 x 9 and .*rose/[01].png 5 x 5 pixels: say which"),
    ("one picture", "rose holds one picture, so none is left to test on"),
    ("transparent", "rose/3.png has transparent pixels"),
    ("other classes", "train and test of .*flowers have different classes: 'lily' is in test only"),
    ("called otherwise", "flowers holds TEST, training: call the folder to train on train"),
    ("webp", "some.webp is no kind of picture that is read .*: no picture is left out, so convert it or move it away"),
    ("loop", "rose/up is a link to a folder that it lies in: remove it"),
    ("link", "rose/x.png is no file but a link that leads nowhere"),
    ("linked class", "poppy/0.png is .*rose/0.png by a link, and so a picture of two classes, 'poppy' and 'rose': remove"),
    ("two lines", r"3\\n.png' in .*flowers has a line end in its name"),
    ("bytes", "in .*flowers has a line end in its name, or a byte that is not UTF-8: rename it"),
    ("no test", "flowers holds train, but neither test nor val")])
def test_what_is_wrong_is_one_sentence_and_leaves_no_name(sets, how, sentence):
    at = sets / "flowers"
    spoil(at, how)
    for call in (lambda: [ImageSet.from_folder(at, s) for s in ("train", "test")], lambda: add("flowers", at)):
        with pytest.raises((ValueError, FileNotFoundError), match=sentence) as e: call()
        assert "\n" not in str(e.value)
    assert added("flowers") is None and "flowers" not in DATASETS


@pytest.mark.parametrize("name, sentence", [
    ("cifar10", "the name 'cifar10' is taken by mixrepro"), ("imagenet-r", "the name 'imagenet-r' is taken"),
    ("Flowers", "'Flowers' cannot be the name of a data set"), ("my-c", "cannot be the name"), ("../x", "cannot be the name"),
    ("a-l100-v200", "cannot be the name"), ("", "cannot be the name"), ("folder:x", "cannot be the name")])
def test_a_name_that_cannot_be(sets, name, sentence):
    with pytest.raises(ValueError, match=sentence): add(name, sets / "flowers")
    assert not (sets / "data").exists()


def test_a_name_that_mixrepro_takes_later_is_told(sets):
    add("flowers", sets / "flowers")
    for end in ("json", "files"): (sets / "data/own" / f"flowers.{end}").rename(sets / "data/own" / f"svhn.{end}")
    record = sets / "data/own/svhn.json"  # as a version that did not know the name wrote it
    record.write_text(json.dumps(json.loads(record.read_text()) | dict(name="svhn", sealed="")))
    with pytest.raises(ValueError, match="the name 'svhn' is taken by mixrepro"): load("svhn", "train")
    assert len(load("digits", "test")) == 539


SMALL = dict(network="tiny-cnn", epochs=1, batch=12, augment="crop")


def test_a_run_is_bound_to_the_pictures(sets, monkeypatch):
    "Trained, measured, found again; another picture is refused, and after it was added the run is made again."
    mine, store = add("flowers", sets / "flowers", size=8), Store(sets / "runs")
    spec = Spec("flowers", "mixup", **SMALL)
    run = train_run(spec, store)
    assert run.folder == store.root / "flowers" / name_of(spec) and run.made["data"] == content_of("flowers")
    assert open_net(run).norm.mean.flatten().tolist() == pytest.approx(mine.mean) and STATS["flowers"] == (mine.mean, mine.std)
    assert {"data.datasets:DATASETS[flowers]", "data.datasets:STATS[flowers]", "data.folder:decoded_at",
            "data.image_folder:middle"} <= code_of(spec).parts.keys()
    assert measure([run], "clean")[0]["accuracy"] <= 1 and other(run) == "" and train_run(spec, store).folder == run.folder
    Image.new("RGB", (12, 9), (255, 0, 0)).save(sets / "flowers/rose/0.png")
    with pytest.raises(ValueError, match="flowers is not what was added: .*rose/0.png has changed; put that right, or add it"):
        load("flowers", "test")
    assert other(run) == "", "it is of the pictures that have the name"
    add("flowers", sets / "flowers", size=8)
    assert "the files of flowers changed" in other(run) and name_of(Spec("flowers", "mixup", **SMALL)) == name_of(spec)
    monkeypatch.setattr("mixrepro.training.made.CHEAP", -1.)
    with pytest.raises(OtherCode, match="the files of flowers changed"): train_run(spec, store)
    monkeypatch.setenv("MIXREPRO_OTHER_CODE", "refresh")
    assert other(train_run(spec, store)) == ""


def swapped(first, second):
    "The bytes of two pictures change places."
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(two), second.write_bytes(one)


@pytest.fixture
def tested(sets):
    "A folder with test pictures of its own, and a run on it: training goes as before, whatever becomes of them."
    for k, c in enumerate("ab"): fill(sets / "s/train" / c, 6, k), fill(sets / "s/test" / c, 2, 5 + k)
    add("mine", sets / "s", size=8)
    return sets / "s/test", train_run(Spec("mine", "erm", **SMALL), Store(sets / "runs"))


@pytest.mark.parametrize("name", ["clean", "fgsm-pixels"])
def test_what_was_measured_on_other_test_pictures_does_not_count(tested, sets, name):
    "Another test set alone leaves every weight as it was."
    at, run = tested
    first, weights, whole = measure([run], name), weights_of(run.folder), sorted(f.name for f in (run.folder / "metrics").iterdir())
    swapped(at / "a/0.png", at / "b/0.png")
    add("mine", sets / "s", size=8)
    again, anew = (train_run(run.spec, Store(sets / store)) for store in ("runs", "others"))
    assert weights_of(again.folder) == weights_of(anew.folder) == weights and again.made["data"] == anew.made["data"]
    if name == "clean": assert measure([again], name) == measure([anew], name) != first
    measure([again], name)
    (aside,) = again.folder.glob("metrics.*")
    assert aside.name == "metrics.other-data-1" and sorted(f.name for f in aside.iterdir()) == whole


@pytest.mark.parametrize("way", ["", "as-is"])
def test_nothing_is_measured_on_other_pictures_than_the_runs_own(tested, sets, monkeypatch, way):
    "Not in between, not while they are read, not though the run is shown as it is: what is kept would be taken for the run's own."
    at, run = tested
    monkeypatch.setenv("MIXREPRO_OTHER_CODE", way)
    others = "the files of mine are others than mine/.* was made from, so nothing is measured on them: put those back"
    def change():
        swapped(at / "a/0.png", at / "b/0.png")
        add("mine", sets / "s", size=8)
    change()
    with pytest.raises(RuntimeError, match=others): measure([run], "clean")
    with pytest.raises(RuntimeError, match=others): fitted(run)
    change()
    def meanwhile(nets, test):
        change()
        return [dict(images=len(test)) for _ in nets]
    monkeypatch.setitem(METRICS, "moved", meanwhile)
    with pytest.raises(RuntimeError, match=others): measure([run], "moved")
    assert not (run.folder / "metrics").exists()
    change()
    assert measure([run], "clean")


def test_kept_logits_are_not_read_against_other_labels(tested, sets):
    "The picture of one class is in the other by now: the logits are of the right network and of the right pictures, in their old order."
    at, run = tested
    first = measure([run], "clean")
    swapped(at / "a/0.png", at / "b/0.png")
    add("mine", sets / "s", size=8)
    with pytest.raises(RuntimeError, match="the files of mine are others than mine/"): measure([run], "clean")
    swapped(at / "a/0.png", at / "b/0.png")
    add("mine", sets / "s", size=8)
    assert measure([run], "clean") == first


def test_a_run_that_is_made_again_while_it_is_measured(tested, monkeypatch):
    "By another process, with other weights: what was measured of the old ones is not kept as theirs."
    _, run = tested
    def meanwhile(nets, test):
        weights = safetensors.torch.load_file(run.folder / "weights.safetensors")
        (run.folder / "weights.safetensors").write_bytes(safetensors.torch.save({k: v + 1 for k, v in weights.items()}))
        vouch(run, run.made)
        return [dict(images=len(test)) for _ in nets]
    monkeypatch.setitem(METRICS, "moved", meanwhile)
    with pytest.raises(RuntimeError, match="mine/erm-.* was made again while it was measured: nothing of that is kept"): measure([run], "moved")
    assert run.done and not (run.folder / "metrics").exists()


def test_where_the_folder_lies_is_no_part_of_what_it_is(sets):
    here = add("flowers", sets / "flowers")
    was = made_now(Spec("flowers", "erm", **SMALL))
    shutil.move(sets / "flowers", sets / "moved")
    with pytest.raises(ValueError, match="flowers is not what was added: .*flowers is no folder"): load("flowers", "train")
    there = add("flowers", sets / "moved")
    assert there == replace(here, folder=str(sets / "moved")) and made_now(Spec("flowers", "erm", **SMALL)) == was
    assert {p.parent.parent for p in files_of("flowers")} == {sets / "moved"} and len(files_of("flowers")) == 30
    for change in (dict(size=5), dict(share=.5), dict(seed=1)):
        assert add("flowers", sets / "moved", **change).digest != here.digest


def test_pictures_are_decoded_once_and_read_again_only_where_a_date_differs(sets, monkeypatch):
    add("flowers", sets / "flowers", size=6)
    monkeypatch.setattr(F, "decoded_at", None)
    first = load("flowers", "test")
    monkeypatch.setattr(F, "by_content", None)
    assert torch.equal(load("flowers", "test").x, first.x)
    (sets / "data/own/flowers-test.npz").write_bytes(b"half a fi")
    monkeypatch.undo(), monkeypatch.setenv("MIXREPRO_DATA", str(sets / "data"))
    assert torch.equal(load("flowers", "test").x, first.x)


def test_a_picture_that_changes_while_it_is_added(sets, monkeypatch):
    "Its old pixels were kept under the digest of the new one."
    real = F.decoded_at
    def decoded(paths, size):
        x = real(paths, size)
        Image.new("RGB", (12, 9), (255, 0, 0)).save(paths[0])
        return x
    monkeypatch.setattr(F, "decoded_at", decoded)
    with pytest.raises(ValueError, match="pictures in .*flowers changed while they were read: add it again"): add("flowers", sets / "flowers")
    monkeypatch.setattr(F, "decoded_at", real)
    assert added("flowers") is None and add("flowers", sets / "flowers").images == dict(train=24, test=6)


@pytest.mark.parametrize("put_back", [True, False])
def test_a_picture_that_changes_while_it_is_read_is_not_kept(tested, monkeypatch, put_back):
    "What is kept would stand for the right one from then on, once that is back."
    at, _ = tested
    whole, real = load("mine", "test").x, F.decoded_at
    for f in (at.parents[1] / "data/own").glob("*.npz"): f.unlink()
    def other(paths, size):
        swapped(at / "a/0.png", at / "b/0.png")
        try: return real(paths, size)
        finally: put_back and swapped(at / "a/0.png", at / "b/0.png")
    monkeypatch.setattr(F, "decoded_at", other)
    with pytest.raises(ValueError, match="pictures in .* changed while they were read: call the same again once they stay as they are"): load("mine", "test")
    monkeypatch.undo()
    monkeypatch.setenv("MIXREPRO_DATA", str(at.parents[1] / "data"))
    if not put_back: swapped(at / "a/0.png", at / "b/0.png")
    assert torch.equal(load("mine", "test").x, whole)


def test_another_picture_of_the_same_size_and_date_is_noticed(sets):
    add("flowers", sets / "flowers")
    one, two = sets / "flowers/rose/3.png", sets / "flowers/rose/4.png"
    was, longest = one.stat(), max(len(p.read_bytes()) for p in (one, two))
    one.write_bytes(two.read_bytes().ljust(longest, b"\0")[:was.st_size].ljust(was.st_size, b"\0"))
    os.utime(one, ns=(was.st_atime_ns, was.st_mtime_ns))
    assert one.stat().st_size == was.st_size and one.stat().st_mtime_ns == was.st_mtime_ns
    with pytest.raises(ValueError, match="rose/3.png has changed"): load("flowers", "train")


@pytest.mark.parametrize("step", range(6))
def test_a_name_that_is_given_away_and_killed_meanwhile_is_the_old_one_or_the_new(sets, monkeypatch, step):
    "The list of pictures was the new folder's and the record the old one's, so that neither could be read."
    old, steps, real = add("flowers", sets / "flowers"), iter(range(9)), os.replace
    for k, c in enumerate(("rose", "aster")): fill(sets / "others" / c, 5, 7 + k)
    def killed(*files):
        if next(steps) == step: raise KeyboardInterrupt
        real(*files)
    monkeypatch.setattr(os, "replace", killed)
    with suppress(KeyboardInterrupt): add("flowers", sets / "others", instead=True)
    monkeypatch.setattr(os, "replace", real)
    DATASETS.found.clear(), STATS.found.clear()
    assert (added("flowers").digest == old.digest) == (step < 4)
    assert len(load("flowers", "train")) == added("flowers").images["train"]
    if step != 4: assert not changed_since(added("flowers"), deep=True)  # a moment: the command in its sentence mends it
    assert add("flowers", sets / "others", instead=True) == added("flowers") and not changed_since(added("flowers"), deep=True)


@pytest.mark.parametrize("name", ["x\u2028y\x85\x0c.png", "x\ry.png", " x .png", "é %s {0} 'q\".png"])
def test_an_odd_name_comes_back(sets, name):
    (sets / "flowers/rose/3.png").rename(sets / "flowers/rose" / name)
    add("flowers", sets / "flowers")
    assert len(load("flowers", "train")) + len(load("flowers", "test")) == 30 and not F.faults_of("flowers")


def test_an_empty_path_is_not_the_current_folder(sets, monkeypatch):
    monkeypatch.chdir(sets / "flowers")
    with pytest.raises(ValueError, match="the path of the folder is empty"): ImageSet.from_folder("")


def test_one_picture_in_both_splits_is_counted(sets, monkeypatch):
    for k, (c, s) in enumerate((c, s) for c in ("rose", "tulip") for s in ("train", "test")):
        fill(sets / "both" / s / c, 3, k)
    for c in ("rose", "tulip"):
        shutil.copy(sets / "both/train" / c / "1.png", sets / "both/test" / c / "1.png")
    read, real = [], F.sha256
    monkeypatch.setattr(F, "sha256", lambda of: read.append(of) or real(of))
    with warnings.catch_warnings(action="error"):
        assert add("both", sets / "both").twice == 2, "the command says it by itself"
        pictures = [of for of in read if not isinstance(of, bytes)]
        assert len(pictures) == len(set(pictures)) == 12, "each is read for its content once"
        from_folder(sets / "both", "train", 8)
    with pytest.warns(match="2 of 6 pictures to test on are training pictures, too, such as .*test/rose/1.png, which is .*train/rose/1.png"):
        from_folder(sets / "both", "test", 8)


@pytest.mark.parametrize("file, content", [("json", "{"), ("json", "{}"), ("json", "[1]"), ("json", "[" * 100_000), ("files", "x y\n"), ("files", "")])
def test_a_spoilt_record_is_named(sets, file, content):
    mine = add("flowers", sets / "flowers")
    (sets / "data/own" / f"flowers.{file}").write_text(content)
    with pytest.raises(ValueError, match=f"flowers.{file} is not what was written: add the folder again with `mixrepro data add"):
        load("flowers", "train") if file == "json" else changed_since(mine, deep=True)
    assert add("flowers", sets / "flowers") == mine and len(load("flowers", "test")) == 6


@pytest.mark.parametrize("field, value", [("mean", [.1, .2, .3]), ("std", [0, 0, 0]), ("classes", ["a", "b", "c"]), ("size", "8"), ("folder", 3), ("images", [1]), ("shape", None), ("name", "other")])
def test_a_record_that_was_edited_is_no_record(sets, field, value):
    add("flowers", sets / "flowers", size=8)
    path = sets / "data/own/flowers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    DATASETS.found.clear(), STATS.found.clear()
    for call in (lambda: load("flowers", "train"), lambda: added("flowers"), lambda: added("flowers").title):
        with pytest.raises(ValueError, match="flowers.json is not what was written"): call()


def test_a_record_under_another_name_is_none_of_it(sets):
    add("flowers", sets / "flowers")
    for ending in ("json", "files"): (sets / f"data/own/flowers.{ending}").rename(sets / f"data/own/plants.{ending}")
    with pytest.raises(ValueError, match="plants.json is not what was written"): load("plants", "train")


def test_a_record_of_an_older_version_has_no_seal(sets):
    mine, path = add("flowers", sets / "flowers"), sets / "data/own/flowers.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "sealed"}))
    assert added("flowers") == mine and added("flowers").sealed == "" and len(load("flowers", "test")) == 6


def test_kept_images_of_one_split_are_not_those_of_the_other(sets):
    add("flowers", sets / "flowers", share=.5)
    whole, (train, test) = load("flowers", "train").x, (sets / f"data/own/flowers-{s}.npz" for s in ("train", "test"))
    shutil.copy(test, train)
    assert torch.equal(load("flowers", "train").x, whole) and not torch.equal(load("flowers", "test").x, whole)


def test_corruptions_and_captions_know_its_size(sets):
    add("small", sets / "flowers", size=8), add("large", sets / "flowers", size=64)
    assert corruption_source("small").words.endswith("CIFAR-10-C")
    assert corruption_source("large").words.endswith("Tiny-ImageNet-C")
    found = measure([train_run(Spec("large", "erm", **SMALL), Store(sets / "runs"))], "corruptions-on-10")[0]
    assert found["table"] == "tiny-imagenet" and found["images"] == 6 and len(found["accuracy"]) == 15


def test_names_are_those_of_the_data_root(sets, monkeypatch):
    add("flowers", sets / "flowers")
    with pytest.raises(ValueError, match="unknown dataset 'flowres': did you mean 'flowers'"): Spec("flowres", "erm", **SMALL)
    monkeypatch.setenv("MIXREPRO_DATA", str(sets / "other"))
    with pytest.raises(ValueError, match="unknown dataset 'flowers'"): Spec("flowers", "erm", **SMALL)
    with pytest.raises(ValueError, match="unknown data set 'flowers'"): load("flowers", "train", sets / "data")
    assert json.loads((sets / "data/own/flowers.json").read_text())["images"] == dict(train=24, test=6)


@pytest.mark.parametrize("module", ["images", "datasets"])
def test_it_is_there_after_whichever_import(module, sets):
    code = ("import sys; from mixrepro.data.images import ImageSet\n"
            f"import mixrepro.data.{module}\nprint(ImageSet.from_folder(sys.argv[1], size=8))")
    said = subprocess.run([sys.executable, "-c", code, str(sets / "flowers")], text=True, capture_output=True)
    assert "classes" in said.stdout, said.stderr
