"Pictures of planes: every place has its band's colour; and intervals that are scipy's."

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import to_rgb
from scipy import stats

from mixrepro.data.datasets import load
from mixrepro.networks.zoo import build
from mixrepro.papers.manifold_mixup import planes as P
from helpers import seeded


@pytest.fixture
def ax():
    fig, ax = plt.subplots()
    yield ax
    plt.close(fig)


def test_both_planes_can_be_drawn_also_where_one_class_takes_all():
    data, ten = load("spirals", "test"), load("digits", "test")
    for classes, s in ((2, data), (10, ten)):
        net = build("spiral-net", s.shape, classes, seeded(), width=8)
        for bias in (0., 50.):
            with torch.no_grad(): net.head.bias[0] = bias
            fig, (a, b) = plt.subplots(1, 2)
            if classes == 2: P.draw_input(a, net, data, n=20, side=10)
            P.draw_hidden(b, net, s, n=30, anywhere=10 * (classes == 2), side=10)
            fig.canvas.draw()
            assert len(b.lines) == classes + 1  # one for each class, one for the uniform inputs
            plt.close(fig)


@pytest.mark.parametrize("probabilities, tones, bands", [
    ([.02, .2, .4, .6, .8, .95], P.TWO, "of the second class"), ([.2, .4, .6, .8, .95], P.GREYS, "of the largest")])
def test_every_place_has_its_bands_colour(ax, probabilities, tones, bands):
    n = len(probabilities)
    p = torch.tensor([probabilities]).repeat(n, 1).flatten()  # row by row upwards: the columns differ
    grid = torch.stack(torch.meshgrid(torch.arange(n) * 1., torch.arange(n) * 1., indexing="xy"), -1).view(-1, 2)
    rest = (1 - p) / (1 if tones is P.TWO else 9)
    all_of = torch.stack([1 - p, p], 1) if tones is P.TWO else torch.cat([p[:, None], rest[:, None].expand(-1, 9)], 1)
    P.shade(ax, grid, all_of.log())
    rgb, = (i.get_array() for i in ax.images)
    assert rgb.shape == (n, n, 3)
    for column, tone in enumerate(tones): assert np.abs(rgb[:, column] / 255 - to_rgb(tone)).max() < 1 / 255, bands


@pytest.fixture
def measured():
    rng = np.random.default_rng(0)
    return pd.DataFrame([dict(model=m, seed=s, scatter=v * f, low_hidden=v * d) for s in (2, 0, 1)
                         for m, f, d in (("erm", 1., .1), ("mixup", .5, .3)) for v in (rng.uniform(1, 2),)])


def test_models_are_compared_seed_by_seed(measured):
    at = measured.pivot(index="seed", columns="model")
    log = stats.ttest_rel(np.log(at["scatter", "mixup"]), np.log(at["scatter", "erm"])).confidence_interval(.95)
    plain = stats.ttest_rel(at["low_hidden", "mixup"], at["low_hidden", "erm"]).confidence_interval(.95)
    assert P.factor(measured, "mixup", "erm")[1:] == pytest.approx(np.exp(log))
    assert P.difference(measured, "mixup", "erm", "low_hidden")[1:] == pytest.approx(plain)
    alone = measured[measured.seed == 0]
    assert math.isnan(P.factor(alone, "mixup", "erm")[1]) and math.isnan(P.difference(alone, "mixup", "erm", "low_hidden")[2])


def test_the_table_shows_geometric_means_and_the_columns_that_are_there(measured):
    head, rule, erm, mixup = P.model_table(measured).splitlines()
    assert head.count("|") == rule.count("|") == erm.count("|") == mixup.count("|") == 5
    at = measured.pivot(index="seed", columns="model", values="scatter")
    for name, line in (("erm", erm), ("mixup", mixup)): assert f"| {stats.gmean(at[name]):.2g} |" in line
    share = P.factor(measured, "mixup", "erm")
    alone = P.model_table(measured[measured.seed == 0]).splitlines()
    assert "±" in mixup and "±" not in "".join(alone) and alone[-1].endswith(" (n = 1) |"), "one seed has no spread"
    assert "Entropy" not in head and erm.endswith("|  |") and f"{share[0]:.2g} [{share[1]:.2g}, {share[2]:.2g}]" in mixup
