"A method that is not in the package: named in a run, trained, seen in a table, and noticed when its code changes."
import importlib
import json
import sys
from dataclasses import dataclass, replace

import pytest
import torch

from helpers import forget
from mixrepro import fingerprint, outside
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.noise import FeatureNoise
from mixrepro.training import made
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec, canonical, from_json, name_of
from mixrepro.training.standing import other
from mixrepro.training.store import Store
from mixrepro.workflow.study import Study

# Twenty lines of a user: mixup whose target is the label of the larger share.
HARD = '''from dataclasses import dataclass

import torch
from torch.nn import functional as F

from hard_share import larger
from mixrepro.core import choice
from mixrepro.methods.base import Method
from mixrepro.methods.vicinal import draw_mix

@dataclass(frozen=True)
class HardMixup(Method):
    "Mixed images; the label of the example that has the larger share."
    alpha: float = choice(1., "default", "as in mixup", allowed="(0, inf)")

    def loss(self, net, x, y, rng, index=None):
        mix = draw_mix(len(x), self.alpha, rng)
        return F.cross_entropy(net(mix(x)), larger(mix, y))
'''
SHARE = "import torch\n\ndef larger(mix, y): return torch.where(mix.lam >= .5, y, y[mix.partner])\n"
OWN = "hard_mixup:HardMixup"
SPEC = dict(dataset="digits-few", method=OWN, network="tiny-cnn", epochs=1, n_train=64)


@pytest.fixture
def mine(tmp_path, monkeypatch):
    "A folder on Python's path with the user's two modules."
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # files change within the second that a stamp has
    (tmp_path / "hard_mixup.py").write_text(HARD), (tmp_path / "hard_share.py").write_text(SHARE)
    forget("hard_")
    yield tmp_path
    forget("hard_")


def test_it_is_twenty_lines(): assert len(HARD.splitlines()) + len(SHARE.splitlines()) - 2 <= 20


def test_it_is_trained_and_stands_in_a_table_beside_erm(mine):
    study = Study("vm-table1", "smoke", 1, Store(mine / "runs"), labels={"hard": "Hard Mixup"})
    study.cells = [c for c in study.cells if c.row == "erm"]
    study.add("hard", OWN, alpha=.5)
    study.cells = [c._replace(spec=replace(c.spec, epochs=1)) for c in study.cells]
    table = study.table(study.measure("clean", lambda found: {"accuracy": found["accuracy"]}),
                        {"cifar10": ("cifar10", "accuracy")}, scale=100)
    row = table.data[table.data.method == "hard"].iloc[0]
    assert row["value"] == "not in the paper" and "| Hard Mixup |" in str(table) and "| ERM |" in str(table)
    run = study.runs[1]
    assert run.done and run.folder.name.startswith("hard_mixup.HardMixup-tiny-cnn-s0-")
    said = json.loads((run.folder / "spec.json").read_text())
    assert said["provenance"]["method"]["alpha"] == dict(value=.5, source="set", where="asked for by the caller")
    assert from_json(said["spec"]) == run.spec and [r.spec for r in Store(mine / "runs").runs()].count(run.spec) == 1


def test_what_it_computes_is_mixup_with_another_target(mine):
    x, y = torch.rand(8, 1, 4, 4), torch.arange(8) % 3
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    def gen(): return torch.Generator().manual_seed(2)
    mix = Mixup(alpha=.5).draw(net, x, y, gen())
    target = y if mix.lam >= .5 else y[mix.partner]
    want = torch.nn.functional.cross_entropy(net(mix(x)), target)
    assert torch.equal(method(OWN, alpha=.5).loss(net, x, y, gen()), want)


@pytest.mark.parametrize("file, old, new, told", [
    ("hard_mixup.py", "mix(x)", "mix(x).sqrt()", "hard_mixup changed"),
    ("hard_share.py", ">= .5", "> .5", "hard_share changed"),
    ("hard_mixup.py", "has the larger", "has the greater", ""),
    ("hard_share.py", "import torch\n", "import torch  # nothing else\n", "")])
def test_a_change_of_its_code_is_noticed_by_the_next_process(mine, monkeypatch, file, old, new, told):
    spec, store = Spec(**SPEC), Store(mine / "runs")
    run, name, before = train_run(spec, store), name_of(spec), made.code_of(spec)
    assert {"hard_mixup:*", "hard_share:*", "methods.vicinal:draw_mix", "methods.base:Method"} <= before.parts.keys()
    assert other(run) == ""
    text = (mine / file).read_text()
    assert old in text
    (mine / file).write_text(text.replace(old, new))
    forget("hard_")
    again = Spec(**SPEC)
    assert name_of(again) == name and other(store.run(again)) == told


def test_the_package_s_own_runs_have_the_fingerprint_that_they_had(mine):
    erm = Spec("digits-few", "erm", "tiny-cnn")
    before = made.code_of(erm)
    Spec(**SPEC), made.reached_by.cache_clear()
    assert made.code_of(erm) == before and not [p for p in before.parts if "hard" in p]


def test_its_fields_are_checked_as_others_are(mine):
    assert Spec(**SPEC, method_args=dict(alpha="2")).method_args == dict(alpha=2.)
    assert canonical(Spec(**SPEC))["method_args"] == dict(alpha=1.)
    for args, sentence in ((dict(alpha=0), "alpha must be above 0, got 0"), (dict(alpha=float("nan")), "alpha must be a number"),
                           (dict(beta=1), "unknown hyper-parameter of 'hard_mixup:HardMixup' 'beta'")):
        with pytest.raises(ValueError, match=sentence): Spec(**SPEC, method_args=args)
    with pytest.raises(ValueError, match="trains networks of the kind 'classifier'"): Spec(**SPEC | dict(network="vae"))


@pytest.mark.parametrize("name, sentence", [
    ("hard_mixpu:HardMixup", "there is no module 'hard_mixpu' for the method"),
    ("hard_mixup:HardMix", "unknown class of hard_mixup 'HardMix': did you mean 'HardMixup'"),
    ("hard_mixup:draw_mix", "hard_mixup:draw_mix is no method"), ("hard_mixup:torch", "hard_mixup:torch is no method"),
    ("builtins:int", "builtins:int is no method"), ("hard_mixup:", "names no method: one of your own"), (":HardMixup", "names no method"),
    ("mixrepro.methods.base:Method", "defines no loss"), ("../hard_mixup:HardMixup", "names no method")])
def test_what_is_no_method_is_refused_in_a_sentence(mine, name, sentence):
    with pytest.raises(ValueError, match=sentence) as e: Spec(**SPEC | dict(method=name))
    assert "\n" not in str(e.value)


def test_a_module_that_lacks_another_one_names_that_one(mine):
    (mine / "hard_share.py").write_text("import no_such_package")
    with pytest.raises(ModuleNotFoundError, match="no_such_package"): Spec(**SPEC)


def test_a_module_that_was_edited_after_its_import_is_refused(mine):
    importlib.import_module("hard_mixup")
    (mine / "hard_mixup.py").write_text(HARD.replace("self.alpha, rng", "2 * self.alpha, rng"))
    with pytest.raises(ValueError, match="hard_mixup.py has changed since it was imported: start Python again"):
        Spec(**SPEC)
    forget("hard_")
    Spec(**SPEC)
    (mine / "hard_mixup.py").write_text(HARD)
    importlib.reload(sys.modules["hard_mixup"])
    with pytest.raises(ValueError, match="hard_mixup.py has changed since it was read"): Spec(**SPEC)


def test_code_that_has_run_warm_is_still_that_of_its_file(mine):
    kind = method(OWN)
    x, y, net = torch.rand(2, 1, 2, 2), torch.tensor([0, 1]), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2))
    for k in range(40): kind.loss(net, x, y, torch.Generator().manual_seed(k))
    assert fingerprint.is_as_read(type(kind), HARD)


def test_an_installed_distribution_brings_one_by_its_name(mine):
    info = mine / "hard-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hard\nVersion: 1\n")
    (info / "entry_points.txt").write_text(f"[mixrepro.methods]\nhard-mixup = {OWN}\nerm = {OWN}\n")
    outside.entered.cache_clear(), importlib.invalidate_caches()
    spec = Spec(**SPEC | dict(method="hard-mixup"))
    assert name_of(spec).startswith("hard-mixup-tiny-cnn-s0-") and "hard_mixup:*" in made.code_of(spec).parts
    with pytest.raises(ValueError, match="unknown method 'hard-mixpu': did you mean 'hard-mixup'"): method("hard-mixpu")
    with pytest.raises(ValueError, match="the name 'erm' is taken by mixrepro: give your own another one .hard_mixup:Hard"): method("erm")
    assert "hard-mixup" not in [*METHODS]


def test_a_default_that_is_not_declared_is_refused():
    "Its objects would have the parent's, and train with another alpha than the class says."
    class Bare(Mixup): alpha: float = .3
    @dataclass(frozen=True, kw_only=True)
    class Untyped(Mixup): alpha = .3
    class Louder(FeatureNoise): add = 5.
    for kind, said in ((Bare, "Bare has alpha = 0.3, but its objects would have the parent's, 1.0"), (Untyped, "Untyped has alpha = 0.3"), (Louder, "Louder has add = 5.0")):
        with pytest.raises(TypeError, match=said): kind()
    @dataclass(frozen=True, kw_only=True)
    class Declared(Mixup): alpha: float = .3
    @dataclass(frozen=True, kw_only=True, slots=True)
    class Slotted(Mixup): alpha: float = .3
    class Undecided(Mixup): "Nothing of its own."
    assert Declared().alpha == Slotted().alpha == .3 and Undecided().alpha == 1.
