"""What is measured on trained classifiers: the loss between images, decoded states, nearest neighbours, attacks."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch import nn
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.methods.attacks import ascend
from mixrepro.metrics.accuracy import nll, predict
from mixrepro.metrics.attacked import ATTACKS, FGSM, PGD, Unbounded, attacked, unbounded
from mixrepro.metrics.catalogue import METRICS, measure
from mixrepro.metrics.interpolation import GRID, different_pairs, draw_pairs, interpolated, interpolation, to_nearest
from mixrepro.metrics.neighbours import nearest, neighbours, vote
from mixrepro.networks.decoder import StateDecoder, doublings, state, state_shape
from mixrepro.networks.staged import Staged
from mixrepro.networks.zoo import NETWORKS, build
from mixrepro.papers.catalogue import find
from mixrepro.papers.manifold_mixup.settings import Decoders, decoder as decoder_of
from mixrepro.repro.artefact import cells
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, from_json, name_of, to_json
from mixrepro.training.store import Store, history, open_net

SEEDS = st.integers(0, 2 ** 32)


@pytest.fixture(scope="module")
def test(): return load("digits", "test")


@pytest.fixture(scope="module")
def net():
    "A small network that has learnt something."
    train, rng = load("digits", "train"), seeded()
    net = build("tiny-cnn", train.shape, train.k, rng, mean=(.3,), std=(.3,))
    opt = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        i = torch.randint(len(train), (64,), generator=rng)
        opt.zero_grad(); F.cross_entropy(net(train.floats(i)), train.y[i]).backward(); opt.step()
    return net.eval().requires_grad_(False)


# The loss between images

def by_hand(net, x, a, y, b, k, lam):
    "One pair, one lambda, one stage after the other."
    h, g = (x[None], a[None]) if k == 0 else (None, None)
    def below(z):
        z = net.norm(z[None])
        for stage in net.stages[:k]: z = stage(z)
        return z
    z = net.norm(lam * h + (1 - lam) * g) if k == 0 else lam * below(x) + (1 - lam) * below(a)
    for stage in net.stages[k:]: z = stage(z)
    logp = net.head(net.pool(z)).log_softmax(1)[0]
    return -(lam * logp[y] + (1 - lam) * logp[b]).item(), int(logp.argmax() not in (y, b))


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_the_curve_is_that_of_a_double_loop(net, test, k):
    few, lams = test.subset(12), (0., .25, .5, .75, 1.)
    i, j = draw_pairs(12, seeded(3))
    got, x = interpolated(net, few, (i, j), k, lams), few.floats()
    both = [*zip(i.tolist(), j.tolist()), *zip(j.tolist(), i.tolist())]
    for n, lam in enumerate(lams):
        loss, third = np.mean([by_hand(net, x[p], x[q], few.y[p], few.y[q], k, lam) for p, q in both], 0)
        assert got["nll"][n] == pytest.approx(loss, rel=1e-4) and got["third"][n] == pytest.approx(third)


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "preactresnet18", "wrn28-2"])
def test_both_ends_are_the_clean_loss_at_every_stage(name, test):
    few = test.subset(10)
    net = build(name, few.shape, few.k, seeded()).eval()
    clean = nll(predict(net, few), few.y)
    for k in range(len(net.stages) + 1):
        ends = interpolated(net, few, draw_pairs(10, seeded()), k, (0., 1.))["nll"]
        assert ends == pytest.approx([clean, clean], rel=1e-4)


def test_passes_of_any_size_give_the_same_curve(net, test):
    pairs = draw_pairs(61, seeded())
    curves = [interpolated(net, test.subset(61), pairs, 1, GRID, batch=b)["nll"] for b in (1, 51, 200, 10_000)]
    for c in curves[1:]: assert c == pytest.approx(curves[0], rel=1e-5)


@given(st.integers(2, 300), SEEDS)
@settings(deadline=None, max_examples=30)
def test_pairs_match_each_example_once(n, seed):
    i, j = draw_pairs(n, seeded(seed))
    everyone = torch.cat([i, j])
    assert len(everyone.unique()) == len(everyone) == n - n % 2 and everyone.max() < n


def test_pairs_of_different_classes_differ_and_too_many_are_refused(test):
    chosen = different_pairs(test.y, 100, seeded())
    assert (test.y[chosen[:, 0]] != test.y[chosen[:, 1]]).all() and torch.equal(chosen[:5], different_pairs(test.y, 5, seeded()))
    with pytest.raises(ValueError, match="of 539 examples only .* pairs have different labels, 400 were asked for: take fewer"): different_pairs(test.y, 400, seeded())
    with pytest.raises(ValueError, match="a pair needs 2 examples, got 0"): draw_pairs(0, seeded())


def test_networks_are_compared_on_the_same_pairs_and_left_as_they_were(net, test):
    net.train()
    one, two = interpolation([net, net], test.subset(20), lams=(0., .5, 1.))
    assert one == two and net.training and json.loads(json.dumps(one)) == one
    net.eval()
    with pytest.raises(ValueError, match=r"has stages 0 \(the input\) to 3, got at=\(4,\)"): interpolation([net], test.subset(20), stages=(4,))
    with pytest.raises(ValueError, match="must be symmetric about one half"): interpolation([net], test.subset(20), lams=(0., .2, 1.))


def test_the_nearest_image_is_found_in_any_batches(test):
    x = torch.rand(7, *test.shape, generator=seeded())
    want = ((x[:, None] - test.floats()[None]) ** 2).mean((2, 3, 4)).amin(1).sqrt()
    for batch in (50, 539, 10_000): assert torch.allclose(to_nearest(x, test, batch), want, atol=1e-4)


# Decoders of states

@pytest.mark.parametrize("name", ["small-cnn", "tiny-cnn", "preactresnet18", "wrn28-2"])
@pytest.mark.parametrize("side", [32, 64])
def test_a_decoder_fits_every_convolutional_classifier(name, side):
    with torch.device("meta"):
        decoder = NETWORKS["decoder"]((3, side, side), of=name)
        net, x = NETWORKS[name]((3, side, side), 10).eval(), torch.zeros(2, 3, side, side)
        h = state(net, x, 2)
        assert decoder.state == tuple(h.shape[1:]) == state_shape(NETWORKS[name], (3, side, side), 2) and decoder(h).shape == x.shape


def test_the_state_is_what_the_stages_make_of_the_image(net, test):
    x = test.floats(slice(0, 3))
    h = net.norm(x)
    for k, stage in enumerate(net.stages, 1):
        h = stage(h)
        assert torch.equal(state(net, x, k), h)


def test_what_cannot_be_decoded_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match=r"only a state of maps \(c, h, w\) can be decoded, got \(128,\): choose a convolutional classifier"): build("decoder", (1, 32, 32), 10, seeded(), of="mlp")
    with pytest.raises(ValueError, match="unknown of 'smal-cnn': did you mean 'small-cnn'"): build("decoder", (1, 32, 32), 10, seeded(), of="smal-cnn")
    with pytest.raises(ValueError, match="a state of 7 x 7 cannot be doubled at most 3 times to an image of 32 x 32: decode an earlier stage"): doublings((7, 7), (32, 32), 3)
    with pytest.raises(ValueError, match="each of widths must be at least 1, got 0"): StateDecoder((8, 8, 8), (1, 32, 32), widths=(0,))
    with pytest.raises(ValueError, match="must be named by its method and network at least"): Spec("digits", "decoder", "decoder-small", method_args=dict(classifier={}))


CLASSIFIER = Spec("digits", "manifold-mixup", "tiny-cnn", epochs=2, n_train=200, batch=50, optimizer="sgd", lr=.1, nesterov=True, schedule="step", milestones=(1,), augment="crop")


def test_a_decoder_is_a_run_whose_classifier_is_a_run(tmp_path):
    store = Store(tmp_path)
    spec = decoder_of(replace(Decoders.at("smoke"), n_train=200), CLASSIFIER)
    assert spec.needs == {"classifier": CLASSIFIER}
    classifier = train_run(CLASSIFIER, store)
    before = (classifier.folder / "weights.safetensors").read_bytes()
    run = train_run(spec, store)
    assert len(store.runs()) == 2 and (classifier.folder / "weights.safetensors").read_bytes() == before
    rows, decoder, net = history(run), open_net(run), open_net(classifier)
    assert rows[-1]["mse_best"] <= rows[-1]["mse"] <= rows[0]["mse"] < .5
    test = load("digits", "test")
    with torch.no_grad(): mse = (decoder(state(net, test.floats(), 2)) - test.floats()).square().mean().item()
    assert mse == pytest.approx(rows[-1]["mse"], rel=1e-3)
    twin = train_run(spec, Store(tmp_path / "other"))
    assert (twin.folder / "weights.safetensors").read_bytes() == (run.folder / "weights.safetensors").read_bytes()


def test_a_decoders_name_follows_its_classifier_and_survives_json():
    s = Decoders.at("embedded")
    one, two = (decoder_of(s, c) for c in (CLASSIFIER, replace(CLASSIFIER, epochs=3)))
    assert name_of(one) != name_of(two) != name_of(replace(two, seed=1))
    back = from_json(json.loads(json.dumps(to_json(one))))
    assert back == one and name_of(back) == name_of(one) and back.needs["classifier"] == CLASSIFIER


@pytest.mark.parametrize("scale", ["smoke", "embedded", "gpu", "paper"])
def test_all_analyses_read_the_same_classifiers(scale):
    def plan(id): return [c.spec for c in cells(find(id), scale, 2)]
    grid = plan("mm-fig2")
    assert len(grid) == 3 * 2
    assert plan("mm-knn") == plan("mm-unbounded-pgd") == grid
    assert [s.needs["classifier"] for s in plan("mm-fig4")] == grid[::2]
    assert plan("mm-table3")[:len(grid)] == grid
    assert {s.dataset for s in plan("mm-table3")} == {"smoke": {"digits-few"}, "embedded": {"photo-digits-16"}, "gpu": {"cifar10", "svhn"}, "paper": {"cifar10", "cifar100", "svhn"}}[scale]


# Nearest neighbours

@given(SEEDS, st.integers(1, 12), st.integers(2, 6), st.integers(1, 40))
@settings(deadline=None, max_examples=40)
def test_votes_are_scikit_learns(seed, k, classes, d):
    rng = seeded(seed)
    memory, queries = torch.randn(60, d, generator=rng, dtype=torch.float64), torch.randn(25, d, generator=rng, dtype=torch.float64)
    labels = torch.cat([torch.arange(classes), torch.randint(classes, (60 - classes,), generator=rng)])
    theirs = KNeighborsClassifier(k, algorithm="brute").fit(memory.numpy(), labels.numpy())
    found = nearest(memory, queries, k, batch=7)
    assert np.array_equal(np.sort(found.numpy()), np.sort(theirs.kneighbors(queries.numpy(), return_distance=False)))
    assert np.array_equal(vote(labels[found], classes).numpy(), theirs.predict(queries.numpy()))


def test_the_error_is_scikit_learns_on_the_networks_features(net, test):
    train = load("digits", "train")
    with torch.no_grad(): a, b = net.features(train.floats()), net.features(test.floats())
    (got,) = neighbours([net], test, ks=(1, 5))
    for k in (1, 5):
        theirs = KNeighborsClassifier(k).fit(a.double().numpy(), train.y.numpy())
        assert got["error"][str(k)] == pytest.approx(1 - theirs.score(b.double().numpy(), test.y.numpy()), abs=.002)


# Attacks

def linear(k=3, side=4, std=.5):
    "A network in stages that is linear in the pixels."
    net = Staged((1, side, side), [nn.Flatten()], nn.Linear(side * side, k), pool=nn.Identity(), mean=(.5,), std=(std,))
    for p in net.parameters(): p.data = torch.randn(p.shape, generator=seeded(1))
    return net.double().eval()


@pytest.mark.parametrize("space, eps", [("pixel", .01), ("pixel", .3), ("normalised", .01), ("normalised", .3)])
def test_fgsm_on_a_linear_network_is_its_closed_form(space, eps):
    net, x, y = linear(), torch.rand(20, 1, 4, 4, generator=seeded(), dtype=torch.float64), torch.arange(20) % 3
    with torch.no_grad(): p = net(x).softmax(1)
    slope = ((p - F.one_hot(y, 3)) @ net.head.weight).view_as(x).sign()  # of cross-entropy: W'(p - e_y), up to the std
    want = (x + eps * slope).clamp(0, 1) if space == "pixel" else x + eps * .5 * slope
    assert torch.allclose(FGSM(eps, space)(net, x, y), want, atol=1e-12)


def test_bce_climbs_the_code_s_loss():
    net, x, y = linear(), torch.rand(20, 1, 4, 4, generator=seeded(), dtype=torch.float64), torch.arange(20) % 3
    def loss(z): return F.binary_cross_entropy(net(z).softmax(1), F.one_hot(y, 3).double(), reduction="none").sum(1)
    free = x.clone().requires_grad_()
    loss(free).sum().backward()
    assert torch.equal((FGSM(.01, "normalised", "bce")(net, x, y) - x).sign(), free.grad.sign())
    assert (loss(FGSM(1e-4, "normalised", "bce")(net, x, y)) > loss(x)).all()


@given(SEEDS, st.floats(.001, .1))
@settings(deadline=None, max_examples=25)
def test_two_linear_classes_fall_after_the_known_number_of_steps(seed, step):
    net, x, y = linear(k=2), torch.rand(30, 1, 4, 4, generator=seeded(seed), dtype=torch.float64), torch.arange(30) % 2
    with torch.no_grad(): out = net(x)
    margin, w = (out[:, 0] - out[:, 1]) * (1 - 2 * y), (net.head.weight[0] - net.head.weight[1]).abs().sum()
    for space, unit in (("pixel", 2.), ("normalised", 1.)):  # a pixel counts 1 / std
        t = margin / (step * unit * w)
        clear = (t - t.round()).abs() > 1e-6
        assert torch.equal(Unbounded(1000, step, space)(net, x, y)[clear], t.ceil().clamp(0, 1001).long()[clear])


@pytest.mark.parametrize("bounds", [False, True])
def test_images_fall_when_the_plain_climb_says_so(net, test, bounds):
    x, y = test.floats(slice(0, 60)), test.y[:60]
    fell = Unbounded(12, .01, bounds=bounds)(net, x, y)
    walked = lambda t: ascend(lambda z: F.cross_entropy(net(z), y, reduction="none"), x, math.inf, .01, t, start="image", bounds=(0, 1) if bounds else None) if t else x
    with torch.no_grad(): right = torch.stack([net(walked(t)).argmax(1) == y for t in range(13)])
    first = torch.where((~right).any(0), (~right).int().argmax(0), 13)
    assert (fell == first).float().mean() > .95  # sums in another order may turn the sign of a gradient that is nearly 0
    assert ((fell == 0) == ~right[0]).all()


def test_accuracies_fall_with_the_steps_and_the_network_is_left_as_it_was(net, test):
    few = test.subset(40)
    net.train()
    (one,), (hit,) = unbounded([net], few, Unbounded(20)), attacked([net], few)
    assert net.training and len(one["accuracy"]) == 21 and one["accuracy"] == sorted(one["accuracy"], reverse=True)
    net.eval()
    clean = (predict(net, few).argmax(1) == few.y).double().mean().item()
    assert one["accuracy"][0] == pytest.approx(clean) and list(hit["accuracy"]) == list(ATTACKS) and max(hit["accuracy"].values()) <= clean + .1


def test_an_attack_is_named_by_what_it_does():
    for name, attack in ATTACKS.items():
        over, under, space = re.match(r"([.\d]+)(?:/(\d+))?, (\w+)", name).groups()
        assert attack.eps == float(over) / float(under or 1) and attack.space == space.removesuffix("s")
        assert attack.criterion == ("bce" if name.endswith("as in the code") else "ce")
    for name, attack in PGD.items():
        n, step, eps = map(int, re.fullmatch(r"(\d+) steps of (\d+)/255 within (\d+)/255", name).groups())
        assert (attack.steps, attack.step, attack.eps, attack.start) == (n, step / 255, eps / 255, "uniform")
    assert (Unbounded().steps, Unbounded().step, Unbounded().bounds) == (200, .01, False), "Manifold Mixup paper, appendix F"


@pytest.mark.parametrize("bad, message", [(dict(eps=0), "the radius eps must be above 0"), (dict(space="pixels"), "unknown space 'pixels': did you mean 'pixel'"),
                                          (dict(criterion="mse"), "unknown criterion 'mse'")])
def test_attacks_that_make_no_sense_are_refused(bad, message):
    with pytest.raises(ValueError, match=message): FGSM(**bad)


# Kept beside the runs

def test_every_analysis_is_measured_once_and_kept(tmp_path):
    run = train_run(replace(CLASSIFIER, epochs=1, milestones=()), Store(tmp_path))
    for name in ("interpolation", "neighbours", "fgsm", "deformed", "deformed-mean", "unbounded", "unbounded-normalised"):
        first = measure([run], name)
        assert (run.folder / "metrics" / f"{name}.json").is_file() and measure([run], name) == first and name in METRICS
