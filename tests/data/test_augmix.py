"AugMix: each operation and each chain against Pillow, the laws of the draws, and images that share nothing but the code."
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy import stats

from helpers import seeded
from mixrepro.data import augmix as module
from mixrepro.data.augmix import (BASIC, DULL, OPERATIONS, Chains, augmix, augmix_by_pillow, cut, draw_chains, draw_shares, laid_over, matrix_of, pillow_operation,
                                  step_of, through)


def pictures(n=24, c=3, h=32, w=32, seed=0):
    "Smooth coloured images, flat ones and noise among them."
    coarse = torch.rand(n, c, 5, 5, generator=seeded(seed))
    x = (255 * torch.nn.functional.interpolate(coarse, (h, w), mode="bicubic")).round().clamp(0, 255).to(torch.uint8)
    x[0], x[1] = 77, torch.randint(256, (c, h, w), dtype=torch.uint8, generator=seeded(seed + 1))
    return x


def arrays(u): return u[:, 0].numpy() if u.shape[1] == 1 else u.permute(0, 2, 3, 1).numpy()


def by_pillow(u, name, levels, t):
    done = [np.asarray(pillow_operation(Image.fromarray(a), name, l, s)) for a, l, s in zip(arrays(u), levels.tolist(), t.tolist())]
    done = torch.tensor(np.stack(done))
    return done[:, None] if u.shape[1] == 1 else done.permute(0, 3, 1, 2)


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(OPERATIONS["all"]), c=st.sampled_from([1, 3]), h=st.integers(8, 40), w=st.integers(8, 40), severity=st.sampled_from([.1, 1., 3., 10.]), seed=st.integers(0, 2 ** 31), pick=st.booleans())
def test_an_operation_is_pillows_at_the_same_level(name, c, h, w, severity, seed, pick):
    "Within one grey level on 99 % of the pixels, interpolated ones within two; on grey levels alone, to the last bit."
    u, n = pictures(24, c, h, w, seed), 24
    d = draw_chains(n, seeded(seed), severity)
    level, t = d.level[0, 0], (d.level * d.sign)[0, 0]
    op = torch.full((n,), OPERATIONS["all"].index(name))
    ours = step_of(u.clone(), op, t, module.matrices_of(op, t, (h, w)), "all", pick)
    apart = (ours.int() - by_pillow(u, name, level, t).int()).abs()
    if name in ("autocontrast", "equalize", "posterize", "solarize"): assert apart.max() == 0
    elif name.startswith("translate"): assert apart.max() == 0
    else: assert (apart <= (1 if name in DULL else 2)).float().mean() >= .99
    assert (apart <= 1).float().mean() >= .98


@pytest.mark.parametrize("ops", OPERATIONS)
@pytest.mark.parametrize("c, h, w", [(3, 32, 32), (1, 16, 16), (3, 20, 27)])
def test_whole_chains_and_the_mixture_are_pillows(ops, c, h, w):
    u = pictures(40, c, h, w)
    d = draw_chains(40, seeded(4), ops=ops)
    theirs = torch.tensor(augmix_by_pillow(arrays(u), d, ops))
    theirs = theirs[:, None] if c == 1 else theirs.permute(0, 3, 1, 2)
    apart = 255 * (laid_over(u / 255, through(u, d, ops), d.weight) - theirs).abs()
    assert (apart <= 1).float().mean() > .99 and apart.mean() < .1
    x = u / 255
    assert torch.equal(augmix(x, seeded(4), ops=ops), laid_over(x, through(u, d, ops), d.weight)), "what is drawn is what is done"


def test_an_operation_that_is_wrong_would_be_seen(monkeypatch):
    monkeypatch.setattr(module, "solarized", lambda u, threshold: torch.where(u < threshold.view(-1, 1, 1, 1), u, 254 - u))
    with pytest.raises(AssertionError): test_whole_chains_and_the_mixture_are_pillows("basic", 3, 32, 32)


@given(st.integers(0, 2 ** 31), st.sampled_from(list(OPERATIONS)), st.integers(5, 33), st.sampled_from([1, 3]))
@settings(max_examples=15, deadline=None)
def test_picked_out_or_not_it_is_the_same_to_the_last_bit(seed, ops, side, c):
    u, d = pictures(9, c, side, side), draw_chains(9, seeded(seed), 10., width=2, depth=2, ops=ops)
    assert torch.equal(through(u, d, ops, pick=True), through(u, d, ops, pick=False))


# the draw ----------------------------------------------------------------------------------------------------------

def unlikely(count, expected):
    "Whether counts depart from their expectation with probability below 1e-4 (chi-square)."
    count, expected = count.double().flatten(), torch.as_tensor(expected).double().flatten()
    return ((count - expected) ** 2 / expected).sum() > stats.chi2.ppf(1 - 1e-4, len(count) - 1)


def test_operations_lengths_levels_signs_and_weights_have_their_law():
    n = 20_000
    d = draw_chains(n, seeded(2))
    done = d.op >= 0
    assert not unlikely(done.sum(0).flatten().bincount(minlength=4)[1:], [n] * 3)
    assert not unlikely(d.op[done].bincount(minlength=9), [done.sum() / 9] * 9)
    assert not unlikely(d.op[0, 0].mul(9).add(d.op[1, 0].clamp(min=0))[d.op[1, 0] >= 0].bincount(minlength=81), [(d.op[1, 0] >= 0).sum() / 81] * 81), "one operation tells nothing of the next"
    assert (done.int().diff(dim=0) <= 0).all(), "a chain begins at its first step"
    assert stats.kstest(d.level.flatten()[::3].numpy(), stats.uniform(.1, 2.9).cdf).pvalue > 1e-4
    assert abs(d.sign.mean()) < 4 / d.sign.numel() ** .5 and set(d.sign.unique().tolist()) == {-1., 1.}
    own = 1 - d.weight.sum(0)
    assert stats.kstest(own.numpy(), "uniform").pvalue > 1e-4
    assert stats.kstest((d.weight / d.weight.sum(0))[1].numpy(), stats.beta(1, 2).cdf).pvalue > 1e-4
    assert abs(np.corrcoef(own, (d.weight / d.weight.sum(0))[0])[0, 1]) < 4 / n ** .5


@pytest.mark.parametrize("severity", [.1, 1., 10.])
def test_levels_go_up_to_the_severity(severity):
    level = draw_chains(4000, seeded(3), severity, width=1, depth=1).level.flatten().numpy()
    assert level.min() >= .1 and level.max() <= severity
    if severity > .1: assert stats.kstest(level, stats.uniform(.1, severity - .1).cdf).pvalue > 1e-4


@pytest.mark.parametrize("alpha", [.01, .5, 1., 4.])
def test_shares_are_dirichlets(alpha):
    w = draw_shares(3, 20_000, alpha, seeded(5))
    assert torch.allclose(w.sum(0), torch.ones(20_000), atol=1e-6) and w.isfinite().all()
    assert (w.mean(1) - 1 / 3).abs().max() < 4 * (2 / 9 / (3 * alpha + 1) / 2e4) ** .5
    if alpha >= .5: assert stats.kstest(w[2].numpy(), stats.beta(alpha, 2 * alpha).cdf).pvalue > 1e-4


def test_no_two_images_of_a_batch_share_a_chain():
    "Over many batches the draws of two images are uncorrelated, whichever they are; in one batch all differ."
    draws = [draw_chains(8, rng) for rng in [seeded(7)] for _ in range(3000)]
    for what in ("op", "level", "sign"):
        rows = torch.stack([getattr(d, what)[0, 0].double() for d in draws]).T
        assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 5 / 3000 ** .5, what
    rows = torch.stack([d.weight[1].double() for d in draws]).T
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 5 / 3000 ** .5
    once = draw_chains(500, seeded(8))
    assert len({tuple(once.level[:, :, i].flatten().tolist()) for i in range(500)}) == 500
    x = pictures(2)[1:].expand(64, -1, -1, -1) / 255
    views = augmix(x, seeded(9)).flatten(1)
    assert len({tuple(v.tolist()) for v in views}) == 64
    apart = (views - views.mean(0)).double()
    assert torch.corrcoef(apart).fill_diagonal_(0).abs().mean() < .5, "not one way for all"


def test_a_chain_that_is_shared_would_be_seen(monkeypatch):
    old = draw_chains
    def shared(n, rng, *args, **kw):
        d = old(n, rng, *args, **kw)
        return Chains(d.op, d.level[..., :1].expand_as(d.level), d.sign, d.weight)
    monkeypatch.setitem(globals(), "draw_chains", shared)
    with pytest.raises(AssertionError): test_no_two_images_of_a_batch_share_a_chain()


# what goes in and out ------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_kinds_of_numbers_layouts_and_ranges(dtype):
    x = (pictures(6) / 255).to(dtype)
    for v in (x, x.to(memory_format=torch.channels_last), x[:, :1], x[..., ::2, :]):
        before = v.clone()
        out = augmix(v, seeded(1))
        assert out.dtype == dtype and out.shape == v.shape and out.min() >= 0 and out.max() <= 1.01 and torch.equal(v, before)
    assert torch.equal(augmix(x, seeded(1)), augmix(x.to(memory_format=torch.channels_last), seeded(1)))


def test_only_the_generator_is_drawn_from():
    x, rng, before = pictures(6) / 255, seeded(1), (torch.get_rng_state(), np.random.get_state()[1].copy())
    first = augmix(x, rng)
    assert torch.equal(first, augmix(x, seeded(1))) and not torch.equal(first, augmix(x, rng))
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()


def test_levels_are_cut_as_python_cuts_them():
    t = torch.linspace(-10, 10, 4001, dtype=torch.float64)
    for most in (4, 30, 256, 32 / 3, 224 / 3): assert cut(t, most).tolist() == [int(v * most / 10) for v in t.tolist()]
    assert matrix_of("rotate", torch.zeros(2, dtype=torch.float64), (7, 9)).tolist() == [[[1, 0, 0], [0, 1, 0]]] * 2


@pytest.mark.parametrize("bad, sentence", [
    (dict(width=0), "needs 1 chain of 1 operation at least, got width 0 and depth 3"), (dict(depth=0), "got width 3 and depth 0"),
    (dict(severity=0.), r"severity must be in \[.1, 10\], got 0.0: AugMix has 3"), (dict(severity=float("nan")), "got nan"),
    (dict(alpha=-1), "alpha must be above 0 and finite, got -1"), (dict(ops="colour"), "unknown set of operations 'colour'")])
def test_what_cannot_be_drawn_is_refused(bad, sentence):
    with pytest.raises(ValueError, match=sentence): augmix(pictures(2) / 255, seeded(), **bad)


def test_what_is_no_image_is_refused():
    with pytest.raises(TypeError, match="divide by 255"): augmix(pictures(2), seeded())
    for shape in ((2, 2, 8, 8), (3, 8, 8)):
        with pytest.raises(ValueError, match="images must have shape"): augmix(torch.rand(shape), seeded())
    assert len(BASIC) == 9 and not set(DULL) & set(BASIC) and augmix(torch.rand(0, 3, 8, 8), seeded()).shape == (0, 3, 8, 8)


def test_another_default_type_is_refused_in_a_sentence():
    torch.set_default_dtype(torch.float64)
    try:
        with pytest.raises(TypeError, match="need torch.float32 as PyTorch's default, got torch.float64: take torch.set_default_dtype back"): augmix(torch.rand(4, 3, 8, 8), seeded(0))
    finally: torch.set_default_dtype(torch.float32)
