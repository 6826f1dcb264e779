"""Methods are made of parts: losses are the formulas' to the last bit, parts go together, one that learns is kept."""

import io
import json
import signal
import warnings
from dataclasses import FrozenInstanceError, dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch import nn
from torch.nn import functional as F

from helpers import Forked, goes_on_alike, seeded, weights
from mixrepro.core import choice, provenance, spelled
from mixrepro.data.datasets import load
from mixrepro.methods import catalogue
from mixrepro.methods.base import MethodPart, altered, parts_of, restore, state_of
from mixrepro.methods.catalogue import METHODS, PARTS, method
from mixrepro.methods.labels import Labels, LinearLabels, LogisticLabels
from mixrepro.methods.manifold_mixup import ManifoldMixup
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.mixup_r import MixupR
from mixrepro.methods.noise import FeatureNoise, MixNoise
from mixrepro.methods.noisymix import SCHEMES, compared
from mixrepro.methods.varmixup import VarMixup
from mixrepro.methods.vicinal import LOSSES, Mix, draw_lambda, draw_mix
from mixrepro.methods.views import AugMixViews, NoiseViews, Views
from mixrepro.networks.autoencoders import ConvVAE
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, canonical, from_json, name_of, provenance_of, to_json
from mixrepro.training.store import Store


def batch(n=10, shape=(1, 16, 16), classes=5, seed=0, dtype=torch.float32):
    rng = seeded(seed)
    return torch.rand(n, *shape, generator=rng).to(dtype), torch.randint(classes, (n,), generator=rng)


def network(name="tiny-cnn", dtype=torch.float32): return build(name, (1, 16, 16), 5, seeded()).to(dtype).eval()


# what is drawn --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("alpha", [.01, .2, 1., 2., 100.])
def test_shares_have_scipys_beta_law_at_both_extremes(alpha):
    "Manifold Mixup paper, section 2; at alpha = .01 nearly all mass lies where single precision is next to 0 or to 1."
    law, half = stats.beta(alpha, alpha), (0, 1e-6, 1e-3, .1, .3, .45)
    edges = np.array([*half, .5, *(1 - e for e in half[::-1])])
    edges = edges[np.isin(edges, (0, 1)) | (abs(law.cdf(edges) - .5) < .498)]  # no cell is nearly empty
    found = np.histogram(draw_lambda((20_000,), alpha, seeded(3)).double().numpy(), edges)[0]
    assert found.sum() == 20_000 and stats.chisquare(found, 20_000 * np.diff(law.cdf(edges))).pvalue > 1e-3


# the mixture, bit for bit ---------------------------------------------------------------------------------------------

LAYOUTS = ("contiguous", "channels_last", "transposed", "sliced", "expanded")


def laid_out(x, how):
    "The same numbers, lying otherwise."
    if how == "channels_last": return x.to(memory_format=torch.channels_last)
    if how == "transposed": return x.transpose(1, 3).contiguous().transpose(1, 3)
    if how == "sliced": return torch.cat([x, x], 3)[..., :x.shape[3]]
    if how == "expanded": return x[:1].expand_as(x)
    return x


@given(n=st.integers(1, 9), shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
       seed=st.integers(0, 2**32), how=st.sampled_from(LAYOUTS),
       dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16]), each=st.booleans(),
       lam=st.sampled_from([None, 0., 1., .5, 1e-30, .49999997]))
@settings(max_examples=120, deadline=None)
def test_a_mixture_and_its_gradient_are_lerps_to_the_last_bit(n, shape, seed, how, dtype, each, lam):
    rng = seeded(seed)
    x = laid_out(torch.randn(n, *shape, generator=rng).to(dtype), how)
    lam = torch.full((n,) if each else (), lam) if lam is not None else torch.rand((n,) if each else (), generator=rng)
    partner, g = torch.randperm(n, generator=rng), torch.randn(n, *shape, generator=rng).to(dtype)
    a, b, before = (x.detach().requires_grad_(), x.detach().requires_grad_(), x.clone())
    w = lam.to(dtype).view(-1, 1, 1, 1) if each else lam.to(dtype)
    ours, plain = Mix(lam, partner)(a), torch.lerp(b[partner], b, w)
    assert torch.equal(ours, plain) and torch.equal(x, before), "equal, and the batch is as it was"
    assert torch.equal(torch.autograd.grad(ours, a, g)[0], torch.autograd.grad(plain, b, g)[0])
    if how in ("contiguous", "channels_last", "sliced"): assert ours.stride() == plain.stride()


@pytest.mark.parametrize("lam, partner, message", [
    (torch.tensor(1.5), torch.arange(4), "the shares of a mixture must lie in"), (torch.tensor([.1, -.2, 1., 0.]), torch.arange(4), "got -0.2 to 1"),
    (torch.tensor(torch.nan), torch.arange(4), "got nan to nan"), (torch.rand(3), torch.arange(4), r"got torch.float32 \(3,\) and torch.int64 \(4,\)"),
    (.5, torch.arange(4), "lam must be a tensor, got float"), (torch.tensor(.5), [0, 1, 2, 3], "partner must be a tensor, got list"),
    (torch.tensor(.5), torch.tensor([1, 0, 1, 1], dtype=torch.uint8), "and torch.uint8")])
def test_a_draw_of_ones_own_that_is_none_is_refused(lam, partner, message):
    "A share beyond the segment gave labels below 0 and images above 1 without a word."
    for a in (torch.rand(4, 3), torch.rand(3, 4).T, torch.rand(4, 2, 3, 3)):
        with pytest.raises((ValueError, TypeError), match=message): Mix(lam, partner)(a)


def test_a_coefficient_that_is_learned_gets_its_gradient():
    lam, x = (t.double().requires_grad_() for t in (torch.tensor(.3), torch.randn(4, 3, generator=seeded())))
    assert torch.autograd.gradcheck(lambda l, a: Mix(l, torch.tensor([2, 0, 3, 1]))(a), (lam, x))


# losses, bit for bit --------------------------------------------------------------------------------------------------

def lerped(lam, partner, a):
    "The mixture as it was first written."
    return torch.lerp(a[partner], a, lam.to(a.dtype).view(-1, *[1] * (a.dim() - 1)) if lam.dim() else lam.to(a.dtype))


def criterion(name, logits, target):
    return F.cross_entropy(logits, target) if name == "ce" else LOSSES["bce"](logits, target)  # held to float64 in test_sure_networks.py


def by_formula(net, x, y, rng, place, alpha=1., per="batch", name="ce"):
    "Mixing as each method once wrote it for itself: draw, mix at the place, label linearly."
    shape = (2,) if per == "batch" else (2, len(x))
    g = torch._standard_gamma(torch.full(shape, alpha + 1., dtype=torch.float64), generator=rng)
    u = torch.rand(g.shape, dtype=torch.float64, generator=rng)
    lam, partner = torch.softmax(g.log() + u.log() / alpha, 0)[0].float(), torch.randperm(len(x), generator=rng)
    logits = place(net, x, lambda a: lerped(lam, partner, a), rng)
    return criterion(name, logits, lerped(lam, partner, F.one_hot(y, logits.shape[1]).to(logits.dtype)))


def same(method, net, x, y, seed, place, **how):
    "Whether a method's loss and its gradients are those of the formula: to the last bit."
    losses = [method.loss(net, x, y, seeded(seed)), by_formula(net, x, y, seeded(seed), place, **how)]
    grads = [torch.autograd.grad(loss, list(net.parameters()), allow_unused=True) for loss in losses]
    alike = [a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(*grads)]
    return torch.equal(*losses) and all(alike)


@given(seed=st.integers(0, 2**32), alpha=st.floats(.05, 8), per=st.sampled_from(["batch", "example"]),
       name=st.sampled_from(["ce", "bce"]), net=st.sampled_from(["tiny-cnn", "mlp"]),
       dtype=st.sampled_from([torch.float32, torch.float64]))
@settings(max_examples=25, deadline=None)
def test_mixup_to_the_last_bit(seed, alpha, per, name, net, dtype):
    x, y = batch(seed=seed % 97, dtype=dtype)
    place = lambda net, x, mix, rng: net(mix(x))
    kind = Mixup(alpha=alpha, per=per, criterion=name)
    assert same(kind, network(net, dtype), x, y, seed, place, alpha=alpha, per=per, name=name)


@given(seed=st.integers(0, 2**32), alpha=st.floats(.05, 8), name=st.sampled_from(["ce", "bce"]), blocked=st.booleans(),
       net=st.sampled_from(["tiny-cnn", "small-cnn"]), stages=st.lists(st.integers(0, 3), min_size=1, unique=True))
@settings(max_examples=25, deadline=None)
def test_manifold_mixup_to_the_last_bit(seed, alpha, name, net, stages, blocked):
    x, y = batch(seed=seed % 97)
    def place(net, x, mix, rng):
        k = stages[torch.randint(len(stages), (), generator=rng).item()] if len(stages) > 1 else stages[0]
        return net(x, at=k, through=lambda h: mix(h.detach() if blocked else h))
    kind = ManifoldMixup(alpha=alpha, stages=stages, blocked=blocked, criterion=name)
    assert same(kind, network(net), x, y, seed, place, alpha=alpha, name=name)


@given(seed=st.integers(0, 2**32), eta=st.floats(.05, 8), per=st.sampled_from(["batch", "example"]))
@settings(max_examples=20, deadline=None)
def test_varmixup_and_mixup_r_to_the_last_bit(seed, eta, per):
    train = load("digits", "train").subset(20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = ConvVAE(train.shape, latent=5, width=4, depth=2).eval().requires_grad_(False)
    net, x, y = build("tiny-cnn", train.shape, 10, seeded()).eval(), train.floats(), train.y
    coded = lambda net, x, mix, rng: net(vae.decode(mix(vae.encode(x))))
    ready = [m.prepare(train, seeded(), vae=vae) for m in (VarMixup(eta=eta, per=per), MixupR(alpha=eta, per=per))]
    assert same(ready[0], net, x, y, seed, coded, alpha=eta, per=per)
    rebuilt = lambda net, x, mix, rng: net(mix(vae.decode(vae.encode(x))))
    assert same(ready[1], net, x, y, seed, rebuilt, alpha=eta, per=per)


# parts go together ----------------------------------------------------------------------------------------------------

@dataclass(frozen=True, kw_only=True)
class ByDensity(Labels):
    "What GenLabel does: of the parents' classes, what a density says of the mixture, and the rest linear."
    name = "by-density"
    density: object = None
    gamma: float = 1.

    def __call__(self, y, place):
        pair = (y + y[place.mix.partner]).bool()
        made = self.density(place.after).masked_fill(~pair, -torch.inf).softmax(1).to(y.dtype)
        return self.gamma * made + (1 - self.gamma) * place.mix(y)


MU = torch.randn(5, 256, generator=seeded(9))
DENSITY = ByDensity(density=lambda z: -.5 * (z.flatten(1)[:, None] - MU).square().sum(2))


def test_every_labelling_goes_with_every_noise_at_every_place():
    net, (x, y), losses = network(), batch(), set()
    for kind in (Mixup, ManifoldMixup):
        for labels in (LinearLabels(), LogisticLabels(), *([DENSITY] if kind is Mixup else [])):
            for noise in (MixNoise(), FeatureNoise()):
                losses.add(kind(alpha=1., labels=labels, noise=noise).loss(net, x, y, seeded(4)).item())
    assert len(losses) == 10


@pytest.mark.parametrize("criterion", ["ce", "bce"])
def test_labels_of_ones_own_that_are_scores_are_refused(criterion):
    "Log-probabilities in the place of probabilities were trained on: a loss below 0, without a word."
    @dataclass(frozen=True, kw_only=True)
    class Scores(LinearLabels):
        def __call__(self, y, place): return super().__call__(y, place).add(.01).log()
    x, y = torch.rand(6, 3, 8, 8), torch.arange(6) % 3
    with pytest.raises(ValueError, match="mixed labels must be shares of the classes, but one is -4.61: make shares of scores with softmax"):
        Mixup(labels=Scores(), criterion=criterion).loss(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), x, y, seeded())


def test_labels_see_both_ends_of_the_place():
    class Spy(LinearLabels):
        seen = []
        def __call__(self, y, place):
            self.seen.append((place.before, place.after))
            return super().__call__(y, place)
    net, (x, y), spy = network(), batch(), Spy()
    Mixup(labels=spy).loss(net, x, y, seeded(1))
    mix = draw_mix(10, 1., seeded(1))
    assert spy.seen[0][0] is x and torch.equal(spy.seen[0][1], mix(x))
    ManifoldMixup(alpha=1., stages=(1,), labels=spy).loss(net, x, y, seeded(1))
    state = net.stages[0](net.norm(x))
    assert torch.equal(spy.seen[1][0], state) and torch.equal(spy.seen[1][1], mix(state))


def test_the_noise_is_drawn_after_everything_else_and_from_the_generator_only():
    net, (x, y) = network(), batch()
    rng, noise = seeded(5), FeatureNoise(add=.3, mult=.1, sparse=.4)
    mix = draw_mix(10, 1., rng)
    times, plus, v = torch.empty(x.shape).uniform_(-.1, .1, generator=rng), torch.empty(x.shape).normal_(0, .3, generator=rng), torch.rand(x.shape, generator=rng)
    def factor():
        g = torch._standard_gamma(torch.tensor([2., 5.]), generator=rng)
        return g[0] / g.sum()
    times, plus = factor() * times * (v < .6), factor() * plus * ((v >= .24) & (v < .84))
    noised = .5 + .5 * ((1 + times) * (mix(x) - .5) / .5 + plus)  # an image, in the units of the code
    by_hand = F.cross_entropy(net(noised), mix(F.one_hot(y, 5).float()))
    before = torch.get_rng_state()
    assert torch.allclose(Mixup(noise=noise).loss(net, x, y, seeded(5)), by_hand, atol=1e-6)
    assert torch.equal(torch.get_rng_state(), before)


# one style ------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_frozen_and_says_its_name_itself(name):
    kind = METHODS[name]
    assert vars(kind)["name"] == name and kind.__dataclass_params__.frozen
    m = method(name)
    with pytest.raises(FrozenInstanceError): setattr(m, fields(kind)[0].name, 0)
    assert all(row["where"] and row["source"] in ("paper", "code", "default") for row in provenance(m).values())
    assert method(name, **json.loads(json.dumps(spelled(m)))) == m
    with pytest.raises(ValueError, match=f"{kind.__name__} is not ready: call prepare"): m.made


@pytest.mark.parametrize("name", PARTS)
def test_every_part_too(name):
    kind = PARTS[name]
    assert vars(kind)["name"] == name and kind.__dataclass_params__.frozen and issubclass(kind, MethodPart)
    assert all(row["where"] for row in provenance(kind()).values())


PRINTED = {  # by a paper, or in the code and the commands released with it; what the notebooks compute with defaults is not here
    "cutmix": dict(alpha=1., prob=.5, per="batch"),  # Yun et al. (2019), command for CIFAR
    "puzzlemix": dict(alpha=1., blocks=(2, 4, 8, 16), n_labels=3, beta=1.2, gamma=.5, eta=.2, neigh=4, transport=True, t_eps=.8, t_size=4),  # Kim et al. (2020), the same
    "at": dict(mode="train"), "iat": dict(mode="train", shared=False), "factor-mixup": dict(alpha=1., per="example", whole=True),
    "ssl-mixup": dict(l1_on="all", target="softmax"), "ssl-manifold-mixup": dict(l1_on="all", target="softmax"),  # Manifold Mixup, section 5.2, appendix E
    "gan-mixup": dict(alpha=.5, stages=(0, 1, 2), law="uniform", target="mixed", against=True),  # appendix G
    "decoder": dict(stage=2, noise=.05), "fine-tune": dict(frozen=False), "adamixup": dict(hidden=100), "genmix-gan": dict(energy="distance", hold_nearest=True)}


@pytest.mark.parametrize("name", PRINTED)
def test_a_default_is_what_its_source_prints(name):
    rows = provenance(METHODS[name]())
    assert {field: rows[field]["value"] for field in PRINTED[name]} == PRINTED[name]
    assert all(rows[field]["source"] in ("paper", "code") for field in PRINTED[name])


CHOSEN = {  # here, where the papers are silent; the reasons stand beside the fields. Another number is another method for whoever gives none
    "dropout": dict(p=.5), "cutout": dict(per="example"), "noise": dict(s=.1), "puzzlemix": dict(passes=60), "kl-vae": dict(beta=1., sigma=0.),
    "varmixup": dict(vae_epochs=100, share=1., eta=1., per="batch"), "adv-varmixup": dict(eps=8 / 255, step=2 / 255, steps=10, start="uniform"),
    "adv-mmd-vae": dict(eps=8 / 255, step=2 / 255, steps=10, start="uniform"), "genmix": dict(lams=(.5,), n_aug=0, eps=.05, rounds=10),
    "genmix-gan": dict(rounds=3, gan_epochs=500, gan_lr=4e-3, gan_batch=50, gan_every=3, width=.1, far=5., restarts=4, descent=60, settled=.1),
    "genlabel": dict(ridge=0.), "genlabel-online": dict(gamma=.5, memory=.95, floor=1e-6, corrected=True, warmup=.005)}


@pytest.mark.parametrize("name", CHOSEN)
def test_a_default_of_our_own_stays(name):
    rows = provenance((METHODS | PARTS)[name]())
    assert {field: rows[field]["value"] for field in CHOSEN[name]} == CHOSEN[name] and {rows[field]["source"] for field in CHOSEN[name]} == {"default"}


def test_traits_are_those_that_the_plans_typed():
    having = lambda trait, value=True: {n for n, kind in METHODS.items() if getattr(kind, trait) == value}
    assert having("on_vae") == having("raw") == {"mixup-r", "varmixup", "adv-varmixup", "erm-r"}
    assert having("attacks", "classifier") == {"at", "trades", "iat"}
    assert having("attacks", "vae") == {"adv-varmixup", "adv-mmd-vae"}
    assert having("unlabelled") == {"ssl-baseline", "ssl-mixup", "ssl-manifold-mixup"}
    for kind in METHODS.values():  # what a trait says is so
        assert ("vae" in kind().needs()) == kind.on_vae
        assert bool(kind.attacks) == ({"eps", "step", "steps"} <= {f.name for f in fields(kind)})


# specs ----------------------------------------------------------------------------------------------------------------

SPEC = Spec("digits", "manifold-mixup", "tiny-cnn", epochs=3)
CURVED = replace(SPEC, method_args=dict(labels=LogisticLabels(s=.2), noise=FeatureNoise(sparse=.65)))


def test_a_part_is_plain_in_a_spec_and_survives_json():
    assert CURVED.method_args["labels"] == {"name": "logistic", "s": .2}
    assert CURVED.method_args["noise"]["name"] == "feature-noise"
    back = from_json(json.loads(json.dumps(to_json(CURVED))))
    assert back == CURVED and name_of(back) == name_of(CURVED)
    built = method(back.method, **back.method_args)
    assert built == ManifoldMixup(labels=LogisticLabels(s=.2), noise=FeatureNoise(sparse=.65))
    rows = provenance_of(CURVED)["method"]
    assert rows["labels"]["source"] == rows["noise.sparse"]["source"] == "set" and rows["noise.add"]["source"] == "code"
    json.dumps(rows)


def test_a_part_changes_the_name_only_where_it_is_not_the_default():
    of = lambda **args: name_of(replace(SPEC, method_args=args))
    assert of() == of(labels=LinearLabels()) == of(noise={"name": "none"}) == of(labels={"name": "linear"}, alpha=2.)
    curved, noised = dict(name="logistic"), dict(name="feature-noise")
    others = [of(labels=curved), of(labels=curved | dict(s=.2)), of(noise=noised), of(labels=curved, noise=noised),
              of(noise=noised | dict(factor="none"))]
    assert len({of(), *others}) == 6 and of(labels=curved) == of(labels=LogisticLabels(s=.1))
    assert "labels" not in canonical(SPEC)["method_args"] and "criterion" in canonical(SPEC)["method_args"]


@pytest.mark.parametrize("args, message", [
    (dict(labels=dict(name="logistik")), "unknown part for labels 'logistik': did you mean 'logistic'"),
    (dict(labels=dict(name="logistic", S=1.)), "unknown field of 'logistic' 'S'"),
    (dict(labels=dict(name="feature-noise")), "unknown part for labels"),
    (dict(labels="logistic"), "labels must be a part with its name and fields, such as .*, got 'logistic'"),
    (dict(noise=dict(add=1.)), "noise must be a part with its name and fields"),
    (dict(noise=.5), "noise must be a part .*, got 0.5"),
    (dict(noise=LogisticLabels()), "unknown part for noise 'logistic'"),
    (dict(noise=dict(name="feature-noise", add=-1.)), "add must be at least 0, got -1"),
    (dict(lables=1), "unknown hyper-parameter of 'manifold-mixup' 'lables': did you mean 'labels'")])
def test_parts_that_cannot_be(args, message):
    with pytest.raises(ValueError, match=message): replace(SPEC, method_args=args)


@given(s=st.floats(.01, 5), add=st.floats(0, 3), mult=st.floats(0, 3), sparse=st.floats(0, .99),
       kind=st.sampled_from(["mixup", "manifold-mixup", "varmixup", "iat"]),
       views=st.sampled_from([Views(), AugMixViews(ops="all", gamma=0.), NoiseViews(s=.3, count=1)]))
@settings(max_examples=30, deadline=None)
def test_any_combination_is_the_same_after_json(s, add, mult, sparse, kind, views):
    noise = FeatureNoise(add=add, mult=mult, sparse=sparse, levels=(1, 2, 3))
    m = method(kind, labels=LogisticLabels(s=s), noise=noise, views=views)
    assert method(kind, **json.loads(json.dumps(spelled(m)))) == m


# a part that learns ---------------------------------------------------------------------------------------------------

class Means(nn.Module):
    "Running means of the classes; one that is absent from a batch stays."
    def __init__(self, k, d):
        super().__init__()
        self.register_buffer("mean", torch.zeros(k, d)); self.register_buffer("seen", torch.zeros(k))

    def see(self, z, y, memory):
        n = y.sum(0)[:, None]
        keep = torch.where(self.seen[:, None] > 0, memory, 0.)
        self.mean.copy_(torch.where(n > 0, keep * self.mean + (1 - keep) * (y.T @ z) / n.clamp_min(1), self.mean))
        self.seen += n[:, 0]


@dataclass(frozen=True, kw_only=True)
class LearnedLabels(Labels):
    "Labels by the nearest running mean; what GenLabel's third algorithm does, with one variance for all. It warms up."
    name, learns, now = "learned", ("means",), 0.
    gamma: float = choice(.5, "default", "a test")
    memory: float = choice(.9, "default", "a test")

    def prepare(self, train, rng, augment=None, **nets): return self.ready(means=Means(train.k, train.x[0].numel()))
    def at(self, t): return altered(self, now=t)

    def __call__(self, y, place):
        with torch.no_grad():
            self.made.means.see(place.before.flatten(1), y, self.memory)
            made = (-torch.cdist(place.after.flatten(1), self.made.means.mean)).softmax(1)
        gamma = self.gamma if self.now > .2 else 0.
        return gamma * made + (1 - gamma) * place.mix(y)


@pytest.fixture
def learned(monkeypatch):
    monkeypatch.setitem(catalogue.PARTS, "learned", LearnedLabels)
    how = dict(epochs=4, n_train=100, batch=50, lr=5e-3, augment="crop")
    return Spec("digits", "mixup", "tiny-cnn", **how, method_args=dict(labels=LearnedLabels()))


def test_what_a_part_learned_is_kept_and_taken_up():
    train = load("digits", "train").subset(100)
    m, other = (Mixup(labels=LearnedLabels()).prepare(train, seeded()) for _ in range(2))
    net, x, y = build("tiny-cnn", train.shape, 10, seeded()).eval(), train.floats(), train.y
    for s in range(3): m.at(.5).loss(net, x, y, seeded(s))
    assert set(state_of(m)) == {"labels"} and m.labels.made.means.seen.sum() == 300
    assert torch.allclose(m.labels.made.means.mean[3], x[y == 3].flatten(1).mean(0), atol=1e-5)
    m.at(.5).loss(net, 1 - x, y, seeded(3))  # what the other has not seen: from the same images both learn the same
    assert not torch.allclose(other.at(.5).loss(net, x, y, seeded(7)), m.at(.5).loss(net, x, y, seeded(7)), rtol=1e-6)
    restore(other, torch.load(io_of(state_of(m)), weights_only=True))
    assert torch.equal(other.at(.5).loss(net, x, y, seeded(8)), m.at(.5).loss(net, x, y, seeded(8)))
    assert m == Mixup(labels=LearnedLabels()) and parts_of(m)["labels"].made.means is m.labels.made.means
    assert torch.equal(m.at(.1).loss(net, x, y, seeded(1)), Mixup().loss(net, x, y, seeded(1))), "linear at first"


def io_of(state):
    buffer = io.BytesIO()
    torch.save(state, buffer); buffer.seek(0)
    return buffer


@pytest.mark.parametrize("stop, remembers", [(0, True), (2, True), (2, False)])
def test_a_run_with_a_learning_part_that_was_cut_off_ends_the_same(learned, tmp_path, monkeypatch, stop, remembers):
    assert goes_on_alike(learned, tmp_path, monkeypatch, stop + 1, remembers) == remembers


def test_a_run_with_a_learning_part_that_is_killed_ends_the_same(learned, tmp_path, capsys):
    spec = replace(learned, epochs=10, n_train=200)
    process = Forked(train_run, spec, Store(tmp_path / "a"), "cpu", steps=18)
    said = process.stdout.read()
    assert process.wait() == -signal.SIGKILL and "epoch   4/" in said and "epoch   5/" not in said
    assert not Store(tmp_path / "a").run(spec).done
    train_run(spec, Store(tmp_path / "a"), "cpu")
    assert "going on after epoch" in capsys.readouterr().out
    assert weights(Store(tmp_path / "a").run(spec)) == weights(train_run(spec, Store(tmp_path / "b"), "cpu"))


def test_a_method_that_learns_nothing_has_no_state():
    assert state_of(Mixup()) == state_of(method("varmixup")) == {}
    restore(Mixup(), {})  # what an older checkpoint says


def test_images_that_were_normalised_before_are_told_of_where_the_network_does_it_too():
    x, y = batch()
    net, plain = network().train(), nn.Sequential(nn.Flatten(), nn.Linear(256, 5))
    with pytest.warns(UserWarning, match="normalised already, and this network normalises them itself: hand them over in"): Mixup().loss(net, (x - .5) / .25, y, seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Mixup().loss(net, x, y, seeded()), Mixup().loss(plain, (x - .5) / .25, y, seeded())


RELEASED = {"NFM": {0: 2.369830, 2: 2.462858}, "NoisyMix (code)": {1: 2.285531, 2: 2.436384, 3: 2.389857, 5: 2.256267}}  # seed -> loss


@pytest.mark.parametrize("name", RELEASED)
def test_losses_are_those_of_the_released_code(name):
    "What erichson/NFM (noisy_mixup.py @ 232eed8) and erichson/NoisyMix (@ 3e83fda; cifar.py @ 61c9118) give in double precision for the same weights, images, shares, partners, noise and masks; all four stages."
    for seed, loss in RELEASED[name].items():
        rng = seeded(seed)
        net = build("preactresnet18", (3, 32, 32), 10, rng, width=8, identity="activated").train()
        views = [torch.rand(6, 3, 32, 32, generator=rng) for _ in range(3 if "Mix" in name else 1)]
        y = torch.randint(10, (6,), generator=rng)
        found = compared(SCHEMES[name], net, views, y, rng) if len(views) > 1 else SCHEMES[name].loss(net, views[0], y, rng)
        assert found.item() == pytest.approx(loss, abs=2e-6)
