"""Numbers that are none, and labels that name no class, are refused at every door by one sentence; distances are right far from the origin."""

import copy
import io
import math

import pytest
import torch
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.augment import AUGMENTS
from mixrepro.data.datasets import load
from mixrepro.guards import NotFinite, check_labels
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.networks.zoo import NETWORKS, build
from mixrepro.metrics import (accuracy as A, calibration as C, concentration as H, deformed as D, distances as K, features as E,
                              inception_score as S, interpolation as I, linearity as L, mixed_loss as M, neighbours as N, robustness as R)

TEST = load("digits", "test").subset(20)
Y = TEST.y


class Says(torch.nn.Module):
    "A network in one stage whose logits, features and states have one entry of every row replaced."
    shape, stages = (1, 32, 32), (None,)

    def __init__(self, bad=None):
        super().__init__()
        self.bad, self.weight = bad, torch.nn.Parameter(torch.zeros(1))

    def features(self, x, at=None, through=None):
        h = F.avg_pool2d(x, 8).flatten(1)[:, :10]
        if through is not None: h = through(h) if at else F.avg_pool2d(through(x), 8).flatten(1)[:, :10]
        return h

    def forward(self, x, at=None, through=None):
        h = self.features(x, at, through) * 3 + self.weight
        if self.bad is None: return h
        return torch.where(torch.arange(10) == 4, self.bad, h)


class Features(Says):
    def features(self, x, at=None, through=None):
        h = super().features(x, at, through)
        return torch.where(torch.arange(10) == 4, self.bad, h)


def logits(bad=0.): return Says(bad)(TEST.floats()).detach()


OF_LOGITS = {"accuracy": lambda z: A.accuracy(z, Y), "nll": lambda z: A.nll(z, Y), "ece": lambda z: C.ece(z, Y),
             "confidence": lambda z: C.confidence(z, Y), "reliability": lambda z: C.reliability(z, Y), "unsure": H.unsure}
OF_NETWORKS = {"deformed": lambda net: D.deformed([net], TEST, rows=("rotation 20",)), "right": lambda net: D.right(net, TEST.floats(), Y),
               "interpolation": lambda net: I.interpolation([net], TEST, stages=(0,), lams=(0., .5, 1.)),
               "linearity": lambda net: L.linearity(net, TEST, steps=1), "robustness": lambda net: R.robustness(net, TEST, kinds=("fog",))}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", [*OF_LOGITS, *OF_NETWORKS])
def test_logits_that_say_nothing_are_refused_everywhere(name, bad):
    with pytest.raises(NotFinite, match="the network has diverged"):
        OF_LOGITS[name](logits(bad)) if name in OF_LOGITS else OF_NETWORKS[name](Says(bad))


@pytest.mark.parametrize("name", OF_LOGITS)
def test_a_class_that_is_ruled_out_is_an_answer_but_nothing_else(name):
    OF_LOGITS[name](logits(-math.inf))
    with pytest.raises(NotFinite, match="20 of 20 rows of logits hold NaN or .inf, or -inf only"): OF_LOGITS[name](logits() - math.inf)


LABELS = {"-100": Y - 100, "-1": Y - 1, "(B, 1)": Y[:, None], "float": Y.float(), "out of range": Y + 1, "int32": Y.int()}
OF_LABELS = {"accuracy": lambda y: A.accuracy(logits(), y), "nll": lambda y: A.nll(logits(), y), "ece": lambda y: C.ece(logits(), y),
             "right": lambda y: D.right(Says(), TEST.floats(), y), "linearity": lambda y: L.linearity_errors(Says(), TEST.floats(), y, seeded(), steps=1)}


@pytest.mark.parametrize("bad", LABELS)
@pytest.mark.parametrize("name", OF_LABELS)
def test_labels_that_name_no_class_are_refused_everywhere(name, bad):
    with pytest.raises((ValueError, TypeError), match=r"^(labels must be (int64 )?class numbers 0..9|expected logits .N, K. and labels)"):
        OF_LABELS[name](LABELS[bad])


@pytest.mark.parametrize("measure", [H.scatter, H.scatter_ratio, H.gap, H.class_spectra, H.dimension])
def test_states_and_their_labels(measure):
    h = torch.randn(20, 3, generator=seeded())
    for bad in (math.nan, math.inf, -math.inf):
        with pytest.raises(NotFinite, match="1 of 20 rows of hidden states hold NaN or infinity"):
            measure(torch.where(torch.arange(20)[:, None] == 7, bad, h), Y)
    for bad in ("-100", "-1", "(B, 1)", "float"):
        with pytest.raises((ValueError, TypeError), match="labels must be (int64 )?class numbers"): measure(h, LABELS[bad])


def test_a_plane_of_states_that_are_none():
    with pytest.raises(NotFinite, match="1 of 2 rows of hidden states"): H.hidden_plane(torch.tensor([[0., 1.], [math.nan, 0.]]))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_features_that_are_none_in_either_set(bad, which):
    sets = [torch.randn(30, 4, generator=seeded(i)) for i in (0, 1)]
    sets[which][29, 2] = bad
    for measure in (lambda a, b: K.mmd2(a, b), lambda a, b: K.kid(a, b, seeded(), 1, 2), lambda a, b: N.nearest(a, b, 1),
                    lambda a, b: K.frechet(*(K.Moments(4).update(f) for f in (a, b)))):
        with pytest.raises(NotFinite, match="1 of 30 rows of .*features hold NaN or infinity"): measure(*sets)


def test_features_of_a_network_that_has_diverged():
    net = Features(math.nan)
    with pytest.raises(NotFinite, match="features hold NaN"): N.neighbours([net], TEST, TEST, (1,))
    with pytest.raises(NotFinite, match="features hold NaN"): E.extract(E.Extractor("bad", 10, net.features), TEST.x)


def test_the_others():
    nan = torch.full((20, 10), math.nan)
    with pytest.raises(NotFinite, match="rows of class probabilities"): S.inception_score(nan, 1)
    with pytest.raises(NotFinite, match="rows of labels"): M.mixed_loss(lambda h: h, torch.eye(3), torch.full((3, 3), math.nan))
    with pytest.raises(NotFinite, match="1 of 1 rows of pictures"): I.to_nearest(torch.full((1, 1, 32, 32), math.nan), TEST)
    cells = {kind: [.5] * 5 for kind in R.CORRUPTIONS}
    with pytest.raises(NotFinite, match="1 of 15 rows of cells"): R.corruption_mean(cells | {"fog": [.5, math.nan, .5, .5, .5]})
    with pytest.raises(NotFinite, match="bins' accuracy"): C.pooled([dict(count=[1, 1], confidence=[.5, .5], accuracy=[.5, math.nan])])
    with pytest.raises(ValueError, match="labels must be class numbers 0..2, got 1..3"): N.vote(torch.tensor([[1, 3]]), 3)


def test_values_of_labels_are_left_alone_where_it_is_asked_for():
    check_labels(Y - 1, look=False)
    with pytest.raises(ValueError, match="got -1..8: leave out"): check_labels(Y - 1, 20, 10)


@pytest.mark.parametrize("far", [0., 100., 1000., 3e4])
@pytest.mark.parametrize("apart", [0., 1000.])
def test_neighbours_far_from_the_origin_and_in_clusters_far_apart(far, apart):
    m, q = (torch.randn(n, 64, generator=seeded(n)) + far + apart * (torch.arange(n) % 2)[:, None] for n in (300, 40))
    exact = (m.double()[None] - q.double()[:, None]).square().sum(2).topk(5, largest=False).indices
    assert torch.equal(N.nearest(m, q, 5), exact)


@pytest.mark.parametrize("apart, out", [(1e6, 0.), (1e8, 0.), (0., 1e9), (1e5, 1e9)])
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_neighbours_where_rounding_would_decide(apart, out, batch):
    "Clusters 100,000,000 spreads apart, and one row far out: a product of matrices is off by more than the distances."
    m, q = (torch.randn(n, 8, generator=seeded(n), dtype=torch.float64) + apart * (torch.arange(n) % 2)[:, None] for n in (60, 15))
    m = torch.cat([m, torch.full((1, 8), out or 1., dtype=torch.float64)])
    exact = (m[None] - q[:, None]).square().sum(2).argsort(dim=1, stable=True)
    for k in (1, 5, 61): assert torch.equal(N.nearest(m, q, k, batch), exact[:, :k])


def test_neighbours_as_near_come_in_their_order():
    m = torch.tensor([[0., 0], [3, 4], [0, 0], [-3, 4], [5, 0]])
    assert N.nearest(m, torch.zeros(1, 2), 5).tolist() == [[0, 2, 1, 3, 4]] and N.nearest(m + 1e6, torch.full((1, 2), 1e6), 3).tolist() == [[0, 2, 1]]
    assert N.nearest(m[:1], torch.ones(2, 2), 1).tolist() == [[0], [0]] and N.nearest(m, torch.ones(0, 2), 2).shape == (0, 2)


def test_a_picture_of_the_set_is_at_no_distance_from_it():
    assert I.to_nearest(TEST.floats(), TEST).max() < 1e-6


@pytest.mark.parametrize("bins", [1, 15, 1000])
def test_sums_by_bin_are_those_of_a_table(bins):
    z, y = torch.randn(500, 10, generator=seeded()), torch.randint(10, (500,), generator=seeded(1))
    sure, right = C.confidence(z, y)
    member = F.one_hot(torch.bucketize(sure, torch.linspace(0, 1, bins + 1, dtype=torch.float64)[1:-1]), bins).double()
    count = member.sum(0)
    found = C.reliability(z, y, bins)
    assert torch.equal(found["count"], count.long())
    for name, values in (("accuracy", right), ("confidence", sure)):
        assert torch.allclose(found[name], values @ member / count.clamp(min=1), atol=1e-12, rtol=0)


def test_a_thousand_bins_take_no_table():
    "The largest tensor has a few numbers for each prediction, whatever the number of bins."
    from mixrepro.metrics.cost import peak_bytes
    z, y = torch.randn(20_000, 4, generator=seeded()), torch.randint(4, (20_000,), generator=seeded(1))
    assert peak_bytes(lambda: C.ece(z, y, 1000)) < 1.1 * peak_bytes(lambda: C.ece(z, y, 15)) < 20 * 20_000 * 8


def test_the_kernel_distance_of_many_rows_takes_no_table_of_all_pairs():
    from mixrepro.metrics.cost import peak_bytes
    x, y = (torch.randn(6000, 2, generator=seeded(i)) for i in (0, 1))
    assert peak_bytes(lambda: K.kernel_sums(x.double(), y.double(), 100)) < 6000 * 6000
    assert K.kernel_sums(x.double(), x.double(), 700)[1] == pytest.approx(K.kernel_sums(x.double(), x.double(), 6000)[1].item(), rel=1e-12)


# ---- the door of every loss ------------------------------------------------------------------------------------------

IMAGES, LABELLED = load("digits", "train").subset(30), load("digits", "train").subset(20)
WITH = {"classifier": "tiny-cnn", "autoencoder": "vae-small", "gan": "sngan-small", "decoder": "decoder-small", "class-gan": "point-gan"}


def network(name: str, shape=(1, 32, 32), **more):
    args = dict(of="tiny-cnn", stage=1) if name == "decoder-small" else {}
    return build(name, shape, 10, seeded(), **args | more)


def ready(name: str):
    "A method, prepared on a few images with networks that know nothing, and its network."
    kind = METHODS[name]
    nets = {"vae": network("vae-small", (1, 64, 64) if name == "factor-mixup" else (1, 32, 32)).eval()} if kind.on_vae else {}
    if kind.trains == "decoder": nets = {"classifier": network("tiny-cnn").eval()}
    if kind.unlabelled: nets = {"labelled": LABELLED}
    if name == "fine-tune": nets = {"source": network("tiny-cnn")}
    if name == "genmix-gan": nets = {"gan": network("point-gan")}
    train = load("factors-a", "train").subset(torch.arange(6)) if name == "factor-mixup" else IMAGES
    quick = {"genmix": dict(density="gm-spherical", rounds=1), "genmix-gan": dict(descent=4, restarts=1, rounds=1)}  # of 1024 numbers and ten classes
    made = method(name, **dict(stage=1) if kind.trains == "decoder" else quick.get(name, {})).prepare(train, seeded(), augment=AUGMENTS["none"], **nets)
    sure = dict(posterior="gaussian") if name == "kl-vae" else {}
    net = network(WITH[kind.trains], train.shape, **sure).train()
    if name == "adamixup": made.begin(net)  # it has a part that sees the network's features
    return made, net, train


def loss_of(name, x=None, y=None, net=None):
    made, own, train = ready(name)
    index = torch.arange(4)
    x, y = train.floats(index) if x is None else x(train.floats(index)), train.y[index] if y is None else y(train.y[index])
    return made.loss(net or own, x, y, seeded(), torch.arange(len(x)))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:the VAE's codes have collapsed")
def test_images_that_are_none_of_the_networks_are_one_sentence(name):
    assert loss_of(name).isfinite()
    with pytest.raises(TypeError, match="^images must be float in .0, 1., got torch.uint8: divide uint8 images by 255$"): loss_of(name, lambda x: (255 * x).byte())
    with pytest.raises(TypeError, match="^images are float64, but the network's weights torch.float32: convert with x.float()"): loss_of(name, lambda x: x.double())


WRONG = {"-100": (lambda y: torch.full_like(y, -100), "got -100..-100"), "-1": (lambda y: y - y.max() - 1, "got -"), "(B, 1)": (lambda y: y[:, None], r"got shape \(4, 1\)"),
         "float": (lambda y: y.float(), "got torch.float32"), "out of range": (lambda y: y + 10, "labels must be class numbers 0..9, got 1"), "too few": (lambda y: y[:2], r"got shape \(2,\)")}


@pytest.mark.parametrize("bad", WRONG)
@pytest.mark.parametrize("name", [m for m, kind in METHODS.items() if kind.trains == "classifier" and not kind.unlabelled])
@pytest.mark.filterwarnings("ignore:the VAE's codes have collapsed")
def test_labels_that_name_no_class_are_one_sentence_in_training(name, bad):
    change, sentence = WRONG[bad]
    with pytest.raises((ValueError, TypeError), match=f"^labels must be (int64 )?class numbers.*{sentence if not sentence.startswith('labels') else ''}"): loss_of(name, y=change)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:the VAE's codes have collapsed")
def test_a_network_of_another_kind_is_one_sentence(name):
    shape = (1, 64, 64) if name == "factor-mixup" else (1, 32, 32)
    for kind, other in WITH.items():
        if kind == METHODS[name].trains or (kind == "decoder" and METHODS[name].trains != "autoencoder"): continue
        with pytest.raises((ValueError, TypeError)) as e: loss_of(name, net=network(other, shape).train())
        said = str(e.value)
        assert any(s in said for s in ("trains a network of the kind", "of a classifier, got", "gives one alone", "needs a network", "a GAN needs", "a conditional GAN needs", "images must have shape")), said


def test_a_network_without_stages_and_a_batch_of_one():
    plain, x, y = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1024, 10), torch.nn.BatchNorm1d(10)), IMAGES.floats(slice(0, 1)), IMAGES.y[:1]
    with pytest.raises(TypeError, match="needs a network in stages, .* got Sequential"): method("manifold-mixup").loss(plain, x, y, seeded())
    for name in ("erm", "mixup", "at"):
        with pytest.raises(ValueError, match="batch norm has no variance over 1 image: train on batches of 2"): method(name).loss(plain.train(), x, y, seeded())


def test_a_networks_own_door():
    for name in ("tiny-cnn", "vae-small", "sngan-small"):
        net, x = network(name), IMAGES.floats(slice(0, 2))
        with pytest.raises(TypeError, match="divide uint8 images by 255"): net(IMAGES.x[:2])
        with pytest.raises(TypeError, match="images are float64, but the network's weights torch.float32"): net(x.double())
        assert net.double()(x.double()).dtype == torch.float64


# ---- pickles ---------------------------------------------------------------------------------------------------------

LARGE = ("resnet50", "resnet34", "preactresnet34", "preactresnet50", "preactresnet152", "wrn28-4", "wrn28-10")


def again(thing):
    "A thing saved whole and read back."
    torch.save(thing, buffer := io.BytesIO())
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize("name", [n for n in NETWORKS if n not in LARGE])
def test_every_network_can_be_saved_whole(name):
    net = build(name, (3, 32, 32), 10, seeded())
    if hasattr(net, "draw_from"): net.draw_from(seeded())
    next(net.children()).eval()
    next(net.parameters()).requires_grad_(False)
    state, other = torch.get_rng_state(), again(net)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))
    assert [m.training for m in net.modules()] == [m.training for m in other.modules()]
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in other.parameters()]
    twin = copy.deepcopy(net)
    assert all(a is not b and torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.filterwarnings("ignore:the VAE's codes have collapsed")
def test_every_prepared_method_can_be_saved_whole(name):
    made, net, train = ready(name)
    index = torch.arange(4)
    args = train.floats(index), train.y[index]
    twin, other = again(made), again(net)
    assert twin == made and torch.equal(made.loss(net, *args, seeded(), index), twin.loss(other, *args, seeded(), index))


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_can_be_pickled(name): assert again(AUGMENTS[name]) is not None


def test_a_gan_that_was_saved_goes_on_counting():
    net = network("sngan-small").train()
    for _ in range(3): method("gan").loss(net, IMAGES.floats(slice(0, 4)), IMAGES.y[:4], seeded())
    other = again(net)
    assert other.done == net.done == 3 and other.tick() == 3
    assert torch.equal(net.sample(2, seeded()), other.sample(2, seeded()))
