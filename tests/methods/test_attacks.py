"Attacks: against optima in closed form and plain NumPy climbs with gradients derived by hand, and the properties that every user of them relies on."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import seeded as gen
from mixrepro.methods.attacks import STARTS, ascend, cross_entropy, divergence, fgsm, in_mode, pgd, slope, trades_attack
from mixrepro.networks.staged import Dropout
from mixrepro.networks.zoo import build


@pytest.fixture
def net():
    "A small network with batch norm whose running statistics are not the initial ones."
    net = build("tiny-cnn", (3, 16, 16), 5, gen(3), mean=(.5, .4, .3), std=(.2, .2, .3))
    with torch.no_grad():
        for k in range(3): net(torch.rand(32, 3, 16, 16, generator=gen(k)))
    return net.eval()


@pytest.fixture
def x(): return torch.rand(6, 3, 16, 16, generator=gen(1))


@pytest.mark.parametrize("pixel", [1 + 2e-7, -1e-8, 1.0005])
def test_what_resizing_leaves_outside_of_the_range_is_told_from_normalised_images(net, x, pixel):
    x[0, 0, 0, 0] = pixel
    off = max(pixel - 1, -pixel)
    with pytest.raises(ValueError, match=r"got some that are (\S+) outside: cut rounding off with x.clamp\(0, 1\)") as e: fgsm(net, x, torch.zeros(6, dtype=torch.int64))
    assert float(str(e.value).split("that are ")[1].split()[0]) == pytest.approx(off, rel=.5)
    assert fgsm(net, x.clamp(0, 1), torch.zeros(6, dtype=torch.int64)).shape == x.shape


@pytest.fixture
def y(): return torch.randint(5, (6,), generator=gen(2))


# ---- oracles ----------------------------------------------------------------------------------------------------------------

def linear(classes, shape, seed):
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes)).double()
    with torch.no_grad():
        for p in net.parameters(): p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=gen(seed)))
    return net


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(.001, 1.), parts=st.integers(1, 9), start=st.sampled_from(sorted(STARTS)))
def test_on_two_linear_classes_pgd_and_fgsm_reach_the_optimum(seed, eps, parts, start):
    net, x, y = linear(2, (1, 4, 4), seed), torch.rand(5, 1, 4, 4, dtype=torch.float64, generator=gen(seed)), torch.tensor([0, 1, 0, 1, 1])
    w = net[1].weight.detach()
    best = (x + eps * (w[1 - y] - w[y]).sign().view_as(x)).clamp(0, 1)
    assert torch.allclose(pgd(net, x, y, gen(seed), eps, eps / parts, 2 * parts + 1, start), best, atol=1e-12)
    assert torch.allclose(fgsm(net, x, y, eps), best, atol=1e-12)


class Perceptron:
    "tanh perceptron in NumPy with gradients derived by hand, and the same as a torch module."
    def __init__(self, d, h, k, seed):
        r = np.random.default_rng(seed)
        self.A, self.a, self.B, self.b = r.normal(size=(h, d)), r.normal(size=h), r.normal(size=(k, h)), r.normal(size=k)
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(d, h), nn.Tanh(), nn.Linear(h, k)).double()
        with torch.no_grad():
            for p, v in zip(self.net.parameters(), (self.A, self.a, self.B, self.b)): p.copy_(torch.tensor(v))

    def probabilities(self, x):
        h = np.tanh(self.A @ x + self.a)
        o = self.B @ h + self.b
        e = np.exp(o - o.max())
        return h, e / e.sum()

    def gradient(self, x, target):  # of -sum(target * log p(x)), which is that of the KL too: its other part does not depend on x
        h, p = self.probabilities(x)
        return self.A.T @ ((self.B.T @ (p - target)) * (1 - h ** 2))


def climb(model, x, start, target, eps, step, steps):
    at = np.minimum(np.maximum(start, np.maximum(x - eps, 0)), np.minimum(x + eps, 1))
    for _ in range(steps):
        at = at + step * np.sign(model.gradient(at, target))
        at = np.minimum(np.maximum(at, x - eps), x + eps)
        at = np.minimum(np.maximum(at, 0), 1)
    return at


@pytest.mark.parametrize("seed, eps, step, steps", [(0, .1, .03, 7), (1, .5, .05, 20), (2, .02, .02, 1), (3, 8 / 255, 2 / 255, 10)])
def test_pgd_is_the_plain_loop_with_a_gradient_by_hand(seed, eps, step, steps):
    model, x = Perceptron(12, 7, 3, seed), torch.rand(4, 1, 3, 4, dtype=torch.float64, generator=gen(seed))
    y = torch.tensor([0, 1, 2, 1])
    noise = eps * (2 * torch.rand(x.shape, dtype=torch.float64, generator=gen(seed)) - 1)
    for start, first in {"uniform": x + noise, "image": x}.items():
        ours = pgd(model.net, x, y, gen(seed), eps, step, steps, start)
        for i in range(4):
            theirs = climb(model, x[i].flatten().numpy(), first[i].flatten().numpy(), np.eye(3)[y[i]], eps, step, steps)
            assert np.abs(ours[i].flatten().numpy() - theirs).max() < 1e-12


@pytest.mark.parametrize("seed", range(3))
def test_the_inner_loop_of_trades_is_the_plain_loop_with_a_gradient_by_hand(seed):
    model, x = Perceptron(12, 7, 3, seed), torch.rand(4, 1, 3, 4, dtype=torch.float64, generator=gen(seed))
    first = x + .001 * torch.randn(x.shape, dtype=torch.float64, generator=gen(seed + 9))
    ours = trades_attack(model.net, x, gen(seed + 9), .2, .03, 8)
    for i in range(4):
        image = x[i].flatten().numpy()
        theirs = climb(model, image, first[i].flatten().numpy(), model.probabilities(image)[1], .2, .03, 8)
        assert np.abs(ours[i].flatten().numpy() - theirs).max() < 1e-12


def test_the_gradient_of_the_divergence_against_finite_differences_and_by_hand():
    model, x = Perceptron(6, 5, 4, 0), torch.rand(3, 6, dtype=torch.float64, generator=gen())
    logp = model.net(torch.rand(3, 6, dtype=torch.float64, generator=gen(1))).log_softmax(1).detach()
    assert torch.autograd.gradcheck(lambda x: divergence(model.net, x, logp), x.clone().requires_grad_())
    value, grad = slope(lambda x: divergence(model.net, x, logp), x)
    hand = np.stack([model.gradient(a.numpy(), p.exp().numpy()) for a, p in zip(x, logp)])
    assert np.abs(grad.numpy() - hand).max() < 1e-12
    p, q = logp.exp(), model.net(x).softmax(1).detach()
    assert torch.allclose(value, (p * (p / q).log()).sum(1))


def test_the_divergence_is_flat_at_the_image_so_that_trades_needs_its_noise():
    model, x = Perceptron(6, 5, 4, 0), torch.rand(3, 1, 2, 3, dtype=torch.float64, generator=gen())
    logp = model.net(x).log_softmax(1).detach()
    assert slope(lambda x: divergence(model.net, x, logp), x)[1].abs().max() < 1e-14
    assert divergence(model.net, trades_attack(model.net, x, gen(), .1, .02, 8), logp).min() > 1e-3


@pytest.mark.parametrize("soft", [False, True])
def test_cross_entropy_is_the_log_probability_of_the_label(net, x, y, soft):
    with torch.no_grad():
        expected = -net(x).log_softmax(1)[torch.arange(6), y]
        assert torch.allclose(cross_entropy(net, x, F.one_hot(y, 5).float() if soft else y), expected, atol=1e-6)


def test_the_optimum_of_a_quadratic_inside_the_ball():
    "A peak that the ball holds is found to within a step, for every image its own."
    x = torch.rand(5, 2, 3, dtype=torch.float64, generator=gen())
    peak = (x + .1 * (2 * torch.rand(x.shape, dtype=torch.float64, generator=gen(1)) - 1)).clamp(0, 1)
    top = ascend(lambda x: -(x - peak).pow(2).flatten(1).sum(1), x, .2, .004, 100, gen(2))
    assert (top - peak).abs().max() < .004 + 1e-12


# ---- the ball and the range -------------------------------------------------------------------------------------------------

@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), eps=st.floats(1e-4, 1.), step=st.floats(1e-4, 1.), start=st.sampled_from(sorted(STARTS)), best=st.booleans(),
       shape=st.lists(st.integers(1, 4), min_size=1, max_size=4), edge=st.booleans())
def test_twenty_steps_never_leave_the_ball_or_the_range(seed, eps, step, start, best, shape, edge):
    x = torch.rand(shape, generator=gen(seed))
    if edge: x = x.round()
    w, seen = torch.randn(shape, generator=gen(seed + 1)), []
    def wavy(x): seen.append(x.detach()); return (torch.sin(40 * x) * w).reshape(len(x), -1).sum(1)
    out = ascend(wavy, x, eps, step, 20, gen(seed), start, best=best)
    for at in (*seen, out):
        assert at.shape == x.shape and (at - x).abs().max() <= eps + 1e-6 and at.min() >= 0 and at.max() <= 1
    assert len(seen) == 20 + best


def test_without_ball_and_bounds_every_step_counts_in_full():
    x, w = torch.rand(3, 5, generator=gen()), torch.tensor([1., -1., 1., -1., 1.])
    far = ascend(lambda x: (w * x).sum(1), x, math.inf, .01, 200, start="image", bounds=None)
    assert torch.allclose(far, x + 2 * w, atol=1e-5)
    assert torch.equal(ascend(lambda x: (w * x).sum(1), x, math.inf, .01, 200, start="image"), (w.expand(3, 5) + 1) / 2)


def test_other_bounds_hold_as_well():
    x = 4 * torch.rand(3, 5, generator=gen()) - 2
    assert torch.equal(ascend(lambda x: x.sum(1), x, 4., 1., 9, start="image", bounds=(-2., 2.)), torch.full((3, 5), 2.))


# ---- what an attack does, and to whom ---------------------------------------------------------------------------------------

def attacks(net, x, y, **kw):
    "Every attack on a classifier, at a radius where a random network gives way."
    return {"fgsm": lambda: fgsm(net, x, y, .05, **kw), "pgd": lambda: pgd(net, x, y, gen(7), .05, .01, 8, **kw),
            "best": lambda: pgd(net, x, y, gen(7), .05, .01, 8, best=True, **kw), "trades": lambda: trades_attack(net, x, gen(7), .05, .01, 8, **kw)}


def corner(x): return (x + .05 * torch.randn(x.shape, generator=gen(11)).sign()).clamp(0, 1)  # a random one of the ball


def test_the_attack_raises_what_it_climbs_far_more_than_chance(net, x, y):
    with torch.no_grad():
        logp, loss = net(x).log_softmax(1), lambda x: cross_entropy(net, x, y)
        for name, attack in attacks(net, x, y).items():
            if name == "trades": assert (divergence(net, attack(), logp) > 5 * divergence(net, corner(x), logp)).all()
            else: assert (loss(attack()) - loss(x) > 5 * (loss(corner(x)) - loss(x))).all() and (loss(attack()) > loss(x) + .02).all()
        assert loss(attacks(net, x, y)["pgd"]()).mean() > loss(attacks(net, x, y)["fgsm"]()).mean()


def test_the_best_point_is_the_highest_one_seen_for_each_image(net, x, y):
    seen = []
    def recorded(net, x, y): seen.append((x.detach(), cross_entropy(net, x, y).detach())); return cross_entropy(net, x, y)
    best = pgd(net, x, y, gen(), .2, .15, 9, objective=recorded, best=True)
    points, values = (torch.stack(t) for t in zip(*seen))
    assert len(seen) == 10 and torch.equal(best, points[values.argmax(0), torch.arange(6)])
    assert len(set(values.argmax(0).tolist())) > 1  # or the last point would have done


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", ["fgsm", "pgd", "best", "trades"])
def test_parameters_and_images_are_left_alone(net, x, y, name, mode):
    first, image = next(net.parameters()), x.clone()
    first.grad = torch.full_like(first, 3.)
    weights = {k: v.clone() for k, v in net.named_parameters()}
    out = attacks(net, x, y, mode=mode)[name]()
    assert torch.equal(first.grad, torch.full_like(first, 3.)) and [p for p in net.parameters() if p.grad is not None] == [first]
    assert all(torch.equal(v, weights[k]) and v.requires_grad for k, v in net.named_parameters())
    assert torch.equal(x, image) and x.grad is None and not out.requires_grad and out.grad_fn is None


@pytest.mark.parametrize("name", ["fgsm", "pgd", "best", "trades"])
def test_running_statistics_move_in_training_mode_only(net, x, y, name):
    before = {k: v.clone() for k, v in net.named_buffers()}
    net.train()
    attacks(net, x, y, mode="eval")[name]()
    assert all(torch.equal(v, before[k]) for k, v in net.named_buffers()) and all(m.training for m in net.modules())
    net.eval()
    attacks(net, x, y, mode="train")[name]()
    assert any(not torch.equal(v, before[k]) for k, v in net.named_buffers()) and not any(m.training for m in net.modules())


def test_every_module_gets_its_own_flag_back_even_after_an_error(net, x, y):
    net.train(); net.stages[1].eval()
    flags = [m.training for m in net.modules()]
    def broken(net, x, y): assert not any(m.training for m in net.modules()); raise KeyError("broken")
    with pytest.raises(KeyError): pgd(net, x, y, gen(), objective=broken)
    assert [m.training for m in net.modules()] == flags and len(set(flags)) == 2
    with in_mode(net, "train"): assert [m.training for m in net.modules()] == flags  # what is frozen stays
    assert [m.training for m in net.modules()] == flags


def test_a_plain_function_can_be_attacked(x, y):
    w = .1 * torch.randn(3 * 16 * 16, 5, generator=gen())
    f = lambda x: x.flatten(1) @ w
    assert (cross_entropy(f, pgd(f, x, y, gen()), y) > cross_entropy(f, x, y)).all()


def test_the_same_generator_gives_the_same_images_and_nothing_else_is_drawn_from(net, x, y):
    before = torch.random.get_rng_state()
    for name, attack in attacks(net, x, y).items(): assert torch.equal(attack(), attack()), name
    assert not torch.equal(pgd(net, x, y, gen(1), steps=2), pgd(net, x, y, gen(2), steps=2))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_each_pixel_starts_at_its_own_place():
    start = STARTS["uniform"](torch.zeros(400, 3, 5, 5), .1, gen())
    flat = start.flatten(1)
    assert abs(start.mean()) < .002 and abs(start.std() - .1 / math.sqrt(3)) < .001 and start.abs().max() <= .1
    images, pixels = torch.corrcoef(flat), torch.corrcoef(flat.T)
    assert abs(images[~torch.eye(400, dtype=bool)].mean()) < .005 and pixels[~torch.eye(75, dtype=bool)].abs().max() < .25


def test_an_image_is_attacked_as_if_it_were_alone(net, x, y):
    for attack in (lambda x, y: pgd(net, x, y, None, .05, .01, 8, "image"), lambda x, y: fgsm(net, x, y, .05)):
        many = attack(x, y)
        alone = torch.cat([attack(x[i:i + 1], y[i:i + 1]) for i in range(6)])
        assert (many - alone).abs().gt(1e-6).float().mean() < .002  # a gradient of about 0 may round to either sign
        others = torch.cat([x[:1], torch.rand(5, 3, 16, 16, generator=gen(8))])
        assert (attack(others, y)[0] - many[0]).abs().gt(1e-6).float().mean() < .002


def test_an_objective_for_the_whole_batch_climbs_the_sum():
    x, w = torch.rand(4, 3, generator=gen()), torch.randn(4, 3, generator=gen(1))
    mean = ascend(lambda x: (w * x).mean(), x, .1, .05, 3, gen(2))
    assert torch.equal(mean, ascend(lambda x: (w * x).sum(1), x, .1, .05, 3, gen(2)))


def test_gradients_may_be_switched_off_outside(net, x, y):
    with torch.no_grad(): off = [attack() for attack in attacks(net, x, y).values()]
    assert all(torch.equal(a, attack()) for a, attack in zip(off, attacks(net, x, y).values()))


def test_frozen_networks_can_be_attacked(net, x, y):
    free = pgd(net, x, y, gen())
    assert torch.equal(pgd(net.requires_grad_(False), x, y, gen()), free)


def test_memory_format_does_not_matter(net, x, y):
    a, b = (pgd(net, x.to(memory_format=f), y, gen(), .05, .01, 4) for f in (torch.contiguous_format, torch.channels_last))
    assert (a - b).abs().gt(1e-6).float().mean() < .005


def test_dropout_is_off_in_evaluation_mode_and_draws_from_its_own_generator_in_training_mode(x, y):
    net = nn.Sequential(nn.Flatten(), Dropout(.5), nn.Linear(3 * 16 * 16, 5))
    net[1].rng = gen(5)
    state = net[1].rng.get_state()
    pgd(net, x, y, gen(), mode="eval")
    assert torch.equal(net[1].rng.get_state(), state)
    pgd(net, x, y, gen(), mode="train")
    assert not torch.equal(net[1].rng.get_state(), state)


# ---- precision --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["fgsm", "pgd", "best", "trades"])
def test_under_autocast_the_arithmetic_stays_in_single_precision(net, x, y, name):
    with torch.autocast("cpu", torch.bfloat16):
        assert net(x).dtype == torch.bfloat16
        out = attacks(net, x, y)[name]()
    assert out.dtype == torch.float32 and (out - x).abs().max() <= .05 + 1e-6 and out.min() >= 0 and out.max() <= 1
    assert len(out[out > .5].unique()) > 1000  # bfloat16 has 128 numbers between .5 and 1
    with torch.no_grad():
        logp = net(x).log_softmax(1)
        if name == "trades": assert divergence(net, out, logp).mean() > 5 * divergence(net, corner(x), logp).mean()
        else: assert (cross_entropy(net, out, y) - cross_entropy(net, x, y)).mean() > .04


@pytest.mark.parametrize("name", ["fgsm", "pgd", "best", "trades"])
def test_under_autocast_the_attack_leaves_no_weights_without_history_in_the_cache(net, x, y, name):
    with torch.autocast("cpu", torch.bfloat16):
        attacks(net, x, y)[name]()
        F.cross_entropy(net(x), y).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("dtype, kept", [(torch.float64, torch.float64), (torch.float32, torch.float32), (torch.bfloat16, torch.float32),
                                         (torch.float16, torch.float32)])
def test_images_are_attacked_in_single_precision_or_better(dtype, kept):
    out = ascend(lambda x: x.sum(1), torch.full((2, 3), .5, dtype=dtype), .001, .001, 1, gen(), "image")
    assert out.dtype == kept and torch.allclose(out, torch.tensor(.501, dtype=kept))


# ---- refusals ---------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change, error, message", [
    (dict(eps=0), ValueError, "the radius eps must be above 0, in units of .0, 1., got 0: for no attack use the method 'erm'"),
    (dict(eps=-8 / 255), ValueError, "the radius eps must be above 0"), (dict(eps=float("nan")), ValueError, "the radius eps must be above 0"),
    (dict(step=0), ValueError, "the step must be above 0 and finite"), (dict(step=-.1), ValueError, "the step must be above 0 and finite"),
    (dict(step=math.inf), ValueError, "the step must be above 0 and finite"),
    (dict(steps=0), ValueError, "the number of steps must be an integer from 1, got 0"), (dict(steps=-1), ValueError, "from 1, got -1"),
    (dict(steps=2.5), ValueError, "from 1, got 2.5"), (dict(steps=True), ValueError, "from 1, got True"),
    (dict(x=torch.full((2, 3), 1.01)), ValueError, r"needs images in \[0.0, 1.0\], got 1.01 to 1.01: normalise inside the network"),
    (dict(x=torch.full((2, 3), float("nan"))), ValueError, r"needs images in \[0.0, 1.0\], got nan"),
    (dict(x=torch.zeros(2, 3, dtype=torch.uint8)), TypeError, "needs float images in .*, got torch.uint8: divide uint8 images by 255"),
    (dict(rng=None), ValueError, "the start 'uniform' is random: hand in a torch.Generator as rng"),
    (dict(eps=math.inf), ValueError, "a uniform start needs a finite radius"),
    (dict(start="nomral"), ValueError, "unknown start 'nomral': did you mean 'normal'"),
    (dict(objective=lambda x: x.detach().sum(1)), ValueError, "the objective has no gradient at the images"),
    (dict(objective=lambda x: x.mean(), best=True), ValueError, r"the objective must give one value each \(2,\), got \(\)"),
])
def test_bad_input_is_refused_in_a_sentence(change, error, message):
    good = dict(objective=lambda x: x.sum(1), x=torch.full((2, 3), .5), eps=.1, step=.05, steps=2, rng=gen())
    assert ascend(**good).shape == (2, 3)
    with pytest.raises(error, match=message): ascend(**good | change)


def test_an_unknown_mode_is_refused(net, x, y):
    with pytest.raises(ValueError, match="unknown mode 'evla': did you mean 'eval'"): pgd(net, x, y, gen(), mode="evla")


def test_an_empty_batch_stays_empty(net):
    assert pgd(nn.Flatten(), torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64), gen()).shape == (0, 1, 2, 2)
