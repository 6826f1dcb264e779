"What one image adds: against bootstraps over images joined over seeds, fresh draws, leaving out and central differences."
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from helpers import seeded
from mixrepro.metrics.calibration import bin_of, confidence, ece, weighted_ece
from mixrepro.metrics.catalogue import of_calibration, of_ranks, of_scaled
from mixrepro.metrics.distances import Moments, frechet, kernel_sums, mmd2, near_frechet, weighted_mmd2, weighted_moments
from mixrepro.metrics.influence import influence
from mixrepro.metrics.ranked import response_accuracy, rms_of
from mixrepro.metrics.temperature import scaled_metrics
from mixrepro.papers.varmixup.samples import added
from mixrepro.repro.estimates import crossed


def normal(*shape, s=0): return torch.randn(*shape, dtype=torch.float64, generator=seeded(s))


def of(f): return Moments(f.shape[1]).update(f)


def counts(n, times, s=0):
    "How often each image is drawn in a bootstrap, float64 (times, n)."
    drawn = torch.randint(n, (times, n), generator=seeded(s))
    return torch.zeros(times, n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64))


def said(seed, scale, n=300, k=10):
    "Logits of a network on images that are hard or easy for every network alike, and the labels."
    y, ease = torch.randint(k, (n,), generator=seeded(99)), normal(n, s=98)
    z = 2 * normal(n, k, s=seed)
    z[torch.arange(n), y] += 3 + 2 * ease
    return scale * z, y


# ---- the mechanism -------------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 60), seed=st.integers(0, 1000))
def test_of_a_ratio_of_means_it_is_the_delta_method(n, seed):
    a, b = normal(n, s=seed), 2 + torch.rand(n, dtype=torch.float64, generator=seeded(seed + 1))
    v = influence(lambda w: (w * a).sum() / (w * b).sum(), n)
    ratio = a.sum() / b.sum()
    assert torch.allclose(v, ratio + (a - ratio * b) / b.mean(), atol=1e-10) and v.mean().item() == pytest.approx(ratio.item())


def test_it_works_where_gradients_are_off_and_leaves_no_graph():
    with torch.no_grad(): v = influence(lambda w: (w ** 2).sum() / w.sum() ** 2, 5)
    assert not v.requires_grad and torch.allclose(v, torch.full((5,), .2, dtype=torch.float64))


@pytest.mark.parametrize("statistic", [lambda w: w.sum(), lambda w: (w ** 2).sum() / w.sum()])
def test_what_grows_with_the_weights_is_refused(statistic):
    with pytest.raises(ValueError, match="another one when all weights are doubled: divide by their sum"): influence(statistic, 4)


def test_what_is_no_number_is_refused():
    with pytest.raises(FloatingPointError, match="the statistic and its slopes hold NaN or infinity: check the statistic"): influence(lambda w: (w * torch.nan).sum(), 4)


# ---- calibration ---------------------------------------------------------------------------------------------------

@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 80), bins=st.integers(1, 20), seed=st.integers(0, 1000))
def test_a_weighted_calibration_error_is_that_of_repeated_images(n, bins, seed):
    z, y = 3 * normal(n, 4, s=seed), torch.randint(4, (n,), generator=seeded(seed))
    times = torch.randint(0, 3, (n,), generator=seeded(seed + 1)).index_fill(0, torch.tensor([0]), 1)
    again = torch.arange(n).repeat_interleave(times)
    assert weighted_ece(times.double(), *confidence(z, y), bins).item() == pytest.approx(ece(z[again], y[again], bins), abs=1e-12)
    sure = confidence(z, y)[0]
    assert bin_of(sure, bins).tolist() == [max(0, math.ceil(round(s * bins, 12)) - 1) for s in sure.tolist()]


def test_the_joined_interval_of_a_calibration_error_is_that_of_a_joined_bootstrap():
    "Five seeds share 600 images: each bootstrap draws images once for all. It knows the spread to 1/sqrt(800) = 3.5%; small bins make it a little less."
    pairs = [(said(seed, 2., n=600), said(seed + 50, .4, n=600)) for seed in range(5)]
    each = np.array([[of_calibration(*said_by)["ece"] for said_by in pair] for pair in pairs])
    joined = crossed(each[:, 0] - each[:, 1])
    assert joined.effect == pytest.approx(np.mean([ece(*a) - ece(*b) for a, b in pairs]))
    known = [[confidence(*said_by) for said_by in pair] for pair in pairs]
    boots = [np.mean([weighted_ece(w, *a).item() - weighted_ece(w, *b).item() for a, b in known]) for w in counts(600, 400)]
    assert math.sqrt(joined.images[0]) == pytest.approx(1.03 * np.std(boots, ddof=1), rel=.12)
    assert math.sqrt(joined.variance) > .9 * np.std(boots, ddof=1) and joined.over == "seeds and test images"


def test_scaled_by_a_temperature_likewise():
    z, y = said(3, 3.)
    whole, each = scaled_metrics(z, y), of_scaled(z, y)
    for name in ("nll", "nll_scaled", "ece", "ece_scaled"): assert each[name].mean() == pytest.approx(whole[name])
    assert np.isnan(each["temperatures"]).all() and each["ece_scaled"].std() != each["ece"].std()


@pytest.mark.parametrize("name, whole, rel", [("rms", lambda s, r: rms_of(s, r, drop_last_bin=False), .2), ("rms_code", rms_of, .2),
                                              ("aurra", lambda s, r: response_accuracy(s, r).mean().item(), .12)])
def test_ranks_against_a_bootstrap(name, whole, rel):
    "The bins of a bootstrap are made anew, here they are held: the spreads agree to what 400 draws tell, and that."
    sure, right = confidence(*said(5, 2., n=600))
    v = of_ranks(sure, right)[name]
    boots = [whole(sure[i], right[i]) for i in torch.randint(600, (400, 600), generator=seeded(1))]
    assert v.mean() == pytest.approx(whole(sure, right)) and v.std(ddof=1) / 600 ** .5 == pytest.approx(np.std(boots, ddof=1), rel=rel)


def test_too_few_images_for_a_bin_left_out():
    few = of_ranks(*confidence(*said(5, 2., n=150)))
    assert few["rms_code"] is None and len(few["rms"]) == len(few["aurra"]) == 150


# ---- distances -----------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(n=st.integers(4, 30), m=st.integers(4, 30), d=st.integers(1, 6), seed=st.integers(0, 1000))
def test_weighted_distances_are_those_of_repeated_rows(n, m, d, seed):
    a, b = normal(n, d, s=seed), 1.5 * normal(m, d, s=seed + 1) + .3
    ones = [torch.ones(len(f), dtype=torch.float64) for f in (a, b)]
    assert near_frechet(a, b)(*ones).item() == pytest.approx(frechet(of(a), of(b)), rel=1e-8, abs=1e-8)
    times = torch.randint(1, 4, (n,), generator=seeded(seed))
    mean, cov = weighted_moments(a, times.double())
    again = a.repeat_interleave(times, 0)
    assert torch.allclose(mean, again.mean(0)) and torch.allclose(cov, torch.atleast_2d(torch.cov(again.T, correction=0)) * n / (n - 1))
    loops = sum(w * v * (x @ y / d + 1) ** 3 for i, (x, w) in enumerate(zip(a, times)) for j, (y, v) in enumerate(zip(a, times)) if i != j)
    pairs = sum(w * v for i, w in enumerate(times.tolist()) for j, v in enumerate(times.tolist()) if i != j)
    cross = kernel_sums(again, b)[0] / (times.sum() * m)
    within = (kernel_sums(b, b)[0] - kernel_sums(b, b)[1]) / (m * (m - 1))
    assert weighted_mmd2(a, b, times.double(), ones[1]).item() == pytest.approx((loops / pairs + within - 2 * cross).item(), rel=1e-9)
    assert weighted_mmd2(a, b, *ones).item() == pytest.approx(mmd2(a, b), rel=1e-9, abs=1e-12)


def test_slopes_of_a_distance_by_central_differences_where_a_direction_is_missing():
    a, b = normal(40, 5), 2 * normal(30, 5, s=1) + 1
    a[:, 3] = b[:, 3] = .7  # a feature that never moves
    near, one = near_frechet(a, b), torch.ones(40, dtype=torch.float64)
    def exact(wa, wb):
        found = []
        for f, w in ((a, wa), (b, wb)):
            m = of(f)
            m.mean, cov = weighted_moments(f, w)
            m.scatter = cov * (m.n - 1)
            found.append(m)
        return frechet(*found)
    for side, n in ((0, 40), (1, 30)):
        def at(w, how): return how(*((w, one[:30]) if side == 0 else (one, w)))
        added_by = influence(lambda w: at(w, near), n)
        slope = (added_by - added_by.mean()) / n
        for i in (0, n - 1):
            step = 1e-4 * torch.eye(n, dtype=torch.float64)[i]
            assert slope[i].item() == pytest.approx((at(one[:n] + step, exact) - at(one[:n] - step, exact)) / 2e-4, rel=1e-5, abs=1e-8)


def mixtures(seed, n=100, sets=3):
    "Features of images, and of two kinds of mixtures of them: each set has partners and coefficients of its own."
    real, found = normal(n, 3, s=seed) * torch.tensor([1., 2., .5]) + 1, []
    for k in range(sets):
        rng = seeded(10_000 * seed + k + 1)
        partner, lam = torch.randperm(n, generator=rng), torch.rand(n, 1, dtype=torch.float64, generator=rng)
        mixed = lam * real + (1 - lam) * real[partner]
        found.append((torch.stack([torch.arange(n), partner]), mixed, .6 * mixed))
    return real, found


def differences(seed):
    "Their distances' difference, in each set."
    real, found = mixtures(seed)
    return {"FID": [frechet(of(real), of(b)) - frechet(of(real), of(a)) for _, a, b in found], "KID": [mmd2(real, b) - mmd2(real, a) for _, a, b in found]}


def test_distances_of_mixtures_vary_as_is_said_when_all_images_are_drawn_anew():
    "100 fresh draws leave 7% of the spread, 8 estimates of it a tenth."
    fresh = [differences(seed) for seed in range(100, 200)]
    for name in ("FID", "KID"):
        truth, said_ = np.std([np.mean(d[name]) for d in fresh], ddof=1), []
        for seed in range(8):
            real, found = mixtures(seed)
            one = [[added(real, made, pairs, {name: 0.})[name].values for made in (a, b)] for pairs, a, b in found]
            said_.append(crossed(np.array([b - a for a, b in one])).variance)
        assert math.sqrt(np.mean(said_)) == pytest.approx(truth, rel=.3), name


def test_an_image_that_is_in_no_mixture_adds_by_what_it_is_compared_with_alone():
    real, [(pairs, mixed, _), *_] = mixtures(0)
    part = pairs[:, (pairs != 7).all(0)], mixed[(pairs != 7).all(0)]
    each = added(real, part[1], part[0], {"FID": 2., "KID": .5})
    assert {k: v.values.mean() for k, v in each.items()} == pytest.approx({"FID": 2., "KID": .5})
    near, ones = near_frechet(real, part[1]), torch.ones(len(part[1]), dtype=torch.float64)
    alone = influence(lambda w: near(w, ones), len(real))
    assert each["FID"].values[7] - 2 == pytest.approx((alone[7] - alone.mean()).item(), abs=1e-9)
