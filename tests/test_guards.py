"""Numbers that are none, and labels that name no class, are refused at every door by one sentence; distances are right far from the origin."""

import math

import pytest
import torch
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.guards import NotFinite, check_labels
from mixrepro.metrics import (accuracy as A, calibration as C, concentration as H, deformed as D, distances as K, features as E,
                              inception_score as S, interpolation as I, linearity as L, mixed_loss as M, neighbours as N, robustness as R)

TEST = load("digits", "test").subset(20)
Y = TEST.y


class Says(torch.nn.Module):
    "A network in one stage whose logits, features and states have one entry of every row replaced."
    shape = (1, 32, 32)

    def __init__(self, bad=None):
        super().__init__()
        self.bad, self.weight = bad, torch.nn.Parameter(torch.zeros(1))

    def features(self, x, at=None, through=None):
        h = F.avg_pool2d(x, 8).flatten(1)[:, :10]
        if through is not None: h = through(h) if at else F.avg_pool2d(through(x), 8).flatten(1)[:, :10]
        return h

    def forward(self, x, at=None, through=None):
        h = self.features(x, at, through) * 3 + self.weight
        if self.bad is None: return h
        return torch.where(torch.arange(10) == 4, self.bad, h)


class Features(Says):
    def features(self, x, at=None, through=None):
        h = super().features(x, at, through)
        return torch.where(torch.arange(10) == 4, self.bad, h)


def logits(bad=0.): return Says(bad)(TEST.floats()).detach()


OF_LOGITS = {"accuracy": lambda z: A.accuracy(z, Y), "nll": lambda z: A.nll(z, Y), "ece": lambda z: C.ece(z, Y),
             "confidence": lambda z: C.confidence(z, Y), "reliability": lambda z: C.reliability(z, Y), "unsure": H.unsure}
OF_NETWORKS = {"deformed": lambda net: D.deformed([net], TEST, rows=("rotation 20",)), "right": lambda net: D.right(net, TEST.floats(), Y),
               "interpolation": lambda net: I.interpolation([net], TEST, stages=(0,), lams=(0., .5, 1.)),
               "linearity": lambda net: L.linearity(net, TEST, steps=1), "robustness": lambda net: R.robustness(net, TEST, kinds=("fog",))}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_NETWORKS])
def test_logits_that_say_nothing_are_refused_everywhere(name, bad):
    with pytest.raises(NotFinite, match="the network has diverged"):
        OF_LOGITS[name](logits(bad)) if name in OF_LOGITS else OF_NETWORKS[name](Says(bad))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_class_that_is_ruled_out_is_an_answer_but_nothing_else(name):
    OF_LOGITS[name](logits(-math.inf))
    with pytest.raises(NotFinite, match="20 of 20 rows of logits hold NaN or .inf, or -inf only"): OF_LOGITS[name](logits() - math.inf)


LABELS = {"-100": Y - 100, "-1": Y - 1, "(B, 1)": Y[:, None], "float": Y.float(), "out of range": Y + 1, "int32": Y.int()}
OF_LABELS = {"accuracy": lambda y: A.accuracy(logits(), y), "nll": lambda y: A.nll(logits(), y), "ece": lambda y: C.ece(logits(), y),
             "right": lambda y: D.right(Says(), TEST.floats(), y), "linearity": lambda y: L.linearity_errors(Says(), TEST.floats(), y, seeded(), steps=1)}


@pytest.mark.parametrize("bad", LABELS)
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_name_no_class_are_refused_everywhere(name, bad):
    with pytest.raises((ValueError, TypeError), match=r"^(labels must be (int64 )?class numbers 0..9|expected logits .N, K. and labels)"):
        OF_LABELS[name](LABELS[bad])


@pytest.mark.parametrize("measure", [H.scatter, H.scatter_ratio, H.gap, H.class_spectra, H.dimension])
def test_states_and_their_labels(measure):
    h = torch.randn(20, 3, generator=seeded())
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite, match="1 of 20 rows of hidden states hold NaN or infinity"):
            measure(torch.where(torch.arange(20)[:, None] == 7, bad, h), Y)
    for bad in ("-100", "-1", "(B, 1)", "float"):
        with pytest.raises((ValueError, TypeError), match="labels must be (int64 )?class numbers"): measure(h, LABELS[bad])


def test_a_plane_of_states_that_are_none():
    with pytest.raises(NotFinite, match="1 of 2 rows of hidden states"): H.hidden_plane(torch.tensor([[0., 1.], [math.nan, 0.]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_features_that_are_none_in_either_set(bad, which):
    sets = [torch.randn(30, 4, generator=seeded(i)) for i in (0, 1)]
    sets[which][29, 2] = bad
    for measure in (lambda a, b: K.mmd2(a, b), lambda a, b: K.kid(a, b, seeded(), 1, 2), lambda a, b: N.nearest(a, b, 1),
                    lambda a, b: K.frechet(*(K.Moments(4).update(f) for f in (a, b)))):
        with pytest.raises(NotFinite, match="1 of 30 rows of .*features hold NaN or infinity"): measure(*sets)


def test_features_of_a_network_that_has_diverged():
    net = Features(math.nan)
    with pytest.raises(NotFinite, match="features hold NaN"): N.neighbours([net], TEST, TEST, (1,))
    with pytest.raises(NotFinite, match="features hold NaN"): E.extract(E.Extractor("bad", 10, net.features), TEST.x)


def test_the_others():
    nan = torch.full((20, 10), math.nan)
    with pytest.raises(NotFinite, match="rows of class probabilities"): S.inception_score(nan, 1)
    with pytest.raises(NotFinite, match="rows of labels"): M.mixed_loss(lambda h: h, torch.eye(3), torch.full((3, 3), math.nan))
    with pytest.raises(NotFinite, match="1 of 1 rows of pictures"): I.to_nearest(torch.full((1, 1, 32, 32), math.nan), TEST)
    cells = {kind: [.5] * 5 for kind in R.CORRUPTIONS}
    with pytest.raises(NotFinite, match="1 of 15 rows of cells"): R.corruption_mean(cells | {"fog": [.5, math.nan, .5, .5, .5]})
    with pytest.raises(NotFinite, match="bins' accuracy"): C.pooled([dict(count=[1, 1], confidence=[.5, .5], accuracy=[.5, math.nan])])
    with pytest.raises(ValueError, match="labels must be class numbers 0..2, got 1..3"): N.vote(torch.tensor([[1, 3]]), 3)


def test_values_of_labels_are_left_alone_where_it_is_asked_for():
    check_labels(Y - 1, look=False)
    with pytest.raises(ValueError, match="got -1..8: leave out"): check_labels(Y - 1, 20, 10)


@pytest.mark.parametrize("far", [0., 100., 1000., 3e4])
@pytest.mark.parametrize("apart", [0., 1000.])
def test_neighbours_far_from_the_origin_and_in_clusters_far_apart(far, apart):
    m, q = (torch.randn(n, 64, generator=seeded(n)) + far + apart * (torch.arange(n) % 2)[:, None] for n in (300, 40))
    exact = (m.double()[None] - q.double()[:, None]).square().sum(2).topk(5, largest=False).indices
    assert torch.equal(N.nearest(m, q, 5), exact)


def test_a_picture_of_the_set_is_at_no_distance_from_it():
    assert I.to_nearest(TEST.floats(), TEST).max() < 1e-6


@pytest.mark.parametrize("bins", [1, 15, 1000])
def test_sums_by_bin_are_those_of_a_table(bins):
    z, y = torch.randn(500, 10, generator=seeded()), torch.randint(10, (500,), generator=seeded(1))
    sure, right = C.confidence(z, y)
    member = F.one_hot(torch.bucketize(sure, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]), bins).double()
    count = member.sum(0)
    found = C.reliability(z, y, bins)
    assert torch.equal(found["count"], count.long())
    for name, values in (("accuracy", right), ("confidence", sure)):
        assert torch.allclose(found[name], values @ member / count.clamp(min=1), atol=1e-12, rtol=0)


def test_a_thousand_bins_take_no_table():
    "The largest tensor has a few numbers for each prediction, whatever the number of bins."
    from mixrepro.metrics.cost import peak_bytes
    z, y = torch.randn(20_000, 4, generator=seeded()), torch.randint(4, (20_000,), generator=seeded(1))
    assert peak_bytes(lambda: C.ece(z, y, 1000)) < 1.1 * peak_bytes(lambda: C.ece(z, y, 15)) < 20 * 20_000 * 8


def test_the_kernel_distance_of_many_rows_takes_no_table_of_all_pairs():
    from mixrepro.metrics.cost import peak_bytes
    x, y = (torch.randn(6000, 2, generator=seeded(i)) for i in (0, 1))
    assert peak_bytes(lambda: K.kernel_sums(x.double(), y.double(), 100)) < 6000 * 6000
    assert K.kernel_sums(x.double(), x.double(), 700)[1] == pytest.approx(K.kernel_sums(x.double(), x.double(), 6000)[1].item(), rel=1e-12)
