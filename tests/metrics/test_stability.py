"The divergence of predictions against SciPy and its limits; the steps' law; what a run keeps."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.digits import blobs
from mixrepro.metrics.stability import STEPS, Step, js_divergence, moved, stability, steadiness, stepped_logits


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(2, 15), st.sampled_from([1e-4, .1, 3., 40., 2e3]), st.integers(0, 10_000))
def test_js_is_scipys_and_keeps_its_bounds(n, k, scale, seed):
    a, b = (scale * torch.randn(2, n, k, generator=seeded(seed))).unbind()
    found = js_divergence(a, b)
    theirs = jensenshannon(a.double().softmax(1).numpy(), b.double().softmax(1).numpy(), axis=1)**2
    sane = ~np.isinf(theirs)  # scipy divides by probabilities below the smallest normal number
    assert np.allclose(found[sane], np.nan_to_num(theirs[sane]), atol=1e-12) and ((0 <= found) & (found <= math.log(2))).all()
    assert torch.equal(found, js_divergence(b, a)) and torch.allclose(js_divergence(a + 5, b - 3), found, atol=1e-6 + 1e-6 * scale)
    order = torch.randperm(k, generator=seeded(seed + 1))
    assert torch.allclose(js_divergence(a[:, order], b[:, order]), found, atol=1e-12) and js_divergence(a, a).max() == 0


def test_tiny_divergences_are_not_lost():
    "To second order JS = (1/8) d' (diag p - p p') d; entropies subtracted would leave nothing of 1e-14."
    z, d = torch.randn(50, 6, generator=seeded()).double(), 1e-6 * torch.randn(50, 6, generator=seeded(1)).double()
    p = z.softmax(1)
    want = (((p * d**2).sum(1) - (p * d).sum(1)**2) / 8)
    assert want.max() < 1e-12 and torch.allclose(js_divergence(z, z + d), want, rtol=1e-3, atol=0)


def test_classes_that_cannot_be():
    a, b = torch.tensor([[0., -math.inf, -math.inf]]), torch.tensor([[-math.inf, 1., 1.]])
    assert js_divergence(a, b).item() == math.log(2) and js_divergence(b, b).item() == 0
    half = js_divergence(a, torch.tensor([[0., 0., -math.inf]])).item()
    assert half == pytest.approx(jensenshannon([1, 0, 0], [.5, .5, 0])**2)


@pytest.mark.parametrize("bad, sentence", [(torch.full((4, 3), math.nan), "4 of 4 rows of logits hold NaN"), (torch.zeros(4, 2), "got .4, 3. and .4, 2."),
                                           (torch.full((4, 3), -math.inf), "4 of 4 rows of logits hold NaN or .inf, or -inf only")])
def test_what_is_no_prediction_is_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence): js_divergence(torch.zeros(4, 3), bad)
    with pytest.raises(ValueError, match=sentence): stability(torch.zeros(4, 3), torch.zeros(4).long(), {"step": bad})


def test_labels_and_logits_pass_the_guards():
    z = torch.zeros(4, 3)
    with pytest.raises(ValueError, match="labels must be class numbers 0..2, got 3..3"): stability(z, torch.full((4,), 3), {"step": z})
    with pytest.raises(ValueError, match="4 of 4 rows of logits hold NaN"): stability(z * math.nan, torch.zeros(4).long(), {"step": z})


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_what_half_precision_rounds_away_is_not_measured(half):
    "In bfloat16 the divergence would be that of the rounding."
    test, net = load("digits", "test").subset(20), nn.Sequential(nn.Flatten(), nn.Linear(1024, 10)).requires_grad_(False)
    for p in net.parameters(): p.copy_(torch.randn(p.shape, generator=seeded(4)) / 4)
    step = {"a": Step(radius=1e-4)}
    with torch.autocast("cpu", half), pytest.raises(TypeError, match=f"a step changes logits by about as much as {half} rounds them: measure in single"): moved([net], test, step)
    still, after = net(test.floats()), moved([net], test, step)[0]["arrays"]["a"]
    true = jensenshannon(*(z.double().softmax(1).numpy() for z in (still, after)), axis=1) ** 2
    assert stability(still, test.y, {"a": after})["js"]["a"] == pytest.approx(true.mean(), rel=.01)
    rounded = js_divergence(still.to(half), after.to(half)).mean().item()
    assert abs(rounded / true.mean() - 1) > .3
    for pair in ((still.to(half), after), (still, after.to(half))):
        with pytest.raises(TypeError, match="measure in single precision"): stability(pair[0], test.y, {"a": pair[1]})


# ---- the steps ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32)])
def test_the_sphere_is_uniform(shape):
    "All lengths are one; a coordinate of a uniform direction in d dimensions has a known law (Kolmogorov and Smirnov)."
    d, index = math.prod(shape), torch.arange(600)
    way = Step(radius=.1)(index, shape).flatten(1).double() / (.1 * d**.5)
    assert torch.allclose(way.norm(dim=1), torch.ones(600).double(), atol=1e-5)
    law = stats.beta((d - 1) / 2, (d - 1) / 2, loc=-1, scale=2)
    for j in (0, 7, d - 1): assert stats.kstest(way[:, j].numpy(), law.cdf).pvalue > 1e-4
    assert way.mean(0).norm() < 1.2 * 600**-.5  # the mean of n uniform directions has a length of about n^-1/2


def test_the_normal_step_is_normal():
    delta = Step("normal", radius=.2)(torch.arange(400), (1, 12, 12)).flatten().double().numpy()
    assert stats.kstest(delta, stats.norm(0, .2).cdf).pvalue > 1e-4 and abs(delta.mean()) < 4 * .2 / len(delta)**.5


def test_no_two_images_share_a_direction():
    "The cosine of two directions has variance 1/d: 4 standard errors over all neighbours."
    way = Step()(torch.arange(500), (1, 16, 16)).flatten(1)
    way = way / way.norm(dim=1, keepdim=True)
    cosine = (way[1:] * way[:-1]).sum(1)
    assert abs(cosine.mean()) < 4 / (256 * 499)**.5 and abs(cosine.square().mean() * 256 - 1) < 4 * (2 / 499)**.5
    other = Step(seed=1)(torch.arange(500), (1, 16, 16)).flatten(1)
    assert abs((way * other / other.norm(dim=1, keepdim=True)).sum(1).mean()) < 4 / (256 * 500)**.5


def test_a_step_hangs_on_the_place_of_an_image_and_not_on_its_batch():
    index, shape = torch.arange(30), (3, 8, 8)
    whole = Step(seed=4)(index, shape)
    assert torch.equal(torch.cat([Step(seed=4)(i, shape) for i in index.split(7)]), whole)
    for radius in (1 / 255, .5): assert torch.allclose(Step(radius=radius, seed=4)(index, shape) / radius, whole * 255 / 8, rtol=1e-5, atol=1e-6)


# ---- networks -------------------------------------------------------------------------------------------------------

class Linear(nn.Module):
    "Logits that are linear in the image, so their change is known exactly; batch norm and dropout would show training mode."
    def __init__(self, d, k=4):
        super().__init__()
        self.weight, self.noise, self.calls = torch.randn(d, k, generator=seeded()), nn.Dropout(.5), 0
    def forward(self, x):
        self.calls += len(x)
        return self.noise(x.flatten(1) @ self.weight)


def test_logits_are_those_of_the_moved_images():
    test = load("digits", "test").subset(25)
    net, step = Linear(1024), Step(radius=.05)
    got = stepped_logits(net, test, step, batch=10)
    want = (test.floats() + step(torch.arange(25), (1, 32, 32))).flatten(1) @ net.weight
    assert torch.allclose(got, want, atol=1e-4) and got.dtype == torch.float32 and not got.requires_grad and net.training


def test_each_image_passes_once_for_each_step():
    test, net = blobs("test", n=11, size=8), Linear(192)
    (found,) = moved([net], test, batch=4)
    assert net.calls == 11 * len(STEPS) and found["images"] == 11 and set(found["steps"]) == set(found["arrays"]) == set(STEPS)


def test_points_move_too():
    points = load("spirals", "test").subset(9)
    (found,) = moved([lambda x: x.flatten(1)], points, {"a": Step()})
    assert (found["arrays"]["a"] - points.x.flatten(1)).norm(dim=1).numpy() == pytest.approx(8 / 255 * 2**.5, rel=1e-3)


def test_means_and_images_agree():
    z, w = torch.randn(2, 60, 5, generator=seeded()).unbind()
    y = torch.arange(60) % 5
    one, many = stability(z, y, {"a": w, "b": z}), steadiness(z, y, {"a": w, "b": z})
    assert one["js"]["b"] == 0 == one["changed"]["b"] and one["js"]["a"] == pytest.approx(many["js"]["a"].mean().item())
    assert one["changed"]["a"] == (z.argmax(1) != w.argmax(1)).double().mean().item() > 0
