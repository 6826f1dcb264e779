"""Drawings with known factors: the renderer against Pillow, the tasks, the mixing of factors, the network's probabilities."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from torch.nn import functional as F

from mixrepro.data.datasets import DATASETS, STATS, load
from mixrepro.data.factors import CANVAS, FACTORS, LONG, RANGES, ROWS, SHORT, STEM, TASKS, FactorSet, both, disjoint, factors, render, slab, weights
from mixrepro.methods.catalogue import method
from mixrepro.methods.factor_mixup import mix_factors
from mixrepro.methods.vicinal import Mix, draw_mix
from mixrepro.networks.staged import count
from mixrepro.networks.zoo import build
from mixrepro.papers.catalogue import find
from mixrepro.repro.artefact import cells, papers_cells
from mixrepro.repro.scale import SCALES


def by_pillow(row, size, reducing_gap=None):
    "The drawing as the code of Manifold Mixup made it, one image at a time."
    x, y, slant, slope, length, width, angle = row.tolist()
    image = Image.new("RGBA", (CANVAS, CANVAS), (255, 255, 255, 255))
    draw = ImageDraw.Draw(image)
    draw.line([(x, y), (x + length, y + slope)], fill="red", width=int(width))
    draw.line([(x + length, y + slope), (x + length + slant, y + STEM)], fill="red", width=int(width))
    image = image.rotate(angle)
    image.thumbnail((size, size), reducing_gap=reducing_gap)
    return torch.from_numpy(np.array(image.convert("L"))).float() / 255


def anything(n, seed):
    "Rows from all over the ranges of the factors."
    low, high = torch.tensor(list(RANGES.values())).T
    rows = low + (high - low) * torch.rand(n, len(FACTORS), generator=torch.Generator().manual_seed(seed))
    rows[:, FACTORS.index("width")] = rows[:, FACTORS.index("width")].round()
    return rows


@pytest.mark.parametrize("size, mean, most", [(64, .003, .18), (32, .003, .12)])
def test_drawings_are_those_of_pillow(size, mean, most):
    rows = anything(300, 0)
    theirs = torch.stack([by_pillow(row, size) for row in rows])[:, None]
    off = (render(rows, size) - theirs)
    assert off.abs().mean() < mean and abs(off.mean()) < 6e-4  # half a shade of 255, and neither darker nor lighter
    assert off.abs().mean((1, 2, 3)).max() < 2.5 * mean
    assert np.quantile(off.abs().numpy(), .999) < most  # edges: Pillow turns by nearest neighbour


def test_upright_drawings_are_pillows_almost_to_the_bit():
    rows = anything(100, 1)
    rows[:, FACTORS.index("angle")] = 0
    rows[:, FACTORS.index("slope")] = 0  # bars along the rows
    rows[:, FACTORS.index("slant")] = 0
    off = (render(rows) - torch.stack([by_pillow(row, 64) for row in rows])[:, None]).abs()
    assert off.mean() < 2e-3 and (off < .51 / 255).float().mean() > .97


def test_later_pillow_differs_by_less_than_a_shade():
    rows = anything(60, 2)
    old, new = (torch.stack([by_pillow(row, 64, gap) for row in rows]) for gap in (None, 2.))
    assert 0 < (old - new).abs().mean() < .004


def test_bicubic_weights_shrink_as_pillow_does():
    image = torch.randint(0, 256, (CANVAS, CANVAS), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for size in (64, 32, 50):
        w, cumulative = weights(size)
        across = (image.double() @ w.double().T).round().clamp(0, 255)
        theirs = torch.from_numpy(np.array(Image.fromarray(image.numpy()).resize((size, size), Image.Resampling.BICUBIC))).double()
        assert ((w.double() @ across).round().clamp(0, 255) - theirs).abs().max() <= 1
        assert torch.allclose(cumulative[-1], torch.ones(size), atol=1e-5) and torch.allclose(cumulative.diff(dim=0).T, w, atol=1e-6)


@given(st.floats(-3, 3), st.floats(-50, 50), st.floats(-20, 20), st.floats(0, 30))
@settings(max_examples=60, deadline=None)
def test_a_slab_is_where_its_line_is_within_bounds(a, b, lo, wide):
    x = torch.arange(-400, 400, dtype=torch.float64) / 4
    start, end = slab(lo, lo + wide, torch.tensor([[a]], dtype=torch.float64), torch.tensor([[b]], dtype=torch.float64))
    a = a if abs(a) >= 1e-6 else 1e-6
    at = a * x + b
    inside, sure = (at >= lo) & (at <= lo + wide), ((at - lo).abs() > 1e-3) & ((at - lo - wide).abs() > 1e-3)
    assert torch.equal(((x >= start[0]) & (x <= end[0]))[sure], inside[sure])


ends = st.tuples(st.integers(0, 20), st.integers(0, 20)).map(sorted)


@given(ends, ends)
@settings(max_examples=150, deadline=None)
def test_spans_meet_and_come_apart(p, q):
    def cover(*spans): return sorted(i for a, b in spans for i in range(int(a), int(b)))
    one, two = (tuple(torch.tensor(v) for v in span) for span in (p, q))
    assert cover(*disjoint(one, two)) == sorted({*cover(p), *cover(q)})
    assert cover(both(one, two)) == sorted({*cover(p)} & {*cover(q)})


def test_a_drawing_does_not_depend_on_its_batch():
    rows = anything(40, 3)
    assert torch.equal(render(rows)[7:9], render(rows[7:9])) and render(rows).shape == (40, 1, 64, 64)
    with torch.autocast("cpu", torch.bfloat16): assert torch.equal(render(rows[7:9]), render(rows)[7:9])
    assert 0 <= render(rows).min() and render(rows).max() <= 1 and render(rows[:0]).shape == (0, 1, 64, 64)


def test_turned_corners_are_black_and_paper_is_white():
    rows = anything(20, 4)
    rows[:, FACTORS.index("angle")] = 45
    drawn = render(rows)[:, 0]
    assert (drawn[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all() and (drawn.flatten(1).max(1).values == 1).all()
    ink = (drawn * 255).round().long()
    assert ((ink == 76).flatten(1).sum(1) > 50).all()  # red, as grey


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_task_keeps_to_its_ranges(task, split):
    s = factors(split, task=task)
    column = {f: s.x[:, i] for i, f in enumerate(FACTORS)}
    for f, (low, high) in RANGES.items(): assert low <= column[f].min() and column[f].max() <= high
    assert column["width"].unique().tolist() == list(range(15, 36))
    ranges = getattr(TASKS[task], split)
    within = [(low <= column["angle"]) & (column["angle"] <= high) for low, high in ranges]
    short, long = column["length"] <= SHORT[1], column["length"] >= LONG[0]
    assert (within[0] | within[1]).all() and (short | long).all()
    label, coin = (within[1], long) if task != "c" else (long, column["angle"] > 0)
    assert torch.equal(s.y == 1, label) and abs(s.y.float().mean() - .5) < .05
    assert abs(torch.corrcoef(torch.stack([s.y.float(), coin.float()]))[0, 1]) < .06  # the other coin says nothing of the label
    assert abs(column["x"].mean() - 90) < 2.5 and abs(column["slant"].mean() + 12.5) < 1


def test_the_papers_angles():
    assert TASKS["a"].train == TASKS["b"].train == TASKS["c"].train == ((-70, -50), (50, 80))
    assert TASKS["a"].test == ((-30, -10), (10, 30)) and TASKS["b"].test == ((-30, -20), (-10, 30)) and set(TASKS["c"].test) == {(-30, 30)}


def test_the_sets_by_name():
    names = [n for n in DATASETS if n.startswith("factors-")]
    assert sorted(names) == sorted(f"factors-{t}{e}" for t in "abc" for e in ("", "-32"))
    for name in names:
        test = load(name, "test")
        assert test.name == name and test.shape == ((1, 32, 32) if "32" in name else (1, 64, 64)) and len(test) == ROWS["test"] == 20 * 128
        assert STATS[name] == ((0.,), (1.,)) and test.floats(torch.tensor([0, 9])).shape == (2, *test.shape)
    assert len(load("factors-a", "train")) == 1000 * 128
    assert torch.equal(load("factors-a", "train").x, load("factors-a-32", "train").x) and not torch.equal(load("factors-a", "train").x, load("factors-b", "train").x)
    assert not torch.isin(load("factors-a", "test").x[:, 0], load("factors-a", "train").x[:, 0]).all()


def test_labels_and_drawings_stay_together_in_a_part():
    s = factors("train", task="c", size=32)
    some = s.subset(200)
    assert some.y.bincount().tolist() == [100, 100] and torch.equal(some.y == 1, some.x[:, FACTORS.index("length")] >= LONG[0])
    order = torch.tensor([5, 0, 3])
    assert torch.equal(some.subset(order).floats(), some.floats(order)) and torch.equal(some.subset(order).y, some.y[order])


def test_a_share_of_one_is_the_examples_own_drawing():
    s, rng = factors("train"), torch.Generator().manual_seed(0)
    index = torch.randint(len(s), (16,), generator=rng)
    one = Mix(torch.ones(16), torch.randperm(16, generator=rng))
    assert torch.equal(render(mix_factors(s.x[index], one, whole=False)), s.floats(index))
    assert torch.equal(render(mix_factors(s.x[index], one)), render(s.x[index].trunc()))


@given(st.floats(0, 1))
@settings(max_examples=25, deadline=None)
def test_mixed_factors_are_whole_and_between(lam):
    x = anything(8, 5)
    mix = Mix(torch.tensor(lam), torch.arange(8).roll(1))
    mixed = mix_factors(x, mix)
    assert torch.equal(mixed, mixed.trunc()) and (mixed - (lam * x + (1 - lam) * x[mix.partner])).abs().max() <= 1 + 1e-4
    assert torch.equal(mixed, torch.tensor([[int(v) for v in row] for row in mix(x).tolist()], dtype=torch.float32))  # toward 0, as Python's int


def test_the_loss_is_binary_cross_entropy_of_the_mixed_drawings():
    s = factors("train", task="c", size=32).subset(24)
    net, index = build("factor-cnn", s.shape, 2, torch.Generator().manual_seed(0), width=4), torch.arange(24)
    got = method("factor-mixup").prepare(s, torch.Generator()).loss(net, s.floats(), s.y, torch.Generator().manual_seed(3), index)
    mix = draw_mix(24, 1., torch.Generator().manual_seed(3), "example")
    assert mix.lam.shape == (24,) and mix.lam.std() > .1
    y = mix.lam * s.y + (1 - mix.lam) * s.y[mix.partner]
    score = net(render((mix.lam[:, None] * s.x + (1 - mix.lam[:, None]) * s.x[mix.partner]).trunc(), 32))[:, 1]
    assert torch.allclose(got, F.binary_cross_entropy(score.sigmoid(), y), atol=1e-5)
    for name, args in (("erm", {}), ("mixup", dict(alpha=1., per="example"))):
        assert torch.isfinite(method(name, **args).loss(net, s.floats(), s.y, torch.Generator().manual_seed(3), index))


def test_the_loss_finds_its_rows_by_index():
    s = factors("train", task="a", size=32).subset(40)
    net = build("factor-cnn", s.shape, 2, torch.Generator().manual_seed(0), width=4).eval()
    ready, index = method("factor-mixup").prepare(s, torch.Generator()), torch.arange(39, 19, -1)
    def loss(x, index): return ready.loss(net, x, s.y[index], torch.Generator().manual_seed(1), index)
    assert torch.equal(loss(s.floats(index), index), loss(torch.zeros(20, 1, 32, 32), index))  # what was drawn for the loop is not what it sees
    assert not torch.equal(loss(s.floats(index), index), ready.loss(net, s.floats(index), s.y[index], torch.Generator().manual_seed(1), index.flip(0)))


@pytest.mark.parametrize("size, inputs", [(64, 4096), (32, 1024)])
def test_the_network_is_the_codes(size, inputs):
    net = build("factor-cnn", (1, size, size), 2, torch.Generator().manual_seed(0))
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [(c.in_channels, c.out_channels) for c in convs] == [(1, 32), (32, 64), (64, 128), (128, 256)]
    assert {(c.kernel_size, c.stride, c.padding) for c in convs} == {((5, 5), (2, 2), (2, 2))}
    assert sum(isinstance(m, torch.nn.LeakyReLU) for m in net.modules()) == 3 and isinstance(net.stages[-1][-1], torch.nn.BatchNorm2d)
    assert net.head.in_features == inputs and count(net) == 25 * (32 + 32 * 64 + 64 * 128 + 128 * 256) + 3 * 480 + inputs + 1
    x = torch.rand(6, 1, size, size)
    s = F.linear(net.eval().features(x), net.head.weight, net.head.bias)[:, 0]
    assert torch.allclose(net(x).softmax(1)[:, 1], s.sigmoid(), atol=1e-6) and torch.equal(net(x, at=0, through=lambda x: x), net(x))
    assert torch.equal(net.norm(x), x)
    soft = torch.rand(6)
    assert torch.allclose(F.cross_entropy(net(x), torch.stack([1 - soft, soft], 1)), F.binary_cross_entropy(s.sigmoid(), soft), atol=1e-6)
    assert build("factor-cnn", (1, 32, 32), 7, torch.Generator())(torch.rand(2, 1, 32, 32)).shape == (2, 7)


def test_the_plan_is_the_papers():
    full = [c.spec for c in papers_cells(find("mm-table4"))]
    assert len(full) == 9 and {(s.epochs, s.n_train, s.batch, s.lr, s.optimizer, s.augment) for s in full} == {(1, 0, 128, 1e-4, "adam", "none")}
    assert {(s.dataset, s.method) for s in full} == {(f"factors-{t}", m) for t in "abc" for m in ("erm", "mixup", "factor-mixup")}
    assert all(s.method_args == dict(alpha=1., per="example") for s in full if s.method == "mixup")
    for name in SCALES:
        for c in cells(find("mm-table4"), name, 1): assert c.spec.n_train % 128 == 0 and c.spec.n_train <= ROWS["train"]


BATCH = (torch.nn.Flatten(), torch.zeros(4, 1, 64, 64), torch.zeros(4).long(), torch.Generator())  # network, images, labels, generator


@pytest.mark.parametrize("call, says", [
    (lambda: render(torch.zeros(2, 6)), r"factors must be \(B, 7\): x, y, slant, slope, length, width, angle; got \(2, 6\)"),
    (lambda: render(torch.zeros(2, 7), 300), "shrunk from 256 px to 1..256, got 300"),
    (lambda: load("factors-d", "train"), "unknown data set 'factors-d': did you mean 'factors-"),
    (lambda: factors("train", task="z"), "unknown task 'z'"),
    (lambda: FactorSet(torch.zeros(3, 7), torch.zeros(2, dtype=torch.long), ("a", "b"), "x", "train"), r"needs factors \(N, 7\) and N labels"),
    (lambda: method("factor-mixup", alpha=0.).prepare(factors("test"), None).loss(None, torch.zeros(4, 1, 64, 64), torch.zeros(4).long(), torch.Generator(), torch.arange(4)), "alpha must be above 0, got 0"),
    (lambda: method("factor-mixup").prepare(load("digits", "test"), None), "drawings whose factors are known, such as factors-a, got digits"),
    (lambda: method("factor-mixup").loss(*BATCH), "call prepare"),
    (lambda: method("factor-mixup").prepare(factors("test"), None).loss(*BATCH), "pass index"),
    (lambda: build("factor-cnn", (1, 28, 28), 2, torch.Generator()), "must be multiples of 16, got 28 x 28"),
])
def test_what_cannot_be_done_is_said_in_a_sentence(call, says):
    with pytest.raises(ValueError, match=says): call()


def test_the_other_reading_ties_the_length_to_the_label():
    free, tied = factors("test", task="b"), factors("test", task="b", tied=True)
    length = FACTORS.index("length")
    assert torch.equal(tied.y, free.y) and torch.equal(tied.x[:, length] >= LONG[0], tied.y == 1) and tied.name == "factors-b-tied"
    rest = [i for i in range(len(FACTORS)) if i != length]
    assert torch.equal(tied.x[:, rest], free.x[:, rest]) and torch.equal(factors("test", task="c", tied=True).x, factors("test", task="c").x)
