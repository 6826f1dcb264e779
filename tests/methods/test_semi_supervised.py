"""Whitening, splits by name, the ramp at every step of a run, and the semi-supervised loss by hand."""

import math
import warnings
from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from sklearn.decomposition import PCA
from torch.nn import functional as F

from helpers import SHARED, cut_off, seeded, weights
from mixrepro.data.augment import AUGMENTS
from mixrepro.data.datasets import load
from mixrepro.data.splits import split, write_split
from mixrepro.data.whitening import WHITENINGS, Whiten, Whitening, fit_whitening, zca
from mixrepro.methods.catalogue import method
from mixrepro.methods.manifold_mixup import draw_stage
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.semi_supervised import FewLabels, SSLManifoldMixup, SSLMixup
from mixrepro.methods.vicinal import draw_mix
from mixrepro.networks.staged import Normalize
from mixrepro.networks.wideresnet import wide_resnet
from mixrepro.networks.zoo import build
from mixrepro.training import loop
from mixrepro.training.loop import seen_of, split_of, start, train_run
from mixrepro.training.spec import Spec, canonical, name_of
from mixrepro.training.store import Run, Store, history, open_net, selected

SPEC = Spec("digits", "ssl-manifold-mixup", "tiny-cnn", epochs=2, augment="crop", batch=100, optimizer="sgd", lr=.05, split="digits-l50-v100-s3")


class Images:
    "Images for `fit`."
    def __init__(self, x): self.x = x
    def __len__(self): return len(self.x)
    def floats(self, index=slice(None)): return self.x[index]


def covariance(h): return np.cov(h.flatten(1).double().numpy(), rowvar=False, bias=True)


# Whitening ------------------------------------------------------------------------------------------------------------------------------

@given(d=st.integers(2, 20), n=st.integers(60, 300), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_zca_is_whitening_pca_turned_back(d, n, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) @ (np.eye(d) + .5 * rng.normal(size=(d, d))) + rng.normal(size=d)
    x -= x.mean(0)
    w, dead = zca(torch.tensor(x.T @ x / n), Whitening(eps=0.))
    pca = PCA(whiten=True).fit(x)
    assert dead == 0 and torch.allclose(w, w.T, atol=1e-9 * float(w.abs().max()))
    assert np.allclose(x @ w.numpy(), pca.transform(x) @ pca.components_ * math.sqrt(n / (n - 1)), atol=1e-6)
    assert np.allclose(w.numpy() @ (x.T @ x / n) @ w.numpy(), np.eye(d), atol=1e-6)


@pytest.mark.parametrize("how, root", [(Whitening(.3), lambda s: 1 / np.sqrt(s + .3)), (Whitening(.3, after=True), lambda s: 1 / np.sqrt(s) + .3),
                                       (Whitening(.3, shrink=.1), lambda s: 1 / np.sqrt(s + .4))], ids=["inside", "after", "shrunk"])
def test_zca_equals_its_formula(how, root):
    x = np.random.default_rng(0).normal(size=(500, 8))
    cov = x.T @ x / 500
    u, s, _ = np.linalg.svd(cov)
    assert np.allclose(zca(torch.tensor(cov), how)[0], u @ np.diag(root(s)) @ u.T, atol=1e-12)


@pytest.mark.parametrize("how", [Whitening(0.), Whitening(), Whitening(1e-6, after=True)], ids=["plain", "inside", "after"])
def test_directions_without_variance_are_silent_and_counted(how):
    base = torch.randn(400, 5, generator=seeded(), dtype=torch.float64)
    x = torch.cat([base, base[:, :2] + base[:, 1:3], torch.ones(400, 1, dtype=torch.float64)], 1)  # rank 5 of 8
    x = x - x.mean(0)
    cov = x.T @ x / len(x)
    w, dead = zca(cov, how)
    assert dead == 3 and w.isfinite().all()
    out = w @ cov @ w.T
    assert torch.allclose(out @ out, out, atol=1e-3) and abs(out.trace() - 5) < 1e-3


def test_fewer_images_than_pixels_is_said():
    layer = Whiten(Normalize((.5,), (.25,)), (1, 6, 6))
    with pytest.warns(UserWarning, match="17 of 36 directions do not vary in these 20 images"): fit_whitening(layer, Images(torch.rand(20, 1, 6, 6, generator=seeded())))


@pytest.fixture(scope="module")
def cifar() -> Images:
    "Real photographs, cut to 8 x 8 pixels."
    sheets = sorted((SHARED / "cifar10").glob("train_0[0-2].webp"))
    if not sheets: pytest.skip("no copy of CIFAR-10 at hand: set MIXREPRO_SHARED_DATA to a folder that holds cifar10/")
    a = np.concatenate([np.asarray(Image.open(f).convert("RGB")).reshape(40, 32, 25, 32, 3).transpose(0, 2, 4, 1, 3).reshape(-1, 3, 32, 32) for f in sheets])
    return Images(torch.tensor(a[:, :, 12:20, 12:20]).float() / 255)


def test_photographs_are_whitened_to_a_thousandth(cifar):
    layer = fit_whitening(Whiten(Normalize((.49, .48, .45), (.25, .24, .26)), (3, 8, 8)), cifar, batch=700)
    h = layer(cifar.x)
    assert abs(covariance(h) - np.eye(192)).max() < 1e-3 and h.mean(0).abs().max() < 1e-3
    flat = layer.norm(cifar.x).double().flatten(1).numpy()
    flat -= flat.mean(0)
    pca = PCA(whiten=True).fit(flat)
    assert abs(h.flatten(1).numpy() - pca.transform(flat) @ pca.components_ * math.sqrt(3000 / 2999)).max() < .01


def test_the_order_of_the_released_code_does_not_whiten(cifar):
    layer = fit_whitening(Whiten(Normalize((.5,) * 3, (.25,) * 3), (3, 8, 8), WHITENINGS["zca-code"]), cifar)
    x = layer.norm(cifar.x).double()
    hwc = x.permute(0, 2, 3, 1).flatten(1).numpy()
    u, s, _ = np.linalg.svd(np.cov(hwc, rowvar=False, bias=True))
    by_hand = (x.flatten(1).numpy() - hwc.mean(0)) @ (u @ np.diag(1 / np.sqrt(s) + 1e-6) @ u.T)
    assert np.allclose(layer(cifar.x).flatten(1).numpy(), by_hand, atol=1e-2, rtol=1e-3)
    assert abs(covariance(layer(cifar.x)) - np.eye(192)).max() > 5


def test_contrast_normalisation_as_oliver():
    x = torch.rand(50, 3, 6, 6, generator=seeded()) * 255
    flat = x.flatten(1).double().numpy()
    flat = flat - flat.mean(1, keepdims=True)
    layer = Whiten(Normalize((.3,) * 3, (.1,) * 3), (3, 6, 6), WHITENINGS["gcn-zca"])
    assert np.allclose(layer.before(x / 255).flatten(1).numpy(), 55 * flat / np.linalg.norm(flat, axis=1, keepdims=True), atol=1e-4)


def test_the_layer_is_part_of_the_network_and_gradients_pass_it():
    spec = replace(SPEC, whiten="gcn-zca", method="ssl-baseline")
    _, _, net, *_ = start(spec, Store("nowhere"), "cpu")
    net.eval()
    x = load("digits", "test").floats(slice(4)).requires_grad_()
    h = net.norm(x)
    assert torch.allclose(net(x), net.head(net.pool(net.stages[2](net.stages[1](net.stages[0](h))))), atol=1e-6)
    g, = torch.autograd.grad(net(x).logsumexp(1).sum(), x)
    assert g.isfinite().all() and g.flatten(1).abs().sum(1).min() > 0 and not any("matrix" in n for n, _ in net.named_parameters())
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(net.norm(x), h)


# Splits and runs ------------------------------------------------------------------------------------------------------------------------

@pytest.fixture
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path / "data"))
    return tmp_path / "data"

def test_a_split_is_the_same_with_and_without_its_file(data):
    y = load("digits", "train").y
    drawn = split_of(SPEC, y)
    path = write_split("digits", y, 50, 3, 100)
    assert path.stem == "digits-l50-v100-s3" and all(torch.equal(a, b) for a, b in zip(drawn, split_of(SPEC, y)))
    assert not torch.equal(drawn.labelled, split_of(replace(SPEC, split="digits-l50-v100-s4"), y).labelled)
    assert all(torch.equal(a, b) for a, b in zip(drawn, split_of(replace(SPEC, seed=3, split="digits-l50-v100"), y)))
    path.rename(path.with_stem("digits-lmine"))
    assert all(torch.equal(a, b) for a, b in zip(drawn, split_of(replace(SPEC, split="digits-lmine"), y)))


def test_who_sees_what():
    train = load("digits", "train")
    seen, parts = seen_of(SPEC, train), split(train.y, 50, 3, 100)
    assert torch.equal(seen["train"].x, train.x[parts.unlabelled]) and not seen["train"].y.any()
    assert torch.equal(seen["labelled"].y, train.y[parts.labelled]) and torch.equal(seen["valid"].x, train.x[parts.validation])
    assert set(parts.labelled.tolist()) < set(parts.unlabelled.tolist()) and not set(parts.unlabelled.tolist()) & set(parts.validation.tolist())
    few = seen_of(replace(SPEC, method="erm"), train)
    assert torch.equal(few["train"].x, seen["labelled"].x) and torch.equal(few["whiten"].x, seen["whiten"].x)
    assert "valid" not in seen_of(replace(SPEC, method="erm", split="digits-l50-v0-s3"), train) and len(seen_of(Spec("digits", "erm", "tiny-cnn", n_train=70), train)["train"]) == 70


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Run]:
    "One run of each of the three, the last of them whitened."
    store = Store(tmp_path_factory.mktemp("runs"))
    specs = {m: replace(SPEC, method=m) for m in ("ssl-baseline", "ssl-mixup", "ssl-manifold-mixup")}
    return {m: train_run(s, store, "cpu") for m, s in (specs | {"white": replace(SPEC, whiten="gcn-zca")}).items()}


@pytest.mark.parametrize("name", ["ssl-baseline", "ssl-mixup", "ssl-manifold-mixup", "white"])
def test_validation_is_recorded_and_chooses(runs, name):
    rows, valid = history(runs[name]), seen_of(SPEC, load("digits", "train"))["valid"]
    net = open_net(runs[name])
    with torch.no_grad(): right = (net(valid.floats()).argmax(1) == valid.y).double().mean().item()
    assert rows[-1]["valid_accuracy"] == pytest.approx(right) and rows[-1]["valid_nll"] > 0
    best = selected(runs[name])
    first = [r["valid_accuracy"] for r in rows].index(max(r["valid_accuracy"] for r in rows))
    assert best == rows[first] and selected(runs[name], "valid_nll")["valid_nll"] == min(r["valid_nll"] for r in rows)


def test_of_equal_epochs_the_first_is_chosen(runs):
    rows = [dict(epoch=e, accuracy=a, valid_accuracy=v) for e, a, v in ((1, .1, .5), (2, .2, .7), (3, .9, .7))]
    with patch("mixrepro.training.store.history", return_value=rows): assert selected(runs["ssl-mixup"])["accuracy"] == .2


def test_labels_of_the_unlabelled_decide_nothing(runs, tmp_path, monkeypatch):
    train = load("digits", "train")
    parts = split(train.y, 50, 3, 100)
    unknown = torch.tensor(sorted(set(parts.unlabelled.tolist()) - set(parts.labelled.tolist())))
    y = train.y.clone()
    y[unknown] = y[unknown[torch.randperm(len(unknown), generator=seeded())]]
    assert (y != train.y).sum() > 800
    real = load
    monkeypatch.setattr(loop, "load", lambda name, part: replace(train, y=y) if part == "train" else real(name, part))
    monkeypatch.setattr(loop, "split_of", lambda spec, labels: parts)
    assert weights(train_run(SPEC, Store(tmp_path), "cpu")) == weights(runs["ssl-manifold-mixup"])


@pytest.mark.parametrize("name", ["ssl-manifold-mixup", "white"])
def test_a_run_that_was_cut_off_ends_the_same(runs, name, tmp_path, monkeypatch):
    cut_off(runs[name].spec, Store(tmp_path), 1, monkeypatch)
    again = train_run(runs[name].spec, Store(tmp_path), "cpu")
    assert weights(again) == weights(runs[name]) and [r["valid_nll"] for r in history(again)] == [r["valid_nll"] for r in history(runs[name])]


def test_the_ramp_at_every_step_of_a_run(tmp_path):
    seen, real = [], SSLManifoldMixup.loss
    def loss(self, net, *args):  # the loss of this method is w(t) when the supervised loss is 0 and the unsupervised 1
        value = real(self, net, *args)
        seen.append(value.item())
        return value
    nought = lambda self, net, *_: 0 * net.head.bias.sum()
    with patch.object(SSLManifoldMixup, "supervised", nought), patch.object(SSLManifoldMixup, "unsupervised", lambda self, net, *_: 1 + nought(self, net)), patch.object(SSLManifoldMixup, "loss", loss):
        run = train_run(replace(SPEC, epochs=5, batch=200, method_args=dict(weight=2., l1=0.)), Store(tmp_path), "cpu")
    n = 5 * math.ceil((1258 - 100) / 200)
    formula = [2 * math.exp(-5 * (1 - i / (.4 * n)) ** 2) if i < .4 * n else 2. for i in range(n)]
    assert len(seen) == n and run.done and np.allclose(seen, formula, atol=1e-6)


def test_names_of_runs_without_the_new_fields_stay():
    assert name_of(Spec("digits", "mixup", "small-cnn", epochs=3)) == "mixup-small-cnn-s0-37333ba4f7" and "whiten" not in canonical(SPEC)
    names = {name_of(replace(SPEC, **change)) for change in ({}, dict(whiten="zca"), dict(whiten="gcn-zca"), dict(split="digits-l50-v100-s4"), dict(method_args=dict(target="logits")))}
    assert len(names) == 5


# The loss -------------------------------------------------------------------------------------------------------------------------------

TRAIN = load("digits", "train")
PARTS = split(TRAIN.y, 50, 3, 100)
FEW, SEEN = TRAIN.subset(PARTS.labelled), TRAIN.subset(PARTS.unlabelled)


def wide(): return wide_resnet((1, 32, 32), 10, depth=10, widen=1, dropout=.3, slope=.01)


@pytest.mark.parametrize("stages, target, on", [((0, 1, 2), "softmax", "all"), ((0, 1, 2), "logits", "stem"), ((0,), "softmax", "stem"), ((3,), "logits", "all")])
def test_the_loss_by_hand(stages, target, on):
    torch.manual_seed(0)
    net, u = wide(), SEEN.floats(slice(30))
    ready = SSLManifoldMixup(stages=stages, target=target, l1_on=on, weight=1.7, l1=.01).prepare(SEEN, seeded(), AUGMENTS["crop"], FEW)
    got = ready.at(.1).loss(net.draw_from(seeded(8)), u, torch.zeros(30, dtype=torch.int64), seeded(7))
    torch.manual_seed(0)
    net, rng = wide().draw_from(seeded(8)), seeded(7)
    net.train()
    i = torch.randperm(50, generator=rng)[:30]
    x, y = AUGMENTS["crop"](FEW.floats(i), rng), FEW.y[i]
    mix, k = draw_mix(30, .1, rng), draw_stage(stages, rng)
    out = net(x, at=k, through=lambda h: mix.lam * h + (1 - mix.lam) * h[mix.partner])
    ls = mix.lam * F.cross_entropy(out, y) + (1 - mix.lam) * F.cross_entropy(out, y[mix.partner])
    kind = (lambda z: z.softmax(1)) if target == "softmax" else (lambda z: z)
    t = kind(net(u)).detach()
    mix, k = draw_mix(30, 2., rng), draw_stage(stages, rng)
    out = kind(net(u, at=k, through=lambda h: mix.lam * h + (1 - mix.lam) * h[mix.partner]))
    lu = ((out - mix.lam * t - (1 - mix.lam) * t[mix.partner]) ** 2).sum() / 300
    penalty = sum(p.abs().sum() for p in net.parameters()) if on == "all" else net.stages[0][0].weight.abs().sum()
    want = ls + 1.7 * math.exp(-5 * (1 - .1 / .4) ** 2) * lu + .01 * penalty
    assert lu > 1e-6 and torch.allclose(got, want, atol=1e-6, rtol=1e-5)


def test_input_mixup_is_manifold_mixup_at_stage_0_to_the_bit():
    net, u, none = build("tiny-cnn", (1, 32, 32), 10, seeded()), SEEN.floats(slice(40)), torch.zeros(40, dtype=torch.int64)
    one, other = (m.prepare(SEEN, seeded(), AUGMENTS["crop"], FEW).at(.3).loss(net.eval(), u, none, seeded(2)) for m in (SSLMixup(), SSLManifoldMixup(stages=(0,))))
    assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [SSLMixup, SSLManifoldMixup])
def test_that_a_loop_does_not_say_how_far_it_is_is_said(kind):
    net, u, none = build("tiny-cnn", (1, 32, 32), 10, seeded()), SEEN.floats(slice(40)), torch.zeros(40, dtype=torch.int64)
    ready = kind(stages=(0,)).prepare(SEEN, seeded(), labelled=FEW)
    with pytest.warns(UserWarning, match=f"{kind.__name__} changes in the course of a run, but was not told"): ready.loss(net, u, none, seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ready.at(0.).loss(net, u, none, seeded())


def test_no_gradient_through_the_targets_and_three_passes_in_training_mode():
    net, u, none = build("tiny-cnn", (1, 32, 32), 10, seeded()), SEEN.floats(slice(40)), torch.zeros(40, dtype=torch.int64)
    passes = []
    net.register_forward_hook(lambda *_: passes.append((torch.is_grad_enabled(), net.training)))
    SSLManifoldMixup().prepare(SEEN, seeded(), labelled=FEW).loss(net.train(), u, none, seeded()).backward()
    assert passes == [(True, True), (False, True), (True, True)]
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())
    assert net.stages[0][0][1].num_batches_tracked == 3  # each pass moves the running statistics


def test_no_weight_is_the_supervised_loss():
    net, u, none = build("tiny-cnn", (1, 32, 32), 10, seeded()).eval(), SEEN.floats(slice(40)), torch.zeros(40, dtype=torch.int64)
    ready = SSLManifoldMixup(weight=0., l1=0.).prepare(SEEN, seeded(), labelled=FEW)
    assert torch.equal(ready.loss(net, u, none, seeded()), ready.supervised(net, 40, seeded()))
    plain = FewLabels(l1=0.).prepare(SEEN, seeded(), labelled=FEW)
    i = torch.randperm(50, generator=seeded())[:40]
    assert torch.allclose(plain.loss(net, u, none, seeded()), F.cross_entropy(net(FEW.floats(i)), FEW.y[i]))


@pytest.mark.parametrize("change, message", [
    (dict(batch=1200), "leaves 1158 images without labels, fewer than a batch of 1200: take a smaller batch or fewer for validation"),
    (dict(split="digits-l55-v100-s3"), "n_labelled must be a multiple of the 10 classes, got 55: try 60"),
    (dict(split="digits-l50-v101-s3"), "n_validation must be a multiple of the 10 classes, got 101: try 100"),
    (dict(split="digits-l1200-v200-s3"), "fewer than 120 labelled and 20 for validation: ask for less"),
    (dict(method_args=dict(stages=(0, 4))), r"this network has stages 0 \(the input\) to 3, but those to mix at are \(0, 4\)"),
    (dict(method_args=dict(alpha=0.)), "alpha must be above 0, got 0.0"), (dict(method_args=dict(alpha_u=-2.)), "alpha_u must be above 0, got -2.0"),
    (dict(split=""), "learns from few labels and all images: give it a split"), (dict(n_train=500), "and no n_train"), (dict(whiten="pca"), "unknown whiten 'pca': did you mean 'zca'"),
])
def test_what_cannot_be_trained_says_so(change, message, tmp_path):
    with pytest.raises(ValueError, match=message): train_run(replace(SPEC, **change), Store(tmp_path), "cpu")


def test_methods_by_name():
    assert isinstance(method("ssl-mixup"), SSLMixup) and method("ssl-mixup").stages == (0,) and method("ssl-manifold-mixup", stages=[1]).stages == (1,)
    assert not isinstance(method("ssl-baseline"), SSLManifoldMixup) and method("ssl-baseline").unlabelled


@pytest.mark.parametrize("kind", [SSLMixup, SSLManifoldMixup, Mixup])
def test_the_number_of_an_epoch_is_no_share_of_a_run(kind):
    "With the epochs 0, 1, 2, ... in its place the consistency had its whole weight from the second epoch on."
    way = kind()
    for t in (0, .5, 1.): way.at(t)
    for t in (2, 30., -1, float("nan")):
        with pytest.raises(ValueError, match=r"t is the share of the updates that are done, in \[0, 1\], got .*: divide the steps"): way.at(t)
