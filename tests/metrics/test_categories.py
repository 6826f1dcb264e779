"Means over categories of corruptions against plain sums, and the weights behind the printed means."
import random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from mixrepro.data.corruptions import CATEGORIES, CORRUPTIONS
from mixrepro.metrics.categories import category_means, noise_weight
from mixrepro.repro.rows import reported


def grid(seed):
    rng = np.random.default_rng(seed)
    return {kind: rng.random(5).tolist() for kind in CORRUPTIONS}


def by_hand(cells, kinds): return sum(sum(cells[k]) for k in kinds) / (5 * len(kinds))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_means_are_plain_sums(seed):
    cells, noise = grid(seed), CATEGORIES["noise"]
    others = [k for k in CORRUPTIONS if k not in noise]
    want = dict(noise=by_hand(cells, noise), blur=by_hand(cells, CATEGORIES["blur"]), weather=by_hand(cells, CATEGORIES["weather"]),
                digital=by_hand(cells, CATEGORIES["digital"]), others=by_hand(cells, others), mean=by_hand(cells, CORRUPTIONS))
    want["quarter"] = (want["noise"] + 3 * want["others"]) / 4
    assert category_means(cells) == pytest.approx(want)
    order = list(cells.items()); random.Random(seed).shuffle(order)
    assert category_means(dict(order) | dict(speckle_noise=[0.] * 5)) == category_means(cells)  # order and extra kinds do not count


def test_images_keep_their_places():
    rng = np.random.default_rng(0)
    cells = {kind: [rng.integers(0, 2, 20).astype(float) for _ in range(5)] for kind in CORRUPTIONS}
    found, plain = category_means(cells), category_means({k: [v.mean() for v in five] for k, five in cells.items()})
    assert all(v.shape == (20,) for v in found.values())
    assert {k: v.mean() for k, v in found.items()} == pytest.approx(plain)


def printed() -> pd.DataFrame:
    "Table 5: overall, noise and others of each method on each set."
    table = reported("noisymix", "nm-table5").pivot(index="row", columns="column", values="mean")
    return pd.DataFrame([(m, d, *table.loc[m, [f"{d}-c", f"{d}-c noise", f"{d}-c others"]])
                         for m in table.index for d in ("cifar10", "cifar100")], columns=["method", "set", "total", "noise", "others"])


def test_table_5_is_averaged_by_quarters_in_eleven_of_twelve_cells():
    cells = printed()
    weights = {(c.method, c.set): noise_weight(c.total, c.noise, c.others) for c in cells.itertuples()}
    assert len(weights) == 12
    assert [k for k, (_, low, high) in weights.items() if not low <= .25 <= high] == [("augmix", "cifar100")]
    assert not any(low <= .2 <= high for _, low, high in weights.values())
    rest = [w for k, (w, *_) in weights.items() if k != ("augmix", "cifar100")]
    assert .2475 < min(rest) and max(rest) < .2515  # .248 to .251


def test_the_interval_of_a_weight_holds_what_rounding_hides():
    rng = np.random.default_rng(0)
    for _ in range(200):
        noise, others, w = rng.uniform(20, 60), rng.uniform(62, 95), rng.uniform(.1, .5)
        seen = np.round([w * noise + (1 - w) * others, noise, others], 1)
        _, low, high = noise_weight(*seen)
        assert low - 1e-9 <= w <= high + 1e-9
    with pytest.raises(ValueError, match="must differ by more than rounding"): noise_weight(50., 60., 60.)
