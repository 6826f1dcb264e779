"""The streams are what the corruptions' claims rest on: right marginals, and nothing shared between images, counters, seeds or names."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats

from mixrepro.data.streams import alias_table, bits, draw, fold, image_keys, integers, mix_, normal, uniform

ALPHA = 1e-4  # a right implementation fails one of these tests once in ten thousand; the seeds are fixed, so it does not


def keys(n, seed=0, name="test"): return image_keys(seed, name, torch.arange(n))


# --- the hash

def test_mix_is_a_bijection_of_words():
    words = torch.arange(-2**19, 2**19, dtype=torch.int32)
    assert len(mix_(words.clone()).unique()) == len(words)


@pytest.mark.parametrize("what", ["counter", "seed", "index"])
def test_avalanche(what):
    "Flipping one bit of the input flips each output bit half of the time."
    n = 4000
    if what == "counter":
        base = torch.from_numpy(np.random.default_rng(0).integers(-2**31, 2**31, n).astype(np.int32))
        flips = [mix_(base.clone()) ^ mix_(base ^ (1 << b if b < 31 else -2**31)) for b in range(32)]
    elif what == "index":
        index = torch.from_numpy(np.random.default_rng(0).integers(0, 2**31, n))
        word = lambda i: bits(image_keys(0, "test", i), (1,))[:, 0]
        flips = [word(index) ^ word(index ^ (1 << b)) for b in range(31)]
    else:
        word = lambda s: bits(image_keys(s, "test", torch.arange(n)), (1,))[:, 0]
        flips = [word(0) ^ word(1 << b) for b in range(31)]
    share = torch.stack([(f[:, None] >> torch.arange(32) & 1).double().mean(0) for f in flips])
    assert (share - .5).abs().max() < 5.5 * .5 / n**.5


# --- marginals

def test_uniform_law():
    u = uniform(keys(200), (2000,))
    assert u.dtype == torch.float32 and 0 < u.min() and u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > ALPHA
    assert stats.kstest([stats.kstest(row, "uniform").pvalue for row in u.numpy()], "uniform").pvalue > ALPHA  # and per image
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue > ALPHA  # and across images at one counter


def test_every_bit_is_fair():
    words = bits(keys(100), (10_000,)).flatten()
    share = torch.tensor([(words >> b & 1).double().mean() for b in range(32)])
    assert (share - .5).abs().max() < 5 * .5 / len(words)**.5


def test_pairs_of_consecutive_values_fill_the_square():
    u = uniform(keys(500), (400, 2))
    cell = (u * 16).long()
    assert stats.chisquare((cell[..., 0] * 16 + cell[..., 1]).flatten().bincount(minlength=256).numpy()).pvalue > ALPHA


def test_normal_law():
    z = normal(keys(200), (2000,)).double()
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > ALPHA
    n = z.numel()
    assert abs(z.mean()) < 4 / n**.5 and abs(z.var() - 1) < 4 * (2 / n)**.5
    assert abs(stats.skew(z.flatten())) < 4 * (6 / n)**.5 and abs(stats.kurtosis(z.flatten())) < 4 * (24 / n)**.5
    beyond = (z.abs() > 4).sum().item()
    assert stats.binomtest(beyond, n, 2 * stats.norm.sf(4)).pvalue > ALPHA
    first, second = z[:, :1000], z[:, 1000:]  # the two numbers of a pair
    assert abs((first * second).mean()) < 4 / first.numel()**.5 and abs((first**2 * second**2).mean() - 1) < .05


@given(low=st.integers(-1000, 1000), span=st.integers(2, 5000), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_integers_stay_in_range_and_are_even(low, span, seed):
    k = integers(keys(40, seed), (500,), low, low + span)
    assert low <= k.min() and k.max() < low + span
    groups = np.array_split(np.arange(span), min(span, 10))
    seen = torch.bincount((k - low).flatten(), minlength=span).numpy()
    assert stats.chisquare([seen[g].sum() for g in groups], [20_000 * len(g) / span for g in groups]).pvalue > 1e-6


@given(data=st.lists(st.floats(0, 1), min_size=1, max_size=40).filter(lambda p: sum(p) > .1), seed=st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_alias_table_holds_the_law(data, seed):
    "The table's own probabilities, summed exactly, are those asked for; nothing impossible is ever drawn."
    p = np.array([data]) / sum(data)
    table = alias_table(p)[0].numpy().view(np.uint32).astype(np.int64)
    size = len(table)
    b = size.bit_length() - 1
    own = (table >> b) / 2.**(32 - b)
    law = (own + np.bincount(table & size - 1, 1 - own, size)) / size
    assert np.abs(law[:p.shape[1]] - p[0]).max() < 1e-6 and law[p.shape[1]:].sum() < 1e-6
    drawn = draw(keys(20, seed), alias_table(p), torch.zeros(20, 200, dtype=torch.int64)).flatten()
    assert (p[0, drawn.unique()] > 0).all()


# --- independence

def largest_correlation(u):
    "Largest correlation in units of its standard deviation, over all pairs of rows and all cyclic lags (lag 0 of a row with itself left out)."
    n, f = u.shape[1], torch.fft.rfft((u - u.mean(1, keepdim=True)) / u.std(1, keepdim=True))
    worst = 0.
    for i, row in enumerate(f):
        c = torch.fft.irfft(row * f[i:].conj(), n=n).abs() / n**.5
        c[0, 0] = 0
        worst = max(worst, c.max().item())
    return worst


def expected_bound(rows, n): return stats.norm.isf(ALPHA / (rows * (rows + 1) * n))


def test_images_share_nothing_at_any_lag():
    u = uniform(keys(300), (1024,)).double()
    assert largest_correlation(u) < expected_bound(300, 1024)


def test_far_apart_images_share_nothing_at_any_lag():
    u = uniform(image_keys(0, "test", 2**torch.arange(31)), (4096,)).double()
    assert largest_correlation(u) < expected_bound(31, 4096)


def test_the_correlation_test_finds_a_shifted_copy():
    "The fault of a single additive key: right marginals, and each image is its neighbour moved along. The two tests above must see it."
    counter, image = torch.arange(1024, dtype=torch.int32), torch.arange(300, dtype=torch.int32)[:, None]
    faulty = (mix_((counter + 37 * image) * -1640531527) >> 8 & 0xFFFFFF).double() / 2**24
    assert stats.kstest(faulty[0].numpy(), "uniform").pvalue > ALPHA
    assert largest_correlation(faulty) > 3 * expected_bound(300, 1024)


def test_no_word_sequence_of_one_image_occurs_in_another():
    "Shared runs, at any shift, would show as a word seen twice far more often than by chance."
    words = bits(keys(1000), (2000,)).flatten()
    pairs = len(words)**2 / 2 / 2**32  # expected coincidences of random words
    twice = len(words) - len(words.unique())
    assert twice < pairs + 6 * pairs**.5


def test_seeds_names_and_folds_share_nothing():
    pairs = itertools.product((0, 1, 2, -1, 10**12), ("fog/1", "fog/2", "snow/1"))
    rows = [uniform(image_keys(s, name, torch.tensor([5])), (2048,))[0].double() for s, name in pairs]
    k = keys(1)
    rows += [uniform(k, (2048,))[0].double()] + [uniform(fold(k, p), (2048,))[0].double() for p in range(12)]
    assert largest_correlation(torch.stack(rows)) < expected_bound(len(rows), 2048)


def test_counters_of_neighbouring_images_are_independent_in_pairs():
    "The joint law of the same counter in images i and i + 1."
    cell = (uniform(keys(501), (800,)) * 16).long()
    assert stats.chisquare((cell[:-1] * 16 + cell[1:]).flatten().bincount(minlength=256).numpy()).pvalue > ALPHA


# --- one image, whatever its company

@given(n=st.integers(1, 40), which=st.integers(0, 39), size=st.integers(1, 77), seed=st.integers(-5, 5))
@settings(max_examples=40, deadline=None)
def test_an_image_does_not_see_its_batch(n, which, size, seed):
    which %= n
    many, one = image_keys(seed, "x", torch.arange(n)), image_keys(seed, "x", torch.tensor([which]))
    for f in (bits, uniform, normal):
        assert torch.equal(f(many, (size,))[which], f(one, (size,))[0])


@pytest.mark.cuda
@pytest.mark.parametrize("f", [bits, uniform, normal])
def test_a_gpu_gives_the_same_bits(f):
    assert torch.equal(f(keys(64), (3, 33, 7)), f(keys(64).cuda(), (3, 33, 7)).cpu())


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"\[0, 2\*\*31\)"): image_keys(0, "x", torch.tensor([2**31]))
    with pytest.raises(ValueError, match="shape"): image_keys(0, "x", torch.zeros(2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="empty"): integers(keys(2), (3,), 5, 5)
    with pytest.raises(ValueError, match="summing to 1"): alias_table(np.array([[.2, .2]]))
