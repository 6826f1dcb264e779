"Two steps of every kind of run that the profile `gpu` plans, with its real networks, on the CPU: pytest -m slow (five minutes)."

import json
import math
import warnings
from dataclasses import replace
from functools import cache

import pytest
import torch

from mixrepro.data.augment import AUGMENTS
from mixrepro.data.datasets import load
from mixrepro.data.images import ImageSet
from mixrepro.data.whitening import fit_whitening
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.training import loop
from mixrepro.training.spec import generator, name_of, to_json
from mixrepro.training.store import network_of
from mixrepro.workflow.gpu import by_value

pytestmark = pytest.mark.slow
SHAPES = {"cifar10": (10, 3, 32, 32), "cifar100": (100, 3, 32, 32), "svhn": (10, 3, 32, 32), "tiny-imagenet": (200, 3, 64, 64), "mnist": (10, 1, 28, 28), "mnist-0to4": (5, 1, 28, 28), "mnist-7-9": (2, 1, 28, 28)}
FREE = ("seed", "epochs", "lr", "milestones", "n_train", "split", "batch")  # they change no step's code


@cache
def kinds() -> dict:
    "What differs in more than a number of the schedule -> a spec of it; networks that others need among them."
    found = {}
    def add(spec):
        for s in spec.needs.values(): add(s)
        what = json.dumps({k: v for k, v in to_json(spec).items() if k not in FREE} | dict(split=bool(spec.split)), sort_keys=True)
        found.setdefault(what, spec)
    for _, cell in by_value("gpu"): add(cell.spec)
    return {f"{s.dataset}/{name_of(s)}": s for s in found.values()}


def pytest_generate_tests(metafunc):
    "The plans are made where they are wanted: they take seconds, and these tests are left out of most calls."
    if "name" in metafunc.fixturenames: metafunc.parametrize("name", ["each"] if "not slow" in metafunc.config.option.markexpr else kinds())


def some(name: str, n=16) -> ImageSet:
    "A few images: random ones for a data set that has to be fetched."
    if name not in SHAPES: return load(name, "train").subset(n)
    k, *shape = SHAPES[name]
    x = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageSet(x, torch.arange(n) % k, tuple(map(str, range(k))), name, "train")


def test_the_plans_are_there():
    "Every method and network of the profile, and few enough to be run."
    planned = [c.spec for _, c in by_value("gpu")]
    assert {(s.method, s.network) for s in planned} <= {(s.method, s.network) for s in kinds().values()} and 10 < len(kinds()) < len(planned)


def test_two_steps(name):
    spec = replace(kinds()[name], batch=8)
    train = some(spec.dataset)
    net = network_of(spec, train.shape, train.k)
    others = {k: network_of(s, some(s.dataset).shape, some(s.dataset).k).eval() for k, s in spec.needs.items()}
    if METHODS[spec.method].unlabelled: others["labelled"] = train.subset(8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # sixteen images do not vary in all directions, an untrained VAE has collapsed
        if spec.whiten: fit_whitening(net.norm, train)
        made = method(spec.method, **spec.method_args).prepare(train, generator(spec, "prepare"), augment=AUGMENTS[spec.augment], **others)
    made.begin(net)
    rngs, before = {k: generator(spec, k) for k in loop.STREAMS}, [p.detach().clone() for p in net.parameters()]
    if hasattr(net, "draw_from"): net.draw_from(rngs["network"])
    loss = loop.train_epoch(net, made, train, spec, loop.optimizer(spec, net), rngs, 0)
    assert math.isfinite(loss) and any(not torch.equal(p, q) for p, q in zip(before, net.parameters()))
    loop.check_trained(net, loss)
