"A run that starts from another run's weights: which ones, what is left of them, and that a kill changes nothing."

import warnings
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torchvision.transforms.v2 import functional as TV

from mixrepro.data.datasets import load
from mixrepro.methods.finetune import FineTune
from mixrepro.networks.staged import Normalize, Resize
from mixrepro.networks.zoo import build
from mixrepro.training import loop
from mixrepro.training.spec import Spec, name_of
from mixrepro.training.store import Store, open_net

from helpers import seeded

SOURCE = dict(dataset="digits-0to4", method="mixup", epochs=1, n_train=60, resize=0)
SPEC = Spec("digits-5to9", "fine-tune", "tiny-cnn", epochs=3, n_train=60, batch=16, augment="crop2", resize=40, lr=.01, looks=1, method_args=dict(source=SOURCE))
FROZEN = replace(SPEC, method_args=dict(source=SOURCE, frozen=True))


def weights(run) -> dict: return safetensors.torch.load_file(run.folder / "weights.safetensors")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store: return Store(tmp_path_factory.mktemp("runs"))


@pytest.mark.parametrize("spec", [SPEC, FROZEN], ids=["all", "head"])
def test_a_run_that_is_killed_ends_with_the_same_weights(spec, store, tmp_path, monkeypatch):
    whole, save, other = loop.train_run(spec, store, "cpu"), loop.save_checkpoint, Store(tmp_path)
    loop.train_run(spec.needs["source"], other, "cpu")
    def dies(run, state):
        save(run, state)
        if len(state["rows"]) == 2: raise KeyboardInterrupt
    with monkeypatch.context() as m:
        m.setattr(loop, "save_checkpoint", dies)
        m.setattr(loop, "KEEPING", 1e9)  # after every epoch
        with pytest.raises(KeyboardInterrupt): loop.train_run(spec, other, "cpu")
    again = loop.train_run(spec, other, "cpu")
    assert (whole.folder / "weights.safetensors").read_bytes() == (again.folder / "weights.safetensors").read_bytes()


def test_frozen_features_are_the_sources_and_the_others_have_moved(store):
    source = weights(loop.train_run(SPEC.needs["source"], store, "cpu"))
    for spec, stays in ((SPEC, False), (FROZEN, True)):
        tuned, learned = weights(loop.train_run(spec, store, "cpu")), [k for k in source if k.endswith("weight") and k.startswith("stages")]
        assert learned and all(torch.equal(tuned[k], source[k]) == stays for k in learned)
        assert not torch.equal(tuned["head.weight"], source["head.weight"]) and not torch.equal(tuned["stages.0.0.1.running_mean"], source["stages.0.0.1.running_mean"])


def test_the_start_is_the_source_and_not_the_seeds_own_network(store):
    _, _, net, made, *_ = loop.start(SPEC, store, "cpu")
    source = open_net(store.run(SPEC.needs["source"]))
    x = torch.rand(4, 1, 32, 32, generator=seeded())
    assert torch.allclose(net.eval().features(x), source.features(TV.resize(x, [40, 40], antialias=False)), atol=1e-6)
    assert made.made.source.head.out_features == net.head.out_features == 5 and not torch.equal(made.made.source.head.weight, net.head.weight)


@pytest.mark.parametrize("begun", [False, True])
def test_a_network_that_was_not_given_its_start_is_told_of(begun):
    "In a loop of one's own without begin it was trained from scratch under the name of fine-tuning."
    digits = load("digits-few", "test")
    source, net = (build("tiny-cnn", digits.shape, k, seeded(k)) for k in (5, 10))
    made = FineTune().prepare(digits, seeded(), source=source)
    if begun: made.begin(net)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(3):
            made.loss(net.train(), digits.floats()[:8], digits.y[:8], seeded()).backward()
            with torch.no_grad():
                for p in net.parameters(): p.sub_(p.grad)
    assert ["learns from scratch" in str(w.message) and "call method.begin(net)" in str(w.message) for w in said] == ([] if begun else [True])


def test_the_sources_whole_spec_is_part_of_the_name():
    changed = [replace(SPEC, method_args=dict(source=SOURCE | more)) for more in (dict(epochs=2), dict(n_train=50), dict(lr=.1), dict(method_args=dict(alpha=.5)), dict(dataset="digits"))]
    assert len({name_of(s) for s in (SPEC, FROZEN, replace(SPEC, resize=41), *changed)}) == 8
    assert name_of(replace(SPEC, resize=0)) != name_of(SPEC) and SPEC.needs["source"].resize == 0


@pytest.mark.parametrize("size, shape", [(40, (3, 32, 32)), (224, (3, 32, 32)), (7, (1, 5, 6)), (16, (1, 32, 32))])
def test_resized_images_are_torchvisions(size, shape):
    x, norm = torch.rand(2, *shape, generator=seeded()), Normalize((.4,) * shape[0], (.2,) * shape[0])
    theirs = norm(TV.resize(x, [size, size], TV.InterpolationMode.BILINEAR, antialias=False))
    assert Resize(norm, size)(x).shape[2:] == (size, size) and torch.allclose(Resize(norm, size)(x), theirs, atol=1e-5)
