"""Views of a batch and their comparison: NFM, AugMix with and without JSD, and NoisyMix are corners of one thing, each held against a naive computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from scipy import stats
from torch.nn import functional as F

from helpers import seeded
from mixrepro.data.augment import crop_flip
from mixrepro.data.augmix import augmix
from mixrepro.data.datasets import load
from mixrepro.methods.catalogue import METHODS, PARTS, method
from mixrepro.methods.erm import ERM
from mixrepro.methods.factor_mixup import FactorMixup
from mixrepro.methods.labels import LinearLabels, LogisticLabels
from mixrepro.methods.manifold_mixup import ManifoldMixup, draw_at_stages, draw_stage
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.noise import FeatureNoise, MixNoise, draw_factor
from mixrepro.methods.varmixup import VarMixup
from mixrepro.methods.vicinal import LOSSES, Mix, draw_mix
from mixrepro.methods.views import AugMixViews, FurtherViews, NoiseViews, Viewed, Views, js
from mixrepro.networks.autoencoders import ConvVAE
from mixrepro.networks.zoo import build
from mixrepro.training.spec import Spec, canonical, name_of


def batch(n=10, shape=(1, 16, 16), classes=5, seed=0):
    rng = seeded(seed)
    return torch.randint(256, (n, *shape), generator=rng) / 255, torch.randint(classes, (n,), generator=rng)


def network(name="tiny-cnn", training=False): return build(name, (1, 16, 16), 5, seeded()).train(training)


# the divergence ------------------------------------------------------------------------------------------------------

def naive_js(logits, floor=1e-7):
    "As the public code of AugMix computes it: probabilities, their mean between bounds, KL to it."
    p = [z.softmax(1) for z in logits]
    m = (sum(p) / len(p)).clamp(floor, 1).log()
    return sum(F.kl_div(m, q, reduction="batchmean") for q in p) / len(p)


@given(seed=st.integers(0, 2 ** 32), v=st.integers(2, 3), k=st.integers(2, 12), scale=st.floats(.01, 40))
@settings(max_examples=60, deadline=None)
def test_js_is_the_naive_one_lies_between_its_bounds_and_has_its_gradient(seed, v, k, scale):
    z = (scale * torch.randn(v, 6, k, generator=seeded(seed), dtype=torch.float64)).requires_grad_()
    got, want = js(list(z)), naive_js(list(z))
    assert torch.allclose(got, want, rtol=1e-9, atol=1e-9) and -1e-6 <= got <= math.log(v) + 1e-12
    assert torch.allclose(*(torch.autograd.grad(l, z, retain_graph=True)[0] for l in (got, want)), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("v", [2, 3])
def test_js_by_entropies_at_its_ends_and_its_gradient_by_differences(v):
    z = torch.randn(v, 5, 7, generator=seeded(v), dtype=torch.float64)
    p = z.softmax(-1).numpy()
    by_entropy = (stats.entropy(p.mean(0), axis=1) - stats.entropy(p, axis=2).mean(0)).mean()
    assert js(list(z), 1e-300).item() == pytest.approx(by_entropy, abs=1e-12)
    assert abs(js([z[0]] * v)) < 1e-15 and js(list(500 * torch.eye(v, dtype=torch.float64)[:, None])).item() == pytest.approx(math.log(v), abs=1e-12)
    assert torch.autograd.gradcheck(lambda *z: js(z), [a.clone().requires_grad_() for a in z])


def test_js_in_low_precision_and_where_predictions_underflow():
    z = [torch.randn(4, 5, generator=seeded(s)) for s in (0, 1)]
    with torch.autocast("cpu", torch.bfloat16): low = js([a.bfloat16() for a in z])
    assert low.dtype == torch.float32 and torch.allclose(low, js(z), atol=.02)
    far = [torch.tensor([[v, 0., -v]], requires_grad=True) for v in (1e4, -1e4)]
    assert all(g.isfinite().all() for g in torch.autograd.grad(js(far), far))


# corners, bit for bit --------------------------------------------------------------------------------------------------

def alike(ours, theirs, net, atol=0.):
    "Whether two losses and their gradients are equal: to the last bit, unless a tolerance is given."
    grads = [torch.autograd.grad(l, list(net.parameters()), allow_unused=True) for l in (ours, theirs)]
    pairs = [(ours, theirs), *((a, b) for a, b in zip(*grads) if a is not None or b is not None)]
    return all(torch.equal(a, b) if not atol else torch.allclose(a, b, rtol=1e-5, atol=atol) for a, b in pairs)


@pytest.mark.parametrize("training", [False, True])
def test_with_every_part_off_it_is_erm_to_the_last_bit(training):
    x, y = batch()
    net = network(training=training)
    off = Mixup(views=Views())
    still = replace(ManifoldMixup(stages=(0,)), views=Views(), noise=FeatureNoise(add=0., mult=0.))
    rng = seeded(1)
    hot = F.one_hot(y, 5).float()
    assert alike(ERM(views=Views()).loss(net, x, y, rng), F.cross_entropy(net(x), hot), net) and torch.equal(rng.get_state(), seeded(1).get_state())
    whole = Mix(torch.tensor(1.), torch.arange(10))  # a mixing that mixes nothing
    for kind in (off, still): assert alike(kind.risk(net, x, y, whole, seeded(1)), F.cross_entropy(net(x), hot), net)


@given(seed=st.integers(0, 2 ** 32), count=st.integers(1, 2), gamma=st.floats(.1, 20), training=st.booleans())
@settings(max_examples=20, deadline=None)
def test_only_views_and_their_comparison_is_augmix_with_jsd(seed, count, gamma, training):
    (x, y), net, rng = batch(seed=seed % 97), network(training=training), seeded(seed)
    views = [x, *(augmix(x, rng) for _ in range(count))]
    logits = net(torch.cat(views)).chunk(count + 1)
    naive = F.cross_entropy(logits[0], y) + gamma * naive_js(logits)
    assert alike(ERM(views=AugMixViews(count=count, gamma=gamma)).loss(net, x, y, seeded(seed)), naive, net, atol=2e-6)


def test_augmix_without_jsd_is_training_on_augmented_images():
    (x, y), net = batch(), network(training=True)
    shown = []
    hook = net.register_forward_pre_hook(lambda _, args: shown.append(len(args[0])))
    ours = ERM(views=AugMixViews(gamma=0.)).loss(net, x, y, seeded(2))
    hook.remove()
    assert shown == [10] and alike(ours, F.cross_entropy(net(augmix(x, seeded(2))), F.one_hot(y, 5).float()), net)
    assert torch.equal(ERM(views=NoiseViews(gamma=0., s=.3)).loss(net, x, y, seeded(2)),
                       F.cross_entropy(net(x + .3 * torch.randn(x.shape, generator=seeded(2))), F.one_hot(y, 5).float()))


NFM = dict(add=.4, mult=.2, sparse=0., factor="beta", shared=False, levels=(1.,)), dict(alpha=1., stages=(0, 1, 2, 3))  # levels, sparsity, factors; stages


@given(seed=st.integers(0, 2 ** 32), views=st.sampled_from([Views(), None]))
@settings(max_examples=20, deadline=None)
def test_only_mixing_and_noise_is_nfm_to_the_last_bit(seed, views):
    "At NFM's own levels .4 and .2, no sparsity, Beta(2, 5) factors, one level, stages 0 to 3 and alpha 1."
    (x, y), net, (noise, place), rng = batch(seed=seed % 97), network(), NFM, seeded(seed)
    mix, k = draw_mix(10, 1., rng), torch.randint(4, (), generator=rng).item()
    def at(h):
        m = torch.lerp(h[mix.partner], h, mix.lam)
        times = torch.empty(m.shape).uniform_(-.2, .2, generator=rng)
        plus = torch.empty(m.shape).normal_(0, .4, generator=rng)
        times, plus = times * draw_factor(rng), plus * draw_factor(rng)
        if k == 0: plus = .5 * plus - .5 * times  # .5 + .5 ((1 + times) (x - .5) / .5 + plus)
        return torch.addcmul(plus, m, 1 + times)
    logits, hot = net(x, at=k, through=at), F.one_hot(y, 5).float()
    naive = F.cross_entropy(logits, torch.lerp(hot[mix.partner], hot, mix.lam))
    made = ManifoldMixup(**place, noise=FeatureNoise(**noise), **(dict(views=views) if views else {}))
    assert alike(made.loss(net, x, y, seeded(seed)), naive, net)


# NoisyMix, naively -----------------------------------------------------------------------------------------------------

FORMS = {"paper": FeatureNoise(add=.5, mult=.5, factor="none", shared=True), "code": FeatureNoise(add=.5, mult=.5, sparse=.65, levels=(1, 2, 3))}


def by_hand(noise, k, labels, x, y, net, rng, stages=(0, 1, 2, 3)):
    "View by view: the same partners and shares in each, its noise where it was mixed; the rest of the pass for all together."
    mix = draw_mix(len(x), 1., rng)
    views = torch.cat([x, *(augmix(x, rng) for _ in range(k - 1))])
    stage = draw_stage(stages, rng)
    def drawn(m):
        times, plus = torch.empty(m.shape).uniform_(-noise.mult, noise.mult, generator=rng), torch.empty(m.shape).normal_(0, noise.add, generator=rng)
        if noise.sparse:
            v, q = torch.rand(m.shape, generator=rng), 1 - noise.sparse
            times, plus = times * (v < q), plus * ((v >= q * noise.sparse) & (v < q * noise.sparse + q))
        def factor(): return draw_factor(rng) if noise.factor == "beta" else 1.
        return [(t * factor(), p * factor()) for t, p in zip(times.chunk(1 if noise.shared else k), plus.chunk(1 if noise.shared else k))]
    def at(h):
        out, xi = [], drawn(h[:len(x)] if noise.shared else h)
        for v, part in enumerate(h.chunk(k)):
            m = mix.lam * part + (1 - mix.lam) * part[mix.partner]
            times, plus = xi[0 if noise.shared else v]
            plus = plus * (noise.levels * k if len(noise.levels) == 1 else noise.levels)[v]
            out.append(m * (1 + times) + plus if stage else .5 + .5 * ((m - .5) / .5 * (1 + times) + plus))
        return torch.cat(out)
    logits = net(views, at=stage, through=at).chunk(k)
    lam = mix.lam if labels == "linear" else torch.sigmoid(20 * (mix.lam - .5))
    hot = F.one_hot(y, 5).float()
    return F.cross_entropy(logits[0], lam * hot + (1 - lam) * hot[mix.partner]) + 12 * naive_js(logits)


@given(seed=st.integers(0, 2 ** 32), form=st.sampled_from(list(FORMS)), count=st.integers(1, 2), labels=st.sampled_from(["linear", "logistic"]))
@settings(max_examples=24, deadline=None)
def test_noisymix_by_hand(seed, form, count, labels):
    (x, y), net = batch(seed=seed % 97), network(training=True)
    made = ManifoldMixup(alpha=1., stages=(0, 1, 2, 3), noise=FORMS[form], views=AugMixViews(count=count), labels=PARTS[labels]())
    naive = by_hand(FORMS[form], count + 1, labels, x, y, net, seeded(seed))
    assert alike(made.loss(net, x, y, seeded(seed)), naive, net, atol=2e-5)

@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("stage", [0, 1, 3])
def test_noisymix_with_only_views_and_their_comparison_is_augmix_with_jsd_to_the_last_bit(form, stage):
    "Its mixing leaves each image as it is, and its noise has the levels 0, or is none."
    (x, y), whole = batch(), Mix(torch.tensor(1.), torch.arange(10))
    still = ManifoldMixup(alpha=1., stages=(stage,), views=AugMixViews(), noise=replace(FORMS[form], add=0., mult=0.))
    for kind in (still, replace(still, noise=MixNoise())):
        net, other = network(training=True), network(training=True)  # batch norm has seen nothing in either
        losses = kind.risk(net, x, y, whole, seeded(1)), ERM(views=AugMixViews()).loss(other, x, y, seeded(1))
        grads = [torch.autograd.grad(l, list(n.parameters())) for l, n in zip(losses, (net, other))]
        assert torch.equal(*losses) and all(torch.equal(a, b) for a, b in zip(*grads))


@pytest.mark.parametrize("wrong", ["shared", "levels", "gamma"])
def test_another_form_is_another_loss(wrong):
    (x, y), net = batch(), network()
    made = ManifoldMixup(alpha=1., stages=(1,), noise=FORMS["code"], views=AugMixViews())
    other = dict(shared=replace(made, noise=replace(made.noise, shared=True)), levels=replace(made, noise=replace(made.noise, levels=(1,))),
                 gamma=replace(made, views=AugMixViews(gamma=11.)))[wrong]
    naive = by_hand(FORMS["code"], 3, "linear", x, y, net, seeded(3), (1,))
    assert torch.allclose(made.loss(net, x, y, seeded(3)), naive) and not torch.allclose(other.loss(net, x, y, seeded(3)), naive)


@pytest.mark.parametrize("per", ["lambda", "lambda and layer"])
def test_views_with_draws_for_each_example(per):
    "In evaluation mode the first view's logits and target are those of the batch alone: every view has the same draw."
    (x, y), net = batch(), network()
    kind = ManifoldMixup(per=per, stages=(0, 1, 2))
    draw = kind.draw(net, x, y, seeded(4))
    one, target = kind.terms(net, x, y, draw, seeded(5))
    two, same = kind.terms(net, torch.cat([x, x]), y, draw, seeded(5))
    assert torch.equal(target, same) and torch.allclose(two, torch.cat([one, one]), atol=1e-6)
    assert ManifoldMixup(per=per, views=AugMixViews()).loss(net, x, y, seeded(1)).isfinite()
    if per == "lambda and layer":
        d = draw_at_stages(6, 1., (0, 1), seeded()).repeated(3)
        assert d.stage.shape == d.partner.shape == (18,) and torch.equal(d.stage[d.partner], d.stage)


@pytest.mark.parametrize("kind", [ERM(), Mixup(), Mixup(per="example"), ManifoldMixup(), ManifoldMixup(labels=LogisticLabels()), method("iat", steps=1)], ids=lambda k: k.name)
@pytest.mark.parametrize("views", [AugMixViews(), NoiseViews(count=1), NoiseViews(gamma=0.)], ids=["augmix", "one", "alone"])
def test_views_go_with_any_method(kind, views):
    (x, y), net = batch(), network(training=True)
    compared = replace(kind, views=views)
    loss = compared.loss(net, x, y, seeded(3))
    assert loss.isfinite() and loss.requires_grad and not torch.equal(loss, kind.loss(net, x, y, seeded(3)))
    assert torch.equal(replace(kind, views=Views()).loss(net, x, y, seeded(3)), kind.loss(net, x, y, seeded(3)))


class Once(LinearLabels):
    "Remembers what labels see."
    def __call__(self, y, place):
        self.seen.append((y, place.before, place.after))
        return super().__call__(y, place)


def test_labels_see_the_clean_view_only():
    (x, y), net, spy = batch(), network(), Once()
    object.__setattr__(spy, "seen", [])
    Mixup(labels=spy, views=NoiseViews()).loss(net, x, y, seeded(1))
    mix = draw_mix(10, 1., seeded(1))
    hot, before, after = spy.seen[0]
    assert torch.equal(before, x) and torch.equal(after, mix(x)) and hot.shape == (10, 5)


def test_varmixup_shows_all_views_with_the_same_crops():
    train = load("digits", "train").subset(20)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        vae = ConvVAE(train.shape, latent=5, width=4, depth=2).eval().requires_grad_(False)
    net, (x, y) = build("tiny-cnn", train.shape, 10, seeded()).eval(), (train.floats(), train.y)
    made = VarMixup(views=NoiseViews(count=1, s=.2)).prepare(train, seeded(), augment=crop_flip, vae=vae)
    rng = seeded(6)
    mix = draw_mix(20, 1., rng)
    views = torch.cat([x, x + .2 * torch.randn(x.shape, generator=rng)])
    z = vae.encode(views).chunk(2)
    decoded = torch.cat([vae.decode(mix(v)) for v in z])
    a, b = (crop_flip(d, clone(rng)) for d in decoded.chunk(2))
    logits = net(torch.cat([a, b])).chunk(2)
    naive = F.cross_entropy(logits[0], mix(F.one_hot(y, 10).float())) + 12 * naive_js(logits)
    assert torch.allclose(made.loss(net, x, y, seeded(6), torch.arange(20)), naive, atol=1e-4)
    half = VarMixup(share=.5, views=NoiseViews()).prepare(train, seeded(), augment=crop_flip, vae=vae)
    assert all(half.loss(net, x, y, seeded(i), torch.arange(20)).isfinite() for i in range(2))


def clone(rng):
    new = torch.Generator()
    new.set_state(rng.get_state())
    return new


# noise in views --------------------------------------------------------------------------------------------------------

def near(sample, mean, var):
    "Mean and variance within four standard errors."
    n, kurtosis = sample.numel(), stats.kurtosis(sample.flatten().numpy(), fisher=False)
    assert abs(sample.mean() - mean) < 4 * (var / n) ** .5 and abs(sample.var() / var - 1) < 4 * ((kurtosis - 1) / n) ** .5


@pytest.mark.parametrize("sparse", [0., .65])
def test_the_moments_of_the_noise_in_each_view(sparse):
    "Over 10^6 draws a view: mean 0, variances sigma^2 l^2 (1 - p) and sigma^2 (1 - p) / 3, and the share p untouched."
    noise, zeros = FeatureNoise(add=.5, mult=.5, sparse=sparse, factor="none", levels=(1, 2, 3)), torch.zeros(30, 100_000)
    for level, plus in zip((1, 2, 3), noise(zeros, seeded(1), 3).chunk(3)):
        near(plus.double(), 0, (.5 * level) ** 2 * (1 - sparse))
        assert abs((plus == 0).double().mean() - sparse) <= 4 * (sparse * (1 - sparse) / 1e6) ** .5
    for times in (replace(noise, add=0.)(zeros + 1, seeded(2), 3) - 1).chunk(3):
        near(times.double(), 0, .25 * (1 - sparse) / 3)
        assert abs((times == 0).double().mean() - sparse) <= 4 * (sparse * (1 - sparse) / 1e6) ** .5 + 1e-6


def test_the_whole_law_of_the_noise_is_numpys():
    """NoisyMix, below eq. 2: two noises, two levels. The code draws U(-1, 1) and N(0, 1), each times a Beta(2, 5) and a
    mask of its own, and the additive one times 1, 2, 3 in the views."""
    rng, naive = seeded(1), np.random.default_rng(0)
    noise = FeatureNoise(add=.5, mult=.5, sparse=.65, levels=(1., 2., 3.))
    draws = [noise.drawn(torch.zeros(3, 2), rng, noise.levels) for _ in range(2_500)]
    times, plus = (np.stack([d[i].numpy() for d in draws]) for i in (0, 1))
    for view in range(3):
        laws = naive.uniform(-1, 1, 40_000), (view + 1) * naive.normal(size=40_000)
        for found, law in zip((times[:, view, 0], plus[:, view, 0]), laws):
            assert stats.binomtest(int((found != 0).sum()), 2_500, .35).pvalue > 1e-3
            assert stats.ks_2samp(found[found != 0], .5 * naive.beta(2, 5, 40_000) * law).pvalue > 1e-3
    both = [[((times[:, 0, 0] != 0) == a) & ((plus[:, 0, 0] != 0) == b) for b in (0, 1)] for a in (0, 1)]
    assert stats.chi2_contingency(np.sum(both, 2)).pvalue > 1e-3, "the masks are independent"
    assert stats.kstest([draw_factor(rng).item() for _ in range(1_000)], stats.beta(2, 5).cdf).pvalue > 1e-3


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("images", [False, True])
def test_a_channels_last_state_has_the_same_law_and_the_same_formula(layout, images):
    "Each element has its own noise, whatever the order in memory; at .5 an image is moved by u (plus) and nothing is multiplied."
    m = torch.full((6, 8, 50, 50), .5).to(memory_format=layout)
    noise = FeatureNoise(add=.4, mult=.5, sparse=.65, factor="none", levels=(1, 2, 3))
    for level, moved in zip((1, 2, 3), (noise(m, seeded(4), 3, images) - m).double().chunk(3)):
        scale = (.5 if images else 1) * .4 * level
        near(moved, 0, .35 * scale ** 2 + (0 if images else .35 * .25 * .25 / 3))
        untouched = .65 if images else .65 ** 2
        assert abs((moved.abs() < 1e-6).double().mean() - untouched) < 4 * (untouched * (1 - untouched) / moved.numel()) ** .5
        rows = moved.flatten(0, 1).flatten(1)  # no two channels or images share it
        assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 5 / 2500 ** .5


@pytest.mark.parametrize("shared", [False, True])
def test_no_two_images_share_noise_and_views_only_where_they_should(shared):
    made = FeatureNoise(factor="none", shared=shared)(torch.zeros(12, 100_000), seeded(1), 3)
    seen = torch.corrcoef(made)
    same = torch.arange(12)[:, None] % 4 == torch.arange(12) % 4
    assert seen[~same].abs().max() < 5 / 100_000 ** .5
    across = seen[same & ~torch.eye(12, dtype=torch.bool)]
    assert (across - 1).abs().max() < 1e-5 if shared else across.abs().max() < 5 / 100_000 ** .5


def test_factors_are_one_a_view_unless_shared():
    m = torch.zeros(6, 20_000)
    levels = torch.stack([FeatureNoise(mult=0., shared=s)(m, seeded(i), 3).view(6, -1).std(1) for s in (False, True) for i in range(60)])
    own, same = levels.view(2, 60, 3, 2)
    assert (own[..., 0] / own[..., 1] - 1).abs().max() < .1 and torch.corrcoef(own[..., 0].T).fill_diagonal_(0).abs().max() < 4 / 60 ** .5 + .1
    assert (same / same[:, :1] - 1).abs().max() < .1 and (own[:, 0] / own[:, 1] - 1).abs().max() > .5


# specs -----------------------------------------------------------------------------------------------------------------

def test_new_fields_change_no_name_at_their_defaults():
    spec = Spec("digits", "manifold-mixup", "tiny-cnn", epochs=3)
    of = lambda **args: name_of(replace(spec, method_args=args))
    noised = dict(name="feature-noise")
    assert of() == of(views={"name": "no-views"}) and "views" not in canonical(spec)["method_args"]
    assert of(noise=noised) == of(noise=noised | dict(shared=False, levels=(1.,)))
    kept = canonical(replace(spec, method_args=dict(noise=noised)))["method_args"]["noise"]
    assert set(kept) == {"name", "add", "mult", "sparse", "factor", "unit"}
    others = [of(views=dict(name="augmix")), of(views=dict(name="augmix", gamma=1)), of(views=dict(name="noise")), of(noise=noised | dict(shared=True)), of(noise=noised | dict(levels=[1, 2, 3]))]
    assert len({of(), of(noise=noised), *others}) == 7
    erm = Spec("digits", "erm", "tiny-cnn")
    assert name_of(erm) == name_of(replace(erm, method_args=dict(views={"name": "no-views"})))


def test_what_cannot_be():
    with pytest.raises(ValueError, match="factor-mixup makes its images itself and knows no views of them: leave views out"): FactorMixup(views=NoiseViews())
    with pytest.raises(ValueError, match="unknown part for views 'augmx': did you mean 'augmix'"): method("erm", views=dict(name="augmx"))
    with pytest.raises(ValueError, match=r"views must be a part such as Views\(\), got LogisticLabels"): method("mixup", views=LogisticLabels())
    with pytest.raises(ValueError, match="unknown hyper-parameter of 'cutout' 'views'"): method("cutout", views=AugMixViews())
    with pytest.raises(ValueError, match="levels for 2 views, but there are 3"): Mixup(noise=FeatureNoise(levels=(1, 2)), views=AugMixViews()).loss(network(), *batch(), seeded())
    with pytest.raises(TypeError, match="needs a network in stages"): ManifoldMixup(views=NoiseViews()).loss(torch.nn.Linear(2, 2), *batch(), seeded())
    for bad in (dict(width=0), dict(depth=0), dict(severity=0), dict(severity=10.5), dict(count=0), dict(count=3), dict(alpha=0), dict(gamma=-1), dict(floor=1)):
        with pytest.raises(ValueError, match=f"{next(iter(bad))} must be"): AugMixViews(**bad)
    assert {n for n, kind in METHODS.items() if issubclass(kind, Viewed)} >= {"erm", "mixup", "manifold-mixup", "varmixup", "mixup-r", "iat"}
    assert issubclass(AugMixViews, FurtherViews) and "ce" in LOSSES


def test_only_the_generator_is_drawn_from():
    (x, y), net, before = batch(), network(), (torch.get_rng_state(), np.random.get_state()[1].copy())
    made = ManifoldMixup(noise=FORMS["code"], views=AugMixViews())
    losses = [made.loss(net, x, y, seeded(s)).item() for s in (3, 3, 4)]
    assert losses[0] == losses[1] != losses[2]
    assert torch.equal(torch.get_rng_state(), before[0]) and (np.random.get_state()[1] == before[1]).all()
