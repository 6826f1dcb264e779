"Everything that a GPU is to compute runs on a fake one, and nothing waits for it but what stands in the list with its reason."

import importlib
from unittest.mock import patch

import pytest
import torch
from torch import nn

from mixrepro.data.augment import AUGMENTS
from mixrepro.data.augmix import OPERATIONS, augmix
from mixrepro.data.corruptions import CORRUPTIONS, EXTRA, corrupt
from mixrepro.data.deformations import DEFORMATIONS, deform
from mixrepro.data.perturbations import EXTRA_PERTURBATIONS, HARDER, PERTURBATIONS, perturb
from mixrepro.data.whitening import WHITENINGS, Whiten, fit_whitening
from mixrepro.metrics import (accuracy, attacked, catalogue, concentration, deformed, distances, features, flips, inception_score, interpolation,
                              linearity, mixed_loss, neighbours, rendered, robust, robustness, stability)
from mixrepro.methods import apgd, attacks, densities
from mixrepro.methods.catalogue import METHODS, PARTS, method
from mixrepro.networks.staged import Normalize
from mixrepro.networks.zoo import NETWORKS, kind_of
from mixrepro.training import loop
from mixrepro.training.device import ALLOWED, FakeGPU, HostRead, WrongDevice, fake_cuda, gradients, on_gpu
from mixrepro.training.fit import fit
from mixrepro.training.spec import Spec

from helpers import seeded
from steps import K, images, network, ready

def epoch(made, net, train, precision="float32", optimizer="sgd"):
    "Two steps and the end of an epoch, as a run has them."
    spec = Spec("digits", "erm", "small-cnn", batch=len(train) // 2, precision=precision, optimizer=optimizer, epochs=1)
    rngs = {name: torch.Generator("cpu" if name == "order" else "cuda").manual_seed(0) for name in loop.STREAMS}
    if hasattr(net, "draw_from"): net.draw_from(rngs["network"])
    opt = loop.optimizer(spec, net, made)
    loss = loop.train_epoch(net, made, train, spec, opt, rngs, 0)
    loop.check_trained(net, loss)
    return loop.score(net, made, train, spec)


# ---- a run --------------------------------------------------------------------------------------------------------

def whole(name: str): return name in ("erm", "varmixup", "gan")  # the optimizer's way through a step is the same for every method


@pytest.mark.parametrize("name, precision, optimizer", [
    pytest.param(name, *how, marks=[] if how[1] == "adam" or whole(name) else pytest.mark.slow)
    for name in METHODS for how in (("float32", "sgd"), ("bfloat16", "adam"))])
def test_a_run_waits_at_the_end_of_its_epochs_only(name, precision, optimizer):
    with fake_cuda("start") as gpu:
        made, net, train = ready(name)
        with gpu.during("epoch", sends=False):
            before = gpu.seen.copy()
            epoch(made, net, train, precision, optimizer)
        at_end = gpu.seen - before
        assert set(at_end) <= set(ALLOWED["epoch"]) and at_end["training.loop.train_epoch"] == 1
        learned = [p for p in net.parameters() if p.requires_grad]
        assert learned and all(on_gpu(p) for p in net.parameters())
        if METHODS[name].trains not in ("gan", "class-gan") and name != "manifold-mixup-blocked": assert all(p.grad is not None and p.grad.shape == p.shape for p in learned)


VARIANTS = [("mixup", dict(per="example", criterion="bce")), ("manifold-mixup", dict(noise={"name": "feature-noise", "sparse": .5})),
            ("mixup", dict(labels={"name": "logistic"})), ("cutout", dict(per="batch")), ("varmixup", dict(per="example")),
            ("erm", dict(views={"name": "augmix"})), ("erm", dict(views={"name": "noise", "gamma": 0})), ("mixup", dict(per="example", views={"name": "noise", "count": 1})),
            ("manifold-mixup", dict(views={"name": "augmix"}, labels={"name": "logistic"}, noise={"name": "feature-noise", "sparse": .65, "levels": (1, 2, 3)})),
            ("manifold-mixup", dict(per="lambda and layer", views={"name": "augmix"}, noise={"name": "feature-noise", "factor": "none", "shared": True})),
            ("varmixup", dict(views={"name": "augmix"})), ("varmixup", dict(share=.5, views={"name": "noise"})), ("mixup-r", dict(views={"name": "noise"})),
            ("manifold-mixup", dict(per="lambda")), ("manifold-mixup", dict(per="lambda and layer")),
            ("varmixup", dict(share=.5)), ("at", dict(mode="eval", start="normal", steps=2)), ("iat", dict(shared=True, steps=2)), ("ssl-manifold-mixup", dict(target="logits")),
            ("gan-mixup", dict(law="folded-beta", target="fake", every=1)), ("trades", dict(mode="train", start="uniform", steps=2)),
            ("adv-mmd-vae", dict(target="clean", kernel="gaussian-d", steps=2)), ("gan", dict(every=1)),
            ("cutmix", dict(per="example", labels={"name": "logistic"})), ("puzzlemix", dict(clean=1., t_size=0, blocks=(4,), criterion="bce")),
            ("mixup", dict(labels={"name": "genlabel"}, per="example")), ("manifold-mixup", dict(labels={"name": "genlabel", "density": "kde"})),
            ("mixup", dict(labels={"name": "genlabel-latent"})), ("varmixup", dict(labels={"name": "genlabel-latent", "density": "kde", "top": 2})),
            ("mixup", dict(labels={"name": "genlabel-online", "warmup": 0})), ("no-intrusion", dict(labels={"name": "logistic"})),
            ("manifold-mixup", dict(labels={"name": "genlabel-online"}, noise={"name": "feature-noise"}, views={"name": "noise"})),
            ("class-gan", dict(every=1)), ("genmix", dict(density="kde")), ("genmix", dict(density="gm-spherical", lams=(.3, .5))),
            ("genmix-gan", dict(hold_nearest=False, energy="squared")),
            ("fine-tune", dict(frozen=True)), ("fine-tune", dict(views={"name": "augmix"})),
            ("adamixup", dict(labels={"name": "genlabel"}, criterion="bce")),
            ("puzzlemix", dict(per="example", transport=False, n_labels=2, blocks=(16,)))]


AGAIN = [("erm", dict(views={"name": "noise", "gamma": 0})), ("varmixup", dict(views={"name": "augmix"})), ("varmixup", dict(share=.5, views={"name": "noise"})),
         ("mixup-r", dict(views={"name": "noise"})), ("manifold-mixup", dict(per="lambda")), ("gan", dict(every=1)), ("class-gan", dict(every=1)),
         ("genmix", dict(density="gm-spherical", lams=(.3, .5))), ("genmix-gan", dict(hold_nearest=False, energy="squared")), ("fine-tune", dict(views={"name": "augmix"})),
         ("manifold-mixup", dict(labels={"name": "genlabel-online"}, noise={"name": "feature-noise"}, views={"name": "noise"})),
         ("varmixup", dict(labels={"name": "genlabel-latent", "density": "kde", "top": 2}))]  # parts of which each is in another variant too


@pytest.mark.parametrize("name, args", [pytest.param(*v, marks=[pytest.mark.slow] * (v in AGAIN), id="-".join((v[0], *v[1]))) for v in VARIANTS])
def test_fields_that_change_what_is_computed(name, args):
    with fake_cuda("start") as gpu:
        made, net, train = ready(name, **args)
        with gpu.during("epoch", sends=False): epoch(made, net, train)


def test_every_part_of_a_method_is_among_the_variants_or_a_default():
    asked = {v["name"] for _, args in VARIANTS for v in args.values() if isinstance(v, dict)}
    assert set(PARTS) <= asked | {"none", "linear", "no-views"}


@pytest.mark.parametrize("name", [n for n in NETWORKS if kind_of(n) == "classifier" and n not in ("spiral-net", "bottleneck-mlp", "factor-cnn")])
def test_networks_forward_and_backward_under_bfloat16(name):
    if "152" in name: pytest.skip("the 50-layer network of its family has the same blocks")
    with fake_cuda() as gpu:
        net = network(name, (3, 32, 32))
        x, y = torch.rand(4, 3, 32, 32, device="cuda"), torch.randint(K, (4,), device="cuda")
        with gpu.during(sends=False), torch.autocast("cuda", torch.bfloat16): loss = method("manifold-mixup").loss(net, x, y, torch.Generator("cuda"))
        loss.backward()
        assert all(on_gpu(p.grad) for p in net.parameters()) and not gpu.seen


def test_a_network_that_draws_and_a_fit():
    with fake_cuda() as gpu:
        net = network("spiral-net", (2, 1, 1), 2, width=8, dropout=.5, noise=.1, batch_norm=True)
        net.draw_from(torch.Generator("cuda"))
        x, y = torch.rand(32, 2, 1, 1, device="cuda"), torch.randint(2, (32,), device="cuda")
        with pytest.raises(HostRead, match=r"training\.fit\.fit, line \d+, reads"): fit(net, method("mixup"), x, y, torch.Generator("cuda"), 3)
        with gpu.during("fit"): assert fit(net, method("mixup"), x, y, torch.Generator("cuda"), 3) == [0., 0., 0.]
        assert gpu.seen == {"training.fit.fit": 3 + len(list(net.parameters()))}  # of a list each number counts


def test_densities_of_classes():
    with fake_cuda("start") as gpu:
        x, y = torch.rand(12, 6, device="cuda"), torch.arange(12, device="cuda") % K
        made = [fit(x, y, K, **more) for fit, more in ((densities.fit_gaussian, {}), (densities.fit_gaussian, dict(shape="spherical")), (densities.fit_kde, {}))]
        running = densities.RunningGaussian(K, device="cuda")
        with gpu.during(sends=False):
            running.see(x, nn.functional.one_hot(y, K).float())
            for density in (*made, running): assert on_gpu(log_p := density(x)) and log_p.shape == (12, K)
            assert on_gpu(densities.classify(made[0], x))


# ---- images -------------------------------------------------------------------------------------------------------

def bytes_on_gpu(n=6, c=3, side=32): return torch.randint(256, (n, c, side, side), dtype=torch.uint8, device="cuda")


@pytest.mark.parametrize("name", AUGMENTS)
def test_augmentations(name):
    with fake_cuda(sends=False) as gpu:
        for x in (bytes_on_gpu(), torch.rand(4, 1, 16, 16, device="cuda")):
            out = AUGMENTS[name](x, torch.Generator("cuda"))
            assert on_gpu(out) and out.shape == x.shape and out.dtype == x.dtype
        assert not gpu.seen


@pytest.mark.parametrize("ops", OPERATIONS)
@pytest.mark.parametrize("c, side, dtype", [(3, 32, torch.float32), (1, 17, torch.float32), (3, 64, torch.bfloat16)])
def test_augmix(ops, c, side, dtype):
    with fake_cuda(sends=False) as gpu:
        x = torch.rand(4, c, side, side, device="cuda", dtype=dtype)
        out = augmix(x, torch.Generator("cuda"), ops=ops)
        assert on_gpu(out) and out.shape == x.shape and out.dtype == dtype and not gpu.seen


@pytest.mark.parametrize("table, side", [("cifar", 32), pytest.param("tiny-imagenet", 64, marks=pytest.mark.slow), ("imagenet", 96)])
@pytest.mark.parametrize("kind", (*CORRUPTIONS, *EXTRA))
def test_corruptions(kind, table, side):
    reads = {"jpeg_compression": {"data.corruptions.jpeg_compression"}, "spatter": {"data.water._joined"}}.get(kind, set())
    for c, severities in ((1, (3,)), (3, (1, 5))) if table == "cifar" else ((3, (3, 5)),):
        with fake_cuda("images") as gpu:
            x = bytes_on_gpu(4, c, side)
            for severity in severities:
                out = corrupt(x, kind, severity, table=table)
                assert on_gpu(out) and out.shape == x.shape and out.dtype == torch.uint8
            assert set(gpu.seen) == reads


def test_an_index_of_images_may_lie_on_either_side():
    for where in ("cpu", "cuda"):
        with fake_cuda(): assert on_gpu(corrupt(bytes_on_gpu(3), "fog", 3, index=torch.arange(3, device=where)))


@pytest.mark.parametrize("kind", (*PERTURBATIONS, *EXTRA_PERTURBATIONS, *HARDER))
def test_perturbations(kind):
    with fake_cuda("images") as gpu:
        assert on_gpu(out := perturb(bytes_on_gpu(2, 3, 16), kind)) and out.dim() == 5
        assert set(gpu.seen) == ({"data.water._joined"} if kind == "spatter" else set())


@pytest.mark.parametrize("name", DEFORMATIONS)
def test_deformations(name):
    with fake_cuda() as gpu:
        assert on_gpu(deform(torch.rand(4, 3, 32, 32, device="cuda"), name, torch.Generator("cuda"), (.1, .2, .3))) and not gpu.seen


@pytest.mark.parametrize("name", WHITENINGS)
def test_whitening(name):
    with fake_cuda("start") as gpu:
        train = images(40, 8, shape=(3, 8, 8)).to("cuda")
        layer = Whiten(Normalize((.5,) * 3, (.2,) * 3), (3, 8, 8), WHITENINGS[name]).to("cuda")
        fit_whitening(layer, train)
        fitted = gpu.seen["data.whitening.zca"] + gpu.seen["data.whitening.fit_whitening"]
        with gpu.during(sends=False): assert fitted and on_gpu(layer(torch.rand(4, 3, 8, 8, device="cuda")))


# ---- attacks and metrics ------------------------------------------------------------------------------------------

ATTACKS = {"pgd": lambda net, x, y, rng: attacks.pgd(net, x, y, rng, steps=2, best=True),
           "pgd-train": lambda net, x, y, rng: attacks.pgd(net, x, y, rng, steps=2, start="normal", mode="train"),
           "fgsm": lambda net, x, y, rng: attacks.fgsm(net, x, y),
           "apgd": lambda net, x, y, rng: apgd.apgd(net, x, y, rng, steps=4, restarts=2),
           "apgd-margin": lambda net, x, y, rng: apgd.apgd(net, x, y, rng, steps=3, loss="margin", mode="train"),
           "trades": lambda net, x, y, rng: attacks.trades_attack(net, x, rng, steps=2),
           "pgd-divergence": lambda net, x, y, rng: attacks.pgd(net, x, net(x).log_softmax(1), rng, steps=1, objective=attacks.divergence),
           "bce": lambda net, x, y, rng: attacked.FGSM(.1, "normalised", "bce").move(net, x, y)[0]}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks(name):
    with fake_cuda() as gpu:
        net, x, y = network("small-cnn"), torch.rand(6, 1, 16, 16, device="cuda"), torch.arange(6, device="cuda") % K
        with gpu.during(*["metric"] * (name == "bce"), sends=False): assert on_gpu(bad := ATTACKS[name](net, x, y, torch.Generator("cuda"))) and bad.shape == x.shape
        assert name == "bce" or not gpu.seen


def states():
    net = network("spiral-net", width=8)
    return net, images(24).to("cuda")


def pairs(test): return interpolation.draw_pairs(len(test), seeded())


def on_train(metric):
    "A metric that loads the training set, on the set at hand."
    def measured(net, test):
        with patch.object(concentration, "load", lambda *_: test): return metric([net], test)
    return measured


def on_renditions(net, test):
    "Renditions come from their reader on the CPU, with their labels."
    shown = images(24)
    with patch.dict(rendered.RENDERED, {test.name: lambda split: shown}): return rendered.rendered([net], test)


METRIC = {
    "rendered": on_renditions,
    "concentration": on_train(concentration.concentration), "dimensions": on_train(concentration.dimensions),
    "logits": lambda net, test: catalogue.logits([net], test), "pgd": lambda net, test: attacked.attacked([net], test, attacks=attacked.PGD),
    "hull": lambda net, test: concentration.hull([net], test),
    "predict": lambda net, test: accuracy.predict(net, test).device.type == "cpu",
    "robustness": lambda net, test: robustness.robustness(net, test, kinds=("fog", "jpeg_compression")),
    "deformed": lambda net, test: deformed.deformed([net], test, rows=tuple(DEFORMATIONS)[::6], fill="black"),
    "attacked": lambda net, test: attacked.attacked([net], test),
    "robust": lambda net, test: robust.robust([net], test, robust.AutoPGD(2), images=10, batch=6),
    "flips": lambda net, test: flips.flips([net], test, kinds=("gaussian_noise", "spatter", "tilt"), images=10),
    "moved": lambda net, test: stability.moved([net], test, dict(a=stability.Step(), b=stability.Step("normal")), batch=5),
    "unbounded": lambda net, test: attacked.unbounded([net], test, attacked.Unbounded(steps=2)),
    "linearity": lambda net, test: linearity.linearity(net, test, steps=2),
    "interpolation": lambda net, test: interpolation.interpolated(net, test, pairs(test), 1),
    "to_nearest": lambda net, test: interpolation.to_nearest(test.floats(), test),
    "neighbours": lambda net, test: neighbours.neighbours([net], test, memory=test, ks=(1, 3)),
    "states": lambda net, test: concentration.unsure(concentration.from_states(net, concentration.states(net, test.floats()))),
    "scatter": lambda net, test: concentration.scatter_ratio(concentration.states(net, test.floats()), test.y),
    "plane": lambda net, test: concentration.hidden_plane(concentration.states(net, test.floats())),
    "dimension": lambda net, test: concentration.dimension(concentration.states(net, test.floats()), test.y),
    "features": lambda net, test: features.extract(features.Extractor("f", 8, features.Penultimate(net)), test.x),
    "distances": lambda net, test: distances.distances([test.x], [test.x], features.Extractor("f", 8, features.Penultimate(net)),
                                                       torch.Generator("cuda"), subsets=2, size=8),
    "inception_score": lambda net, test: inception_score.inception_score(torch.rand(24, K, device="cuda"), 2),
    "mixed_loss": lambda net, test: mixed_loss.mixed_loss(nn.Linear(4, K).to("cuda"), torch.rand(6, 4, device="cuda"), torch.rand(6, K, device="cuda")),
}


READS = {**dict.fromkeys(("apgd", "autoattack", "apgd-on-250", "apgd-on-60"), "robust"), "fgsm": "attacked", "fgsm-pixels": "attacked", **{f"flips-on-{n}": "flips" for n in (500, *catalogue.FEW["flips"])}, "flips-released": "flips", "deformed-mean": "deformed", "unbounded-normalised": "unbounded"}  # of the catalogue -> what computes it


def test_every_metric_of_the_catalogue_is_among_them():
    on_first = {n for n in catalogue.METRICS if getattr(catalogue.METRICS[n], "func", None) is catalogue.on_first}
    kinds = {READS.get(n, "robustness" if n.startswith("corruptions") else n) for n in {*catalogue.METRICS} - on_first}
    assert kinds <= set(METRIC)


@pytest.mark.parametrize("name", METRIC)
def test_a_metric_waits_where_the_list_says(name):
    with fake_cuda("start") as gpu:
        net, test = states()
        with gpu.during("start", "images", "metric"): METRIC[name](net, test)


# ---- the gate itself ----------------------------------------------------------------------------------------------

PLANTS = {"item": lambda t: t.flatten()[0].item(), "cpu": lambda t: t.cpu(), "int": lambda t: int(t.flatten()[0]), "if": lambda t: 1 if t.any() else 0,
          "tolist": lambda t: t.tolist(), "mask": lambda t: t[t > 0], "nonzero": lambda t: t.nonzero(),
          "no device": lambda t: t + torch.ones(t.shape)}
PLACES = {  # module, function -> who runs through it, what may be read meanwhile
    ("methods.vicinal", "Mix.__call__"): (lambda made, net, train: epoch(made, net, train), ("epoch",)),
    ("methods.mixing", "Place.__call__"): (lambda made, net, train: epoch(made, net, train), ("epoch",)),
    ("metrics.deformed", "deform"): (lambda made, net, train: deformed.deformed([net], train, rows=("rotation 20",)), ("metric",)),
    ("metrics.robustness", "corrupt"): (lambda made, net, train: robustness.robustness(net, train, kinds=("fog",)), ("metric", "images")),
    ("data.corruptions", "_gaussian"): (lambda made, net, train: corrupt(train.x, "gaussian_blur", 3), ("images",)),
    ("data.augmix", "laid_over"): (lambda made, net, train: augmix(train.floats(), torch.Generator("cuda")), ()),
    ("data.deformations", "warp"): (lambda made, net, train: deform(train.floats(), "rotation 20", torch.Generator("cuda")), ())}


@pytest.mark.parametrize("where", PLACES, ids=" ".join)
def test_what_is_planted_is_found(where, monkeypatch):
    "A read or a tensor without device, put into a method, a metric or a corruption."
    (module, name), (work, kinds) = where, PLACES[where]
    owner = importlib.import_module(f"mixrepro.{module}")
    if "." in name: owner, name = getattr(owner, name.split(".")[0]), name.split(".")[1]
    old = getattr(owner, name)
    def with_a(plant):
        def planted(*args, **kw):
            PLANTS[plant](next(a for a in args if isinstance(a, torch.Tensor)).float())
            return old(*args, **kw)
        return planted
    with fake_cuda("start") as gpu:
        parts = ready("mixup")
        with gpu.during(*kinds, sends="epoch" not in kinds):
            work(*parts)
            for plant in PLANTS:
                monkeypatch.setattr(owner, name, with_a(plant))
                said = "same device|reads numbers" if plant == "no device" else "reads numbers, and the host waits"
                with pytest.raises((HostRead, RuntimeError), match=said): work(*parts)


def test_a_second_read_in_a_place_that_may_read_once_is_counted(monkeypatch):
    "The list names functions; how often each reads is held against what is right."
    rate = loop.rate
    with fake_cuda("start") as gpu, gpu.during("epoch"):
        made, net, train = ready("mixup")
        monkeypatch.setattr(loop, "rate", lambda spec, t: rate(spec, t) + 0 * int(train.y.sum()))
        epoch(made, net, train)
        assert gpu.seen["training.loop.train_epoch"] == 3  # two steps, and the end of the epoch


def test_what_is_sent_in_a_step_is_found():
    with fake_cuda() as gpu, gpu.during(sends=False):
        with pytest.raises(HostRead, match=r"methods\.vicinal\.copied, line \d+, sends numbers"):
            importlib.import_module("mixrepro.methods.vicinal").taken(torch.rand(3, 2, device="cuda"), torch.arange(3))


def test_a_generator_of_another_device_is_found():
    with fake_cuda(), pytest.raises(WrongDevice, match=r"methods\.attacks\.<lambda>, line \d+: a generator on cpu draws a tensor on cuda"):
        attacks.STARTS["uniform"](torch.rand(2, 1, 8, 8, device="cuda"), .1, torch.Generator())


def test_every_place_of_the_list_is_there_and_has_a_reason():
    for kind, places in ALLOWED.items():
        for where, why in places.items():
            module, _, name = where.rpartition(".")
            if module.rpartition(".")[2][0].isupper(): module, _, name = module.rpartition(".")  # a method of a class
            assert hasattr(importlib.import_module(f"mixrepro.{module}"), name), where
            assert len(why) > 20, where


def test_gradients_against_the_engine():
    "Views, in-place operations, several outputs of a node, a leaf used twice, broadcasting and a convolution."
    def network(x, w, conv):
        a, b, c = (x * w).split(1, 1)
        y = 2 * conv(x).relu_()
        y[:, 0] = w.mean() * a[:, 0]
        return (y.flatten(1).cumsum(1).mean(0) * w.sum()).sum() + (b * c.exp()).sum() + torch.stack([a, b]).amax()
    rng, conv = seeded(), nn.Conv2d(3, 4, 3, padding=1)
    x, w = (torch.rand(s, generator=rng, requires_grad=True) for s in ((2, 3, 6, 6), (3, 1, 1)))
    inputs = [x, w, *conv.parameters()]
    theirs = torch.autograd.grad(network(x, w, conv), inputs)
    for p, q in zip(theirs, gradients([network(x, w, conv)], [torch.ones(())], inputs), strict=True): assert torch.allclose(p, q, rtol=1e-5)
    gradients([network(x, w, conv)], [torch.ones(())])
    for p, q in zip(theirs, inputs, strict=True): assert torch.allclose(p, q.grad, rtol=1e-5)


def test_nothing_of_the_fake_is_left_behind():
    before = torch.autograd.grad, torch.autograd.backward, torch.Generator
    with pytest.raises(ZeroDivisionError), fake_cuda(): corrupt(bytes_on_gpu(1), "snow", 1); 1 / 0
    assert before == (torch.autograd.grad, torch.autograd.backward, torch.Generator)
    assert not torch.is_autocast_enabled("cuda") and not isinstance(torch.ones(1), FakeGPU) and corrupt(images(2, 32).x, "snow", 1).device.type == "cpu"
