"GenMix's two artefacts: what is planned, middle points by the shapes' own distances, boundaries of networks that are known."

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.shapes import SPAN, distances_to
from mixrepro.data.spirals import as_images
from mixrepro.papers.genlabel import genmix as P
from mixrepro.papers.genlabel.settings import GenMixError, GenMixToy
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Spec
from mixrepro.training.store import Store
from plans import agree, args, grid, planned

ROWS = ("erm", "mixup", "manifold-mixup", "genmix-gan", "genmix-gm")


@pytest.mark.parametrize("at", ("paper", "embedded", "smoke"))
def test_the_table_has_the_notes_rows_and_one_more(at):
    plan = planned("gl-genmix-error", at)
    assert set(plan) == grid(ROWS, "circle-2d", "circle-3d", "circle-2d-noisy", "mnist 7/9")
    toy = planned("gl-genmix-toy", at)
    assert set(toy) == grid([r for r in ROWS if r != "manifold-mixup"], "V", "Ket", "Y")


def test_what_the_note_says_is_planned():
    "500 training images of MNIST's sevens and nines; middle points; GenMix with a conditional GAN."
    plan = planned("gl-genmix-error")
    for row in ROWS: agree(plan[row, "mnist 7/9"], dataset="mnist-7-9", split="mnist-7-9-l500-v0", n_train=0)
    for column in ("circle-2d", "mnist 7/9"):
        assert args(plan["genmix-gan", column])["lams"] == args(plan["genmix-gm", column])["lams"] == (.5,)
        assert args(plan["genmix-gan", column])["hold_nearest"] and args(plan["genmix-gan", column])["energy"] == "distance"
    assert {s.needs["gan"].method for s in plan["genmix-gan", "circle-3d"]} == {"class-gan"}
    assert plan["genmix-gan", "mnist 7/9"][0].needs["gan"].network == "class-sngan"


def test_circles_are_at_full_scale_and_every_seed_has_its_own_points():
    full, ours = planned("gl-genmix-error"), planned("gl-genmix-error", "embedded")
    for key in grid(ROWS, "circle-2d", "circle-3d", "circle-2d-noisy"):
        assert ours[key] == full[key][:len(ours[key])], "the same runs, fewer seeds"
    gan = ours["genmix-gan", "circle-2d"][3]
    assert gan.needs["gan"].seed == 3 and gan.needs["gan"].split == gan.split == "circle-2d-l20-v0"
    assert {len(v) for k, v in ours.items() if k[1] in ("mnist 7/9", "circle-2d-noisy")} == {GenMixError.at("embedded").few_seeds}
    assert planned("gl-genmix-toy", "embedded")["mixup", "Y"] == planned("gl-genmix-toy")["mixup", "Y"][:GenMixToy.at("embedded").seeds]


class Bisector(nn.Module):
    "Whichever of two classes of a shape is nearer: the best rule."
    def __init__(self, name): super().__init__(); self.name = name
    def forward(self, x): return -distances_to(self.name, (x[..., 0, 0] - .5) * SPAN)


def test_the_boundary_of_the_best_rule_is_in_the_middle(monkeypatch):
    monkeypatch.setattr(P, "open_net", lambda run: Bisector(run.spec.dataset))
    for name in ("shape-v", "shape-ket", "shape-y"):
        class run: spec = Spec(name, "erm", "mlp", augment="none")
        assert P.off_middle(run)["boundary"] < .02
    monkeypatch.setattr(P, "open_net", lambda run: Shifted())
    assert P.off_middle(run)["boundary"] > .2


class Shifted(nn.Module):
    def forward(self, x): return torch.stack([x[:, 0, 0, 0] - .6, .6 - x[:, 0, 0, 0], -9 + 0 * x[:, 0, 0, 0]], 1)


def test_a_network_without_a_boundary_has_no_distance(monkeypatch):
    class Never(nn.Module):
        def forward(self, x): return torch.tensor([[1., 0.]]).expand(len(x), 2)
    monkeypatch.setattr(P, "open_net", lambda run: Never())
    class run: spec = Spec("shape-v", "erm", "mlp", augment="none")
    assert np.isnan(P.off_middle(run)["boundary"]) and P.boundaries(Never()) == []


def test_where_middle_points_lie():
    at = torch.tensor([[0., 0.5], [.9, .9], [0., .9]])  # on V's axis, on its right arm, on the axis
    found = P.lie("shape-v", as_images(at, SPAN)[..., 0, 0], torch.tensor([[0, 1]] * 3))
    assert found["one class twice as near (%)"] == pytest.approx(100 / 3) and found["third class nearest (%)"] == 0
    d = distances_to("shape-v", at.double())
    assert found["off the middle"] == pytest.approx((d[:, 0] - d[:, 1]).abs().mean().item(), abs=1e-6)
    stem = P.lie("shape-y", as_images(torch.tensor([[0., -.9]]), SPAN)[..., 0, 0], torch.tensor([[0, 1]]))
    assert stem["third class nearest (%)"] == 100


def test_mixups_middles_are_middles_of_the_right_pairs():
    train = load("shape-y", "train").subset(30)
    x, pair = P.middles(train, 20, seeded())
    for c in range(3):
        for k in range(3):
            mine = x[(pair == torch.tensor([c, k])).all(1)]
            assert len(mine) == 20 * (c != k)
            if c == k: continue
            every = (train.x[train.y == c].flatten(1)[:, None] + train.x[train.y == k].flatten(1)) / 2
            assert torch.cdist(mine.double(), every.flatten(0, 1).double()).amin(1).max() < 1e-6


def test_made_again_they_are_what_the_run_was_trained_on(tmp_path, monkeypatch):
    from mixrepro.methods import genmix as G
    seen, prepare, store = [], G.GenMixing.prepare, Store(tmp_path)
    def watched(self, *args, **nets): seen.append(prepare(self, *args, **nets)); return seen[-1]
    monkeypatch.setattr(G.GenMixing, "prepare", watched)
    run = train_run(Spec("shape-y", "genmix", "mlp", seed=3, epochs=1, batch=20, augment="none", split="shape-y-l30-v0", looks=1,
                         network_args=dict(widths=[4], norm=False)), store, "cpu")
    again = P.made_of_run(run, store)
    assert torch.equal(seen[0].made.drawn.x, again.x) and len(again) > 0
    counts = P.left_out({("genmix-gm", "Y"): [again], ("mixup", "Y"): [P.SimpleNamespace()]})
    assert isinstance(counts, pd.DataFrame) and len(counts) == 1 and counts.kept[0] == len(again)
