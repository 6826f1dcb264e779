"GenMix: roots against SciPy, both conditions on every point, counts, the GAN's inversion against a grid, runs in the store."

import warnings
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from scipy import stats
from scipy.optimize import brentq
from scipy.special import logit
from torch import nn
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.methods import genmix as G, genmix_gan as A
from mixrepro.methods.catalogue import method
from mixrepro.methods.densities import fit_gaussian, fit_kde
from mixrepro.networks.cgan import PointGAN
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, open_net


def classes(k, d, seed, n=60):
    rng = seeded(seed)
    mean, turn = 3 * torch.randn(k, d, generator=rng), torch.randn(k, d, d, generator=rng)
    y = torch.arange(k * n) % k
    return (mean[y] + (turn[y] @ torch.randn(k * n, d, 1, generator=rng))[..., 0]).double(), y


def laws(x, y, k): return [stats.multivariate_normal(x[y == c].mean(0), np.cov(x[y == c].T, bias=True) + 1e-4 * np.eye(x.shape[1])) for c in range(k)]


@settings(max_examples=25, deadline=None)
@given(d=st.integers(2, 5), seed=st.integers(0, 999), lam=st.floats(.01, .99))
def test_the_root_along_a_line_is_scipys(d, seed, lam):
    x, y = classes(2, d, seed)
    density, (p, q) = fit_gaussian(x, y, 2), laws(x, y, 2)
    start, way = x[:6], x[1:7] - x[:6]
    t = G.gaussian_root(density, start, way, torch.tensor([[0, 1]]).expand(6, 2), lam)
    for s, w, root in zip(start.numpy(), way.numpy(), t.tolist()):
        g = lambda t: q.logpdf(s + t * w) - p.logpdf(s + t * w) - logit(lam)
        if root == root: assert abs(g(root)) < 1e-6 * max(1, abs(g(0)), abs(g(1)))
        if g(0) * g(1) < 0: assert abs(root - brentq(g, 0, 1, xtol=1e-13)) < 1e-7


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), lam=st.floats(.02, .98))
def test_equal_covariances_have_a_linear_root(seed, lam):
    rng = seeded(seed)
    turn = torch.randn(3, 3, generator=rng, dtype=torch.float64)
    S, mean = turn @ turn.T + torch.eye(3), torch.randn(2, 3, generator=rng, dtype=torch.float64) * 4
    density = G.Gaussian(torch.full((2,), 9.).double(), mean, S.expand(2, 3, 3))
    w = mean[1] - mean[0]
    D2 = w @ torch.linalg.solve(S, w)
    t = G.gaussian_root(density, mean[:1], w[None], torch.tensor([[0, 1]]), lam)
    assert torch.allclose(t, .5 + logit(lam) / D2, rtol=1e-6, atol=1e-8)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.floats(-50, 50)] * 3))
def test_the_nearest_root_is_numpys(c):
    A_, B, C = c
    t = G.nearest_root(*(torch.tensor([v], dtype=torch.float64) for v in c)).item()
    disc = B * B - 4 * A_ * C
    if abs(A_) < 1e-3 or abs(disc) < 1e-6 or abs(B) < 1e-3: return
    if disc < 0: assert t != t; return
    roots = np.roots([A_, B, C]).real
    assert min(abs(t - r) for r in roots) < 1e-6 * (1 + abs(roots).max()) and abs(t - .5) <= min(abs(roots - .5)) + 1e-6 * (1 + abs(roots).max())


@pytest.mark.parametrize("kind", ("gm", "kde", "gm-spherical"))
def test_every_point_meets_the_ratio_and_intrudes_nowhere(kind):
    train = load("shape-y", "train").subset(120)
    x = train.x.flatten(1).double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        made = G.GenMix(density=kind, lams=(.2, .5), eps=.02, n_aug=15).prepare(train, seeded()).made.drawn
    assert len(made) > 90 and made.found.max() == 15 and made.found.shape == (2, 6)
    if kind == "gm": log_p = torch.tensor(np.stack([p.logpdf(made.x) for p in laws(x, train.y, 3)], 1))
    elif kind == "kde":
        kernels = [stats.gaussian_kde(x[train.y == c].T.numpy()) for c in range(3)]
        log_p = torch.tensor(np.stack([k.logpdf(made.x.T.numpy()) for k in kernels], 1))
    else: log_p = G.DENSITIES[kind](x, train.y, 3)(made.x)
    own = log_p.gather(1, made.pair)
    share = own.softmax(1)[:, 1]
    assert ((share - made.lam).abs() <= .02 + 1e-3).all()
    third = log_p.scatter(1, made.pair, -torch.inf).amax(1)
    assert (own.amin(1) >= third - 1e-2).all()
    rounding = 1e-3 if kind == "kde" else 1e-6  # SciPy's kernels have no ridge
    assert torch.allclose(made.y.gather(1, made.pair), own.softmax(1), atol=rounding) and torch.allclose(made.y.sum(1), torch.ones(len(made)).double())


def test_made_points_have_the_law_of_a_plain_loop_of_algorithm_4():
    "GenMix note, algorithm 4, GM case: a line is moved by a draw of its first class, its point found and kept or not."
    rng = np.random.default_rng(7)
    clouds = zip((.6, 1., .5), ([-1, 0], [1, .4], [0, 1.6]))
    x, y, lam = np.concatenate([s * rng.normal(size=(60, 2)) + m for s, m in clouds]), np.repeat([0, 1, 2], 60), .4
    p, way = laws(x, y, 3), x[y == 1].mean(0) - x[y == 0].mean(0)
    start = p[0].rvs(4_000, random_state=rng)
    def gap(t): return p[1].logpdf(start + t * way) - p[0].logpdf(start + t * way) - logit(lam)
    c, up, upup = gap(0), gap(1), gap(2)
    a = (upup - 2 * up + c) / 2
    b, roots = up - c - a, []
    for coefficients in zip(a, b, c):
        real = [r.real for r in np.roots(coefficients) if abs(r.imag) < 1e-12]
        roots.append(min(real, key=lambda t: abs(t - .5), default=np.nan))
    at = start + np.array(roots)[:, None] * way
    at = at[~np.isnan(at[:, 0])]
    log_p = np.stack([law.logpdf(at) for law in p], 1)
    want = at[log_p[:, :2].min(1) >= log_p[:, 2]]
    density = fit_gaussian(torch.tensor(x), torch.tensor(y), 3)
    find = G.by_density(density, partial(G.lines_by_means, *G.means_of(density)), seeded(1))
    made = G.genmix(find, 3, 1500, (lam,), .05, 20)
    found = made.x[(made.pair == torch.tensor([0, 1])).all(1)].numpy()
    assert len(found) == 1500 and .3 < len(want) / len(start) < .95, "some are rejected"
    for direction in ([1, 0], [0, 1], [1, 2]): assert stats.ks_2samp(found @ direction, want @ direction).pvalue > 1e-3


@given(lam=st.floats(.05, .95), eps=st.floats(.001, .04), off=st.floats(-2, 2), third=st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_the_margin_and_the_intrusion_test_have_the_notes_edges(lam, eps, off, third):
    "A point off by more than eps is left out, and so is one at which a third class is likelier than either of the two."
    share = lam + off * eps
    assume(0 < share < 1 and abs(abs(off) - 1) > 1e-3 and abs(third) > 1e-3)
    low = np.log(min(share, 1 - share))
    log_p = torch.tensor([[np.log(1 - share), low + third, np.log(share)]], dtype=torch.float64)
    met, clear = G.accepted(log_p, torch.tensor([[0, 2]]), lam, eps)
    assert met.item() == (abs(off) < 1) and clear.item() == (third < 0)


def test_counts_add_up_and_a_pair_without_points_is_told():
    x = torch.cat([.3 * torch.randn(40, 2, generator=seeded(), dtype=torch.float64) + torch.tensor([at, 0.]) for at in (-3., 0., 3.)])
    density = fit_gaussian(x, torch.arange(3).repeat_interleave(40), 3)
    with pytest.warns(UserWarning, match="2 of 6 pairs of classes have fewer than 10 made points"):
        made = G.genmix(G.by_density(density, partial(G.lines_by_means, *G.means_of(density)), seeded()), 3, 10, (.5,), .05, 4)
    said = made.report()
    assert made.found[0].tolist() == [10, 0, 10, 10, 0, 10] and said["kept"] == 40 and said["in a third class"] >= 2 * 4 * 20
    assert said["tried"] == 4 * 6 * 20 and said["moved far"] == 0


@pytest.mark.parametrize("lams, said", [((), "lams must hold one share at least"), ((0.,), r"lambda must be in \(0, 1\), got 0.0"), ((.5, 1.), "got 1.0"), ((-.1,), "got -0.1"), ((float("nan"),), "got nan")])
def test_a_grid_of_shares_outside_is_refused_before_anything_is_looked_for(lams, said):
    def find(*_): raise AssertionError("nothing is to be looked for")
    with pytest.raises(ValueError, match=said): G.genmix(find, 2, 3, lams, .05, 1)


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=4), st.integers(0, 6), st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_no_pair_gets_more_than_its_share(rows, most, had):
    ok, before = torch.tensor(rows), torch.full((len(rows),), had)
    kept = G.first_of(ok, before, most)
    assert (kept & ~ok).sum() == 0 and (kept.sum(1) == torch.minimum(ok.sum(1), (most - before).clamp_min(0))).all()
    for row, mine in zip(rows, kept.tolist()):
        at = [i for i, v in enumerate(row) if v]
        assert [i for i, v in enumerate(mine) if v] == at[:sum(mine)]


def test_a_class_without_examples_gets_no_points():
    x, y = classes(2, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        density = fit_kde(x, y, 3)
        made = G.genmix(G.by_density(density, partial(G.lines_by_examples, x, y, 3), seeded()), 3, 5, (.5,), .05, 2)
    assert made.found[0].tolist() == [5, 0, 0, 5, 0, 0] and 2 not in made.pair


# ---- with a GAN ---------------------------------------------------------------------------------------------------

class Line(nn.Module):
    "A generator whose manifolds are segments y = +-1: distances are known."
    classes, latent, shape = 2, 1, (2, 1, 1)
    def draw(self, n, rng): return 2 * torch.rand(n, 1, generator=rng) - 1
    def make(self, z, y): return torch.stack([3 * z[:, 0] - z[:, 0] ** 3, 2. * y - 1], 1)[..., None, None]


def test_inversion_of_a_known_manifold():
    x = 3 * torch.randn(200, 2, generator=seeded())
    y = torch.arange(200) % 2
    found = A.invert(Line(), x, y, A.nearest_starts(A.pool_of(Line(), 64, seeded()), x, y, 3))
    near = torch.stack([x[:, 0].clamp(-2, 2), 2. * y - 1], 1)
    assert torch.allclose(found.distance, (x - near).norm(dim=1), atol=5e-3) and (found.distance >= (x - near).norm(dim=1) - 1e-5).all()
    assert (found.left < .05).double().mean() > .95 and found.z.abs().max() <= 1
    early = A.invert(Line(), x, y, A.pool_of(Line(), 64, seeded())[0][0][:2].expand(200, -1, -1), steps=4)
    assert (early.left > .05).double().mean() > .2, "what has not come to rest is seen"


@pytest.mark.parametrize("energy", A.ENERGIES)
@pytest.mark.parametrize("lam", (.2, .5, .7))
def test_a_point_is_moved_to_the_wanted_ratio(energy, lam):
    x, s = torch.rand(30, 2, generator=seeded(), dtype=torch.float64), torch.tensor(.2, dtype=torch.float64)
    m = torch.tensor([[0., 0.], [1., .3]], dtype=torch.float64).expand(30, 2, 2)
    at = A.moved(x, m, lam, s, energy, steps=60)
    d = (at[:, None] - m).norm(dim=2)
    log_p = -(d / s if energy == "distance" else d**2 / (2 * s**2))
    assert ((log_p.softmax(1)[:, 1] - lam).abs() < 1e-6).all()


def test_points_of_the_known_manifolds_lie_where_they_should():
    "With the energy d/s: d_0 - d_1 = s logit(lambda), by the segments themselves."
    data = torch.cat([torch.stack([4 * torch.rand(30, generator=seeded(c)) - 2, torch.full((30,), 2. * c - 1)], 1) for c in range(2)])
    y = torch.arange(2).repeat_interleave(30)
    ask, s = A.GenMixGAN(n_aug=20), torch.tensor(.1)
    find = A.by_gan(A.Inverter(Line(), s, ask, seeded()), data, y, 2, seeded(1))
    made = G.genmix(find, 2, 20, (.3, .5), .05, 3)
    d = torch.stack([(made.x - torch.stack([made.x[:, 0].clamp(-2, 2), torch.full((len(made),), 2. * c - 1)], 1)).norm(dim=1) for c in range(2)], 1)
    own = d.gather(1, made.pair)
    share = torch.sigmoid((own[:, 0] - own[:, 1]) / s)
    assert len(made) == 80 and ((share - made.lam).abs() < .12).all() and made.report()["found nothing"] < 10


def test_what_does_not_settle_is_left_out_and_told():
    data, y = torch.randn(20, 2, generator=seeded()), torch.arange(20) % 2
    ask = A.GenMixGAN(n_aug=5, settled=1e-12, descent=4)
    find = A.by_gan(A.Inverter(Line(), torch.tensor(.1), ask, seeded()), data, y, 2, seeded(1))
    with pytest.warns(UserWarning, match="2 of 2 pairs of classes have fewer than 5 made points .0 and 1 at lambda = 0.5: 0; 1 and 0"):
        made = G.genmix(find, 2, 5, (.5,), .05, 2)
    assert len(made) == 0 and made.report()["found nothing"] == made.report()["tried"] == 40


@pytest.mark.parametrize("end", [False, True])
def test_neither_the_search_at_the_start_nor_the_one_at_the_end_may_be_unsettled(end):
    "Both ask the same inverter: the start for two classes of each point, the end for all of them."
    data, y, asked = torch.randn(20, 2, generator=seeded()), torch.arange(20) % 2, []
    class Once(A.Inverter):
        def __call__(self, x, c):
            found, sure = super().__call__(x, c)
            asked.append(len(x))
            return found, torch.ones_like(sure) if (len(asked) == 2) != end else torch.zeros_like(sure)
    find = A.by_gan(Once(Line(), torch.tensor(.1), A.GenMixGAN(n_aug=5), seeded()), data, y, 2, seeded(1))
    assert not find(G.ordered_pairs(2), 5, .5).valid.any() and asked == [20, 20]


def test_a_gan_is_asked_about_no_nan():
    train = load("shape-v", "train").subset(20)
    with pytest.raises(ValueError, match="1 of 20 rows of the examples hold NaN"):
        A.GenMixGAN().prepare(replace(train, x=train.x.index_fill(0, torch.tensor([3]), torch.nan)), seeded(), gan=PointGAN(train.shape, 2))


def test_without_points_it_is_plain_training():
    train = load("shape-v", "train").subset(20)
    with pytest.warns(UserWarning, match="have fewer than 10 made points"): ready = A.GenMixGAN(settled=1e-12, descent=4, rounds=1).prepare(train, seeded(), gan=Line())
    net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    assert torch.equal(ready.loss(net, train.x, train.y, seeded()), F.cross_entropy(net(train.x), F.one_hot(train.y, 2).float()))


def test_gradients_of_a_joint_step_are_each_networks_own():
    net, x, y = PointGAN((2, 1, 1), 2, width=8), torch.rand(10, 2, 1, 1, generator=seeded()), torch.arange(10) % 2
    net.eval()  # the power iteration stands still
    A.ClassGAN(every=1).loss(net, x, y, seeded(3)).backward()
    joint = {k: p.grad.clone() for k, p in net.named_parameters()}
    net.zero_grad(); fake = net.make(net.draw(10, seeded(3)), y)
    judge = F.relu(1 - net(x, y)).mean() + F.relu(1 + net(fake.detach(), y)).mean()
    fool = -net(fake, y).mean()
    for name, p in net.named_parameters():
        mine = torch.autograd.grad(fool if name.startswith("G.") else judge, p, retain_graph=True)[0]
        assert torch.allclose(joint[name], mine, atol=1e-6), name
    net.zero_grad(); net.done = 1; A.ClassGAN(every=2).loss(net, x, y, seeded(3)).backward()
    assert all((p.grad is None) == k.startswith("G.") for k, p in net.named_parameters())


def test_a_run_trains_its_gan_and_both_stay_in_the_store(tmp_path):
    store = Store(tmp_path)
    spec = Spec("shape-ket", "genmix-gan", "mlp", epochs=2, batch=20, augment="none", split="shape-ket-l20-v0", looks=1,
                method_args=dict(gan_epochs=3, gan_batch=20, descent=6), network_args=dict(widths=[8], norm=False))
    run = train_run(spec, store, "cpu")
    gan = spec.needs["gan"]
    assert run.done and store.run(gan).done and {r.spec.method for r in store.runs()} == {"genmix-gan", "class-gan"}
    assert (gan.split, gan.seed, gan.beta1, gan.schedule) == (spec.split, spec.seed, 0., "cosine")
    net = open_net(store.run(gan))
    assert isinstance(net, PointGAN) and net.done == 3, "as many steps as it was asked for"
    assert method("genmix").needs() == {}


def test_a_batch_that_is_too_small_for_a_made_point_says_so():
    "6 points for 300 examples: a batch of 20 had none, and GenMix was ERM."
    train = load("digits-7-9", "train")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = method("genmix", density="gm-spherical", eps=1.).prepare(train, seeded())
    made = made.ready(**vars(made.made) | dict(per=6 / 300))
    net = nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(train.shape)), train.k))
    x, y = train.floats(torch.arange(40)), train.y[:40]
    with pytest.warns(UserWarning, match="0.02 made points for an example, of which a batch of 20 gets none, .* take batches of 26 or more, or a larger n_aug"):
        made.loss(net, x[:20], y[:20], seeded())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made.loss(net, x, y, seeded())
