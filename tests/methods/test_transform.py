"""A method as a batch transform: the bits of its own loss, torchvision's laws, and workers that do not draw alike."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.v2 import CutMix as TheirCutMix, MixUp as TheirMixUp

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.methods.at import AT
from mixrepro.methods.catalogue import METHODS
from mixrepro.methods.cutmix import CutMix
from mixrepro.methods.cutout import Cutout
from mixrepro.methods.erm import ERM
from mixrepro.methods.genlabel import GenLabels, LatentGenLabels, NoIntrusion
from mixrepro.methods.labels import LogisticLabels
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.mixup_r import MixupR
from mixrepro.methods.noise import FeatureNoise
from mixrepro.methods.puzzlemix import PuzzleMix
from mixrepro.methods.transform import BatchTransform
from mixrepro.methods.varmixup import VarMixup
from mixrepro.methods.views import AugMixViews, NoiseViews
from mixrepro.networks.zoo import build

TRAIN = load("photo-digits-16", "train").subset(60)
X, Y = TRAIN.floats(slice(0, 12)), TRAIN.y[:12]
NET = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded()).eval()
VAE = build("vae-small", TRAIN.shape, None, seeded())
WAYS = {"erm": ERM(), "mixup": Mixup(alpha=.2), "each": Mixup(per="example"), "cutmix": CutMix(prob=1.), "logistic": Mixup(labels=LogisticLabels()),
        "noise": Mixup(noise=FeatureNoise()), "varmixup": VarMixup().prepare(TRAIN, seeded(), vae=VAE),
        "augmented": VarMixup(per="example").prepare(TRAIN, seeded(), vae=VAE, augment=lambda x, rng: x.flip(3)),
        "mixup-r": MixupR().prepare(TRAIN, seeded(), vae=VAE), "no-intrusion": NoIntrusion().prepare(TRAIN, seeded()),
        "genlabel": Mixup(labels=GenLabels(density="gm-spherical")).prepare(TRAIN, seeded()),
        "latent": Mixup(labels=LatentGenLabels(density="gm-spherical")).prepare(TRAIN, seeded(), vanilla=copy.deepcopy(NET)),
        "one view": ERM(views=AugMixViews(gamma=0.)), "views": ERM(views=AugMixViews()), "mixed views": CutMix(views=NoiseViews(count=1)),
        "varmixup's views": VarMixup(views=NoiseViews()).prepare(TRAIN, seeded(), vae=VAE)}
LOOKING = {"puzzlemix": PuzzleMix(blocks=(4, 8)), "at": AT(steps=2, mode="eval"), "cutout": Cutout()}


@pytest.mark.parametrize("name", [*WAYS, *LOOKING])
def test_the_bits_are_those_of_the_methods_loss(name):
    way, ours, own = (WAYS | LOOKING)[name], seeded(3), seeded(3)
    for _ in range(3):  # a transform keeps nothing of the batch before
        x, y = BatchTransform(way, TRAIN.k, ours, net=NET if name in LOOKING else None)(X, Y)
        logits = NET(x.flatten(0, -4))
        if x.dim() == 5: logits = logits.unflatten(0, x.shape[:2])
        loss = F.cross_entropy(logits, y) if x.dim() == 4 else F.cross_entropy(logits[0], y) + way.views.apart(logits)
        assert torch.equal(loss, way.loss(NET, X, Y, own)) and torch.equal(ours.get_state(), own.get_state())
    assert y.shape == (len(X), TRAIN.k) and (name == "no-intrusion" or torch.allclose(y.sum(1), torch.ones(len(X))))


def test_places_in_the_training_set_are_passed_on():
    way, index = WAYS["varmixup"], torch.arange(12)
    x, _ = BatchTransform(way, TRAIN.k, seeded(1))(X, Y, index)
    assert torch.equal(x, BatchTransform(way, TRAIN.k, seeded(1))(torch.zeros_like(X), Y, index)[0])  # codes, not images


@given(seed=st.integers(0, 2**40), n=st.integers(1, 9), k=st.integers(2, 7), per=st.sampled_from(("batch", "example")))
@settings(max_examples=40, deadline=None)
def test_soft_labels_are_shares_of_a_batch(seed, n, k, per):
    rng = seeded(seed)
    y = torch.randint(k, (n,), generator=rng)
    for way in (Mixup(per=per), CutMix(per=per)):
        x, soft = BatchTransform(way, k, rng)(torch.rand(n, 1, 8, 8, generator=rng), y)
        assert soft.shape == (n, k) and soft.dtype == x.dtype and (soft >= 0).all()
        assert torch.allclose(soft.sum(1), torch.ones(n)) and torch.allclose(soft.sum(0).sum(), torch.tensor(float(n)))


def shares(transform, n=300):
    "Lambda, where the partner of the first of two is the second."
    pair, y, found = torch.zeros(2, 1, 16, 16), torch.tensor([0, 1]), []
    while len(found) < n:
        soft = transform(pair, y)[1]
        if soft[0, 1] > 0: found.append(soft[0, 0].item())
    return found


@pytest.mark.parametrize("ours, theirs", [(Mixup(alpha=.4), TheirMixUp(alpha=.4, num_classes=2)), (CutMix(prob=1.), TheirCutMix(num_classes=2))],
                         ids=["mixup", "cutmix"])
def test_shares_have_the_law_of_torchvisions(ours, theirs):
    torch.manual_seed(0)
    mine, other = shares(BatchTransform(ours, 2, seeded())), shares(theirs)
    assert stats.ks_2samp(mine, other).pvalue > .001
    assert stats.ks_2samp(mine, shares(BatchTransform(Mixup(alpha=3.), 2, seeded(1)))).pvalue < .001  # the test can fail


def epochs(rng, n=1, **how):
    mix = BatchTransform(Mixup(), 10, seeded())
    loader = DataLoader(TensorDataset(torch.eye(10).view(10, 1, 1, 10), torch.arange(10)), 2, collate_fn=mix.collate, generator=rng, **how)
    return [[round(y[0].max().item(), 6) for _, y in loader] for _ in range(n)]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_a_loader_do_not_repeat(workers):
    "Neither across workers nor across epochs, and the loader's generator says all of it."
    for how in ({}, dict(persistent_workers=True))[:1 + workers]:
        found = epochs(seeded(3), 2, num_workers=workers, **how)
        drawn = [v for epoch in found for v in epoch if v < 1]
        assert len(set(drawn)) == len(drawn) > 3 and found == epochs(seeded(3), 2, num_workers=workers, **how)


def test_without_a_stream_of_their_own_workers_would_draw_alike(monkeypatch):
    from mixrepro.methods import transform
    monkeypatch.setattr(transform, "get_worker_info", lambda: None)
    found = [v for v in epochs(seeded(3), 1, num_workers=2)[0]]
    assert found[0] == found[1] and found[2] == found[3]


def test_a_transform_can_be_sent_to_a_worker_that_is_started_anew():
    mix = BatchTransform(WAYS["varmixup"], TRAIN.k, seeded(2))
    sent = pickle.loads(pickle.dumps(mix))
    assert all(map(torch.equal, sent(X, Y), mix(X, Y)))


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_workers_that_are_started_anew_draw_as_forked_ones(start):
    "Each a stream of its own, the same with the same seed, whatever starts the process."
    found = epochs(seeded(3), num_workers=2, multiprocessing_context=start)
    drawn = [v for v in found[0] if v < 1]
    assert len(set(drawn)) == len(drawn) > 2 and found == epochs(seeded(3), num_workers=2)


class Both:
    "Two transforms of one generator, as a collate function."
    def __init__(self): self.each = [BatchTransform(Mixup(), 10, rng) for rng in (seeded(),) for _ in range(2)]
    def __call__(self, examples): return [mix.collate(examples)[1] for mix in self.each]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_two_transforms_of_one_generator_do_not_draw_alike_in_a_worker(start):
    data = TensorDataset(torch.eye(10).view(10, 1, 1, 10), torch.arange(10))
    loader = DataLoader(data, 5, collate_fn=Both(), num_workers=1, multiprocessing_context=start)
    assert not any(torch.equal(a, b) for a, b in loader)


@pytest.mark.parametrize("name", sorted(METHODS))
def test_every_method_is_a_transform_or_says_in_a_sentence_why_not(name):
    rest = {"varmixup", "mixup-r", "erm-r", "adv-varmixup"}, {"no-intrusion"}, {"genmix", "genmix-gan", "finetune", "factor-mixup"}
    way = METHODS[name]()
    if name in rest[0]: way = way.prepare(TRAIN, seeded(), vae=VAE)
    if name in rest[1]: way = way.prepare(TRAIN, seeded())
    try: x, y = BatchTransform(way, TRAIN.k, seeded(), net=NET)(X, Y)
    except (TypeError, ValueError) as e:
        assert "no transform of a batch: call its loss" in str(e) or name in rest[2] and "prepare" in str(e), e
    else: assert x.shape == X.shape and y.shape == (len(X), TRAIN.k) and name not in ("manifold-mixup", "trades", "dropout")


def test_a_hole_has_the_colour_that_the_network_subtracts():
    "Without the network it is black."
    black = BatchTransform(Cutout(), TRAIN.k, seeded())(X.clamp(min=.01), Y)[0]
    assert (black == 0).flatten(1).any(1).all()


def test_a_risk_of_ones_own_is_not_left_out():
    @dataclass(frozen=True, kw_only=True)
    class Dearer(Mixup):
        def risk(self, *args): return 1 + super().risk(*args)
    with pytest.raises(TypeError, match="Dearer has a risk of its own, so it is no transform of a batch: call its loss"): BatchTransform(Dearer(), TRAIN.k, seeded())


def test_a_third_part_is_no_place_in_the_training_set():
    "VarMixup would look up its code there, and train on other images than the loader's."
    mix = BatchTransform(WAYS["varmixup"], TRAIN.k, seeded(2))
    for odd, got in (((X[0], 3, 5), "tuple of 3"), ({"image": X[0], "label": 3}, "dict"), (X[0], "Tensor"), ([X[0]], "list of 1")):
        with pytest.raises(TypeError, match=f"an image and its label from each example, got a {got}: pick the two out"): mix.collate([odd] * 2)
    assert all(map(torch.equal, mix.collate([(X[i], Y[i].item()) for i in range(4)]), BatchTransform(WAYS["varmixup"], TRAIN.k, seeded(2))(X[:4], Y[:4])))


@pytest.mark.parametrize("workers", [0, 2])
def test_turns_are_not_taken_anew_in_each_worker(workers):
    "With one mixture in ten batches and few batches a worker there was none at all."
    mix = BatchTransform(VarMixup(share=.25).prepare(TRAIN, seeded(), vae=VAE), TRAIN.k, seeded())
    loader = DataLoader(TensorDataset(X, Y), 2, collate_fn=mix.collate, num_workers=workers)
    if not workers: assert [(soft.amax(1) < 1).any().item() for _, soft in [*loader, *loader]] == 3 * [*3 * [False], True]
    else:
        with pytest.raises(ValueError, match="VarMixup remembers what it did in the batches before, .* call the transform in the loop"): next(iter(loader))


@pytest.mark.parametrize("workers", [0, 1])
def test_no_worker_looks_at_the_network_in_training(workers):
    "Its copy is the network as the epoch began, so that masks and attacks would follow another one."
    mix = BatchTransform(PuzzleMix(blocks=(4, 8)), TRAIN.k, seeded(), net=NET)
    loader = DataLoader(TensorDataset(X, Y), 6, collate_fn=mix.collate, num_workers=workers)
    if not workers: assert next(iter(loader))[1].shape == (6, TRAIN.k)
    else:
        with pytest.raises(ValueError, match="looks at the network in training, and a loader's worker has a copy"): next(iter(loader))
