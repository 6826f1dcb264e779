"Accuracy, likelihood, calibration and robustness against scikit-learn, torchmetrics, plain loops and published layouts; what must be refused."
import math
import warnings
from functools import partial

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torchmetrics.classification import MulticlassCalibrationError

from helpers import seeded
from mixrepro.data import corrupted
from mixrepro.data.corruptions import CATEGORIES, CORRUPTIONS, corrupt
from mixrepro.data.datasets import load
from mixrepro.data.digits import blobs
from mixrepro.data.images import ImageSet, balanced
from mixrepro.metrics import catalogue
from mixrepro.metrics import robustness as R
from mixrepro.metrics.accuracy import accuracy, evaluating, nll, predict
from mixrepro.metrics.calibration import confidence, ece, reliability
from mixrepro.metrics.ranked import aurra, rms_error
from mixrepro.networks.zoo import build
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store


@st.composite
def predictions(draw, scales=(.1, 1., 3.)):
    "Random logits, float32 (N, K), and labels that agree with some of them."
    n, k, rng = draw(st.integers(1, 200)), draw(st.integers(2, 20)), seeded(draw(st.integers(0, 10_000)))
    logits = draw(st.sampled_from(scales)) * torch.randn(n, k, generator=rng)
    y = torch.where(torch.rand(n, generator=rng) < draw(st.sampled_from([.1, .5, .9])), logits.argmax(1), torch.randint(k, (n,), generator=rng))
    return logits, y


class Probe(nn.Module):
    "A network with everything that training changes: batch norm, dropout, a count of its passes and their sizes."
    def __init__(self, k=10, channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(channels), nn.Dropout(.5), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16 * channels, k))
        self.sizes, self.seen = [], []

    def forward(self, x):
        assert not self.training and not torch.is_grad_enabled() and x.dtype == torch.float32 and 0 <= x.min() and x.max() <= 1
        self.sizes.append(len(x)); self.seen.append(x.clone())
        return self.body(x)


# ---- predictions ----------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(n=st.integers(1, 40), batch=st.integers(1, 50))
def test_predict_visits_every_image_once_in_order(n, batch):
    images, net = blobs("train", n=n, size=8), Probe()
    got = predict(net, images, batch)
    assert net.sizes == [batch] * (n // batch) + [n % batch] * (n % batch > 0) and torch.equal(torch.cat(net.seen), images.floats())
    assert got.shape == (n, 10) and got.dtype == torch.float32 and got.device.type == "cpu" and not got.requires_grad
    assert torch.allclose(got, net.eval().body(images.floats()), atol=1e-5)


def test_predict_leaves_the_network_as_it_was():
    net = Probe()
    net.body[0].eval()
    state, modes = {k: v.clone() for k, v in net.state_dict().items()}, [m.training for m in net.modules()]
    predict(net, blobs("test", n=9, size=8))
    assert modes == [m.training for m in net.modules()] and all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    with pytest.raises(RuntimeError): predict(net, torch.zeros(2, 1, 8, 8, dtype=torch.uint8))  # wrong channels: fails inside the pass
    assert modes == [m.training for m in net.modules()] and torch.is_grad_enabled()


class Held:
    "A network in an object that is called."
    def __init__(self, net): self.net = net
    def __call__(self, x): return self.net(x)


GIVEN = {"closure": lambda net: lambda x: net(x), "forward": lambda net: net.forward, "partial": lambda net: partial(lambda n, x: n(x), net),
         "object": Held, "wrapped": lambda net: torch.no_grad()(lambda x: net(x))}


@pytest.mark.parametrize("kind", GIVEN)
def test_a_function_around_a_network_in_training_mode_is_told(kind):
    "Its batch norm would take the statistics of the test images, and keep them."
    test = blobs("test", n=12)
    net = nn.Sequential(nn.BatchNorm2d(test.shape[0]), nn.Flatten(), nn.Linear(test.x[0].numel(), 3))
    with torch.no_grad(): net[2].weight.copy_(torch.randn(net[2].weight.shape, generator=seeded()))
    want = predict(net, test)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        lost = predict(GIVEN[kind](net.train()), test)
    assert [str(w.message)[:66] for w in said] == ["a function was given that passes a network in training mode, so th"]
    assert not torch.allclose(lost, want) and net[0].num_batches_tracked > 0
    with warnings.catch_warnings(action="error"): predict(GIVEN[kind](net.eval()), test), predict(lambda x: x.flatten(1), test), predict(net.train(), test)


@pytest.mark.parametrize("n, batch", [(129, 128), (257, 128), (3, 2)])
def test_a_network_that_squeezes_a_last_batch_of_one_is_told_what_it_does(n, batch):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    with pytest.raises(ValueError, match=rf"rows of one length, but gave \({batch}, 4\) for one batch and \(4,\) for another: squeeze\(\)"):
        predict(lambda x: net(x).squeeze(), torch.zeros(n, 1, 8, 8, dtype=torch.uint8), batch)


def test_predict_takes_a_plain_function_and_half_precision():
    x = blobs("test", n=5, size=8)
    assert torch.equal(predict(lambda a: a.flatten(1)[:, :3], x), x.floats().flatten(1)[:, :3])
    assert predict(lambda a: a.flatten(1).bfloat16(), x).dtype == torch.float32
    with evaluating(max) as f: assert f is max


@settings(max_examples=60, deadline=None)
@given(predictions())
def test_accuracy_and_nll_are_those_of_scikit_learn(case):
    logits, y = case
    assert accuracy(logits, y) == pytest.approx(sklearn.metrics.accuracy_score(y, logits.argmax(1)), abs=1e-12)
    assert nll(logits, y) == pytest.approx(sklearn.metrics.log_loss(y, logits.double().softmax(1), labels=range(logits.shape[1])), rel=1e-9)


def test_a_sure_mistake_costs_its_margin():
    assert nll(torch.tensor([[0., 2000.]]), torch.tensor([0])) == 2000 and nll(torch.tensor([[0., 2000.]]), torch.tensor([1])) == 0


@pytest.mark.parametrize("metric", [accuracy, nll, ece, reliability])
@pytest.mark.parametrize("logits, y, sentence", [
    (torch.zeros(0, 3), torch.zeros(0).long(), "no predictions to measure"),
    (torch.zeros(2, 3), torch.tensor([0, 3]), "labels must be class numbers 0..2, got 0..3"),
    (torch.zeros(2, 3), torch.tensor([-1, 0]), "labels must be class numbers 0..2, got -1..0"),
    (torch.zeros(2, 3), torch.tensor([0]), r"of shape \(2,\), got shape \(1,\)"),
    (torch.zeros(3), torch.tensor([0, 0, 0]), r"expected logits \(N, K\) of a classifier, got \(3,\)"),
    (torch.tensor([[0., math.nan], [0., 1.]]), torch.tensor([0, 0]), "1 of 2 rows of logits hold NaN")])
def test_what_cannot_be_measured_is_refused(metric, logits, y, sentence):
    with pytest.raises(ValueError, match=sentence): metric(logits, y)


@pytest.mark.parametrize("name", ["factors-b-32", "spirals"])
def test_predict_takes_sets_that_are_no_stored_images(name):
    s = load(name, "test").subset(30)
    assert torch.equal(predict(lambda x: x.flatten(1)[:, :2], s, batch=7), s.floats().flatten(1)[:, :2])
    with pytest.raises(ValueError, match="images must be uint8"): predict(lambda x: x, s.floats())


# ---- calibration ----------------------------------------------------------------------------------------------------

def by_hand(p, y, bins):
    "ECE of probabilities in Python numbers, one prediction and one bin at a time."
    total = 0.
    for m in range(bins):
        rows = [(max(r), r.index(max(r)) == t) for r, t in zip(p, y) if m / bins < max(r) <= (m + 1) / bins]
        if rows: total += abs(sum(hit for _, hit in rows) / len(rows) - sum(c for c, _ in rows) / len(rows)) * len(rows) / len(y)
    return total


@settings(max_examples=60, deadline=None)
@given(predictions(), st.sampled_from([1, 2, 10, 15, 40]))
def test_ece_is_that_of_torchmetrics_and_of_a_loop(case, bins):
    logits, y = case
    p = logits.double().softmax(1)
    theirs = MulticlassCalibrationError(logits.shape[1], n_bins=bins, norm="l1")(p, y).item()
    assert ece(logits, y, bins) == pytest.approx(theirs, abs=1e-6)
    assert ece(logits, y, bins) == pytest.approx(by_hand(p.tolist(), y.tolist(), bins), abs=1e-9)
    assert ece(p, y, bins, probs=True) == pytest.approx(ece(logits, y, bins), abs=1e-12)


def test_an_edge_belongs_to_the_bin_below():
    sure = torch.tensor([.5, .625, .75, .875, 1.])
    p = torch.stack([sure, 1 - sure], 1)
    assert reliability(p, torch.zeros(5).long(), bins=8, probs=True)["count"].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]
    assert reliability(p, torch.zeros(5).long(), bins=2, probs=True)["count"].tolist() == [1, 4]


def test_saturated_predictions_count():
    "Confidence exactly 1 belongs to the last bin; 15 certain mistakes among 100 are an error of .15."
    y = torch.arange(100) % 10
    logits = 1e4 * torch.eye(10)[torch.where(torch.arange(100) < 15, (y + 1) % 10, y)]
    r = reliability(logits, y)
    assert r["count"].tolist() == [0] * 14 + [100] and r["confidence"][-1] == 1 and ece(logits, y) == pytest.approx(.15)


@settings(max_examples=40, deadline=None)
@given(predictions(scales=(.1, 1., 30.)), st.integers(1, 30))
def test_bins_add_up(case, bins):
    logits, y = case
    r, (sure, right) = reliability(logits, y, bins), confidence(logits, y)
    assert r["count"].sum() == len(y) and {len(v) for v in r.values()} == {bins}
    assert (r["count"] * r["accuracy"]).sum() / len(y) == pytest.approx(accuracy(logits, y))
    assert (r["count"] * r["confidence"]).sum() / len(y) == pytest.approx(sure.mean().item())
    full, m = r["count"] > 0, torch.arange(bins)
    assert (r["confidence"][full] > m[full] / bins - 1e-12).all() and (r["confidence"][full] <= (m[full] + 1) / bins + 1e-12).all()
    assert abs(accuracy(logits, y) - sure.mean().item()) - 1e-12 <= ece(logits, y, bins) <= 1


def test_a_calibrated_predictor_has_a_small_error():
    "Labels drawn from the predicted distribution: what is left is the sampling noise of fifteen bins."
    logits = 2 * torch.randn(100_000, 10, generator=seeded())
    y = torch.multinomial(logits.softmax(1), 1, generator=seeded(1))[:, 0]
    assert ece(logits, y) < .006 < .1 < ece(3 * logits, y)


def test_probabilities_are_not_guessed():
    y = torch.tensor([0, 1])
    with pytest.raises(ValueError, match="must be a distribution"): ece(torch.tensor([[.5, .4], [.5, .5]]), y, probs=True)
    with pytest.raises(ValueError, match="must be a distribution"): ece(torch.tensor([[1.5, -.5], [.5, .5]]), y, probs=True)
    with pytest.raises(ValueError, match="bins must be 1 or more"): ece(torch.zeros(2, 2), y, bins=0)


def test_probabilities_in_half_precision_are_known_as_such():
    "They do not sum to 1; whoever passed them as logits instead was measured on another network's confidences, and not told."
    logits, y = 2 * torch.randn(50, 10, generator=seeded()), torch.arange(50) % 10
    rounded = logits.softmax(1).bfloat16()
    for measure in (ece, rms_error, aurra):
        how = dict(size=10) if measure is rms_error else {}
        with pytest.raises(ValueError, match=r"rounded to torch.bfloat16, so that .* logits.float\(\).softmax\(1\)"): measure(rounded, y, probs=True, **how)
        with pytest.warns(UserWarning, match="every row of the logits is a distribution"): measure(rounded, y, **how)
    with pytest.warns(UserWarning, match="every row of the logits is a distribution"): nll(rounded, y)
    with pytest.raises(ValueError, match="must be a distribution"): ece(logits.bfloat16(), y, probs=True)
    whole = torch.eye(10).bfloat16()[y] * .5 + torch.eye(10).bfloat16()[y.flip(0)] * .5
    assert ece(whole, y, probs=True) == ece(whole.float(), y, probs=True)


# ---- robustness -----------------------------------------------------------------------------------------------------

@pytest.fixture
def counted(monkeypatch):
    "A corruption that only says what it was asked for: it adds ten times the severity, and the calls are listed."
    calls = []
    def fake(x, kind, severity, **how):
        calls.append((kind, severity, len(x), how))
        return x + 10 * severity
    monkeypatch.setattr(R, "corrupt", fake)
    return calls


def test_each_corrupted_set_is_made_once_for_all_networks(counted):
    test, nets = blobs("test", n=12, size=8), [Probe(), Probe()]
    got = R.robustness(nets, test, seed=3)
    assert [c[:2] for c in counted] == [(kind, s) for kind in CORRUPTIONS for s in range(1, 6)]
    assert all(c[2:] == (12, {"seed": 3, "table": "cifar", "index": None}) for c in counted)
    assert len(got) == 2 and all(r["corruptions"] == "generated" and r["seed"] == 3 and r["images"] == 12 for r in got)
    for net, r in zip(nets, got):
        assert torch.equal((net.seen[3] * 255).round().to(torch.uint8), test.x + 40)
        out = predict(net, test.x + 40)
        want = accuracy(out, test.y), nll(out, test.y), ece(out, test.y)
        assert (r["accuracy"]["gaussian_noise"][3], r["nll"]["fog"][3], r["ece"]["snow"][3]) == pytest.approx(want, abs=1e-6)
    assert {tuple(r[m]) for r in got for m in ("accuracy", "nll", "ece")} == {CORRUPTIONS}


def test_one_network_gives_one_result_and_kinds_can_be_chosen(counted):
    got = R.robustness(Probe(), blobs("test", n=4, size=8), kinds=("fog",))
    assert list(got["accuracy"]) == ["fog"] and len(counted) == 5
    with pytest.raises(ValueError, match="without five values: gaussian_noise, "): R.corruption_mean(got["accuracy"])


def test_the_constants_follow_the_size_of_the_images(counted):
    def used(**how): return R.robustness(Probe(), blobs("test", n=4, **how), kinds=("fog",))["table"], counted[-1][3]["table"]
    assert used(size=32) == ("cifar", "cifar") and used(size=64) == ("tiny-imagenet", "tiny-imagenet")


def test_generated_cells_are_those_of_corrupt():
    test = load("digits", "test").subset(20)
    for kind in ("shot_noise", "fog", "pixelate"): assert torch.equal(R.damaged(test, kind, 5, seed=1).x, corrupt(test.x, kind, 5, seed=1))


def test_every_real_corruption_gives_a_number_on_grey_and_on_colour():
    for test in (load("digits", "test").subset(10), blobs("test", n=10)):
        net = Probe(channels=test.shape[0])
        r = R.robustness(net, test)
        assert all(0 <= v <= 1 for row in r["accuracy"].values() for v in row) and 0 <= R.corruption_mean(r["ece"]) <= 1
        assert r == R.robustness([net], test)[0]  # same seed, same images


def test_means():
    rng = np.random.default_rng(0)
    cells = {kind: rng.random(5).tolist() for kind in CORRUPTIONS}
    assert R.corruption_mean(cells) == pytest.approx(sum(map(sum, cells.values())) / 75)
    assert R.corruption_mean(dict(reversed(cells.items()))) == pytest.approx(R.corruption_mean(cells))
    by = R.by_category(cells)
    assert R.corruption_mean(cells) == pytest.approx(sum(by[c] * len(k) for c, k in CATEGORIES.items()) / 15)
    assert list(map(len, CATEGORIES.values())) == [3, 4, 4, 4]
    with pytest.raises(ValueError, match="the cells of fog must be numbers, got text, .* convert with float"): R.corruption_mean(cells | dict(fog=["0.5"] * 5))  # as csv reads them
    del cells["snow"]
    for mean in (R.corruption_mean, R.by_category):
        with pytest.raises(ValueError, match="without five values: snow"): mean(cells)


@pytest.fixture
def arrays(tmp_path, monkeypatch):
    "A released-style folder over six images, and the clean set it belongs to."
    monkeypatch.setattr(corrupted, "ROWS_OF_C", 30)
    (folder := tmp_path / "CIFAR-10-C").mkdir()
    clean = blobs("test", n=6)
    test = ImageSet(clean.x, clean.y, clean.classes, "cifar10", "test")
    np.save(folder / "labels.npy", np.tile(test.y.numpy(), 5))
    for kind in CORRUPTIONS:
        blocks = [corrupt(test.x, kind, s) if kind == "contrast" else test.x // s for s in range(1, 6)]
        np.save(folder / f"{kind}.npy", torch.cat(blocks).permute(0, 2, 3, 1).numpy())
    return tmp_path, test


def test_released_arrays_are_read_by_block(arrays):
    root, test = arrays
    for s in range(1, 6):
        cell = R.damaged(test, "fog", s, "released", root)
        assert torch.equal(cell.x, test.x // s) and torch.equal(cell.y, test.y)
    net = Probe()
    r = R.robustness(net, test, source="released", root=root)
    assert r["corruptions"] == "released" and r["accuracy"]["snow"][0] == accuracy(predict(net, test), test.y)
    assert r["accuracy"]["contrast"] == R.robustness(net, test, kinds=("contrast",))["accuracy"]["contrast"]


def test_released_arrays_of_other_images_are_refused(arrays):
    root, test = arrays
    with pytest.raises(ValueError, match="whose labels are not those of the 3 here: pass the whole test split"):
        R.robustness(Probe(), test.subset(3), source="released", root=root)
    with pytest.raises(ValueError, match="unknown released corruption set 'digits'"):
        R.robustness(Probe(1), load("digits", "test"), source="released", root=root)
    with pytest.raises(ValueError, match="unknown source of corruptions 'relaesed': did you mean 'released'"):
        R.damaged(test, "fog", 1, source="relaesed")


def test_broken_released_arrays_are_named(arrays):
    root, test = arrays
    fog = root / "CIFAR-10-C" / "fog.npy"
    whole = fog.read_bytes()
    for data in (whole[:-1], whole[:50], b"", b"not an array", pickle_array()):
        fog.write_bytes(data)
        with pytest.raises(ValueError, match=r"fog.npy is not a whole .npy file .*: run `mixrepro data get cifar10-c --root"):
            R.damaged(test, "fog", 1, "released", root)
    np.save(fog, np.zeros((30, 32, 32, 3), np.float32))
    with pytest.raises(ValueError, match=r"fog.npy holds float32 \(30, 32, 32, 3\), expected 4 axes of uint8"):
        R.damaged(test, "fog", 1, "released", root)
    fog.unlink()
    with pytest.raises(FileNotFoundError, match="fog.npy is missing: run `mixrepro data get cifar10-c"):
        R.damaged(test, "fog", 1, "released", root)
    with pytest.raises(ValueError, match="severity must be 1, 2, 3, 4 or 5, got 6"): R.damaged(test, "snow", 6, "released", root)


def pickle_array():
    "The bytes of an .npy file that holds a pickle."
    import io
    np.save(buffer := io.BytesIO(), np.array([{}], dtype=object))
    return buffer.getvalue()


@pytest.mark.cuda
def test_on_the_device():
    test, net = load("digits", "test").subset(30), Probe(channels=1)
    want = R.robustness(net, test, kinds=("contrast",))
    there = R.robustness(net.cuda(), test.to("cuda"), kinds=("contrast",))
    assert predict(net, test).device.type == "cpu" and there["nll"]["contrast"] == pytest.approx(want["nll"]["contrast"], rel=1e-3)


@pytest.mark.parametrize("name", ["interpolation", "linearity", "deformed", "deformed-mean"])
def test_what_is_measured_on_a_part_is_that_of_the_part(name):
    "The same number of images of each class, and image by image where the whole is."
    test, net = load("digits-few", "test"), build("tiny-cnn", (1, 8, 8), 10, seeded()).eval()
    part, few = test.subset(balanced(test.y, 20)), partial(catalogue.on_first, catalogue.METRICS[name], 20)
    assert catalogue.AT_SOME[name] == f"{name}-on-2000" and catalogue.METRICS[f"{name}-on-2000"].args == (catalogue.METRICS[name], 2000)
    (mine,), (theirs,) = few([net], test), catalogue.METRICS[name]([net], part)
    arrays, others = (dict(m.pop("arrays", {})) for m in (mine, theirs))
    assert mine == theirs and all(torch.equal(a, others[k]) for k, a in arrays.items()) and part.y.bincount().eq(2).all()
    assert catalogue.IN_CELLS.get(name) == catalogue.IN_CELLS.get(f"{name}-on-2000")


@pytest.mark.parametrize("fields, told", [(dict(split="digits-l50-v50"), "those of the split digits-l50-v50"), (dict(label_noise=.4), "wrong ones, by label_noise"),
                                          (dict(dataset="photo-digits-64-stylized"), "photo-digits-64-stylized")])
def test_images_or_labels_that_a_run_was_not_trained_on_are_not_taken_for_its_own(fields, told, tmp_path):
    run = train_run(Spec(method="erm", network="tiny-cnn", epochs=1, n_train=40, looks=1, **dict(dataset="digits") | fields), Store(tmp_path), "cpu")
    for name in ("neighbours", "concentration", "dimensions"):
        with pytest.raises(ValueError, match=f"'{name}' looks at all training images of .* again, with their own labels, but .* was trained on {told}: ask it of other runs"): catalogue.measure([run], name, "cpu")


def test_networks_in_a_plain_list_that_eval_does_not_reach_are_told_of():
    "An ensemble's accuracy was that of batch norm in training mode, which kept the test images' statistics."
    class Several(nn.Module):
        def __init__(self, nets):
            super().__init__()
            self.nets = nets
        def forward(self, x): return torch.stack([net(x) for net in self.nets]).mean(0)
    test = load("digits", "test").subset(30)
    nets = [build("tiny-cnn", test.shape, test.k, seeded(s)).train() for s in (0, 1)]
    with pytest.warns(UserWarning, match="keeps modules in a list, tuple or dict, where eval.. does not reach them"): predict(Several(nets), test)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = predict(Several(nn.ModuleList(nets)), test)
        for net in nets: net.eval()
        assert torch.equal(predict(Several(nets), test), found)
