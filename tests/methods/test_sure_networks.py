"""Networks that are very sure: the direction of an attack, the loss and the record against double precision and against 80 digits."""
import copy
import math
import warnings

import mpmath as mp
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import seeded as gen
from mixrepro.data.datasets import load
from mixrepro.methods.at import AT
from mixrepro.methods.attacks import (PULLS, cross_entropy, fgsm, flat, log_loss, log_target, pgd, slope, tilt, trades_attack)
from mixrepro.methods.iat import IAT
from mixrepro.methods.trades import TRADES
from mixrepro.methods.vicinal import bce_softmax, log_odds, one_hot
from mixrepro.methods.catalogue import method
from mixrepro.methods.puzzlemix import PuzzleMix
from mixrepro.metrics.attacked import FGSM, Iterated, Unbounded, attacked, unbounded
from mixrepro.metrics.boundary import signed_step
from mixrepro.metrics.linearity import linearity_errors
from mixrepro.metrics.robust import AutoPGD, robust
from mixrepro.networks.sngan import SNGAN
from mixrepro.networks.staged import Staged, in_mode, stage_table
from mixrepro.networks.zoo import build
from mixrepro.training import fit as fitting

SCALES = (1, 5, 50, 500)


class Scaled(nn.Module):
    "A network, its logits times c."
    def __init__(self, net, c): super().__init__(); self.net, self.c = net, c
    def forward(self, x): return self.c * self.net(x)


def perceptron(classes, seed, hidden=24, side=6):
    "Of one hidden layer, with logits of a few units."
    net = nn.Sequential(nn.Flatten(), nn.Linear(side * side, hidden), nn.Tanh(), nn.Linear(hidden, classes))
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(p.shape, generator=gen(seed)) * (.8 if p.dim() > 1 else .2))
    return net.eval()


def points(seed, n=7, side=6): return torch.rand(n, 1, side, side, generator=gen(seed))


def read(net, x):
    "What the network says, as labels: it is right at every image."
    with torch.no_grad(): return net(x).argmax(1)


def attacks(net, x, y):
    "Every attack on a classifier, by name, as a function of network and images."
    return {"fgsm": lambda: fgsm(net, x, y, .03), "pgd": lambda: pgd(net, x, y, gen(7), .05, .01, 8),
            "best": lambda: pgd(net, x, y, gen(7), .05, .03, 8, best=True),
            "trades": lambda: trades_attack(net, x, gen(7), .05, .01, 8),
            "table 3, ce": lambda: FGSM(.03)(net, x, y), "table 3, bce": lambda: FGSM(.03, criterion="bce")(net, x, y),
            "unbounded": lambda: Unbounded(60, .01)(net, x, y)}


# ---- the direction against 80 digits ------------------------------------------------------------------------------------

def exact(logits, logt, name="ce"):
    "The gradient with respect to the logits of one image, in 80 digits."
    with mp.workdps(30 + int((max(logits) - min(logits)) / 2)):
        e = [mp.exp(mp.mpf(z)) for z in logits]
        q, t = [v / mp.fsum(e) for v in e], [mp.exp(mp.mpf(v)) if v > -math.inf else mp.mpf(0) for v in logt]
        t = [v / mp.fsum(t) for v in t]
        if name == "ce": return [a - b for a, b in zip(q, t)]
        b = [(1 - u) * p / (1 - p) - u for p, u in zip(q, t)]
        return [x - p * mp.fsum(b) for x, p in zip(b, q)]


def along(way, true, at=1e-9):
    "Whether one is the other times a positive number."
    top = max(range(len(true)), key=lambda k: abs(true[k]))
    ratio = mp.mpf(way[top]) / true[top]
    least = max(mp.mpf(10) ** -300, abs(true[top]) * mp.mpf(10) ** -40)  # smaller than anything that a sum with it keeps
    return ratio > 0 and all(abs(mp.mpf(a) / ratio - b) <= at * abs(b) + least for a, b in zip(way, true))


ROWS = st.integers(2, 6).flatmap(lambda k: st.lists(st.floats(-4, 4), min_size=k, max_size=k))


@settings(max_examples=250, deadline=None)
@given(row=ROWS, c=st.sampled_from([.01, 1., 5., 50., 200.]), label=st.integers(0, 5), name=st.sampled_from(["ce", "bce"]),
       precision=st.sampled_from([(torch.float64, 1e-9), (torch.float32, 2e-7)]))
def test_the_direction_is_the_gradient_in_80_digits(row, c, label, name, precision):
    "Of logits in single precision too: what is rounded is the direction, and nothing on the way to it."
    z, y = (c * torch.tensor([row], dtype=torch.float64)).to(precision[0]), torch.tensor([label % len(row)])
    logt = log_target(y, z)
    way = PULLS[name](z, logt)
    assert along(way[0].tolist(), exact(z[0].tolist(), logt[0].tolist(), name), precision[1]) and way.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(row=ROWS, c=st.sampled_from([1., 5., 50., 200.]), move=st.floats(.001, .5), seed=st.integers(0, 99))
def test_the_direction_away_from_a_prediction_and_from_soft_labels_in_80_digits(row, c, move, seed):
    other = torch.tensor([row], dtype=torch.float64) + move * torch.randn(1, len(row), dtype=torch.float64, generator=gen(seed))
    z, logt = c * torch.tensor([row], dtype=torch.float64), (c * other).log_softmax(1)
    assert along(tilt(z, logt)[0].tolist(), exact(z[0].tolist(), logt[0].tolist()), 1e-6)


@pytest.mark.parametrize("name", ["ce", "bce"])
@pytest.mark.parametrize("margin", [1., 17., 103., 1e4, 1e30])
def test_no_margin_is_too_large(name, margin):
    z = torch.tensor([[0., margin], [margin, 0.]])
    for y in (torch.tensor([1, 0]), torch.tensor([0, 1])):
        way = PULLS[name](z, log_target(y, z)).sign()
        assert torch.equal(way, torch.tensor([[1., -1.], [-1., 1.]]) * (1 if y[0] else -1))


def test_the_rows_of_a_batch_keep_their_share_but_no_row_is_lost():
    z = torch.tensor([[0., 1.], [0., 11.], [0., 1000.]])
    way = tilt(z, log_target(torch.tensor([1, 1, 1]), z))[:, 0]
    q = z.double().softmax(1)[:, 0]
    assert way[1] / way[0] == pytest.approx(float(q[1] / q[0]), rel=1e-5) and way[2] == 2. ** -40
    assert torch.equal(tilt(z[2:], log_target(torch.tensor([1]), z[2:])), torch.tensor([[1., -1.]]))
    assert tilt(z[:0], torch.zeros(0, 2)).shape == (0, 2)


def test_one_broken_image_leaves_the_others_their_direction():
    z = torch.tensor([[0., 1.], [math.nan, 1.], [0., -math.inf]])
    way = tilt(z, log_target(torch.tensor([1, 1, 0]), z))
    assert way[0].sign().tolist() == [1, -1] and way[1].isnan().any() and way[2].isfinite().all()


@settings(max_examples=40, deadline=None)
@given(row=ROWS, c=st.sampled_from([.1, 1., 20., 2000.]), label=st.integers(0, 5))
def test_the_logarithm_of_the_loss_rises_with_it(row, c, label):
    z, y = c * torch.tensor([row], dtype=torch.float64), torch.tensor([label % len(row)])
    with mp.workdps(30 + int(c * 4)):
        e = [mp.exp(mp.mpf(v)) for v in z[0].tolist()]
        true = float(mp.log(mp.log(mp.fsum(e)) - mp.mpf(z[0, y].item()))) if len(row) > 1 else 0
    assert float(log_loss(z, log_target(y, z))) == pytest.approx(true, rel=1e-9, abs=1e-9)


# ---- whole attacks ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("seed", range(3))
def test_on_two_logits_no_factor_changes_an_image(seed):
    net, x = perceptron(2, seed), points(seed)
    y = read(net, x)
    first = {name: attack() for name, attack in attacks(net, x, y).items()}
    for c in SCALES[1:]:
        for name, attack in attacks(Scaled(net, c), x, y).items():
            assert (attack() != first[name]).float().mean() <= .002, (name, c)  # a gradient of about 0 may round to either sign
    if seed == 0:
        for name in first: assert name == "unbounded" or (first[name] != x).any()


def true_gradient(net, x, y, name, logp=None):
    "Of the loss of each image in double precision, in a unit of its own: by the log-odds, where nothing goes flat."
    net, x = copy.deepcopy(net).double(), x.detach().double().requires_grad_()
    z = net(x)
    if name == "trades":
        target, own = logp.double(), logp.argmax(1)
        g = torch.stack([torch.tensor([float(v / max(map(abs, row))) if any(row) else 0. for v in row])
                         for row in (exact(a, b) for a, b in zip(z.tolist(), target.tolist()))])
    else:
        g = torch.stack([torch.tensor([float(v / max(map(abs, row))) for v in row])
                         for row in (exact(a, b, "bce" if "bce" in name else "ce")
                                     for a, b in zip(z.tolist(), log_target(y, z).tolist()))])
    return torch.autograd.grad(z, x, g.double())[0]


def visited(net, x, attack):
    "The images at which an attack looks at a network, in order."
    seen = []
    hook = net.register_forward_pre_hook(lambda net, args: seen.append(args[0].detach().clone()))
    try: out = attack()
    finally: hook.remove()
    return seen, out


@pytest.mark.parametrize("name", ["fgsm", "pgd", "trades", "table 3, ce", "table 3, bce"])
@pytest.mark.parametrize("c", SCALES)
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_every_step_goes_the_way_of_double_precision(name, c, classes):
    net, x = Scaled(perceptron(classes, 3 + classes), c), points(5, 4)
    y = read(net, x)
    with torch.no_grad(): logp = net(x).double().log_softmax(1)
    for part in (slice(None), slice(1, 2)):  # together and alone
        xs, ys = x[part], y[part]
        seen, out = visited(net, xs, attacks(net, xs, ys)[name])
        walk = [*seen[name == "trades":], out][:3] if name in ("pgd", "trades") else [seen[0], out]
        for here, there in zip(walk, walk[1:]):
            true = true_gradient(net, here, ys, name, logp[part])
            clear = true.abs() > 2e-3 * true.flatten(1).abs().amax(1).view(-1, 1, 1, 1)
            free = (there - xs).abs() < (.05 if name in ("pgd", "trades") else 1) - 1e-4
            free &= (there > 0) & (there < 1)
            wrong = (clear & free & ((there - here).sign() != true.sign())).sum()
            assert wrong == 0 and (clear & free).sum() > 20 * len(xs), (wrong, (clear & free).sum())


@pytest.mark.parametrize("c", SCALES)
def test_the_best_point_is_the_highest_of_double_precision(c):
    net, x = Scaled(perceptron(4, 1), c), points(2)
    y = read(net, x)
    seen, best = visited(net, x, lambda: pgd(net, x, y, gen(3), .2, .1, 9, best=True))
    exact = copy.deepcopy(net).double()
    values = torch.stack([log_loss(exact(a.double()), log_target(y, exact(a.double()))) for a in seen]).detach()
    got = log_loss(exact(best.double()), log_target(y, exact(best.double()))).detach()
    assert torch.allclose(got, values.amax(0), rtol=1e-5, atol=1e-5) and (values[0] < got).all()


def test_soft_labels_that_are_hard_are_hard_labels():
    net, x = Scaled(perceptron(3, 0), 50), points(1)
    y = read(net, x)
    for best in (False, True):
        soft, hard = (pgd(net, x, t, gen(), .05, .01, 5, best=best) for t in (F.one_hot(y, 3).float(), y))
        assert torch.equal(soft, hard) and not torch.equal(hard, x)


@pytest.mark.parametrize("c", [1, 30, 300])
def test_where_images_see_each_other_the_sum_of_their_losses_is_climbed(c):
    "Batch norm with batch statistics: one image's pixels move the loss of all."
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(36, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 3)).train()
    net, x = Scaled(inner, 4. * c).train(), points(0, 6)
    y = read(copy.deepcopy(net), x)
    out = pgd(net, x, y, None, .03, .03, 1, "image", "train")
    twin, leaf = copy.deepcopy(net).double(), x.double().requires_grad_()
    z = twin(leaf)
    with mp.workdps(60):
        rows = [exact(a, b) for a, b in zip(z.tolist(), log_target(y, z).tolist())]
        top = max(abs(v) for row in rows for v in row)
        g = torch.tensor([[float(v / top) for v in row] for row in rows], dtype=torch.float64)
    true = torch.autograd.grad(z, leaf, g)[0]
    clear = (true.abs() > 1e-3 * true.flatten(1).abs().amax(1).view(-1, 1, 1, 1)) & (x > .03) & (x < .97)
    assert torch.equal((out - x).sign()[clear], true.sign()[clear].float()) and clear.float().mean() > .8


@pytest.fixture(scope="module")
def trained():
    "Small networks that have learnt the digits for a moment, and the images to try them on."
    train, test = load("digits", "train"), load("digits", "test")
    def learn(name, steps, batch, lr):
        net, rng = build(name, train.shape, train.k, gen()), gen(1)
        opt = torch.optim.Adam(net.parameters(), lr)
        for _ in range(steps):
            i = torch.randint(len(train), (batch,), generator=rng)
            opt.zero_grad(); F.cross_entropy(net(train.floats(i)), train.y[i]).backward(); opt.step()
        return net.eval()
    return dict(tiny=learn("tiny-cnn", 80, 48, 1e-2), small=learn("small-cnn", 16, 32, 5e-3)), test.subset(60)


def surer(net, c):
    "The same predictions, c times as sure."
    net = copy.deepcopy(net)
    with torch.no_grad(): net.head.weight *= c; net.head.bias *= c
    return net


@pytest.mark.parametrize("name, c", [("tiny", 30), ("small", 3), ("small", 30)])
def test_robust_accuracy_of_a_surer_network_is_that_of_double_precision(trained, name, c):
    nets, few = trained
    net, x, y = surer(nets[name], c), few.floats(), few.y
    def right(net, x): return (read(net, x) == y).sum().item()
    assert right(net, x) == right(nets[name], x) > 30
    twin = copy.deepcopy(net).double()
    def oracle(x, eps):
        "One step along the sign of the log-odds against the label."
        leaf = x.double().requires_grad_()
        (-log_odds(twin(leaf))[torch.arange(len(y)), y]).sum().backward()
        return (leaf + eps * leaf.grad.sign()).clamp(0, 1).detach()
    for eps in (.5 / 255, 2 / 255)[:1 + (name == "tiny")]:
        assert abs(right(net, fgsm(net, x, y, eps)) - right(twin, oracle(x, eps))) <= 1
        at = x
        for _ in range(4): at = torch.maximum(torch.minimum(oracle(at, eps / 2), (x + eps).double()), (x - eps).double())
        assert abs(right(net, pgd(net, x, y, None, eps, eps / 2, 4, "image")) - right(twin, at)) <= 1
    (got,) = attacked([net], few, {"a": FGSM(.5 / 255), "b": FGSM(.5 / 255, criterion="bce")})
    assert abs(60 * got["accuracy"]["a"] - right(twin, oracle(x, .5 / 255))) <= 1
    assert got["flat"] == {"a": 0, "b": 0}


def test_table_3_does_not_depend_on_the_batch(trained):
    nets, few = trained
    net, some = surer(nets["tiny"], 30), {"ce": FGSM(1 / 255), "bce": FGSM(.01, "normalised", "bce")}
    (whole,), (ones,) = attacked([net], few, some, batch=60), attacked([net], few, some, batch=7)
    for name in some: assert abs(whole["accuracy"][name] - ones["accuracy"][name]) < 1.01 / 60


def test_linearity_of_a_sure_network_is_that_of_double_precision(trained):
    nets, few = trained
    net, x, y = surer(nets["tiny"], 30), few.floats()[:20], few.y[:20]
    single = linearity_errors(net, x, y, gen(), (8 / 255,))
    double = linearity_errors(net.double(), x.double(), y, gen(), (8 / 255,))
    assert single.mean() > .95 * double.mean()


# ---- what cannot be attacked is said ------------------------------------------------------------------------------------

class Steps(nn.Module):
    "Right at every image, and flat around it, unless its first pixel is above one half."
    norm = nn.Identity()
    def forward(self, x):
        a = x.flatten(1)
        return 5 * F.one_hot((a[:, 1] > .5).long(), 2) + (a[:, :1] > .5) * a[:, :2]


def test_the_attack_says_at_how_many_images_the_gradient_is_0():
    x = torch.full((5, 1, 2, 2), .25)
    x[3:, 0, 0, 0] = .75
    y, net = torch.zeros(5, dtype=torch.long), Steps()
    for attack in (lambda: fgsm(net, x, y), lambda: pgd(net, x, y, gen(), .01, .01, 3, best=True),
                   lambda: trades_attack(net, x, gen(), .01, .01, 3)):
        with pytest.warns(UserWarning, match="the gradient is exactly 0 at 3 of 5 images: the attack stands still there"): attack()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fgsm(net, x[3:], y[3:])
    moved, still = FGSM(.01).move(net, x, y)
    assert still.tolist() == [True] * 3 + [False] * 2 and torch.equal(moved[:3], x[:3])
    fell, stuck = Unbounded(3, .01).walk(net, x, y)
    assert stuck.tolist() == [True] * 3 + [False] * 2 and (fell == 4).all()


def test_the_record_of_a_metric_counts_them(trained):
    nets, few = trained
    (one,), (two,) = attacked([nets["tiny"]], few), unbounded([nets["tiny"]], few, Unbounded(5))
    assert set(one) == {"accuracy", "attacks", "flat"} and one["flat"] == dict.fromkeys(one["attacks"], 0)
    assert set(two) == {"accuracy", "steps", "step", "space", "bounds", "flat"} and two["flat"] == 0
    dead = copy.deepcopy(nets["tiny"])
    with torch.no_grad(): dead.head.weight.zero_()
    (one,), (two,) = attacked([dead], few), unbounded([dead], few, Unbounded(5))
    right = (read(dead, few.floats()) == few.y).sum().item()
    assert set(one["flat"].values()) == {60} and two["flat"] == right


class Halved(nn.Module):
    "A network in half precision, as torch.autocast makes it; its logits may be converted behind it."
    def __init__(self, net, dtype, converted):
        super().__init__()
        self.net, self.norm, self.dtype, self.converted = net, net.norm, dtype, converted
    def forward(self, x):
        with torch.autocast("cpu", self.dtype): logits = self.net(x)
        return logits.float() if self.converted else logits


@pytest.mark.parametrize("converted", [False, True])
@pytest.mark.parametrize("attack", [FGSM(2 / 255), FGSM(2 / 255, criterion="bce"), Iterated(3)], ids=["fgsm", "bce", "iterated"])
def test_a_gradient_that_half_precision_loses_is_no_robustness(trained, attack, converted):
    "In float16 the share of a sure image's gradient in its batch is 0."
    nets, few = trained
    net, some = surer(nets["tiny"], 100), few.subset(40)
    (want,) = attacked([net], some, {"a": attack})
    with pytest.raises(ValueError, match="images is lost in the precision of the network beside those of less sure images, .* torch.bfloat16 in it, or"):
        attacked([Halved(net, torch.float16, converted)], some, {"a": attack})
    for (got,) in (attacked([Halved(net, torch.bfloat16, converted)], some, {"a": attack}), attacked([Halved(net, torch.float16, converted)], some, {"a": attack}, batch=1)):
        assert abs(got["accuracy"]["a"] - want["accuracy"]["a"]) <= 3 / 40 and got["flat"] == {"a": 0}
    with pytest.raises(ValueError, match="lost in the precision"): unbounded([Halved(net, torch.float16, converted)], some, Unbounded(2))


@pytest.mark.parametrize("attack", [FGSM(2 / 255), FGSM(2 / 255, criterion="bce")], ids=["fgsm", "bce"])
def test_a_gradient_that_half_precision_loses_in_part_is_no_robustness_either(trained, attack):
    "No image stands still, but at some the smaller numbers of the gradient have become 0: these pixels do."
    nets, few = trained
    net = surer(nets["tiny"], 6)
    half = Halved(net, torch.float16, True)
    def grad(n, x, y): return slope(n, x, lambda z: tilt(z, log_target(y, z)))[1]
    some = few.subset((~flat(grad(half, few.floats(), few.y))).nonzero()[:, 0])
    x, y = some.floats(), some.y
    lost = (grad(half, x, y) == 0) & (grad(net, x, y) != 0)
    assert not flat(grad(half, x, y)).any() and lost.flatten(1).float().mean(1).max() > .05
    with pytest.raises(ValueError, match="images is lost in the precision of the network beside those of less sure images"):
        attacked([half], some, {"a": attack})
    (want,), (ones,), (rough,) = (attacked([n], some, {"a": attack}, batch=b) for n, b in ((net, 500), (half, 1), (Halved(net, torch.bfloat16, True), 500)))
    for got in (ones, rough): assert abs(got["accuracy"]["a"] - want["accuracy"]["a"]) <= 2 / len(some)


def test_no_attack_in_float16_autocast(trained):
    nets, few = trained
    x, y = few.floats()[:6], few.y[:6]
    for attack in (lambda: fgsm(nets["tiny"], x, y), lambda: pgd(nets["tiny"], x, y, gen()), lambda: trades_attack(nets["tiny"], x, gen())):
        with torch.autocast("cpu", torch.float16), pytest.raises(TypeError, match="an attack looks at gradients of single images, which are 0 in torch.float16"): attack()
        with torch.autocast("cpu", torch.bfloat16): assert (attack() != x).any()


@pytest.mark.parametrize("converted", [False, True])
def test_auto_pgd_by_cross_entropy_alone_is_refused_too(trained, converted):
    "By the margin, whose gradient has no scale to share, it is right in float16."
    nets, few = trained
    net, some, ball = surer(nets["tiny"], 100), few.subset(40), {"2/255": 2 / 255}
    halved = {dtype: Halved(net, dtype, converted) for dtype in (torch.float16, torch.bfloat16)}
    def left(n, *losses): return robust([n], some, AutoPGD(4, losses=losses), ball)[0]["accuracy"]["2/255"]
    with pytest.raises(ValueError, match="lost in the precision of the network .* pass for robust"): left(halved[torch.float16], "ce")
    for n, losses in ((halved[torch.bfloat16], ["ce"]), (halved[torch.float16], ["ce", "margin"])): assert abs(left(n, *losses) - left(net, *losses)) <= 3 / 40


@pytest.mark.parametrize("name", ["puzzlemix", "at", "iat", "trades", "adv-mmd-vae", "signed step"])
def test_no_gradient_of_single_images_in_float16(trained, name):
    "In bfloat16 the range is that of single precision."
    nets, few = trained
    x, y, net = few.floats()[:6], few.y[:6], build("vae-small", few.shape, None, gen()) if name == "adv-mmd-vae" else nets["tiny"]
    def ask():
        if name == "signed step": return signed_step(lambda z: z, torch.rand(1, 1, 6, 4, generator=gen()), y[None, None] % 4, .1)
        return method(name, **({"blocks": (2, 4)} if name == "puzzlemix" else {"steps": 1})).loss(copy.deepcopy(net), x, y, gen())
    with torch.autocast("cpu", torch.bfloat16): assert ask().isfinite().all()
    with torch.autocast("cpu", torch.float16), pytest.raises(TypeError, match="which are 0 in torch.float16 where the network is sure: take torch.bfloat16"): ask()


@pytest.mark.parametrize("converted", [False, True])
def test_a_saliency_that_half_precision_loses_is_no_mask(trained, converted):
    "A network may open autocast itself, as accelerate has it do."
    nets, few = trained
    net, some, way = surer(nets["tiny"], 100), few.subset(40), PuzzleMix(blocks=(2, 4))
    x, y = some.floats(), read(net, some.floats())
    with pytest.raises(ValueError, match="lost in the precision of the network .* they have no saliency: take torch.bfloat16"):
        way.draw(Halved(net, torch.float16, converted), x, y, gen())
    with pytest.raises(TypeError, match="images of torch.float32"): way.draw(net, x.half(), y, gen())
    assert way.draw(Halved(net, torch.bfloat16, converted), x, y, gen()).mask.isfinite().all()


@pytest.mark.filterwarnings("ignore:the gradient is exactly 0")
def test_a_loss_that_half_precision_holds_at_0_is_not_linear(trained):
    nets, few = trained
    net, x, y = surer(nets["tiny"], 100), few.floats()[:40], few.y[:40]
    with pytest.raises(ValueError, match="lost in the precision of the network"): linearity_errors(Halved(net, torch.float16, True), x, y, gen(), (2 / 255,), 5)
    want, got = (linearity_errors(n, x, y, gen(), (2 / 255,), 5).mean() for n in (net, Halved(net, torch.bfloat16, True)))
    assert abs(got / want - 1) < .1


@pytest.mark.parametrize("bad", [-100, -1, 10])
def test_labels_that_are_no_classes_are_refused(trained, bad):
    nets, few = trained
    net, x, y = nets["tiny"], few.floats()[:4], few.y[:4].clone()
    y[1] = bad
    method = dict(steps=1)
    for attack in (lambda: fgsm(net, x, y), lambda: pgd(net, x, y, gen(), steps=1), lambda: cross_entropy(net, x, y),
                   lambda: pgd(net, x, y, gen(), steps=1, best=True), lambda: FGSM()(net, x, y),
                   lambda: FGSM(criterion="bce")(net, x, y), lambda: Unbounded(1)(net, x, y),
                   lambda: AT(**method).loss(net, x, y, gen()), lambda: IAT(**method).loss(net, x, y, gen()),
                   lambda: TRADES(**method).loss(net, x, y, gen()), lambda: linearity_errors(net, x, y, gen(), (.01,), 1)):
        with pytest.raises(ValueError, match="labels must be class numbers.*leave out examples that have no class"): attack()


@pytest.mark.parametrize("rows", [(1,), (0, 1, 2, 3)])
def test_a_diverged_network_is_refused(trained, rows):
    nets, few = trained
    class Broken(nn.Module):
        norm = nets["tiny"].norm
        def forward(self, x):
            z = nets["tiny"](x)
            return z if len(x) < 4 else z.index_fill(0, torch.tensor(rows), math.nan)
    for measure in (attacked, lambda nets, test: unbounded(nets, test, Unbounded(2))):
        with pytest.raises(ValueError, match=f"{len(rows)} of 4 rows of logits hold NaN"): measure([Broken()], few.subset(4))


# ---- binary cross-entropy -----------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(k=st.integers(2, 12), margin=st.floats(0, 120), top=st.integers(0, 11), label=st.integers(0, 11), share=st.floats(0, 1),
       seed=st.integers(0, 10 ** 6))
def test_bce_in_single_precision_is_that_in_double(k, margin, top, label, share, seed):
    z = torch.randn(4, k, generator=gen(seed))
    z[:, top % k] += margin
    hard = F.one_hot(torch.full((4,), label % k), k).float()
    for t in (hard, share * hard + (1 - share) * hard.roll(1, 1)):
        one, two = z.clone().requires_grad_(), z.double().requires_grad_()
        a, b = bce_softmax(one, t), bce_softmax(two, t.double())
        a.backward(); b.backward()
        assert abs(a.item() - b.item()) <= 1e-5 * abs(b.item()) + 1e-37
        assert (one.grad - two.grad).abs().max() <= 1e-4 * two.grad.abs().max() + 1e-37


@settings(max_examples=40, deadline=None)
@given(row=ROWS, c=st.sampled_from([.1, 1., 5.]), label=st.integers(0, 5), share=st.floats(0, 1))
def test_bce_in_double_precision_is_the_formula(row, c, label, share):
    z, y = c * torch.tensor([row], dtype=torch.float64), torch.tensor([label % len(row)])
    t = share * one_hot(y, z) + (1 - share) / len(row)
    leaf = z.clone().requires_grad_()
    loss = bce_softmax(leaf, t)
    loss.backward()
    with mp.workdps(60):
        e = [mp.exp(mp.mpf(v)) for v in z[0].tolist()]
        q, u = [v / mp.fsum(e) for v in e], [mp.mpf(v) for v in t[0].tolist()]
        value = -mp.fsum(b * mp.log(p) + (1 - b) * mp.log(1 - p) for p, b in zip(q, u)) / len(row)
        b = [(1 - v) * p / (1 - p) - v for p, v in zip(q, u)]
        grad = [(x - p * mp.fsum(b)) / len(row) for x, p in zip(b, q)]
    assert loss.item() == pytest.approx(float(value), rel=1e-12)
    assert leaf.grad[0].tolist() == pytest.approx([float(g) for g in grad], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("spread", [.1, 1.])
def test_for_ordinary_logits_bce_is_what_it_was(spread):
    z, y = spread * torch.randn(200, 10, generator=gen()), torch.arange(200) % 10
    before = F.binary_cross_entropy(z.softmax(1), F.one_hot(y, 10).float())
    assert bce_softmax(z, F.one_hot(y, 10).float()).item() == pytest.approx(before.item(), rel=3e-7)


def test_a_class_that_cannot_be_has_its_share_of_the_loss():
    z = torch.tensor([[0., 1., -math.inf]], requires_grad=True)
    loss = bce_softmax(z, torch.tensor([[0., 1., 0.]]))
    loss.backward()
    assert loss.item() == pytest.approx(2 / 3 * math.log1p(math.exp(-1))) and z.grad[0, :2].isfinite().all()


# ---- each module keeps its flag -----------------------------------------------------------------------------------------

def half_frozen():
    "A network in training mode whose batch norm is frozen."
    torch.manual_seed(0)
    net = Staged((1, 4, 4), [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())], nn.Linear(4, 3)).train()
    net.stages[0][1].eval()
    return net


def unmoved(net, act):
    flags, norm = [m.training for m in net.modules()], net.stages[0][1]
    before = {k: v.clone() for k, v in norm.named_buffers()}
    act()
    assert [m.training for m in net.modules()] == flags and len(set(flags)) == 2
    return all(torch.equal(v, before[k]) for k, v in norm.named_buffers())


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_frozen_layer_is_not_trained_by_an_attack(mode):
    net, x, y = half_frozen(), torch.rand(6, 1, 4, 4, generator=gen()), torch.arange(6) % 3
    for act in (lambda: pgd(net, x, y, gen(), steps=2, mode=mode), lambda: fgsm(net, x, y, mode=mode),
                lambda: trades_attack(net, x, gen(), steps=2, mode=mode), lambda: stage_table(net),
                *(lambda m=m: m(steps=2, mode=mode).loss(net, x, y, gen()) for m in (AT, IAT, TRADES))):
        assert unmoved(net, act)
    net.stages[0][1].train()  # and what is not frozen is trained
    before = net.stages[0][1].running_mean.clone()
    pgd(net, x, y, gen(), steps=2, mode="train")
    assert not torch.equal(net.stages[0][1].running_mean, before)


def test_sampling_and_training_leave_a_frozen_layer_frozen():
    gan = SNGAN((1, 32, 32), width=8, plain=1, enlarge=4).train()
    norm = next(m for m in gan.G.modules() if isinstance(m, nn.BatchNorm2d)).eval()
    flags = [m.training for m in gan.modules()]
    gan.sample(3, gen())
    assert [m.training for m in gan.modules()] == flags and not norm.training
    with pytest.raises(ValueError): gan.sample(0, gen())
    assert [m.training for m in gan.modules()] == flags
    net = half_frozen()
    before = net.stages[0][1].running_mean.clone()
    fitting.fit(net, AT(steps=1), torch.rand(8, 1, 4, 4, generator=gen()), torch.arange(8) % 3, gen(), 2, 4)
    assert torch.equal(net.stages[0][1].running_mean, before)


def test_an_error_puts_every_flag_back():
    net = half_frozen()
    flags = [m.training for m in net.modules()]
    for mode in ("train", "eval"):
        with pytest.raises(KeyError), in_mode(net, mode): net.stages[0][0].train(mode == "eval"); raise KeyError
        assert [m.training for m in net.modules()] == flags
