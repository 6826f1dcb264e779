"""Dropout and cutout have the laws they claim, against PyTorch's own layers; the blocked variant stops the gradient and changes nothing else."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.nn import functional as F

from helpers import seeded
from mixrepro.methods.cutout import Cutout, holes
from mixrepro.methods.dropout import Dropout, drop
from mixrepro.methods.erm import ERM
from mixrepro.methods.manifold_mixup import BlockedManifoldMixup, ManifoldMixup, ManifoldMixupAll
from mixrepro.methods.mixup import Mixup
from mixrepro.networks.zoo import build
from mixrepro.training.spec import Spec, name_of


def network(name="tiny-cnn"): return build(name, (1, 16, 16), 5, seeded())


def batch(n=12, seed=0):
    rng = seeded(seed)
    return torch.rand(n, 1, 16, 16, generator=rng), torch.randint(5, (n,), generator=rng)


@given(p=st.floats(.05, .9), seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_dropout_has_the_law_of_pytorchs(p, seed):
    ours = drop(torch.ones(20_000), p, seeded(seed))
    kept = int((ours > 0).sum())
    assert stats.binomtest(kept, 20_000, 1 - p).pvalue > 1e-7
    theirs = F.dropout(torch.ones(20_000), p)
    assert torch.allclose(ours[ours > 0][0], theirs[theirs > 0][0])  # the same scale


def test_dropout_drops_for_each_example_and_feature_by_itself():
    mask = (drop(torch.ones(4000, 8), .5, seeded()) > 0).double().numpy()
    corr = np.corrcoef(mask.T) - np.eye(8)
    assert abs(corr).max() < 5 / 4000**.5
    assert abs(np.corrcoef(mask[:-1, 0], mask[1:, 0])[0, 1]) < 5 / 4000**.5


@given(h=st.integers(4, 20), w=st.integers(4, 20), side=st.integers(1, 12), seed=st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_a_hole_is_a_square_around_a_centre_of_the_image(h, w, side, seed):
    for mask in holes(6, (h, w), side, seeded(seed))[:, 0].numpy():
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert mask[np.ix_(rows, cols)].all() and mask.sum() == len(rows) * len(cols)  # a rectangle
        for found, length in ((rows, h), (cols, w)):
            assert (np.diff(found) == 1).all() and side // 2 <= len(found) <= side or len(found) in (length, 1)
            if len(found) < min(side, length): assert found[0] == 0 or found[-1] == length - 1  # cut off by the border only


def test_centres_are_uniform():
    "With a side of 1 the hole is its centre."
    where = holes(40_000, (4, 5), 1, seeded()).flatten(1).double()
    assert (where.sum(1) == 1).all()
    assert stats.chisquare(where.sum(0).numpy()).pvalue > 1e-6


def test_no_regulariser_is_erm_to_the_last_bit():
    net, (x, y) = network().eval(), batch()
    erm = ERM().loss(net, x, y, seeded())
    assert torch.equal(Dropout(p=0.).loss(net, x, y, seeded()), erm)
    assert not torch.equal(Cutout().loss(net, x, y, seeded()), erm)
    bce = F.binary_cross_entropy(net(x).softmax(1), F.one_hot(y, 5).float())
    for method in (ERM(criterion="bce"), Dropout(p=0., criterion="bce")): assert torch.allclose(method.loss(net, x, y, seeded()), bce)
    assert torch.equal(Mixup(criterion="bce").loss(net, x, y, seeded()), ManifoldMixup(alpha=1., stages=(0,), criterion="bce").loss(net, x, y, seeded()))


@pytest.mark.parametrize("k", (1, 2, 3))
def test_blocking_stops_the_gradient_at_the_mixed_state_and_nowhere_else(k):
    net, (x, y) = network("small-cnn"), batch()
    def grads(method):
        net.zero_grad(set_to_none=True)
        loss = method.loss(net, x, y, seeded(3))
        loss.backward()
        return loss, [[p.grad for p in s.parameters()] for s in (*net.stages, net.head)]
    net.train()
    state = {n: v.clone() for n, v in net.state_dict().items()}
    free, through = grads(ManifoldMixup(stages=(k,)))
    net.load_state_dict(state)
    stopped, above = grads(BlockedManifoldMixup(stages=(k,)))
    assert torch.equal(free, stopped)
    assert all(g is None for stage in above[:k] for g in stage) and all(g is not None for stage in through for g in stage)
    assert all(torch.equal(a, b) for s, t in zip(through[k:], above[k:]) for a, b in zip(s, t))


def test_the_variants_draw_as_manifold_mixup_does():
    net, (x, y) = network("small-cnn").eval(), batch()
    assert ManifoldMixupAll().stages == (0, 1, 2, 3) and ManifoldMixupAll().alpha == 6
    assert torch.equal(ManifoldMixupAll(alpha=2., stages=(0, 1, 2)).loss(net, x, y, seeded()), ManifoldMixup().loss(net, x, y, seeded()))


def test_fields_that_came_later_change_no_name_at_their_defaults():
    "The names are those that earlier versions gave."
    old = {"erm": "erm-small-cnn-s0-139cd97787", "mixup": "mixup-small-cnn-s0-37333ba4f7"}
    for method, name in old.items():
        assert name_of(Spec("digits", method, "small-cnn", epochs=3)) == name
        assert name_of(Spec("digits", method, "small-cnn", epochs=3, method_args=dict(criterion="bce"))) != name
    assert name_of(Spec("digits", "erm", "small-cnn", epochs=3, beta1=0.)) != old["erm"]


@pytest.mark.parametrize("make, message", [
    (lambda: Dropout(p=-.1), r"p must be in \[0, 1\), got -0.1"), (lambda: Dropout(criterion="cee"), "unknown criterion 'cee': did you mean 'ce'"),
    (lambda: Cutout(side=-2), "side must be at least 0, got -2: a number of pixels"), (lambda: Cutout(per="images"), "unknown per 'images': Known: batch, example"),
    (lambda: ERM(criterion="nll"), "unknown criterion 'nll'"), (lambda: Mixup(criterion="bec"), "did you mean 'bce'")])
def test_bad_fields_are_refused(make, message):
    with pytest.raises(ValueError, match=message): make()
