"""The image set: class-balanced parts, whatever indexes it, another device."""
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mixrepro.data.datasets import load
from mixrepro.data.digits import enlarge
from mixrepro.data.images import balanced


@given(y=st.lists(st.integers(0, 4), min_size=1, max_size=40), data=st.data(), seed=st.none() | st.integers(0, 9))
def test_balanced_parts_are_balanced_and_nested(y, data, seed):
    y = torch.tensor(y)
    n = data.draw(st.integers(1, len(y)))
    def part(n): return balanced(y, n, None if seed is None else torch.Generator().manual_seed(seed))
    index = part(n)
    assert len(index) == n == len(index.unique()) and index.equal(index.sort().values)
    have, total = y[index].bincount(minlength=5), y.bincount(minlength=5)
    open_ = have[have < total]  # a class that could give more has no fewer than any other, less one
    assert not len(open_) or have.max() - open_.min() <= 1
    if n > 1: assert set(part(n - 1).tolist()) < set(index.tolist())


def test_a_random_part_reaches_every_example():
    y, rng = torch.tensor([0] * 5 + [1] * 20), torch.Generator().manual_seed(0)
    seen = torch.stack([torch.zeros(25).index_fill(0, balanced(y, 4, rng), 1) for _ in range(2000)]).mean(0)
    assert (seen[:5] - 2 / 5).abs().max() < .05 and (seen[5:] - 2 / 20).abs().max() < .03


def test_subset_takes_numpy_numbers_masks_and_tensors():
    s = load("synthetic-blobs", "test")
    assert torch.equal(s.subset(np.int64(20)).x, s.subset(20).x) and torch.equal(s.subset(torch.tensor([-1])).x, s.x[-1:])
    assert (s.subset(s.y == 3).y == 3).all() and s.subset(5).name == s.name
    with pytest.raises(ValueError, match="cannot take 513 of 512 examples"): s.subset(513)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_set_moves_to_the_device_and_is_cut_there():
    s = load("digits", "test")
    there = s.to("cuda")
    rng = torch.Generator("cuda").manual_seed(0)
    assert there.floats([0]).device.type == "cuda" and torch.equal(there.subset(30).x.cpu(), s.subset(30).x)
    assert there.subset(30, rng).y.bincount().tolist() == [3] * 10
    from sklearn.datasets import load_digits
    scans = torch.from_numpy(load_digits().images)
    assert torch.equal(enlarge(scans.cuda()).cpu(), enlarge(scans))
    with pytest.raises(ValueError, match="images are on cuda:0 but labels on cpu"): replace(there, y=s.y)
