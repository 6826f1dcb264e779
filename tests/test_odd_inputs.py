"""What people hand in by mistake, door by door: other kinds of tensors, of networks, of tables and of pictures; each is right or one sentence."""

import io
import json
import math
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile
from torchvision import transforms
from torchvision.transforms import v2

from helpers import seeded
from mixrepro.data import fetch as F, image_folder as IF, tabular as T
from mixrepro.data.augment import resized_crop
from mixrepro.data.augmix import augmix
from mixrepro.data.corruptions import corrupt
from mixrepro.data.band import draw_band
from mixrepro.data.datasets import DATASETS
from mixrepro.data.deformations import deform
from mixrepro.data.factors import TASKS, draw_factors
from mixrepro.data.folder import from_folder
from mixrepro.data.frost import frost_textures
from mixrepro.data.images import ImageSet, read_picture
from mixrepro.data.pairs import image_set
from mixrepro.data.perturbations import perturb
from mixrepro.data.points import horseshoe
from mixrepro.data.shapes import draw_shape
from mixrepro.data.spirals import draw_spirals
from mixrepro.data.splits import relabelled
from mixrepro.data.toys import draw_clouds, draw_rings
from mixrepro.methods import attacks as K, densities as D, genlabel as G, vicinal as V
from mixrepro.methods.adamixup import Policy, intrusion_loss
from mixrepro.methods.apgd import apgd
from mixrepro.methods.autoaugment import auto_augment
from mixrepro.methods.catalogue import method
from mixrepro.methods.cutmix import draw_boxes
from mixrepro.methods.genmix_gan import invert
from mixrepro.methods.mmd_vae import kernel_matrix, mmd
from mixrepro.methods.noise import FeatureNoise
from mixrepro.methods.puzzle_mask import costs, least, pooled as blocks, prior
from mixrepro.methods.trades import trades_loss
from mixrepro.methods.transform import BatchTransform
from mixrepro.methods.views import NoiseViews, js
from mixrepro.methods.vicinal import Mix
from mixrepro.metrics import accuracy as A, calibration as C, categories as CA, concentration as H, distances as S, flips as FL, mixed_loss as M, neighbours as N, ranked as R, rendered as RE, robustness as RB, stability as ST
from mixrepro.metrics.attacked import FGSM, Iterated, Unbounded, attacked
from mixrepro.metrics.boundary import boundary_attack
from mixrepro.metrics.deformed import deformed
from mixrepro.metrics.features import Extractor
from mixrepro.metrics.influence import influence
from mixrepro.metrics.interpolation import draw_pairs, interpolation
from mixrepro.metrics.linearity import linearity, linearity_errors
from mixrepro.metrics.robust import AutoPGD, robust
from mixrepro.networks.adapter import staged
from mixrepro.networks.staged import Normalize, drop
from mixrepro.networks.zoo import build
from mixrepro.papers.genlabel import theory as TH

Z, Y = 3 * torch.randn(12, 4, generator=seeded(1)), torch.arange(12) % 4
P = Z.softmax(1)
SURE, RIGHT, W = torch.rand(30, generator=seeded(2)).double(), (torch.arange(30) % 3 > 0).double(), torch.ones(30, dtype=torch.float64)
H5, LABELS = torch.randn(12, 5, generator=seeded(3)), torch.arange(12) % 3
NET = build("tiny-cnn", (3, 8, 8), 4, seeded()).eval()
X, XY = torch.rand(4, 3, 8, 8, generator=seeded(4)), torch.arange(4)
TEST = ImageSet((X * 255).byte(), XY, tuple("abcd"), "digits", "test")
AE, GAN, XG = build("vae-small", (3, 8, 8), None, seeded()), build("sngan-small", (3, 32, 32), None, seeded()), torch.rand(4, 3, 32, 32, generator=seeded(6))
AT2 = torch.tensor([[.9, .1], [.8, .3], [.7, .2], [.95, .4]]).view(1, 1, 4, 2)
ADA = method("adamixup").prepare(TEST, seeded())


def refused(make, sentence):
    "One sentence of ours, in one line."
    with pytest.raises((ValueError, TypeError), match=sentence) as e: make()
    assert "\n" not in str(e.value)


# ---- PyTorch's default type --------------------------------------------------------------------------------------------

DRAWN = ("photo-digits-16", "photo-digits-64-stylized", "synthetic-blobs", "spirals", "band-star", "nine-clouds", "two-rings", "shape-v", "circle-2d-noisy")
BYTES = torch.randint(0, 256, (3, 3, 16, 16), generator=seeded(5), dtype=torch.uint8)
BY_DEFAULT = {"cutmix": lambda: draw_boxes(6, (8, 8), 1., .5, seeded()).lam, "cutmix, each": lambda: draw_boxes(6, (8, 8), 1., .5, seeded(), "example").lam,
              "autoaugment": lambda: auto_augment(X, seeded(), "cifar10"), "windows": lambda: resized_crop(X, seeded()), "frost": lambda: frost_textures.__wrapped__(24),
              **{kind: lambda k=kind: corrupt(BYTES, k, 1) for kind in ("fog", "snow", "elastic_transform", "glass_blur")},
              **{f"film of {kind}": lambda k=kind: perturb(BYTES, k) for kind in ("zoom_blur", "tilt")},
              **{name: lambda n=name: DATASETS[n]("test").x for name in DRAWN}, "stylized": lambda: DATASETS["photo-digits-64-stylized"]("train").x[::50],
              "factors": lambda: DATASETS["factors-a-32"]("test", size=32).x,
              "noise": lambda: torch.cat([FeatureNoise()(X, seeded(i)) for i in range(9)]), "puzzles": lambda: torch.stack([method("puzzlemix", blocks=(2, 4)).draw(NET, X, XY, seeded(i)).mask.mean() for i in range(9)]),
              "policy": lambda: ADA.draw(NET, X, XY, seeded()).lam, **{name: lambda m=method(name): m.loss(AE, X, XY, seeded()).detach() for name in ("mmd-vae", "adv-mmd-vae")},
              **{f"noise of {name}": lambda n=build(name, (3, 32, 32), 4, seeded()): n.draw(3, seeded()) for name in ("sngan-small", "class-sngan-small")}, "shares of a GAN": lambda: method("gan-mixup").mixed(GAN.D, XG, XG, seeded())[2].detach(),
              "weights": lambda: build("tiny-cnn", (3, 8, 8), 4, seeded()).head.weight.detach(), "curves": lambda: torch.tensor(interpolation([NET], TEST, (0,))[0]["stages"]["0"]["nll"], dtype=torch.float64),
              "boundary": lambda: boundary_attack(lambda z: z, AT2, torch.zeros(1, 1, 4, dtype=torch.int64), 1 - AT2[:, 0], seeded(), 20)}


@pytest.mark.parametrize("name", BY_DEFAULT)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_under_another_default_type_a_draw_is_the_same_or_refused(name, dtype):
    torch.set_default_dtype(dtype)
    try: got = BY_DEFAULT[name]()
    except TypeError as e:
        assert f"need torch.float32 as PyTorch's default, got {dtype}: take torch.set_default_dtype back" in str(e)
        return
    finally: torch.set_default_dtype(torch.float32)
    want = BY_DEFAULT[name]()
    assert got.dtype == want.dtype and torch.equal(got, want)


# ---- tensors that are none -------------------------------------------------------------------------------------------

KINDS = {"sparse": (lambda t: t.to_sparse(), "must be dense"),
         "meta": (lambda t: t.to("meta"), "device 'meta'"), "tuple": (lambda t: (t, t), "must be a tensor, got tuple: take the tensor out"),
         "dict": (lambda t: {"logits": t}, "must be a tensor, got dict"), "numpy": (lambda t: t.numpy(), "must be a tensor, got ndarray: convert")}
OF_LOGITS = {"nll": lambda z: A.nll(z, Y), "ece": lambda z: C.ece(z, Y), "unsure": H.unsure, "js": lambda z: ST.js_divergence(z, z), "rendered": lambda z: RE.surely(z, Y % 2, [1, 3]),
             "stepped": lambda z: ST.steadiness(Z, Y, {"a": z}), "views": lambda z: js([z, z]), "soft ce": lambda z: V.soft_ce(z, P), "states": lambda z: H.scatter(z, Y), "features": lambda z: S.mmd2(Z, z),
             "confidences": lambda z: R.rms_of(z, z), "weights": lambda z: C.check_weights(z, 12), "mixed": lambda z: V.Mix(torch.tensor(.5), torch.arange(12))(z), "labels": lambda z: A.nll(Z, z)}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OF_LOGITS)
def test_what_is_no_tensor_of_numbers_is_one_sentence(name, kind):
    change, sentence = KINDS[kind]
    refused(lambda: OF_LOGITS[name](change(Z)), sentence)


NUMBERS = {
    "no classes": (lambda: ST.js_divergence(Z[:, :0], Z[:, :0]), "one at least for each example"), "one number": (lambda: H.scatter(Z[:, 0], Y), "hidden states must be"),
    "no numbers": (lambda: H.gap(Z[:, :0], Y), "hidden states must be"), "classes unknown": (lambda: RE.surely(Z[:, :1], Y, [1, 3]), "with the classes"), "a class each": (lambda: ST.steadiness(Z, Y, {"a": Z > 0}), "must be float"),
    "integer sure": (lambda: R.rms_of(RIGHT.long(), RIGHT), "confidences must be float"), "weak weights": (lambda: C.weighted_ece(W.float(), SURE, RIGHT), "weights must be float, and as precise"),
    "bin size": (lambda: R.rms_of(SURE, RIGHT, "3"), "size must be a whole number"), "kinds left out": (lambda: R.ranked_cells(SURE.view(1, 5, 6), RIGHT.view(1, 5, 6) > 0), "15 kinds at 5 severities"),
    "no kinds": (lambda: R.ranked_cells(SURE.view(1, 5, 6), RIGHT.view(1, 5, 6) > 0, ()), "0 kinds at 5"), "no bins": (lambda: C.pooled([]), "one at least"),
    "other bins": (lambda: C.pooled([C.reliability(Z, Y), C.reliability(Z, Y, 10)]), "as many for each network, got 10 and 15"), "half a bin": (lambda: C.pooled([{"count": [1]}]), "without accuracy"),
    "half an image": (lambda: influence(lambda w: w.sum() / w.sum(), 2.5), "n must be a whole number"), "no number": (lambda: influence(lambda w: 1., 3), "got float"), "many numbers": (lambda: influence(lambda w: w / w.sum(), 3), "a tensor .3,."),
    "words": (lambda: RB.corruption_mean(dict.fromkeys(RB.CORRUPTIONS, [.5] * 5) | {"fog": ["a"] * 5}), "fog must be numbers"), "ragged": (lambda: RB.corruption_mean(dict.fromkeys(RB.CORRUPTIONS, [.5] * 5) | {"fog": [np.zeros(3)] * 5}), "as many images"),
    "no cells": (lambda: CA.category_means(dict.fromkeys(RB.CORRUPTIONS, [.5] * 5) | {"fog": None}), "fog must be five values"),
    "text weight": (lambda: CA.noise_weight("1", 2., 3.), "three finite means"), "text flip": (lambda: FL.mean_flips({"a": "x"}, ("a",)), "must be a number, got 'x'"), "films apart": (lambda: FL.mean_flips({"a": np.zeros(2), "b": .1}, ("a", "b")), "as many images"),
    "no seeds": (lambda: FL.baseline("a", []), "a mean over seeds"), "other seeds": (lambda: FL.baseline("a", [{"flips": {"fog": .1}}, {"flips": {"snow": .1}}]), "of the same perturbations"),
    "bool features": (lambda: N.nearest(Z > 0, Z, 1), "must be real numbers"), "no batch": (lambda: N.nearest(Z, Z, 1, 0), "batch must be a whole number"), "one voter": (lambda: N.vote(Y, 4), "must be .N, k."),
    "half a class": (lambda: N.vote(Y[:, None], 2.5), "classes must be a whole"), "half a place": (lambda: H.in_hull(H5, 2.5, seeded()), "n must be a whole"), "no plane": (lambda: H.hidden_plane(H5[:0, :2]), "N above 0"),
    "side": (lambda: H.hidden_plane(H5[:, :2], 2.5), "side must be"), "margin": (lambda: H.hidden_plane(H5[:, :2], 5, math.nan), "margin must be"), "ratio": (lambda: H.paired_ratio([1e308, 1e308], [1e-308, 1e-308]), "no number in float64"),
    "ratio of words": (lambda: H.paired_ratio(["a"], [1.]), "finite values above 0"), "nodes": (lambda: M.mixed_loss(lambda h: h[:, :3], H5, torch.eye(3)[LABELS], 0), "nodes must be"), "f": (lambda: M.mixed_loss(lambda h: None, H5, torch.eye(3)[LABELS]), "f must give 3 numbers"),
    "simplex": (lambda: M.simplex(3, 1.5), "k must be"), "moments": (lambda: S.Moments(2.5), "dim must be"), "reservoir": (lambda: S.Reservoir(3, True, seeded()), "capacity must be"), "one row": (lambda: S.weighted_moments(H5[:1].double(), W[:1]), "2 samples"),
    "single precision": (lambda: S.weighted_mmd2(H5, H5.double(), W[:12], W[:12]), "a must be float64"), "types of codes": (lambda: mmd(H5, H5.double()), "of one type"), "no codes": (lambda: mmd(H5[:0], H5), "one code at least"),
    "large codes": (lambda: kernel_matrix(1e20 * H5, H5), "no squared distances"), "half codes": (lambda: mmd(100 * H5.half(), H5.half()), "no squared distances in torch.float16"),
    "correction": (lambda: D.class_moments(H5, LABELS, 3, 2), "over n .0. or n - 1 .1."), "kernel": (lambda: D.fit_kde(H5, LABELS, 3, factor=1e-300), "1e-100 or above"), "top": (lambda: G.generative_label(H5, 1.5), "whole number of classes"),
    "no density": (lambda: G.generative_label(torch.full((2, 3), -math.inf)), "every class has the density 0"), "alpha": (lambda: V.draw_lambda((3,), 1e-320, seeded()), "1e-300 or above, got"), "text alpha": (lambda: V.draw_lambda((3,), "x", seeded()), "alpha must be a number"),
    "bytes": (lambda: V.Mix(torch.tensor(.5), torch.arange(4))(X.byte()), "what is mixed must be float"), "class numbers": (lambda: V.soft_ce(Z, Y), "convert class numbers"), "whole shares": (lambda: V.bce_softmax(Z, torch.eye(4).long()[Y]), "convert class numbers"),
    "blocks": (lambda: blocks(torch.rand(2, 16, 16), 3), "multiples of the 3 blocks"), "policy": (lambda: Policy(12)(X, X), "pairs of examples of 12 numbers"), "units": (lambda: Policy(12, 0), "hidden must be"),
    "intruders": (lambda: intrusion_loss(Z[:0, 0], Z[:, 0]), "got none"), "their weight": (lambda: intrusion_loss(Z[:, 0], Z[:, 0], -1), "must be 0 or more"),
    "sigma 0": (lambda: TH.gaussian_label(.3, 0), "sigma must be a number above 0"), "sigma -1": (lambda: TH.by_densities(.3, (1., -1.)), "sigma must be"), "lambda": (lambda: TH.printed_label(math.nan, .1), "finite numbers"), "law": (lambda: TH.Law(c=math.nan), "c must be a finite"),
    "images": (lambda: A.predict(NET, "x"), "images must be a tensor"), "a batch": (lambda: A.predict(NET, TEST, 2.5), "batch must be a whole")}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_that_cannot_be_are_one_sentence(name): refused(*NUMBERS[name])


def test_weights_may_be_more_precise_than_what_they_weigh():
    assert C.weighted_ece(W, SURE.float(), RIGHT).item() == pytest.approx(C.weighted_ece(W, SURE, RIGHT).item(), abs=1e-6)


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "3", None])
def test_a_descent_has_steps(steps):
    net = build("point-gan", (2, 1, 1), 3, seeded())
    x, y, start = torch.randn(3, 2, generator=seeded()), torch.arange(3), torch.rand(3, 2, 2, generator=seeded())
    refused(lambda: invert(net, x, y, start, steps), "steps must be a whole number, 1 or more")
    assert invert(net, x, y, start, 1).distance.isfinite().all()
    for other in (start[:, :0], start[:2], start[:, 0]): refused(lambda: invert(net, x, y, other, 2), "starts .B, R, l. are needed")


# ---- densities far out -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("off", [0., 1e3, 1e5])
@pytest.mark.filterwarnings("ignore:class")
def test_spherical_densities_beside_an_absent_class(off):
    h = torch.cat([H5[LABELS == c] + 10 * c for c in range(3)]).double()
    y = LABELS.sort().values
    near, far = (D.fit_gaussian(h + o, y, 4, "spherical")(h + o) for o in (0., off))
    assert torch.allclose(near[:, :3], far[:, :3], atol=1e-2)


@pytest.mark.filterwarnings("ignore:class")
def test_spherical_densities_that_would_be_rounding_are_refused():
    h, y = H5.double(), LABELS
    refused(lambda: D.fit_gaussian(h + 1e7, y, 4, "spherical"), "subtract the examples' mean")
    assert D.fit_gaussian(h + 1e7, y, 3, "spherical")(h).isfinite().all() and D.fit_gaussian(h + 1e7, y, 4)(h).shape == (12, 4)
    running = D.RunningGaussian(3)
    for bad in (h * math.nan, h / 0): refused(lambda: running.see(bad, torch.eye(3)[y].double()), "features and their labels hold NaN")


# ---- networks that give something else -------------------------------------------------------------------------------

class Says(torch.nn.Module):
    def __init__(self, how):
        super().__init__()
        self.net, self.how, self.norm, self.shape, self.stages, self.head = NET, how, NET.norm, NET.shape, NET.stages, NET.head

    def features(self, x, at=None, through=None): return self.net.features(x, at, through)
    def forward(self, x, at=None, through=None): return self.how(self.net(x, at, through))


ASKED = {"predict": lambda n: A.predict(n, TEST), "pgd": lambda n: K.pgd(n, X, XY, seeded(), steps=1), "fgsm": lambda n: K.fgsm(n, X, XY), "FGSM": lambda n: FGSM()(n, X, XY), "Iterated": lambda n: Iterated(1).move(n, X, XY),
         "Unbounded": lambda n: Unbounded(1).walk(n, X, XY), "linearity": lambda n: linearity_errors(n, X, XY, seeded(), steps=1), "erm": lambda n: method("erm").loss(n, X, XY, seeded()), "mixup": lambda n: method("mixup").loss(n, X, XY, seeded()),
         "at": lambda n: method("at", steps=1).loss(n, X, XY, seeded()), "manifold-mixup": lambda n: method("manifold-mixup", stages=(0,)).loss(n, X, XY, seeded())}


@pytest.mark.parametrize("how", ["tuple", "dict", "None"])
@pytest.mark.parametrize("name", ASKED)
def test_a_network_that_gives_no_tensor_is_told_what_it_gives(name, how):
    "Auxiliary heads in training, dicts of outputs, a forward without return."
    says = {"tuple": lambda z: (z, z), "dict": lambda z: {"logits": z}, "None": lambda z: None}[how]
    net = Says(says).eval()
    flags = [m.training for m in net.modules()]
    refused(lambda: ASKED[name](net), "must be a tensor, got " + how.replace("None", "NoneType"))
    assert [m.training for m in net.modules()] == flags and torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["FGSM", "Iterated", "Unbounded", "linearity", "pgd"])
def test_no_attack_of_a_network_in_half_precision(name):
    refused(lambda: ASKED[name](build("tiny-cnn", (3, 8, 8), 4, seeded()).half()), "less than half precision resolves")


@pytest.mark.parametrize("name", ["FGSM", "Unbounded", "linearity"])
def test_images_of_inference_mode_have_no_gradient(name):
    with torch.inference_mode(): there = X.clone()
    walk = dict(FGSM=lambda: FGSM()(NET, there, XY), Unbounded=lambda: Unbounded(1).walk(NET, there, XY), linearity=lambda: linearity_errors(NET, there, XY, seeded(), steps=1))
    refused(walk[name], "made in torch.inference_mode.*with clone")
    for net_call in (lambda: method("erm").loss(NET, there, XY, seeded()), lambda: method("puzzlemix").loss(NET, there, XY, seeded())): refused(net_call, "with clone")


BUDGETS = {"attacks": lambda: attacked([NET], TEST, {}), "no names": lambda: attacked([NET], TEST, [FGSM()]), "no pass": lambda: attacked([NET], TEST, {"a": FGSM()}, batch=0), "one network": lambda: attacked(NET, TEST, {"a": FGSM()}),
           "no network": lambda: robust([None], TEST, AutoPGD(steps=1)), "radii": lambda: robust([NET], TEST, AutoPGD(steps=1), radii=[.1]), "half an image": lambda: robust([NET], TEST, AutoPGD(steps=1), images=2.5),
           "radius": lambda: linearity(NET, TEST, radii=.1), "text radius": lambda: linearity(NET, TEST, radii=("x",)), "no pixels": lambda: K.fgsm(NET, X[..., :0], XY), "eps": lambda: K.pgd(NET, X, XY, seeded(), eps=torch.tensor([.1, .2])),
           "no labels": lambda: K.fgsm(NET, X, None), "rng": lambda: K.pgd(NET, X, XY, 0), "numpy's": lambda: method("mixup").loss(NET, X, XY, np.random.default_rng()), "none": lambda: method("dropout").loss(NET, X, XY, None),
           "pixels": lambda: method("erm").loss(NET, X[..., :0], XY, seeded()), "places": lambda: method("erm").loss(NET, X, XY, seeded(), XY - 1), "halves": lambda: method("erm").loss(NET, X, XY, seeded(), XY.float())}


@pytest.mark.parametrize("name", BUDGETS)
def test_what_no_attack_and_no_loss_can_use(name):
    state = torch.get_rng_state()
    refused(BUDGETS[name], "attacks are given by name|batch must be|networks are given as a list|must be a module|radii are numbers|images must be|radii must be|have no pixels|radius eps|labels must be|rng must be a generator|index must be places")
    assert torch.equal(state, torch.get_rng_state()), "nothing was drawn from PyTorch's own generator"


DRAWS = {"matching": lambda: draw_pairs(4, None), "distances": lambda: S.kid(H5, H5, 0, 1, 2), "reservoir": lambda: S.Reservoir(2, 3, None), "part": lambda: TEST.subset(2, 0), "deformed": lambda: deform(X, "rotation 20", None), "horseshoe": lambda: horseshoe(3, None), "spirals": lambda: draw_spirals(3, 0),
         "clouds": lambda: draw_clouds(3, None), "rings": lambda: draw_rings(3, None), "shape": lambda: draw_shape("shape-v", 3, None), "band": lambda: draw_band(3, 0), "views": lambda: NoiseViews().view(X, None), "augmix": lambda: augmix(X, None), "mix": lambda: V.draw_mix(4, 1., None), "boxes": lambda: draw_boxes(4, (8, 8), 1., 1., None), "policy": lambda: auto_augment(X, None, "svhn"), "noise": lambda: FeatureNoise(factor="none")(X, None), "dropout": lambda: drop(X, .5, None), "hull": lambda: H.in_hull(H5, 3, None), "window": lambda: resized_crop(X, None),
         "labels": lambda: relabelled(XY, 4, .5, None), "factors": lambda: draw_factors(TASKS["a"], "train", 3, None), "linearity": lambda: linearity_errors(NET, X, XY, None, steps=1),
         "codes": lambda: build("vae-small", (3, 32, 32), None, seeded(), posterior="gaussian").posterior(torch.rand(2, 3, 32, 32, generator=seeded()), None)}


@pytest.mark.parametrize("name", DRAWS)
def test_nothing_is_drawn_without_a_generator(name):
    state = torch.get_rng_state()
    refused(DRAWS[name], "rng must be a generator")
    assert torch.equal(state, torch.get_rng_state())


SEEDS = {"damage": lambda n: corrupt(TEST.x, "fog", 1, seed=n), "deformed": lambda n: deformed([NET], TEST, seed=n), "hull": lambda n: H.hull([NET], TEST, 3, n), "linearity": lambda n: linearity(NET, TEST, steps=1, seed=n),
         "curves": lambda n: interpolation([NET], TEST, seed=n)}


@pytest.mark.parametrize("name", SEEDS)
def test_seeds_are_whole_numbers(name):
    for odd in (True, 2.5, "3", torch.tensor(2.)): refused(lambda: SEEDS[name](odd), "seed must be a whole number, got")
    if name == "damage": assert torch.equal(SEEDS[name](np.int64(3)), SEEDS[name](3))
    else: refused(lambda: SEEDS[name](np.int64(3)), "Python's whole numbers alone, got .*: write int.3.")


@pytest.mark.parametrize("kind", [np.int64, np.uint8])
def test_sizes_of_numpy_are_sizes(kind):
    assert R.rms_of(SURE, RIGHT, kind(10)) == R.rms_of(SURE, RIGHT, 10)
    assert FL.flips([NET], TEST, ("tilt",), kind(3))[0]["images"] == 3
    for odd in (True, 2.5, -1): refused(lambda: FL.flips([NET], TEST, ("tilt",), odd), "images must be a whole number, 0 or more")
    for odd in (True, 2.5): refused(lambda: R.rms_of(SURE, RIGHT, odd), "size must be a whole number")
    refused(lambda: TEST.subset(True), "a part of a set is a number of images")
    refused(lambda: A.predict(NET, TEST, kind(2)), "batch goes to PyTorch.*write int.2.")


@pytest.mark.parametrize("name", ["robustness", "linearity", "moved", "deformed", "interpolation", "hull"])
def test_networks_are_told_from_one(name):
    ask = dict(robustness=lambda n: RB.robustness(n, TEST, ("fog",)), linearity=lambda n: linearity(n, TEST, steps=1), moved=lambda n: ST.moved(n, TEST), deformed=lambda n: deformed(n, TEST), interpolation=lambda n: interpolation(n, TEST),
               hull=lambda n: H.hull(n, TEST, 3))[name]
    for odd in ({"a": NET}, torch.nn.ModuleList([NET]), (n for n in [NET]), "resnet", [None]): refused(lambda: ask(odd), "networks are given as a list|one network is asked for|a network must be a module")
    if name not in ("robustness", "linearity"): refused(lambda: ask(NET), "write .net.")


@pytest.mark.parametrize("bad", [-math.inf, math.nan])
def test_views_are_compared_by_numbers(bad):
    z = Z.index_fill(1, torch.tensor([2]), bad)
    refused(lambda: js([z, Z]), "by logits that are numbers")
    assert js([Z.half(), Z]).isfinite() and js([1e4 * Z, -1e4 * Z]).isfinite()


# ---- tables ----------------------------------------------------------------------------------------------------------

@pytest.fixture
def written(tmp_path):
    "Writes a table and reads it."
    (folder := tmp_path / "openml").mkdir()
    def read(text, record=None, **how):
        (folder / "1_t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
        if record is not None: (folder / "index.json").write_text(json.dumps([dict(id=1, name="t", file="1_t.csv") | record]))
        return T.tabular(1, tmp_path, **how)
    return read


def lines(cell, at=5, name="b", n=12):
    "A table with one odd cell, in the column of words or in the target."
    row = lambda i: {"a": f"{i}.5", "b": "uvw"[i % 3], "class": ("no", "yes")[i % 2], **({name: cell} if i == at else {})}
    return "a,b,class\n" + "".join(",".join(row(i).values()) + "\n" for i in range(n))


@pytest.mark.parametrize("name, cell, like", [("class", "yes ", "yes"), ("class", "yes\u200b", "yes"), ("class", "yes\u00a0", "yes"), ("b", " w", "w"), ("b", "w\x0c", "w"), ("b", "\ufeffw", "w")])
def test_two_cells_that_look_alike_are_no_two_categories(written, name, cell, like):
    with pytest.raises(ValueError, match=f"column '{name}' has '{like}' and, in row 6 .line 7., .*which look alike"): written(lines(cell, name=name))
    written(lines(cell, name=name), dict(nominal=[1, 2])), written(lines("other", name=name), dict(nominal=[]))


def test_letters_and_truths_that_are_written_in_two_ways(written):
    table = "a,b,class\n" + "".join(f"{i},{w},{'xy'[i % 2]}\n" for i, w in enumerate(["TRUE", "False", "true", "False"] * 3))
    with pytest.raises(ValueError, match="'TRUE' and, in row 3 .line 4., 'true', which look alike"): written(table)
    with pytest.raises(ValueError, match="which look alike"): written("a,b,class\n" + "".join(f"{i},{('é', 'e' + chr(0x301), 'u')[i % 3]},{'xy'[i % 2]}\n" for i in range(12)))
    assert len(written(lines("U")).features) == 5, "upper case is another letter"


@pytest.mark.parametrize("cell", ['"1,5"', "1 000", "1'000"])
def test_a_code_with_a_separator_is_refused_with_its_place(written, cell):
    rows = "".join(f"{i},{cell if i == 5 else i % 3}\n" for i in range(12))
    with pytest.raises(ValueError, match=r"column 'class' holds numbers, but row 6 .line 7. has"): written("a,class\n" + rows)


def test_whole_numbers_that_float64_does_not_tell_apart(written):
    rows = "".join(f"{2**60 + i},{i},{'xy'[i % 2]}\n" for i in range(12))
    with pytest.raises(ValueError, match="column 'id' has whole numbers above 2.53"): written("id,a,class\n" + rows)
    frame = pd.DataFrame({"id": 2**60 + np.arange(10)})
    refused(lambda: T.to_numbers(frame, np.arange(8), np.arange(8, 10)), "column 'id' has whole numbers above 2.53")
    assert written("a,class\n" + "".join(f"{i},{2**60 + i % 2}\n" for i in range(12))).classes == (str(2**60), str(2**60 + 1)), "codes of a target are texts"


@pytest.mark.parametrize("mark, word", [(";", "semicolons"), ("\t", "tabs"), ("|", "bars")])
def test_another_separator_is_named(written, mark, word):
    with pytest.raises(ValueError, match=f"1_t.csv: its columns are parted by {word}: save it again with commas"): written(lines("u").replace(",", mark))
    with pytest.raises(ValueError, match="semicolons"): written(lines("u").replace(",", ";").replace(".", ","))


@pytest.mark.parametrize("data, what", [(b"PK\x03\x04" + bytes(30), "a workbook"), (b'[{"a": 1}]', "JSON"), (b"@relation t\n@data\n1\n", "an ARFF file"), (b"<!DOCTYPE html><p>404</p>\n", "a page of HTML or XML")])
def test_a_file_of_another_kind_is_named(written, data, what):
    with pytest.raises(ValueError, match=f"1_t.csv: it is .*{what}: save the table as CSV"): written(data)


INDEX = {"names": (dict(nominal=["a"]), "not a list of tables"), "a text": (dict(nominal=["0"]), "not a list of tables"), "a truth": (dict(nominal=[True]), "not a list of tables"), "-1": (dict(nominal=[-1]), "not a list of tables"),
         "too far": (dict(nominal=[9]), "calls column 9 nominal, but there are the columns 0..2"), "a kind": (dict(columns=["foo", "string", "string"], missing="?"), "not a list of tables"),
         "twice": (dict(columns=["numeric", ["u", "v", "w", "w"], ["no", "yes"]], missing="?"), "not a list of tables"), "no category": (dict(columns=["numeric", ["u", "v"], ["no", "yes"]], missing="?"), "column 'b' has 'w' in row 3 .line 4., which is none of its categories"),
         "no class": (dict(columns=["numeric", ["u", "v", "w"], ["no"]], missing="?"), "column 'class' has 'yes' in row 2"), "a date": (dict(columns=["datetime64[ns]", "string", "string"], missing="?"), "column 'a' is a date, but row 1 .line 2. has '0.5'")}


@pytest.mark.parametrize("name", INDEX)
def test_an_index_says_what_is_there(written, name):
    record, sentence = INDEX[name]
    with pytest.raises(ValueError, match=sentence) as e: written(lines("u"), record)
    assert "\n" not in str(e.value)


FRAMES = {"a series": (pd.Series([1.]), "must be a data frame"), "an array": (np.ones((4, 1)), "must be a data frame"), "numbers for names": (pd.DataFrame({0: [1., 2, 3, 4]}), "names that are texts, got 0"),
          "mixed names": (pd.DataFrame({0: [1., 2, 3, 4], "b": [1., 2, 3, 4]}), "names that are texts"), "levels": (pd.DataFrame(np.ones((4, 2)), columns=pd.MultiIndex.from_tuples([("a", 1), ("b", 2)])), "names that are texts"),
          "complex": (pd.DataFrame({"a": np.arange(4) + 1j}), "complex numbers"), "only inf": (pd.DataFrame({"a": [math.inf] * 3 + [1.], "b": [1., 2, 3, 4]}), "column 'a' has no finite number in any training row")}


@pytest.mark.parametrize("name", FRAMES)
def test_frames_that_lose_something_on_the_way(name): refused(lambda: T.to_numbers(FRAMES[name][0], np.arange(3), np.arange(3, 4)), FRAMES[name][1])


def test_rows_that_are_none_and_columns_that_say_nothing():
    frame = pd.DataFrame({"a": [1., 2, 3, 4], "tiny": [1e-200, 2e-200, 3e-200, 4e-200]})
    for rows in (np.arange(3.), np.arange(9), np.array([-1]), np.array(["0"]), np.array([None])): refused(lambda: T.to_numbers(frame, rows, np.arange(1)), "positions of rows")
    with pytest.warns(UserWarning, match="the column 'tiny' says nothing"): x, _, _ = T.to_numbers(frame, np.arange(4), np.arange(0))
    assert np.allclose(x[:, 0].std(), 1)


TARGETS = {"an array": (np.array([1, 2]), "must be a column of pandas"), "a gap among truths": (pd.Series([True, None] * 2, dtype="boolean"), "missing in row 2"), "a gap among categories": (pd.Series(pd.Categorical(["a", None, "b"])), "missing in row 2"),
           "complex": (pd.Series([1 + 1j, 2]), "complex")}


@pytest.mark.parametrize("name", TARGETS)
def test_targets_that_are_none(name): refused(lambda: T.to_labels(TARGETS[name][0]), TARGETS[name][1])


def test_a_part_without_rows_and_a_table_without_a_name(written, tmp_path):
    with pytest.raises(ValueError, match="leaves none to learn from"): written(lines("u"), split=.999)
    for what in ("²", 1., True, ["1"], None): refused(lambda: T.tabular(what, tmp_path), "a number of OpenML or a name")


# ---- pictures --------------------------------------------------------------------------------------------------------

GREY = np.linspace(0, 255, 96).reshape(8, 12).round().astype(np.uint8)
RGB = Image.fromarray(np.dstack([GREY, GREY[::-1], GREY[:, ::-1]]))


def stored(image, kind="PNG", **how):
    image.save(b := io.BytesIO(), kind, **how)
    return b.getvalue()


def turned(n):
    exif = Image.Exif()
    exif[0x112] = n
    return exif.tobytes()


@pytest.mark.parametrize("turn", [3, 6, 8])
@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_picture_that_its_camera_stored_turned(tmp_path, turn, kind):
    for c in "ab":
        (tmp_path / c).mkdir()
        for i in range(3): (tmp_path / c / f"{i}.{kind}").write_bytes(stored(RGB, kind.replace("jpg", "jpeg"), exif=turned(1)))
    assert len(from_folder(tmp_path)) == 4
    (odd := tmp_path / "a" / f"1.{kind}").write_bytes(stored(RGB, kind.replace("jpg", "jpeg"), exif=turned(turn)))
    with pytest.raises(ValueError, match=rf"1.{kind} is stored turned or mirrored .EXIF orientation {turn}.*upright"):
        for split in ("train", "test"): from_folder(tmp_path, split)
    with Image.open(odd) as image: refused(lambda: image_set([(image, 0)]), "example 0 is stored turned")
    assert read_picture(odd).shape == (3, 8, 12), "as ImageNet's are read, by Pillow alone"


SEEN = {"cut off": (lambda: Image.open(io.BytesIO(stored(RGB.resize((90, 90)), "JPEG")[:900])), "example 0 is not a whole image"),
        "see-through RGB": (lambda: Image.open(io.BytesIO(stored(RGB, transparency=tuple(map(int, np.asarray(RGB)[0, 0]))))), "transparent pixels"),
        "see-through grey": (lambda: Image.open(io.BytesIO(stored(Image.fromarray(GREY), transparency=int(GREY[0, 0])))), "transparent pixels"),
        "channels last": (lambda: torch.zeros(32, 32, 3), "channels last.*permute"), "no pixels": (lambda: torch.zeros(3, 0, 4), "no pixels"), "sparse": (lambda: torch.zeros(3, 4, 4).to_sparse(), "dense")}


@pytest.mark.parametrize("name", SEEN)
def test_pictures_of_a_data_set_are_looked_at_as_files_are(name): refused(lambda: image_set([(SEEN[name][0](), 0)]), SEEN[name][1])


def test_a_decoder_that_passes_damage_is_refused(tmp_path, monkeypatch):
    (tmp_path / "a.jpg").write_bytes(stored(RGB.resize((90, 90)), "JPEG")[:900])
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    refused(lambda: read_picture(tmp_path / "a.jpg"), "LOAD_TRUNCATED_IMAGES is set")


class OneBuffer:
    "A data set that hands out one tensor for all of its images."
    buffer = torch.zeros(1, 2, 2, dtype=torch.uint8)
    def __len__(self): return 3
    def __getitem__(self, i): return self.buffer.fill_(i), i


@pytest.mark.parametrize("pair", [7, None, (1, 2, 3), {0: 1}])
def test_what_is_no_pair(pair): refused(lambda: image_set([pair], ("a", "b")), "example 0 must be an image and its label")


def test_pairs_of_other_kinds():
    assert image_set(OneBuffer()).x.flatten(1)[:, 0].tolist() == [0, 1, 2], "all were the last one"
    x = torch.zeros(1, 2, 2, dtype=torch.uint8)
    for pair, sentence in (((x, 0, 1), "got tuple of 3"), (x, "must be an image and its label, got Tensor of 1"), ({"image": x, "label": 0}, "got dict"), ((x, 1e300), "labels must be class numbers"), ((x, -1), "labels must be class numbers")):
        refused(lambda: image_set([pair]), sentence)
    refused(lambda: image_set([(x, 0), (x, 1)], classes=["a", "a"]), "two classes have one name")


@pytest.mark.parametrize("part", ["2", 2.5, (0, 1), torch.tensor(2), torch.tensor([0., 1.]), torch.tensor([9]), torch.tensor([True]), None])
def test_a_part_of_a_set_is_a_number_or_places(part): refused(lambda: TEST.subset(part), "a part of a set is|places must be 0..3|one value for each")


@pytest.mark.parametrize("stray", ["._1.JPEG", "1.webp", "1.bmp"])
def test_what_load_refuses_verify_names(tmp_path, monkeypatch, stray):
    "One notion of a picture: torchvision's is another one."
    for split in ("train", "val"):
        for c in ("n01", "n02"):
            (at := tmp_path / "imagenet" / split / c).mkdir(parents=True)
            for i in range(2): RGB.save(at / f"{i}.JPEG")
    monkeypatch.setattr(F, "IMAGENET_ROWS", {"train": 4, "val": 4})
    assert len(IF.imagenet("test", tmp_path)) == 4 and len(F.verify("imagenet", tmp_path)) == 2, "that there are not a thousand classes, twice"
    (tmp_path / "imagenet" / "val" / "n02" / stray).write_bytes(b"x")
    with pytest.raises(ValueError, match=f"{stray} is no picture of the data set"): IF.imagenet("test", tmp_path)
    assert [w for w in F.verify("imagenet", tmp_path) if f"{stray} is no picture" in w]


@pytest.mark.parametrize("source", ["ftp://x/y", "s3://bucket/y", "file:///data", "HTTP://x"])
def test_an_address_that_is_not_fetched_is_no_folder(tmp_path, source):
    for get in (lambda: F.fetch("cifar10", tmp_path, source), lambda: T.fetch_openml(1, tmp_path, source)): refused(get, "only http:// and https:// are fetched from here")


# ---- values at the ends ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("labels", range(2, 10))
@pytest.mark.parametrize("lam", [0., 1., 1 - 1e-7])
def test_a_mask_of_one_image_alone_has_a_price(labels, lam):
    "With two labels and a share of exactly 1 the price was infinite, and the mask out of range."
    one, other = (prior(torch.tensor(v), labels).flatten() for v in (lam, 1 - lam))
    assert one.isfinite().all() and torch.allclose(one, other.flip(0), rtol=.02)
    u, w = costs(torch.full((4, 4, 4), 1 / 16), torch.tensor([1, 0, 3, 2]), torch.rand(4, 3, 16, 16, generator=seeded()), torch.tensor(lam), labels, 1.2, .5, .2, 4)
    assert 0 <= least(u, w, 60).min() <= least(u, w, 60).max() < labels


def test_a_prior_has_two_labels():
    for labels in (1, 0, 2.5): refused(lambda: prior(torch.tensor(.5), labels), "labels must be a whole number")


# ---- sizes, places and classes of prepared methods and of networks ----------------------------------------------------

BUILT = {"no shape": (None, 4), "a text": ("333", 4), "two sizes": ((3, 32), 4), "half a channel": ((3., 32, 32), 4), "no height": ((3, 0, 32), 4), "minus": ((-1, 8, 8), 4), "a truth": ((True, 8, 8), 4),
         "no classes": ((3, 8, 8), 0), "half a class": ((3, 8, 8), 2.5), "text": ((3, 8, 8), "3"), "true": ((3, 8, 8), True)}


@pytest.mark.parametrize("name", BUILT)
@pytest.mark.parametrize("net", ["tiny-cnn", "mlp", "point-gan", "vae-small"])
def test_a_network_of_no_size(net, name): refused(lambda: build(net, *BUILT[name], seeded()), "shape must be|channels must be|height must be|classes must be")


def test_a_network_of_no_seed_and_of_no_moments():
    for rng in (None, 0, np.random.default_rng()): refused(lambda: build("tiny-cnn", (3, 8, 8), 4, rng), "rng must be a generator")
    for mean in (.5, "abc", (math.nan,) * 3): refused(lambda: build("tiny-cnn", (3, 8, 8), 4, seeded(), mean=mean, std=(1.,) * 3), "mean and std must be finite")
    refused(lambda: build("tiny-cnn", (3, 8, 8), 4, seeded(), mean=(0.,) * 3, std=(1., math.inf, 1.)), "mean and std must be finite")


@pytest.mark.parametrize("name, y", [("-1", -1), ("too far", 4), ("float", .5), ("bool", True)])
def test_a_conditional_gan_is_told_classes(name, y):
    gan = build("point-gan", (2, 1, 1), 4, seeded())
    told, x = torch.full((3,), y), torch.randn(3, 2, 1, 1, generator=seeded())
    for ask in (lambda: gan.make(torch.rand(3, 2), told), lambda: gan(x, told), lambda: gan.sample(told, seeded()), lambda: method("class-gan").loss(gan, x, told, seeded())): refused(ask, "labels must be")


def test_a_gan_sees_images_of_its_own_size():
    gan, x = build("sngan-small", (1, 32, 32), None, seeded()), torch.rand(4, 1, 32, 32, generator=seeded())
    for bad in (x[..., :16], x.repeat(1, 3, 1, 1), x.flatten(1), x[0]): refused(lambda: method("gan").loss(gan, bad, None, seeded()), "images must have shape .B, 1, 32, 32.")


@pytest.mark.filterwarnings("ignore:.*pairs of classes")
def test_made_points_and_nearest_examples_are_of_the_training_sets_size():
    train = ImageSet((torch.rand(12, 1, 8, 8, generator=seeded()) * 255).byte(), torch.arange(12) % 2, ("a", "b"), "own", "train")
    net, x = build("tiny-cnn", (1, 8, 8), 2, seeded()), torch.rand(4, 1, 16, 16, generator=seeded())
    for name, how in (("genmix", dict(density="gm-spherical", rounds=1)), ("no-intrusion", {})):
        made = method(name, **how).prepare(train, seeded())
        assert made.loss(net, x[..., :8, :8], torch.arange(4) % 2, seeded()).isfinite()
        refused(lambda: made.loss(net, x, torch.arange(4) % 2, seeded()), "images must have shape .B, (1, 8, 8|64).")


def test_the_generative_classifier_asks_its_density_once():
    asked, density = [], D.fit_gaussian(H5, LABELS, 3)
    def once(z): asked.append(len(z)); return density(z)
    once.log_prior = density.log_prior
    assert torch.equal(D.classify(once, H5), D.posteriors(density(H5), density.log_prior).argmax(1)) and asked == [12]
    refused(lambda: D.classify(density, 1e200 * H5.double()), "every class has the density 0")


def test_labels_of_a_set_that_are_a_list(): refused(lambda: ImageSet(TEST.x, XY.tolist(), tuple("abcd"), "digits", "test"), "labels must be int64 .N,., got list")


# ---- finite logits without a difference, lists for tensors, other modes ------------------------------------------------

FAR = 3e38 * torch.tensor([[1., -1., 0., 0.], [0., 1., -1., 0.], [1., 1., 0., -1.]])
OF_FAR = {"ce": lambda z: V.soft_ce(z, torch.eye(4)[:3]), "each": lambda z: V.soft_ce(z, torch.eye(4)[:3], "none"), "views": lambda z: js([z, z.flip(1)]), "trades": lambda z: trades_loss(z, z.flip(1), torch.eye(4)[:3], 6.),
          "erm": lambda z: method("erm").loss(lambda x: z, X[:3], XY[:3], seeded()), "soft labels": lambda z: K.cross_entropy(lambda x: z, X[:3], torch.eye(4)[:3])}


@pytest.mark.parametrize("name", OF_FAR)
def test_finite_logits_that_have_no_difference_are_no_loss(name):
    "The difference is infinite in single precision, and no share of it is NaN."
    refused(lambda: OF_FAR[name](FAR), "3 of 3 rows of logits hold numbers further apart than torch.float32 can say")
    assert OF_FAR[name](FAR / 40).isfinite().all() and V.soft_ce(FAR.double(), torch.eye(4).double()[:3]).isfinite()


class Plain(torch.nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.norm, self.layers = norm, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    def forward(self, x): return self.layers(x)


NORMS = {"v2": lambda: v2.Normalize([.5] * 3, [.2] * 3), "v1": lambda: transforms.Normalize((.5,) * 3, (.2,) * 3)}


@pytest.mark.parametrize("name", NORMS)
def test_a_normalisation_that_keeps_lists_is_told_which_layer_would_do(name):
    with torch.random.fork_rng(): net = Plain(NORMS[name]())
    for ask in (lambda: method("cutout").loss(net, X, XY, seeded()), lambda: BatchTransform(method("cutout"), 4, seeded(), net=net)(X, XY)): refused(ask, "the mean of a normalisation must be a tensor .1, 3, 1, 1., got a (list|tuple) in Normalize: take mixrepro")
    for attack in (FGSM(.1, "normalised"), Unbounded(2, space="normalised")): refused(lambda: attack(net, X, XY), "the std of a normalisation must be a tensor .1, C, 1, 1., got a (list|tuple)")
    net.norm = Normalize([.5] * 3, [.2] * 3)
    assert method("cutout").loss(net, X, XY, seeded()).isfinite() and FGSM(.1, "normalised")(net, X, XY).isfinite().all()


@pytest.mark.parametrize("name, net", [("mmd-vae", AE), ("kl-vae", AE), ("gan", GAN), ("gan-mixup", GAN), ("class-gan", build("class-sngan-small", (3, 32, 32), 4, seeded()))])
def test_what_makes_images_of_0_to_1_learns_from_no_others(name, net):
    x = XG if net is not AE else X
    refused(lambda: method(name).loss(net, 2 * x - 1, XY, seeded()), f"{name} trains a .*, which makes images in .0, 1., got -.* to .*: hand them over as they are")


def test_gradients_are_not_asked_for_in_inference_mode():
    "PyTorch's own error named an element 0."
    with torch.inference_mode():
        refused(lambda: method("puzzlemix", blocks=(2, 4), clean=1.).loss(NET, X, XY, seeded()), "PuzzleMix takes gradients, which torch.inference_mode.. rules out")
        refused(lambda: method("genmix-gan").prepare(TEST, seeded(), gan=build("class-sngan-small", (3, 8, 8), 4, seeded(), enlarge=1)), "GenMix with a GAN takes gradients")


# ---- what others' bug reports tell --------------------------------------------------------------------------------------

def test_a_data_set_that_augments_at_random_and_images_divided_twice():
    noise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.GaussianNoise()])
    class Drawing:
        def __len__(self): return len(TEST)
        def __getitem__(self, i): return noise(TEST.x[i]), i
    with torch.random.fork_rng(), pytest.warns(match="gives another image each time .* one of each is kept for good"): image_set(Drawing())
    for pairs in ([(image / 255, i) for i, image in enumerate(X)], [((image > .5).byte(), i) for i, image in enumerate(X)]):
        with pytest.warns(match="the brightest value of all images is 1/255 at the most"): image_set(pairs)
    with pytest.warns(match="the brightest value of all images is 1/255 at the most"): method("mixup").loss(NET, X / 255, XY, seeded())


class Around(torch.nn.Module):
    "A plain network, and what it does with its images first."
    def __init__(self, first):
        super().__init__()
        self.first, self.layers = first, torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4))
    def forward(self, x): return self.layers(self.first(x))


def around(first):
    with torch.random.fork_rng(): return Around(first).eval()


WALKS = {"pgd": lambda n, x: K.pgd(n, x, XY, seeded(), steps=1), "fgsm": lambda n, x: K.fgsm(n, x, XY), "trades": lambda n, x: K.trades_attack(n, x, seeded(), steps=1), "apgd": lambda n, x: apgd(n, x, XY, seeded(), steps=1),
         "FGSM": lambda n, x: FGSM()(n, x, XY), "Iterated": lambda n, x: Iterated(1).move(n, x, XY), "Unbounded": lambda n, x: Unbounded(1)(n, x, XY), "AutoPGD": lambda n, x: AutoPGD(steps=1)(n, x, XY, .03),
         "linearity": lambda n, x: linearity_errors(n, x, XY, seeded(), steps=1)}


@pytest.mark.parametrize("name", WALKS)
def test_images_that_a_plain_network_cannot_multiply_are_one_sentence(name):
    net = around(torch.nn.Identity())
    refused(lambda: WALKS[name](net, X.double()), "images are torch.float64, but the network's weights torch.float32: convert with x.float")
    refused(lambda: WALKS[name](net, (255 * X).byte()), "an attack needs float images")
    WALKS[name](net.double(), X.double())


WRITES = {"attacked": lambda n: attacked([n], TEST, {"8/255": FGSM()}), "robust": lambda n: robust([n], TEST, AutoPGD(steps=1)), "linearity": lambda n: linearity(n, TEST, steps=1),
          **{name: lambda n, name=name: method(name, **({} if name == "puzzlemix" else dict(steps=1))).loss(n, X.clone(), XY, seeded()) for name in ("at", "trades", "iat")}}


@pytest.mark.parametrize("name", WRITES)
def test_a_network_that_writes_over_its_images_is_told_of(name):
    "It normalises them in place; the sentence was PyTorch's, of a leaf, or spoke of the user's images."
    refused(lambda: WRITES[name](around(lambda x: x.sub_(.5).div_(.25))), "the network writes over the images that it is given")


class Maps(torch.nn.Module):
    "As networks of torchvision and timm are: features that are layers, stages of their own, a head."
    def __init__(self):
        super().__init__()
        self.features, self.head = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 4)
        self.stages = torch.nn.ModuleList([self.features])
    def forward(self, x): return self.head(self.features(x).mean((2, 3)))


class Headed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = torch.nn.Conv2d(3, 6, 3), torch.nn.Linear(6, 4)
    def forward(self, x): return self.head(self.body(x).mean((2, 3)))


def of_kind(kind):
    with torch.random.fork_rng(): return kind()


LOOKS = {"dropout": lambda n: method("dropout").loss(n, X, XY, seeded()), "online": lambda n: method("mixup", labels=G.OnlineGenLabels(warmup=0.)).prepare(TEST, seeded()).at(.5).loss(n.train(), X, XY, seeded()),
         "latent": lambda n: method("mixup", labels=G.LatentGenLabels()).prepare(TEST, seeded(), vanilla=n), "neighbours": lambda n: N.neighbours([n], TEST, TEST.subset(2), (1,))}
STAGED = {"curves": lambda n: interpolation([n], TEST, (0, 1)), "concentration": lambda n: H.concentration([n], TEST), "dimensions": lambda n: H.dimensions([n], TEST), "hull": lambda n: H.hull([n], TEST, 3)}


@pytest.mark.filterwarnings("ignore:images are among those")
@pytest.mark.parametrize("kind", [Maps, Headed])
@pytest.mark.parametrize("name", LOOKS)
def test_what_others_call_features_is_not_taken_for_rows(name, kind):
    "torchvision's VGG has layers of that name, timm's networks have a head and none."
    how = "" if kind is Headed else ", whose features are layers and give maps: mixrepro.networks.adapter.staged"
    refused(lambda: LOOKS[name](of_kind(kind)), f"a Headed has no penultimate features|needs a network with features and a head, .* got {kind.__name__}{how}")


@pytest.mark.parametrize("name", STAGED)
def test_what_others_call_stages_cannot_be_entered(name): refused(lambda: STAGED[name](of_kind(Maps)), "networks must be in stages, .* got Maps: put stages on it")


NORMALISING = {"ours": lambda: Normalize([.5] * 3, [.2] * 3), "torchvision's": lambda: v2.Normalize([.5] * 3, [.2] * 3)}


@pytest.mark.parametrize("name", NORMALISING)
def test_a_network_that_normalises_itself_is_not_normalised_twice(name):
    net = torch.nn.Sequential(NORMALISING[name](), torch.nn.Conv2d(3, 6, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(6, 4))
    with pytest.warns(match="seems to normalise its images itself, in '0'"): staged(net, (3, 8, 8), ["1"], mean=[.5] * 3, std=[.2] * 3)
    with warnings.catch_warnings(action="error"): staged(net, (3, 8, 8), ["1"])


@pytest.mark.filterwarnings("ignore:images are among those")
def test_classes_in_another_order_have_no_neighbours():
    other = ImageSet(TEST.x, TEST.y, tuple("badc"), "own", "train")
    refused(lambda: N.neighbours([NET], TEST, other, (1,)), "label 0 is 'b' in the memory and 'a' in the images that are asked for")
    for fine in (ImageSet(TEST.x, TEST.y, tuple("0123"), "own", "train"), TEST): N.neighbours([NET], TEST, fine, (1,))


def test_a_set_of_images_is_not_a_set_of_batches():
    seen = Extractor("own", 4, NET)
    refused(lambda: S.describe(TEST, seen, seeded()), "images come in batches, got an ImageSet: write .images.x., or images.x.split.500.")
    refused(lambda: S.describe([TEST.x], NET, seeded()), "an extractor says how many features it gives, got Staged: write Extractor")


class Codes(torch.nn.Module):
    "An autoencoder of one's own, and what it does with its codes and its images."
    def __init__(self, code=lambda z: z, image=lambda x: x):
        super().__init__()
        self.code, self.image, self.e, self.d = code, image, torch.nn.Linear(192, 5), torch.nn.Linear(5, 192)
    def encode(self, x): return self.code(self.e(x.flatten(1)))
    def decode(self, z): return self.image(self.d(z).sigmoid().view(-1, 3, 8, 8))


VAES = {"mean and variance": (dict(code=lambda z: (z, z)), "the code that encode gives must be a tensor, got tuple"), "a law": (dict(code=lambda z: torch.distributions.Normal(z, 1.)), "the code that encode gives must be a tensor, got Normal"),
        "-1 to 1": (dict(image=lambda x: 2 * (x > .5) - 1.), "training images lie in .0, 1., but what the autoencoder decodes lies in .-1, 1."),
        "flat": (dict(image=lambda x: x.flatten(1)), r"must decode images \(2, 3, 8, 8\), got \(2, 192\)"), "NaN": (dict(image=lambda x: x * math.nan), "decoded images hold NaN")}


@pytest.mark.parametrize("name", VAES)
def test_an_autoencoder_of_ones_own_is_tried_before_it_is_used(name):
    how, sentence = VAES[name]
    with torch.random.fork_rng(): good, bad = Codes(), Codes(**how)
    for way in ("varmixup", "erm-r"):
        assert method(way).prepare(TEST, seeded(), vae=good).loss(NET, X, XY, seeded()).isfinite()
        refused(lambda: method(way).prepare(TEST, seeded(), vae=bad), sentence)
    refused(lambda: method("varmixup").prepare(TEST, seeded(), vae=good.double()), "weights are torch.float64")


@pytest.mark.parametrize("name", NORMALISING)
def test_a_plain_network_that_normalises_itself_is_not_trained_on_normalised_images(name):
    "As benchmarks of robustness put it together: normalisation first, then the network."
    net = torch.nn.Sequential(NORMALISING[name](), torch.nn.Flatten(), torch.nn.Linear(192, 4))
    with pytest.warns(match="images are -2.* so they seem to be normalised already, and this network normalises them itself"): method("erm").loss(net, (X - .5) / .2, XY, seeded())
    with warnings.catch_warnings(action="error"):
        method("erm").loss(net, X, XY, seeded()); method("erm").loss(net[1:], (X - .5) / .2, XY, seeded())


def test_labelled_images_are_a_set():
    for name in ("ssl-baseline", "ssl-mixup"): refused(lambda: method(name).prepare(TEST, seeded(), labelled=(X, XY)), "the labelled images are an ImageSet, got tuple: image_set.data. of mixrepro.data.pairs")

class Folder(list):
    "Like torchvision's ImageFolder, as far as names go."
    classes, class_to_idx, target_transform = ["cat", "dog"], {"cat": 0, "dog": 1}, None

def test_names_of_classes_stand_at_the_numbers_that_labels_have():
    data = Folder([(Image.new("L", (4, 4), v), v % 2) for v in (50, 99, 200, 255)])
    assert image_set(data).classes == ("cat", "dog")
    data.target_transform = lambda t: t
    assert image_set(data).classes == ("cat", "dog")
    data.target_transform = lambda t: 1 - t
    with pytest.raises(ValueError, match="its target_transform makes 1 of 0, 'cat': name the classes by classes="):
        image_set(torch.utils.data.Subset(data, [0, 1]))
    assert image_set(data, classes=["dog", "cat"]).classes == ("dog", "cat")
    data.target_transform, data.class_to_idx = None, {"cat": 1, "dog": 0}
    with pytest.raises(ValueError, match="'cat' is 0th of its classes, but 1 in its class_to_idx"): image_set(data)

def test_a_partner_outside_of_the_batch_is_refused():
    for partner, got in (([1, 0, 3, 4], "0..4"), ([1, 0, 2, -1], "-1..2")):
        with pytest.raises(ValueError, match=f"partners must be places in the batch, 0..3, got {got}"):
            Mix(torch.tensor(.5), torch.tensor(partner))(torch.rand(3, 4).T)
