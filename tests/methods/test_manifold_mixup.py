"""Manifold Mixup is its equation: one stage, one lambda, one permutation for a batch, and gradients through both partners."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from helpers import seeded
from mixrepro.methods.catalogue import method
from mixrepro.methods.manifold_mixup import ManifoldMixup, draw_at_stages, draw_stage, on_host
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.vicinal import Mix, bce_softmax, draw_mix
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, from_json, name_of, to_json
from mixrepro.training.store import Store

NETWORKS = ("tiny-cnn", "small-cnn", "mlp", "resnet18", "preactresnet18", "wrn28-2")


def network(name="tiny-cnn", side=8, classes=5): return build(name, (1, side, side), classes, seeded()).eval()


def batch(n=6, side=8, classes=5, seed=0):
    rng = seeded(seed)
    return torch.rand(n, 1, side, side, generator=rng), torch.randint(classes, (n,), generator=rng)


def by_hand(net, x, mix, k):
    "The pass of a mixed batch, one stage after the other, each partner on its own way up to stage k."
    def below(x):
        h = net.norm(x)
        for stage in net.stages[:k]: h = stage(h)
        return h
    if k == 0: h = net.norm(mix.lam * x + (1 - mix.lam) * x[mix.partner])
    else: h = mix.lam * below(x) + (1 - mix.lam) * below(x[mix.partner])
    for stage in net.stages[k:]: h = stage(h)
    return net.head(net.pool(h))


@pytest.mark.parametrize("name", NETWORKS)
def test_lambda_one_is_no_mixing_to_the_last_bit(name):
    side = 32 if "res" in name or "wrn" in name else 8
    net, (x, _) = network(name, side), batch(3, side)
    plain, mix = net(x), Mix(torch.tensor(1.), torch.tensor([2, 0, 1]))
    for k in range(len(net.stages) + 1): assert torch.equal(net(x, at=k, through=mix), plain)


@given(alpha=st.floats(.05, 8), seed=st.integers(0, 2 ** 32), n=st.integers(2, 9), name=st.sampled_from(["tiny-cnn", "mlp"]))
@settings(max_examples=30, deadline=None)
def test_stage_zero_is_input_mixup_to_the_last_bit(alpha, seed, n, name):
    net, (x, y) = network(name), batch(n, seed=seed)
    assert torch.equal(ManifoldMixup(alpha=alpha, stages=(0,)).loss(net, x, y, seeded(seed)), Mixup(alpha=alpha).loss(net, x, y, seeded(seed)))


@pytest.mark.parametrize("criterion", ["ce", "bce"])
@pytest.mark.parametrize("name", ["small-cnn", "mlp"])
def test_the_loss_from_the_formulas_in_float64(name, criterion):
    net, (x, y) = network(name).double(), batch(7)
    x, stages, seen = x.double(), tuple(range(len(network(name).stages) + 1)), set()
    for seed in range(30):
        again = seeded(seed)
        mix, k = draw_mix(7, 2., again), draw_stage(stages, again)
        seen.add(k)
        z = by_hand(net, x, Mix(mix.lam.double(), mix.partner), k).detach().numpy()
        p, lam, terms = np.exp(z) / np.exp(z).sum(1, keepdims=True), mix.lam.item(), []
        for i in range(7):
            t = np.zeros(5)
            t[y[i]] += lam
            t[y[mix.partner[i]]] += 1 - lam
            terms.append(-(t * np.log(p[i])).sum() if criterion == "ce" else -(t * np.log(p[i]) + (1 - t) * np.log(1 - p[i])).sum() / 5)
        ours = ManifoldMixup(stages=stages, criterion=criterion).loss(net, x, y, seeded(seed))
        assert ours.dtype == torch.float64 and abs(ours.item() - np.mean(terms)) < 1e-6
    assert seen == set(stages), "every stage was tried"


@pytest.mark.parametrize("k", [0, 1, 2, 3])
def test_gradients_flow_through_both_partners(k):
    net, (x, y) = network("small-cnn").double(), batch(4)
    x, mix = x.double().requires_grad_(), Mix(torch.tensor(.3, dtype=torch.float64), torch.tensor([1, 2, 3, 0]))
    first = [p for stage in net.stages[:max(k, 1)] for p in stage.parameters()]
    ours = torch.autograd.grad(net(x, at=k, through=mix)[0].logsumexp(0), [x, *first])
    apart = torch.autograd.grad(by_hand(net, x, mix, k)[0].logsumexp(0), [x, *first])
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(ours, apart))
    assert [bool(g.abs().sum() > 0) for g in ours[0]] == [True, True, False, False], "its own pixels and its partner's"
    if k:
        half = lambda h: .3 * h + .7 * h[mix.partner].detach()
        blocked = torch.autograd.grad(net(x, at=k, through=half)[0].logsumexp(0), [x, *first])
        assert not any(torch.allclose(a, b, rtol=1e-3) for a, b in zip(ours[1:2], blocked[1:2])) and blocked[0][1].abs().sum() == 0


def test_labels_and_states_share_one_draw():
    class Spy(torch.nn.Module):
        stages = [0, 1, 2]
        def forward(self, x, at, through):
            self.at, self.rows = at, through(torch.eye(len(x)))  # of a row: what of which state is in it
            return x.new_zeros(len(x), 5).requires_grad_()
    spy, (x, y), stages = Spy(), batch(8), []
    for seed in range(40):
        ManifoldMixup().loss(spy, x, y, seeded(seed))
        one = spy.rows.diagonal()
        one = one[one < 1]  # an image may be its own partner
        assert one.numel() == 0 or torch.equal(one, one[:1].expand(len(one)))
        assert torch.allclose(spy.rows.sum(0), torch.ones(8)) and torch.allclose(spy.rows.sum(1), torch.ones(8)), "a permutation's"
        stages.append(spy.at)
    assert set(stages) == {0, 1, 2} and all(type(k) is int for k in stages)


@given(stages=st.lists(st.integers(0, 9), min_size=2, max_size=5, unique=True), seed=st.integers(0, 2 ** 32))
@settings(max_examples=20, deadline=None)
def test_stages_are_drawn_uniformly(stages, seed):
    rng = seeded(seed)
    counts = np.bincount([stages.index(draw_stage(tuple(stages), rng)) for _ in range(600)], minlength=len(stages))
    expected = 600 / len(stages)
    assert ((counts - expected) ** 2 / expected).sum() < 40  # chi-square of at most 4 degrees of freedom


def test_one_stage_takes_no_draw():
    rng = seeded()
    before = rng.get_state()
    assert draw_stage((2,), rng) == 2 and torch.equal(rng.get_state(), before)


def test_a_stage_is_drawn_without_waiting_for_a_device():
    "A CUDA generator's state is its seed and an offset, both on the host."
    at = lambda offset: SimpleNamespace(device=torch.device("cuda"), get_state=lambda: torch.tensor([7, offset]).view(torch.uint8))
    assert on_host(rng := seeded()) is rng
    assert draw_stage((0, 1, 2), at(4)) == draw_stage((0, 1, 2), at(4))
    counts = np.bincount([draw_stage((0, 1, 2), at(4 * i)) for i in range(1500)])
    assert ((counts - 500) ** 2 / 500).sum() < 25


@given(b=st.integers(1, 5), k=st.integers(2, 12), seed=st.integers(0, 2 ** 32))
@settings(max_examples=40, deadline=None)
def test_bce_against_torch_and_its_minimum(b, k, seed):
    rng = seeded(seed)
    z, t = torch.randn(b, k, generator=rng, dtype=torch.float64), torch.rand(b, k, generator=rng, dtype=torch.float64)
    t = t / t.sum(1, keepdim=True)
    assert torch.allclose(bce_softmax(z, t), torch.nn.BCELoss()(z.softmax(1), t))
    leaf = t.log().requires_grad_()
    bce_softmax(leaf, t).backward()
    assert leaf.grad.abs().max() < 1e-10, "the true label is a stationary point"


def test_bce_under_autocast_and_at_certainty():
    z = torch.tensor([[3., -1., 0.]])
    with torch.autocast("cpu", torch.bfloat16): low = bce_softmax(z.bfloat16(), torch.tensor([[.5, .5, 0.]], dtype=torch.bfloat16))
    assert low.dtype == torch.float32 and torch.allclose(low, bce_softmax(z, torch.tensor([[.5, .5, 0.]])))
    wrong = torch.tensor([[1e4, 0., 0.]], requires_grad=True)
    bce_softmax(wrong, torch.tensor([[0., 1., 0.]])).backward()
    assert wrong.grad.isfinite().all()


@pytest.mark.parametrize("stages", [(), (-1,), (0, 0), (1.5,), (True,), ("one",), (None,)])
def test_stages_that_cannot_be(stages):
    with pytest.raises(ValueError, match="stages must be (different numbers from 0|a whole number, at least 0, got|at least 0, got -1)"): ManifoldMixup(stages=stages)


@given(seed=st.integers(0, 2 ** 32))
@settings(max_examples=10, deadline=None)
def test_a_missing_stage_is_noticed_whatever_is_drawn(seed):
    x, y = batch()
    with pytest.raises(ValueError, match=r"has stages 0 \(the input\) to 3, but those to mix at are \(0, 1, 7\)"):
        ManifoldMixup(stages=(0, 1, 7)).loss(network(), x, y, seeded(seed))


def test_other_bad_inputs():
    x, y = batch()
    with pytest.raises(TypeError, match="needs a network in stages, .* got Linear"): ManifoldMixup().loss(torch.nn.Linear(2, 2), x, y, seeded())
    with pytest.raises(ValueError, match="unknown criterion 'cross': "): method("manifold-mixup", criterion="cross")
    with pytest.raises(ValueError, match="alpha must be above 0, got 0"): ManifoldMixup(alpha=0.).loss(network(), x, y, seeded())
    wrapped = torch.nn.DataParallel(network())  # what distributed training wraps a network in has no stages itself
    with pytest.raises(ValueError, match="to 3, but those to mix at are"): ManifoldMixup(stages=(4,)).loss(wrapped, x, y, seeded())


@pytest.mark.parametrize("name", ["small-cnn", "mlp", "preactresnet18"])
def test_a_stage_and_a_coefficient_for_each_example_by_hand(name):
    "In float64: each example is mixed once, at its own stage, with one of the same stage, and with its own share."
    side = 32 if "res" in name else 8
    net, (x, y), stages = network(name, side).double(), batch(9, side), (2, 0, 1)
    x, each = x.double(), ManifoldMixup(per="lambda and layer", stages=stages)
    draw = each.draw(net, x, y, seeded(7))
    logits, target = each.terms(net, x, y, draw, seeded())
    for i in range(9):
        j = draw.partner[i].item()
        assert draw.stage[i] == draw.stage[j]
        alone = Mix(draw.lam[i].double(), torch.tensor([1, 0]))
        assert torch.allclose(logits[i], by_hand(net, x[[i, j]], alone, stages[draw.stage[i]])[0], atol=1e-9)
        wanted = draw.lam[i].double() * F.one_hot(y[i], 5) + (1 - draw.lam[i].double()) * F.one_hot(y[j], 5)
        assert torch.allclose(target[i], wanted, atol=1e-6)


@given(n=st.integers(2, 40), k=st.integers(1, 4), seed=st.integers(0, 2 ** 32))
@settings(max_examples=40, deadline=None)
def test_partners_are_a_permutation_within_each_stage(n, k, seed):
    draw = draw_at_stages(n, 1., tuple(range(k)), seeded(seed))
    assert sorted(draw.partner.tolist()) == list(range(n)) and torch.equal(draw.stage, draw.stage[draw.partner])
    assert draw.lam.shape == (n,) and draw.stage.max() < k


def test_a_coefficient_for_each_example_is_mixups_at_stage_zero():
    net, (x, y) = network(), batch()
    ours = ManifoldMixup(alpha=1., stages=(0,), per="lambda").loss(net, x, y, seeded(4))
    assert torch.equal(ours, Mixup(alpha=1., per="example").loss(net, x, y, seeded(4)))


def test_blocked_with_a_stage_each_stops_below_the_own_stage():
    net, (x, y) = network("small-cnn").train(), batch(12)
    blocked = ManifoldMixup(stages=(1, 3), per="lambda and layer", blocked=True)
    x = x.requires_grad_()
    draw = blocked.draw(net, x, y, seeded(1))
    logits, _ = blocked.terms(net.eval(), x, y, draw, seeded(1))
    assert torch.autograd.grad(logits.sum(), x, allow_unused=True)[0].abs().sum() == 0, "no pixel is above its mixture"
    assert set(draw.stage.tolist()) == {0, 1}


def test_per_is_no_part_of_a_name_at_its_default():
    spec = Spec("digits", "manifold-mixup", "tiny-cnn")
    assert name_of(spec) == name_of(replace(spec, method_args=dict(per="batch"))) != name_of(replace(spec, method_args=dict(per="lambda")))
    with pytest.raises(ValueError, match="unknown per 'layer'"): replace(spec, method_args=dict(per="layer"))


def test_a_run_by_name(tmp_path):
    spec = Spec("digits", "manifold-mixup", "tiny-cnn", epochs=8, n_train=400, batch=32, lr=5e-3, augment="crop", method_args=dict(stages=(0, 1, 2)))
    assert ManifoldMixup(stages=[0, 1, 2]) == ManifoldMixup()
    listed = from_json(json.loads(json.dumps(to_json(spec))))  # JSON has lists only
    assert name_of(listed) == name_of(spec) == name_of(replace(spec, method_args={}))
    assert name_of(spec) != name_of(replace(spec, method_args=dict(stages=(0, 1)))) != name_of(replace(spec, method_args=dict(stages=(1, 0))))
    run = train_run(listed, Store(tmp_path), "cpu")
    from mixrepro.training.store import history
    assert history(run)[-1]["accuracy"] > .25  # chance is .1
