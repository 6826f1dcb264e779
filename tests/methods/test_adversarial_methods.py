"AT, TRADES and IAT: the losses recomputed with a climb written here, what gradients flow and what does not, draws, precision, and runs."
import copy
import warnings

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from helpers import seeded as gen
from mixrepro.methods.at import AT
from mixrepro.methods.iat import IAT
from mixrepro.methods.trades import TRADES, trades_loss
from mixrepro.methods.vicinal import draw_lambda
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, history

KINDS = {"at": AT, "trades": TRADES, "iat": IAT}


@pytest.fixture
def net():
    "In double precision and evaluation mode, with running statistics that are not the initial ones."
    net = build("tiny-cnn", (3, 16, 16), 5, gen(3), mean=(.5, .4, .3), std=(.2, .2, .3))
    with torch.no_grad():
        for k in range(3): net(torch.rand(32, 3, 16, 16, generator=gen(k)))
    return net.double().eval()


@pytest.fixture
def x(): return torch.rand(6, 3, 16, 16, dtype=torch.float64, generator=gen(1))


@pytest.fixture
def y(): return torch.randint(5, (6,), generator=gen(2))


def climb(f, x, start, eps, step, steps):
    "The plain loop, pixel by pixel the same rule, written apart from the package."
    at = start
    for _ in range(steps):
        at = at.clone().requires_grad_()
        f(at).sum().backward()
        at = at.detach() + step * at.grad.sign()
        at = torch.max(torch.min(at, x + eps), x - eps)
        at = torch.max(torch.min(at, torch.ones_like(at)), torch.zeros_like(at))
    return at.detach()


def noise(x, rng, eps): return ((x + eps * (2 * torch.rand(x.shape, dtype=x.dtype, generator=rng) - 1)).clamp(0, 1))


def gradients(net, loss):
    out = torch.autograd.grad(loss, list(net.parameters()))
    return torch.cat([g.flatten() for g in out])


# ---- the losses -------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("eps, step, steps", [(8 / 255, 2 / 255, 10), (.1, .04, 3), (.02, .02, 1)])
def test_at_is_the_loss_at_the_worst_point_and_its_gradient_takes_the_point_as_given(net, x, y, eps, step, steps):
    twin = copy.deepcopy(net)
    worst = climb(lambda a: F.cross_entropy(twin(a), y, reduction="sum"), x, noise(x, gen(5), eps), eps, step, steps)
    expected = F.nll_loss(net(worst).log_softmax(1), y)
    loss = AT(eps=eps, step=step, steps=steps, mode="eval").loss(net, x, y, gen(5))
    assert torch.allclose(loss, expected, atol=1e-12)
    assert torch.allclose(gradients(net, loss), gradients(net, expected), atol=1e-12)


@pytest.mark.parametrize("beta, eps, step, steps", [(6., 8 / 255, 2 / 255, 10), (6., .031, .007, 10), (1., .1, .04, 3), (0., .02, .02, 1)])
def test_trades_is_its_formula_at_the_point_where_the_prediction_has_moved_most(net, x, y, beta, eps, step, steps):
    twin = copy.deepcopy(net)
    p = twin(x).softmax(1).detach()
    first = (x + .001 * torch.randn(x.shape, dtype=x.dtype, generator=gen(5))).clamp(0, 1)
    worst = climb(lambda a: (p * (p.log() - twin(a).log_softmax(1))).sum(), x, first, eps, step, steps)
    clean, moved = net(x).softmax(1), net(worst).softmax(1)
    expected = -clean[torch.arange(6), y].log().mean() + beta * (clean * (clean.log() - moved.log())).sum() / 6
    loss = TRADES(beta=beta, eps=eps, step=step, steps=steps).loss(net, x, y, gen(5))
    assert torch.allclose(loss, expected, atol=1e-12)
    assert torch.allclose(gradients(net, loss), gradients(net, expected), atol=1e-11)  # through both sides of the divergence


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("alpha, per", [(1., "batch"), (.4, "example")])
def test_iat_is_the_average_of_two_mixup_losses_with_their_own_draws(net, x, y, alpha, per, shared):
    twin, rng, eps, one = copy.deepcopy(net), gen(5), 8 / 255, F.one_hot(y, 5).double()
    def draw(): return draw_lambda(() if per == "batch" else (6,), alpha, rng).double().view(-1, 1), torch.randperm(6, generator=rng)
    def half(images, lam, partner):
        mixed = lam.view(-1, 1, 1, 1) * images + (1 - lam).view(-1, 1, 1, 1) * images[partner]
        return -((lam * one + (1 - lam) * one[partner]) * net(mixed).log_softmax(1)).sum(1).mean()
    first = draw()
    worst = climb(lambda a: F.cross_entropy(twin(a), y, reduction="sum"), x, noise(x, rng, eps), eps, 2 / 255, 7)
    second = first if shared else draw()
    expected = (half(x, *first) + half(worst, *second)) / 2
    loss = IAT(alpha=alpha, per=per, shared=shared, mode="eval").loss(net, x, y, gen(5))
    assert torch.allclose(loss, expected, atol=1e-10)
    assert torch.allclose(gradients(net, loss), gradients(net, expected), atol=1e-10)
    if not shared: assert not torch.equal(first[1], second[1]) and not torch.equal(first[0], second[0])


def test_the_gradient_of_the_trades_loss_against_finite_differences():
    clean, moved = (torch.randn(4, 3, dtype=torch.float64, generator=gen(k)).requires_grad_() for k in range(2))
    target = F.one_hot(torch.tensor([0, 1, 2, 1]), 3).double()
    assert torch.autograd.gradcheck(lambda a, b: trades_loss(a, b, target, 6.), (clean, moved))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), b=st.integers(1, 7), k=st.integers(2, 9), beta=st.floats(0, 20), scale=st.floats(0, 60))
def test_the_trades_loss_over_all_logits(seed, b, k, beta, scale):
    clean, moved = scale * torch.randn(2, b, k, dtype=torch.float64, generator=gen(seed))
    target = F.one_hot(torch.randint(k, (b,), generator=gen(seed)), k).double()
    first, loss = F.cross_entropy(clean, target), trades_loss(clean, moved, target, beta)
    p, q = clean.log_softmax(1), moved.log_softmax(1)
    assert loss.isfinite() and loss >= first - 1e-9                                                     # a divergence is never below 0
    assert torch.allclose(loss, first + beta * (p.exp() * (p - q)).sum() / b, atol=1e-9)
    assert torch.allclose(loss, trades_loss(clean - 3, moved + 5, target, beta), atol=1e-9)             # logits count up to a constant
    assert torch.allclose(loss, trades_loss(clean.repeat(2, 1), moved.repeat(2, 1), target.repeat(2, 1), beta))  # a mean over the batch


# ---- the same for all -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", KINDS)
def test_same_generator_same_loss_and_nothing_else_is_drawn_from(net, x, y, name, mode):
    before = torch.random.get_rng_state()
    first, second, other = (KINDS[name](mode=mode, steps=2).loss(copy.deepcopy(net).train(), x, y, gen(s)) for s in (4, 4, 5))
    assert torch.equal(first, second) and not torch.equal(first, other) and first.shape == () and first.requires_grad
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("name", KINDS)
def test_the_loss_leaves_gradients_modes_and_images_alone(net, x, y, name, mode):
    net.train()
    image = x.clone()
    loss = KINDS[name](mode=mode, steps=2).loss(net, x, y, gen())
    assert all(p.grad is None for p in net.parameters()) and all(m.training for m in net.modules()) and torch.equal(x, image)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name, extra, passes", [("at", 0, 1), ("trades", 1, 2), ("iat", 0, 2)])
def test_batch_norm_counts_the_passes_of_the_attack_in_training_mode_only(net, x, y, name, extra, passes):
    for mode, moves in {"eval": passes, "train": passes + 4 + extra}.items():  # TRADES predicts at the image first
        twin = copy.deepcopy(net).train()
        counter = next(b for k, b in twin.named_buffers() if k.endswith("num_batches_tracked"))
        before = counter.item()
        KINDS[name](mode=mode, steps=4).loss(twin, x, y, gen())
        assert counter.item() - before == moves


@pytest.mark.parametrize("name", KINDS)
def test_an_attack_that_moves_the_statistics_of_a_network_in_evaluation_mode_says_so(net, x, y, name):
    "A loss on held-out images, or one with frozen statistics, must not be thought to leave the network alone."
    def lost(mode, twin):
        before = copy.deepcopy(twin.state_dict())
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            with torch.no_grad(): KINDS[name](mode=mode, steps=1).loss(twin, x, y, gen())
        moved = any(not torch.equal(v, before[k]) for k, v in twin.state_dict().items())
        return moved, [True for w in told if "running statistics change: take mode='eval'" in str(w.message)]
    assert lost("train", copy.deepcopy(net)) == (True, [True])
    assert lost("eval", copy.deepcopy(net)) == (False, []) and lost("train", copy.deepcopy(net).train()) == (True, [])
    for m in net.modules(): m.track_running_stats = False
    assert lost("train", net)[1] == []


@pytest.mark.parametrize("name", KINDS)
def test_in_half_precision_every_weight_learns_and_in_the_same_direction(net, x, y, name):
    net = net.float().train()
    grads = []
    for half in (False, True):
        twin = copy.deepcopy(net)
        with torch.autocast("cpu", torch.bfloat16, enabled=half): loss = KINDS[name](steps=3).loss(twin, x.float(), y, gen(5))
        assert loss.dtype == torch.float32 and loss.isfinite()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in twin.parameters())
        grads.append(torch.cat([p.grad.flatten() for p in twin.parameters()]))
    assert F.cosine_similarity(*grads, dim=0) > .9


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("args, message", [
    (dict(eps=0.), "eps must be in .0, 1., got 0.0: 8 grey levels are 8.255; for no attack use"), (dict(step=-1.), "step must be in .0, 1., got -1"), (dict(steps=0), "steps must be at least 1, got 0"),
    (dict(mode="trian"), "unknown mode 'trian': did you mean 'train'"), (dict(epsilon=.1), "unknown hyper-parameter of '.*' 'epsilon': did you mean 'eps'")])
def test_a_bad_budget_is_refused_before_anything_is_trained(name, args, message):
    with pytest.raises(ValueError, match=message): Spec("digits", name, "tiny-cnn", method_args=args)


@pytest.mark.parametrize("args, message", [(dict(beta=-1.), "beta must be at least 0, got -1"), (dict(beta=float("nan")), "beta must be a number, at least 0, got nan"),
                                           (dict(start="image"), "TRADES cannot start at the image")])
def test_trades_refuses_what_it_cannot_do(args, message):
    with pytest.raises(ValueError, match=message): TRADES(**args)


@pytest.mark.parametrize("name", KINDS)
def test_images_outside_the_range_and_bad_labels_are_refused(net, x, y, name):
    with pytest.raises(ValueError, match="normalise inside the network, not before"): KINDS[name](steps=1).loss(net, 2 * x - 1, y, gen())


def run(name, folder, **changes):
    args = dict(eps=4 / 255, steps=2) if name in KINDS else {}
    spec = Spec("digits", name, "tiny-cnn", epochs=2, n_train=200, batch=50, augment="crop", method_args=args, **changes)
    return history(train_run(spec, Store(folder), "cpu"))


@pytest.mark.parametrize("name", KINDS)
def test_a_run_learns_and_repeats_itself(tmp_path, name):
    first, again = run(name, tmp_path / "a", lr=5e-3), run(name, tmp_path / "b", lr=5e-3)
    strip = lambda rows: [{k: v for k, v in r.items() if k != "seconds"} for r in rows]
    assert strip(first) == strip(again) and first[-1]["loss"] < first[0]["loss"]
