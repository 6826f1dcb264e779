"GenLabel's toys: margins of lines against other optimisers and brute force, intrusion by hand, boundaries of known shape."

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import integrate
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.spirals import as_points
from mixrepro.data.toys import TRUTH
from mixrepro.papers.genlabel import margins as M
from mixrepro.papers.genlabel import toys as T
from mixrepro.papers.genlabel.settings import Toys, toys
from mixrepro.repro.scale import scale


# the margin ----------------------------------------------------------------------------------------------------------------

@given(seed=st.integers(0, 999), n=st.integers(1, 12), k=st.integers(1, 12))
@settings(max_examples=25, deadline=None)
def test_the_hard_margin_is_half_the_widest_gap(seed, n, k):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n + k, 2)), np.repeat([0., 1.], (n, k))
    x[y == 1] += 5
    way = np.linspace(0, 2 * np.pi, 40_001); p = x @ np.stack([np.cos(way), np.sin(way)])
    widest = (p[y == 1].min(0) - p[y == 0].max(0)).max() / 2
    line = M.hard_margin(x, y)
    assert (line is None) == (widest <= 0) and (line is None or M.margin_of(line, x, y) == pytest.approx(widest, rel=2e-3))


@given(s2=st.floats(.02, 20))
@settings(max_examples=25, deadline=None)
def test_the_moment_of_the_labels(s2):
    by_scipy = integrate.quad(lambda l: l / (1 + np.exp(-2 * (l - .5) / s2)), 0, 1)[0]
    assert M.label_moment(s2) == pytest.approx(by_scipy, abs=1e-6) and 1 / 4 < M.label_moment(s2) < 3 / 8


def test_the_fitted_line_is_scikit_learns_logistic_regression():
    "A linear label is two examples with its shares as weights."
    x, y, _ = M.draw_clouds(np.random.default_rng(3), (10, 6), (.2, .4))
    n, lam = len(x), (np.arange(24) + .5) / 24
    i, j = (t.ravel() for t in np.mgrid[:n, :n])
    z = (lam[:, None, None] * x[i] + (1 - lam)[:, None, None] * x[j]).reshape(-1, 2)
    label = (lam[:, None] * y[i] + (1 - lam)[:, None] * y[j]).ravel()
    sk = LogisticRegression(C=1e9, tol=1e-10, max_iter=5000).fit(np.r_[z, z], np.r_[np.ones(len(z)), np.zeros(len(z))], np.r_[label, 1 - label])
    ours = M.fitted_line(*M.mixtures_of(x), M.seen_labels(x, y, M.label_moment()))
    assert np.allclose(ours, [*sk.coef_[0], sk.intercept_[0]], rtol=.01, atol=.01)  # a midpoint rule of 24 points is that near


def test_mirrored_classes_have_a_mirrored_line():
    rng = np.random.default_rng(5)
    a = rng.normal(size=(9, 2)) * .3 + [1.3, 0]
    x, y = np.concatenate([-a, a]), np.repeat([0., 1.], 9)
    for s2 in (None, .05, 2.):
        theta = M.fitted_line(*M.mixtures_of(x), M.seen_labels(x, y, M.label_moment(s2)))
        assert abs(theta[2]) < 1e-6 * np.linalg.norm(theta), "with as many of the same spread the offset is 0 under all labels"

def test_rows_and_differences():
    rows = M.margin_rows((.1, 1.), 3)
    assert len(rows) == 27 and not rows.duplicated(["clouds", "seed", "labels", "s2"]).any()
    d = M.against_linear(rows, .1)["40 narrow, 10 wide"]
    cell = rows[rows.clouds == "40 narrow, 10 wide"].pivot(index="seed", columns="s2", values="margin")
    assert d.values == pytest.approx((cell[.1] - cell[np.nan]).tolist())
    at = M.means(rows[rows.clouds == "40 narrow, 10 wide"])
    assert at["mean"].between(at.low, at.high).all()


def test_bad_points():
    with pytest.raises(ValueError, match="standard deviation above 0"): M.draw_clouds(np.random.default_rng(0), (5, 5), (0., .1))
    with pytest.raises(ValueError, match="sigma.2 must be above 0, got -1"): M.label_moment(-1)
    assert M.hard_margin(np.zeros((2, 2)), np.array([0., 1])) is None


# intrusion, boundaries -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dataset", TRUTH)
def test_intrusion_by_hand(dataset):
    train = load(dataset, "train")
    x, mix = T.mixed_points(train, 300, 1., seeded(1))
    near = KNeighborsClassifier(1).fit(train.x.flatten(1).numpy(), train.y.numpy()).predict(x.flatten(1).numpy())
    found = T.intrusion(train, lambda z: TRUTH[dataset][1](as_points(z, TRUTH[dataset][0])), 300, 1., seeded(1))
    assert found["y_mix, nearest point"] == pytest.approx((near != mix.numpy()).mean()) and found["y_gen, true density"] == 0
    assert .1 < found["y_mix, true density"] < .5


def test_the_larger_share_gives_the_linear_labels_class():
    train = load("nine-clouds", "train")
    x, mix = T.mixed_points(train, 4000, 1., seeded(2))
    at_cloud = T.true_class(train, x)
    assert (at_cloud == mix).float().mean() > .6, "most mixtures lie nearest to the cloud that gave the larger part"
    assert abs(mix.bincount(minlength=9).double() / 4000 - 1 / 9).max() < 4 * (8 / 81 / 4000) ** .5  # four standard errors


class Nearest(nn.Module):
    def __init__(self, centres, side): super().__init__(); self.centres, self.side = centres, side
    def forward(self, x): return -torch.cdist(as_points(x, self.side), self.centres)


@given(d=st.floats(.3, 1.), lift=st.floats(-.5, .5))
@settings(max_examples=10, deadline=None)
def test_the_margin_of_two_centres_is_known(d, lift):
    net = Nearest(torch.tensor([[-d, 0.], [d, 0.]]), 5.)
    p = torch.tensor([[-d, lift], [d, lift]])
    found = T.margins_of(p, torch.tensor([True, True]), T.edges(net, "two-rings", 200))
    assert found["smallest margin"] == pytest.approx(d, abs=.01) and found["median margin"] == pytest.approx(d, abs=.01)


def test_the_margin_of_nine_centres_is_half_way():
    from mixrepro.data.toys import CLOUD_CENTRES
    lines = T.edges(Nearest(CLOUD_CENTRES, 24.), "nine-clouds", 201)
    found = T.margins_of(CLOUD_CENTRES, torch.ones(9, dtype=torch.bool), lines)
    assert found["smallest margin"] == pytest.approx(5, abs=.02) and found["median margin"] == pytest.approx(5, abs=.02)
    assert T.margins_of(CLOUD_CENTRES, torch.arange(9) > 0, lines)["smallest margin"] == 0


def test_the_labels_of_a_run_are_those_it_is_trained_with():
    spec = {c.column: c.spec for c in toys(Toys.at("smoke"), scale("smoke"), 0) if c.row == "genlabel"}["two-rings"]
    train, density = load("two-rings", "train"), T.labels_of(spec)
    from scipy.stats import gaussian_kde
    x = train.x[::50]
    by_scipy = [gaussian_kde(train.x[train.y == c].flatten(1).double().numpy().T, .1).logpdf(x.flatten(1).double().numpy().T) for c in (0, 1)]
    found = density(x)
    assert np.allclose(found, np.array(by_scipy).T, atol=.02) and spec.clip == 5


def test_words():
    data = pd.DataFrame([dict(method="a over b", direction=w, **{"our n": n}) for w, n in (("same direction", 5), ("opposite direction", 5), ("undecided (3 seeds)", 5), ("", 0))])
    assert T.counted_over(data, (("a", "b"),)) == ["Of 3 contrasts, 1 in the paper's direction, 1 in the opposite one, 1 undecided."]
    assert T.with_interval([1., float("nan"), 3.]).startswith("2 [")
