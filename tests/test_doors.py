"""One guard for a kind of bad input, and every door that it stands at: what is no number, no label or no image is refused wherever it comes in."""

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import seeded
from mixrepro.data.corruptions import corrupt
from mixrepro.data.images import ImageSet
from mixrepro.data.pairs import image_set
from mixrepro.guards import NotFinite
from mixrepro.methods.apgd import apgd
from mixrepro.methods.attacks import fgsm, pgd, trades_attack
from mixrepro.methods.catalogue import method
from mixrepro.methods.manifold_mixup import ManifoldMixup
from mixrepro.methods.mmd_vae import KERNELS, kernel_matrix, mmd
from mixrepro.methods.noisymix import NFM
from mixrepro.methods.vicinal import soft_ce
from mixrepro.metrics import boundary as B, calibration as C, ranked as R
from mixrepro.metrics.accuracy import accuracy, nll
from mixrepro.metrics.attacked import FGSM, Iterated, Unbounded, attacked, unbounded
from mixrepro.metrics.concentration import dimension, in_hull, paired_ratio, unsure
from mixrepro.metrics.deformed import deformed
from mixrepro.metrics.distances import weighted_mmd2
from mixrepro.metrics.flips import flips
from mixrepro.metrics.influence import influence
from mixrepro.metrics.interpolation import interpolated, interpolation
from mixrepro.metrics.neighbours import neighbours
from mixrepro.metrics.robust import AutoPGD, robust
from mixrepro.metrics.robustness import robustness
from mixrepro.networks.zoo import build
from mixrepro.training.spec import Spec, name_of
from mixrepro.training.stacked import Stacked, stack_accuracy, untrained

NET = build("tiny-cnn", (3, 8, 8), 4, seeded()).eval()
X, Y = torch.rand(6, 3, 8, 8, generator=seeded(1)), torch.arange(6) % 4
TEST = ImageSet((X * 255).byte(), Y, tuple("abcd"), "digits", "test")


# ---- attacks ---------------------------------------------------------------------------------------------------------

ATTACKS = {"pgd": lambda net, x, y: pgd(net, x, y, seeded(), steps=3), "fgsm": fgsm, "apgd": lambda net, x, y: apgd(net, x, y, seeded(), steps=3),
           "apgd, margin": lambda net, x, y: apgd(net, x, y, seeded(), steps=3, loss="margin"), "trades": lambda net, x, y: trades_attack(net, x, seeded(), steps=3),
           "FGSM": FGSM(), "FGSM, bce": FGSM(.03, "normalised", "bce"), "Iterated": lambda net, x, y: Iterated(3).move(net, x, y)[0],
           "Unbounded": lambda net, x, y: Unbounded(3).walk(net, x, y)[0], "AutoPGD": lambda net, x, y: AutoPGD(steps=3)(net, x, y, .03)[0]}


class Around(torch.nn.Module):
    "A network whose logits are changed, by what they are and by the images."
    def __init__(self, how, net=NET):
        super().__init__()
        self.net, self.how, self.norm, self.shape, self.stages = copy.deepcopy(net), how, net.norm, net.shape, net.stages

    def forward(self, x, at=None, through=None): return self.how(self.net(x, at, through), x)


def root_of_0(logits, x):
    "Finite logits, whose gradient is NaN: the root of 0 times 0."
    return logits + (0 * x).flatten(1).norm(dim=1, keepdim=True).square().sqrt()


NO_NUMBERS = {"NaN": lambda z, x: z * math.nan, "+inf": lambda z, x: z / 0, "the root of 0": root_of_0}


@pytest.mark.parametrize("how", NO_NUMBERS)
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.filterwarnings("ignore:the gradient is exactly 0")
def test_no_attack_stands_still_where_a_gradient_is_no_number(name, how):
    "The sign of NaN is 0: an image that nobody can attack is not a robust one."
    net = Around(NO_NUMBERS[how])
    assert how != "the root of 0" or torch.equal(net(X), NET(X))
    with pytest.raises(NotFinite, match="is not a number|hold NaN or .inf"): ATTACKS[name](net, X, Y)


@dataclass
class Brighter:
    "An attack of somebody else's."
    def __call__(self, net, x, y, eps): return (x + eps).clamp(0, 1), y < 0


@pytest.mark.parametrize("measure", [lambda net: attacked([net], TEST, {"far": FGSM()}), lambda net: robust([net], TEST, AutoPGD(steps=3)), lambda net: robust([net], TEST, Brighter()),
                                     lambda net: unbounded([net], TEST, Unbounded(3))], ids=["attacked", "robust", "an attack from outside", "unbounded"])
def test_logits_that_are_no_numbers_beside_the_images_are_refused(measure):
    there = Around(lambda z, x: z.masked_fill(~torch.stack([(a - TEST.floats()).abs().flatten(1).amax(1).min() < 1e-6 for a in x])[:, None], math.nan))
    assert there(TEST.floats()).isfinite().all()
    with pytest.raises(NotFinite): measure(there)


SOFT = {"float class numbers": (lambda y: y.float(), "convert class numbers with y.long"), "twice": (lambda y: 2 * torch.eye(4)[y], "do not sum to 1"),
        "NaN": (lambda y: torch.full((6, 4), math.nan), "negative or NaN"), "negative": (lambda y: torch.eye(4)[y] - .25 + .25 * (torch.eye(4)[y] < 0), "negative or NaN"), "too few": (lambda y: torch.eye(4)[y[:5]], r"got \(5, 4\)")}


@pytest.mark.parametrize("bad", SOFT)
@pytest.mark.parametrize("name", ("pgd", "fgsm", "apgd", "apgd, margin", "Iterated"))
def test_mixed_labels_that_are_no_shares_are_refused_by_every_attack(name, bad):
    change, sentence = SOFT[bad]
    with pytest.raises((ValueError, TypeError), match=sentence): ATTACKS[name](NET, X, change(Y))


@pytest.mark.filterwarnings("ignore:the gradient is exactly 0")
def test_mixed_labels_that_are_shares_are_attacked():
    assert torch.equal(ATTACKS["pgd"](NET, X, torch.eye(4)[Y]), ATTACKS["pgd"](NET, X, Y))


@pytest.mark.parametrize("name", ("FGSM", "Iterated", "Unbounded", "AutoPGD", "apgd", "pgd"))
@pytest.mark.parametrize("y", [Y[:5], Y - 1, Y + 1, Y.float(), Y > 0, Y[:, None]], ids=["five", "-1", "4", "float", "bool", "(6, 1)"])
def test_labels_of_other_images_are_refused_by_every_attack(name, y):
    with pytest.raises((ValueError, TypeError), match="labels must be"): ATTACKS[name](NET, X, y)


def test_half_precision_images_are_attacked_in_single():
    for name in ("pgd", "apgd", "AutoPGD"): assert ATTACKS[name](NET, X.bfloat16(), Y).dtype == torch.float32


FIELDS = [(FGSM, dict(eps=".1")), (FGSM, dict(eps=1)), (Iterated, dict(steps="7")), (Iterated, dict(steps=7.)), (Unbounded, dict(bounds=1)), (AutoPGD, dict(steps=20.)), (AutoPGD, dict(losses=["ce", "margin"]))]
REFUSED = [(FGSM, dict(eps=None)), (FGSM, dict(eps="x")), (FGSM, dict(eps=True)), (Iterated, dict(start="far")), (Iterated, dict(seed=-1)), (Iterated, dict(seed=2.5)), (Iterated, dict(step="x")),
           (Unbounded, dict(bounds=2)), (AutoPGD, dict(steps=math.nan)), (AutoPGD, dict(restarts=0)), (AutoPGD, dict(losses="ce")), (AutoPGD, dict(losses=("dlr",))), (AutoPGD, dict(seed="x"))]


def test_an_attack_of_a_metric_looks_at_its_fields_when_it_is_written_down():
    for kind, args in FIELDS:
        made = kind(**args)
        assert all(isinstance(getattr(made, k), (float, int, tuple, bool)) for k in args) and not isinstance(getattr(made, [*args][0]), str)
    assert FGSM(1) == FGSM(1.) and repr(FGSM(1)) == repr(FGSM(1.)) and hash(AutoPGD(20.)) == hash(AutoPGD())
    for kind, args in REFUSED:
        with pytest.raises(ValueError, match=[*args][0]): kind(**args)


@pytest.mark.parametrize("args", [dict(alpha=math.nan), dict(alpha=5.), dict(rho=-1.), dict(rho="x"), dict(restarts=1.5), dict(restarts=0), dict(start="far"), dict(eps=math.inf), dict(loss="dlr"), dict(eps="x"), dict(steps=None)], ids=str)
def test_apgd_refuses_what_it_cannot_climb_by_name(args):
    with pytest.raises(ValueError, match=[*args][0] if args != dict(steps=None) else "steps"): apgd(NET, X, Y, seeded(), **dict(steps=3) | args)


# ---- attacks on many small networks ----------------------------------------------------------------------------------

POINTS, EXAMPLES = torch.randn(1, 1, 6, 2, generator=seeded(3)), torch.randn(1, 20, 2, generator=seeded(4))
CLASSES = (POINTS.sum(-1) < 0).long()
WALKS = {"signed": lambda net, x, y, e: B.signed_step(net, x, y, .1), "boundary": lambda net, x, y, e: B.boundary_attack(net, x, y, e, seeded(), 20)}


def line(x): return torch.stack([x.sum(-1), -x.sum(-1)], -1)


@pytest.mark.parametrize("walk", WALKS)
@pytest.mark.parametrize("y", [CLASSES - 1, CLASSES + 2, CLASSES * 0 - 100, CLASSES.float(), CLASSES > 0, CLASSES[..., :5]], ids=["-1", "2", "-100", "float", "bool", "five"])
def test_a_walk_refuses_classes_that_are_none(walk, y):
    "Every point of class -100 was misread: it had the distance 0."
    with pytest.raises((ValueError, TypeError), match="labels must be|a class for each point"): WALKS[walk](line, POINTS, y, EXAMPLES)


@pytest.mark.parametrize("walk, how", [("signed", "net"), ("signed", "points"), *(("boundary", how) for how in ("net", "points", "examples", "beside"))])
def test_a_walk_refuses_what_is_no_number(walk, how):
    net = dict(net=lambda x: line(x) * math.nan, beside=lambda x: line(x).masked_fill((x[..., :1] != POINTS[..., :1].mean()) & ~torch.isin(x[..., :1], torch.cat([POINTS.flatten(), EXAMPLES.flatten()])), math.nan)).get(how, line)
    args = dict(points=(POINTS * math.nan, EXAMPLES), examples=(POINTS, EXAMPLES * math.nan)).get(how, (POINTS, EXAMPLES))
    with pytest.raises(NotFinite): WALKS[walk](net, args[0], CLASSES, args[1])


def test_a_walk_refuses_sizes_that_cannot_be():
    for eps in (math.nan, -.1, 0):
        with pytest.raises(ValueError, match="the radius eps must be above 0"): B.signed_step(line, POINTS, CLASSES, eps)
    for bad in (dict(steps=0), dict(every=0), dict(steps=2.5)):
        with pytest.raises(ValueError, match="must be an integer from 1"): B.boundary_attack(line, POINTS, CLASSES, EXAMPLES, seeded(), **bad)
    with pytest.raises(ValueError, match="1 or more are needed, got none"): B.boundary_attack(line, POINTS, CLASSES, EXAMPLES[:, :0], seeded(), 5)
    assert B.boundary_attack(line, POINTS, CLASSES, EXAMPLES, seeded(), 5, every=1).isfinite().all()


# ---- confidences -----------------------------------------------------------------------------------------------------

SURE, RIGHT, W = torch.rand(250, generator=seeded(5)).double(), (torch.arange(250) % 3 > 0).double(), torch.ones(250, dtype=torch.float64)
RANKED = {"rms_of": lambda s, r, w: R.rms_of(s, r), "response_accuracy": lambda s, r, w: R.response_accuracy(s, r), "by_rank": lambda s, r, w: R.by_rank(s, r), "weighted_rms": lambda s, r, w: R.weighted_rms(w, s, r),
          "weighted_aurra": lambda s, r, w: R.weighted_aurra(w, s, r), "weighted_ece": lambda s, r, w: C.weighted_ece(w, s, r)}


@pytest.mark.parametrize("name", RANKED)
def test_a_confidence_that_is_none_is_not_sorted_to_the_end_and_left_out(name):
    "NaN was the surest of all, in the bin that the reference code leaves out."
    f, bad = RANKED[name], SURE.index_fill(0, torch.tensor([7]), math.nan)
    f(SURE, RIGHT, W), f(SURE, RIGHT > 0, W)
    for s, r in ((bad, RIGHT), (SURE, bad), (bad * math.inf, RIGHT)):
        with pytest.raises(NotFinite, match="rows of confidences hold NaN or infinity"): f(s, r, W)
    if name in ("rms_of", "by_rank", "weighted_rms", "weighted_ece"):
        with pytest.raises(ValueError, match="confidences must lie in .0, 1."): f(SURE + 1, RIGHT, W)
    for s, r in ((SURE[:0], RIGHT[:0]), (SURE, RIGHT[:-1]), (SURE[:, None], RIGHT[:, None])):
        with pytest.raises(ValueError, match="1 or more predictions is needed|bins need 1 prediction or more|needs 200 predictions or more, got 0"): f(s, r, W)


@pytest.mark.parametrize("name", [n for n in RANKED if n.startswith("weighted")])
def test_weights_of_which_no_mean_can_be_taken(name):
    for w in (0 * W, -W, W * math.nan, W[:5], W * math.inf):
        with pytest.raises(ValueError, match="250 weights of 0 or more are needed, one of them above 0"): RANKED[name](SURE, RIGHT, w)


def test_bins_are_counted_in_whole_numbers():
    for bins in (0, 2.5, True, math.nan):
        with pytest.raises(ValueError, match="bins must be 1 or more, a whole number"): C.ece(NET(X).detach(), Y, bins)
    with pytest.raises(ValueError, match="whole number"): R.rms_error(NET(X).detach(), Y, 1.5)


# ---- other metrics ---------------------------------------------------------------------------------------------------

def test_a_class_that_is_ruled_out_has_a_curve_between_images():
    "One logit of -inf is a thing that a network can say: 0 times -inf was NaN, kept without a word."
    few = ImageSet(TEST.x, TEST.y % 3, TEST.classes, "digits", "test")
    out = Around(lambda z, x: z.index_fill(1, torch.tensor([3]), -math.inf))
    low = Around(lambda z, x: z.index_fill(1, torch.tensor([3]), -1e4))
    pairs = torch.arange(3), torch.arange(3, 6)
    got, same = (interpolated(net, few, pairs, 0, (0., .5, 1.)) for net in (out, low))
    assert got["nll"] == pytest.approx(same["nll"], rel=1e-6) and math.isfinite(sum(got["nll"]))
    assert math.isinf(interpolated(out, TEST, pairs, 0, (0., .5, 1.))["nll"][1])


def test_states_features_and_logits_that_are_no_numbers_or_none():
    h = torch.randn(8, 3, generator=seeded()).index_fill(0, torch.tensor([2]), math.nan)
    with pytest.raises(NotFinite): in_hull(h, 4, seeded())
    with pytest.raises(NotFinite): weighted_mmd2(h.double(), h.double(), torch.ones(8).double(), torch.ones(8).double())
    with pytest.raises(ValueError, match="2 samples of each set"): weighted_mmd2(h[:1].double(), h[:1].double(), torch.ones(1).double(), torch.ones(1).double())
    for bad in (torch.zeros(0, 4), torch.zeros(4)):
        with pytest.raises(ValueError, match="one row at least"): unsure(bad)
    for f in (accuracy, nll, C.ece):
        with pytest.raises(TypeError, match="must be a tensor|must be real numbers"): f([[0., 1.]], torch.tensor([0]))
        with pytest.raises(TypeError, match="must be a tensor|must be real numbers"): f(torch.ones(1, 2) + 0j, torch.tensor([0]))


# ---- losses ----------------------------------------------------------------------------------------------------------

def test_a_class_that_is_ruled_out_can_be_trained_beside():
    def out(z, x): return torch.cat([z, torch.full_like(z[:, :1], -math.inf)], 1)
    for name in ("erm", "mixup", "manifold-mixup", "at", "trades"):
        losses = [method(name).loss(Around(how), X, Y, seeded()).item() for how in (out, lambda z, x: z)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5), name


def test_finite_logits_cost_what_pytorch_says_to_the_last_bit():
    z = (30 * torch.randn(64, 10, generator=seeded())).requires_grad_()
    t = torch.rand(64, 10, generator=seeded(1)).softmax(1)
    ours, theirs = (torch.autograd.grad(f(z, t), z)[0] for f in (soft_ce, torch.nn.functional.cross_entropy))
    assert torch.equal(ours, theirs) and torch.equal(soft_ce(z, t), torch.nn.functional.cross_entropy(z, t))


IMAGES = {"NaN": lambda x: x * math.nan, "one NaN": lambda x: x.index_fill(2, torch.tensor([3]), math.nan), "0 to 255": lambda x: 255 * x, "none": lambda x: x[:0]}


@pytest.mark.parametrize("bad", IMAGES)
@pytest.mark.parametrize("name", ("erm", "mixup", "autoaugment", "cutmix", "cutout", "at"))
def test_images_that_are_none_are_one_sentence_in_training(name, bad):
    "AutoAugment made plain pictures of NaN; CutMix of no images divided by 0."
    x = IMAGES[bad](X)
    with pytest.raises(ValueError, match="^(images (hold NaN|must be float in)|labels must be|an attack needs images)|the batch is empty"): method(name).loss(copy.deepcopy(NET), x, Y[:len(x)], seeded())


@pytest.mark.parametrize("name", ("erm", "mixup", "cutmix", "cutout", "manifold-mixup"))
def test_a_loop_of_ones_own_may_normalise_its_images(name):
    x = torch.randn(6, 3, 8, 8, generator=seeded(2))
    assert method(name).loss(copy.deepcopy(NET), x, Y, seeded()).isfinite()


def test_noise_in_units_of_0_to_1_is_not_laid_on_normalised_images():
    "Half of it would be added, and the other kind multiplied around another grey; hidden states have no such unit."
    x, net = (X - .5) / .25, copy.deepcopy(NET)
    with pytest.raises(ValueError, match=r"FeatureNoise is laid on images in \[0, 1\], got -2 to 2: normalise inside the network, or mix at hidden states"): NFM.loss(net, x, Y, seeded())
    for fine, images in ((NFM, X), (replace(NFM, stages=(1,)), x), (ManifoldMixup(), x)): assert fine.loss(net, images, Y, seeded()).isfinite()


def test_points_may_lie_anywhere_but_must_be_numbers():
    net, x = build("spiral-net", (2, 1, 1), 2, seeded()), 5 * torch.randn(8, 2, 1, 1, generator=seeded())
    assert method("mixup").loss(net, x, Y[:1].repeat(8), seeded()).isfinite()
    with pytest.raises(ValueError, match="images hold NaN"): method("mixup").loss(net, x * math.nan, Y[:1].repeat(8), seeded())


def test_a_wrapper_that_hides_what_a_method_needs_is_named():
    vae, x = build("vae-small", (1, 16, 16), None, seeded()), torch.rand(4, 1, 16, 16, generator=seeded())
    with pytest.raises(TypeError, match="a DataParallel hides the network's 'posterior': pass what it holds"): method("mmd-vae").loss(torch.nn.DataParallel(vae), x, Y[:4], seeded())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_a_distance_that_autocast_would_round_away_is_refused(kind):
    "Both samples far out, in bfloat16 20 % off; where one is a prior, as in training, the distance is as large as the rounding allows."
    for d in (2, 16):
        q, p = torch.randn(256, d, generator=seeded(1)) + .5, torch.randn(256, d, generator=seeded(2))
        near, passed = mmd(q.double(), p.double()).item(), 0
        for off in (0., .5, 1., 2., 5., 10., 20., 40.):
            with torch.autocast("cpu", kind):
                assert mmd(q + off, p).isfinite()
                try: found = mmd(q + off, p + off).item()
                except ValueError as e: assert "both samples lie far from the origin, where torch.autocast rounds" in str(e); continue
            passed += 1
            assert found == pytest.approx(near, rel=.02)
        assert 3 <= passed < 8


@pytest.mark.parametrize("kernel", KERNELS)
def test_codes_far_from_the_origin_have_the_same_distance(kernel):
    "50 % off at 10,000 in single precision; near the origin nothing changes, to the last bit."
    q, p = torch.randn(64, 16, generator=seeded(1)), torch.randn(64, 16, generator=seeded(2))
    near = mmd(q.double(), p.double(), kernel).item()
    for off in (100., 1e3, 1e4): assert mmd(q + off, p + off, kernel).item() == pytest.approx(near, rel=2e-3)
    s = (q.pow(2).sum(1)[:, None] + p.pow(2).sum(1) - 2 * q @ p.T).clamp_min(0)
    assert torch.equal(kernel_matrix(q, p, kernel), KERNELS[kernel](s, 16))
    def slope(k):
        z = q.clone().requires_grad_()
        ((KERNELS[kernel]((z.pow(2).sum(1)[:, None] + p.pow(2).sum(1) - 2 * z @ p.T).clamp_min(0), 16) if k is None else k(z, p, kernel)).mean() + z.square().mean()).backward()
        return z.grad
    assert torch.equal(slope(kernel_matrix), slope(None))


# ---- pictures and specs ----------------------------------------------------------------------------------------------

def test_a_picture_of_any_depth_is_what_it_shows():
    g = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
    def mean(image): return image_set([(image, 0)]).x.double().mean().item()
    assert mean(Image.fromarray(g.astype(np.uint16) * 257)) == pytest.approx(g.mean()), "it was nearly white"
    for mode in ("1", "P", "LA", "CMYK", "RGBA"): assert abs(mean(Image.fromarray(g).convert("RGB" if mode == "CMYK" else "L").convert(mode)) - g.mean()) < (.5 if mode != "1" else 9)
    for image, sentence in ((Image.fromarray(g / 255.).convert("F"), "white is not known"), (Image.fromarray(np.dstack([g, g, g, g])), "transparent pixels"), (Image.fromarray(g).convert("I"), "white is not known")):
        with pytest.raises(ValueError, match=f"example 0 has .*{sentence}"): mean(image)
    with pytest.raises(ValueError, match="example 0 has values of torch.uint16"): mean(torch.zeros(3, 4, 4, dtype=torch.uint16))


def test_a_label_that_is_no_class_number_is_not_cut_to_one():
    x = torch.zeros(1, 4, 4, dtype=torch.uint8)
    for label in (1.7, math.nan, None, "1", True, torch.tensor(.5)):
        with pytest.raises(ValueError, match="the label of example 0 must be a class number"): image_set([(x, label)])
    for label in (1, 1., np.int64(1), torch.tensor(1)): assert image_set([(x, label)]).y.tolist() == [1]


def test_milestones_in_any_order_are_one_run():
    a, b, twice = (Spec("digits", "erm", "tiny-cnn", schedule="step", milestones=m) for m in ((2, 9), [9, 2.], (2, 2, 9)))
    assert a == b and name_of(a) == name_of(b) and name_of(a) != name_of(twice)


# ---- what is asked for is looked at before the first of it is measured -----------------------------------------------

class Untouched(torch.nn.Module):
    "A network that nobody may ask."
    def __init__(self):
        super().__init__()
        self.shape, self.norm, self.stages, self.features = NET.shape, NET.norm, NET.stages, self.forward

    def forward(self, *args, **kw): raise AssertionError("measured before all was looked at")


ASKED = {"robustness, a kind": lambda net: robustness(net, TEST, ("fog", "smog")), "robustness, a table": lambda net: robustness(net, TEST, ("fog",), table="cifer"), "flips": lambda net: flips([net], TEST, ("snow", "sleet")),
         "deformed": lambda net: deformed([net], TEST, rows=("rotation 20", "rotation 21")), "interpolation": lambda net: interpolation([net], TEST, stages=(0, 9)),
         "neighbours": lambda net: neighbours([net], TEST, TEST, (1, 99)), "neighbours, half": lambda net: neighbours([net], TEST, TEST, (1, 2.5))}


@pytest.mark.parametrize("name", ASKED)
def test_what_cannot_be_measured_is_refused_before_anything_is(name):
    with pytest.raises(ValueError, match="unknown|stages 0|k must be from 1"): ASKED[name](Untouched())


def test_numbers_that_a_metric_cannot_use():
    h, y = torch.randn(8, 3, generator=seeded()), torch.arange(8) % 2
    with pytest.raises(ValueError, match="tau must be above 0 and finite"): dimension(h, y, math.inf)
    for level in (0, 1, 2., math.nan):
        with pytest.raises(ValueError, match="level of an interval must be in"): paired_ratio([1., 2.], [1., 3.], level)
    with pytest.raises(NotFinite, match="statistic and its slopes"): influence(lambda w: (w * math.nan).sum() / w.sum(), 5)
    with pytest.raises(ValueError, match="seed must be a whole number, got 2.5"): corrupt(TEST.x, "gaussian_noise", 3, seed=2.5)  # was 2


def test_a_stack_of_networks_that_diverged_is_not_right_half_of_the_time():
    net, x, y = untrained((3, 4, 2), [seeded()], 2), torch.randn(1, 10, 3, generator=seeded(1)), torch.arange(10)[None] % 2
    assert stack_accuracy(net, x, y).shape == (1, 2)
    with pytest.raises(NotFinite): stack_accuracy(Stacked(net.flat * math.nan, net.sizes), x, y)
    for bad in (y - 1, y + 2, y.float()):
        with pytest.raises((ValueError, TypeError), match="labels must be"): stack_accuracy(net, x, bad)
    with pytest.raises(ValueError, match="expected one at least"): stack_accuracy(net, x[:, :0], y[:, :0])


def test_images_of_another_precision_than_an_autoencoders_are_one_sentence():
    vae, x = build("vae-small", (1, 16, 16), None, seeded()), torch.rand(4, 1, 16, 16, generator=seeded())
    for half in (x.half(), x.bfloat16()):
        with pytest.raises(TypeError, match="but the network's weights torch.float32: convert with x.to"): method("mmd-vae").loss(vae, half, Y[:4], seeded())
    with torch.autocast("cpu", torch.bfloat16): assert vae.encode(x).shape == (4, 32)
