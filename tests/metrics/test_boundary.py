"Attacks on stacks against one network at a time, and distances that are known."

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mixrepro.metrics.boundary import boundary_attack, signed_step
from mixrepro.training.device import fake_cuda, on_gpu
from mixrepro.training.stacked import Stacked, first_weights, layers

from helpers import seeded


def stack(sizes, G=2, M=2, relu=False, scale=1.):
    rng = seeded(1)
    return Stacked(scale * torch.stack([first_weights(sizes, rng) for _ in range(G * M)]).view(G, M, -1), sizes, relu)


def plain(net, g, m):
    parts = []
    for W, b in layers(net.flat, net.sizes):
        linear = nn.Linear(*W.shape[2:])
        linear.weight.data, linear.bias.data = W[g, m].T.clone(), b[g, m, 0].clone()
        parts += [linear, nn.ReLU()]
    return nn.Sequential(*parts[:-1])


def test_one_step_of_each_network():
    net = stack((3, 16, 16, 4), relu=True, scale=2.)
    x, y = torch.randn(2, 2, 30, 3, generator=seeded()), torch.randint(4, (2, 2, 30), generator=seeded())
    ours = signed_step(net, x, y, .2)
    for g, m in ((0, 1), (1, 0)):
        z = x[g, m].double().requires_grad_()
        F.cross_entropy(plain(net, g, m).double()(z), y[g, m], reduction="sum").backward()
        clear = z.grad.abs() > 1e-6
        assert clear.float().mean() > .95 and torch.allclose(ours[g, m][clear], (z + .2 * z.grad.sign()).float()[clear].detach(), atol=1e-6)


def test_a_sure_network_still_has_a_direction():
    net = Stacked(1e4 * torch.tensor([[[1., -1., 0, 0]]]), (1, 2))
    x = torch.full((1, 1, 1, 1), 5.)
    assert signed_step(net, x, torch.zeros(1, 1, 1, dtype=torch.long), .5).item() == 4.5


@pytest.mark.parametrize("d, within", [(2, 1.001), (20, 1.02)])
def test_linear_networks_of_many_classes(d, within):
    "The nearest boundary of K half-spaces is that of the pair with the smallest margin over its slope, where that point is read as the pair's other class."
    net = stack((d, 3), scale=3.)
    x, examples = torch.randn(2, 2, 60, d, generator=seeded()), torch.randn(2, 150, d, generator=seeded(1))
    logits, W = net(x), layers(net.flat, net.sizes)[0][0]
    y = logits.argmax(-1)
    own = W.mT[:, :, None].expand(-1, -1, 60, -1, -1).gather(3, y[..., None, None].expand(-1, -1, -1, 1, d))
    margin = logits.gather(-1, y[..., None]) - logits
    slope = (own - W.mT[:, :, None]).norm(dim=-1).clamp_min(1e-9)
    nearest = (margin / slope).scatter(-1, y[..., None], torch.inf).amin(-1)
    found = boundary_attack(net, x, y, examples, seeded(2), 1000)
    ratio = found / nearest
    assert ratio[found.isfinite()].min() > .999 and ratio[found.isfinite()].quantile(.9) < within


def test_never_nearer_than_a_fine_grid_says():
    "A ReLU network in the plane: no point within the distance found is read as another class, and mostly little is lost."
    net = stack((2, 12, 12, 2), 1, 1, True, 3.)
    x = torch.randn(1, 1, 25, 2, generator=seeded())
    layers(net.flat, net.sizes)[-1][1].sub_(net(x).mean((0, 1, 2)))  # so that both classes are there
    y = net(x).argmax(-1)
    examples = 2 * torch.randn(1, 200, 2, generator=seeded(1))
    found = boundary_attack(net, x, y, examples, seeded(2), 800)
    line = torch.linspace(-5, 5, 801)
    grid = torch.cartesian_prod(line, line)
    read = net(grid[None]).argmax(-1)[0, 0]
    nearest = torch.stack([(grid[read != c] - p).norm(dim=1).min() for p, c in zip(x[0, 0], y[0, 0])])
    step = 2**.5 * (line[1] - line[0])
    assert (found[0, 0] >= nearest - step).all() and (found[0, 0] / nearest).median() < 1.02


@pytest.mark.parametrize("d", [1, 4])
def test_a_misread_point_that_is_an_example_is_at_no_distance(d):
    "A step on a sphere of radius 0 stays where it is."
    net = stack((d, 8, 3))
    x = torch.randn(2, 2, 20, d, generator=seeded())
    x[:] = x[0, 0]
    read = net(x).argmax(-1)
    examples = x[:, 0]
    found = boundary_attack(net, x, (read + 1) % 3, examples, seeded(), 30)
    assert (found == 0).all()


def test_the_walk_goes_by_the_generator():
    net, x = stack((3, 2)), torch.randn(2, 2, 9, 3, generator=seeded())
    y, examples = net(x).argmax(-1), torch.randn(2, 40, 3, generator=seeded(1))
    a, b, c = (boundary_attack(net, x, y, examples, seeded(s), 40) for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_on_a_gpu_nothing_waits():
    with fake_cuda("start") as gpu:
        net = Stacked(torch.rand(2, 2, 8, device="cuda"), (3, 2))
        x, y = torch.rand(2, 2, 5, 3, device="cuda"), torch.zeros(2, 2, 5, dtype=torch.long, device="cuda")
        with gpu.during():
            assert on_gpu(signed_step(net, x, y, .1))
            assert on_gpu(boundary_attack(net, x, y, torch.rand(2, 7, 3, device="cuda"), torch.Generator("cuda"), 21))
