"GenLabel's three labellings on every kind of mixture, against loops and scipy; algorithm 3 is kept with a checkpoint; no intrusion."

import copy
import functools
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from helpers import goes_on_alike, seeded
from mixrepro.data.datasets import load
from mixrepro.methods import genlabel as G
from mixrepro.methods.base import altered, restore, state_of
from mixrepro.methods.manifold_mixup import ManifoldMixup
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.noise import FeatureNoise
from mixrepro.methods.varmixup import VarMixup, decode_mix
from mixrepro.methods.vicinal import Mix, draw_mix
from mixrepro.methods.views import NoiseViews
from mixrepro.networks.autoencoders import ConvVAE
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, name_of
from mixrepro.training.store import Store

TRAIN = load("digits", "train").subset(120)
TRAIN = replace(TRAIN, x=TRAIN.x[:, :, ::2, ::2].contiguous())  # 64 pixels
NET = build("tiny-cnn", TRAIN.shape, 10, seeded()).eval()
with torch.no_grad(): NET.head.weight *= 100  # a network that is sure, so that labels count
PHI = build("tiny-cnn", TRAIN.shape, 10, seeded(3)).eval()
X, Y = TRAIN.floats()[:24], TRAIN.y[:24]
HOT = F.one_hot(Y, 10).float()


def ready(m, **nets):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return m.prepare(TRAIN, seeded(), **nets)


with torch.random.fork_rng():
    torch.manual_seed(0)
    VAE = ConvVAE(TRAIN.shape, latent=5, width=4, depth=2).eval().requires_grad_(False)


@given(k=st.integers(2, 6), top=st.integers(0, 7), seed=st.integers(0, 999), scale=st.sampled_from([1., 1e3, 1e6]))
@settings(max_examples=30, deadline=None)
def test_the_label_of_a_density(k, top, seed, scale):
    log_p = scale * torch.randn(5, k, generator=seeded(seed), dtype=torch.float64)
    made = G.generative_label(log_p, top).numpy()
    for row, logs in zip(made, log_p.numpy()):
        stay = np.argsort(-logs)[:top or k]  # c1, c2: p_c1 >= p_c2 >= the others
        p = np.zeros(k); p[stay] = np.exp(logs[stay] - logs.max()); p /= p.sum()
        assert np.allclose(row, p, atol=1e-12)


# where a mixture may be made: method, and the images and the features that a density should see ---------------------------

def mixtures(kind, mix):
    "A prepared method without labels' own networks, the input that counts, and the features in the pass."
    if kind == "mixup": return Mixup(), mix(X), NET.features(mix(X))
    if kind == "manifold": return ManifoldMixup(alpha=1., stages=(1,)), mix(X), NET.features(X, 1, mix)
    if kind == "input stage": return ManifoldMixup(alpha=1., stages=(0,)), mix(X), NET.features(mix(X))
    coded = decode_mix(VAE, VAE.encode(X), mix)
    return VarMixup().prepare(TRAIN, seeded(), vae=VAE), coded, NET.features(coded)


LABELS = {"input": G.GenLabels(gamma=.7), "kernel": G.GenLabels(gamma=1., density="kde"), "latent": G.LatentGenLabels(gamma=.5),
          "online": G.OnlineGenLabels(gamma=.6, warmup=0., memory=.9)}


@functools.cache
def fitted(name): return ready(LABELS[name], vanilla=PHI)
def prepared(name): return ready(LABELS[name]) if name == "online" else fitted(name)


def log_densities(name, image, feature):
    "The densities by scipy, in the space that the algorithm says."
    if name == "online":
        z, mine, d = feature, NET.features(X).detach(), feature.shape[1]
        parts = [mine[Y == c].double() for c in range(10)]
        laws = [stats.multivariate_normal(p.mean(0).numpy(), max((p - p.mean(0)).square().sum().item() / len(p) / d, 1e-6)) if len(p) else None for p in parts]
        return np.array([law.logpdf(z.double().numpy()) if law else np.full(len(z), -np.inf) for law in laws]).T
    z, every = (PHI.features(image), PHI.features(TRAIN.floats())) if name == "latent" else (image.flatten(1), TRAIN.floats().flatten(1))
    z, every = z.double().numpy(), every.double().numpy()
    def law(a):
        if name != "kernel": return stats.multivariate_normal(a.mean(0), np.cov(a.T, ddof=0) + 1e-4 * np.eye(a.shape[1])).logpdf(z)
        h = len(a) ** (-1 / (a.shape[1] + 4))
        S = np.linalg.cholesky(h ** 2 * (np.cov(a.T) + 1e-8 * np.eye(a.shape[1])))
        far = -.5 * (np.linalg.solve(S, (z[:, None] - a).reshape(-1, a.shape[1]).T) ** 2).sum(0).reshape(len(z), -1)
        return np.logaddexp.reduce(far, 1) - np.log(len(a)) - np.log(np.diag(S)).sum()
    return np.array([law(every[(TRAIN.y == c).numpy()]) for c in range(10)]).T


@pytest.mark.parametrize("kind", ["mixup", "manifold", "input stage", "varmixup"])
@pytest.mark.parametrize("name", LABELS)
def test_every_algorithm_on_every_mixture(name, kind):
    mix = draw_mix(24, 1., seeded(8))
    method, image, feature = mixtures(kind, mix)
    made = altered(method, labels=prepared(name)).at(.5)
    log_p = torch.tensor(log_densities(name, image, feature.detach()))
    if name == "online":
        best = log_p.topk(2, 1); gen = torch.full_like(log_p, -torch.inf).scatter(1, best.indices, best.values).softmax(1)
    else: gen = log_p.softmax(1)
    gamma = LABELS[name].gamma
    by_hand = F.cross_entropy(NET.head(feature), (gamma * gen + (1 - gamma) * mix(HOT)).float())
    loss = made.risk(NET, X, Y, mix, seeded(8))
    assert torch.allclose(loss, by_hand, rtol=1e-4)
    assert all(g is None or g.isfinite().all() for g in torch.autograd.grad(loss, list(NET.parameters()), allow_unused=True))
    linear = F.cross_entropy(NET.head(feature), mix(HOT))
    assert not torch.allclose(loss, linear, rtol=1e-3), "and that is another loss than the method's own"


class Hasty(nn.Module):
    "A network, and a last layer, that work on what they are given; or on copies of it."
    def __init__(self, copies):
        super().__init__()
        self.copies, self.head = copies, nn.Sequential(Over(copies, .9), NET.head)
        self.first = Over(copies, .5)

    def features(self, x, at=None, through=None): return NET.features(self.first(x), at, through)
    def forward(self, x, at=None, through=None): return self.head(self.features(x, at, through))


class Over(nn.Module):
    def __init__(self, copies, by):
        super().__init__()
        self.copies, self.by = copies, by

    def forward(self, x): return (x.clone() if self.copies else x).mul_(self.by)


@pytest.mark.parametrize("name", [*LABELS, "no intrusion"])
def test_a_network_that_writes_over_its_input_is_given_the_same_labels(name):
    mix = draw_mix(24, 1., seeded(8), "example")
    def loss(copies):
        made = G.NoIntrusion(per="example").prepare(TRAIN, seeded()) if name == "no intrusion" else altered(Mixup(per="example"), labels=prepared(name)).at(.5)
        return made.risk(Hasty(copies), X.clone(), Y, mix, seeded(8))
    assert torch.equal(loss(False), loss(True)), "the density sees the mixture and its features as they were"


@pytest.mark.parametrize("name", LABELS)
def test_with_noise_and_views_and_without_a_trace(name):
    made = altered(ManifoldMixup(alpha=1., stages=(0, 1), noise=FeatureNoise(), views=NoiseViews(count=2)), labels=prepared(name)).at(.5)
    assert made.loss(NET, X, Y, seeded(2)).isfinite() and not NET._forward_pre_hooks and not NET.head._forward_pre_hooks
    none = altered(Mixup(), labels=altered(prepared(name), gamma=0.)).at(.5)
    assert torch.equal(none.loss(NET, X, Y, seeded(1)), Mixup().loss(NET, X, Y, seeded(1))), "gamma 0 is the method"
    class Broken(RuntimeError): pass
    def broken(*_): raise Broken
    class Fails(Mixup):
        def forward(self, net, x, place, rng, index=None): net(place(x)); broken()
    with pytest.raises(Broken): altered(Fails(), labels=prepared(name)).at(.5).loss(NET, X, Y, seeded())
    assert not NET._forward_pre_hooks and not NET.head._forward_pre_hooks


def test_the_vanilla_network_is_a_run_of_its_own():
    spec = Spec("digits", "mixup", "tiny-cnn", epochs=2, n_train=60, batch=30, method_args=dict(labels=G.LatentGenLabels()))
    other = spec.needs["vanilla"]
    assert (other.method, other.network, other.epochs, other.needs) == ("erm", "tiny-cnn", 2, {})
    assert name_of(spec) != name_of(replace(spec, method_args={})) == name_of(Spec("digits", "mixup", "tiny-cnn", epochs=2, n_train=60, batch=30))


def test_a_run_with_algorithm_2(tmp_path):
    spec = Spec("digits-few", "mixup", "tiny-cnn", epochs=2, n_train=100, batch=50, looks=1, augment="none", method_args=dict(labels=G.LatentGenLabels()))
    run = train_run(spec, Store(tmp_path), "cpu")
    assert run.done and Store(tmp_path).run(spec.needs["vanilla"]).done


# algorithm 3 and its memory ------------------------------------------------------------------------------------------------

ONLINE = Spec("digits-few", "mixup", "tiny-cnn", epochs=3, n_train=100, batch=50, looks=1, lr=5e-3, augment="crop",
              method_args=dict(labels=G.OnlineGenLabels(gamma=1., warmup=.1)))


@pytest.mark.parametrize("remembers", [True, False])
def test_a_run_of_algorithm_3_that_was_cut_off_ends_the_same(tmp_path, monkeypatch, remembers):
    assert goes_on_alike(ONLINE, tmp_path, monkeypatch, 2, remembers) == remembers


def test_what_algorithm_3_learned_is_state():
    made, other = (Mixup(labels=G.OnlineGenLabels(warmup=0.)).prepare(TRAIN, seeded()) for _ in range(2))
    assert state_of(made)["labels"]["density"].keys() == {"seen", "variance"}
    for s in range(3): made.at(.5).loss(NET, X, Y, seeded(s))
    restore(other, state_of(made))
    assert torch.equal(other.at(.5).loss(NET, X, Y, seeded(8)), made.at(.5).loss(NET, X, Y, seeded(8)))
    assert made.labels.made.density.seen.tolist() == [4. * (c in Y) for c in range(10)]


def test_a_network_that_shares_weights_with_the_frozen_one_is_refused():
    "It would train its other layers alone, and say nothing."
    vanilla, net = (build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded(s)) for s in (1, 2))
    apart, kind = copy.deepcopy(net), Mixup(labels=G.LatentGenLabels(density="gm-spherical"))
    net.stages = vanilla.stages
    made = kind.prepare(TRAIN, seeded(), vanilla=vanilla)
    for wrapped in (net, torch.nn.DataParallel(net)):
        with pytest.raises(ValueError, match="shares weights with the vanilla network, which are frozen, .* vanilla=copy.deepcopy"): made.loss(wrapped, X, Y, seeded())
    made.loss(apart, X, Y, seeded()).backward()
    assert all(p.grad is not None for p in apart.parameters())


def test_a_vanilla_network_that_is_put_in_training_mode_again_is_refused():
    net, vanilla = (build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded(s)) for s in (1, 2))
    made = Mixup(labels=G.LatentGenLabels(density="gm-spherical")).prepare(TRAIN, seeded(), vanilla=vanilla)
    torch.nn.ModuleList([net, vanilla]).train()
    with pytest.raises(ValueError, match=r"prepared with \(vanilla\) is in training mode again"): made.loss(net, X, Y, seeded())
    vanilla.eval()
    made.loss(net, X, Y, seeded())


def test_that_a_loop_does_not_say_how_far_it_is_is_said():
    "Labels on line would never count: the warm-up would not end."
    net = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded())
    made = Mixup(labels=G.OnlineGenLabels()).prepare(TRAIN, seeded())
    with pytest.warns(UserWarning, match="OnlineGenLabels changes in the course of a run, but was not told how far it is"): made.loss(net, X, Y, seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for t in (0., .5): made.at(t).loss(net, X, Y, seeded())
        Mixup(labels=G.OnlineGenLabels(warmup=0.)).prepare(TRAIN, seeded()).loss(net, X, Y, seeded())


def test_a_run_of_labels_on_line_says_nothing(tmp_path):
    "Not in its rehearsal either, before the first step."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train_run(Spec(dataset="digits", method="mixup", method_args={"labels": {"name": "genlabel-online"}}, network="tiny-cnn", n_train=40, epochs=1), Store(tmp_path), "cpu")
    assert not [w for w in said if "in the course of a run" in str(w.message)]


def test_learning_from_images_that_are_held_out_is_said():
    made, net = Mixup(labels=G.OnlineGenLabels(warmup=0.)).prepare(TRAIN, seeded()), build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded())
    def told():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            with torch.no_grad(): made.loss(net, X, Y, seeded())
        return [True for w in said if "the densities of its features go on learning from the images of this loss" in str(w.message)]
    assert told() == []
    net.eval()
    assert told() == [True]


# no intrusion --------------------------------------------------------------------------------------------------------------

@given(seed=st.integers(0, 999), per=st.sampled_from(["batch", "example"]))
@settings(max_examples=15, deadline=None)
def test_left_out_is_what_scikit_learns_nearest_neighbour_says(seed, per):
    m, mix = G.NoIntrusion(per=per).prepare(TRAIN, seeded()), draw_mix(24, 1., seeded(seed), per)
    nearest = torch.tensor(KNeighborsClassifier(1).fit(TRAIN.floats().flatten(1).double().numpy(), TRAIN.y.numpy()).predict(mix(X).flatten(1).double().numpy()))
    kept = (nearest == Y) | (nearest == Y[mix.partner])
    assert torch.equal(m.stays(mix(X), Y, mix), kept)
    loss = m.risk(NET, X, Y, mix, seeded())
    by_hand = F.cross_entropy(NET(mix(X))[kept], mix(HOT)[kept]) if kept.any() else torch.zeros(())
    assert torch.allclose(loss, by_hand, atol=1e-6)


def test_far_from_the_origin_the_same_is_left_out():
    rng = seeded(4)
    points, labels = torch.randn(300, 5, generator=rng), torch.randint(3, (300,), generator=rng)
    mix, y = draw_mix(300, 1., rng, "example"), labels
    made = [G.belongs(G.nearest_labels((c := (points + far).double()) - c.mean(0), labels, mix(c) - c.mean(0)), y, mix) for far in (0., 4096.)]
    exact = (points.double()[None] - mix(points.double())[:, None]).norm(dim=2).argmin(1)
    assert torch.equal(made[0], G.belongs(labels[exact], y, mix)) and (made[0] == made[1]).float().mean() > .98
    assert 0 < made[0].float().mean() < 1


def test_what_was_prepared_on_other_classes_or_cannot_be_is_refused():
    few = replace(TRAIN, y=TRAIN.y.clamp(max=2), classes=TRAIN.classes[:3])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = Mixup(labels=G.GenLabels(density="gm-spherical")).prepare(few, seeded())
    with pytest.raises(ValueError, match="densities of 3 classes cannot label examples of 10: prepare"): made.loss(NET, X, Y, seeded())
    points = load("shape-v", "train").subset(20)
    with pytest.raises(ValueError, match="1 of 20 rows of the examples hold NaN"):
        G.NoIntrusion().prepare(replace(points, x=points.x.index_fill(0, torch.tensor([4]), torch.nan)), seeded())


def test_where_all_intrude_nothing_is_learned():
    m = G.NoIntrusion().prepare(replace(TRAIN, y=torch.full_like(TRAIN.y, 9)), seeded())
    loss = m.loss(NET, X[Y < 9], Y[Y < 9], seeded())
    assert loss == 0 and all((g == 0).all() for g in torch.autograd.grad(loss, list(NET.parameters())))
    assert torch.equal(Mix(torch.tensor(1.), torch.arange(24))(HOT), HOT)
