"""One guard for a kind of bad input, and every door that it stands at: what is no number, no label or no image is refused wherever it comes in."""

import copy
import math

import pytest
import torch

from helpers import seeded
from mixrepro.data.images import ImageSet
from mixrepro.guards import NotFinite
from mixrepro.methods.apgd import apgd
from mixrepro.methods.attacks import fgsm, pgd, trades_attack
from mixrepro.metrics.attacked import FGSM, Iterated, Unbounded, attacked, unbounded
from mixrepro.metrics.robust import AutoPGD, robust
from mixrepro.networks.zoo import build

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
        self.net, self.how, self.norm, self.shape = copy.deepcopy(net), how, net.norm, net.shape

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


@pytest.mark.parametrize("measure", [lambda net: attacked([net], TEST, {"far": FGSM()}), lambda net: robust([net], TEST, AutoPGD(steps=3)), lambda net: robust([net], TEST, lambda net, x, y, eps: ((x + eps).clamp(0, 1), y < 0)),
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
