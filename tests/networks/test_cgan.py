"Conditional GANs: the projection against Miyato and Koyama's formula, spectral norms against singular values, pickling, sizes."

import io

import pytest
import torch
from torch import nn

from helpers import seeded
from mixrepro.networks.cgan import ConditionalSNGAN, PointGAN
from mixrepro.networks.zoo import build, kind_of, networks_of

NETS = {"points": ("point-gan", (3, 1, 1), {}), "pixels": ("point-gan", (1, 8, 8), dict(latent=5)), "digits": ("class-sngan-small", (1, 32, 32), {}),
        "mnist": ("class-sngan", (1, 28, 28), dict(width=8, latent=4))}


def made(name, k=3):
    which, shape, more = NETS[name]
    return build(which, shape, k, seeded(), **more)


@pytest.mark.parametrize("name", NETS)
def test_the_class_is_projected_onto_the_features(name):
    net = made(name).eval()
    x, y = torch.rand(6, *net.shape, generator=seeded(1)), torch.arange(6) % 3
    with torch.no_grad():
        phi = net.D.features(net.padded(x))
        by_hand = phi @ net.D.head.weight[0] + net.D.head.bias + (phi * net.embed.weight[y]).sum(1)
        assert torch.allclose(net(x, y), by_hand, atol=1e-5) and not torch.allclose(net(x, y), net(x, (y + 1) % 3))


@pytest.mark.parametrize("name", NETS)
def test_every_weight_of_the_discriminator_has_norm_one(name):
    net = made(name).train()
    x, y = torch.rand(6, *net.shape, generator=seeded(1)), torch.arange(6) % 3
    for _ in range(40): net(x, y)
    weights = [m.weight for part in (net.eval().D, net.embed) for m in part.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    assert len(weights) >= 3 and all(abs(torch.linalg.svdvals(w.detach().flatten(1))[0] - 1) < .02 for w in weights)


@pytest.mark.parametrize("name", NETS)
def test_it_is_pickled_with_its_clock_and_its_modes(name):
    net = made(name)
    for _ in range(3): net.tick()
    net.eval().requires_grad_(False)
    file = io.BytesIO(); torch.save(net, file); file.seek(0)
    before = torch.get_rng_state()
    again = torch.load(file, weights_only=False)
    z, y = net.draw(4, seeded()), torch.arange(4) % 3
    assert torch.equal(again.make(z, y), net.make(z, y)) and again.done == 3 and not any(p.requires_grad for p in again.parameters())
    assert not again.training and torch.equal(torch.get_rng_state(), before)


def test_the_same_noise_makes_another_place_of_each_class_and_noise_is_bounded():
    net = made("points").eval()
    z = net.draw(2000, seeded())
    assert z.abs().max() <= 1 and abs(z.mean()) < 4 * (1 / 3)**.5 / z.numel()**.5
    places = torch.stack([net.make(z, torch.full((2000,), c)) for c in range(3)])
    assert (places[0] - places[1]).abs().max() > 1e-3 < (places[1] - places[2]).abs().max()
    assert torch.equal(net.sample(torch.zeros(5, dtype=torch.int64), seeded()), net.make(net.draw(5, seeded()), torch.zeros(5, dtype=torch.int64)))


def test_kinds_and_refusals():
    assert networks_of("class-gan") == ["point-gan", "class-sngan", "class-sngan-small"] and kind_of("sngan") == "gan"
    with pytest.raises(ValueError, match="needs its number of classes"): PointGAN((2, 1, 1), None)
    with pytest.raises(ValueError, match="got 20 x 32|got 32 x 16"): ConditionalSNGAN((1, 20, 16), 2, width=4)
    with pytest.raises(ValueError, match=r"\(B, 2\) and B classes"): made("points").make(torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="steep must be above 0"): build("point-gan", (2, 1, 1), 2, seeded(), steep=0)
