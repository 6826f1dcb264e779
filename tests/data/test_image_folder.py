"A few hundred JPEG files in ImageNet's layout: decoded as torchvision does it, trained on, tested, and never left out."
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from mixrepro.data import fetch as F
from mixrepro.data import image_folder as I
from mixrepro.data.corruptions import corrupt
from mixrepro.data.datasets import load
from mixrepro.data.fetch import verify
from mixrepro.data.images import ImageSet
from mixrepro.methods.erm import ERM
from mixrepro.metrics.accuracy import predict
from mixrepro.metrics.flips import films
from mixrepro.metrics.rendered import rendered
from mixrepro.metrics.robustness import damaged
from mixrepro.training import loop
from mixrepro.training.spec import Spec, generator
from mixrepro.training.store import network_of

CLASSES, EACH = 5, {"train": 40, "val": 20}


def write(folder, each, seed):
    "Photographs of many sizes: one colour for each class under coarse noise; some grey, some CMYK."
    rng = np.random.default_rng(seed)
    for c in range(CLASSES):
        (at := folder / f"n{c:08d}").mkdir(parents=True)
        for k in range(each):
            size = tuple(int(s) for s in rng.integers(70, 160, 2))
            x = rng.integers(0, 80, (5, 6, 3)) + 150 * np.eye(3)[c % 3] * (.4 + .15 * c)
            image = Image.fromarray(x.clip(0, 255).astype(np.uint8)).resize(size)
            if k % 17 == 3: image = image.convert("L" if k % 2 else "CMYK")
            image.save(at / f"n{c:08d}_{k}.JPEG")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    at = tmp_path_factory.mktemp("imagenet")
    for seed, (split, each) in enumerate(EACH.items()): write(at / "imagenet" / split, each, seed)
    return at


@pytest.fixture
def small(monkeypatch):
    "Images of 32 px, so that nothing takes long."
    real = I.OnDisk
    monkeypatch.setattr(I, "OnDisk", lambda paths, short=36, side=32, workers=0: real(paths, 36 if short == I.SHORTER else 32, 32, workers))


def test_a_tested_image_is_what_torchvision_makes_of_the_file(root):
    s, change = load("imagenet", "test", root), v1.Compose([v1.Resize(256), v1.CenterCrop(224), v1.PILToTensor()])
    theirs = ImageFolder(root / "imagenet" / "val", change)
    assert len(s) == len(theirs) == 100 and s.classes == tuple(theirs.classes)
    for i in (0, 3, 57):  # 3 is CMYK or grey
        x, y = theirs[i]
        assert torch.equal(s.x[i], x) and s.y[i] == y
    assert s.shape == (3, 224, 224) and s.standin.startswith("ImageNet, with 5 of its")


def test_nothing_is_decoded_before_it_is_used(root, monkeypatch):
    monkeypatch.setattr(I, "read_picture", None)
    s = load("imagenet", "train", root)
    part = s.subset(50).subset(torch.arange(10))
    assert len(s) == 200 and part.y.bincount().tolist() == [10] and (len(part.x), part.x.shape) == (10, (10, 3, 224, 224))


def test_windows_are_another_each_epoch_and_the_middles_are_not(root, small):
    s = load("imagenet", "train", root).subset(20)
    index = [torch.arange(10), torch.tensor([3, 15])]
    one, two = (torch.cat(list(s.ahead(index, seed))) for seed in (1, 2 ** 40))
    assert one.shape == (12, 3, 32, 32) and not torch.equal(one, two) and not torch.equal(one[3], one[4])
    assert torch.equal(one[3], one[10]), "one window for an image in an epoch, in whatever batch"
    still = torch.cat(list(s.ahead(index)))
    assert torch.equal(still, s.floats(torch.cat(index))) and (still - one).abs().mean() > .01


def test_windows_have_the_areas_that_torchvision_draws(root):
    "Two ramps tell how much of an image a window has: mean area .5 of [.08, 1] up to what does not fit."
    y, x = np.mgrid[:200, :200].astype(np.uint8)
    ramps = Image.fromarray(np.stack([x, y, 0 * x], 2))
    seen = np.stack([np.asarray(I.window(ramps, k, 32)).astype(float) for k in range(300)])
    across, down = (np.abs(seen[:, 16, -1, 0] - seen[:, 16, 0, 0]) / 200, np.abs(seen[:, -1, 16, 1] - seen[:, 0, 16, 1]) / 200)
    area, mirrored = across * down * (32 / 31) ** 2, (seen[:, 16, -1, 0] < seen[:, 16, 0, 0]).mean()
    ours, four = np.mean(area), 4 / 300 ** .5
    theirs = np.mean([np.prod(v1.RandomResizedCrop.get_params(ramps, (.08, 1), (3 / 4, 4 / 3))[2:]) / 200 ** 2 for _ in range(2000)])
    assert abs(ours - theirs) < four * area.std() and abs(mirrored - .5) < four * .5


def test_a_network_is_trained_and_measured_on_files(root, small, tmp_path):
    "The whole road: an epoch of windows, the score of the middles, corruptions and films of the part that is measured."
    train, test = (load("imagenet", split, root) for split in ("train", "test"))
    spec = Spec("imagenet", "erm", "tiny-cnn", epochs=4, batch=20, augment="resized-crop", lr=3e-3)
    net = network_of(spec, train.shape, train.k)
    rngs, opt, made = {k: generator(spec, k) for k in loop.STREAMS}, loop.optimizer(spec, net), ERM()
    losses = [loop.train_epoch(net, made, train, spec, opt, rngs, epoch) for epoch in range(4)]
    scores = loop.score(net, made, test, spec, batch=30)
    assert losses[-1] < .8 * losses[0] and scores["accuracy"] > .4  # a fifth by chance
    logits = predict(net, test, 30)
    assert scores["accuracy"] == pytest.approx((logits.argmax(1) == test.y).double().mean().item())
    index = torch.tensor([2, 50])
    fog = damaged(test, "fog", 3, table="tiny-imagenet", index=index)
    assert torch.equal(fog.x.decoded(), corrupt(test.x[index].decoded(), "fog", 3, index=index, table="tiny-imagenet"))
    assert torch.equal(damaged(test, "fog", 3, table="tiny-imagenet").x[index].decoded(), fog.x.decoded())
    [film] = films(test, "translate", index, table="tiny-imagenet")
    assert film.shape == (2, 31, 3, 32, 32) and torch.equal(film[:, 15], test.x[index].but(side=36).decoded()[..., 2:34, 2:34])
    assert film[:, 13].amin(1).flatten(1).sum(1).gt(0).all(), "what moves in from outside is of the image"


def test_augmentation_by_the_stream_for_augmentation(root, small):
    "Twice the same batches from one stream, others from the next epoch's."
    train, spec = load("imagenet", "train", root).subset(20), Spec("imagenet", "erm", "tiny-cnn", augment="resized-crop")
    rngs = dict(augment=torch.Generator().manual_seed(0))
    epochs = [torch.cat(list(loop.seen_by(ERM(), train, [torch.arange(8)], spec, rngs))) for _ in range(2)]
    again = torch.cat(list(loop.seen_by(ERM(), train, [torch.arange(8)], spec, dict(augment=torch.Generator().manual_seed(0)))))
    assert torch.equal(epochs[0], again) and not torch.equal(epochs[0], epochs[1])
    cut = torch.cat(list(loop.seen_by(ERM(), train, [torch.arange(8)], replace(spec, augment="none"), rngs)))
    assert torch.equal(cut, train.floats(torch.arange(8)))


def test_a_file_that_cannot_be_decoded_is_named_and_counted(root, tmp_path, monkeypatch):
    there = shutil.copytree(root / "imagenet", tmp_path / "imagenet")
    wrong = [there / "val" / "n00000001" / f"n00000001_{k}.JPEG" for k in (4, 7)]
    wrong[0].write_bytes(wrong[0].read_bytes()[:200]); wrong[1].write_text("no image")
    s = load("imagenet", "test", tmp_path)
    with pytest.raises(ValueError, match=r"n00000001_4.JPEG is not a whole image .* and 1 more of its batch: no image is left out"): s.floats(slice(20, 40))
    workers = replace(s, x=I.OnDisk(s.x.paths, 36, 32, workers=1))
    with pytest.raises(ValueError, match="n00000001_4.JPEG is not a whole image .*verify imagenet` opens all"):
        for _ in workers.ahead([torch.arange(5), torch.arange(30, 40)]): pass
    monkeypatch.setattr(F, "IMAGENET_ROWS", {"train": 200, "val": 100})
    found = verify("imagenet", tmp_path)
    assert [p.name for p in wrong] == [f.split(" is not")[0].rsplit("/", 1)[1] for f in found if "is not a whole image" in f]
    assert len(found) == 4, "and that there are not a thousand classes, twice"


def test_renditions_of_some_classes_are_judged_among_these(root, small, monkeypatch, tmp_path):
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    write(tmp_path / "imagenet-r", 2, 5)
    for c in (0, 2, 4):
        shutil.rmtree(tmp_path / "imagenet-r" / f"n{c:08d}")
    test = load("imagenet", "test", root)
    def says_zero_then_three(x): return torch.tensor([[9., 1., 5., 3., 5.]]).repeat(len(x), 1)
    [found] = rendered([says_zero_then_three], test)
    assert (found["renditions"], found["images"], found["accuracy"]) == ("imagenet-r", 4, .5), "class 3 of the two that can be"


def test_what_is_not_there_is_said(tmp_path):
    with pytest.raises(FileNotFoundError, match="run `mixrepro data get imagenet --root .*`, with --from and the folder that holds train/ and val/"): load("imagenet", "train", tmp_path)
    (tmp_path / "imagenet" / "train" / "n00000000").mkdir(parents=True)
    (at := tmp_path / "imagenet" / "train" / "n00000000" / "note.txt").write_text("no picture")
    with pytest.raises(FileNotFoundError, match=r"n00000000 holds no pictures \(.jpeg, .jpg, .png\): remove it, or run `mixrepro data get") as e: load("imagenet", "train", tmp_path)
    assert ".bmp" not in str(e.value), "of what is refused it is not said that it would do"
    at.with_suffix(".JPEG").symlink_to("gone")  # it has the name of a picture, and is told of when it is opened
    assert len(load("imagenet", "train", tmp_path)) == 1
    digits = load("digits", "test")
    with pytest.raises(ValueError, match="'digits' lies in memory"): digits.ahead([torch.arange(2)], 0)
    assert isinstance(digits, ImageSet)
