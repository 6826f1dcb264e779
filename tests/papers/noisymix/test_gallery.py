"The corruptions to look at: the pictures fit their tables, and the changes are NumPy's."

import numpy as np
from sklearn.datasets import load_sample_image

from mixrepro.data.corruptions import CORRUPTIONS, corrupt
from mixrepro.data.datasets import load
from mixrepro.papers.noisymix import gallery as G


def test_the_photograph_is_scikit_learns():
    small, whole = G.photograph(427)[0].permute(1, 2, 0).numpy(), load_sample_image("flower.jpg")
    assert np.array_equal(small, whole[:427, 150:577]) and G.photograph(32).shape == (1, 3, 32, 32)


def test_every_picture_can_be_corrupted_by_its_table():
    for p in G.pictures(load("digits", "test"), "digits"):
        assert all(corrupt(p.image, kind, 5, 0, table=p.table).shape == p.image.shape for kind in ("gaussian_noise", "jpeg_compression"))


def test_changes_are_counted_once_for_each_corruption_and_severity():
    x = load("digits", "test").x[:8]
    changes = G.moved(x, 0).set_index(["corruption", "severity"])
    assert list(dict.fromkeys(changes.index.get_level_values(0))) == list(CORRUPTIONS) and len(changes) == 75
    far = np.abs(corrupt(x, "contrast", 3, 0).numpy().astype(float) - x.numpy()).mean()
    assert np.isclose(changes["mean absolute change (grey levels)"]["contrast", 3], far)
