"""The GAN is the paper's, each network gets its own gradient only, and the Inception score is that of others."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import cut_off, seeded, weights
from mixrepro.data.datasets import load
from mixrepro.methods.gan_mixup import PAIRS, GAN, GANMixup, Between, bce
from mixrepro.metrics import inception_score as module
from mixrepro.metrics.distances import Moments, frechet
from mixrepro.metrics.inception_score import generator_scores, inception_score, learned_jury, moments
from mixrepro.networks.sngan import SNGAN
from mixrepro.networks.staged import count
from mixrepro.networks.zoo import build
from mixrepro.papers.catalogue import find
from mixrepro.papers.manifold_mixup.settings import GAN_LAYERS, GANs, gan
from mixrepro.repro.artefact import cells
from mixrepro.repro.scale import scale
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, canonical
from mixrepro.training.store import Store, finish, history, open_net

SPEC = Spec("digits", "gan-mixup", "sngan-small", epochs=3, n_train=100, batch=20, lr=2e-3, beta1=0., augment="none", method_args=dict(every=2))


def small(seed=0): return build("sngan-small", (1, 32, 32), 10, seeded(seed))


def layers(net): return [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


@pytest.fixture(scope="module")
def trained():
    "A small GAN after some steps of training."
    net, x, rng = small(), load("digits", "train").floats(), seeded(1)
    opt = torch.optim.Adam(net.parameters(), 2e-3, betas=(0., .999))
    for _ in range(12):
        loss = GANMixup(every=2).loss(net, x[torch.randint(len(x), (16,), generator=rng)], None, rng)
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
    return net


# ---- the networks

@pytest.mark.parametrize("shape, args", [((3, 32, 32), dict(width=8)), ((1, 64, 64), dict(width=4)), ((1, 32, 32), dict(width=4, enlarge=2)), ((1, 16, 16), dict(width=4, plain=0, latent=3))])
def test_shapes(shape, args):
    net = SNGAN(shape, **args)
    images = net.make(net.draw(3, seeded()))
    assert images.shape == (3, *shape) and images.min() >= 0 and images.max() <= 1 and net(images).shape == (3, 1)
    side = shape[1] // args.get("enlarge", 1)
    for k, (c, s) in enumerate([(shape[0], shape[1]), (args["width"], side // 2), (args["width"], side // 4)]):
        net.D(images, at=k, through=lambda h: (h.shape[1:] == (c, s, s) or pytest.fail(f"{k}: {h.shape}")) and h)


def test_parameters_of_the_papers_size():
    with torch.device("meta"): net = build("sngan", (3, 32, 32), 10, seeded())
    conv = 9 * 128 * 128 + 128
    assert count(net.G) == 62 * 2048 + 2048 + 3 * (2 * conv + 4 * 128) + 2 * 128 + 9 * 128 * 3 + 3
    assert count(net.D) == 9 * 3 * 128 + 128 + 3 * 128 + 128 + 7 * conv + 128 * 128 + 128 + 128 + 1
    assert sum(isinstance(m, nn.BatchNorm2d) for m in net.G.modules()) == 7 and not any(isinstance(m, nn.BatchNorm2d) for m in net.D.modules())


def test_every_weight_of_the_discriminator_is_normalised(trained):
    net = small()
    net.load_state_dict(trained.state_dict())
    for _ in range(30): net.train().D(torch.rand(2, 1, 32, 32, generator=seeded()))
    found = [torch.linalg.svdvals(m.weight.detach().flatten(1))[0].item() for m in layers(net.eval().D)]
    raw = [torch.linalg.svdvals(m.parametrizations.weight.original.detach().flatten(1))[0].item() for m in layers(net.D)]
    assert len(found) == 9 and found == pytest.approx([1] * 9, abs=2e-3) and max(raw) > 1.5
    assert not any(hasattr(m, "parametrizations") for m in layers(net.G))


def test_one_power_iteration_follows_training(trained):
    found = [torch.linalg.svdvals(m.weight.detach().flatten(1))[0].item() for m in layers(trained.eval().D)]
    assert found == pytest.approx([1] * 9, abs=.1)


def test_discriminator_written_out(trained):
    "Weights divided by their spectral norm from a decomposition, and the forward pass in plain functions, the halving bypass in the released code's order."
    net = small()
    net.load_state_dict(trained.state_dict())
    x = torch.rand(4, 1, 32, 32, generator=seeded())
    for _ in range(60): net.train().D(x)
    w = [(m.parametrizations.weight.original.detach(), m.bias.detach()) for m in layers(net.eval().D)]
    w = [(a / torch.linalg.matrix_norm(a.flatten(1), 2), b) for a, b in w]
    conv = lambda h, i: F.conv2d(h, *w[i], padding=w[i][0].shape[-1] // 2)
    h = F.avg_pool2d(2 * x - 1, 4)
    h = F.avg_pool2d(conv(F.relu(conv(h, 0)), 1), 2) + conv(F.avg_pool2d(h, 2), 2)
    h = F.avg_pool2d(conv(F.relu(conv(F.relu(h), 3)), 4), 2) + F.avg_pool2d(conv(h, 5), 2)
    h = conv(F.relu(conv(F.relu(h), 6)), 7) + h
    assert torch.allclose(net.D(x), F.linear(F.relu(h).mean((2, 3)), *w[8]), atol=1e-4)


def test_weights_and_power_iteration_come_from_the_generator_alone():
    before = torch.get_rng_state()
    torch.manual_seed(1); one = small(); torch.manual_seed(2); same = small(); other = small(1)
    torch.set_rng_state(before)
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in one.state_dict().items())
    assert not torch.equal(one.state_dict()["D.head.parametrizations.weight.0._v"], other.state_dict()["D.head.parametrizations.weight.0._v"])


def test_sampling(trained):
    images = trained.sample(7, seeded(), batch=3)
    assert images.shape == (7, 1, 32, 32) and not images.requires_grad and torch.allclose(images, trained.sample(7, seeded()), atol=1e-6)
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    trained.train().sample(4, seeded())
    assert trained.training and all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())


# ---- the mixtures

@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 9), shape=st.lists(st.integers(1, 3), max_size=3), pairs=st.lists(st.sampled_from(PAIRS), min_size=1, max_size=3, unique=True), seed=st.integers(0, 99))
def test_a_target_is_the_share_of_real(n, shape, pairs, seed):
    rng = seeded(seed)
    draw = Between(torch.rand(len(pairs), n, generator=rng), torch.randperm(n, generator=rng), tuple(pairs))
    real = torch.tensor([1.] * n + [0.] * n).view(-1, *[1] * len(shape)).expand(-1, *shape)
    out = draw(real)
    assert out.shape == ((2 + len(pairs)) * n, *shape) and torch.equal(out[:2 * n], real)
    assert torch.allclose(out[2 * n:], draw.labels.view(-1, *[1] * len(shape)).expand(-1, *shape), atol=1e-6)


def test_who_is_mixed_with_whom():
    lam, partner = torch.tensor([[.1], [.2], [.3]]).expand(3, 4), torch.tensor([2, 3, 1, 0])
    real, fake = torch.arange(4.) + 10, torch.arange(4.) + 100
    between = Between(lam, partner)(torch.cat([real, fake]))[8:].view(3, 4)
    assert torch.allclose(between, torch.stack([.1 * fake + .9 * fake[partner], .2 * real + .8 * fake, .3 * fake[partner] + .7 * real]))


@pytest.mark.parametrize("stages", [(0,), (1,), (2,), (1, 2)])
def test_mixed_term_is_that_of_the_paper(stages, trained):
    "Eq. 11, term by term, with the draws repeated outside."
    net, x, m = trained.eval(), load("digits", "test").floats(slice(0, 8)), GANMixup(alpha=1., stages=stages)
    fake = net.sample(8, seeded(3))
    rng, again = seeded(5), seeded(5)
    loss = m.judge(net.D, x, fake, rng)
    lam, partner = torch.rand(3, 8, generator=again), torch.randperm(8, generator=again)
    k = stages[torch.randint(len(stages), (), generator=again)] if len(stages) > 1 else stages[0]
    states = {}
    def keep(name): return lambda h: states.update({name: h}) or h
    net.D(x, at=k, through=keep("x")); net.D(fake, at=k, through=keep("g"))
    X, G, L = states["x"], states["g"], lam.view(3, 8, 1, 1, 1)
    p = lambda h: net.D(x, at=k, through=lambda _: h).sigmoid().squeeze(1)
    entropy = lambda p, y: -(y * p.log() + (1 - y) * (1 - p).log())
    mixed = torch.cat([entropy(p(L[0] * G + (1 - L[0]) * G[partner]), 0 * lam[0]), entropy(p(L[1] * X + (1 - L[1]) * G), lam[1]),
                       entropy(p(L[2] * G[partner] + (1 - L[2]) * X), 1 - lam[2])]).mean()
    plain = entropy(net(x).sigmoid(), torch.ones(1)).mean() + entropy(net(fake).sigmoid(), torch.zeros(1)).mean()
    assert torch.isclose(loss, plain + mixed, atol=1e-5)
    assert torch.isclose(GAN().judge(net.D, x, fake, rng), plain, atol=1e-5)


def test_layers_are_drawn_equally_often(trained, monkeypatch):
    seen, forward = [], type(trained.D).forward
    def record(self, x, at=None, through=None): seen.append(at); return torch.zeros(2 * 5 + 3 * 5, 1) if at is not None else forward(self, x)
    monkeypatch.setattr(type(trained.D), "forward", record)
    m, x, rng = GANMixup(), torch.zeros(5, 1, 32, 32), seeded()
    for _ in range(900): m.judge(trained.D, x, x, rng)
    assert all(abs(seen.count(k) - 300) < 60 for k in (0, 1, 2))


# ---- the gradients

def gradients(loss, net):
    net.zero_grad(set_to_none=True)
    loss.backward()
    return {k: None if p.grad is None else p.grad.clone() for k, p in net.named_parameters()}


@pytest.mark.parametrize("m", [GAN(), GANMixup(), GANMixup(against=False), GANMixup(law="folded-beta", target="fake", pairs=("real-fake",), against=False)], ids=["gan", "mixup", "not-against", "master"])
def test_each_network_gets_its_own_gradient(m, trained):
    "The reference switches `requires_grad` off by hand and runs one backward pass for each network."
    net, x, rng = trained.eval(), load("digits", "train").floats(slice(0, 12)), seeded()
    net.done, state = 0, rng.get_state()
    joint = gradients(m.loss(net, x, None, rng), net)
    rng.set_state(state)
    fake = net.make(net.draw(12, rng))
    D = gradients(m.judge(net.D, x, fake.detach(), rng), net)
    net.D.requires_grad_(False)
    G = gradients(m.fool(net.D, x, fake, rng), net)
    net.D.requires_grad_(True)
    for k in joint:
        mine, theirs = (D, G) if k.startswith("D.") else (G, D)
        assert theirs[k] is None and torch.equal(joint[k], mine[k])
    assert sum(G[k].abs().sum() for k in G if k.startswith("G.")) > 0 and sum(D[k].abs().sum() for k in D if k.startswith("D.")) > 0


def test_between_its_turns_the_generator_stands_still():
    net, x, rng = small(), load("digits", "train").floats(slice(0, 16)), seeded()
    opt, moved = torch.optim.Adam(net.parameters(), 1e-3, betas=(0., .999)), {"G": [], "D": []}
    for _ in range(7):
        before = {k: p.detach().clone() for k, p in net.named_parameters()}
        loss = GANMixup(every=3).loss(net, x, None, rng)
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
        for side in moved: moved[side].append(any(not torch.equal(p, before[k]) for k, p in net.named_parameters() if k.startswith(side)))
    assert moved == {"G": [True, False, False, True, False, False, True], "D": [True] * 7}


def test_against_turns_the_sign(trained):
    net, x, fake = trained.eval(), torch.rand(6, 1, 32, 32, generator=seeded()), torch.rand(6, 1, 32, 32, generator=seeded(1))
    m = GANMixup(stages=(1,))
    with torch.no_grad():
        _, _, between = m.mixed(net.D, x, fake, seeded(2))
        plain = bce(net(fake).squeeze(1), 1)
        assert torch.isclose(m.fool(net.D, x, fake, seeded(2)), plain - between, atol=1e-6)
        assert torch.isclose(replace(m, against=False).fool(net.D, x, fake, seeded(2)), plain, atol=1e-6)


# ---- runs

def test_a_run_that_was_stopped_ends_with_the_same_weights(tmp_path, monkeypatch):
    whole = train_run(SPEC, Store(tmp_path / "whole"), "cpu")
    cut_off(SPEC, Store(tmp_path / "again"), 1, monkeypatch)
    again = train_run(SPEC, Store(tmp_path / "again"), "cpu")
    assert weights(whole) == weights(again)
    net = open_net(again)
    assert net.done == net.steps.item() == 15 and not net.training
    assert all(math.isfinite(row["real_loss"]) for row in history(again))
    other = train_run(replace(SPEC, seed=1, epochs=1), Store(tmp_path / "again"), "cpu")
    assert not torch.equal(open_net(other).sample(1, seeded()), net.sample(1, seeded()))


def test_plans():
    specs, full = [c.spec for c in cells(find("mm-fig9"), "paper")], (GANs(), scale("paper"), 0)
    assert len(specs) == 1 + 17 * 3 and specs[0].method == "erm" and specs[1].method == "gan"
    s = gan(*full, "h1,h2", .2)
    assert (s.network, s.epochs, s.batch, s.lr, s.beta1, s.beta2, s.augment) == ("sngan", 500, 64, 2e-4, 0., .999, "none")
    assert canonical(s)["method_args"]["stages"] in ((1, 2), [1, 2]) and s.method_args["every"] == 5 and gan(*full, "pixel").epochs == 600
    for name in ("smoke", "embedded", "gpu"):
        found = {(c.spec.method_args.get("stages"), c.spec.method_args.get("alpha")) for c in cells(find("mm-fig9"), name, 2)[1:]}
        assert (None, None) in found and {c[0] for c in found} - {None} <= set(GAN_LAYERS.values()) and any(a == .5 for _, a in found)


@pytest.mark.parametrize("args, message", [
    (dict(alpha=0.), "alpha must be above 0, got 0.0: for no mixing use the method"), (dict(alpha=1.5), "alpha must be above 0 and at most 1"), (dict(alpha=-1, law="folded-beta"), "alpha must be above 0"),
    (dict(stages=[0, 3]), "each of stages must be one of 0, 1, 2, got 3"), (dict(stages=[1, 1]), "stages must be different"), (dict(stages=[]), "stages must be different"),
    (dict(law="folded-betta"), "unknown law 'folded-betta': did you mean 'folded-beta'"), (dict(pairs=["real-real"]), "unknown pairs 'real-real': did you mean 'real-fake'"), (dict(pairs=[]), "one kind of mixture at least"),
    (dict(target="soft"), "unknown target"), (dict(every=0), "every must be at least 1, got 0")])
def test_bad_settings_are_refused_before_training(args, message):
    with pytest.raises(ValueError, match=message): Spec("digits", "gan-mixup", "sngan-small", method_args=args)


def test_wrong_networks():
    x = torch.rand(4, 1, 32, 32)
    with pytest.raises(TypeError, match="needs a generator and a discriminator"): GANMixup().loss(build("tiny-cnn", (1, 32, 32), 10, seeded()), x, None, seeded())
    net = small()
    net.D.stages = net.D.stages[:1]
    with pytest.raises(ValueError, match=r"stages 0 \(the input\) to 1"): GANMixup().loss(net, x, None, seeded())
    with pytest.raises(ValueError, match="got 28 x 28: resize them, or change enlarge"): build("sngan", (1, 28, 28), 10, seeded())
    with pytest.raises(ValueError, match="got 32 x 64"): build("sngan", (1, 32, 64), 10, seeded())


# ---- the scores

@pytest.mark.filterwarnings("ignore::UserWarning")  # theirs: of its memory, and of the deviation of a single split
@pytest.mark.parametrize("splits", [1, 4, 10])
def test_inception_score_against_torchmetrics(splits):
    from torchmetrics.image.inception import InceptionScore
    logits = 3 * torch.randn(400, 12, generator=seeded())
    class Given(nn.Module):  # "images" that carry the row of their logits
        def forward(self, images): return logits[images[:, 0, 0, 0].long()]
    theirs = InceptionScore(feature=Given(), splits=splits, normalize=False)
    theirs.update(torch.arange(400).view(-1, 1, 1, 1).expand(-1, 3, 2, 2))
    torch.manual_seed(0); mean, sd = theirs.compute()
    torch.manual_seed(0); order = torch.randperm(400)  # it shuffles first
    ours = inception_score(logits[order].softmax(1), splits)
    assert ours[0] == pytest.approx(mean.item(), rel=1e-4)
    if splits > 1: assert ours[1] * math.sqrt(splits / (splits - 1)) == pytest.approx(sd.item(), rel=1e-3)  # its divisor is splits - 1


@settings(max_examples=30, deadline=None)
@given(n=st.integers(20, 60), k=st.integers(2, 6), sharp=st.floats(0, 30), seed=st.integers(0, 99))
def test_inception_score_by_hand_and_its_bounds(n, k, sharp, seed):
    p = (sharp * torch.randn(n, k, generator=seeded(seed), dtype=torch.float64)).softmax(1)
    mean, sd = inception_score(p, splits=3)
    parts, m = [], n // 3
    for s in range(3):
        rows = p[s * m:(s + 1) * m].tolist()
        middle = [sum(r[j] for r in rows) / m for j in range(k)]
        parts.append(math.exp(sum(v * math.log(v / q) for r in rows for v, q in zip(r, middle) if v > 0) / m))
    assert mean == pytest.approx(sum(parts) / 3, rel=1e-6) and sd == pytest.approx((sum((v - sum(parts) / 3) ** 2 for v in parts) / 3) ** .5, abs=1e-6)
    assert 1 - 1e-9 <= mean <= k + 1e-9
    assert inception_score(p[:, torch.randperm(k, generator=seeded(seed))], 3) == pytest.approx((mean, sd), abs=1e-9)


@pytest.mark.parametrize("k, splits", [(10, 10), (10, 5), (100, 10)])
def test_images_that_come_class_by_class_are_told_from_those_in_random_order(k, splits):
    p = torch.eye(k).repeat_interleave(40, 0)
    with pytest.warns(UserWarning, match=f"come class by class, so that each of the {splits} parts has few of the classes: .*, and {k:.2f} with the images dealt out in turn"):
        assert inception_score(p, splits)[0] == pytest.approx(k / splits)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for seed in range(20): inception_score(p[torch.randperm(len(p), generator=seeded(seed))], splits)


def test_closed_forms():
    for k in (2, 10, 1000):
        assert inception_score(torch.full((20, k), 1 / k)) == pytest.approx((1, 0), abs=1e-4)
        assert inception_score(torch.eye(k).repeat(20, 1), splits=4) == pytest.approx((k, 0), abs=1e-6 * k)
    assert inception_score(torch.eye(10)[torch.zeros(100, dtype=torch.long)]) == pytest.approx((1, 0))


@pytest.mark.parametrize("p, splits, message", [
    (torch.full((19, 4), .25), 10, "19 samples are too few for 10 splits"), (torch.full((50, 4), .25), 0, "too few for 0 splits"), (torch.zeros(50, 4), 5, "rows that sum to 1"),
    (torch.full((50, 4), 1), 5, "got torch.int64"), (torch.full((50,), .5), 5, r"probabilities \(N, K\)"), (torch.full((50, 4), float("nan")), 5, "rows of class probabilities hold NaN"),
    (torch.tensor([[1.5, -.5]]).repeat(50, 1), 5, "rows that sum to 1")])
def test_what_is_no_probability(p, splits, message):
    with pytest.raises(ValueError, match=message): inception_score(p, splits)


def test_scores_of_a_run_are_kept(tmp_path, monkeypatch):
    store = Store(tmp_path)
    gan, judge = (train_run(s, store, "cpu") for s in (replace(SPEC, epochs=1), Spec("digits", "erm", "tiny-cnn", epochs=2, n_train=300, batch=32)))
    judges = learned_jury(judge)
    [s] = generator_scores([gan], judges, n=150, device="cpu")
    images = (open_net(gan).sample(150, seeded(gan.spec.seed)) * 255).round() / 255
    classifier = open_net(judge)
    with torch.no_grad(): assert s["is"] == pytest.approx(inception_score(classifier(images).softmax(1))[0], rel=1e-5)
    real = Moments(judges.features.dim).update(classifier.features(load("digits", "test").floats()).detach())
    assert s["fid"] == pytest.approx(frechet(real, Moments(judges.features.dim).update(classifier.features(images).detach())), rel=1e-3)
    monkeypatch.setattr(module, "keep", None)  # nothing is computed twice
    assert generator_scores([gan], judges, n=150, device="cpu") == [s]
    with pytest.raises(TypeError): generator_scores([gan], judges, n=151, device="cpu")
    with pytest.raises(ValueError, match="makes no images: use the run of a GAN"): generator_scores([judge], judges, n=150, device="cpu")
    assert moments("digits", "train", judges).n == 1258


def test_scores_of_a_judge_that_was_trained_again_are_others(tmp_path):
    "Its name stays as it is while its code changes: what the old network had judged was shown as judged by the new one."
    store = Store(tmp_path)
    gan, judge = (train_run(s, store, "cpu") for s in (replace(SPEC, epochs=1), Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=100, batch=32)))
    [first] = generator_scores([gan], learned_jury(judge), n=150, device="cpu")
    net = open_net(judge)
    with torch.no_grad(): net.head.weight.mul_(3)
    finish(judge, net, history(judge), {}, judge.made)
    [second] = generator_scores([gan], learned_jury(judge), n=150, device="cpu")
    assert second["fid"] == pytest.approx(first["fid"]) and abs(second["is"] - first["is"]) > 1e-6 * first["is"]
