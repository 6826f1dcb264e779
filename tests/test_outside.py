"A network and a labelling that are not in the package: named in a run, trained, seen in a table, noticed when they change."
import importlib
import sys
from dataclasses import replace

import pytest
import torch

from helpers import forget
from mixrepro import outside
from mixrepro.methods.catalogue import method, run_fields
from mixrepro.methods.mixup import Mixup
from mixrepro.networks.zoo import build
from mixrepro.training import made
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, canonical, from_json, name_of, to_json
from mixrepro.training.standing import other
from mixrepro.training.store import Store, network_of, open_net
from mixrepro.workflow.study import Study

NETS = '''import torch
from torch import nn

from brought_parts import width
from mixrepro.networks.adapter import staged

def little(shape, classes, mean=None, std=None, wide: int = 4):
    wide = width(wide)
    net = nn.Sequential(nn.Conv2d(shape[0], wide, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
                        nn.Dropout(.5), nn.Linear(4 * wide, classes))
    return staged(net, shape, ["1", "3"], mean=mean, std=std)
'''
PART = '''from dataclasses import dataclass

from mixrepro.core import choice
from mixrepro.methods.labels import Labels

def width(wide): return 2 * wide

@dataclass(frozen=True, kw_only=True)
class Even(Labels):
    "Shares that do not ask where the mixture lies."
    first: float = choice(.5, "default", "half and half", allowed="[0, 1]")

    def __call__(self, y, place): return self.first * y + (1 - self.first) * y[place.mix.partner]
'''
NET, EVEN = "brought_nets:little", "brought_parts:Even"
SPEC = dict(dataset="digits-few", method="mixup", network=NET, epochs=2, n_train=64, augment="none",
            method_args=dict(labels=dict(name=EVEN, first=.7)))


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A folder on Python's path with the user's two modules."
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within the second that a stamp has
    (tmp_path / "brought_nets.py").write_text(NETS), (tmp_path / "brought_parts.py").write_text(PART)
    forget("brought_")
    yield tmp_path
    forget("brought_")


def test_a_run_of_both_is_named_trained_read_and_the_same_again(mine):
    spec, store = Spec(**SPEC), Store(mine / "runs")
    run = train_run(spec, store)
    assert run.folder.name.startswith("mixup-brought_nets.little-s0-") and from_json(to_json(spec)) == spec
    assert canonical(spec)["method_args"]["labels"] == dict(name=EVEN, first=.7)
    x = torch.rand(3, 1, 8, 8)
    torch.manual_seed(5)  # the dropout draws from the run's stream, whatever the global one is
    again = train_run(spec, Store(mine / "again"))
    assert torch.equal(open_net(run)(x), open_net(again)(x)) and [r.spec for r in store.runs()] == [spec]
    assert torch.get_rng_state().equal(torch.Generator().manual_seed(5).get_state())


def test_it_is_a_row_of_a_table_and_a_departure(mine):
    study = Study("vm-table1", "smoke", 1, Store(mine / "runs"), labels=dict(mine="Mixup, own network"))
    study.cells = [c for c in study.cells if c.row == "erm"]
    study.add("mine", "mixup", network=NET, network_args=dict(wide=2), labels=dict(name=EVEN))
    study.cells = [c._replace(spec=replace(c.spec, epochs=1)) for c in study.cells]
    table = study.table(study.measure("clean", lambda found: {"accuracy": found["accuracy"]}),
                        {"cifar10": ("cifar10", "accuracy")}, scale=100)
    assert "| Mixup, own network |" in str(table) and study.runs[1].spec.network_args == dict(wide=2)
    assert f"{NET} in place of" in " ".join(study.caption())


def test_a_part_as_an_object_is_the_part_by_its_name(mine):
    even = importlib.import_module("brought_parts").Even(first=.7)
    assert Spec(**SPEC | dict(method_args=dict(labels=even))) == Spec(**SPEC) and even.name == EVEN
    assert method("mixup", labels=dict(name=EVEN, first=.7)) == Mixup(labels=even)
    forget("brought_")
    fresh = importlib.import_module("brought_parts").Even(first=.7)  # of a class that no run has named yet
    assert name_of(Spec(**SPEC | run_fields(Mixup(labels=fresh)))) == name_of(Spec(**SPEC))
    assert name_of(Spec(**SPEC | dict(method_args={}))) != name_of(Spec(**SPEC))


@pytest.mark.parametrize("file, old, new, told", [
    ("brought_nets.py", "nn.ReLU()", "nn.GELU()", "brought_nets changed"),
    ("brought_parts.py", "(1 - self.first) *", "(.9 - self.first) *", "brought_parts changed"),
    ("brought_parts.py", "Shares that", "Parts that", "")])
def test_a_change_of_their_code_is_noticed_by_the_next_process(mine, file, old, new, told):
    spec, store = Spec(**SPEC), Store(mine / "runs")
    run, parts = train_run(spec, store), made.code_of(spec).parts
    assert {"brought_nets:*", "brought_parts:*", f"networks.zoo:NETWORKS[{NET}]", "networks.zoo:build"} <= parts.keys()
    assert other(run) == ""
    text = (mine / file).read_text()
    assert old in text
    (mine / file).write_text(text.replace(old, new))
    forget("brought_")
    assert other(store.run(Spec(**SPEC))) == told


def test_the_package_s_own_runs_have_the_fingerprint_that_they_had(mine):
    own = Spec("digits-few", "mixup", "tiny-cnn")
    before = made.code_of(own)
    Spec(**SPEC), made.reached_by.cache_clear()
    assert made.code_of(own) == before and not [p for p in before.parts if "brought" in p or "outside" in p]


def test_an_installed_distribution_brings_a_network_by_its_name(mine):
    info = mine / "brought-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[mixrepro.networks]\nlittle = {NET}\nmlp = {NET}\n")
    outside.entered.cache_clear(), importlib.invalidate_caches()
    spec = Spec(**SPEC | dict(network="little"))
    assert name_of(spec).startswith("mixup-little-s0-") and "brought_nets:*" in made.code_of(spec).parts
    for name, told in (("litle", "did you mean 'little'"), ("mlp", "the name 'mlp' is taken by mixrepro")):
        with pytest.raises(ValueError, match=told): build(name, (1, 8, 8), 10, torch.Generator())


@pytest.mark.parametrize("changed, told", [
    (dict(network="brought_nest:little"), "there is no module 'brought_nest' for the network"),
    (dict(network="brought_nets:litle"), "unknown function of brought_nets 'litle': did you mean 'little'"),
    (dict(network="brought_nets:nn"), "brought_nets:nn builds no network"),
    (dict(network="brought_parts:width"), "brought_parts:width cannot be called as builder"),
    (dict(network_args=dict(wide="much")), "wide must be a whole number, got 'much'"),
    (dict(network_args=dict(wdie=3)), "unknown argument of 'brought_nets:little' 'wdie': did you mean 'wide'"),
    (dict(method="mmd-vae", method_args={}), "trains networks of the kind 'autoencoder'"),
    (dict(method_args=dict(labels=dict(name="brought_parts:Evne"))), "unknown class of brought_parts 'Evne'"),
    (dict(method_args=dict(labels=dict(name=EVEN, first=2))), r"first must be in \[0, 1\], got 2"),
    (dict(method_args=dict(noise=dict(name=EVEN))), "unknown part for noise")])
def test_what_cannot_be_is_refused_in_a_sentence(mine, changed, told):
    with pytest.raises(ValueError, match=told) as e: Spec(**SPEC | changed)
    assert "\n" not in str(e.value)


def test_a_network_that_has_no_stages_is_refused_when_it_is_built(mine):
    (mine / "brought_nets.py").write_text(NETS.replace("return staged(net, shape, [\"1\", \"3\"], mean=mean, std=std)", "return net"))
    spec = Spec(**SPEC)
    with pytest.raises(TypeError, match="brought_nets:little gives a Sequential, which has no stages"):
        network_of(spec, (1, 8, 8), 10)


def test_weights_that_share_memory_are_kept_and_come_back(mine):
    "Safetensors refuses them, which was found out when the training was over, and again at each further call."
    (mine / "brought_tied.py").write_text(NETS.replace("    return staged", "    net[5] = nn.Sequential(nn.Linear(4 * wide, 4 * wide), nn.Linear(4 * wide, 4 * wide), nn.Linear(4 * wide, classes))\n"
                                                       "    net[5][1].weight = net[5][0].weight\n    return staged"))
    run = train_run(Spec(**SPEC | dict(network="brought_tied:little", epochs=1)), Store(mine))
    net = open_net(run)
    shared = [p.data_ptr() for p in net.state_dict().values()]
    assert run.done and len({*shared}) == len(shared) - 1


@pytest.mark.parametrize("line, told", [("net[5].register_buffer('odd', torch.full((2, 2), -torch.inf).triu(1))", "5.odd, which is infinite, or no number"),
                                        ("net[5].register_buffer('odd', torch.ones(1).expand(3))", "5.odd, which is expanded, many values in one place"),
                                        ("net[5].__class__ = type('Odd', (nn.Linear,), dict(get_extra_state=lambda self: dict(a=1)))", "5._extra_state, which is a dict and no tensor")])
def test_a_state_that_cannot_be_kept_is_refused_before_training(mine, line, told):
    "A mask of minus infinity was called diverged after the first epoch, and an expanded buffer trained to its end and could never be opened."
    (mine / "brought_nets.py").write_text(NETS.replace("    return staged", f"    {line}\n    return staged"))
    with pytest.raises(ValueError, match=f"the state of brought_nets:little has {told}, so no run of it can be kept"): network_of(Spec(**SPEC), (1, 8, 8), 10)


def test_a_mask_that_is_not_kept_is_no_fault(mine):
    (mine / "brought_nets.py").write_text(NETS.replace("    return staged", "    net[5].register_buffer('odd', torch.full((2, 2), -torch.inf), persistent=False)\n    return staged"))
    assert train_run(Spec(**SPEC | dict(epochs=1)), Store(mine)).done
