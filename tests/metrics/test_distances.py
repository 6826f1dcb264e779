"FID and KID against closed forms, scipy, torchmetrics and plain loops; streams, extractors and what must be refused."
import os
import weakref

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance
from torchvision.models.inception import Inception3, InceptionA, InceptionE

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.metrics import features as features_module
from mixrepro.metrics.distances import Moments, Reservoir, compare, describe, distances, frechet, kid, mmd2
from mixrepro.metrics.features import FILES, Extractor, find_inception, inception, learned
from mixrepro.networks.inception import Inside, MaxMixed
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store


def normal(n, d, s=0): return torch.randn(n, d, dtype=torch.float64, generator=seeded(s))


def of(f): return Moments(f.shape[1]).update(f)


def exactly(mean, cov):
    "Moments of a Gaussian, not of a sample."
    m = Moments(len(mean))
    m.n, m.mean, m.scatter = 2, mean, cov
    return m


FLAT = Extractor("pixels", 64, lambda x: F.avg_pool2d(x, 4).flatten(1))


# ---- Fréchet distance -----------------------------------------------------------------------------------------------

@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_diagonal_gaussians_have_a_closed_form(d, seed):
    (m1, m2), (s1, s2) = normal(2, d, seed), torch.rand(2, d, dtype=torch.float64, generator=seeded(seed)) * torch.tensor([0., 1.]).repeat(d)[:d]
    want = ((m1 - m2) ** 2).sum() + ((s1 - s2) ** 2).sum()  # standard deviations, some of them 0
    assert frechet(exactly(m1, torch.diag(s1 ** 2)), exactly(m2, torch.diag(s2 ** 2))) == pytest.approx(want.item(), rel=1e-9, abs=1e-12)


@settings(max_examples=30, deadline=None)
@given(d=st.integers(1, 10), seed=st.integers(0, 10_000))
def test_full_gaussians_agree_with_scipy(d, seed):
    (m1, m2), a, b = normal(2, d, seed), normal(d + 2, d, seed + 1), normal(d + 2, d, seed + 2)
    s1, s2 = a.T @ a, b.T @ b
    want = ((m1 - m2) ** 2).sum().item() + np.trace((s1 + s2).numpy() - 2 * scipy.linalg.sqrtm((s1 @ s2).numpy()).real)
    got = frechet(exactly(m1, s1), exactly(m2, s2))
    assert got == pytest.approx(want, rel=1e-7) and got == pytest.approx(frechet(exactly(m2, s2), exactly(m1, s1)), rel=1e-9)


@pytest.mark.parametrize("n, d", [(500, 8), (20, 200), (2, 50)])
def test_a_set_against_itself_is_zero_and_a_shift_its_length(n, d):
    f = 10 * normal(n, d)
    assert frechet(of(f), of(f.flip(0))) < 1e-9 * f.var(0).sum() + 1e-9
    assert frechet(of(f), of(f + 1)) == pytest.approx(d, rel=1e-6)


def test_images_that_are_all_alike():
    f = torch.ones(5, 3)
    assert frechet(of(f), of(3 * f)) == 12 and frechet(of(f), of(f)) == 0
    g = normal(9, 3)
    assert frechet(of(f), of(g)) == pytest.approx((1 - g.mean(0)).square().sum().item() + g.var(0).sum().item())


class Given(nn.Module):
    "Features for torchmetrics: images of 1 x d pixels are their own features."
    num_features = 6
    def forward(self, x): return x.flatten(1).float()


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_fid_and_kid_are_those_of_torchmetrics():
    a, b = (torch.randint(0, 256, (n, 1, 1, 6), generator=seeded(n), dtype=torch.uint8) for n in (300, 200))
    b = b // 2
    fid, theirs = FrechetInceptionDistance(feature=Given()), KernelInceptionDistance(feature=Given(), subsets=3, subset_size=200)
    for metric in (fid, theirs): metric.update(a[:200] if metric is theirs else a, real=True); metric.update(b, real=False)
    a, b = a.flatten(1).float(), b.flatten(1).float()
    assert frechet(of(a), of(b)) == pytest.approx(fid.compute().item(), rel=1e-4)
    mean, sd = kid(a[:200], b, seeded(), 3, 200)  # a subset of all: nothing is left to chance
    assert mean == pytest.approx(theirs.compute()[0].item(), rel=1e-4) and sd < 1e-9 * mean


# ---- streams --------------------------------------------------------------------------------------------------------

@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 60), batch=st.integers(1, 25), offset=st.sampled_from([0., 1e6]), seed=st.integers(0, 1000))
def test_moments_do_not_depend_on_the_batches(n, batch, offset, seed):
    f, stream = normal(n, 4, seed) + offset, Moments(4)
    for part in f.split(batch): stream.update(part)
    stream.update(f[:0])
    assert stream.n == n and np.allclose(stream.mean, f.mean(0), rtol=1e-12) and np.allclose(stream.cov, np.cov(f.numpy().T), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 40])
def test_every_row_of_a_stream_is_as_likely_to_stay(batch):
    hits, pairs = torch.zeros(40), 0
    for s in range(1500):
        r = Reservoir(1, 4, seeded(s))
        for part in torch.arange(40.)[:, None].split(batch): r.update(part)
        ids = r.rows.flatten().long()
        assert len(ids.unique()) == 4
        hits[ids] += 1
        pairs += int(ids[0] == 0)  # the order is random too: the first row of the stream comes first in one of 40
    assert scipy.stats.chisquare(hits).pvalue > 1e-3 and scipy.stats.binomtest(pairs, 1500, 1 / 40).pvalue > 1e-3


@settings(max_examples=20, deadline=None)
@given(n=st.integers(0, 50), batch=st.integers(1, 20), capacity=st.integers(1, 30))
def test_a_reservoir_keeps_all_it_can_and_no_more(n, batch, capacity):
    r, again = Reservoir(2, capacity, seeded()), Reservoir(2, capacity, seeded())
    f = torch.arange(2. * n).view(n, 2)
    for part in f.split(batch): assert len(r.update(part).rows) <= capacity
    assert len(r.rows) == min(n, capacity) and torch.equal(again.update(f).rows, r.rows)  # the same keys, however it was cut
    assert all(row[1] == row[0] + 1 for row in r.rows)


def test_only_one_batch_of_images_is_in_memory():
    alive, most = weakref.WeakSet(), 0
    class Batch(torch.Tensor): pass
    def stream():
        nonlocal most
        for s in range(12):
            images = torch.rand(20, 1, 32, 32, generator=seeded(s)).as_subclass(Batch)
            alive.add(images)
            most = max(most, len(alive))
            yield images
            del images
    d = describe(stream(), FLAT, seeded(), capacity=30)
    assert d.moments.n == 240 and d.reservoir.rows.shape == (30, 64) and most <= 2


# ---- kernel distance ------------------------------------------------------------------------------------------------

@settings(max_examples=20, deadline=None)
@given(n=st.integers(2, 7), m=st.integers(2, 7), d=st.integers(1, 5), seed=st.integers(0, 1000))
def test_mmd_is_the_double_loop(n, m, d, seed):
    x, y = normal(n, d, seed), normal(m, d, seed + 1)
    k = lambda a, b: (float(a @ b) / d + 1) ** 3
    within = lambda f: sum(k(f[i], f[j]) for i in range(len(f)) for j in range(len(f)) if i != j) / (len(f) * (len(f) - 1))
    want = within(x) + within(y) - 2 * sum(k(a, b) for a in x for b in y) / (n * m)
    assert mmd2(x, y) == pytest.approx(want, rel=1e-9, abs=1e-9)


def test_kid_is_unbiased_whatever_the_size():
    for size in (2, 20):
        values = np.array([mmd2(normal(size, 3, 2 * s), normal(size, 3, 2 * s + 1)) for s in range(600)])
        assert abs(values.mean()) < 3 * values.std(ddof=1) / 600 ** .5
    x, y = normal(400, 3), normal(400, 3, 1) + 1  # and for different ones: subsets of all sizes agree on average
    small, large = (kid(x, y, seeded(s), 400, size) for s, size in ((0, 10), (1, 100)))
    assert abs(small[0] - large[0]) < 4 * small[1] / 20 and small[1] > large[1]


def test_subsets_are_drawn_without_replacement_from_the_generator():
    x, y = normal(50, 3), normal(60, 3, 1)
    assert kid(x, y, seeded(5), 10, 20) == kid(x, y, seeded(5), 10, 20) != kid(x, y, seeded(6), 10, 20)
    assert kid(x, y[:50], seeded(), 4, 50) == pytest.approx((mmd2(x, y[:50]), 0), rel=1e-9, abs=1e-12)  # all rows, each once


# ---- whole ----------------------------------------------------------------------------------------------------------

def test_distances_say_what_was_measured_and_do_not_depend_on_batches():
    train, test = load("digits", "train"), load("digits", "test")
    a = distances(train.x.split(300), test.x.split(100), FLAT, seeded(), capacity=10_000, subsets=5, size=500)
    b = distances(iter([train.floats()]), iter(test.floats().split(7)), FLAT, seeded(), subsets=5, size=500)
    assert {k: a[k] for k in ("real", "fake", "features", "standin", "dim", "subsets", "size")} == dict(real=1258, fake=539, features="pixels",
                                                                                                     standin="", dim=64, subsets=5, size=500)
    for k in ("fid", "kid", "kid_sd"): assert a[k] == pytest.approx(b[k], rel=1e-4)
    real, fake = FLAT(train.x), FLAT(test.x)
    assert a["fid"] == pytest.approx(frechet(of(real), of(fake)), rel=1e-9)


def test_more_noise_is_further_away():
    train, test = load("digits", "train"), load("digits", "test")
    real, noise = describe([train.x], FLAT, seeded()), torch.randn(test.x.shape, generator=seeded(1))
    found = [compare(real, describe([(test.floats() + s * noise).clamp(0, 1)], FLAT, seeded()), seeded(), 10, 400) for s in (0, .1, .2, .4)]
    assert all(a[k] < b[k] for a, b in zip(found, found[1:]) for k in ("fid", "kid"))


def test_refusals():
    f = normal(30, 4)
    with pytest.raises(ValueError, match="needs 2 samples at least, got 1"): frechet(of(f), of(f[:1]))
    with pytest.raises(ValueError, match="needs 2 samples at least, got 0"): frechet(of(f), Moments(4))
    with pytest.raises(ValueError, match="have 4 and 3 features"): frechet(of(f), of(f[:, :3]))
    with pytest.raises(ValueError, match=r"expected features \(N, 4\), float, got torch.float64 \(30, 3\)"): Moments(4).update(f[:, :3])
    with pytest.raises(ValueError, match="got torch.int64"): Moments(4).update(f.long())
    for bad in (float("nan"), float("inf")):
        g = f.clone(); g[3, 1] = bad
        for take in (of, Reservoir(4, 9, seeded()).update, lambda g: kid(f, g, seeded(), 2, 30)):
            with pytest.raises(ValueError, match="1 of 30 rows of features hold NaN or infinity"): take(g)
    with pytest.raises(ValueError, match="subset of 31 cannot be drawn from 30 and 30"): kid(f, f, seeded(), 2, 31)
    for size in (0, 1):
        with pytest.raises(ValueError, match="use a size from 2 to 30"): kid(f, f, seeded(), 2, size)
    with pytest.raises(ValueError, match="subsets must be 1 or more, got 0"): kid(f, f, seeded(), 0, 5)
    with pytest.raises(ValueError, match="needs 2 at least, got 0: an iterator can be read only once"): describe([], FLAT, seeded())
    a = describe([torch.rand(9, 1, 32, 32)], FLAT, seeded())
    b = describe([torch.rand(9, 1, 32, 32)], Extractor("others", 64, FLAT.net), seeded())
    with pytest.raises(ValueError, match="seen by two extractors, pixels and others"): compare(a, b, seeded(), 2, 5)


# ---- extractors -----------------------------------------------------------------------------------------------------

def test_images_at_rest_and_in_flight_have_the_same_features_in_any_batches():
    x = load("digits", "test").x
    small = Extractor("pixels", 64, FLAT.net, batch=17)
    assert torch.equal(FLAT(x), FLAT(x.float() / 255)) and torch.equal(FLAT(x), small(x)) and FLAT(x.half().div(255)).dtype == torch.float32
    for bad, sentence in ((x[0], "got torch.uint8 .1, 32, 32."), (x[:0], "N above 0"), (x.long(), "got torch.int64"), (x.float(), "must lie in"),
                          (-x.float() / 255, "must lie in")):
        with pytest.raises(ValueError, match=sentence): FLAT(bad)
    with pytest.raises(ValueError, match="promises 3 features"): Extractor("x", 3, FLAT.net)(x)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    "A weights file of the published shape, its values arbitrary."
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Inception3(aux_logits=False, init_weights=False, num_classes=1008)
    path = tmp_path_factory.mktemp("inception") / FILES[0]
    torch.save(net.state_dict(), path)
    return path


def test_mean_poolings_divide_by_the_places_inside():
    block, h = InceptionA(8, 4).eval(), torch.rand(2, 8, 7, 5, generator=seeded())
    inside = block.branch_pool(F.avg_pool2d(h, 3, 1, 1, count_include_pad=False))
    block.branch_pool = nn.Sequential(Inside(), block.branch_pool)
    assert torch.allclose(block(h)[:, -4:], inside, atol=1e-6)


def test_the_last_block_takes_a_maximum_and_is_otherwise_torchvisions():
    ours, theirs, h = MaxMixed(8).eval(), InceptionE(8).eval(), torch.rand(2, 8, 5, 5, generator=seeded())
    theirs.load_state_dict(ours.state_dict())
    with torch.no_grad(): a, b, pooled = ours(h), theirs(h), ours.branch_pool(F.max_pool2d(h, 3, 1, 1))
    assert torch.equal(a[:, :-192], b[:, :-192]) and torch.equal(a[:, -192:], pooled) and not torch.allclose(a[:, -192:], b[:, -192:])


def test_the_published_network_differs_from_torchvisions_in_its_poolings_alone(weights, monkeypatch):
    monkeypatch.delenv("MIXREPRO_INCEPTION", raising=False)
    e, x = inception(weights), torch.rand(2, 1, 40, 40, generator=seeded())
    assert e.title == "Inception-v3" and e.dim == 2048 and not any(p.requires_grad for p in e.net.parameters())
    state = torch.load(weights, weights_only=True)
    theirs = Inception3(aux_logits=False, init_weights=False, num_classes=1008).eval()
    theirs.load_state_dict(state)
    theirs.fc = nn.Identity()
    resized = 2 * F.interpolate(x, (299, 299), mode="bilinear", align_corners=False).expand(-1, 3, -1, -1) - 1
    with torch.no_grad(): plain = theirs(resized)
    assert not torch.allclose(e(x), plain, rtol=1e-3)
    torch.save({k: v[:1000] if k.startswith("fc.") else v for k, v in state.items()}, other := weights.with_name("other.pth"))
    tv = inception(other)
    assert tv.standin == "the Inception-v3 of published FID" and torch.allclose(tv(x), plain, rtol=1e-4, atol=1e-4 * plain.abs().max())


def test_weights_are_found_where_they_may_be_and_never_downloaded(weights, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: pytest.fail("a download"))
    monkeypatch.delenv("MIXREPRO_INCEPTION", raising=False)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert find_inception() is None
    with pytest.raises(FileNotFoundError, match="not on this disk.*MIXREPRO_INCEPTION.*as a stand-in"): inception()
    (tmp_path / "checkpoints").mkdir()
    os.link(weights, tmp_path / "checkpoints" / FILES[0])
    assert find_inception() == tmp_path / "checkpoints" / FILES[0]
    monkeypatch.setenv("MIXREPRO_INCEPTION", str(weights))
    assert find_inception() == weights
    monkeypatch.setenv("MIXREPRO_INCEPTION", str(tmp_path / "gone.pth"))
    with pytest.raises(FileNotFoundError, match="no Inception-v3 weights at .*gone.pth"): inception()
    assert find_inception(weights) == weights


def test_files_that_are_no_weights_are_named(tmp_path):
    for name, content in {"html.pth": b"<html>", "empty.pth": b""}.items(): (tmp_path / name).write_bytes(content)
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({"fc.weight": torch.zeros(1008, 2)}, tmp_path / "head.pth")
    for name in ("html", "empty", "list", "head"):
        with pytest.raises(ValueError, match=f"{name}.pth does not hold the weights of an Inception-v3"): inception(tmp_path / f"{name}.pth")


def test_a_run_gives_a_named_standin(tmp_path):
    run = train_run(Spec("digits", "erm", "tiny-cnn", epochs=1, n_train=40, batch=20, augment="none"), Store(tmp_path))
    e = learned(run)
    x = load("digits", "test").x[:8]
    net = features_module.open_net(run)
    assert e.title == "features of a tiny-cnn trained on digits by erm (stand-in for Inception-v3)" and e(x).shape == (8, e.dim)
    assert torch.allclose(net.head(e(x)), net(x.float() / 255), atol=1e-5)


def test_weights_are_found_below_ones_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path)); monkeypatch.setenv("MIXREPRO_INCEPTION", "~/w.pth")
    (tmp_path / "w.pth").write_bytes(b"")
    assert find_inception() == find_inception("~/w.pth") == tmp_path / "w.pth"
