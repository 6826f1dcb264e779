"Log-densities of classes against scipy and scikit-learn, in float64; what cannot be fitted is said."

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import special, stats
from sklearn.discriminant_analysis import QuadraticDiscriminantAnalysis
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.images import ImageSet
from mixrepro.methods import densities as D
from mixrepro.metrics.accuracy import accuracy, predict
from mixrepro.metrics.attacked import FGSM, attacked


def clouds(n, d, k, seed, condition=1.):
    "Classes with covariances of a given condition, each with its own mean, and far from the origin."
    rng = np.random.default_rng(seed)
    x, y = np.empty((k * n, d)), np.repeat(np.arange(k), n)
    for c in range(k):
        turn = np.linalg.qr(rng.normal(size=(d, d)))[0]
        x[y == c] = rng.normal(size=(n, d)) * np.logspace(0, -np.log10(condition) / 2, d) @ turn.T + rng.normal(size=d) + 10
    return x, y


def both(x, y): return torch.tensor(x), torch.tensor(y)


@given(seed=st.integers(0, 9999), d=st.integers(1, 8), k=st.integers(2, 4), power=st.floats(0, 8), correction=st.sampled_from([0, 1]))
@settings(max_examples=40, deadline=None)
def test_normal_densities_are_scipys(seed, d, k, power, correction):
    x, y = clouds(20, d, k, seed, 10. ** power if d > 1 else 1.)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = D.fit_gaussian(*both(x, y), k, ridge=0., correction=correction)(torch.tensor(x)).numpy()
    for c in range(k):
        theirs = stats.multivariate_normal(x[y == c].mean(0), np.atleast_2d(np.cov(x[y == c].T, ddof=correction)))
        assert np.allclose(found[y == c, c], theirs.logpdf(x[y == c]), rtol=1e-6, atol=1e-6)  # where a class lies
        assert np.allclose(found[:, c], theirs.logpdf(x), rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 9999), d=st.integers(1, 5), power=st.floats(0, 8), n=st.integers(8, 40))
@settings(max_examples=25, deadline=None)
def test_kernel_densities_are_scipys(seed, d, power, n):
    x, y = clouds(n, d, 2, seed, 10. ** power if d > 1 else 1.)
    keep = np.r_[:n, n:2 * n - 3]  # classes of two sizes
    x, y = x[keep], y[keep]
    found = D.fit_kde(*both(x, y), 2, ridge=0.)(torch.tensor(x)).numpy()
    for c in (0, 1): assert np.allclose(found[y == c, c], stats.gaussian_kde(x[y == c].T).logpdf(x[y == c].T), rtol=1e-6, atol=1e-6)


@given(seed=st.integers(0, 9999), d=st.integers(2, 6), k=st.integers(2, 4))
@settings(max_examples=20, deadline=None)
def test_posteriors_are_those_of_quadratic_discriminant_analysis(seed, d, k):
    x, y = clouds(30, d, k, seed)
    keep = (y > 0) | (np.arange(len(y)) % 3 == 0)  # a class that is rarer
    x, y = x[keep], y[keep]
    for priors in (np.full(k, 1 / k), None):
        theirs = QuadraticDiscriminantAnalysis(priors=priors, store_covariance=True).fit(x, y)
        over = int(np.allclose(theirs.covariance_[0], np.cov(x[y == 0].T)))
        ours = D.fit_gaussian(*both(x, y), k, ridge=0., correction=over)
        made = D.posteriors(ours(torch.tensor(x)), ours.log_prior if priors is None else None)
        assert np.allclose(made.numpy(), theirs.predict_proba(x), atol=1e-6)
    assert np.array_equal(D.classify(ours, torch.tensor(x)).numpy(), theirs.predict(x)), "the classifier has priors"


@pytest.mark.parametrize("fit", [D.fit_gaussian, D.fit_kde])
def test_the_generative_classifier_is_a_network_of_known_posteriors(fit):
    "Measured and attacked as any other, with scikit-learn's posteriors where it has them."
    x, y = clouds(40, 4, 3, 5)
    keep = (y > 0) | (np.arange(len(y)) % 4 == 0)
    x, y = torch.tensor(x[keep]), torch.tensor(y[keep])
    x = ((x - x.amin(0)) / (x.amax(0) - x.amin(0))).view(-1, 1, 2, 2)
    net = D.GenerativeClassifier(fit(x.flatten(1), y, 3, ridge=0.))
    z = net(x)
    if fit is D.fit_gaussian:
        theirs = QuadraticDiscriminantAnalysis(store_covariance=True).fit(x.flatten(1), y)
        over = int(np.allclose(theirs.covariance_[0], np.cov(x[y == 0].flatten(1).T)))
        assert np.allclose(D.GenerativeClassifier(D.fit_gaussian(x.flatten(1), y, 3, ridge=0., correction=over))(x).exp(), theirs.predict_proba(x.flatten(1)), atol=1e-6)
    assert torch.equal(z.argmax(1), D.classify(net.density, x.flatten(1))) and torch.allclose(z.exp().sum(1), torch.ones(len(x), dtype=z.dtype))
    assert torch.equal(pickle.loads(pickle.dumps(net))(x), z) and not list(net.parameters())
    seen = ImageSet((255 * x).round().byte(), y, tuple("abc"), "points", "test")
    assert abs(accuracy(predict(net, seen), y) - (z.argmax(1) == y).double().mean()) < .05
    (got,) = attacked([net], seen, {"a": FGSM(.1)})
    leaf = seen.floats().double().requires_grad_()
    F.nll_loss(net(leaf), y, reduction="sum").backward()
    worst = (leaf + .1 * leaf.grad.sign()).clamp(0, 1)
    assert abs(got["accuracy"]["a"] - (net(worst).argmax(1) == y).double().mean()) < .03 and got["accuracy"]["a"] < 1


def test_the_ridge_is_the_codes():
    x, y = clouds(12, 5, 2, 0)
    for c in (0, 1):
        mine = x[y == c]
        theirs = stats.multivariate_normal(mine.mean(0), np.cov(mine.T, ddof=0) + 1e-4 * np.eye(5)).logpdf(x)
        assert np.allclose(D.fit_gaussian(*both(x, y), 2)(torch.tensor(x))[:, c], theirs, rtol=1e-9)
        factor = len(mine) ** (-1 / 9)
        S = factor ** 2 * (np.cov(mine.T) + 1e-8 * np.eye(5))
        logs = np.array([stats.multivariate_normal(m, S).logpdf(x) for m in mine])
        theirs = special.logsumexp(logs, 0) - np.log(len(mine))
        assert np.allclose(D.fit_kde(*both(x, y), 2)(torch.tensor(x))[:, c], theirs, rtol=1e-9)


@pytest.mark.parametrize("shape", D.SHAPES)
@pytest.mark.parametrize("n", [600, 40])
def test_five_hundred_dimensions(shape, n):
    "With more examples than dimensions and with fewer; far away every density is 0, and the posterior still says something."
    rng = seeded(1)
    y = torch.arange(n) % 2
    x = torch.randn(n, 500, generator=rng, dtype=torch.float64) + .3 * y[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        density = D.fit_gaussian(x, y, 2, shape)
    for z in (x, 100 * x):
        log_p = density(z)
        made = D.posteriors(log_p)
        assert log_p.isfinite().all() and made.isfinite().all() and torch.allclose(made.sum(1), torch.ones(n).double())
    assert density(100 * x).exp().max() == 0 and (density(x).argmax(1) == y).float().mean() > .9


FITS = {"full": D.fit_gaussian, "spherical": lambda *a, **k: D.fit_gaussian(*a, shape="spherical", **k), "kde": D.fit_kde}


@pytest.mark.parametrize("name", FITS)
def test_small_classes_are_regularised_and_said(name):
    rng = seeded(2)
    x, y = torch.randn(43, 3, generator=rng), torch.tensor([0] * 20 + [1] * 20 + [2] * 2 + [3])
    with pytest.warns(UserWarning) as said: density = FITS[name](x, y, 5)
    words = {str(w.message) for w in said}
    assert words == {"classes 2, 3: one or two examples, so the covariance is the one within all classes",
                     "class 4: no examples, so the density is 0 there"}
    log_p = density(x)
    assert log_p[:, :4].isfinite().all() and (log_p[:, 4] == -torch.inf).all()
    made = D.posteriors(log_p, density.log_prior)
    assert made.isfinite().all() and (made[:, 4] == 0).all() and D.posteriors(log_p)[42].argmax() == 3
    if name == "full":
        within = sum(((x[y == c] - x[y == c].mean(0)).double().T @ (x[y == c] - x[y == c].mean(0)).double()) for c in range(4)) / 43
        theirs = stats.multivariate_normal(x[42].numpy(), within.numpy() + 1e-4 * np.eye(3)).logpdf(x.numpy())
        assert np.allclose(log_p[:, 3], theirs, rtol=1e-6)


def test_one_point_a_class():
    x = torch.randn(4, 3, generator=seeded())
    with pytest.warns(UserWarning, match="one or two examples"): log_p = D.fit_gaussian(x, torch.arange(4), 4)(x)
    assert torch.equal(log_p.argmax(1), torch.arange(4)) and log_p.isfinite().all()


def test_a_singular_covariance_is_said_and_a_constant_column_refused():
    x, y = torch.randn(30, 3, generator=seeded()).double(), torch.arange(30) % 2
    line = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)
    for fit in (D.fit_gaussian, D.fit_kde):
        for ridge in (0., 1e-4):
            with pytest.warns(UserWarning, match="classes 0, 1: a singular covariance, so its smallest"):
                log_p = fit(line, y, 2, ridge=ridge)(line)
            assert log_p.isfinite().all()
    same = torch.cat([x, torch.ones(30, 1)], 1)
    for fit in FITS.values():
        with pytest.raises(ValueError, match=r"columns \[3\] are constant: leave them out, or give a ridge above 0"): fit(same, y, 2, ridge=0.)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.allclose(D.posteriors(D.fit_gaussian(same, y, 2)(same)), D.posteriors(D.fit_gaussian(x, y, 2)(x))), "says nothing of the classes"


@pytest.mark.parametrize("change, error, message", [
    (dict(k=1), ValueError, "a posterior needs two classes or more, got k = 1"), (dict(y=torch.tensor([0, 1, 2])), ValueError, "0..1, got 0..2"),
    (dict(x=torch.tensor([[0., 1], [torch.nan, 0], [1, 1]])), ValueError, "1 of 3 rows of the examples hold NaN"), (dict(ridge=-1.), ValueError, "ridge must be"),
    (dict(x=torch.rand(3, 1, 2, 2)), ValueError, r"must be \(N, d\), N and d at least 1, got \(3, 1, 2, 2\): flatten"), (dict(x=torch.rand(0, 2)), ValueError, "N and d at least 1"),
    (dict(y=torch.tensor([0., 1, 1])), TypeError, "labels must be int64"), (dict(ridge=float("nan")), ValueError, "ridge must be at least 0"),
    (dict(x=1e200 * torch.rand(3, 2).double()), ValueError, "have no variance in float64: scale them")])
def test_what_no_density_can_be_fitted_to(change, error, message):
    args = dict(x=torch.rand(3, 2), y=torch.tensor([0, 1, 1]), k=2) | change
    for fit in FITS.values():
        with pytest.raises(error, match=message): fit(**args)


def test_points_of_another_space_are_refused():
    x, y = both(*clouds(10, 2, 2, 0))
    for fit in FITS.values():
        for bad in (x[:, :1], x[0], torch.cat([x, x], 1)):
            with pytest.raises(ValueError, match=r"densities are of points with 2 columns, got .*: expected \(B, 2\)"): fit(x, y, 2)(bad)


@pytest.mark.parametrize("rounded", [torch.nn.Module.float, torch.nn.Module.half])
def test_densities_that_were_rounded_with_what_holds_them_are_refused(rounded):
    x, y = both(*clouds(10, 2, 2, 0))
    for fit in FITS.values():
        for density in (fit(x, y, 2), D.GenerativeClassifier(fit(x, y, 2))):
            density(x)
            rounded(torch.nn.ModuleList([density]))
            with pytest.raises(TypeError, match="densities are float64, but these have been rounded to torch.float.*: fit them again"): density(x)


def test_examples_that_are_all_equal_are_said():
    for fit in FITS.values():
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            log_p = fit(torch.ones(6, 3), torch.arange(6) % 2, 2)(torch.ones(2, 3))
        assert torch.allclose(D.posteriors(log_p), torch.tensor(.5).double())
        if fit is not FITS["spherical"]: assert any("singular covariance" in str(w.message) for w in said)


def test_a_density_is_a_module():
    x, y = both(*clouds(10, 2, 2, 0))
    for fit in FITS.values():
        density = fit(x, y, 2)
        other = copy.deepcopy(density)
        for b in other.buffers(): b.zero_()
        other.load_state_dict(density.state_dict())
        assert torch.equal(other(x), density(x)) and density(x.float()).dtype == torch.float64
        with torch.autocast("cpu", torch.bfloat16): assert torch.equal(density(x), other(x))


# learned on line ------------------------------------------------------------------------------------------------------

def by_hand(batches, k, beta, floor, corrected, z):
    "Algorithm 3's update in loops, and scipy's densities."
    d = z.shape[1]
    mu, v, t = [np.zeros(d)] * k, [1.] * k, [0] * k
    for x, y in batches:
        for c in set(y.tolist()):
            mine = x[y == c].double().numpy()
            t[c] += 1
            w = (1 - beta) / (1 - beta ** t[c]) if corrected else 1 - beta
            mu[c] = w * mine.mean(0) + (1 - w) * mu[c]
            v[c] = w * np.trace((mine - mu[c]).T @ (mine - mu[c]) / len(mine)) / d + (1 - w) * v[c]
    logs = [stats.multivariate_normal(m, max(s, floor)).logpdf(z.numpy()) if n or not corrected else np.full(len(z), -np.inf)
            for m, s, n in zip(mu, v, t)]
    return np.array(logs).T


@given(seed=st.integers(0, 9999), beta=st.floats(0, .99), corrected=st.booleans(), n=st.integers(1, 9), d=st.integers(2, 6))
@settings(max_examples=30, deadline=None)
def test_running_densities_are_the_algorithms(seed, beta, corrected, n, d):
    rng = seeded(seed)
    running = D.RunningGaussian(4, beta, 1e-3, corrected)
    batches = [(torch.randn(n, d, generator=rng) + 3, torch.randint(3, (n,), generator=rng)) for _ in range(5)]
    for x, y in batches: running.see(x, F.one_hot(y, 4).float())
    z = torch.randn(7, d, generator=rng) + 3
    assert np.allclose(running(z), by_hand(batches, 4, beta, 1e-3, corrected, z), rtol=1e-6, atol=1e-6)


def test_a_running_density_is_taken_up_where_it_was_left():
    rng = seeded()
    batches = [(torch.randn(6, 3, generator=rng), F.one_hot(torch.randint(2, (6,), generator=rng), 2).float()) for _ in range(6)]
    whole, first, second = (D.RunningGaussian(2, .9) for _ in range(3))
    for z, hot in batches: whole.see(z, hot)
    for z, hot in batches[:3]: first.see(z, hot)
    second.load_state_dict(first.state_dict())
    for z, hot in batches[3:]: second.see(z, hot); first.see(z, hot)
    assert torch.equal(second(batches[0][0]), whole(batches[0][0])) and torch.equal(first.mean, whole.mean)
    fresh = D.RunningGaussian(2); fresh.load_state_dict(D.RunningGaussian(2).state_dict())
    assert fresh.mean is None and fresh.seen.sum() == 0


@pytest.mark.parametrize("shape", D.DENSITIES)
@pytest.mark.parametrize("far", [np.nan, np.inf, 1e300])
def test_a_point_without_a_density_is_no_example_of_the_first_class(shape, far):
    x, y = both(*clouds(20, 3, 2, 0))
    density, z = D.DENSITIES[shape](x, y, 2), x[-3:].clone()
    assert D.classify(density, z).tolist() == [1, 1, 1]
    z[1, 2] = far
    with pytest.raises(ValueError, match="1 of 3 points hold NaN or infinity, or lie so far out"): D.classify(density, z)


@pytest.mark.parametrize("shape", D.DENSITIES)
def test_what_is_no_table_of_numbers_is_refused_in_one_sentence(shape):
    x, y = both(*clouds(20, 3, 2, 0))
    fit = D.DENSITIES[shape]
    for bad, message in ((lambda: fit(x.numpy(), y, 2), "examples must be a tensor, got ndarray"), (lambda: fit(x[:, :0], y, 2), "N and d at least 1"),
                         (lambda: fit(x + 1j, y, 2), "must be real numbers"), (lambda: fit(x, y, 2.), "two classes or more, got k = 2.0"),
                         (lambda: fit(x, y, 2)(x.numpy()), "points must be a tensor, got ndarray"), (lambda: fit(x, y, 2)(x * 1j), "must be real numbers")):
        with pytest.raises((TypeError, ValueError), match=message): bad()


def test_a_running_density_knows_what_it_was_made_of():
    running, hot = D.RunningGaussian(3), F.one_hot(torch.tensor([0, 1]), 3).float()
    with pytest.raises(ValueError, match="no batch has been seen"): running(torch.zeros(2, 4))
    running.see(torch.zeros(2, 4), hot)
    for z, labels in ((torch.zeros(2, 5), hot), (torch.zeros(3, 4), hot), (torch.zeros(2, 4), hot[:, :2]), (torch.zeros(4), hot[:1])):
        with pytest.raises(ValueError, match=r"a batch must be features \(B, 4\) and labels as vectors \(B, 3\)"): running.see(z, labels)
