"AdaMixup: its loss by hand, its gradient by differences, its weights in the optimiser and in a checkpoint."

import copy
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F

from helpers import goes_on_alike, seeded
from mixrepro.data.datasets import load
from mixrepro.methods.adamixup import AdaMixup, Policy, intrusion_loss
from mixrepro.methods.base import restore, state_of, trainable
from mixrepro.methods.erm import ERM
from mixrepro.methods.genlabel import GenLabels, OnlineGenLabels
from mixrepro.networks.zoo import build
from mixrepro.training import loop
from mixrepro.training.spec import Spec, name_of

TRAIN = load("digits-few", "train").subset(60)
X, Y = TRAIN.floats()[:16], TRAIN.y[:16]


def ready(seed=0, net=None, **args):
    net = net or build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded(1)).eval()
    made = AdaMixup(**args).prepare(TRAIN, seeded(seed))
    made.begin(net)
    nn.init.normal_(made.made.policy.layers[-1].weight, std=.5, generator=seeded(seed))
    return made, net


@given(seed=st.integers(0, 999), d=st.integers(1, 9), size=st.floats(.1, 50))
@settings(max_examples=30, deadline=None)
def test_an_interval_of_shares(seed, d, size):
    policy, rng = Policy(d, 7), seeded(seed)
    for p in policy.parameters(): nn.init.normal_(p, std=size, generator=rng)
    a, width = policy(torch.rand(5, d, generator=rng), torch.rand(5, d, generator=rng))
    assert (a >= 0).all() and (width >= 0).all() and (a + width <= 1 + 1e-6).all()
    z = torch.randn(4, generator=rng), torch.randn(4, generator=rng)
    by_hand = -(torch.log(1 - torch.sigmoid(z[0])).mean() + 2 * torch.log(torch.sigmoid(z[1])).mean()) / 3
    assert torch.allclose(intrusion_loss(*z), by_hand, atol=1e-5)


def test_shares_fill_the_interval_evenly():
    made, net = ready()
    x = X[:1].repeat(4000, 1, 1, 1)
    a, d = (t[0].item() for t in made.made.policy(x[:1], x[:1]))
    u = (made.draw(net, x, None, seeded(5)).lam.detach() - a) / d
    assert 0 <= u.min() and u.max() <= 1 + 1e-4 and abs(u.mean() - .5) < 4 * (1 / 12 / 4000) ** .5  # four standard errors


@pytest.mark.parametrize("which", range(6))
def test_the_gradient_of_the_policy_is_the_losss(which):
    "By central differences in float64, with partners and draws fixed: it comes through the shares of pixels and labels."
    made, net = ready()
    net.double(); made.made.policy.double(); made.made.intruder.double()
    weight, x = list(made.made.policy.parameters())[which], X.double()
    (grad,) = torch.autograd.grad(made.loss(net, x, Y, seeded(2)), weight)
    at, e = grad.abs().argmax(), 1e-5
    def moved(by):
        with torch.no_grad(): weight.view(-1)[at] += by
        return made.loss(net, x, Y, seeded(2)).item()
    slope = (moved(e) - moved(-2 * e)) / (2 * e)
    assert slope == pytest.approx(grad.view(-1)[at].item(), rel=1e-3, abs=1e-9) and grad.any()


def test_the_intruders_loss_reaches_the_classifier_and_can_be_left_out():
    made, net = ready(intrusion=0.)
    mix = made.draw(net, X, Y, seeded(3))
    hot = F.one_hot(Y, 10).float()
    alone = (F.cross_entropy(net(mix(X)), mix(hot)) + F.cross_entropy(net(X), Y)) / 2
    assert torch.allclose(made.loss(net, X, Y, seeded(3)), alone, atol=1e-6)
    told, other = (torch.autograd.grad(ready(intrusion=w, net=net)[0].loss(net, X, Y, seeded(3)), net.stages[0][0][0].weight)[0] for w in (1., 0.))
    assert not torch.allclose(told, other)


@pytest.mark.parametrize("positives", [1., 2.])
def test_the_whole_loss_in_numpy(positives):
    "Guo et al. (2019): both losses are summed; the intruder tells features of mixtures, 0, from originals', 1."
    made, net = ready(positives=positives)
    mix = made.draw(net, X, Y, seeded(3))
    lam = mix.lam.detach().double().numpy()[:, None]
    hot = np.eye(10)[Y]
    target = np.concatenate([lam * hot + (1 - lam) * hot[mix.partner], hot])
    with torch.no_grad():
        seen = net.features(torch.cat([mix(X), X]))
        logits, told = net.head(seen).double().numpy(), made.made.intruder(seen).double().numpy()[:, 0]
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    p = 1 / (1 + np.exp(-told))  # that it is an original
    intrusion = -(np.log(1 - p[:16]).mean() + positives * np.log(p[16:]).mean()) / (1 + positives)
    want = -(target * np.log(shares)).sum(1).mean() + intrusion
    assert made.loss(net, X, Y, seeded(3)).item() == pytest.approx(want, abs=2e-6)


@pytest.mark.parametrize("labels", [GenLabels(), OnlineGenLabels(warmup=0.)], ids=lambda v: v.name)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_any_labelling_goes_with_it(labels):
    made, net = ready(labels=labels)
    plain, _ = ready(net=net)
    loss = made.at(.5).loss(net, X, Y, seeded(3))
    assert loss.isfinite() and loss != plain.loss(net, X, Y, seeded(3)) and len(trainable(made)) == 8
    assert not net._forward_pre_hooks and not net.head._forward_pre_hooks


SPEC = Spec("digits-few", "adamixup", "tiny-cnn", epochs=3, n_train=100, batch=50, looks=1, lr=5e-3, augment="crop")


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize("remembers", [True, False])
def test_a_run_that_was_cut_off_ends_the_same(tmp_path, monkeypatch, optimizer, remembers):
    "Without what its policy had learned it ends elsewhere."
    assert goes_on_alike(replace(SPEC, optimizer=optimizer), tmp_path, monkeypatch, 1, remembers) == remembers


def test_the_optimiser_moves_what_the_method_brings():
    made, net = ready()
    before, opt = [p.detach().clone() for p in trainable(made)], loop.optimizer(SPEC, net, made)
    rngs = {k: seeded(1) for k in loop.STREAMS}
    loop.train_epoch(net, made, TRAIN, replace(SPEC, batch=30), opt, rngs, 0)
    assert all(not torch.equal(p, q) for p, q in zip(before, trainable(made), strict=True))
    assert len(loop.optimizer(SPEC, net).param_groups[0]["params"]) == len(list(net.parameters()))


@pytest.mark.parametrize("handed", [False, True])
def test_a_policy_that_nobody_hands_to_the_optimiser_is_told_of(handed):
    "Its gradients were there and no step went along them: every pair kept the interval it had at first."
    made, net = ready()
    opt, x, y = torch.optim.SGD([*net.parameters(), *(trainable(made) if handed else ())], lr=.01), TRAIN.floats()[:8], TRAIN.y[:8]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for step in range(110):
            loss = made.loss(net, x, y, seeded(step))
            opt.zero_grad(); loss.backward(); opt.step()
    assert ["AdaMixup's policy is as it was at first" in str(w.message) for w in said] == ([] if handed else [True])


def test_a_policy_is_of_one_network():
    "The second network began with the intervals that the first one had taught, and nothing said so."
    made, net = ready()
    x, y = TRAIN.floats()[:8], TRAIN.y[:8]
    made.loss(net, x, y, seeded()); made.loss(torch.nn.Module.train(net), x, y, seeded())
    other = copy.deepcopy(net)
    made.begin(other)
    with pytest.raises(ValueError, match="the method has learned the shares for another network: prepare it again for this network"):
        made.loss(other, x, y, seeded())


def test_its_state_is_restored():
    one, two = ready(0)[0], ready(7)[0]
    assert sorted(state_of(one)) == ["intruder", "policy"]
    restore(two, copy.deepcopy(state_of(one)))
    assert all(torch.equal(p, q) for p, q in zip(trainable(one), trainable(two), strict=True))


def test_a_gradient_is_cut_to_its_norm():
    "One step of plain descent: as far as the cut gradient says, and no longer run has another name for it."
    spec = Spec("digits-few", "erm", "tiny-cnn", epochs=1, n_train=60, batch=60, optimizer="sgd", momentum=0., lr=1.)
    steps = {}
    for clip in (0., .01, 1e9):
        net = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded(1)).eval()
        before = torch.cat([p.detach().flatten().clone() for p in net.parameters()])
        now, rngs = replace(spec, clip=clip), {k: seeded(1) for k in loop.STREAMS}
        loop.train_epoch(net, ERM(), TRAIN, now, loop.optimizer(now, net), rngs, 0)
        steps[clip] = torch.cat([p.detach().flatten() for p in net.parameters()]) - before
    assert torch.equal(steps[0.], steps[1e9]) and abs(steps[.01].norm() - .01) < 1e-5 < .01 < steps[0.].norm()
    assert F.cosine_similarity(steps[0.], steps[.01], 0) > .999
    assert name_of(spec) == name_of(replace(spec, clip=0.)) != name_of(replace(spec, clip=5.))
    with pytest.raises(ValueError, match="clip must be at least 0"): replace(spec, clip=-1.)


def test_networks_that_it_cannot_look_into_are_refused():
    made = AdaMixup().prepare(TRAIN, seeded())
    with pytest.raises(TypeError, match="AdaMixup looks at features, so it needs a network"): made.begin(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="AdaMixup is not ready: call prepare"): AdaMixup().loss(build("tiny-cnn", TRAIN.shape, 10, seeded()), X, Y, seeded())
    for args in (dict(intrusion=-1), dict(positives=0)):
        with pytest.raises(ValueError, match=next(iter(args))): AdaMixup(**args)
