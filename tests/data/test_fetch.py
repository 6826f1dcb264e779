"The catalogue of data sets: found where they lie, fetched where they do not, checked, named when they are wrong, and finished after a kill."
import hashlib
import io
import json
import os
import random
import re
import runpy
import signal
import subprocess
import sys
import tarfile
import time
import types
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torchvision

from conftest import ROOT
from helpers import SHARED
from mixrepro.data import datasets, fetch as F, readers
from mixrepro.data.fetch import DataSet, Part, Remote, data_list, fetch, verify
from mixrepro.download import Patience
from webserver import Web, without_proxy

without_proxy()
QUICK = Patience(timeout=10, tries=2, pause=.005)  # a machine may stand still for a second: that is no silent server
SHORT = Patience(timeout=.3, tries=2, pause=.005)
md5 = lambda b: hashlib.md5(b).hexdigest()
quiet = lambda line: None


def tar(members, gz=False):
    with tarfile.open(fileobj=(out := io.BytesIO()), mode="w:gz" if gz else "w") as t:
        for name, content in members.items():
            m = tarfile.TarInfo(name); m.size = len(content); t.addfile(m, io.BytesIO(content))
    return out.getvalue()


def zipped(members):
    with zipfile.ZipFile(out := io.BytesIO(), "w") as z:
        for name, content in members.items(): z.writestr(name, content)
    return out.getvalue()


def seen(root): return sorted(p.name for p in Path(root).iterdir() if p.name != ".fetch")


ARRAYS = {f"{k}.bin": random.Random(i).randbytes(9000) for i, k in enumerate("abc")}
PHOTOS = {f"{c}/{i}.JPEG": b"\xff\xd8" + f"{c}{i}".encode() for c in ("n01", "n02") for i in range(15)}
LOOSE = {"train.mat": b"t" * 7000, "test.mat": b"e" * 3000}


@pytest.fixture
def web():
    web = Web({"/arrays.tar.gz": tar({f"arrays/{k}": v for k, v in ARRAYS.items()}, gz=True), "/old.zip": zipped({f"old/{k}": v for k, v in ARRAYS.items()}),
               "/photos.tar": tar({f"photos/{k}/{f}": v for k in ("fog", "snow") for f, v in PHOTOS.items()}), "/films.tar": tar({f"noise/{k}": v for k, v in PHOTOS.items()}),
               **{f"/{k}": v for k, v in LOOSE.items()}})
    yield web
    web.close()


@pytest.fixture
def sets(web, monkeypatch):
    "Small data sets of every kind that the catalogue has, served by the server."
    def remote(name, *parts, **more): return Remote(name, (f"{web.url}/{name}", f"{web.url}/second/{name}"), parts, md5=md5(web.files[f"/{name}"]), **more)
    hashes = {k: md5(v) for k, v in ARRAYS.items()}
    new = {"arrays": DataSet("Arrays", ((remote("arrays.tar.gz", Part("arrays", hashes)),), (remote("old.zip", Part("old", hashes)),)), "CC0", "Nobody (2026)", "made up"),
           "photos": DataSet("Photos", ((remote("photos.tar", Part("Photos-C/fog", count={"": 30}), Part("Photos-C/snow", count={"": 30})),),), "CC0", "Nobody (2026)"),
           "films": DataSet("Films", ((remote("films.tar", into="Films-P"),),), "CC0", "Nobody (2026)"),
           "loose": DataSet("Loose", (tuple(remote(k, Part("loose", {k: md5(v)})) for k, v in LOOSE.items()),), "CC0", "Nobody (2026)")}
    for name, d in new.items(): monkeypatch.setitem(F.DATA, name, d)
    return new


def get(name, root, source=None, say=quiet, patience=QUICK): return fetch(name, root, source, patience, say)


# ---- the table ------------------------------------------------------------------------------------------------------

def test_every_data_set_of_the_papers_is_there_with_what_a_person_must_know():
    assert set(F.DATA) == {"cifar10", "cifar100", "svhn", "mnist", "tiny-imagenet", "cifar10-c", "cifar100-c", "tiny-imagenet-c", "imagenet", "imagenet-c", "imagenet-p",
                           "imagenet-r", "openml"}
    for name, d in F.DATA.items():
        assert d.title and d.licence and re.search(r"\(\d{4}\)", d.citation), name
        for r in (r for e in d.editions for r in e if r.urls):
            assert len(set(r.urls)) > 1 and all(u.startswith(("https://", "http://")) for u in r.urls)
            assert re.fullmatch("[0-9a-f]{32}", r.md5) and re.fullmatch("([0-9a-f]{64})?", r.sha256) and (r.parts or r.into)


def test_what_torchvision_knows_is_what_the_table_says():
    remotes = {r.name: r for d in F.DATA.values() for e in d.editions for r in e}
    for theirs in (torchvision.datasets.CIFAR10, torchvision.datasets.CIFAR100): assert remotes[theirs.filename].md5 == theirs.tgz_md5
    for url, file, digest in torchvision.datasets.SVHN.split_list.values():
        if file in remotes: assert remotes[file].md5 == digest and url in remotes[file].urls
    for file, digest in torchvision.datasets.MNIST.resources: assert remotes[file].md5 == digest


# ---- fetching -------------------------------------------------------------------------------------------------------

FOLDERS = {"arrays": ("arrays", ARRAYS), "photos": ("Photos-C/fog", PHOTOS), "films": ("Films-P/noise", PHOTOS), "loose": ("loose", LOOSE)}


def holds(root, name):
    folder, files = FOLDERS[name]
    return all((root / folder / k).is_file() and (root / folder / k).read_bytes() == v for k, v in files.items())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_data_set_is_fetched_once_then_found(web, sets, tmp_path, name):
    lines = []
    out = get(name, tmp_path, say=lines.append)
    assert out == [tmp_path / FOLDERS[name][0].removesuffix("/noise")] and holds(tmp_path, name) and verify(name, tmp_path) == []
    assert sum("Licence: CC0. Please cite: Nobody (2026)." in line for line in lines) == 1
    asked, lines[:] = len(web.asked), []
    get(name, tmp_path, say=lines.append)
    assert len(web.asked) == asked and lines == [f"{name} is in {tmp_path}, whole"]
    left = [p for p in (tmp_path / ".fetch").rglob("*") if p.is_file() and not p.name.endswith((".lock", ".record", ".entries"))]
    assert left == [], "no archive, part or temporary folder stays"

@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("mood", ["cut:700", 503, "page", "other", "stall:500"])
def test_a_first_mirror_in_a_mood(web, sets, tmp_path, name, mood):
    for path in list(web.files): web.files["/second" + path], web.moods[path] = web.files[path], [mood]
    get(name, tmp_path, patience=SHORT if "stall" in str(mood) else QUICK)
    assert holds(tmp_path, name) and verify(name, tmp_path) == []


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("mood, why", [(404, "answered 404"), (503, "answered 503"), ("page", "sent a web page"), ("other", "has MD5"), ("cut:300", "")])
def test_no_mirror_gives_it_one_sentence_and_no_data_set(web, sets, tmp_path, name, mood, why):
    web.ranges = False
    for path in web.files: web.moods[path] = [mood] * 99
    with pytest.raises(OSError, match=f"{name} could not be brought to .*could not fetch .*{why}.*; try again later, or get .* elsewhere and name its folder with --from \\(MD5") as e: get(name, tmp_path)
    assert "\n" not in str(e.value) and seen(tmp_path) == []
    with pytest.raises(FileNotFoundError, match=f"{name} is not in .*: run `mixrepro data get {name} --root"): verify(name, tmp_path)
    web.moods = {}
    get(name, tmp_path)
    assert holds(tmp_path, name)


def test_the_second_edition_when_the_first_is_gone(web, sets, tmp_path):
    del web.files["/arrays.tar.gz"]
    assert get("arrays", tmp_path) == [tmp_path / "old"] and verify("arrays", tmp_path) == [] and seen(tmp_path) == ["old"]


def test_a_spoilt_edition_does_not_stand_before_a_whole_one(web, sets, tmp_path):
    "`load` would read the first folder that exists."
    (tmp_path / "arrays").mkdir(); (tmp_path / "arrays" / "a.bin").write_bytes(b"x")
    del web.files["/arrays.tar.gz"]
    get("arrays", tmp_path)
    assert seen(tmp_path) == ["arrays.replaced-1", "old"] and verify("arrays", tmp_path) == []


@pytest.mark.parametrize("bad, why", [(tar({"arrays/a.bin": ARRAYS["a.bin"]}), "b.bin is missing"), (tar({f"arrays/{k}": v[::-1] for k, v in ARRAYS.items()}), "a.bin has MD5"),
                                      (tar({"../a.bin": b""}), "would be written outside"), (tar({"else/a.bin": b""}), "holds no arrays"), (b"nothing", "is damaged")])
def test_an_archive_with_the_right_checksum_and_the_wrong_content(web, sets, tmp_path, monkeypatch, bad, why):
    web.files["/arrays.tar.gz"] = bad
    monkeypatch.setitem(F.DATA, "arrays", replace(sets["arrays"], editions=((replace(sets["arrays"].editions[0][0], md5=md5(bad)),),)))
    with pytest.raises(OSError, match=why): get("arrays", tmp_path)
    assert seen(tmp_path) == []


# ---- what is on disk already ----------------------------------------------------------------------------------------

def unpacked(folder, files):
    for name, content in files.items(): (folder / name).parent.mkdir(parents=True, exist_ok=True); (folder / name).write_bytes(content)
    return folder


def test_from_what_the_user_has(web, sets, tmp_path):
    box = tmp_path / "box"; box.mkdir(); (box / "arrays.tar.gz").write_bytes(web.files["/arrays.tar.gz"])
    (tmp_path / "mine.zip").write_bytes(zipped({f"x/arrays/{k}": v for k, v in ARRAYS.items()}))
    ways = {"a folder with the archive": box, "the archive": box / "arrays.tar.gz", "an archive of one's own": tmp_path / "mine.zip",
            "a folder with the unpacked set": unpacked(tmp_path / "u" / "arrays", ARRAYS).parent, "the unpacked set": unpacked(tmp_path / "other name", ARRAYS),
            "the older edition": unpacked(tmp_path / "v" / "old", ARRAYS).parent}
    for i, (what, source) in enumerate(ways.items()):
        get("arrays", tmp_path / str(i), source)
        assert seen(tmp_path / str(i)) in (["arrays"], ["old"]) and verify("arrays", tmp_path / str(i)) == [] and web.asked == [], what
    assert (box / "arrays.tar.gz").exists(), "what the user brought stays"


@pytest.mark.parametrize("name", ["photos", "loose", "films"])
def test_from_a_folder_with_the_published_files(web, sets, tmp_path, name):
    unpacked(tmp_path / "box", {r.name: web.files[f"/{r.name}"] for r in sets[name].editions[0]})
    get(name, tmp_path / "data", tmp_path / "box")
    assert holds(tmp_path / "data", name) and web.asked == [] and verify(name, tmp_path / "data") == []


@pytest.mark.parametrize("name", ["photos", "loose"])
def test_from_a_folder_with_the_unpacked_set(web, sets, tmp_path, name):
    get(name, tmp_path / "a"); asked = len(web.asked)
    get(name, tmp_path / "b", tmp_path / "a")
    assert holds(tmp_path / "b", name) and len(web.asked) == asked and holds(tmp_path / "a", name)


def test_from_an_address(web, sets, tmp_path):
    for path in list(web.files): web.files["/mirror/of/ours" + path] = web.files.pop(path)
    for name in FOLDERS: get(name, tmp_path / "a", f"{web.url}/mirror/of/ours/")
    assert all(holds(tmp_path / "a", name) for name in FOLDERS)
    get("arrays", tmp_path / "b", f"{web.url}/mirror/of/ours/arrays.tar.gz")
    assert holds(tmp_path / "b", "arrays") and all(path.startswith("/mirror") for path, *_ in web.asked)


def test_a_source_that_does_not_help_is_named_and_the_mirrors_asked(web, sets, tmp_path):
    lines, wrong = [], unpacked(tmp_path / "wrong", {"arrays.tar.gz": web.files["/arrays.tar.gz"][:-50], "arrays/a.bin": b"other"})
    get("arrays", tmp_path / "data", wrong, lines.append)
    assert holds(tmp_path / "data", "arrays") and len(web.asked) == 1
    assert any(line.startswith("not used: ") and "a.bin has MD5" in line for line in lines) and any("arrays.tar.gz is damaged" in line for line in lines)
    with pytest.raises(FileNotFoundError, match="there is nothing at .*nowhere: --from wants a folder, an archive or an address"): get("arrays", tmp_path / "data", tmp_path / "nowhere")


def test_a_picture_set_whose_archive_is_not_the_published_one_is_not_taken(web, sets, tmp_path):
    "Nothing inside it could be checked."
    unpacked(tmp_path / "box", {"photos.tar": tar({f"photos/{k}/{f}": b"other" for k in ("fog", "snow") for f in PHOTOS})})
    get("photos", tmp_path / "data", tmp_path / "box")
    assert holds(tmp_path / "data", "photos") and len(web.asked) == 1


def test_an_archive_in_the_data_root_is_used_and_kept(web, sets, tmp_path):
    unpacked(tmp_path, {"arrays.tar.gz": web.files["/arrays.tar.gz"]})
    get("arrays", tmp_path)
    assert web.asked == [] and seen(tmp_path) == ["arrays", "arrays.tar.gz"]


def test_a_whole_set_is_found_without_a_lock_or_a_byte_written(web, sets, tmp_path, monkeypatch):
    "It may lie in a folder of somebody else."
    unpacked(tmp_path / "arrays", ARRAYS)
    def refuse(*args): raise PermissionError("this folder is not ours")
    monkeypatch.setattr(F, "locked", refuse); monkeypatch.setattr(F, "write_atomic", refuse)
    assert get("arrays", tmp_path) == [tmp_path / "arrays"] and [p.name for p in tmp_path.iterdir()] == ["arrays"]
    with pytest.raises(ValueError, match="unknown data set that can be fetched 'arrays:1': did you mean 'arrays'"): get("arrays:1", tmp_path)


def test_only_the_missing_part_is_brought(web, sets, tmp_path):
    get("photos", tmp_path)
    (tmp_path / "Photos-C/snow/n01/3.JPEG").unlink()
    before = (tmp_path / "Photos-C/fog").stat().st_ino
    get("photos", tmp_path)
    assert (tmp_path / "Photos-C/fog").stat().st_ino == before and sorted(p.name for p in (tmp_path / "Photos-C").iterdir()) == ["fog", "snow", "snow.replaced-1"]
    assert verify("photos", tmp_path) == []
    (tmp_path / "Photos-C/fog/n02/3.JPEG").write_bytes(b"\xff\xd8zzzz")
    assert [w.split("Photos-C/")[1] for w in verify("photos", tmp_path)] == ["fog/n02/3.JPEG has changed since it was unpacked"], "the record has all parts"


# ---- verify ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, file", [("arrays", "arrays/b.bin"), ("photos", "Photos-C/snow/n02/7.JPEG"), ("films", "Films-P/noise/n01/2.JPEG"), ("loose", "loose/test.mat")])
def test_verify_names_the_file_that_is_wrong(web, sets, tmp_path, name, file):
    get(name, tmp_path)
    data = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(data[:-1] + b"\0")
    (wrong,) = verify(name, tmp_path)
    assert wrong.startswith(f"{tmp_path / file} has ")
    (tmp_path / file).write_bytes(b"")
    assert any(str(tmp_path / file) in w and ("empty" in w or "0 bytes" in w or "MD5" in w) for w in verify(name, tmp_path))
    (tmp_path / file).unlink()
    (wrong,) = verify(name, tmp_path)
    assert "is missing" in wrong and file in wrong or "holds 29 pictures, expected 30" in wrong
    get(name, tmp_path)
    assert (tmp_path / file).read_bytes() == data and verify(name, tmp_path) == []


def test_mnist_is_known_packed_or_not_and_where_torchvision_puts_it(tmp_path, monkeypatch):
    import gzip
    files = {f: (s, random.Random(f).randbytes(500)) for s in ("train", "test") for f in readers.MNIST[s]}
    packed = {f"{f}.gz": gzip.compress(c, mtime=0) for f, (_, c) in files.items()}
    parts = tuple(Remote(k, ("http://127.0.0.1:9/",) * 2, (Part("mnist", {k: md5(files[k[:-3]][1])}),), md5=md5(v)) for k, v in packed.items())
    plain = {f: md5(c) for f, (_, c) in files.items()}
    monkeypatch.setitem(F.DATA, "mnist", replace(F.DATA["mnist"], editions=(parts, *((Remote("", (), (Part(at, plain),)),) for at in ("mnist", "MNIST/raw")))))
    for i, (at, these) in enumerate({"mnist": packed, "./mnist": {f: c for f, (_, c) in files.items()}, "MNIST/raw": {f: c for f, (_, c) in files.items()}}.items()):
        unpacked(tmp_path / str(i) / at, these)
        lines = []
        get("mnist", tmp_path / str(i), say=lines.append)
        assert lines == [f"mnist is in {tmp_path / str(i)}, whole"] and verify("mnist", tmp_path / str(i)) == []
    get("mnist", tmp_path / "new", tmp_path / "2")
    assert seen(tmp_path / "new") == ["MNIST"] and verify("mnist", tmp_path / "new") == []
    unpacked(tmp_path / "0" / "mnist", {"t10k-labels-idx1-ubyte.gz": gzip.compress(b"other")})
    assert len(wrong := verify("mnist", tmp_path / "0")) == 1 and "t10k-labels-idx1-ubyte.gz has content of MD5 795f3202" in wrong[0]


# ---- the real thing -------------------------------------------------------------------------------------------------

def test_cifar10_from_a_folder_loads(official, tmp_path):
    assert fetch("cifar10", tmp_path, official.parent, say=quiet) == [tmp_path / "cifar-10-batches-bin"] and verify("cifar10", tmp_path) == []
    known = json.loads((SHARED / "cifar10" / "checksums.json").read_text())["binary_version_checks"]
    assert {f: md5((tmp_path / "cifar-10-batches-bin" / f).read_bytes()) for f in known} == {f: v["md5"] for f, v in known.items()}
    test = datasets.load("cifar10", "test", tmp_path)
    assert len(test) == 10_000 and test.standin == ""
    assert fetch("cifar10", tmp_path, say=quiet) == [tmp_path / "cifar-10-batches-bin"]


def test_cifar10_from_an_archive_of_ones_own_loads(official, tmp_path):
    with tarfile.open(tmp_path / "ours.tar", "w") as t: t.add(official, "cifar-10-batches-bin")
    fetch("cifar10", tmp_path / "data", tmp_path / "ours.tar", say=quiet)
    assert len(datasets.load("cifar10", "test", tmp_path / "data")) == 10_000
    with open(tmp_path / "data" / "cifar-10-batches-bin" / "test_batch.bin", "r+b") as f: f.seek(12_345); f.write(b"\1\2\3")
    (wrong,) = verify("cifar10", tmp_path / "data")
    assert re.search("test_batch.bin has MD5 .*, expected 803d5f7f4d78ea53de84dbe85f74fb6d", wrong)


@pytest.mark.parametrize("file", ["films.tar.entries", "Films-P+noise.record"])
@pytest.mark.parametrize("spoil", ["empty", "cut", "nested", "bytes", "gone", "null"])
def test_a_damaged_note_of_what_was_unpacked_is_named_and_the_set_fetched_again(web, sets, tmp_path, file, spoil):
    "Of films nobody knows beforehand what they are: without what was written down, nothing says that they are whole."
    get("films", tmp_path)
    assert verify("films", tmp_path) == []
    note = tmp_path / ".fetch/films" / file
    if spoil == "gone": note.unlink()
    else: note.write_bytes(dict(empty=b"", cut=note.read_bytes()[:-20], nested=b"[" * 100_000, bytes=b"\xff\xfe", null=b"null")[spoil])
    (wrong,) = verify("films", tmp_path)
    said = f"{note} is missing" if spoil == "gone" else f"{note} is not as it was written"
    assert wrong == (f"{tmp_path / 'Films-P'} does not hold the content of films.tar" if (spoil, note.suffix) == ("gone", ".entries") else said)
    if note.suffix == ".entries": get("films", tmp_path); assert verify("films", tmp_path) == []


def test_a_note_of_an_older_version_counts(web, sets, tmp_path):
    get("films", tmp_path)
    (tmp_path / ".fetch/films/films.tar.entries").write_text('["Films-P/noise"]')
    assert verify("films", tmp_path) == []
    (tmp_path / "Films-P/noise/n01/3.JPEG").write_bytes(b"x")
    assert verify("films", tmp_path) == [f"{tmp_path / 'Films-P/noise/n01/3.JPEG'} has 1 bytes, expected 6"]


# ---- ImageNet and OpenML --------------------------------------------------------------------------------------------

def test_imagenet_is_checked_and_indexed_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setattr(F, "IMAGENET_ROWS", {"train": 2000, "val": 1000})
    opened = []
    monkeypatch.setattr(F, "undecodable", lambda paths: opened.extend(paths) or [])
    for split, n in F.IMAGENET_ROWS.items():
        for c in range(1000):
            (folder := tmp_path / "there" / split / f"n{c:08d}").mkdir(parents=True)
            for i in range(n // 1000): (folder / f"{i}.JPEG").touch()
    lines = []
    assert fetch("imagenet", tmp_path / "data", tmp_path / "there", say=lines.append) == [tmp_path / "data" / "imagenet.json"]
    index = json.loads((tmp_path / "data" / "imagenet.json").read_text())
    assert index["folder"] == str(tmp_path / "there") and len(index["train"]) == 1000 and set(index["val"].values()) == {1} and "2,000 images (train)" in lines[0]
    assert verify("imagenet", tmp_path / "data") == [] and len(opened) == 3000
    (tmp_path / "there/val/n00000007/0.JPEG").unlink()
    assert verify("imagenet", tmp_path / "data") == [f"{tmp_path / 'there' / 'val'} holds 999 images in 1,000 class folders, expected 1,000 in 1,000"]
    with pytest.raises(FileNotFoundError, match="holds neither train nor val: name the folder that does with --from"): fetch("imagenet", tmp_path / "new", say=quiet)


def test_the_tables_that_are_asked_for_are_looked_at(tmp_path):
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml/7_toy.csv").write_text("a,class\n1,x\n2,y\n")
    assert verify("openml", tmp_path) == verify("openml:7", tmp_path) == []
    assert verify("openml:7,31", tmp_path) == [f"OpenML table 31 is not in {tmp_path / 'openml'}"]


@pytest.mark.parametrize("text", ["", "[" * 100_000, "null", "[]", "{}", '{"folder": 3}', "\ufeff{}"])
def test_a_damaged_index_of_imagenet_is_named(tmp_path, text):
    (tmp_path / "imagenet.json").write_text(text, encoding="utf-8")
    for call in (lambda: verify("imagenet", tmp_path), lambda: get("imagenet", tmp_path)):
        with pytest.raises(ValueError, match="imagenet.json is not as it was written .*: delete it, and name the folder again with"): call()


def test_openml_is_handed_to_tabular(tmp_path, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(fetch_openml=lambda ids, root, source, progress: calls.append((ids, root, source)) or [Path("a")], verify_openml=lambda root: {31: "", 37: "37 is wrong"})
    monkeypatch.setitem(sys.modules, "mixrepro.data.tabular", fake)
    assert fetch(["openml:31,37", "openml"], tmp_path, tmp_path, say=quiet) == [tmp_path / "openml"] * 2
    assert calls == [(["31", "37"], tmp_path, str(tmp_path)), (["openml"], tmp_path, str(tmp_path))] and verify("openml", tmp_path) == ["37 is wrong"]


# ---- kills and crowds -----------------------------------------------------------------------------------------------

HELPER = """
import json, os, shutil, sys, time
from dataclasses import replace
from mixrepro.data import fetch as F
from mixrepro.download import Patience
url, hashes, archive = json.loads(sys.argv[1])
F.DATA["arrays"] = F.DataSet("Arrays", ((F.Remote("arrays.tar", (url + "/arrays.tar",) * 2, (F.Part("arrays", hashes),), md5=archive),),), "none", "nobody")
F.DATA["photos"] = F.DataSet("Photos", ((F.Remote("photos.tar", (url + "/photos.tar",) * 2, (F.Part("Photos-C/fog", count={"": 30}), F.Part("Photos-C/snow", count={"": 30}))),),), "-", "-")
copy = shutil.copyfileobj
shutil.copyfileobj = lambda *a: (time.sleep(.004), copy(*a))
replaced = os.replace
os.replace = lambda *a: (time.sleep(.01), replaced(*a), time.sleep(.01))
for line in sys.stdin:
    what, *args = json.loads(line)
    if what == "wait":
        print(os.waitstatus_to_exitcode(os.waitpid(args[0], 0)[1]), flush=True)
        continue
    pid = os.fork()
    if pid: print(pid, flush=True); continue
    try: F.fetch(what, args[0], None, Patience(5, 9, .01), lambda line: None); os._exit(0)
    except BaseException as e: print(repr(e), file=sys.stderr, flush=True); os._exit(1)
"""


class Forks:
    "A process that has imported everything and forks one that fetches: a start costs nothing."
    def __init__(self, web):
        job = json.dumps([web.url, {k: md5(v) for k, v in ARRAYS.items()}, md5(web.files["/arrays.tar"])])
        self.p = subprocess.Popen([sys.executable, "-c", HELPER, job], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    def ask(self, *what): print(json.dumps(what), file=self.p.stdin, flush=True); return int(self.p.stdout.readline())
    def fetch(self, name, root): return self.ask(name, str(root))
    def wait(self, pid): return self.ask("wait", pid)
    def close(self): self.p.stdin.close(); self.p.wait(10); self.p.stdout.close()


@pytest.fixture
def forks(web):
    web.files["/arrays.tar"] = tar({f"arrays/{k}": v for k, v in ARRAYS.items()})
    web.pause = .003
    forks = Forks(web)
    yield forks
    forks.close()


def whole(root, name): return seen(root) == [{"arrays": "arrays", "photos": "Photos-C"}[name]] and holds(root, name)


def test_killed_at_ten_random_moments_the_next_call_finishes(web, forks, tmp_path):
    "Killed three times on its way in each round, then left alone; what can be seen meanwhile is nothing, or whole folders."
    rng, alive = random.Random(3), 0
    for k in range(10):
        name, root = ("arrays", "photos")[k % 2], tmp_path / str(k)
        for _ in range(3):
            pid = forks.fetch(name, root)
            time.sleep(rng.uniform(0, .35))
            os.kill(pid, signal.SIGKILL)
            alive += forks.wait(pid) == -signal.SIGKILL
            if name == "arrays": assert not (root / "arrays").exists() or holds(root, "arrays")
            for kind in ("fog", "snow"): assert not (root / "Photos-C" / kind).exists() or not F.faults(Part("", count={"": 30}), root / "Photos-C" / kind)
        assert forks.wait(forks.fetch(name, root)) == 0
        assert whole(root, name)
        left = [p.name for p in (root / ".fetch").rglob("*") if not p.name.endswith((".lock", ".record", ".entries")) and p != root / ".fetch" / name]
        assert left == [], "everything that was begun is finished or swept"
    assert alive >= 8, "too few of the thirty kills fell into the work"


def test_four_processes_at_once_fetch_once(web, forks, tmp_path):
    pids = [forks.fetch("arrays", tmp_path) for _ in range(4)]
    assert [forks.wait(pid) for pid in pids] == [0] * 4
    assert whole(tmp_path, "arrays") and [path for path, *_ in web.asked] == ["/arrays.tar"]


# ---- the list and the command line ----------------------------------------------------------------------------------

def test_the_list_says_what_is_on_disk(web, sets, tmp_path):
    rows = {r["name"]: r for r in data_list(tmp_path)}
    assert set(rows) == set(F.DATA) and {r["on_disk"] for r in rows.values()} == {"no"} and rows["cifar10"]["size"] == 170_052_171 and rows["imagenet-c"]["size"] > 6e10
    get("arrays", tmp_path); get("films", tmp_path)
    (tmp_path / "Photos-C" / "fog").mkdir(parents=True)
    (tmp_path / "CIFAR-10-C").mkdir(); (tmp_path / "CIFAR-10-C" / "made.json").write_text("{}")
    assert {n: r["on_disk"] for n, r in {r["name"]: r for r in data_list(tmp_path)}.items() if r["on_disk"] != "no"} == {
        "arrays": "yes", "films": "yes", "photos": "in part", "cifar10-c": "made here"}


def test_the_commands(official, tmp_path, capsys, monkeypatch):
    from mixrepro import cli

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["mixrepro", "data", *map(str, args)])
        try: cli.main()
        except SystemExit as e: return e.code or 0, *capsys.readouterr()
    code, out, err = run("get", "cifar10", "--root", tmp_path / "d", "--from", official)
    assert code == 0 and out == f"{tmp_path / 'd' / 'cifar-10-batches-bin'}\n" and "Please cite: Krizhevsky (2009)" in err
    assert [r["name"] for r in json.loads(run("list", "--root", tmp_path / "d", "--json")[1]) if r["on_disk"] == "yes"] == ["cifar10"]
    (tmp_path / "d" / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    code, out, err = run("verify", "cifar10", "--root", tmp_path / "d")
    assert code == 1 and out.endswith("data_batch_3.bin is missing\n") and err.startswith("mixrepro: cifar10: not whole") and err.count("\n") == 1
    code, out, err = run("verify", "svhn", "cifar10", "--root", tmp_path / "d")
    assert code == 1 and out.startswith("svhn: svhn is not in ") and out.endswith("data_batch_3.bin is missing\n") and err.startswith("mixrepro: svhn, cifar10: not whole")
    code, out, err = run("get", "svhn", "--root", tmp_path / "d" / "cifar-10-batches-bin" / "data_batch_1.bin")
    assert code == 1 and out == "" and "a file stands where a folder is needed" in err and err.count("\n") == 1
    code, out, err = run("split", "digits", "--labelled", 7, "--root", tmp_path)
    assert code == 1 and err.startswith("mixrepro: n_labelled must be a multiple of the 10 classes") and err.count("\n") == 1


@pytest.mark.parametrize("script, args, sentence", [("get.py", ["cifar1"], "unknown data set that can be fetched 'cifar1': did you mean 'cifar10'"),
                                                    ("verify.py", ["svhn"], "svhn is not in "), ("make.py", ["cifar10c"], "unknown set to make 'cifar10c': did you mean 'cifar10-c'")])
def test_a_script_refuses_in_one_sentence(tmp_path, monkeypatch, script, args, sentence):
    monkeypatch.setattr(sys, "argv", [script, *args, "--root", str(tmp_path)])
    with pytest.raises(SystemExit) as e: runpy.run_path(str(ROOT / "data_scripts" / script), run_name="__main__")
    assert e.value.code.startswith(f"{script}: {sentence}") and "\n" not in e.value.code


def test_the_scripts_work(web, sets, tmp_path, monkeypatch, capsys):
    def run(script, *args):
        monkeypatch.setattr(sys, "argv", [script, *map(str, args), "--root", str(tmp_path / "d")])
        runpy.run_path(str(ROOT / "data_scripts" / script), run_name="__main__")
        return capsys.readouterr().out
    unpacked(tmp_path / "box" / "arrays", ARRAYS)
    assert run("get.py", "arrays", "--from", tmp_path / "box") == f"{tmp_path / 'd' / 'arrays'}\n" and web.asked == []
    with pytest.raises(SystemExit) as e: run("verify.py", "arrays")
    assert not e.value.code and capsys.readouterr().out == "arrays: whole\n"
    assert Path(run("make.py", "synthetic-blobs-c", "--kind", "contrast").strip()).name == "synthetic-blobs-c-made"
