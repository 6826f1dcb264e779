"""Digits and blobs: every scan once, Pillow's bilinear, blobs of any shape."""
import numpy as np
import torch
from PIL import Image

from mixrepro.data import digits as D
from mixrepro.data.datasets import load


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
