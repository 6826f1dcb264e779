"Manifold Mixup's errata: what the computations give, and that nothing is typed: a corrected text or table withdraws its erratum."

import numpy as np
import pytest
import torch

from mixrepro.metrics.mixed_loss import simplex
from mixrepro.papers.manifold_mixup import errata as e
from mixrepro.repro.ledger import reported
from tables import holds, put


def test_how_often_lambda_is_near_the_ends():
    draws = np.random.default_rng(0).beta(2, 2, 200_000)
    assert e.near_the_ends(2.) == pytest.approx((abs(draws - .5) >= .45).mean(), abs=.002) and e.near_the_ends(1.) == pytest.approx(.1)
    assert e.ordinary_examples(.9).verdict == "not confirmed"  # the text would be right there


def test_percentages_of_the_introduction():
    semi, supervised = reported("manifold_mixup", "mm-table2"), reported("manifold_mixup", "mm-table1")
    assert e.relative_to_vat(semi).findings[0].numbers == pytest.approx({"VAT": 100 * 3.6 / 13.86, "VAT-EM": 100 * 2.87 / 13.13})
    assert holds(e.relative_to_vat(put(semi, "vat", "cifar10", 13.13))) == [False]
    assert list(e.halved_nll(supervised).findings[0].numbers.values()) == pytest.approx([100 * (1 - a / b) for a, b in ((.0957, .1945), (.1407, .1945), (.1419, .2312), (.0957, .2312))])
    assert holds(e.halved_nll(put(supervised, "manifold-mixup", "cifar10 preactresnet18 nll", .0972))) == [False]


def test_the_dimension_depends_on_the_bias():
    assert holds(e.flat_dimension()) == [True, False]
    for d, k in ((2, 2), (3, 6)):  # both biases solve the theorem's equation, with an A of another rank
        A, H, b = simplex(d, k)
        assert torch.allclose(A.T @ H + b[:, None], torch.eye(d, dtype=A.dtype)) and torch.linalg.matrix_rank(A) == d - 1
