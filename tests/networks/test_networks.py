"Networks: against torchvision, timm and float64 recomputations, and the properties every method relies on."
import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.nn import functional as F

from helpers import seeded as gen
from mixrepro.networks.autoencoders import ConvVAE, halvings
from mixrepro.networks.preact import PreActBlock, preact_resnet
from mixrepro.networks.resnet import resnet, resnet50
from mixrepro.networks.small import mlp, small_cnn
from mixrepro.networks.staged import Dropout, Normalize, Staged, count, stage_table
from mixrepro.networks.wideresnet import WideBlock, wide_resnet
from mixrepro.networks.zoo import NETWORKS, build

MEAN, STD = (.4914, .4822, .4465), (.2023, .1994, .2010)
CLASSIFIERS = [n for n in NETWORKS if not n.startswith(("vae", "sngan", "decoder", "spiral", "factor", "bottleneck", "point-gan", "class-sngan"))]  # of images of any size
LIGHT = {  # every family, small enough to run
    "preact-raw": lambda: preact_resnet((3, 32, 32), 7, (1, 2, 1, 1), width=4, mean=MEAN, std=STD),
    "preact-activated": lambda: preact_resnet((3, 32, 32), 7, (2, 1, 1, 1), width=4, identity="activated", mean=MEAN, std=STD),
    "preact-bottleneck": lambda: preact_resnet((3, 32, 32), 7, (2, 1, 1, 1), bottleneck=True, width=4, mean=MEAN, std=STD),
    "resnet": lambda: resnet((3, 32, 32), 7, (1, 2, 1, 1), width=4, mean=MEAN, std=STD),
    "wide": lambda: wide_resnet((3, 32, 32), 7, depth=10, widen=1, mean=MEAN, std=STD),
    "wide-leaky": lambda: wide_resnet((3, 32, 32), 7, depth=16, widen=1, slope=.01, dropout=.3, mean=MEAN, std=STD),
    "small-cnn": lambda: small_cnn((3, 32, 32), 7, mean=MEAN, std=STD),
    "mlp": lambda: mlp((3, 32, 32), 7, mean=MEAN, std=STD),
}


@dataclass(frozen=True)
class Mix:
    lam: torch.Tensor
    partner: torch.Tensor

    def __call__(self, h): return torch.lerp(h[self.partner], h, self.lam)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=LIGHT)
def net(request):
    "A small network of each family, with running statistics that are not the initial ones."
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = LIGHT[request.param]().draw_from(gen())
        for _ in range(2): net(torch.rand(16, 3, 32, 32))
    return net.eval()


@pytest.fixture
def x(): return torch.rand(4, 3, 32, 32, generator=gen(1))


# ---- sizes ----------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, classes, known", [
    ("preactresnet18", 10, 11_171_146), ("preactresnet18", 100, 11_217_316), ("preactresnet34", 10, 21_279_306), ("preactresnet34", 100, 21_325_476),
    ("preactresnet50", 10, 23_509_066), ("preactresnet152", 10, 58_144_842), ("preactresnet152", 100, 58_329_252),
    ("wrn28-2", 10, 1_469_642), ("wrn28-4", 10, 5_853_098), ("wrn28-4", 100, 5_876_228), ("wrn28-10", 10, 36_489_290),
    ("resnet34", 10, 21_282_122), ("resnet34", 100, 21_328_292), ("resnet34", 200, 21_379_592), ("resnet50", 1000, 25_557_032)])
def test_number_of_parameters_is_the_known_one(name, classes, known):
    with torch.device("meta"): assert count(NETWORKS[name]((3, 32, 32), classes)) == known


@pytest.mark.parametrize("side, classes", [(32, 10), (64, 200)])
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_shapes(name, side, classes):
    with torch.device("meta"):
        net, x = NETWORKS[name]((3, side, side), classes).eval(), torch.zeros(2, 3, side, side)
        assert net(x).shape == (2, classes)
        assert net.features(x).shape == (2, net.head.in_features)
        assert stage_table(net).count("\n") == len(net.stages) + 5


@pytest.mark.parametrize("name, last", [
    ("preactresnet18", "512 x 4 x 4"), ("preactresnet50", "2048 x 4 x 4"), ("resnet34", "512 x 4 x 4"), ("wrn28-2", "128 x 8 x 8")])
def test_the_last_map_is_the_same_at_32_and_64_pixels(name, last):
    for side in (32, 64):
        with torch.device("meta"): assert stage_table(NETWORKS[name]((3, side, side), 10)).split("\n")[-4].split("|")[2].strip() == last


# ---- the pass in stages ---------------------------------------------------------------------------------------------------

def test_features_and_head_make_the_logits(net, x): assert torch.equal(net.head(net.features(x)), net(x))


def test_looking_changes_nothing(net, x):
    for k in range(len(net.stages) + 1):
        seen = []
        assert torch.equal(net(x, at=k, through=lambda h: seen.append((h, h.clone())) or h), net(x))
        assert len(seen) == 1 and torch.equal(*seen[0]), "a later layer wrote into the state"


def test_a_mix_at_each_stage_is_the_chain_done_by_hand(net, x):
    mix = lambda h: torch.lerp(h[[2, 3, 0, 1]], h, .3).cos()  # a plain mixture would commute with normalisation
    for k in range(len(net.stages) + 1):
        h = mix(x) if k == 0 else x
        h = (h - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)
        for j, stage in enumerate(net.stages, 1): h = mix(stage(h)) if j == k else stage(h)
        h = net.pool(h)
        assert torch.allclose(net(x, at=k, through=mix), h @ net.head.weight.T + net.head.bias, atol=1e-5)


def test_gradients_flow_through_both_partners_of_a_mix(net, x):
    for k in range(len(net.stages) + 1):
        leaf = x.clone().requires_grad_()
        net.zero_grad()
        net(leaf, at=k, through=lambda h: .3 * h + .7 * h.flip(0))[0].sum().backward()
        reached = leaf.grad.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [True, False, False, True]
        assert all(p.grad is not None for p in net.parameters())


def test_one_image_is_treated_as_among_many(net, x):
    assert torch.allclose(torch.cat([net(one[None]) for one in x]), net(x), atol=1e-5)


def test_channels_last_changes_the_layout_and_not_the_function(net, x):
    if net.fixed: pytest.skip("a perceptron has no image layout")
    last, seen = copy.deepcopy(net).to(memory_format=torch.channels_last), []
    assert torch.allclose(last(x.to(memory_format=torch.channels_last), at=1, through=lambda h: seen.append(h) or h), net(x), atol=1e-4)
    assert seen[0].is_contiguous(memory_format=torch.channels_last)


def test_weights_carry_the_normalisation(net, x):
    other = copy.deepcopy(net)
    other.norm = Normalize((.5,) * 3, (.5,) * 3)
    assert not torch.equal(other(x), net(x))
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


@pytest.mark.parametrize("name", ["preact-raw", "wide", "small-cnn"])
def test_compiles_whole_and_once_for_each_stage(name, x):
    torch._dynamo.reset()
    net, graphs = LIGHT[name]().eval(), []
    whole = torch.compile(net, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)
    stages = range(len(net.stages) + 1)
    for k in (*stages, *stages):
        mix = Mix(torch.rand(()), torch.randperm(4))
        assert torch.allclose(whole(x, at=k, through=mix), net(x, at=k, through=mix), atol=1e-5)
    assert len(graphs) == len(stages), "a new draw of the same kind must not compile again"


def test_normalisation_is_torchvisions(x):
    from torchvision.transforms.v2.functional import normalize
    assert torch.allclose(Normalize(MEAN, STD)(x), normalize(x, MEAN, STD), atol=1e-5)


@pytest.mark.parametrize("call, error, message", [
    (lambda n, x: n(x, at=9, through=torch.relu), ValueError, r"stages 0 \(the input\) to \d, got at=9"),
    (lambda n, x: n(x, at=-1, through=torch.relu), ValueError, "got at=-1"),
    (lambda n, x: n(x, at=0), ValueError, "`at` and `through` go together, got at=0, through=None"),
    (lambda n, x: n.features(x, through=torch.relu), ValueError, "`at` and `through` go together, got at=None"),
    (lambda n, x: n((255 * x).byte()), TypeError, r"float in \[0, 1\], .* got torch.uint8"),
    (lambda n, x: n(x[0]), ValueError, r"got \(3, 32, 32\)"),
    (lambda n, x: n(x[:, :1]), ValueError, r"got \(4, 1, 32, 32\)")])
def test_what_cannot_be_done_is_refused(net, x, call, error, message):
    with pytest.raises(error, match=message): call(net, x)


@settings(deadline=None, max_examples=20)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))
def test_small_cnn_takes_any_image(h, w, channels, batch, at):
    net, x = small_cnn((channels, h, w), 3, width=2, depth=1).eval(), torch.rand(batch, channels, h, w)
    assert net(x).shape == (batch, 3) and torch.equal(net(x, at=at, through=lambda s: s), net(x))


# ---- against others' code and against the formulas ------------------------------------------------------------------------

def test_resnet18_is_torchvisions_with_its_stem_replaced(x):
    from torchvision.models import resnet18
    theirs, ours = resnet18(num_classes=10).double().eval(), NETWORKS["resnet18"]((3, 32, 32), 10, mean=MEAN, std=STD).double().eval()
    theirs.conv1, theirs.maxpool = torch.nn.Conv2d(3, 64, 3, 1, 1, bias=False).double(), torch.nn.Identity()
    names = [k for k in ours.state_dict() if not k.startswith("norm.")]
    ours.load_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)), strict=False)
    x = x[:1].double()
    assert torch.allclose(ours(x), theirs(ours.norm(x)), atol=1e-10)


def test_resnet50_is_torchvisions(x):
    ours, stages = resnet50((3, 64, 64), 5).eval(), []
    from torchvision.models import resnet50 as other
    theirs = other(num_classes=5).eval()
    names = [k for k in ours.state_dict() if not k.startswith("norm.")]
    ours.load_state_dict(dict(zip(names, theirs.state_dict().values(), strict=True)), strict=False)
    theirs.layer3.register_forward_hook(lambda _, __, h: stages.append(h))
    assert torch.allclose(ours(x, at=3, through=lambda h: stages.append(h) or h), theirs(2 * x - 1), atol=1e-4)
    assert torch.allclose(*stages, atol=1e-4)


@pytest.mark.parametrize("i, o, stride", [(64, 64, 1), (32, 64, 2)])
@pytest.mark.parametrize("bottleneck", [False, True])
def test_preact_block_is_timms(bottleneck, i, o, stride):
    from functools import partial
    from timm.layers import BatchNormAct2d
    from timm.models import resnetv2
    i = 4 * i if bottleneck and stride == 1 else i
    ours = PreActBlock(i, o, stride, bottleneck).eval()
    out = ours.body[-1].out_channels
    block = resnetv2.PreActBottleneck if bottleneck else resnetv2.PreActBasic
    projection = resnetv2.DownsampleConv(i, out, stride=stride, preact=True, conv_layer=partial(torch.nn.Conv2d, bias=False)) if stride == 2 else None
    extra = dict(bottle_ratio=.25) if bottleneck else dict(bottle_ratio=1.)
    theirs = block(i, out, stride=stride, act_layer=torch.nn.ReLU, conv_layer=partial(torch.nn.Conv2d, bias=False),
                   norm_layer=BatchNormAct2d, proj_layer=None, **extra).eval()
    theirs.downsample = projection
    for bn, module in ((ours.act[0], theirs.norm1), (ours.body[1][0], theirs.norm2), *([(ours.body[3][0], theirs.norm3)] if bottleneck else [])):
        torch.nn.init.uniform_(bn.weight, .5, 2), torch.nn.init.normal_(bn.bias), bn.running_mean.normal_(), bn.running_var.uniform_(.5, 2)
        module.load_state_dict(bn.state_dict())
    for k in range(3 if bottleneck else 2): theirs.get_submodule(f"conv{k + 1}").weight = ours.body[2 * k].weight
    for k in range(3 if bottleneck else 2): theirs.get_submodule(f"conv{k + 1}").padding = ours.body[2 * k].padding
    if projection: projection.conv.weight = ours.shortcut.weight
    h = torch.randn(2, i, 8, 8)
    assert torch.allclose(ours(h), theirs(h), atol=1e-4)


def batch_norm(h, w, key):
    "Batch norm in training, written out."
    mean, var = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), unbiased=False, keepdim=True)
    return (h - mean) / (var + 1e-5).sqrt() * w[f"{key}.weight"].view(1, -1, 1, 1) + w[f"{key}.bias"].view(1, -1, 1, 1)


@pytest.mark.parametrize("slope", [0., .01])
def test_wide_resnet_recomputed_in_float64(slope, x):
    net, x = wide_resnet((3, 32, 32), 5, depth=16, widen=2, slope=slope, mean=MEAN, std=STD).double().train(), x.double()
    w, act = net.state_dict(), lambda h: torch.where(h > 0, h, slope * h)
    h = F.conv2d(net.norm(x), w["stages.0.0.weight"], w["stages.0.0.bias"], padding=1)
    for s in range(3):
        for b in range(2):
            p, stride = f"stages.{s}.{b + (s == 0)}", 2 if s and not b else 1
            f = F.conv2d(act(batch_norm(h, w, f"{p}.body.0")), w[f"{p}.body.2.weight"], w[f"{p}.body.2.bias"], padding=1)
            f = F.conv2d(act(batch_norm(f, w, f"{p}.body.4")), w[f"{p}.body.6.weight"], w[f"{p}.body.6.bias"], stride=stride, padding=1)
            h = f + (h if b else F.conv2d(h, w[f"{p}.shortcut.weight"], w[f"{p}.shortcut.bias"], stride=stride))
    z = act(batch_norm(h, w, "pool.0")).mean((2, 3))
    assert torch.allclose(net.features(x), z, atol=1e-9) and torch.allclose(net(x), z @ w["head.weight"].T + w["head.bias"], atol=1e-9)


@pytest.mark.parametrize("identity", ["raw", "activated"])
def test_preact_resnet_recomputed_in_float64(identity, x):
    net, x = preact_resnet((3, 32, 32), 5, (2, 2), width=4, identity=identity, mean=MEAN, std=STD).double().train(), x.double()
    w = net.state_dict()
    h = F.conv2d(net.norm(x), w["stages.0.0.weight"], padding=1)
    for s in range(2):
        for b in range(2):
            p, stride = f"stages.{s}.{b + (s == 0)}", 2 if s and not b else 1
            a = batch_norm(h, w, f"{p}.act.0").relu()
            f = batch_norm(F.conv2d(a, w[f"{p}.body.0.weight"], stride=stride, padding=1), w, f"{p}.body.1.0").relu()
            f = F.conv2d(f, w[f"{p}.body.2.weight"], padding=1)
            h = f + (F.conv2d(a, w[f"{p}.shortcut.weight"], stride=stride) if s and not b else h if identity == "raw" else a)
    assert torch.allclose(net(x), h.mean((2, 3)) @ w["head.weight"].T + w["head.bias"], atol=1e-9)


@settings(deadline=None, max_examples=15)
@given(st.integers(1, 8), st.integers(1, 8), st.sampled_from([1, 2]), st.booleans())
def test_the_dialect_touches_identity_shortcuts_only(i, o, stride, bottleneck):
    raw, activated = (PreActBlock(i, o, stride, bottleneck, identity).eval() for identity in ("raw", "activated"))
    activated.load_state_dict(raw.state_dict())
    h = torch.randn(2, i, 8, 8)
    gap = activated(h) - raw(h)
    if raw.shortcut is None: assert torch.allclose(gap, raw.act(h) - h, atol=1e-5) and gap.abs().max() > 0
    else: assert torch.equal(activated(h), raw(h))


def test_the_stride_of_a_wide_block_is_in_its_second_convolution():
    sizes, block = [], WideBlock(4, 8, 2)
    for m in block.body.modules():
        if isinstance(m, torch.nn.Conv2d): m.register_forward_hook(lambda _, __, h: sizes.append(h.shape[-1]))
    block(torch.randn(2, 4, 8, 8))
    assert sizes == [8, 4]


# ---- randomness -----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", ["small-cnn", "tiny-cnn", "mlp", "vae-small", "wrn28-2"])
def test_weights_come_from_the_generator_alone(name):
    classes = None if name.startswith("vae") else 10
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    one = build(name, (1, 32, 32), classes, gen(3)).state_dict()
    assert torch.equal(torch.get_rng_state(), before[0]) and np.random.get_state()[1].tolist() == before[1] and random.getstate() == before[2]
    torch.manual_seed(2)
    two, other = build(name, (1, 32, 32), classes, gen(3)).state_dict(), build(name, (1, 32, 32), classes, gen(4)).state_dict()
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert not all(torch.equal(one[k], other[k]) for k in one)


def test_the_global_state_is_put_back_when_building_fails():
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="above 0"): build("tiny-cnn", (1, 32, 32), 10, gen(), mean=(.5,), std=(0.,))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_default_device_does_not_move_the_draw():
    with torch.device("meta"): moved = build("tiny-cnn", (1, 32, 32), 10, gen())
    assert all(torch.equal(a, b) for a, b in zip(moved.state_dict().values(), build("tiny-cnn", (1, 32, 32), 10, gen()).state_dict().values()))


@settings(deadline=None, max_examples=20)
@given(st.floats(0, .9), st.integers(0, 2**31))
def test_dropout_keeps_the_mean_and_repeats(p, seed):
    layer, h = Dropout(p), torch.ones(50_000)
    layer.rng = gen(seed)
    out = layer(h)
    assert abs(out.mean() - 1) < 6 * (p / (1 - p) / len(h))**.5 + 1e-6
    layer.rng = gen(seed)
    assert torch.equal(layer(h), out) and torch.equal(layer.eval()(h), h)


def test_a_copy_with_dropout_draws_for_itself(x):
    net = LIGHT["wide-leaky"]().draw_from(gen())
    twin = copy.deepcopy(net)
    assert torch.equal(net(x), twin(x)) and torch.equal(net(x), twin(x))


def test_dropout_without_a_generator_is_refused(x):
    with pytest.raises(ValueError, match=r"net.draw_from\(rng\)"): LIGHT["wide-leaky"]()(x)


# ---- the autoencoder ------------------------------------------------------------------------------------------------------

@settings(deadline=None, max_examples=25)
@given(st.integers(8, 40), st.integers(8, 40), st.integers(1, 3), st.integers(1, 3), st.sampled_from(["deterministic", "gaussian"]))
def test_autoencoder_returns_images_of_the_size_it_got(h, w, channels, depth, posterior):
    net = ConvVAE((channels, h, w), latent=5, width=2, depth=depth, posterior=posterior).eval()
    x = torch.rand(3, channels, h, w)
    y = net(x)
    assert y.shape == x.shape and 0 <= y.min() and y.max() <= 1
    assert net.encode(x).shape == (3, 5) and torch.equal(y, net.decode(net.encode(x)))
    assert torch.allclose(torch.cat([net(one[None]) for one in x]), y, atol=1e-5)


@given(st.integers(1, 300), st.integers(0, 6))
def test_halvings_are_the_sizes_that_the_convolutions_give(side, depth):
    if side >> depth < 1:
        with pytest.raises(ValueError, match="cannot be halved"): halvings(side, depth)
    else:
        h = torch.zeros(1, 1, side, 2**depth)
        for size in halvings(side, depth)[1:]:
            h = F.conv2d(h, torch.zeros(1, 1, 4, 4), stride=2, padding=1)
            assert h.shape[2] == size


def test_gaussian_posterior_has_the_moments_it_states():
    net, x = ConvVAE((1, 8, 8), latent=4, width=2, posterior="gaussian").eval(), torch.rand(1, 1, 8, 8)
    net.encoder[-1].bias.data[4:] = torch.tensor([-2., 0., 1., 2.])
    mean, logvar = net.moments(x)
    z = net.posterior(x.expand(40_000, -1, -1, -1), gen())
    assert torch.equal(net.encode(x), mean) and not torch.equal(mean, logvar)
    assert ((z.mean(0) - mean[0]).abs() < 5 * (logvar[0] / 2).exp() / 200).all()
    assert torch.allclose(z.var(0), logvar[0].exp(), rtol=.05)


def test_the_deterministic_posterior_draws_nothing():
    net, rng = ConvVAE((1, 8, 8), latent=4, width=2).eval(), gen()
    before, x = rng.get_state(), torch.rand(3, 1, 8, 8)
    assert torch.equal(net.posterior(x, rng), net.encode(x)) and torch.equal(rng.get_state(), before)


def test_a_frozen_autoencoder_passes_gradients_to_pixels_and_codes_only():
    net, x = ConvVAE((1, 16, 16), latent=4, width=2).frozen(), torch.rand(3, 1, 16, 16, requires_grad=True)
    before = copy.deepcopy(net.state_dict())
    z = net.encode(x)
    z.retain_grad()
    net.decode(z).square().sum().backward()
    assert x.grad.abs().sum() > 0 and z.grad.abs().sum() > 0 and all(p.grad is None for p in net.parameters())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("make, message", [
    (lambda: ConvVAE((1, 7, 32)), "of 7 px cannot be halved 3 times: use depth 2 or less, or images of at least 8 px"),
    (lambda: ConvVAE((1, 32, 32), posterior="normal"), "unknown posterior 'normal': Known: deterministic, gaussian"),
    (lambda: ConvVAE((1, 32, 32), latent=0), "latent must be at least 1, got 0"),
    (lambda: ConvVAE((1, 32, 32), width=2).encode(torch.rand(2, 1, 28, 28)), r"shape \(B, 1, 32, 32\), got \(2, 1, 28, 28\)"),
    (lambda: ConvVAE((1, 32, 32), width=2).decode(torch.rand(2, 3)), r"codes must have shape \(B, 128\), got \(2, 3\)"),
    (lambda: wide_resnet((3, 32, 32), 10, depth=27), r"depth must be 6 n \+ 4"),
    (lambda: preact_resnet((3, 32, 32), 10, identity="relu"), "unknown identity 'relu': Known: raw, activated"),
    (lambda: Staged((3, 8, 8), [], torch.nn.Identity(), mean=(.5,), std=(.5,)), "3 channels, but mean and std have 1"),
    (lambda: build("small-cnm", (1, 32, 32), 10, gen()), "unknown network 'small-cnm': did you mean 'small-cnn'"),
    (lambda: build("small-cnn", (1, 32, 32), None, gen()), "say how many classes")])
def test_what_cannot_be_built_is_refused(make, message):
    with pytest.raises(ValueError, match=message): make()
