"Robust accuracy: radii that are known, and AutoAttack by its package or by a sentence."

import sys
import types

import pytest
import torch
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.metrics.catalogue import METRICS
from mixrepro.metrics.robust import BALLS, BEFORE, AutoAttack, AutoPGD, robust
from mixrepro.methods.erm import ERM
from mixrepro.networks.zoo import build
from mixrepro.training.fit import fit

TRAIN, TEST = load("digits-few", "train"), load("digits-few", "test").subset(60)


@pytest.fixture(scope="module")
def net():
    made = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded())
    fit(made, ERM(), TRAIN.floats(), TRAIN.y, seeded(), 100, 64, 5e-3)
    return made


class Boundary(nn.Module):
    "Reads an image rightly while its mean grey is below a limit: its radius is known."
    def __init__(self, limit): super().__init__(); self.limit = limit
    def forward(self, x): m = x.flatten(1).mean(1); return torch.stack([self.limit - m, m - self.limit], 1)


def test_radii_of_a_network_whose_radius_is_known():
    from mixrepro.data.images import ImageSet
    x = torch.full((6, 1, 4, 4), 100, dtype=torch.uint8) + torch.arange(6, dtype=torch.uint8)[:, None, None, None]
    test = ImageSet(x, torch.zeros(6, dtype=torch.int64), ("a", "b"), "digits", "test")
    (found,) = robust([Boundary(103.5 / 255)], test, AutoPGD(4), {"1": 1 / 255, "2": 2 / 255}, arrays=True)
    assert found["arrays"]["right"].tolist() == [[True] * 4 + [False] * 2, [True] * 3 + [False] * 3, [True] * 2 + [False] * 4]


def test_a_ball_is_named_by_its_radius():
    for name, radius in BALLS.items():
        over, _, under = name.partition("/")
        assert float(over) / float(under or 1) == radius


def test_flat_networks_are_told():
    class Flat(nn.Module):
        def forward(self, x): return 0 * x.flatten(1)[:, :10] + torch.eye(10)[0]
    (found,) = robust([Flat()], TEST, AutoPGD(2), {"1/255": 1 / 255})
    assert found["flat"]["1/255"] == (TEST.y == 0).sum() and found["accuracy"]["1/255"] == found["accuracy"][BEFORE]


def test_autoattack_is_a_metric_or_a_sentence(net, monkeypatch):
    assert METRICS["autoattack"].keywords["attack"] == AutoAttack()
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    with pytest.raises(ModuleNotFoundError, match="the metric 'autoattack' needs the package pyautoattack: pip install"): METRICS["autoattack"]([net], TEST)


def test_what_the_package_is_asked_for(net, monkeypatch):
    "A stand-in with its interface: the radius, the seed, no more targets than other classes; what it gives back is looked at here."
    asked = []
    class Theirs:
        def __init__(self, model, **args):
            self.args, self.fab, self.apgd_targeted = args, types.SimpleNamespace(n_target_classes=9), types.SimpleNamespace(n_target_classes=9)
        def run_standard_evaluation(self, x, y, batch_size):
            asked.append((self.args["eps"], self.args["seed"], self.args["version"], self.fab.n_target_classes, self.apgd_targeted.n_target_classes))
            torch.rand(3)
            return 1 - x, y
    monkeypatch.setitem(sys.modules, "pyautoattack", types.SimpleNamespace(AutoAttack=Theirs))
    before = torch.get_rng_state()
    (found,) = robust([net], TEST, AutoAttack(), {"a": .1, "b": .2})
    with torch.no_grad(): stands = ((net(TEST.floats()).argmax(1) == TEST.y) & (net(1 - TEST.floats()).argmax(1) == TEST.y)).double().mean().item()
    assert found["accuracy"]["a"] == pytest.approx(stands) and asked[0] == (.1, 0, "standard", 9, 9)
    assert torch.equal(before, torch.get_rng_state()) and found["attack"] == dict(name="AutoAttack", version="standard", seed=0)
    from mixrepro.data.images import ImageSet
    few = ImageSet(TEST.x[TEST.y < 4], TEST.y[TEST.y < 4], tuple("abcd"), "digits", "test")
    robust([build("tiny-cnn", TRAIN.shape, 4, seeded())], few, AutoAttack(), {"a": .1})
    assert asked[-1][3:] == (3, 3)


@pytest.mark.slow
def test_the_package_itself_finds_no_less():
    pytest.importorskip("pyautoattack")
    made, few = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded()), TEST.subset(10)
    fit(made, ERM(), TRAIN.floats(), TRAIN.y, seeded(), 60, 64, 5e-3)
    shares = [robust([made], few, attack, {"2/255": 2 / 255})[0]["accuracy"]["2/255"] for attack in (AutoAttack(), AutoPGD())]
    assert shares[0] <= shares[1] + 1e-9
