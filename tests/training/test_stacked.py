"Many networks at once against one at a time: plain modules, torch's Adam, labels by scikit-learn, scipy and this package's densities."

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import multivariate_normal
from sklearn.neighbors import NearestNeighbors
from torch import nn
from torch.nn import functional as F

from mixrepro.data.tabular import tabular
from mixrepro.methods.densities import fit_gaussian, fit_kde
from mixrepro.training.device import fake_cuda, on_gpu
from mixrepro.training.stacked import (Examples, Labelling, Stacked, stack_accuracy, clean_view, draw_epochs, first_weights, near_parents, layers, mixed_view, batch_shares,
                                       together, train, untrained)

from helpers import seeded

N, BATCH, EPOCHS = 60, 25, 6


@pytest.fixture(scope="module")
def data():
    "Three sets of 60 irises, two columns only so that classes overlap, moved a little so that no two are as near."
    t = tabular("iris", seed=1)
    rows = [torch.randperm(len(t.y_train), generator=seeded(s))[:N] for s in range(3)]
    x = torch.stack([t.x_train[r][:, :2] for r in rows])
    return x + .05 * torch.randn(x.shape, generator=seeded()), torch.stack([t.y_train[r] for r in rows])


def module(row, sizes, relu):
    "A plain network with the weights of a row."
    parts = []
    for W, b in layers(row[None, None], sizes):
        linear = nn.Linear(*W.shape[2:])
        linear.weight.data, linear.bias.data = W[0, 0].T.clone(), b[0, 0, 0].clone()
        parts += [linear, *[nn.ReLU()] * relu]
    return nn.Sequential(*parts[:-1] if relu else parts)


def row_of(net) -> torch.Tensor:
    return torch.cat([t for m in net if isinstance(m, nn.Linear) for t in (m.weight.detach().T.flatten(), m.bias.detach())])


def one_label(kind, gamma, x, y, z, lam, partner, k):
    "The label of each mixture of one batch, float64."
    hot = np.eye(k)[y]
    linear = lam * hot + (1 - lam) * hot[partner]
    if kind == "linear": return linear
    if kind == "logistic":
        rho = 1 / (1 + np.exp(-2 * (lam - .5) / .1))
        return rho * hot + (1 - rho) * hot[partner]
    points, labels = x
    if kind == "gm":
        made = [points[labels == c] for c in range(k)]
        logp = np.stack([multivariate_normal(p.mean(0), np.cov(p.T, bias=True) + 1e-4 * np.eye(p.shape[1])).logpdf(z) for p in made], 1)
        p = np.exp(logp - logp.max(1, keepdims=True))
        gen = p / p.sum(1, keepdims=True)
    else: gen = fit_kde(torch.tensor(points), torch.tensor(labels), k)(torch.tensor(z)).softmax(1).numpy()
    return gamma * gen + (1 - gamma) * linear


def looped(net, x, y, k, draws, kind, removal, gamma, rate, epochs=EPOCHS):
    "One network, batch after batch."
    opt, points = torch.optim.Adam(net.parameters(), lr=rate, weight_decay=1e-4), (x.double().numpy(), y.numpy())
    nearest = NearestNeighbors(n_neighbors=1).fit(points[0])
    for e in range(epochs):
        for at in range(0, len(x), BATCH):
            rows = slice(at, at + BATCH)
            if draws is None: z, target = x[rows], torch.tensor(np.eye(k)[y[rows]])
            else:
                lam, partner = draws.lam[e, at].item(), draws.partner[e, rows] - at
                z = lam * x[rows] + (1 - lam) * x[rows][partner]
                target = torch.tensor(one_label(kind, gamma, points, y[rows].numpy(), z.double().numpy(), lam, partner.numpy(), k))
            if removal:
                own = y[rows]
                near = y[nearest.kneighbors(z.double().numpy(), return_distance=False)[:, 0]]
                keep = (near == own) | (near == own[partner])
                z, target = z[keep], target[keep]
            opt.zero_grad()
            if len(z): F.cross_entropy(net(z), target.float()).backward()
            else: (0 * net(x[:1]).sum()).backward()
            opt.step()
    return row_of(net)


ARMS = [("linear", False, 1.), ("linear", True, 1.), ("logistic", False, 1.), ("logistic", True, 1.), ("gm", False, .6), ("kde", False, 1.), ("gm", False, 0.)]


@pytest.mark.parametrize("sizes, relu", [((2, 3), False), ((2, 16, 16, 3), False), ((2, 16, 16, 3), True)])
def test_every_network_of_a_stack_is_the_one_trained_alone(data, sizes, relu):
    "Three sets, two seeds each, two rates, seven labellings: 84 networks, of which a fourth is trained alone."
    x, y = data
    rngs = [seeded(s) for s in range(6)]
    rates = torch.tensor([.05, .003])
    net = untrained(sizes, rngs, 2 * len(ARMS), relu)
    first = net.flat[:, 0].clone()
    of = Examples(x, y, 3, together([draw_epochs(N, EPOCHS, BATCH, 1., rng) for rng in rngs]))
    densities = {"gm": [fit_gaussian(a, b, 3) for a, b in zip(x, y)], "kde": [fit_kde(a, b, 3) for a, b in zip(x, y)]}
    view = mixed_view(of, [Labelling(kind, removal) for kind, removal, _ in ARMS], torch.tensor([g for *_, g in ARMS]), BATCH, densities)
    train(net, view, rates.repeat_interleave(len(ARMS))[None], EPOCHS, BATCH)
    assert (net.flat != first[:, None]).any(2).all()
    for i, (g, m) in enumerate((g, m) for g in range(6) for m in range(2 * len(ARMS))):
        if i % 4: continue
        kind, removal, gamma = ARMS[m % len(ARMS)]
        draws = type(of.draws)(of.draws.lam[g], of.draws.partner[g])
        alone = looped(module(first[g], sizes, relu), x[g // 2], y[g // 2], 3, draws, kind, removal, gamma, rates[m // len(ARMS)].item())
        assert torch.allclose(net.flat[g, m], alone, atol=1e-5), (g, m, (net.flat[g, m] - alone).abs().max())


def test_a_stack_without_mixing(data):
    x, y = data
    net = untrained((2, 8, 3), [seeded(s) for s in range(3)], 2, True)
    first = net.flat[:, 0].clone()
    of = Examples(x, y, 3, together([draw_epochs(N, 1, BATCH, 1., seeded(s)) for s in range(3)]))
    train(net, clean_view(of, BATCH), torch.tensor([[.05, .003]]), EPOCHS, BATCH)
    for g, m in ((0, 0), (1, 1), (2, 0)):
        alone = looped(module(first[g], (2, 8, 3), True), x[g], y[g], 3, None, "", False, 1., (.05, .003)[m])
        assert torch.allclose(net.flat[g, m], alone, atol=1e-5)
        right = (module(net.flat[g, m], (2, 8, 3), True)(x[g]).argmax(1) == y[g]).double().mean()
        assert stack_accuracy(net, x, y)[g, m] == right


def test_features_and_own_points_against_the_plain_network(data):
    x, _ = data
    net = untrained((2, 8, 4, 3), [seeded(s) for s in range(3)], 2, True)
    plain = module(net.flat[1, 1], (2, 8, 4, 3), True)
    assert torch.allclose(net.features(x)[1, 1], plain[:-1](x[1]), atol=1e-6)
    own = torch.randn(3, 2, 5, 2, generator=seeded())
    assert torch.allclose(net(own)[1, 1], plain(own[1, 1]), atol=1e-6)


@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 10**6))
def test_partners_are_permutations_within_their_batch(n, batch, seed):
    drawn = draw_epochs(n, 3, batch, .5, seeded(seed))
    rows = torch.arange(n)
    assert (drawn.partner.sort(1).values == rows).all() and (drawn.partner // batch == rows // batch).all()
    assert ((0 <= drawn.lam) & (drawn.lam <= 1)).all() and all(len(set(part.tolist())) == 1 for part in drawn.lam[0].split(batch))


def test_every_partner_is_as_likely():
    "4,000 permutations of 5: each cell 800 times, standard deviation 25."
    drawn = draw_epochs(5, 4000, 128, 1., seeded())
    counts = F.one_hot(drawn.partner, 5).sum(0)
    assert (counts - 800).abs().max() < 4.5 * 25.3
    assert abs(drawn.lam[:, 0].mean() - .5) < 4 * .289 / 4000**.5


def test_a_group_does_not_depend_on_the_groups_beside_it(data):
    x, y = data
    def trained(which):
        rngs = [seeded(s) for s in which]
        net = untrained((2, 3), rngs, 1)
        of = Examples(x[which], y[which], 3, together([draw_epochs(N, 3, BATCH, 1., rng) for rng in rngs]))
        return train(net, mixed_view(of, [Labelling()], torch.ones(1), BATCH), torch.full((1, 1), .1), 3, BATCH).flat
    assert torch.allclose(trained([0, 1, 2])[2], trained([2])[0], atol=1e-6)


def test_a_batch_of_which_nothing_stays_moves_by_the_penalty_only():
    none = batch_shares(torch.zeros(1, 4, dtype=torch.bool), 4)
    assert not none.any()
    net = Stacked(first_weights((2, 2), seeded())[None, None].clone(), (2, 2))
    before = net.flat.clone()
    train(net, lambda e: (torch.randn(1, 4, 2, generator=seeded()), torch.zeros(1, 4, 2, 1), none[:, :, None, None]), torch.full((1, 1), .01), 1, 4)
    assert torch.allclose(net.flat, before - .01 * before.sign(), atol=5e-4), "Adam's first step has the size of the rate"


def test_kept_is_by_the_nearest_of_all_training_points(data):
    x, y = data
    of = Examples(x, y, 3, together([draw_epochs(N, 2, BATCH, 1., seeded(s)) for s in range(6)]))
    z = of.mixing(1)(of.each(x))
    mine = near_parents(of, z, 1)
    for g in range(6):
        near = NearestNeighbors(n_neighbors=1).fit(x[g // 2].double().numpy()).kneighbors(z[g].double().numpy(), return_distance=False)[:, 0]
        labels, own, other = y[g // 2][near], y[g // 2], y[g // 2][of.draws.partner[g, 1]]
        assert torch.equal(mine[g], (labels == own) | (labels == other))
    assert not mine.all() and mine.any()


def test_on_a_gpu_nothing_waits():
    with fake_cuda("start") as gpu:
        x, y = torch.rand(2, 12, 3, device="cuda"), (torch.arange(24, device="cuda") % 3).view(2, 12)
        rngs = [torch.Generator("cuda") for _ in range(4)]
        with gpu.during("start"): densities = {"gm": [fit_gaussian(a, b, 3) for a, b in zip(x, y)], "kde": [fit_kde(a, b, 3) for a, b in zip(x, y)]}
        rates, gamma = torch.full((1, 8), .1, device="cuda"), torch.ones(4, device="cuda")
        with gpu.during():
            net = untrained((3, 4, 4, 3), rngs, 8, True)
            of = Examples(x, y, 3, together([draw_epochs(12, 2, 5, 1., rng) for rng in rngs]))
            view = mixed_view(of, [Labelling(), Labelling("logistic", True), Labelling("gm"), Labelling("kde")], gamma, 5, densities)
            train(net, view, rates, 2, 5); train(net, clean_view(of, 5), rates, 1, 5)
            assert on_gpu(net.flat) and on_gpu(stack_accuracy(net, of.each(x), of.each(y)))
