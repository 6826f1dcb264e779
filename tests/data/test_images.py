"""The image set: class-balanced parts, whatever indexes it, another device."""
import io
import pickle
import resource
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st
from PIL import Image

from mixrepro.data import images as I
from mixrepro.data.corrupted import load_c, read_c
from mixrepro.data.datasets import load
from mixrepro.data.digits import enlarge
from mixrepro.data.fetch import fetch
from mixrepro.data.images import balanced, data_root, read_array, read_picture
from mixrepro.data.make import check_made, make, make_c
from mixrepro.data.splits import write_split
from mixrepro.data.tabular import fetch_openml
from mixrepro.data.tiny_imagenet import decode


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
    for shape in ((4, 32, 32, 3), (4, 28, 28, 1)):  # as torchvision's data sets and NumPy's keep them
        with pytest.raises(ValueError, match=r"seem to have their channels last: use permute\(0, 3, 1, 2\)"): replace(s, x=torch.zeros(shape, dtype=torch.uint8), y=s.y[:4])


@pytest.mark.cuda
def test_a_set_moves_to_the_device_and_is_cut_there():
    s = load("digits", "test")
    there = s.to("cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    assert there.floats([0]).device.type == "cuda" and torch.equal(there.subset(30).x.cpu(), s.subset(30).x)
    assert there.subset(30, rng).y.bincount().tolist() == [3] * 10
    from sklearn.datasets import load_digits
    scans = torch.from_numpy(load_digits().images)
    assert torch.equal(enlarge(scans.cuda()).cpu(), enlarge(scans))
    with pytest.raises(ValueError, match="images are on cuda:0 but labels on cpu"): replace(there, y=s.y)


# ---- readers --------------------------------------------------------------------------------------------------------

GREY = np.array([[0, 1], [100, 255]], np.uint8)


def palette(*alpha):
    "Four colours by number, with the alphas of the first."
    image = Image.new("P", (2, 2))
    image.putdata([0, 1, 2, 3])
    image.putpalette([0, 0, 0, 1, 2, 3, 100, 110, 120, 255, 255, 255])
    if alpha: image.info["transparency"] = bytes(alpha)
    return image


@pytest.mark.parametrize("name, image, want", [
    ("grey.png", Image.fromarray(GREY), GREY), ("bits.png", Image.fromarray(GREY).point(lambda v: v > 50 and 255, "1"), np.array([[0, 0], [255, 255]])),
    ("wide.png", Image.fromarray(GREY.astype(np.uint16) * 257), GREY), ("wide.tiff", Image.fromarray(GREY.astype(">u2") * 257), GREY),
    ("rgb.png", Image.merge("RGB", [Image.fromarray(GREY)] * 3), GREY), ("rgba.png", Image.fromarray(GREY).convert("RGBA"), GREY), ("la.png", Image.fromarray(GREY).convert("LA"), GREY),
    ("cmyk.tiff", Image.fromarray(GREY).convert("CMYK"), GREY), ("palette.png", Image.fromarray(GREY).convert("P"), GREY),
    ("opaque.png", palette(255, 255), np.array([[[0, 1], [100, 255]], [[0, 2], [110, 255]], [[0, 3], [120, 255]]]))])
def test_a_picture_has_its_values_in_every_mode(tmp_path, name, image, want):
    image.save(tmp_path / name, **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    x = decode([tmp_path / name], 2)[0]
    assert x.dtype == torch.uint8 and x.shape == (3, 2, 2) and (x == torch.from_numpy(np.asarray(want))).all()


@given(v=st.integers(0, 65535))
def test_sixteen_bits_are_rounded_to_eight(v):
    image = Image.fromarray(np.array([[v]], np.uint16))
    assert I.rgb_of(image)[0].tolist() == [[[round(v / 257)] * 3]]


@pytest.mark.parametrize("name, image, sentence", [
    ("f.tiff", Image.fromarray(GREY.astype(np.float32) / 255), "has pixels of mode 'F', whose white is not known: save it with 8 bits a channel"),
    ("i.tiff", Image.fromarray(GREY.astype(np.int32)), "has pixels of mode 'I', whose white is not known"),
    ("rgba.png", Image.new("RGBA", (2, 2), (9, 9, 9, 0)), "has transparent pixels: lay it on a background first"),
    ("la.png", Image.new("LA", (2, 2), (9, 254)), "has transparent pixels"), ("p.png", palette(0), "has transparent pixels")])
def test_a_picture_whose_values_are_a_guess_is_refused(tmp_path, name, image, sentence):
    image.save(tmp_path / name, **({"transparency": image.info["transparency"]} if "transparency" in image.info else {}))
    with pytest.raises(ValueError, match=f"{name} {sentence}"): decode([tmp_path / name], 2)


def claiming(side):
    "A JPEG whose header claims so many pixels a side."
    Image.new("RGB", (8, 8)).save(file := io.BytesIO(), "JPEG")
    data = bytearray(file.getvalue())
    at = data.index(b"\xff\xc0") + 5
    data[at:at + 4] = struct.pack(">HH", side, side)
    return bytes(data)


def huge_png():
    "A PNG that claims 9,000 pixels a side and holds none."
    def chunk(name, data): return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 9000, 9000, 8, 2, 0, 0, 0)) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("data, sentence", [
    (claiming(65535), "is not a whole image .Image size .4294836225 pixels. exceeds limit"), (claiming(9000), "has 9000 x 9000 pixels, expected 64 x 64"), (huge_png(), "has 9000 x 9000 pixels"),
    (claiming(64)[:-300], "is not a whole image"), (b"", "is not a whole image"), (b"<html>", "is not a whole image"), (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "is not a whole image")])
def test_a_damaged_picture_is_one_sentence(tmp_path, data, sentence):
    (tmp_path / "a.JPEG").write_bytes(data)
    with pytest.raises(ValueError, match=f"a.JPEG {sentence}"): decode([tmp_path / "a.JPEG"], 64)
    with pytest.raises(FileNotFoundError): read_picture(tmp_path / "gone.JPEG")


def npz(): np.savez(file := io.BytesIO(), a=np.zeros(3)); return file.getvalue()


def npy(a, **more): np.save(file := io.BytesIO(), a, **more); return file.getvalue()


def head(shape="(10,)", descr="'|u1'", more=b"", version=1):
    "What stands before the numbers, as a hostile writer has it."
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode() + more + b"\n"
    return b"\x93NUMPY" + bytes([version, 0]) + len(text).to_bytes(2 if version == 1 else 4, "little") + text


CLAIMS = {"terabytes": head(f"({10 ** 12},)"), "more than an integer holds": head(f"({10 ** 30},)"), "fewer than none": head("(-10,)") + bytes(10), "no numbers": head("(10.,)") + bytes(10),
          "too many axes": head(f"({'1, ' * 70})") + bytes(10), "texts of gigabytes": head("(1,)", "'<U500000000'"), "a head of gigabytes": b"\x93NUMPY\2\0" + b"\xff" * 4, "a long head": head(more=b" " * 20_000) + bytes(10),
          "a deep head": head("(" * 3000), "a version that is none": head(version=9), "the magic word alone": b"\x93NUMPY"}
BAD_ARRAYS = [*((data, "is not a whole .npy file") for data in CLAIMS.values()), (b"", "is not a whole .npy file"), (npz(), "holds several arrays, expected one"), (npz()[:-9], "is not a whole .npy file"), (b"<html>", "is not a whole .npy file"),
              (npy(np.arange(99))[:-9], "is not a whole .npy file"), (pickle.dumps([1]), "is not a whole .npy file"), (npy(np.array([{}]), allow_pickle=True), "is not a whole .npy file")]


@pytest.mark.parametrize("data, sentence", BAD_ARRAYS, ids=[*CLAIMS, *map(str, range(len(BAD_ARRAYS) - len(CLAIMS)))])
def test_one_sentence_wherever_an_array_is_read(tmp_path, data, sentence):
    (tmp_path / "labels.npy").write_bytes(data)
    (tmp_path / "own.npy").write_bytes(npy(np.zeros((5, 16, 16, 3), np.uint8)))
    for read in (lambda p: read_array(p), lambda p: read_array(p, mapped=False), lambda p: make(p, tmp_path), lambda p: make(tmp_path / "own.npy", tmp_path, labels=p),
                 lambda p: make(tmp_path / "own.npy", tmp_path)):
        with pytest.raises(ValueError, match=f"labels.npy {sentence}") as e: read(tmp_path / "labels.npy")
        assert "\n" not in str(e.value)
    for name in ("fog.npy", "labels.npy"):
        (folder := tmp_path / f"set-{name[:3]}").mkdir()
        for f in ("fog.npy", "labels.npy"): (folder / f).write_bytes(npy(np.zeros(10, int)) if f[0] == "l" else npy(np.zeros((10, 8, 8, 3), np.uint8)))
        assert read_c(folder, "fog", 1).x.shape == (2, 8, 8, 3)
        (folder / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"{name} {sentence}"): read_c(folder, "fog", 1)


def test_a_head_of_gigabytes_is_not_read(tmp_path):
    "A file with holes has all the bytes that its head claims, and takes none on the disk."
    with open(tmp_path / "labels.npy", "wb") as f: f.write(b"\x93NUMPY\2\0" + (1 << 31).to_bytes(4, "little")); f.truncate(3 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="its head has 2,147,483,648 bytes, expected 10,000 at most"): read_array(tmp_path / "labels.npy")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_bytes_in_another_order_and_fortrans(tmp_path):
    x, y = np.arange(10 * 8 * 8 * 3).reshape(10, 8, 8, 3).astype(np.uint8), np.tile(np.arange(2), 5)
    np.save(tmp_path / "fog.npy", np.asfortranarray(x)); np.save(tmp_path / "labels.npy", y)
    assert np.array_equal(read_c(tmp_path, "fog", 2).x, x[2:4])
    np.save(tmp_path / "own.npy", np.asfortranarray(x))
    made = make(tmp_path / "own.npy", folder=tmp_path / "f", kinds="contrast", labels=tmp_path / "labels.npy")
    np.save(tmp_path / "own.npy", x)
    again = make(tmp_path / "own.npy", folder=tmp_path / "c", kinds="contrast", labels=tmp_path / "labels.npy")
    assert (made / "contrast.npy").read_bytes() == (again / "contrast.npy").read_bytes()
    np.save(tmp_path / "labels.npy", y.astype(">i8"))
    with pytest.raises(ValueError, match="labels.npy holds >i8 in a byte order that is not this processor's: save it again as int64"): read_c(tmp_path, "fog", 1)
    assert make(tmp_path / "own.npy", folder=tmp_path / "c", kinds="contrast", labels=tmp_path / "labels.npy") == again, "they become int64"
    np.save(tmp_path / "labels.npy", y.astype("u8") + (1 << 63))
    with pytest.raises(ValueError, match="it does not fit into int64"): make(tmp_path / "own.npy", folder=tmp_path / "u", kinds="contrast", labels=tmp_path / "labels.npy")


# ---- paths as they are typed ----------------------------------------------------------------------------------------

def test_a_tilde_is_the_users_folder_wherever_a_path_is_typed(tmp_path, monkeypatch):
    (me := tmp_path / "me").mkdir(); (at := tmp_path / "at").mkdir()
    monkeypatch.setenv("HOME", str(me)); monkeypatch.setenv("MIXREPRO_DATA", "~/sets"); monkeypatch.chdir(at)
    (source := me / "there").mkdir()
    (source / "1_one.csv").write_text("a,class\n" + "1,x\n2,y\n" * 4)
    np.save(me / "own.npy", np.zeros((2, 16, 16, 3), np.uint8)); np.save(me / "own-labels.npy", np.arange(2))
    assert data_root() == me / "sets" and data_root("~/other") == me / "other"
    assert fetch("openml:1", None, "~/there") == [me / "sets" / "openml"] and fetch_openml(1, "~/other", "~/there")[0] == me / "other/openml/1_one.csv"
    assert make("~/own.npy", labels="~/own-labels.npy", kinds="contrast") == me / "sets" / "own-c-made"
    assert make("~/own.npy", folder="~/to", kinds="contrast") == make_c(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), None, "~/to", "contrast") == me / "to"
    assert check_made("~/to") and read_c("~/to", "contrast", 1).origin == "made here"
    assert me in write_split("digits", torch.arange(20) % 10, 10, 0).parents
    for i in range(1, 6): Image.new("RGB", (90, 90)).save(me / f"frost{i}.{'png' if i < 4 else 'jpg'}")
    assert make("~/own.npy", folder="~/ice", kinds="frost", frost="~", table="cifar") == me / "ice"
    assert not list(at.iterdir())


def test_damage_that_was_released_is_read_where_the_environment_says(tmp_path, monkeypatch):
    from mixrepro.metrics.robustness import damaged
    (folder := tmp_path / "sets" / "CIFAR-10-C").mkdir(parents=True)
    monkeypatch.setattr("mixrepro.data.corrupted.ROWS_OF_C", 50)
    np.save(folder / "fog.npy", np.full((50, 32, 32, 3), 7, np.uint8)); np.save(folder / "labels.npy", np.tile(np.arange(10), 5))
    test = I.ImageSet(torch.zeros(10, 3, 32, 32, dtype=torch.uint8), torch.arange(10), tuple("abcdefghij"), "cifar10", "test")
    monkeypatch.setenv("HOME", str(tmp_path)); monkeypatch.setenv("MIXREPRO_DATA", "~/sets")
    assert (damaged(test, "fog", 2, "released").x == 7).all() and (load_c("cifar10", "fog", 2).x == 7).all()
