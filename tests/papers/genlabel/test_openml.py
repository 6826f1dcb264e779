"One table: folds, choices and networks against one network at a time, scikit-learn and closed forms."

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from sklearn.model_selection import KFold
from torch import nn
from torch.nn import functional as F

from mixrepro.data.tabular import fetch_openml, tabular
from mixrepro.methods.densities import fit_gaussian
from mixrepro.papers.genlabel import openml as O
from mixrepro.papers.genlabel.openml import METHODS, Protocol, by_folds, choose, fit_clean, fit_latent, fold, generative, on_tables, scored, table_of
from mixrepro.training.stacked import draw_epochs, layers
from mixrepro.training.store import Store

P = Protocol(trials=2, folds=3, epochs=5, batch=32, rates=(.1, .01), ratios=(0., .5, 1.), width=8, warm=3)


@pytest.fixture(scope="module")
def iris(): return tabular("iris", seed=3)


@pytest.fixture(scope="module")
def found(iris): return on_tables(replace(P, methods=tuple(METHODS), steps=30), [iris])


def plain(row, sizes, relu=False):
    parts = []
    for W, b in layers(row[None, None], sizes):
        linear = nn.Linear(*W.shape[2:])
        linear.weight.data, linear.bias.data = W[0, 0].T.clone(), b[0, 0, 0].clone()
        parts += [linear, nn.ReLU() if relu else nn.Identity()]
    return nn.Sequential(*parts[:-1])


def steps(net, opt, batches):
    for z, target in batches:
        opt.zero_grad(); F.cross_entropy(net(z), target).backward(); opt.step()


@pytest.mark.parametrize("relu", [False, True])
def test_latent_genlabel_is_two_trainings_one_after_the_other(iris, relu):
    "Vanilla epochs, densities of the second layer's states, a new last layer on frozen features: one network alone."
    p, x, y, k = replace(P, network="fc", relu=relu), iris.x_train, iris.y_train, 3
    ours = fit_latent(p, x[None], y[None], k, torch.tensor(p.ratios), torch.tensor([p.rates]), [1])
    sizes = p.sizes(4, 3)
    for trial, r, g in ((0, 0, 1), (1, 1, 2), (1, 0, 0)):
        rng = torch.Generator().manual_seed(1000 * trial + 1)
        from mixrepro.training.stacked import first_weights
        net = plain(first_weights(sizes, rng), sizes, relu)
        draws = draw_epochs(len(x), p.epochs - p.warm, p.batch, 1., rng)
        head = plain(first_weights(sizes[-2:], rng), sizes[-2:])
        hot, parts = F.one_hot(y, k).float(), [slice(a, a + p.batch) for a in range(0, len(x), p.batch)]
        opt = torch.optim.Adam(net.parameters(), lr=p.rates[r], weight_decay=1e-4)
        for _ in range(p.warm): steps(net, opt, [(x[s], hot[s]) for s in parts])
        below = net[:4] if relu else net[:3]
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            density = fit_gaussian(below(x), y, k)
        opt = torch.optim.Adam(head.parameters(), lr=p.rates[r], weight_decay=1e-4)
        for e in range(p.epochs - p.warm):
            lam, partner = draws.lam[e][:, None], draws.partner[e]
            with torch.no_grad():
                z = below(lam * x + (1 - lam) * x[partner])
                linear = lam * hot + (1 - lam) * hot[partner]
                target = p.ratios[g] * density(z).softmax(1).float() + (1 - p.ratios[g]) * linear
            steps(head, opt, [(z[s], target[s]) for s in parts])
        with torch.no_grad(): theirs = head(below(x))
        mine = ours(x.expand(2, -1, -1))[trial, r * 3 + g]
        assert torch.allclose(mine, theirs, atol=2e-5), (mine - theirs).abs().max()


def test_from_scratch_trains_all_layers(iris):
    p = replace(P, network="fc", scratch=True)
    ours = fit_latent(p, iris.x_train[None], iris.y_train[None], 3, torch.tensor([0., 1.]), torch.tensor([p.rates]), [0])
    warm = fit_clean(p, iris.x_train[None], iris.y_train[None], 3, torch.tensor([p.rates]), [0], p.warm)
    assert ours.flat.shape == (2, 4, warm.flat.shape[2]) and (ours.flat[:, ::2] - warm.flat).abs().amax(2).gt(1e-3).all()
    mixup = O.fit_mixed(p, iris.x_train[None], iris.y_train[None], 3, [METHODS["mixup"]], torch.ones(1), torch.tensor([p.rates]), [0])
    assert torch.allclose(ours.flat[:, [0, 2]], mixup.flat, atol=1e-6), "a ratio of 0 is Mixup"


def test_scores_are_those_of_networks_that_never_saw_the_fold(iris):
    x, y = iris.x_train, iris.y_train
    scores = scored(replace(P, methods=("erm",)), x[None], y[None], 3, [0, 1])["erm"][1]
    train, valid = [*KFold(3).split(x)][1]
    for trial in (0, 1):
        rng = torch.Generator().manual_seed(1000 * trial + 1)
        from mixrepro.training.stacked import first_weights
        first = first_weights((4, 3), rng)
        for r, rate in enumerate(P.rates):
            net = plain(first, (4, 3))
            opt = torch.optim.Adam(net.parameters(), lr=rate, weight_decay=1e-4)
            hot = F.one_hot(y[train], 3).float()
            for _ in range(P.epochs): steps(net, opt, [(x[train][s:s + 32], hot[s:s + 32]) for s in range(0, len(train), 32)])
            assert scores[trial, r, 0] == (net(x[valid]).argmax(1) == y[valid]).double().mean().item()


def test_the_first_of_equal_scores_is_taken():
    s = {"genlabel-gm": np.array([[[[.5, .9, .9], [.9, .2, .1]]]]), "mixup": np.array([[[[.3], [.3]]]])}
    chosen = choose(P, [s, {m: v.copy() for m, v in s.items()}])
    assert chosen["genlabel-gm"].rates == [.1] and chosen["genlabel-gm"].ratios == [.5] and chosen["mixup"].rates == [.1]
    assert chosen["genlabel-gm"].scores == [.9] and chosen["mixup"].ratios == [1.]


def test_by_folds_takes_the_normal_where_both_are_as_good():
    from mixrepro.papers.genlabel.openml import Chosen
    chosen = {"genlabel-gm": Chosen([], [], [.5, .6, .7]), "genlabel-kde": Chosen([], [], [.5, .7, .6])}
    made = by_folds({"genlabel-gm": dict(accuracy=[1, 2, 3]), "genlabel-kde": dict(accuracy=[4, 5, 6])}, chosen)
    assert made["accuracy"] == [1, 5, 3] and made["kde"] == [False, True, False]


def test_what_is_found(found, iris):
    methods = found["methods"]
    assert all(len(v) == 2 for m in methods.values() for v in m.values())
    assert {*METHODS} <= {*methods} and all(0 <= b <= a for m in METHODS for a, b in zip(methods[m]["accuracy"], methods[m]["boundary"])), "an attack gains nothing"
    assert methods["mixup"]["accuracy"] != methods["mixup-again"]["accuracy"] or methods["mixup"]["folds"] != methods["mixup-again"]["folds"]
    zero = [t for t, r in enumerate(methods["genlabel-gm"]["ratio"]) if r == 0 and methods["genlabel-gm"]["rate"][t] == methods["mixup"]["rate"][t]]
    assert all(methods["genlabel-gm"]["accuracy"][t] == methods["mixup"]["accuracy"][t] for t in zero)
    assert (found["n"], found["m"], found["k"]) == (105, 45, 3) and "gm" in methods


def test_the_generative_classifier_knows_the_shares(iris):
    x, y, new = iris.x_train.double().numpy(), iris.y_train.numpy(), iris.x_test.double().numpy()
    rows = np.r_[np.flatnonzero(y != 2), np.flatnonzero(y == 2)[:12]]  # unequal shares
    x, y = x[rows], y[rows]
    logp = [multivariate_normal(x[y == c].mean(0), np.cov(x[y == c].T, bias=True) + 1e-4 * np.eye(4)).logpdf(new) + np.log((y == c).mean()) for c in range(3)]
    theirs = (np.argmax(logp, 0) == iris.y_test.numpy()).mean()
    assert generative(torch.tensor(x).float(), torch.tensor(y), 3, iris.x_test, iris.y_test) == pytest.approx(theirs)


def test_a_split_for_each_trial_is_paired(iris):
    p = replace(P, split="each", methods=("erm", "mixup"))
    both = on_tables(p, [tabular("iris", seed=s) for s in (3, 4)])["methods"]
    alone = on_tables(replace(p, trials=1), [tabular("iris", seed=3)])["methods"]
    assert both["erm"]["accuracy"][0] == alone["erm"]["accuracy"][0] and both["mixup"]["folds"][0] == alone["mixup"]["folds"][0]
    assert len(set(both["gm"]["accuracy"])) <= 2 and len(both["gm"]["accuracy"]) == 2


def test_a_class_of_one_example_and_a_constant_column_warn_once(iris):
    y = torch.where((iris.y_train == 2) & ((iris.y_train == 2).cumsum(0) > 1), 1, iris.y_train)
    x = iris.x_train.clone(); x[:, 1] = 0
    with pytest.warns(UserWarning) as said: on_tables(replace(P, methods=("genlabel-gm", "genlabel-kde")), [replace(iris, x_train=x, y_train=y)])
    texts = [str(w.message) for w in said]
    assert len(texts) == len(set(texts)) <= 6 and any("class 2: one or two examples" in t for t in texts), texts
    assert any("singular covariance" in t for t in texts) and all(t.startswith("iris: ") for t in texts)


@pytest.mark.parametrize("change, said", [(dict(rates=(0.,)), "each of rates must be above 0"), (dict(ratios=(2.,)), r"each of ratios must be in \[0, 1\]"),
                                          (dict(alpha=0), "alpha must be above 0"), (dict(network="mlp"), "unknown network 'mlp'"),
                                          (dict(methods=("mixpu",)), "did you mean 'mixup'"), (dict(folds=1), "folds must be at least 2"),
                                          (dict(rates=()), "rates must hold one number at least"), (dict(ratios=()), "ratios must hold one number at least")])
def test_a_protocol_that_cannot_be_is_refused(change, said):
    with pytest.raises(ValueError, match=said): Protocol(**change)


@pytest.mark.parametrize("change, said", [
    (lambda t: [], "one for each of 2 trials, got 0"), (lambda t: [t] * 3, "one for each of 2 trials, got 3"),
    (lambda t: [t, replace(t, x_train=t.x_train[1:], y_train=t.y_train[1:])], "all splits of iris must have one shape"),
    (lambda t: [replace(t, x_test=t.x_test.index_fill(0, torch.tensor([1]), torch.inf))], "iris has NaN or infinity in the column 'sepal length"),
    (lambda t: [replace(t, x_test=t.x_test[:0], y_test=t.y_test[:0])], "iris has no rows to test on"),
    (lambda t: [replace(t, y_train=t.y_train + 1)], "class numbers 0..2, got 1..3"),
    (lambda t: [replace(t, x_train=t.x_train[:5], y_train=t.y_train[:5])], "3 folds need 6 training rows or more, got 5")])
def test_tables_that_cannot_be_are_refused(iris, change, said):
    with pytest.raises(ValueError, match=said): on_tables(replace(P, methods=("erm",)), change(iris))


def test_a_warm_up_as_long_as_the_run_is_refused(iris):
    with pytest.raises(ValueError, match="warm must be below epochs, of which it is a part, got 5 and 5"):
        on_tables(replace(P, network="fc", warm=5, methods=("genlabel-gm",)), [iris])
    long = replace(P, network="fc", epochs=12, warm=11, rates=(.1,), ratios=(1.,), methods=("no-intrusion", "genlabel-gm"))
    assert on_tables(long, [iris])["removed"] is not None, "the share that is left out is counted in ten epochs"


def test_condition_numbers_many_columns_and_float64(iris):
    "What is hard for densities is found all the same; a table in float64 is the one in float32."
    ask, wide = replace(P, folds=2, rates=(.01,), ratios=(.5,), methods=("erm", "genlabel-gm")), torch.randn(150, 500, generator=torch.Generator().manual_seed(0))
    scaled = replace(iris, x_train=iris.x_train * torch.tensor([1e4, 1., 1., 1.]), x_test=iris.x_test * torch.tensor([1e4, 1., 1., 1.]))
    assert on_tables(ask, [scaled])["methods"]["gm"]["accuracy"][0] > .9
    assert on_tables(ask, [replace(iris, x_train=iris.x_train.double(), x_test=iris.x_test.double())]) == on_tables(ask, [iris])
    with pytest.warns(UserWarning, match="singular covariance"):
        found = on_tables(ask, [replace(iris, x_train=wide[:len(iris.y_train)], x_test=wide[len(iris.y_train):], features=tuple(map(str, range(500))))])
    assert all(0 <= a <= 1 for m in found["methods"].values() for a in m["accuracy"])


def test_a_result_is_computed_once_and_named_by_what_decides_it(tmp_path, monkeypatch):
    calls, store = [], Store(tmp_path)
    monkeypatch.setattr(O, "on_tables", lambda p, tables: calls.append([t.name for t in tables]) or dict(methods={}))
    first = table_of(P, "iris", store)
    assert table_of(P, "iris", store) == first and first.pop("seconds") >= 0 and first == dict(methods={}, encode="drop")
    table_of(replace(P, alpha=2.), "iris", store); table_of(replace(P, split="each"), "iris", store)
    assert calls == [["iris"], ["iris"], ["iris", "iris"]]


def test_a_table_without_a_checksum_is_not_computed(tmp_path, monkeypatch):
    "Its file may change: the result of the old one was shown as that of the new."
    monkeypatch.setattr(O, "on_tables", lambda p, tables: dict(methods={}, n=len(tables[0].y_train)))
    source, root, store = tmp_path / "source", tmp_path / "root", Store(tmp_path / "runs")
    for folder in (source, root / "openml"):
        folder.mkdir(parents=True)
        (folder / "5_mine.csv").write_text("a,class\n" + "1,x\n2,y\n" * 5)
    with pytest.raises(ValueError, match="no SHA-256 of 5_mine.csv, .*: move the files elsewhere, and fetch them with"): table_of(P, 5, store, root)
    (root / "openml/5_mine.csv").unlink()
    fetch_openml(5, root, source)
    assert table_of(P, 5, store, root)["n"] == 7


def test_folds_are_scikit_learns():
    for n, k in ((23, 5), (10, 5), (100, 3)):
        for f, (train, valid) in enumerate(KFold(k).split(range(n))):
            a, b = fold(torch.arange(n)[None], f, k)
            assert a[0].tolist() == train.tolist() and b[0].tolist() == valid.tolist()


def test_adamixup_is_for_logistic_regression_only(iris):
    with pytest.raises(ValueError, match="AdaMixup is a baseline of logistic regression: leave it out"):
        on_tables(replace(P, network="fc", methods=("adamixup",)), [iris])
