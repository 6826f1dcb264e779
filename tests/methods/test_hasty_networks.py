"""Networks whose first layer writes over what it is given, as one with `x.sub_(mean)`: a method that comes back to its images must not find others."""

import pytest
import torch

from mixrepro.methods.catalogue import METHODS
from mixrepro.networks.staged import Normalize
from steps import ready

LABELS = ["linear", "logistic", "genlabel", "genlabel-latent", "genlabel-online"]
REFUSED = "at", "iat", "puzzlemix", "trades"  # which look for the slope in the images


def step(name, first, patch, **args):
    "The loss and its slope in the network, of one batch."
    made, net, train = ready(name, device="cpu", **args)
    x, y, params = train.floats()[:6].clone(), train.y[:6], [*net.parameters()]
    with patch.context() as p:
        p.setattr(Normalize, "forward", first)
        loss = made.at(.5).loss(net, x, y, torch.Generator().manual_seed(5), torch.arange(6))
        return loss, *(g for g in torch.autograd.grad(loss, params, allow_unused=True) if g is not None)


def hasty(self, x): return x.sub_(self.mean).div_(self.std)
def careful(self, x): return hasty(self, x.clone())


@pytest.mark.parametrize("name, args", [*((name, {}) for name in METHODS), *(("mixup", dict(labels={"name": name})) for name in LABELS), ("no-intrusion", dict(per="example"))])
def test_the_step_is_that_of_a_network_which_takes_copies(name, args, monkeypatch):
    if name in REFUSED:
        with pytest.raises(ValueError, match="the network writes over the images that it is given"): step(name, hasty, monkeypatch, **args)
        return
    for ours, theirs in zip(step(name, hasty, monkeypatch, **args), step(name, careful, monkeypatch, **args), strict=True):
        assert torch.allclose(ours, theirs, atol=1e-6)
