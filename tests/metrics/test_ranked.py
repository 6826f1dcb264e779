"RMS calibration error and AURRA against plain loops over the definitions, scikit-learn's bins and hand-worked cases."
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from sklearn.calibration import calibration_curve
from torchmetrics.classification import MulticlassCalibrationError

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.metrics import catalogue
from mixrepro.metrics.accuracy import accuracy, predict
from mixrepro.metrics.calibration import confidence, ece
from mixrepro.metrics.ranked import aurra, by_rank, neighbour_bins, ranked, response_accuracy, rms_error, rms_gaps
from mixrepro.metrics.robustness import corruption_mean, damaged
from mixrepro.metrics.stability import js_divergence
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, open_net


def reference(sure, right, size, drop):
    "The definition in Python numbers: sorted, cut in pieces of `size`, the rest to the last, the last one in or out."
    order = sorted(range(len(sure)), key=lambda i: sure[i])  # stable
    starts = [i * size for i in range(len(order) // size)] or [0]
    ends = starts[1:] + [len(order)]
    total = 0.
    for a, b in list(zip(starts, ends))[:-1 if drop else None]:
        part = order[a:b]
        gap = sum(right[i] for i in part) / len(part) - sum(sure[i] for i in part) / len(part)
        total += len(part) / len(order) * gap**2
    return math.sqrt(total)


def curve(sure, right):
    "The area by the definition: for every k the accuracy of the k surest, ties in their order."
    order = sorted(range(len(sure)), key=lambda i: -sure[i])
    return sum(sum(right[i] for i in order[:k]) / k for k in range(1, len(order) + 1)) / len(order)


@st.composite
def predictions(draw, most=300):
    "Random logits (N, K) and labels; some sets have many equal confidences."
    n, k, rng = draw(st.integers(1, most)), draw(st.integers(2, 12)), seeded(draw(st.integers(0, 10_000)))
    logits = draw(st.sampled_from([.3, 2., 30.])) * torch.randn(n, k, generator=rng)
    if draw(st.booleans()): logits = logits.round()
    y = torch.where(torch.rand(n, generator=rng) < .6, logits.argmax(1), torch.randint(k, (n,), generator=rng))
    return logits, y


@settings(max_examples=60, deadline=None)
@given(predictions(), st.integers(1, 120))
def test_rms_is_the_definition(case, size):
    sure, right = (v.tolist() for v in confidence(*case))
    for drop in (True, False):
        if drop and len(sure) < 2 * size:
            with pytest.raises(ValueError, match=f"needs {2 * size} predictions or more, got {len(sure)}"): rms_error(*case, size, drop)
        else: assert rms_error(*case, size, drop) == pytest.approx(reference(sure, right, size, drop), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(predictions(120))
def test_aurra_is_the_definition(case):
    assert aurra(*case) == pytest.approx(curve(*(v.tolist() for v in confidence(*case))), abs=1e-12)


@pytest.mark.parametrize("measure", [aurra, lambda p, y, probs: rms_error(p, y, 2, False, probs), lambda p, y, probs: by_rank(*confidence(p, y, probs))])
@given(votes=st.lists(st.tuples(st.integers(3, 5), st.booleans()), min_size=2, max_size=7))
@settings(max_examples=20, deadline=None)
def test_it_is_said_where_the_order_of_equally_sure_images_decides(measure, votes):
    "As of five votes each: of all orders the area has the range that is named, and nothing is said where that is narrow."
    p = torch.tensor([[n / 5, 1 - n / 5] for n, _ in votes], dtype=torch.float64)
    y = torch.tensor([int(not right) for _, right in votes])
    areas = [curve(*zip(*order)) for order in itertools.permutations(votes)]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        measure(p, y, probs=True)
    if max(areas) - min(areas) <= .01: assert not said
    else:
        tied = sum([n for n, _ in votes].count(n) > 1 for n, _ in votes)
        assert len(said) == 1 and f"{tied} of {len(votes)} predictions are exactly as sure as others" in str(said[0].message)
        assert f"AURRA lies between {min(areas):.3f} and {max(areas):.3f} by it" in str(said[0].message)


def test_one_prediction_a_bin_is_the_brier_score_of_the_confidence():
    "With bins of one prediction the mean square is that between confidence and being right: scikit-learn has it."
    from sklearn.metrics import brier_score_loss
    logits, y = 2 * torch.randn(400, 5, generator=seeded()), torch.arange(400) % 5
    sure, right = confidence(logits, y)
    assert rms_error(logits, y, 1, drop_last_bin=False)**2 == pytest.approx(brier_score_loss(right, sure), abs=1e-12)


def test_bins_of_equal_count_are_those_of_scikit_learn():
    "Without ties and with a number of predictions that the bins divide, neighbours are quantiles."
    logits, y = 2 * torch.randn(1000, 4, generator=seeded(1)), torch.arange(1000) % 4
    sure, right = confidence(logits, y)
    share, mean = calibration_curve(right, sure, n_bins=10, strategy="quantile")
    n, gap = rms_gaps(sure, right)
    assert n.tolist() == [100] * 10 and np.allclose(gap, share - mean, atol=1e-12)
    assert rms_error(logits, y, drop_last_bin=False) == pytest.approx(math.sqrt(np.mean((share - mean)**2)))


def test_one_bin_is_that_of_torchmetrics():
    logits, y = torch.randn(90, 4, generator=seeded(2)), torch.arange(90) % 4
    p = logits.double().softmax(1)
    theirs = MulticlassCalibrationError(4, n_bins=1, norm="l2")(p, y).item()
    assert rms_error(logits, y, drop_last_bin=False) == pytest.approx(theirs, abs=1e-6) == pytest.approx(ece(logits, y, 1), abs=1e-6)


def test_the_reference_codes_loop_ends_before_the_surest_bin():
    "250 predictions: bins of 100 and 150; without the surest the error is that of the first alone, over all 250."
    sure = torch.linspace(.5, 1, 250, dtype=torch.float64)
    p, y = torch.stack([sure, 1 - sure], 1), (torch.arange(250) % 2)
    right = (y == 0).double()
    first = 100 / 250 * (right[:100].mean() - sure[:100].mean())**2
    last = 150 / 250 * (right[100:].mean() - sure[100:].mean())**2
    assert rms_error(p, y, probs=True) == pytest.approx(first.sqrt().item())
    assert rms_error(p, y, drop_last_bin=False, probs=True) == pytest.approx((first + last).sqrt().item())


@settings(max_examples=40, deadline=None)
@given(predictions(), st.integers(0, 1000))
def test_order_matters_to_ties_only(case, seed):
    logits, y = case
    sure, _ = confidence(logits, y)
    turn = torch.randperm(len(y), generator=seeded(seed))
    found, turned = ranked(logits, y), ranked(logits[turn], y[turn])
    if len(sure.unique()) == len(sure): assert turned == pytest.approx(found, abs=1e-9)
    assert turned["bins"] == found["bins"] == len(neighbour_bins(len(y)))
    classes = torch.randperm(logits.shape[1], generator=seeded(seed))  # other numbers for the classes
    top = logits.topk(2).values
    if len(sure.unique()) == len(sure) and (top[:, 0] > top[:, 1]).all():
        assert ranked(logits[:, classes], classes.argsort()[y]) == pytest.approx(found, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(predictions())
def test_bounds(case):
    logits, y = case
    found, (sure, right) = ranked(logits, y), confidence(logits, y)
    assert 0 <= found["aurra"] <= 1 and abs(accuracy(logits, y) - sure.mean().item()) - 1e-9 <= found["rms"] <= 1
    assert (found["rms_code"] is None) == (len(y) < 200) and (found["rms_code"] or 0) <= found["rms"] + 1e-12
    n, low = int(right.sum()), lambda s: response_accuracy(torch.arange(len(s), 0, -1).double(), s).mean().item()
    best = torch.cat([torch.ones(n), torch.zeros(len(y) - n)]).double()  # the right ones first, or last
    assert low(best.flip(0)) - 1e-12 <= found["aurra"] <= low(best) + 1e-12
    assert response_accuracy(sure, right)[-1].item() == pytest.approx(accuracy(logits, y))


@pytest.mark.parametrize("n, size, bins", [(1, 100, [1]), (99, 100, [99]), (100, 100, [100]), (199, 100, [199]), (200, 100, [100, 100]),
                                           (305, 100, [100, 100, 105])])
def test_the_last_bin_takes_what_is_left(n, size, bins): assert neighbour_bins(n, size) == bins


@pytest.mark.parametrize("metric", [ranked, aurra, rms_error])
@pytest.mark.parametrize("logits, y, sentence", [
    (torch.zeros(0, 3), torch.zeros(0).long(), "no predictions to measure"), (torch.zeros(2, 3), torch.tensor([0, 3]), r"class numbers 0..2, got 0..3"),
    (torch.tensor([[0., math.nan], [0., 1.]]), torch.tensor([0, 0]), "1 of 2 rows of logits hold NaN")])
def test_what_cannot_be_measured_is_refused(metric, logits, y, sentence):
    with pytest.raises(ValueError, match=sentence): metric(logits, y)


# ---- of a run -------------------------------------------------------------------------------------------------------

@pytest.fixture
def run(tmp_path, monkeypatch):
    "A run on a few digits, and how often a network of it is opened."
    test = load("digits", "test").subset(210)
    monkeypatch.setattr(catalogue, "load", lambda name, split: test if split == "test" else load(name, split))
    opened = []
    monkeypatch.setattr(catalogue, "open_net", lambda *args: opened.append(args) or open_net(*args))
    made = train_run(Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=100, batch=20, augment="none"), Store(tmp_path), "cpu")
    return made, test, opened


def test_a_network_is_asked_once_whatever_is_read(run):
    made, test, opened = run
    for name in ("clean", "calibration", "ranked", "temperature", "ranked"): [value] = catalogue.measure([made], name, "cpu")
    assert len(opened) == 1
    logits = catalogue.kept_arrays(made, "logits")["logits"]
    [value] = catalogue.measure([made], "ranked", "cpu")
    assert value == ranked(logits, test.y) and catalogue.kept(made, "ranked") == value
    [steady] = catalogue.measure([made], "stability", "cpu")
    [again], [images] = catalogue.measure([made], "stability", "cpu"), catalogue.of_images([made], "stability", "cpu")
    assert len(opened) == 2 and steady == again  # the moved images are another test set
    kept = catalogue.kept_arrays(made, "moved")
    assert {k: v.mean() for k, v in images["js"].items()} == pytest.approx(steady["js"])
    assert steady["js"] == pytest.approx({k: js_divergence(logits, z).mean().item() for k, z in kept.items()})


def test_ranks_under_corruptions_are_those_of_the_corrupted_images(run):
    made, test, opened = run
    [cells] = catalogue.measure([made], "corruptions", "cpu")
    [found] = catalogue.measure([made], "corruption-ranks", "cpu")
    assert len(opened) == 1 and set(found) == {"rms", "rms_code", "aurra"} and set(found["rms"]) == set(cells["accuracy"])
    net = open_net(made)
    for kind, s in (("fog", 3), ("shot_noise", 5)):
        want = ranked(predict(net, damaged(test, kind, s)), test.y)
        assert {m: found[m][kind][s - 1] for m in found} == pytest.approx({m: want[m] for m in found}, abs=1e-6)
    assert 0 < corruption_mean(found["rms"]) < 1


def test_an_older_store_without_confidences_is_measured_again(run):
    made, _, opened = run
    first = catalogue.measure([made], "corruption-ranks", "cpu")
    catalogue.keep_arrays(made, "corruptions", dict(right=catalogue.kept_arrays(made, "corruptions")["right"]))
    assert catalogue.measure([made], "corruption-ranks", "cpu") == first and len(opened) == 2
