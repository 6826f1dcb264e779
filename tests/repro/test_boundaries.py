"Boundaries in the plane against brute force over the edges of a grid, and against lines that are known."

import numpy as np
import torch
from hypothesis import given, settings, strategies as st
from torch import nn

from mixrepro.data.spirals import as_points
from mixrepro.repro.boundaries import boundary, boundary_of


class Linear(nn.Module):
    "Classes that prefer a direction each."
    def __init__(self, ways, offsets): super().__init__(); self.ways, self.offsets = ways, offsets
    def forward(self, x): return as_points(x, 4.) @ self.ways.T + self.offsets


@given(turn=st.floats(0, 6.2), offset=st.floats(-.5, .5))
@settings(max_examples=20, deadline=None)
def test_two_linear_classes_have_their_line_and_one_only(turn, offset):
    way = torch.tensor([np.cos(turn), np.sin(turn)], dtype=torch.float32)
    lines = boundary_of(Linear(torch.stack([way, -way]), torch.tensor([offset, -offset])), 4., (1., 1.), 61)
    assert len(lines) == 1 and np.abs(lines[0] @ way.numpy() + offset).max() < 1e-5
    assert np.linalg.norm(lines[0][-1] - lines[0][0]) > 1, "across the box"

def test_of_three_classes_each_place_of_a_line_is_a_tie_of_the_best_two():
    angle = torch.arange(3) * 2 * torch.pi / 3
    net = Linear(torch.stack([angle.cos(), angle.sin()], 1), torch.tensor([.1, 0., -.05]))
    p = torch.tensor(np.concatenate(boundary_of(net, 4., (1.2, .8), 121))).float()
    best = net(((p / 4) + .5)[..., None, None]).topk(2, 1).values
    assert len(p) > 100 and (best[:, 0] - best[:, 1]).quantile(.97) < 1e-3  # but for the cell where three meet
    assert (p.abs() <= torch.tensor([1.2, .8]) + 1e-6).all()


def crossings(at, score):
    "Where linear interpolation along the edges of the grid is 0: brute force."
    found = []
    for i in range(len(at)):
        for j in range(len(at) - 1):
            for a, b, place in ((score[i, j], score[i, j + 1], lambda t: (at[j] + t * (at[j + 1] - at[j]), at[i])),
                                (score[j, i], score[j + 1, i], lambda t: (at[i], at[j] + t * (at[j + 1] - at[j])))):
                if (a > 0) != (b > 0): found.append(place(a / (a - b)))
    return np.array(found)


def test_the_line_goes_through_every_crossing_of_the_grid_and_nowhere_else():
    at = np.linspace(-1, 1, 31)
    score = .49 - at[None] ** 2 - 1.3 * at[:, None] ** 2 + .2 * at[None] * at[:, None]
    ours, brute = np.concatenate(boundary(at, at, np.stack([score, 0 * score], 2))), crossings(at, score)
    far = np.linalg.norm(ours[:, None] - brute, axis=2)
    assert len(brute) > 50 and max(far.min(0).max(), far.min(1).max()) < 1e-12
