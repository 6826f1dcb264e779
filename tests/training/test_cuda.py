"What only a GPU can tell; `mixrepro bench gpu` runs these first. Where there is none they are skipped, and tests/training/test_device.py stands in."

import math
from dataclasses import replace

import pytest
import torch

from mixrepro.data.corruptions import CORRUPTIONS, corrupt
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.networks.zoo import build
from mixrepro.training import loop
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store, network_of

from helpers import photographs, seeded

pytestmark = pytest.mark.cuda
SPEC = Spec("digits", "mixup", "small-cnn", batch=64, epochs=3, n_train=256, optimizer="sgd", lr=.05)


def on_gpu(seed=0): return torch.Generator("cuda").manual_seed(seed)


def setting(spec=SPEC):
    "What a step needs."
    train = loop.load(spec.dataset, "train").subset(spec.n_train).to("cuda")
    net = network_of(spec, train.shape, train.k, "cuda").train()
    rngs = {name: torch.Generator("cpu" if name == "order" else "cuda").manual_seed(0) for name in loop.STREAMS}
    return net, method(spec.method, **spec.method_args).prepare(train, on_gpu()), train, spec, loop.optimizer(spec, net), rngs


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["erm", "mixup", "manifold-mixup", "cutout", "cutmix", "puzzlemix", "dropout", "at", "trades", "iat"])
def test_no_step_waits_for_the_device(name, precision):
    net, made, train, spec, opt, rngs = setting(replace(SPEC, method=name, precision=precision))
    x, y = train.floats(slice(0, 64)), train.y[:64]
    def step():
        with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bfloat16"): loss = made.loss(net, loop.AUGMENTS["crop-flip"](x, rngs["augment"]), y, rngs["method"])
        opt.zero_grad(set_to_none=True); loss.backward(); opt.step()
        return loss.detach()
    step(); torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try: loss = step()
    finally: torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()


def test_the_clock_of_waiting_is_heard():
    torch.cuda.set_sync_debug_mode("error")
    try:
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation"): torch.ones(1, device="cuda").item()
    finally: torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", [k for k in CORRUPTIONS if k != "jpeg_compression"])
def test_no_corruption_waits_once_its_tables_are_there(kind):
    x = photographs(8, 32).cuda()
    corrupt(x, kind, 3); torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    assert torch.equal(corrupt(x, kind, 3), corrupt(x, kind, 3)) and torch.cuda.memory_allocated() <= before + (64 << 20)


def test_bfloat16_computes_in_bfloat16_and_learns_in_float32():
    net, made, train, spec, opt, rngs = setting(replace(SPEC, precision="bfloat16"))
    seen, before = set(), [p.detach().clone() for p in net.parameters()]
    hooks = [m.register_forward_hook(lambda m, i, o: seen.add(o.dtype)) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    loss = loop.train_epoch(net, made, train, spec, opt, rngs, 0)
    for h in hooks: h.remove()
    assert seen == {torch.bfloat16} and loss == loss and all(p.dtype == p.grad.dtype == torch.float32 for p in net.parameters())
    assert any(not torch.equal(p, q) for p, q in zip(before, net.parameters()))


def test_convolutions_stay_channels_last():
    net, made, train, spec, opt, rngs = setting()
    seen = []
    hooks = [m.register_forward_hook(lambda m, i, o: seen.append(o.is_contiguous(memory_format=torch.channels_last))) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    loop.train_epoch(net, made, train, spec, opt, rngs, 0)
    assert seen and all(seen)
    for h in hooks: h.remove()


@pytest.mark.parametrize("mode", [None, "reduce-overhead"])
def test_a_compiled_network_gives_the_same_loss(mode):
    losses = []
    for wrap in (lambda net: net, lambda net: torch.compile(net, mode=mode)):
        net, made, train, spec, opt, rngs = setting(replace(SPEC, method="erm"))
        losses.append(loop.train_epoch(wrap(net), made, train, spec, opt, rngs, 0))
    assert abs(losses[0] - losses[1]) < 1e-2 * losses[0]


@pytest.mark.parametrize("name", ["mixup", "manifold-mixup", "at"])
def test_a_run_that_was_cut_off_ends_with_the_same_bits(name, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    spec = replace(SPEC, method=name, method_args=dict(steps=2) if name == "at" else {})
    whole = loop.train_run(spec, Store(tmp_path / "a"), "cuda")
    monkeypatch.setattr(loop, "KEEPING", math.inf)  # after each epoch
    save = loop.save_checkpoint
    def dies(run, state):
        save(run, state)
        if len(state["rows"]) == 2: raise KeyboardInterrupt
    monkeypatch.setattr(loop, "save_checkpoint", dies)
    with pytest.raises(KeyboardInterrupt): loop.train_run(spec, Store(tmp_path / "b"), "cuda")
    monkeypatch.setattr(loop, "save_checkpoint", save)
    again = loop.train_run(spec, Store(tmp_path / "b"), "cuda")
    assert (whole.folder / "weights.safetensors").read_bytes() == (again.folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("name", ["erm", "mixup", "manifold-mixup"])
def test_a_step_on_the_gpu_is_the_one_on_the_cpu(name):
    "Up to rounding, with the draws of one of them."
    made, net = method(name), build("small-cnn", (1, 16, 16), 5, seeded()).eval()
    x, y = torch.rand(16, 1, 16, 16, generator=seeded()), torch.arange(16) % 5
    if name == "erm": assert abs(made.loss(net, x, y, seeded()) - made.loss(net.cuda(), x.cuda(), y.cuda(), on_gpu()).cpu()) < 1e-3
    else: assert made.loss(net.cuda(), x.cuda(), y.cuda(), on_gpu()) == made.loss(net, x.cuda(), y.cuda(), on_gpu())
    assert name in METHODS
