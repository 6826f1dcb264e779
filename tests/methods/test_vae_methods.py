"""VarMixup, Mixup-R and adv-VarMixup are their equations, on one frozen VAE; its adversarial training attacks what it minimises."""

import copy
import warnings
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from hypothesis import given, settings, strategies as st
from torch import nn

from helpers import goes_on_alike, seeded
from mixrepro.data import datasets
from mixrepro.data.augment import AUGMENTS
from mixrepro.data.datasets import load
from mixrepro.data.images import ImageSet
from mixrepro.methods.adv_mmd_vae import AdvMMDVAE, unrecorded
from mixrepro.methods.adv_varmixup import AdvVarMixup
from mixrepro.methods.base import state_of
from mixrepro.methods.catalogue import method
from mixrepro.methods.erm import ERM
from mixrepro.methods.kl_vae import KLVAE, divergence
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.mixup_r import MixupR
from mixrepro.methods.mmd_vae import KERNELS, MMDVAE, mmd
from mixrepro.methods.varmixup import ERMR, Turns, VarMixup, WithVAE, encode_all, frozen
from mixrepro.methods.vicinal import draw_mix
from mixrepro.networks.autoencoders import ConvVAE
from mixrepro.networks.zoo import build
from mixrepro.training import loop
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, name_of
from mixrepro.training.store import Store

ON_VAE = (VarMixup, MixupR, AdvVarMixup)
SHAPE = (1, 8, 8)


def images(n=12, shape=SHAPE, classes=4, seed=0) -> ImageSet:
    rng = seeded(seed)
    x = torch.randint(256, (n, *shape), generator=rng, dtype=torch.uint8)
    return ImageSet(x, torch.randint(classes, (n,), generator=rng), tuple(map(str, range(classes))), "digits", "train")


def vae(shape=SHAPE, **choices):
    "An autoencoder whose batch norm has seen data, so that it differs between training and evaluation."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = ConvVAE(shape, **dict(latent=5, width=4, depth=2) | choices)
        for _ in range(3): net(torch.rand(16, *shape))
    return net


def linear(classes=4, shape=SHAPE):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), classes))


class Linear(nn.Module):
    "An autoencoder that keeps everything: codes are pixels, turned by an orthogonal matrix."
    def __init__(self, d=64):
        super().__init__()
        self.register_buffer("q", torch.linalg.qr(torch.randn(d, d, generator=seeded(3), dtype=torch.float64))[0])
    def encode(self, x): return (x.flatten(1).double() @ self.q)
    def decode(self, z): return (z @ self.q.T).view(-1, *SHAPE).float()


class Same(nn.Module):
    "An autoencoder that does nothing."
    def encode(self, x): return x.flatten(1)
    def decode(self, z): return z.view(-1, *SHAPE)


def cross_entropy(logits, target):
    p = np.exp(logits - logits.max(1, keepdims=True))
    return -(target * np.log(p / p.sum(1, keepdims=True))).sum(1).mean()


# the laws ---------------------------------------------------------------------------------------------------------------------------------

@given(n=st.integers(2, 12), share=st.floats(.05, 8), seed=st.integers(0, 2 ** 32), per=st.sampled_from(["batch", "example"]),
       kind=st.sampled_from(ON_VAE), shape=st.sampled_from([(1, 8, 8), (3, 9, 8), (2, 5, 7)]))
@settings(max_examples=40, deadline=None)
def test_the_losses_from_the_formulas_in_float64(n, share, seed, per, kind, shape):
    train, net, ae = images(n, shape), linear(shape=shape), vae(shape)
    ready = kind(**{"alpha" if kind is MixupR else "eta": share}, per=per).prepare(train, seeded(), vae=ae)
    ours = ready.loss(net, train.floats(), train.y, seeded(seed)).item()
    mix, exact = draw_mix(n, share, seeded(seed), per), copy.deepcopy(ae).double()
    x, lam = train.x.double() / 255, mix.lam.double().expand(n).numpy()
    with torch.no_grad():
        z = exact.encode(x)
        i, j = (z, z[mix.partner]) if kind is not MixupR else (exact.decode(z), exact.decode(z)[mix.partner])
        a = torch.tensor(lam).view(n, *[1] * (i.dim() - 1))
        mixed = a * i + (1 - a) * j
        logits = copy.deepcopy(net).double()(mixed if kind is MixupR else exact.decode(mixed)).numpy()
    onehot = np.eye(4)[train.y]
    target = lam[:, None] * onehot + (1 - lam[:, None]) * onehot[mix.partner]
    assert ours == pytest.approx(cross_entropy(logits, target), abs=2e-5)


@given(seed=st.integers(0, 2 ** 32), share=st.floats(.05, 8))
@settings(max_examples=20, deadline=None)
def test_with_an_autoencoder_that_does_nothing_all_are_mixup(seed, share):
    train, net = images(), linear()
    plain = Mixup(alpha=share).loss(net, train.floats(), train.y, seeded(seed))
    for ready in (VarMixup(eta=share), MixupR(alpha=share)):
        assert torch.equal(ready.prepare(train, seeded(), vae=Same()).loss(net, train.floats(), train.y, seeded(seed)), plain)


def test_with_a_linear_decoder_mixing_codes_is_mixing_reconstructions():
    train, net = images(), linear()
    both = [m.prepare(train, seeded(), vae=Linear()).loss(net, train.floats(), train.y, seeded(5)) for m in (VarMixup(), MixupR())]
    assert torch.allclose(*both, atol=1e-6)
    class Curved(Linear):
        def decode(self, z): return super().decode(z) ** 3
    curved = [m.prepare(train, seeded(), vae=Curved()).loss(net, train.floats(), train.y, seeded(5)) for m in (VarMixup(), MixupR())]
    assert not torch.allclose(*curved, atol=1e-4)


@pytest.mark.parametrize("kind", ON_VAE)
@given(order=st.permutations(range(12)), size=st.integers(2, 12), seed=st.integers(0, 2 ** 32))
@settings(max_examples=15, deadline=None)
def test_looked_up_is_computed(kind, order, size, seed):
    train, net = images(), linear()
    ready, index = kind().prepare(train, seeded(), vae=vae()), torch.tensor(order[:size])
    x, y = train.floats(index), train.y[index]
    assert torch.allclose(ready.loss(net, x, y, seeded(seed), index), ready.loss(net, x, y, seeded(seed)), atol=2e-3 if kind is MixupR else 1e-5)
    unrelated = torch.zeros_like(x)  # with the places known, the pixels of the batch are not looked at
    assert torch.equal(ready.loss(net, unrelated, y, seeded(seed), index), ready.loss(net, x, y, seeded(seed), index))


def test_reconstructions_at_rest_are_half_precision_and_right():
    train, ae = images(), vae()
    ready = MixupR().prepare(train, seeded(), vae=ae)
    kept = ready.made.images
    assert kept.dtype == torch.float16 and (kept.double() - ae(train.floats()).double()).abs().max() <= 2 ** -12
    assert ready.reconstruction(train.floats(), torch.arange(12)).dtype == torch.float32


@pytest.mark.parametrize("kind", ON_VAE)
def test_where_the_augmentation_sits(kind):
    train, ae, seen = images(), vae(), []
    def augment(x, rng):
        seen.append(x)
        return AUGMENTS["crop"](x, rng)
    ready, net = kind().prepare(train, seeded(), augment=augment, vae=ae), linear()
    ours = ready.loss(net, train.floats(), train.y, seeded(4))
    again, x = seeded(4), train.floats()
    mix = draw_mix(12, 1., again)
    if kind is MixupR: before, after = ae(x), lambda v: mix(AUGMENTS["crop"](v, again))
    else: before, after = ae.decode(mix(ae.encode(x))), lambda v: AUGMENTS["crop"](v, again)
    assert kind.raw and len(seen) == 1 and torch.allclose(seen[0], before, atol=1e-6)
    logits = net(after(before)).detach().numpy()
    assert ours.item() == pytest.approx(cross_entropy(logits, mix(torch.eye(4)[train.y]).numpy()), abs=1e-5)


# the VAE ----------------------------------------------------------------------------------------------------------------------------------

@given(network=st.sampled_from(["tiny-cnn", "mlp"]), epochs=st.integers(1, 300), lr=st.floats(1e-5, 1), optimizer=st.sampled_from(["adam", "sgd"]), momentum=st.floats(.01, .99),
       nesterov=st.booleans(), weight_decay=st.floats(0, .1), schedule=st.sampled_from(["constant", "cosine", "step"]), augment=st.sampled_from(["none", "crop-flip"]),
       precision=st.sampled_from(["float32", "bfloat16"]), gamma=st.floats(0, 100), kernel=st.sampled_from(["imq", "gaussian-d"]), seed=st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_whoever_asks_for_a_vae_asks_for_the_same_one(gamma, kernel, seed, **own):
    args = dict(gamma=gamma, kernel=kernel, vae_network="vae-small", vae_epochs=7)
    one = Spec("digits", "varmixup", "small-cnn", seed, method_args=args).needs["vae"]
    two = Spec("digits", "mixup-r", seed=seed, method_args=args | dict(alpha=.3), milestones=(1,), **own).needs["vae"]
    assert one == two and name_of(one) == name_of(two) and one.method == "mmd-vae"


def test_what_makes_another_vae():
    base = Spec("digits", "varmixup", "tiny-cnn", method_args=dict(vae_network="vae-small"))
    need = lambda **args: name_of(replace(base, method_args=base.method_args | args).needs["vae"])
    others = [need(gamma=10.), need(kernel="gaussian-d"), need(vae_epochs=5), need(vae_latent=9), need(vae_network="vae"), need(vae_dataset="synthetic-blobs"),
              name_of(replace(base, seed=1).needs["vae"]), name_of(replace(base, n_train=50).needs["vae"]), name_of(replace(base, method="adv-varmixup").needs["vae"])]
    assert len({need(), *others}) == 1 + len(others)
    assert need() == need(eta=.3) == need(per="example")
    adv = replace(base, method="adv-varmixup").needs["vae"]
    assert adv == replace(base.needs["vae"], method="adv-mmd-vae", method_args=adv.method_args) and adv.method_args["eps"] == 8 / 255
    assert name_of(adv) != name_of(replace(base, method="adv-varmixup", method_args=base.method_args | dict(steps=7)).needs["vae"])


def test_another_data_sets_vae_takes_all_its_images():
    spec = Spec("digits", "varmixup", "tiny-cnn", n_train=200, method_args=dict(vae_dataset="synthetic-blobs"))
    assert (spec.needs["vae"].dataset, spec.needs["vae"].n_train) == ("synthetic-blobs", 0)
    own = replace(spec, n_train=0, method_args={})
    named = replace(own, method_args=dict(vae_dataset="digits"))
    assert own.needs == named.needs, "its own name is no other data set"
    with pytest.raises(ValueError, match="unknown vae_dataset 'digit': did you mean 'digits'"): name_of(replace(spec, method_args=dict(vae_dataset="digit")))


@pytest.mark.parametrize("kind", ON_VAE)
def test_the_vae_is_used_and_not_changed(kind):
    train, net, ae = images(), linear(), vae()
    assert ae.training
    ready, before = kind().prepare(train, seeded(), augment=AUGMENTS["crop"], vae=ae), {k: v.clone() for k, v in ae.state_dict().items()}
    assert not ae.training and not any(p.requires_grad for p in ae.parameters())
    for index in (None, torch.arange(12)):
        net.train()
        ready.loss(net, train.floats(), train.y, seeded(), index).backward()
    assert all(p.grad is None for p in ae.parameters()) and all(torch.equal(v, before[k]) for k, v in ae.state_dict().items())
    assert all(p.grad is not None for p in net.parameters())
    assert not ready.made.codes.requires_grad


@pytest.mark.parametrize("kind", [VarMixup, ERMR, AdvVarMixup])
def test_a_vae_that_is_put_in_training_mode_again_is_refused(kind):
    "As `train()` of a module that holds it does: its batch norm would take each batch's statistics, and keep them."
    train, held = images(), vae()
    made, net = kind().prepare(train, seeded(), vae=held), linear()
    whole, (x, y) = nn.ModuleList([net, held]), (train.floats(), train.y)
    kept, loss = copy.deepcopy(held.state_dict()), made.loss(net, x, y, seeded())
    whole.train()
    with pytest.raises(ValueError, match=r"the ConvVAE that .* was prepared with \(vae\) is in training mode again"): made.loss(net, x, y, seeded())
    assert all(torch.equal(v, kept[k]) for k, v in held.state_dict().items())
    held.eval()
    assert torch.equal(made.loss(net, x, y, seeded()), loss)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", (*ON_VAE, ERMR))
def test_what_is_kept_is_not_rounded_by_autocast(kind, dtype):
    "Mixup-R's images could not be put together, and codes of another type fitted no weights after it."
    train, net = images(), linear()
    with torch.autocast("cpu", dtype):
        with pytest.raises(TypeError, match=f"are kept for the whole run, and torch.autocast would round them to {dtype}: prepare the method outside"): kind().prepare(train, seeded(), vae=vae())
    ready = kind().prepare(train, seeded(), vae=vae())
    with torch.autocast("cpu", dtype): assert ready.loss(net, train.floats(), train.y, seeded(), torch.arange(12)).isfinite()


def test_features_and_made_points_are_not_rounded_by_autocast():
    train, net = images(40), build("tiny-cnn", SHAPE, 4, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(TypeError, match="densities of features are kept for the whole run"): method("mixup", labels={"name": "genlabel-latent"}).prepare(train, seeded(), vanilla=net)
        with pytest.raises(TypeError, match="made points are kept for the whole run"): method("genmix-gan").prepare(train, seeded(), gan=build("class-sngan-small", SHAPE, 4, seeded(), enlarge=1))


@pytest.mark.parametrize("kind", ON_VAE)
def test_prepare_returns_a_ready_copy(kind):
    m = kind()
    ready = m.prepare(images(), seeded(), vae=vae())
    assert ready is not m and ready == m and ready.made.codes.shape == (12, 5)
    with pytest.raises(ValueError, match="is not ready"): m.made
    with pytest.raises(FrozenInstanceError): ready.kernel = "gaussian-d"
    assert {f.name for f in fields(kind)} >= {f.name for f in fields(WithVAE)}


# what is refused, and what is warned of -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, trainer", [(VarMixup, "mmd-vae"), (MixupR, "mmd-vae"), (AdvVarMixup, "adv-mmd-vae")])
def test_what_cannot_be_prepared(kind, trainer):
    train, net = images(), linear()
    with pytest.raises(ValueError, match=f"{kind.__name__} works in the latent space of a VAE: train one with the method '{trainer}' and pass it as vae="):
        kind().prepare(train, seeded())
    with pytest.raises(ValueError, match=r"got a VAE of images \(3, 8, 8\), but the training images are \(1, 8, 8\): train the VAE on images of that shape"):
        kind().prepare(train, seeded(), vae=vae((3, 8, 8)))
    for index in (None, torch.arange(12)):
        with pytest.raises(ValueError, match=f"{kind.__name__} is not ready: call prepare"): kind().loss(net, train.floats(), train.y, seeded(), index)
    with pytest.raises(ValueError, match="(alpha|eta) must be above 0, got 0"):
        kind(**{"alpha" if kind is MixupR else "eta": 0.}).prepare(train, seeded(), vae=vae()).loss(net, train.floats(), train.y, seeded())


@given(spread=st.floats(1e-6, 1), offset=st.floats(-3, 3), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_codes_that_collapse_are_warned_of(spread, offset, seed):
    z = torch.randn(12, 6, generator=seeded(seed), dtype=torch.float64) * spread + offset
    class Given(nn.Module):
        def encode(self, x): return z[:len(x)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert torch.equal(encode_all(Given(), images()), z)
    collapsed = np.std(z.numpy(), axis=0).mean() < 1e-3
    assert [w.category for w in said] == [UserWarning] * int(collapsed)
    if collapsed: assert "codes have collapsed" in str(said[0].message) and "\n" not in str(said[0].message)


def test_codes_that_are_no_numbers_and_a_single_image():
    class Given(nn.Module):
        def encode(self, x): return torch.full((len(x), 3), float("nan"))
    for net, train in ((Given(), images()), (vae().eval(), images(1))):
        with pytest.warns(UserWarning, match="have collapsed") as said: encode_all(net, train)
        assert len(said) == 1


@pytest.mark.parametrize("spread, warned", [(.0009, True), (.0011, False)])
def test_the_threshold_of_collapse(spread, warned):
    class Given(nn.Module):
        def encode(self, x): return spread * torch.tensor([1., -1.]).repeat(6)[:, None].expand(12, 3).double()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        encode_all(Given(), images())
    assert len(said) == warned


def test_a_healthy_vae_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        VarMixup().prepare(images(), seeded(), vae=vae())


@given(n=st.integers(1, 25), batch=st.integers(1, 30))
@settings(max_examples=15, deadline=None)
def test_encoding_in_parts_is_encoding(n, batch):
    train, ae = images(n), frozen(vae(), SHAPE, "a test", "mmd-vae")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(encode_all(ae, train, batch), ae.encode(train.floats()), atol=1e-5)


# what pulls codes to the prior ----------------------------------------------------------------------------------------

def kernel_by_hand(kind, a, b):
    "Zhao et al.'s Gaussian divides by d twice; the others are the textbooks'."
    d, far = len(a), ((a - b) ** 2).sum()
    return {"imq": 2 * d / (2 * d + far), "gaussian-d": np.exp(-far / d), "gaussian-d2": np.exp(-far / d ** 2)}[kind]


@pytest.mark.parametrize("kind", KERNELS)
def test_the_discrepancy_of_every_kernel_is_a_double_loop_in_float64(kind):
    "VarMixup paper, eq. 7: the squared discrepancy, with the pairs of a code with itself."
    for seed, (n, m, d) in enumerate([(2, 3, 1), (3, 2, 2), (7, 5, 30)] * 4):
        rng = np.random.default_rng(seed)
        q, p = rng.normal(size=(n, d)) * (1 + seed % 5), rng.normal(size=(m, d)) + seed % 7
        def mean(A, B): return np.mean([kernel_by_hand(kind, a, b) for a in A for b in B])
        want = mean(q, q) + mean(p, p) - 2 * mean(q, p)
        assert mmd(torch.tensor(q), torch.tensor(p), kind).item() == pytest.approx(want, abs=1e-12)


# the adversarial VAE ------------------------------------------------------------------------------------------------------------------------

@given(n=st.integers(2, 6), gamma=st.floats(0, 20), target=st.sampled_from(["adversarial", "clean"]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_adversarial_objective_from_the_formula_in_float64(n, gamma, target, seed):
    net, rng = vae().double(), seeded(seed)
    x, at = torch.rand(2, n, *SHAPE, generator=rng, dtype=torch.float64)
    prior = torch.randn(n, 5, generator=rng, dtype=torch.float64)
    ours = AdvMMDVAE(gamma=gamma, target=target).objective(net, at, x, prior, rng).item()
    z = net.encode(at)
    decoded, z, p = net.decode(z).detach().numpy(), z.detach().numpy(), prior.numpy()
    k = lambda A, B: np.mean([10 / (10 + ((a - b) ** 2).sum()) for a in A for b in B])
    error = ((decoded - (at if target == "adversarial" else x).numpy()) ** 2).mean()
    assert ours == pytest.approx(gamma * (k(z, z) + k(p, p) - 2 * k(z, p)) + error, rel=1e-9, abs=1e-12)


@given(gamma=st.sampled_from([0., .1, 10.]), step=st.sampled_from([.5, 1, 2, 4, 8]), target=st.sampled_from(["adversarial", "clean"]), start=st.sampled_from(["uniform", "image"]),
       seed=st.integers(0, 99), training=st.booleans(), posterior=st.sampled_from(["deterministic", "gaussian"]))
@settings(max_examples=40, deadline=None)
def test_the_inner_maximisation_raises_what_is_minimised(gamma, step, target, start, seed, training, posterior):
    net, x = vae(posterior=posterior).train(training), torch.rand(8, *SHAPE, generator=seeded(seed))
    adv = AdvMMDVAE(gamma=gamma, step=step / 255, steps=8, target=target, start=start)
    prior = adv.prior(net, x, seeded(seed))
    worst = adv.worst(net, x, prior, seeded(seed + 1))
    with torch.no_grad(), unrecorded(net): before, after = (adv.objective(net, v, x, prior, seeded()).item() for v in (x, worst))
    if posterior == "deterministic": assert after > before  # a Gaussian one draws its noise at each step
    assert (worst - x).abs().max() <= 8 / 255 + 1e-6 and worst.min() >= 0 and worst.max() <= 1 and not worst.requires_grad


class Bilinear(nn.Module):
    "An autoencoder that is written down in a line each way."
    def __init__(self, rng, shape, d=2):
        super().__init__()
        self.shape, size = shape, int(np.prod(shape))
        self.into, self.out = (torch.randn(s, generator=rng, dtype=torch.float64) for s in ((size, d), (d, size)))
    def encode(self, x): return x.flatten(1) @ self.into
    def posterior(self, x, rng): return self.encode(x)
    def decode(self, z): return (z @ self.out).sigmoid().view(-1, *self.shape)


@pytest.mark.parametrize("target", ["adversarial", "clean"])
@pytest.mark.parametrize("n, shape", [(2, (1, 2, 3)), (3, (3, 2, 1))])
def test_the_inner_maximisation_is_the_plain_loop_with_differences_for_a_gradient(n, shape, target):
    "VarMixup paper, eq. 10 in the sign that is minimised: all images move together, and the MMD sees them together."
    rng = seeded(n)
    net, x = Bilinear(rng, shape), torch.rand(n, *shape, generator=rng, dtype=torch.float64)
    prior, X = torch.randn(n, 2, generator=rng, dtype=torch.float64), x.flatten(1).numpy()
    into, out, p = net.into.numpy(), net.out.numpy(), prior.numpy()
    def k(A, B): return np.mean([kernel_by_hand("imq", a, b) for a in A for b in B])
    def J(A):
        z, goal = A @ into, A if target == "adversarial" else X
        return 2 * (k(z, z) + k(p, p) - 2 * k(z, p)) + ((1 / (1 + np.exp(-z @ out)) - goal) ** 2).mean()
    low, high = np.maximum(X - .1, 0), np.minimum(X + .1, 1)
    start = 2 * torch.rand(x.shape, generator=seeded(9), dtype=torch.float64) - 1
    at, step = np.clip(X + .1 * start.flatten(1).numpy(), low, high), 1e-6 * np.eye(X.size).reshape(-1, *X.shape)
    for _ in range(4):
        slope = np.reshape([J(at + e) - J(at - e) for e in step], X.shape)
        at = np.clip(at + .03 * np.sign(slope), low, high)
    adv = AdvMMDVAE(gamma=2., eps=.1, step=.03, steps=4, target=target)
    worst = adv.worst(net, x, prior, seeded(9))
    assert np.abs(worst.flatten(1).numpy() - at).max() < 1e-12
    assert adv.objective(net, worst, x, prior, seeded()).item() == pytest.approx(J(at), rel=1e-12)


def test_it_is_an_mmd_vae_where_nothing_is_attacked():
    net, x, y = vae(), torch.rand(8, *SHAPE, generator=seeded()), torch.zeros(8, dtype=torch.int64)
    for posterior in ("deterministic", "gaussian"):
        net = vae(posterior=posterior)
        plain = copy.deepcopy(net)
        tiny = AdvMMDVAE(eps=1e-8, step=1e-8, steps=1, start="image")
        if posterior == "deterministic": assert torch.allclose(tiny.loss(net, x, y, seeded()), MMDVAE().loss(plain, x, y, seeded()), rtol=1e-5)
        else: assert tiny.loss(net, x, y, seeded()).isfinite()
    assert isinstance(AdvMMDVAE(), MMDVAE) and AdvMMDVAE().score(net.eval(), x, y)["mse"].shape == (8,)


def test_one_prior_sample_for_the_ascent_and_the_step():
    class Spy(AdvMMDVAE):
        seen = []
        def objective(self, net, at, x, prior, rng):
            self.seen.append((at.detach().clone(), prior))
            return super().objective(net, at, x, prior, rng)
    x, y = torch.rand(6, *SHAPE, generator=seeded()), torch.zeros(6, dtype=torch.int64)
    rng = seeded()
    Spy(steps=4).loss(vae(), x, y, rng)
    assert len(Spy.seen) == 5 and len({id(p) for _, p in Spy.seen}) == 1
    first = Spy.seen[0][1]
    Spy(steps=4).loss(vae(), x, y, rng)
    assert not torch.equal(Spy.seen[-1][1], first), "and another one for the next batch"


def test_only_the_last_pass_enters_the_running_statistics():
    net, x, y = vae(), torch.rand(8, *SHAPE, generator=seeded()), torch.zeros(8, dtype=torch.int64)
    other, adv = copy.deepcopy(net), AdvMMDVAE(steps=3)
    adv.loss(net, x, y, seeded()).backward()
    rng, search = seeded(), copy.deepcopy(other)
    worst = adv.worst(search, x, adv.prior(search, x, rng), rng)
    assert all(torch.equal(a, b) for a, b in zip(search.state_dict().values(), other.state_dict().values()))
    other(worst)
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values()))
    assert all(m.track_running_stats for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    assert all(p.grad is not None for p in net.parameters()) and all(p.grad is None for p in other.parameters())


def test_where_the_ascent_starts():
    net, x = vae().eval(), torch.full((4, *SHAPE), .5)
    near, far = (AdvMMDVAE(step=1e-4, steps=1, start=start).worst(net, x, torch.randn(4, 5, generator=seeded()), seeded()) for start in ("image", "uniform"))
    assert (near - x).abs().max() <= 1.01e-4 and (far - x).abs().max() > 4 / 255


def test_statistics_are_recorded_again_after_an_error():
    net = nn.BatchNorm1d(2)
    with pytest.raises(KeyError), unrecorded(net): raise KeyError
    net(torch.rand(4, 2))
    assert net.num_batches_tracked == 1
    still = nn.BatchNorm1d(2).eval()
    with unrecorded(still): assert torch.equal(still(h := torch.rand(4, 2)), still.eval()(h))
    own = nn.BatchNorm1d(2, track_running_stats=False)
    with unrecorded(own): own(torch.rand(4, 2))
    assert not own.track_running_stats


@pytest.mark.parametrize("bad, message", [(dict(eps=0.), "eps must be in .0, 1., got 0.0: 8 grey"), (dict(step=-1.), "step must be in .0, 1."), (dict(steps=0), "steps must be at least 1, got 0"),
                                          (dict(target="cleen"), "unknown target 'cleen': did you mean 'clean'"), (dict(start="unifrm"), "did you mean 'uniform'"),
                                          (dict(epss=1.), "unknown hyper-parameter of 'adv-mmd-vae' 'epss': did you mean 'eps'")])
def test_attacks_that_cannot_be(bad, message):
    with pytest.raises(ValueError, match=message): method("adv-mmd-vae", **bad)


def test_adv_varmixup_names_every_field_of_its_vae():
    assert set(AdvVarMixup().vae_args()) == {f.name for f in fields(AdvMMDVAE)} and AdvMMDVAE(**AdvVarMixup().vae_args()) == AdvMMDVAE()
    other = dict(gamma=2., kernel="gaussian-d", eps=.1, step=.01, steps=3, start="image", target="clean")
    assert AdvMMDVAE(**AdvVarMixup(**other).vae_args()) == AdvMMDVAE(**other)


# randomness, and whole runs -----------------------------------------------------------------------------------------------------------------

def test_only_the_generator_is_drawn_from():
    train, net = images(), linear()
    ready = [kind().prepare(train, seeded(), augment=AUGMENTS["crop"], vae=vae()) for kind in ON_VAE]
    draw = [lambda s, m=m: m.loss(net, train.floats(), train.y, seeded(s)).item() for m in ready]
    draw.append(lambda s: AdvMMDVAE(steps=2).loss(vae(), train.floats(), train.y, seeded(s)).item())
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    for loss in draw: assert loss(1) == loss(1) != loss(2)
    assert torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


def test_one_vae_serves_two_methods_and_seeds_have_their_own(tmp_path):
    store, args = Store(tmp_path), dict(vae_network="vae-small", vae_epochs=1)
    for name, seed in (("varmixup", 0), ("mixup-r", 0), ("adv-varmixup", 0), ("mixup-r", 1)):
        train_run(Spec("digits", name, "tiny-cnn", seed, epochs=1, n_train=100, batch=32, augment="crop", method_args=args | (dict(steps=1) if "adv" in name else {})), store, "cpu")
    trained = sorted((r.spec.method, r.spec.seed) for r in store.runs() if "vae" in r.spec.method)
    assert trained == [("adv-mmd-vae", 0), ("mmd-vae", 0), ("mmd-vae", 1)]


def test_a_vae_of_another_data_set(tmp_path, monkeypatch):
    "The same images upside down are another data set of the same shape; the coloured ones have another shape."
    turned = lambda split, root, verify: (lambda d: replace(d, x=d.x.flip(2), name="turned").subset(60))(load("digits", split))
    monkeypatch.setitem(datasets.DATASETS, "turned", turned)
    monkeypatch.setitem(datasets.STATS, "turned", datasets.STATS["digits"])
    spec = Spec("digits", "varmixup", "tiny-cnn", epochs=1, n_train=100, batch=32, augment="crop",
                method_args=dict(vae_network="vae-small", vae_epochs=1, vae_dataset="turned", vae_latent=7))
    store = Store(tmp_path)
    assert train_run(spec, store, "cpu").done
    kept = next(r for r in store.runs() if r.spec.method == "mmd-vae")
    assert kept.spec.dataset == "turned" and kept.spec.n_train == 0 and loop.open_net(kept).choices.latent == 7
    blobs = replace(spec, method_args=spec.method_args | dict(vae_dataset="synthetic-blobs"))
    with pytest.raises(ValueError, match=r"got a VAE of images \(3, 32, 32\), but the training images are \(1, 32, 32\)"): train_run(blobs, store, "cpu")


# mixtures and real images in turn -----------------------------------------------------------------------------------------------------------

@given(share=st.floats(.01, 1), n=st.integers(1, 300))
@settings(max_examples=100, deadline=None)
def test_so_many_of_the_batches_are_mixtures_at_any_moment(share, n):
    turns = Turns(share)
    assert abs(sum(turns.next() for _ in range(n)) - n * share) < 1


def test_a_share_of_one_half_is_erm_and_varmixup_by_turns():
    "The real batches are ERM's to the last bit, the others VarMixup's."
    train, net = images(), linear()
    half, all_of_them = (VarMixup(share=s).prepare(train, seeded(), vae=vae()) for s in (.5, 1.))
    x, index = train.floats(), torch.arange(12)
    found = [half.loss(net, x, train.y, seeded(7), index) for _ in range(4)]
    assert torch.equal(found[0], ERM().loss(net, x, train.y, seeded(7), index)) and torch.equal(found[0], found[2])
    assert torch.equal(found[1], all_of_them.loss(net, x, train.y, seeded(7), index)) and torch.equal(found[1], found[3])
    assert not torch.equal(found[0], found[1])


def test_two_networks_that_are_trained_side_by_side_do_not_share_the_turns():
    "One would get the real batches and the other the mixtures, with no word; each gets both from a copy of its own."
    train, index = images(), torch.arange(12)
    half, first, second = VarMixup(share=.5).prepare(train, seeded(), vae=vae()), linear(), linear()
    def losses(ways): return [[way.loss(net, train.floats(), train.y, seeded(7), index) for way, net in ways] for _ in range(2)]
    with pytest.raises(ValueError, match="one may get mixtures alone: give each network a copy.deepcopy of the method"):
        losses([(half, first), (half, second)])
    (a, b), (c, d) = losses([(copy.deepcopy(half), first), (copy.deepcopy(half), second)])
    assert torch.equal(a, b) and torch.equal(c, d) and not torch.equal(a, c)
    for net in (linear(), linear()): VarMixup.loss(half, net, train.floats(), train.y, seeded(7), index)  # one after the other


@pytest.mark.parametrize("index", [[*range(12)], np.arange(12), range(12)])
@pytest.mark.parametrize("kind", [VarMixup, MixupR])
def test_places_that_are_no_tensor_are_refused_in_one_sentence(kind, index):
    train = images()
    way = kind().prepare(train, seeded(), vae=vae())
    with pytest.raises(TypeError, match=r"int64 \(B,\), got .*: convert with torch.as_tensor"):
        way.loss(linear(), train.floats(), train.y, seeded(), index)


def test_real_batches_are_augmented():
    train, seen = images(), []
    half = VarMixup(share=.5).prepare(train, seeded(), augment=lambda x, rng: (seen.append(x), x.flip(3))[1], vae=vae())
    half.loss(linear(), train.floats(), train.y, seeded())
    assert torch.equal(seen[0], train.floats())


@pytest.mark.parametrize("remembers", [True, False])
def test_a_run_with_turns_that_was_cut_off_ends_the_same(tmp_path, monkeypatch, remembers):
    "Three batches an epoch, so that the turn after an epoch depends on which it was."
    spec = Spec("digits", "varmixup", "tiny-cnn", epochs=4, n_train=96, batch=32, augment="crop",
                method_args=dict(vae_network="vae-small", vae_epochs=1, share=.5))
    assert goes_on_alike(spec, tmp_path, monkeypatch, 1, remembers) == remembers


def test_with_mixtures_only_there_is_nothing_to_remember():
    ready = VarMixup().prepare(images(), seeded(), vae=vae())
    assert state_of(ready) == {} and state_of(VarMixup(share=.5).prepare(images(), seeded(), vae=vae())) == {"turns": {"step": 0}}


def test_what_came_later_is_in_no_old_name():
    spec = Spec("digits", "varmixup", "tiny-cnn")
    spelled_out = replace(spec, method_args=dict(share=1., vae_resize="bilinear", vae={}))
    assert name_of(spec) == name_of(spelled_out) != name_of(replace(spec, method_args=dict(share=.5)))


@pytest.mark.parametrize("share", [0, -1, 1.1])
def test_a_share_that_cannot_be(share):
    with pytest.raises(ValueError, match=r"share must be in \(0, 1\], got .*: for real images only use 'erm'"): VarMixup(share=share)


# reconstructions, and autoencoders of another size ----------------------------------------------------------------------------------------------

def test_erm_on_reconstructions_is_varmixup_at_the_ends_of_its_segments():
    train, net, own = images(), linear(), vae()
    ready = ERMR().prepare(train, seeded(), vae=own)
    x, index = train.floats(), torch.arange(12)
    assert torch.allclose(ready.loss(net, x, train.y, seeded(), index), ERM().loss(net, own(x), train.y, seeded()), atol=1e-6)


@pytest.mark.parametrize("theirs, ours", [(16, 8), (8, 16)])
def test_an_autoencoder_of_another_size_sees_images_in_its_own(theirs, ours):
    "By two, bilinear: down is the mean of four pixels, up is NumPy's interpolation of rows, then of columns."
    own = vae((1, theirs, theirs))
    other = frozen(own, (1, ours, ours), "VarMixup", "mmd-vae")
    x = torch.rand(3, 1, ours, ours, generator=seeded(5))
    def sized(a, to):
        if to < a.shape[-1]: return a.reshape(len(a), 1, to, 2, to, 2).mean((3, 5))
        n, at = a.shape[-1], (np.arange(to) + .5) / 2 - .5
        line = lambda v: np.interp(at, np.arange(n), v)
        rows = np.apply_along_axis(line, 2, a.numpy())
        return torch.from_numpy(np.apply_along_axis(line, 3, rows)).float()
    assert torch.allclose(other.encode(x), own.encode(sized(x, theirs)), atol=1e-5)
    z = own.encode(torch.rand(3, 1, theirs, theirs, generator=seeded(6)))
    assert torch.allclose(other.decode(z), sized(own.decode(z), ours), atol=1e-6)
    assert not other.training and not any(p.requires_grad for p in other.parameters())


def test_a_run_with_an_autoencoder_of_twice_the_size(tmp_path, monkeypatch):
    "As in section 5, where an autoencoder of 64 px serves images of 32."
    def large(split, root, verify):
        d = load("digits", split).subset(60)
        return replace(d, x=d.x.repeat_interleave(2, 2).repeat_interleave(2, 3), name="large")
    monkeypatch.setitem(datasets.DATASETS, "large", large)
    monkeypatch.setitem(datasets.STATS, "large", datasets.STATS["digits"])
    spec = Spec("digits", "varmixup", "tiny-cnn", epochs=1, n_train=60, batch=30, augment="crop",
                method_args=dict(vae_network="vae-small", vae_epochs=1, vae_dataset="large"))
    store = Store(tmp_path)
    assert train_run(spec, store, "cpu").done
    kept = next(r for r in store.runs() if r.spec.method == "mmd-vae")
    assert loop.open_net(kept).shape == (1, 64, 64)
    refusing = replace(spec, method_args=spec.method_args | dict(vae_resize="none"))
    with pytest.raises(ValueError, match=r"got a VAE of images \(1, 64, 64\), but the training images are \(1, 32, 32\)"): train_run(refusing, store, "cpu")


# the usual VAE --------------------------------------------------------------------------------------------------------------------------------

@given(sigma=st.sampled_from([.1, 1.]), beta=st.floats(0, 4), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_evidence_lower_bound_from_torchs_distributions(sigma, beta, seed):
    "The same noise for both: minus ELBO for a pixel, but for the constant of a Gaussian."
    net = vae(posterior="gaussian").double().eval()
    x = torch.rand(6, *SHAPE, generator=seeded(seed), dtype=torch.float64)
    mean, logvar = net.moments(x)
    z = net.posterior(x, seeded(seed + 1))
    q, p = torch.distributions.Normal(mean, (logvar / 2).exp()), torch.distributions.Normal(0., 1.)
    kl = torch.distributions.kl_divergence(q, p).sum(1).mean()
    told = torch.distributions.Normal(net.decode(z), sigma).log_prob(x).flatten(1).sum(1).mean()
    pixels = x[0].numel()
    wanted = (beta * kl - told - pixels / 2 * np.log(2 * np.pi)) / pixels
    found = KLVAE(beta=beta, sigma=sigma).loss(net, x, torch.zeros(6, dtype=torch.int64), seeded(seed + 1))
    assert torch.allclose(found, wanted, rtol=1e-9)


def test_the_fitted_variance_is_the_likeliest():
    net, x, y = vae(posterior="gaussian").eval(), torch.rand(6, *SHAPE, generator=seeded(2)), torch.zeros(6, dtype=torch.int64)
    def loss(sigma): return KLVAE(sigma=sigma).loss(net, x, y, seeded(3)).item()
    fitted = loss(0.)
    assert fitted <= min(loss(s) for s in np.linspace(.05, 1, 96)) + 1e-6
    assert abs(fitted - minimize_scalar(loss, bounds=(.05, 1), method="bounded", options=dict(xatol=1e-5)).fun) < 1e-4


def test_a_divergence_of_what_is_the_prior_already_is_nothing():
    assert divergence(torch.zeros(3, 4), torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_varmixup_on_the_usual_vae(tmp_path):
    "A VAE of another objective is a field of the autoencoder's run; one that gives no variance is refused before training."
    own = dict(method="kl-vae", method_args={}, network_args=dict(posterior="gaussian"))
    spec = Spec("digits", "varmixup", "tiny-cnn", epochs=1, n_train=100, batch=32, augment="crop",
                method_args=dict(vae_network="vae-small", vae_epochs=1, vae=own))
    store = Store(tmp_path)
    assert train_run(spec, store, "cpu").done
    assert [r.spec.method for r in store.runs()] == ["kl-vae", "varmixup"]
    plain = replace(spec, method_args=spec.method_args | dict(vae=own | dict(network_args={})))
    with pytest.raises(ValueError, match="kl-vae needs a network that says how sure it is of a code"): train_run(plain, store, "cpu")
