"The adapter on networks that we did not write: torchvision's and timm's, and our own with the same weights."
import copy
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchvision import models

from helpers import seeded as gen
from mixrepro.methods.catalogue import method
from mixrepro.methods.genlabel import OnlineGenLabels
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.noisymix import NOISYMIX, NOISYMIX_CODE
from mixrepro.networks.adapter import candidates, staged
from mixrepro.networks.resnet import resnet, resnet50

SHAPE, RESIDUAL = (3, 32, 32), ["layer1", "layer2", "layer3", "layer4"]
BUILT = {
    "torchvision resnet18": (lambda: models.resnet18(num_classes=5), RESIDUAL),
    "torchvision densenet": (lambda: models.DenseNet(8, (2, 2), 16, num_classes=5),
                             ["features.denseblock1", "features.denseblock2"]),
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=5), RESIDUAL),
    "timm vit": (lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=4, num_classes=5),
                 [f"blocks.{i}" for i in range(4)]),
    "timm convnext": (lambda: timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 32, 64),
                                                num_classes=5), [f"stages.{i}" for i in range(4)]),
}


def built(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        make, names = BUILT[name]
        net = make()
    return net, names


@pytest.fixture(params=BUILT)
def pair(request):
    "A network of others, and the same in stages."
    net, names = built(request.param)
    return net, staged(net, SHAPE, names)


def batch(n=4): return torch.rand(n, *SHAPE, generator=gen(1)), torch.arange(n) % 5


def test_nothing_changes_unless_it_is_asked_for(pair):
    net, ours = pair
    net.eval(); x, _ = batch()
    whole = net(x)
    assert torch.equal(ours(x), whole)
    for k in range(len(ours.stages) + 1): assert torch.equal(ours(x, at=k, through=lambda h: h), whole), k
    assert torch.equal(ours.head(ours.features(x)), whole)
    assert ours.features(x).shape == (4, ours.head.in_features)


def test_what_goes_through_a_stage_is_what_goes_on(pair):
    "The state of another batch brings that batch's logits, at every stage; and its gradient is that of the state."
    net, ours = pair
    net.eval(); x, _ = batch()
    other = 1 - x
    wanted = net(other)
    for k in range(len(ours.stages) + 1):
        there = []
        ours(other, at=k, through=lambda h: there.append(h.detach()) or h)
        state = there[0].requires_grad_()
        out = ours(x, at=k, through=lambda h: state)
        assert torch.equal(out, wanted)
        out.square().sum().backward()
        assert state.grad.abs().sum() > 0


def test_gradients_are_those_of_the_bare_network(pair):
    net, ours = pair
    twin, (x, y) = copy.deepcopy(net), batch()
    net.eval(), twin.eval()
    F.cross_entropy(twin(x), y).backward()
    F.cross_entropy(ours(x, at=1, through=lambda h: h), y).backward()
    for (n, p), q in zip(twin.named_parameters(), net.parameters()): assert torch.equal(p.grad, q.grad), n


@pytest.mark.parametrize("how", ["manifold-mixup", "each example", "noisymix", "noisymix, code", "genlabel"])
def test_methods_train_through_it(pair, how):
    net, ours = pair
    ways = {"manifold-mixup": method("manifold-mixup"), "noisymix": NOISYMIX, "noisymix, code": NOISYMIX_CODE,
            "each example": method("manifold-mixup", per="lambda and layer"), "genlabel": Mixup(labels=OnlineGenLabels())}
    if "densenet" in type(net).__name__.lower() and how.startswith("noisymix"): pytest.skip("NoisyMix has four stages")
    x, y = batch(8)
    train = type("Train", (), dict(k=5, x=x))()
    way = ways[how].prepare(train, gen())
    ours.train()
    loss = way.loss(ours, x, y, gen(2))
    loss.backward()
    assert loss.isfinite() and all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ours.modules())


def test_mixing_at_a_stage_is_what_it_says(pair):
    "Against the bare network and a hook written here."
    net, ours = pair
    net.eval(); x, _ = batch(); names = ours.names
    def mixed(h): return .3 * h + .7 * h.flip(0)
    for k, name in enumerate(names, 1):
        hook = net.get_submodule(name).register_forward_hook(lambda m, a, out: mixed(out))
        wanted = net(x)
        hook.remove()
        assert torch.equal(ours(x, at=k, through=mixed), wanted) and not torch.equal(wanted, net(x))


def test_against_our_own_stages_with_the_same_weights():
    "torchvision's ResNet-50 in its stages; and ours for small images, whose weights come in torchvision's order."
    mean, std = (.4, .5, .6), (.2, .3, .25)
    fifty = resnet50((3, 32, 32), 5, mean, std).eval()
    bare = models.resnet50(num_classes=5).eval()
    small, eighteen = resnet(SHAPE, 5, (2, 2, 2, 2), mean, std, width=64).eval(), models.resnet18(num_classes=5).eval()
    eighteen.conv1, eighteen.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    x = batch(2)[0]
    for theirs, own in ((bare, fifty), (eighteen, small)):
        weights = [v for k, v in own.state_dict().items() if not k.startswith("norm.")]
        theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
        net = staged(theirs, SHAPE, RESIDUAL, mean=mean, std=std)
        for k in range(5):
            states = [[], []]
            outs = [n(x, at=k, through=lambda h, s=s: s.append(h) or h.flip(0)) for n, s in zip((own, net), states)]
            assert torch.allclose(*outs, atol=1e-5) and torch.allclose(states[0][0], states[1][0], atol=1e-5)
        assert torch.allclose(own.features(x), net.features(x), atol=1e-5)


def test_the_same_draws_give_the_same_loss_as_our_own_stages():
    own, theirs = resnet(SHAPE, 5, (2, 2, 2, 2), width=8), models.ResNet(models.resnet.BasicBlock, [2, 2, 2, 2], 5)
    theirs.conv1, theirs.maxpool, theirs.inplanes = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.Identity(), 8
    theirs.bn1, widths = nn.BatchNorm2d(8), (8, 16, 32, 64)
    for k, w in enumerate(widths): setattr(theirs, f"layer{k + 1}", theirs._make_layer(models.resnet.BasicBlock, w, 2, 1 + (k > 0)))
    theirs.fc = nn.Linear(64, 5)
    weights = [v for k, v in own.state_dict().items() if not k.startswith("norm.")]
    theirs.load_state_dict(dict(zip(theirs.state_dict(), weights, strict=True)))
    net, (x, y) = staged(theirs, SHAPE, RESIDUAL, mean=(.5,) * 3, std=(.5,) * 3), batch(8)
    for way in (method("manifold-mixup"), NOISYMIX, NOISYMIX_CODE):
        losses = [way.loss(n.train(), x, y, gen(4)) for n in (own, net)]
        assert torch.allclose(*losses, rtol=1e-4), way


def test_a_copy_and_a_moving_average_are_networks_of_their_own(pair):
    net, ours = pair
    x, _ = batch(); ours.eval()
    ema = AveragedModel(ours, multi_avg_fn=get_ema_multi_avg_fn(.5))
    before = ours(x, at=1, through=lambda h: h)
    for _ in range(2): ema.update_parameters(ours)
    with torch.no_grad(): [p.mul_(.5) for p in net.parameters()]
    assert torch.equal(ema.module.eval()(x, at=1, through=lambda h: h), before)
    assert not torch.equal(ours(x), before)
    assert ema.module.state_dict().keys() == net.state_dict().keys()


def test_checkpoints_go_both_ways(pair, tmp_path):
    net, ours = pair
    fresh = built(next(k for k in BUILT if isinstance(built(k)[0], type(net))))[0]
    with torch.no_grad(): [p.add_(.01) for p in net.parameters()]
    torch.save(ours.state_dict(), tmp_path / "w.pt")
    fresh.load_state_dict(torch.load(tmp_path / "w.pt"))  # strict
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values()))
    with torch.no_grad(): [p.zero_() for p in net.parameters()]
    ours.load_state_dict(torch.load(tmp_path / "w.pt"))
    assert all(torch.equal(a, b) for a, b in zip(fresh.state_dict().values(), net.state_dict().values()))
    wrong = dict(fresh.state_dict(), more=torch.ones(1))
    with pytest.raises(RuntimeError, match="Unexpected key.*more"): ours.load_state_dict(wrong)
    wrong = fresh.state_dict(); del wrong[next(iter(wrong))]
    with pytest.raises(RuntimeError, match="Missing key"): ours.load_state_dict(wrong)


def test_inside_another_module_the_keys_stay_too():
    net, _ = built("torchvision resnet18")
    two = nn.ModuleDict(dict(a=staged(net, SHAPE, RESIDUAL), b=nn.Linear(2, 2)))
    assert list(two.state_dict()) == [f"a.{k}" for k in net.state_dict()] + ["b.weight", "b.bias"]
    two.load_state_dict({k: v.clone() for k, v in two.state_dict().items()})


def test_autocast_and_modes(pair):
    net, ours = pair
    x, _ = batch()
    ours.train()
    assert net.training and not ours.eval().net.training
    with torch.autocast("cpu", torch.bfloat16): whole, through = net(x), ours(x, at=2, through=lambda h: h)
    assert whole.dtype == torch.bfloat16 and torch.equal(whole, through)


def test_no_hook_is_left_behind(pair):
    net, ours = pair
    def fails(h): raise KeyError("in the middle")
    for at in (1, (1, 2)):
        with pytest.raises(KeyError): ours(batch()[0], at=at, through=fails)
    with pytest.raises((RuntimeError, ValueError, AssertionError)): ours(torch.rand(2, 3, 32, 32), at=1, through=lambda h: h.flatten())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in ours.modules())


def test_where_the_stem_is_counted_it_is_said():
    for name, names in (("torchvision resnet18", ["conv1", "layer1"]), ("timm resnet18", ["maxpool", "layer1"]),
                        ("timm convnext", ["stem", "stages.0"]), ("timm vit", ["patch_embed", "blocks.0"])):
        with pytest.warns(UserWarning, match=r"their stages \(0, 1, 2\) are \(0, 2, 3\) here"): staged(built(name)[0], SHAPE, names)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name, (_, names) in BUILT.items(): staged(built(name)[0], SHAPE, names)


PAST = {"torchvision resnet18": "layer2.0.conv1", "torchvision densenet": "features.denseblock1.denselayer1",
        "timm resnet18": "layer2.0.bn2", "timm vit": "blocks.1.mlp", "timm convnext": "stages.1.blocks.0.mlp"}


@pytest.mark.parametrize("name", PAST)
def test_a_stage_that_the_pass_goes_around_is_said(name):
    "A mixture there leaves the rest of the state as it was: the network still sees the images unmixed."
    net, names = built(name)
    before, flags = copy.deepcopy(net.state_dict()), [m.training for m in net.modules()]
    with pytest.warns(UserWarning, match=f"the pass goes around '{PAST[name]}' too: .* name a submodule that everything passes") as told: ours = staged(net, SHAPE, [PAST[name]])
    assert any(w.filename == __file__ for w in told if "around" in str(w.message))
    ours.eval()
    def made_one(k): return ours.features(batch()[0], at=k, through=lambda h: h[:1].expand_as(h).clone())[:2]
    assert not torch.allclose(*made_one(1)) and torch.allclose(*made_one(0))
    assert [m.training for m in net.train().modules()] == flags and not any(m._forward_hooks for m in net.modules())
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_what_can_be_a_stage(pair):
    net, ours = pair
    there = candidates(net, batch()[0], depth=2)
    assert set(ours.names) <= there.keys()
    shapes = []
    for k in range(1, len(ours.names) + 1): ours(batch()[0], at=k, through=lambda h: shapes.append(tuple(h.shape[1:])) or h)
    assert shapes == [there[n] for n in ours.names]


def test_a_plain_network_is_told_what_to_do():
    x, y = batch()
    for name in ("torchvision resnet18", "timm convnext"):
        with pytest.raises(TypeError, match="adapter.staged"): method("manifold-mixup").loss(built(name)[0], x, y, gen())
    with pytest.raises(TypeError, match="adapter.staged"):
        Mixup(labels=OnlineGenLabels()).prepare(type("T", (), dict(k=5, x=x))(), gen()).loss(built("torchvision resnet18")[0], x, y, gen())


def test_tuples_are_no_states():
    class Two(nn.Module):
        def forward(self, x): return x, x
    class Net(nn.Module):
        def __init__(self): super().__init__(); self.two, self.unused, self.fc = Two(), nn.Linear(1, 1), nn.Linear(3072, 5)
        def forward(self, x): return self.fc(self.two(x)[0].flatten(1))
    x = batch()[0]
    with pytest.raises(TypeError, match="'two' gives a tuple, and a stage gives one tensor"): staged(Net(), SHAPE, ["two"])(x, at=1, through=lambda h: h)
    with pytest.raises(ValueError, match="stages unused were met as none"): staged(Net(), SHAPE, ["unused"])(x, at=1, through=lambda h: h)
    with pytest.raises(ValueError, match="has no linear layer: say head="): staged(nn.Sequential(nn.Conv2d(3, 3, 1)), SHAPE, ["0"])
    assert staged(Net(), SHAPE, "two").names == ("two",)


@pytest.mark.parametrize("around", [nn.DataParallel, copy.deepcopy, lambda net: AveragedModel(net).module], ids=["DataParallel", "copied", "averaged"])
def test_what_is_put_around_a_network_changes_no_loss(around):
    net = staged(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(196, 5)), SHAPE, ["0", "2"])
    x, y = torch.rand(4, *SHAPE), torch.arange(4)
    found = []
    for n in (net, around(net)):
        loss = replace(NOISYMIX, stages=(0, 1, 2)).loss(n, x, y, torch.Generator().manual_seed(0), torch.arange(4))
        with torch.inference_mode(): found.append((loss.detach(), Mixup().loss(n, x, y, torch.Generator().manual_seed(0), torch.arange(4))))
    assert torch.equal(torch.stack(found[0]), torch.stack(found[1]))


def small(): return staged(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Flatten(), nn.Linear(196, 5)), SHAPE, ["0", "2"])


def test_features_of_a_network_whose_logits_are_converted():
    "As accelerate's prepare does with mixed_precision='bf16': the object's own forward is another."
    net, x = small(), batch()[0]
    before, own = net.features(x), net.forward
    net.forward = lambda *args, **kw: own(*args, **kw).double().float()
    assert net(x) is not net(x) and torch.equal(net.features(x), before)
    net.last = "3"
    with pytest.raises(ValueError, match="'3' does not give the logits: say head="): net.features(x)


class Converts(nn.Sequential):
    "Logits in single precision behind layers in half, as many models of language and vision end; a factor more is another layer."
    factor = 1.
    def forward(self, x): return self.factor * super().forward(x).float() if self.factor != 1 else super().forward(x).float()


def test_features_of_a_network_that_converts_its_logits_itself():
    plain, x = small(), batch()[0]
    net = staged(Converts(*plain.net), SHAPE, ["0", "2"])
    assert torch.equal(net.features(x), plain.features(x))
    with torch.autocast("cpu", torch.bfloat16): assert net(x).dtype == torch.float32 and torch.equal(net.features(x), plain.features(x))
    net.net.factor = 2.
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="'4' does not give the logits: say head="): net.features(x)
    net.net.factor, net.head.bias.data[0] = 1., float("nan")  # a network that has diverged is told that elsewhere
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(net.features(x), plain.features(x))


@pytest.mark.parametrize("within", [False, True])
def test_a_compiled_network_is_the_one_that_is_compiled(within):
    "What was learned of it goes on; code that was compiled without hooks is told, and the remedy helps."
    plain, (x, y) = small(), batch()
    made = Mixup(labels=OnlineGenLabels(warmup=0.)).prepare(type("T", (), dict(k=5, x=x))(), gen())
    net, losses = copy.deepcopy(plain), []
    for guarded in (True, False):
        torch._dynamo.reset()
        with torch._dynamo.config.patch(skip_nnmodule_hook_guards=not guarded):
            if within: net.compile(backend="eager"); compiled = net
            else: compiled = torch.compile(net, backend="eager")
            compiled(x)  # as ERM's first epochs
            if not guarded:
                with pytest.raises(ValueError, match="no hook saw what .* is given in this pass: code that was compiled"):
                    made.loss(compiled, x, y, gen())
                continue
            losses = [made.loss(n, x, y, gen()) for n in (net, compiled)]
    assert torch.equal(*losses)
    with pytest.raises(ValueError, match="another network's features"): made.loss(torch.compile(plain), x, y, gen())


def test_another_thread_meanwhile_is_named():
    net, x = small(), batch()[0]
    with ThreadPoolExecutor(1) as other, pytest.raises(ValueError, match="'0' is called more than once in a pass, or by another thread meanwhile"):
        net(x, at=1, through=lambda h: other.submit(net, x).result() and h)


def test_a_checkpoint_of_others_is_of_the_bare_network():
    "Asked for the object, torch.distributed.checkpoint loads no weight of it, and with strict=False says nothing."
    from torch.distributed.checkpoint import state_dict as D
    net, fresh, how = small(), small(), D.StateDictOptions(full_state_dict=True, strict=False)
    for ask in (D.get_model_state_dict, lambda n: D.set_model_state_dict(n, net.state_dict(), options=how)):
        with pytest.raises(ValueError, match=r"those of the bare network: hand it that, the attribute net, as in get_model_state_dict\(net.net\)"): ask(fresh)
    kept, opt, own = net.state_dict(), *(torch.optim.SGD(n.parameters(), .1, .9) for n in (net, fresh))
    net(batch()[0]).sum().backward(); opt.step()
    weights, moments = D.get_state_dict(net.net, opt)
    D.set_state_dict(fresh.net, own, model_state_dict=weights, optim_state_dict=moments)
    assert kept.keys() == weights.keys() and all(map(torch.equal, fresh.state_dict().values(), net.state_dict().values()))
    assert torch.equal(own.state[fresh.net[0].weight]["momentum_buffer"], opt.state[net.net[0].weight]["momentum_buffer"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_network_made_on_meta_normalises_once_its_weights_are_there(assign):
    "What `to_empty` leaves is whatever lay in memory, and a state of the bare network does not hold the constants."
    def made(): return staged(nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Flatten(), nn.Linear(900, 5)), SHAPE, ["0"], mean=(.1, .2, .3), std=(.4, .5, .6))
    net, x = made(), batch()[0]
    with torch.device("meta"): empty = made()
    if not assign:
        empty = empty.to_empty(device="cpu")
        for b in empty.norm.buffers(): b.fill_(torch.nan)
    empty.load_state_dict(net.state_dict(), assign=assign)
    assert torch.equal(empty(x), net(x)) and torch.equal(empty.norm.std, net.norm.std)
    torch.set_default_device("meta")
    try: other = staged(net.net, SHAPE, ["0"], mean=(.1, .2, .3), std=(.4, .5, .6))
    finally: torch.set_default_device(None)
    assert torch.equal(other(x), net(x))
    net.norm.std.mul_(2); net.load_state_dict(other.state_dict())
    assert torch.equal(net.norm.std, 2 * other.norm.std), "what somebody set stays"
