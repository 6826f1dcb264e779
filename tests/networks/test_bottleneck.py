"""Spirals, networks with a bottleneck, and how hidden states concentrate: geometry, randomness, and the scatter, entropy and spectra against computations not written here."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch import nn

from mixrepro.data.datasets import DATASETS, STATS, load
from mixrepro.data.spirals import PointSet, as_images, as_points, draw_spirals, plane, spirals
from mixrepro.methods.manifold_mixup import ManifoldMixup, check_stages
from mixrepro.methods.vicinal import draw_mix, one_hot
from mixrepro.metrics import concentration as C
from mixrepro.networks.bottleneck import BottleneckChoices, Noise, bottleneck
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, open_net

seeded = lambda s=0: torch.Generator().manual_seed(s)
many = settings(max_examples=25, deadline=None)


# ---- spirals --------------------------------------------------------------------------------------------------------

def test_the_draw_depends_on_the_seed_and_the_split_alone():
    before = torch.get_rng_state()
    assert torch.equal(spirals("train").x, spirals("train").x) and torch.equal(torch.get_rng_state(), before)
    draws = [spirals(split, seed=s).x for split in ("train", "test") for s in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    assert len(torch.unique(torch.cat([d.flatten(1) for d in draws]), dim=0)) == sum(map(len, draws))


@many
@given(turns=st.floats(.3, 4), start=st.floats(0, .9), n=st.integers(1, 50), seed=st.integers(0, 99))
def test_without_noise_every_point_lies_on_its_arm(turns, start, n, seed):
    p, y = draw_spirals(n, seeded(seed), turns, 0., start)
    r, angle = p.norm(dim=1), torch.atan2(p[:, 1], p[:, 0])
    assert r.min() >= start - 1e-5 and r.max() <= 1 + 1e-5 and y.bincount().tolist() == [n, n]
    off = (angle - 2 * math.pi * turns * r - math.pi * y) / (2 * math.pi)
    assert ((off - off.round()).abs() * r < 1e-4).all()


def test_noise_and_the_spread_along_an_arm_have_the_law_they_should():
    (p, _), (q, _) = (draw_spirals(20_000, seeded(3), noise=s) for s in (0., .05))
    assert stats.kstest((q - p).flatten().numpy(), "norm", args=(0, .05)).pvalue > .001
    assert stats.kstest(p.norm(dim=1).square().numpy(), "uniform", args=(.01, .99)).pvalue > .001


def test_turning_one_arm_by_half_a_turn_gives_the_other():
    p, y = draw_spirals(4000, seeded(), noise=0.)
    assert torch.cdist(-p[y == 0], p[y == 1]).amin(1).max() < .02 < torch.cdist(p[y == 0], p[y == 1]).min()


def test_images_and_points_are_one_and_normalisation_gives_the_plane():
    p = 2.4 * torch.rand(50, 2, generator=seeded()) - 1.2
    assert torch.allclose(as_points(as_images(p)), p, atol=1e-6)
    net = bottleneck((2, 1, 1), 2, *STATS["spirals"])
    assert torch.allclose(net.norm(as_images(p)).flatten(1), p, atol=1e-5)
    assert stats.kstest(plane(5000, seeded()).flatten().numpy(), "uniform").pvalue > .001


def test_what_is_no_spiral_is_refused():
    for bad in (dict(turns=0), dict(noise=-.1), dict(start=1.)):
        with pytest.raises(ValueError, match="turns must be above 0"): draw_spirals(3, seeded(), **bad)
    with pytest.raises(ValueError, match="1 point at least"): draw_spirals(0, seeded())
    with pytest.raises(ValueError, match="unknown split 'tets': did you mean 'test'"): spirals("tets")
    with pytest.raises(ValueError, match="use as_images"): PointSet(torch.full((1, 2, 1, 1), 1.1), torch.tensor([0]), ("a", "b"), "p", "train")
    with pytest.raises(ValueError, match="N at least 1"): load("spirals", "train").subset(torch.zeros(2000, dtype=torch.bool))


def test_the_first_five_digits_of_mnist_are_known_by_name():
    assert "mnist-0to4" in DATASETS and STATS["mnist-0to4"] == STATS["mnist"]
    with pytest.raises(FileNotFoundError, match="mixrepro data get mnist"): load("mnist-0to4", "test", "/nonexistent")


# ---- the network ----------------------------------------------------------------------------------------------------

@many
@given(before=st.integers(0, 4), after=st.integers(0, 4), code=st.integers(1, 5), width=st.integers(1, 9), norm=st.booleans())
def test_layers_stages_and_shapes(before, after, code, width, norm):
    net = bottleneck((1, 3, 4), 7, before=before, after=after, code=code, width=width, batch_norm=norm).eval()
    linears = [m for m in net.modules() if isinstance(m, nn.Linear)]
    assert len(linears) == before + after + 2 and linears[before].out_features == code
    assert sum(isinstance(m, nn.BatchNorm1d) for m in net.modules()) == norm * (before + after + 1)
    assert sum(isinstance(m, nn.LeakyReLU) for m in net.modules()) == before + after  # none on the bottleneck
    x, seen = torch.rand(5, 1, 3, 4), []
    net(x, at=1, through=lambda h: seen.append(h) or h)
    assert seen[0].shape == (5, code) and net(x).shape == (5, 7) and len(net.stages) == 2
    assert torch.allclose(net.head(net.stages[1](seen[0])), net(x), atol=1e-6)


def test_noise_is_gaussian_of_its_scale_and_added_at_the_bottleneck():
    net, x = bottleneck((2, 1, 1), 2, noise=.7).draw_from(seeded()), torch.rand(20_000, 2, 1, 1, generator=seeded())
    def code(): return [seen := [], net(x, at=1, through=lambda h: seen.append(h) or h)][0][0]
    with torch.no_grad(): noise = (net.train() and code()) - (net.eval() and code())
    assert stats.kstest(noise.flatten().numpy(), "norm", args=(0, .7)).pvalue > .001


def test_without_regularisers_the_seed_gives_the_weights_and_dropout_does_not_change_them():
    a, b = (build("spiral-net", (2, 1, 1), 2, seeded(), **kw) for kw in ({}, dict(dropout=.5, noise=.5)))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_mixing_at_the_bottleneck_is_the_equation():
    net, x, y = build("spiral-net", (2, 1, 1), 2, seeded()).eval(), spirals("test").x[:64], spirals("test").y[:64]
    mix = draw_mix(64, 1., seeded(5))
    logits = net.head(net.stages[1](mix(net.stages[0](net.norm(x)))))
    by_hand = -(mix(one_hot(y, logits)) * logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(ManifoldMixup(alpha=1., stages=(1,)).loss(net, x, y, seeded(5)), by_hand, atol=1e-6)
    with pytest.raises(ValueError, match=r"stages 0 \(the input\) to 2"): check_stages(net, (3,))


def test_wrong_sizes_of_a_network_are_refused():
    for bad in (dict(width=0), dict(before=-1), dict(after=-1), dict(code=0)):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be at least"): BottleneckChoices(**bad)
    with pytest.raises(ValueError, match="0 or more, got nan"): Noise(math.nan)


# ---- scatter, confidence, dimension ---------------------------------------------------------------------------------

def cloud(seed, n=60, k=3, dims=4):
    rng = seeded(seed)
    y = torch.cat([torch.arange(k), torch.randint(k, (n - k,), generator=rng)])
    return torch.randn(n, dims, generator=rng, dtype=torch.float64) + 2 * torch.randn(k, dims, generator=rng, dtype=torch.float64)[y], y


@many
@given(seed=st.integers(0, 10**6), k=st.integers(2, 5))
def test_scatter_equals_a_computation_by_loops_and_scikit_learns_covariance(seed, k):
    h, y = cloud(seed, k=k)
    rows, labels, dims = h.numpy(), y.numpy(), h.shape[1]
    mean = [sum(r[j] for r in rows) / len(rows) for j in range(dims)]
    within = between = 0.
    for c in set(labels.tolist()):
        own = [r for r, l in zip(rows, labels) if l == c]
        centre = [sum(r[j] for r in own) / len(own) for j in range(dims)]
        within += sum((r[j] - centre[j])**2 for r in own for j in range(dims))
        between += len(own) * sum((centre[j] - mean[j])**2 for j in range(dims))
    assert np.allclose(C.scatter(h, y), (within / len(rows), between / len(rows)), rtol=1e-10)
    assert np.isclose(C.scatter(h, y)[0], np.trace(LinearDiscriminantAnalysis(solver="eigen", store_covariance=True).fit(rows, labels).covariance_))
    assert np.isclose(sum(C.scatter(h, y)), h.var(0, unbiased=False).sum())  # the parts of the whole


@many
@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3), labels=st.permutations(range(3)))
def test_ratio_and_dimension_do_not_change_with_the_frame_the_scale_or_the_names(seed, scale, labels):
    h, y = cloud(seed)
    turn = torch.linalg.qr(torch.randn(4, 4, generator=seeded(seed), dtype=torch.float64))[0]
    other, renamed = scale * (h @ turn) + 10 * scale, torch.tensor(labels)[y]
    assert np.isclose(C.scatter_ratio(other, renamed), C.scatter_ratio(h, y), rtol=1e-6)
    assert C.dimension(other, renamed, .3) == C.dimension(h, y, .3)
    assert np.allclose(sorted(C.class_spectra(other, renamed)[:, 0]), sorted(scale * C.class_spectra(h, y)[:, 0]), rtol=1e-6)


def test_pulling_a_class_together_lowers_the_ratio_and_points_have_none():
    h, y = cloud(4)
    means = torch.stack([h[y == c].mean(0) for c in range(3)])[y]
    ratios = [C.scatter_ratio(means + f * (h - means), y) for f in (1., .5, .1, 0.)]
    assert ratios == sorted(ratios, reverse=True) and np.isclose(ratios[1], ratios[0] / 4) and ratios[-1] < 1e-25
    assert C.dimension(means, y) == 0


@many
@given(seed=st.integers(0, 10**6))
def test_spectra_are_numpys_singular_values(seed):
    h, y = cloud(seed)
    for c, s in enumerate(C.class_spectra(h, y)):
        own = h[y == c].numpy()
        theirs = np.linalg.svd(own - own.mean(0), compute_uv=False) / math.sqrt(len(own))
        assert np.allclose(s[:len(theirs)], theirs, atol=1e-10) and (s[len(theirs):] == 0).all()


def test_the_dimension_of_planted_subspaces_is_found():
    rng, y = seeded(1), torch.arange(900) % 3
    for r in range(6):
        basis = torch.linalg.qr(torch.randn(6, 6, generator=rng, dtype=torch.float64))[0][:, :r]
        h = 4 * torch.eye(6, dtype=torch.float64)[y] + torch.randn(900, r, generator=rng, dtype=torch.float64) @ basis.T + 1e-3 * torch.randn(900, 6, generator=rng, dtype=torch.float64)
        assert C.dimension(h, y) == r
    assert [C.allowed(10, k) for k in (8, 9, 10)] == [None, 0, 1]


@many
@given(seed=st.integers(0, 10**6), threshold=st.floats(.35, 1))
def test_confidence_and_entropy_are_scipys(seed, threshold):
    logits = 6 * torch.randn(50, 3, generator=seeded(seed), dtype=torch.float64)
    share, entropy = C.unsure(logits, threshold)
    p = logits.softmax(1).numpy()
    assert share == (p.max(1) < threshold).mean() and np.isclose(entropy, stats.entropy(p, axis=1).mean())


@many
@given(st.lists(st.tuples(st.floats(.01, 100), st.floats(.01, 100)), min_size=2, max_size=8))
def test_the_paired_ratio_is_scipys_t_interval_of_the_logarithm(pairs):
    a, b = map(list, zip(*pairs))
    r = np.log(np.array(a) / np.array(b))
    if r.std() < 1e-6: return
    theirs = stats.ttest_rel(np.log(a), np.log(b)).confidence_interval(.95)
    got = C.paired_ratio(a, b)
    assert np.allclose(np.log(got), (r.mean(), theirs.low, theirs.high), atol=1e-7)
    back = C.paired_ratio(b, a)
    assert np.allclose(np.log(back), [-np.log(got[0]), -np.log(got[2]), -np.log(got[1])], atol=1e-7)


# ---- runs -----------------------------------------------------------------------------------------------------------

def test_runs_on_the_spirals_go_through_the_store_and_are_measured(tmp_path):
    store = Store(tmp_path)
    for method, args in (("erm", {}), ("manifold-mixup", dict(alpha=1., stages=(1,)))):
        spec = Spec("spirals", method, "spiral-net", epochs=2, batch=100, augment="none", method_args=args, network_args=dict(width=16, dropout=.2, noise=.1, batch_norm=True))
        run = train_run(spec, store)
        found, = C.concentration([open_net(run)], load("spirals", "test"))
        assert found["scatter"] > 0 and all(0 <= found[k] <= 1 for k in ("low_hidden", "low_plane", "accuracy", "train_accuracy", "sure"))
        assert all(0 <= found[k] <= math.log(2) + 1e-9 for k in ("entropy_hidden", "entropy_plane"))
        assert C.concentration([open_net(run)], load("spirals", "test")) == [found]
    dims, = C.dimensions([open_net(run)], load("spirals", "test"))
    assert dims["dim"] == 2 and len(dims["spectrum"]) == 2 and dims["classes"] == 2
