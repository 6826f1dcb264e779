"On the way between two images: counts and differences against NumPy and SciPy."

import numpy as np
import pytest
import torch
from scipy import stats

from mixrepro.data.datasets import load
from mixrepro.papers.manifold_mixup import interpolations as I


class Whole(torch.nn.Module):
    "Its state is the image; it says what the first ten pixels say."
    def forward(self, x, at=0, through=lambda h: h): return through(x).flatten(1)[:, :10]


@pytest.fixture
def ends(): return I.two_ends(load("digits", "test"), 40, seed=3)


def test_the_entropy_of_a_mixed_label_is_scipys():
    lam = np.linspace(0, 1, 11)
    assert I.entropy(lam) == pytest.approx([stats.entropy([l, 1 - l]) for l in lam])


def test_pairs_are_test_images_of_different_classes_and_the_seed_decides_which(ends):
    y, x, other = ends
    again, else_ = (I.two_ends(load("digits", "test"), 40, seed=s)[1] for s in (3, 4))
    assert (y[:, 0] != y[:, 1]).all() and torch.equal(x, again) and not torch.equal(x, else_)


def test_a_decoder_that_bends_is_told_from_one_that_does_not(ends):
    y, x, other = ends
    made = I.decoded(Whole(), torch.square, x, other, 1)
    a, b = x.double().numpy(), other.double().numpy()
    middle, own = (255 * np.sqrt((d ** 2).mean((1, 2, 3))) for d in (((a + b) / 2) ** 2 - (a ** 2 + b ** 2) / 2, a ** 2 - a))
    assert I.bend(made, x, other)[0].numpy() == pytest.approx(middle, rel=1e-4)
    assert I.rms(made[0], x).numpy() == pytest.approx(own, rel=1e-4)
    log = np.log(np.divide(*(v.numpy() for v in I.bend(made, x, other))))
    inside = np.exp(stats.ttest_1samp(log, 0).confidence_interval(.95))
    assert I.bends(made, x, other) == pytest.approx((np.exp(log.mean()), *inside), rel=1e-4)


def test_a_third_class_is_one_that_neither_image_has(ends):
    _, x, other = ends
    said = ((x + other) / 2).flatten(1)[:, :10].numpy().argmax(1)
    y = torch.randint(10, (40, 2), generator=torch.Generator().manual_seed(0))
    share = np.mean([s not in pair for s, pair in zip(said, y.tolist())])
    assert I.third_class(Whole(), x, other, y, 1) == share and 0 < share < 1
