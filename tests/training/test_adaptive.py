"AdaMixup's stacked networks against three plain modules and torch's Adam."

import torch
from torch import nn
from torch.nn import functional as F

from mixrepro.data.tabular import tabular
from mixrepro.training.adaptive import draw_thirds, three_sizes, train_adaptive
from mixrepro.training.device import fake_cuda, on_gpu
from mixrepro.training.stacked import first_weights, layers

from helpers import seeded


def plain(row, sizes):
    made = []
    for W, b in layers(row[None, None], sizes):
        linear = nn.Linear(*W.shape[2:])
        linear.weight.data, linear.bias.data = W[0, 0].T.clone(), b[0, 0, 0].clone()
        made.append(linear)
    return nn.Sequential(*made)


def test_one_network_alone():
    t = tabular("iris", seed=1)
    x, y, epochs, batch, rates = t.x_train[:80].view(2, 40, 4), t.y_train[:80].view(2, 40), 5, 25, (.05, .003)
    ours = train_adaptive(x, y, 3, torch.tensor([rates]), [seeded(7), seeded(8)], epochs, batch)
    for g, m in ((0, 0), (1, 1)):
        rng = seeded(7 + g)
        net, generator, intruder = (plain(first_weights(s, rng), s) for s in three_sizes(4, 3))
        second, third, u = (a[0] for a in draw_thirds(40, epochs, batch, [rng]))
        opt = torch.optim.Adam([*net.parameters(), *generator.parameters(), *intruder.parameters()], lr=rates[m], weight_decay=1e-4)
        for e in range(epochs):
            for at in range(0, 40, batch):
                rows = slice(at, at + batch)
                x1, y1, x2, y2, x3 = x[g, rows], y[g, rows], x[g, second[e, rows]], y[g, second[e, rows]], x[g, third[e, rows]]
                out = generator(torch.cat([x1, x2], 1)).softmax(1)
                lam = out[:, 0] + u[e, rows] * out[:, 1]
                z = lam[:, None] * x1 + (1 - lam[:, None]) * x2
                ce, told = F.cross_entropy, lambda points, label: F.cross_entropy(intruder(points), torch.full((len(points),), label))
                mixed = (lam * ce(net(z), y1, reduction="none") + (1 - lam) * ce(net(z), y2, reduction="none")).mean()
                loss = mixed + ce(net(x1), y1) + ce(net(x2), y2) + told(z, 0) + told(x1, 1) + told(x2, 1) + told(x3, 1)
                opt.zero_grad(); loss.backward(); opt.step()
        theirs = torch.cat([net[0].weight.detach().T.flatten(), net[0].bias.detach()])
        assert torch.allclose(ours.flat[g, m], theirs, atol=1e-5), (ours.flat[g, m] - theirs).abs().max()


def test_on_a_gpu_nothing_waits():
    with fake_cuda("start") as gpu, gpu.during():
        x, y = torch.rand(2, 12, 3, device="cuda"), torch.zeros(2, 12, dtype=torch.long, device="cuda")
        rngs = [torch.Generator("cuda") for _ in range(2)]
        assert on_gpu(train_adaptive(x, y, 3, torch.full((1, 2), .1, device="cuda"), rngs, 2, 5).flat)
