"""CutMix: the law of its boxes, the label by the exact area, torchvision's and timm's with the same box."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.nn import functional as F

from helpers import seeded
from mixrepro.methods.cutmix import CutDraw, CutMix, boxes, draw_boxes, shares
from mixrepro.methods.erm import ERM
from mixrepro.methods.labels import LogisticLabels
from mixrepro.methods.noise import FeatureNoise
from mixrepro.networks.zoo import build


def batch(n=12, shape=(1, 16, 16), seed=0, dtype=torch.float32):
    rng = seeded(seed)
    return torch.rand(n, *shape, generator=rng).to(dtype), torch.randint(5, (n,), generator=rng)


def network(shape=(1, 16, 16), dtype=torch.float32): return build("tiny-cnn", shape, 5, seeded()).to(dtype).eval()


def corners(inside):
    "The box of a mask (H, W): first row, end, first column, end; zeros where there is none."
    rows, cols = (np.flatnonzero(inside.any(d)) for d in (1, 0))
    return (rows[0], rows[-1] + 1, cols[0], cols[-1] + 1) if len(rows) else (0, 0, 0, 0)


@given(h=st.integers(1, 24), w=st.integers(1, 24), lam=st.floats(0, 1, width=32), seed=st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_a_box_is_a_rectangle_of_the_sides_asked_for_cut_at_the_border(h, w, lam, seed):
    for inside in boxes(torch.full((5,), lam), (h, w), seeded(seed))[:, 0].numpy():
        top, bottom, left, right = corners(inside)
        assert inside[top:bottom, left:right].all() and inside.sum() == (bottom - top) * (right - left)
        if not inside.any(): continue
        for first, end, length in ((top, bottom, h), (left, right, w)):
            side = 2 * (int(length * (1 - np.float64(lam)) ** .5) // 2)
            assert side // 2 <= end - first <= side and (end - first == side or first == 0 or end == length)


@given(h=st.integers(2, 40), w=st.integers(2, 40), seed=st.integers(0, 2**31))
@settings(max_examples=15, deadline=None)
def test_boxes_labels_and_images_are_torchvisions(h, w, seed):
    "Its box by its own random numbers: size and place by the formula, then the mixture."
    from torchvision.transforms.v2 import CutMix as Theirs
    x, y, theirs = torch.rand(4, 3, h, w, generator=seeded(seed)), torch.arange(4), Theirs(num_classes=4)
    torch.manual_seed(seed)
    box, lam = theirs.make_params([x]).values()
    torch.manual_seed(seed)
    drawn, centre = float(theirs._dist.sample(())), [int(torch.randint(n, (1,))) for n in (w, h)][::-1]
    half = [int(n * (1 - drawn) ** .5) // 2 for n in (h, w)]
    inside = torch.zeros(1, 1, h, w, dtype=torch.bool)
    inside[..., max(0, centre[0] - half[0]):centre[0] + half[0], max(0, centre[1] - half[1]):centre[1] + half[1]] = True
    assert corners(inside[0, 0].numpy()) == ((box[1], box[3], box[0], box[2]) if inside.any() else (0, 0, 0, 0))
    assert shares(inside).item() == pytest.approx(lam, abs=1e-7)
    torch.manual_seed(seed)
    their_x, their_y = theirs(x, y)
    draw = CutDraw(shares(inside)[0], torch.arange(4).roll(1), inside)
    assert torch.equal(draw(x), their_x) and torch.allclose(draw(torch.eye(4)), their_y, atol=1e-6)


def test_areas_have_the_law_of_timms():
    "At a side that is even (an odd one timm keeps, torchvision and the code round down): 4,000 areas of each, by a two-sample test."
    from timm.data.mixup import rand_bbox
    np.random.seed(0)
    top, bottom, left, right = rand_bbox((2, 3, 32, 16), .75, count=4000)
    ours = 1 - shares(boxes(torch.full((4000,), .75), (32, 16), seeded())).numpy()
    assert stats.ks_2samp(ours, (bottom - top) * (right - left) / 512).pvalue > 1e-4 and len(np.unique(ours)) > 20


def test_the_law_of_the_draw():
    "4,000 boxes: the largest possible has a uniform share, and the moments are those of a computation in NumPy, within 4 standard errors."
    ours = draw_boxes(4000, (16, 12), 1., 1., seeded(), "example").lam.numpy()
    rng, n = np.random.default_rng(1), 40_000
    lam = rng.random(n)
    sides = [np.minimum(c + h, size) - np.maximum(c - h, 0) for size in (16, 12)
             for c, h in [(rng.integers(0, size, n), (size * (1 - lam) ** .5).astype(int) // 2)]]
    theirs = 1 - sides[0] * sides[1] / (16 * 12)
    for f in (lambda v: v, np.square): assert abs(f(ours).mean() - f(theirs).mean()) < 4 * (f(ours).var() / 4000 + f(theirs).var() / n) ** .5


@pytest.mark.parametrize("prob", [.5, .1])
def test_how_often_there_is_a_box(prob):
    n, rng = 800, seeded()
    none = sum((~draw_boxes(2, (64, 64), 8., prob, rng).inside.any()).item() for _ in range(n))  # with alpha 8 no box of 64 px is empty
    assert stats.binomtest(none, n, 1 - prob).pvalue > 1e-5
    each = ~draw_boxes(n, (64, 64), 8., prob, rng, "example").inside.any((1, 2, 3))
    assert stats.binomtest(int(each.sum()), n, 1 - prob).pvalue > 1e-5


@pytest.mark.parametrize("lag", (1, 2, 7))
def test_boxes_of_a_batch_are_drawn_apart(lag):
    "Centres at one size, sizes at any: neither goes with that of another image (4,000 images; one standard error is .016)."
    inside = boxes(torch.full((4000,), .75), (16, 16), seeded())[:, 0]
    first = torch.stack([inside.any(1).double().argmax(1), inside.any(2).double().argmax(1)])  # constants would give NaN
    lam = draw_boxes(4000, (16, 16), 1., 1., seeded(), "example").lam[None]
    for v in (first.numpy(), lam.numpy()):
        assert all(abs(np.corrcoef(p[:-lag], q[lag:])[0, 1]) < 5 / 4000 ** .5 for p in v for q in v)


def test_partners_are_a_permutation():
    partner = draw_boxes(50, (4, 4), 1., 1., seeded()).partner
    assert torch.equal(partner.sort().values, torch.arange(50)) and not torch.equal(partner, torch.arange(50))


@given(seed=st.integers(0, 2**32), per=st.sampled_from(["batch", "example"]), criterion=st.sampled_from(["ce", "bce"]), shape=st.sampled_from([(1, 16, 16), (3, 16, 12)]))
@settings(max_examples=20, deadline=None)
def test_the_loss_by_hand_in_float64(seed, per, criterion, shape):
    (x, y), net, kind = batch(shape=shape, dtype=torch.float64), network(shape, torch.float64), CutMix(prob=1., per=per, criterion=criterion)
    draw = kind.draw(net, x, y, seeded(seed))
    lam = draw.lam.double().expand(len(x)).numpy()
    seen, target = x.clone(), np.zeros((len(x), 5))
    for i, j in enumerate(draw.partner.tolist()):
        top, bottom, left, right = corners(draw.inside[i if per == "example" else 0, 0].numpy())
        seen[i, :, top:bottom, left:right] = x[j, :, top:bottom, left:right]
        area = 1 - (bottom - top) * (right - left) / (shape[1] * shape[2])
        assert lam[i] == pytest.approx(area, abs=1e-7)
        target[i, y[i]] += area; target[i, y[j]] += 1 - area
    assert np.allclose(target.sum(1), 1)
    p = net(seen).softmax(1).detach().numpy()
    each = target * np.log(p) if criterion == "ce" else (target * np.log(p) + (1 - target) * np.log1p(-p)) / 5
    assert kind.loss(net, x, y, seeded(seed)).item() == pytest.approx(-each.sum(1).mean(), rel=1e-6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("per", ["batch", "example"])
def test_without_boxes_it_is_erm_to_the_last_bit(per, layout):
    x, y = batch(shape=(3, 16, 16))
    x, net = x.to(memory_format=layout), network((3, 16, 16))
    def grads(kind): return torch.autograd.grad(kind.loss(net, x, y, seeded()), list(net.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(grads(CutMix(prob=0., per=per)), grads(ERM()), strict=True))
    assert not torch.equal(CutMix(prob=1., per=per).loss(net, x, y, seeded()), ERM().loss(net, x, y, seeded()))


def test_other_labels_and_noise_go_with_it():
    (x, y), net = batch(), network()
    draw = CutMix(prob=1.).draw(net, x, y, seeded())
    rho = torch.sigmoid(2 * (draw.lam - .5) / .1)
    by_hand = rho * F.cross_entropy(net(draw(x)), y) + (1 - rho) * F.cross_entropy(net(draw(x)), y[draw.partner])
    assert torch.allclose(CutMix(prob=1., labels=LogisticLabels()).loss(net, x, y, seeded()), by_hand, atol=1e-6)
    quiet, loud = (CutMix(prob=1., noise=FeatureNoise(add=a, mult=0.)).loss(net, x, y, seeded()) for a in (0., .4))
    assert torch.allclose(quiet, CutMix(prob=1.).loss(net, x, y, seeded())) and not torch.allclose(quiet, loud)


@pytest.mark.parametrize("bad, message", [(dict(prob=2.), r"prob must be in \[0, 1\], got 2"), (dict(prob=-.1), "prob must be in"), (dict(alpha=0), "alpha must be above 0, got 0"),
                                          (dict(per="batches"), "unknown per 'batches': did you mean 'batch'")])
def test_bad_fields_are_refused(bad, message):
    with pytest.raises(ValueError, match=message): CutMix(**bad)


def test_a_draw_of_another_batch_is_refused():
    draw = draw_boxes(4, (8, 8), 1., 1., seeded())
    for bad in (torch.rand(5, 1, 8, 8), torch.rand(4, 1, 8, 9)):
        with pytest.raises(ValueError, match=r"these boxes are for images \(4, C, 8, 8\), got"): draw(bad)
    with pytest.raises(ValueError, match="this draw mixes 4 examples, but got 5"): draw(torch.rand(5, 3))
