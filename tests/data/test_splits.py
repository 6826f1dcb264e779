"""Splits by labels: balanced, disjoint, nested, the same for ever, and files that say what they are."""
import json

import pytest
import scipy.stats
import torch
from hypothesis import given, settings, strategies as st

from helpers import seeded
from mixrepro.data.splits import Split, read_split, relabelled, split, write_split


@given(classes=st.integers(2, 8), each=st.integers(6, 30), few=st.integers(1, 2), held=st.integers(0, 2), seed=st.integers(0, 2**40),
       shuffle=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_splits_are_balanced_disjoint_and_nested(classes, each, few, held, seed, shuffle):
    y = torch.arange(classes * each)[torch.randperm(classes * each, generator=seeded(shuffle))] % classes
    one, more = split(y, few * classes, seed, held * classes), split(y, 2 * few * classes, seed, held * classes)
    assert y[one.labelled].bincount(minlength=classes).tolist() == [few] * classes
    assert y[one.validation].bincount(minlength=classes).tolist() == [held] * classes
    lab, unl, val = (set(p.tolist()) for p in one)
    assert lab <= unl and not val & unl and val | unl == set(range(len(y))) and lab <= set(more.labelled.tolist()) and torch.equal(one.validation,
            more.validation)
    assert all(torch.equal(p, p.sort().values) and p.dtype == torch.int64 for p in one)
    assert all(torch.equal(a, b) for a, b in zip(one, split(y.numpy(), few * classes, seed, held * classes)))


def test_another_seed_is_another_split_and_every_image_has_its_chance():
    y, count = torch.arange(200) % 10, torch.zeros(200)
    for seed in range(400): count[split(y, 50, seed).labelled] += 1
    assert abs(count.mean() - 100) < 1e-6 and 60 < count.min() and count.max() < 140  # binomial, sd 8.7
    assert not torch.equal(split(y, 50, 0).labelled, split(y, 50, 1).labelled)


def test_the_split_of_a_seed_never_changes():
    "Runs are recorded by it: the order is a function of seed and position, not of a generator's version."
    assert split(torch.arange(1000) % 10, 20, 7).labelled.tolist() == [48, 57, 112, 147, 156, 256, 305, 372, 411, 448, 449, 453, 473, 524, 580, 609,
            631, 670, 684, 755]


@pytest.mark.parametrize("arguments, message", [
    ((25, 0), "n_labelled must be a multiple of the 10 classes, got 25: try 20"), ((0, 0), "at least 10, one of each class"),
                                                ((-10, 0), "multiple of the 10 classes, got -10: try 10"),
    ((50, 0, 33), "n_validation must be a multiple of the 10 classes, got 33: try 30"),
                                                ((110, 0), "class 0 has 10 examples, fewer than 11 labelled and 0 for validation"),
    ((60, 0, 50), "fewer than 6 labelled and 5 for validation")])
def test_impossible_splits(arguments, message):
    with pytest.raises(ValueError, match=message): split(torch.arange(100) % 10, *arguments)
    with pytest.raises(ValueError, match="integers"): split(torch.rand(100), 10, 0)


def test_split_files_say_what_they_are(tmp_path):
    y = torch.arange(100) % 10
    path = write_split("digits", y, 20, 5, 10, tmp_path)
    assert path == tmp_path / "splits" / "digits-l20-v10-s5.json" and path.read_bytes() == write_split("digits", y, 20, 5, 10, tmp_path).read_bytes()
    what = json.loads(path.read_text())
    assert {k: what[k] for k in ("name", "n", "classes", "seed", "n_labelled", "n_validation")} == dict(name="digits", n=100, classes=10, seed=5,
            n_labelled=20, n_validation=10)
    assert isinstance(read_split(path), Split) and all(torch.equal(a, b) for a, b in zip(read_split(path, y), split(y, 20, 5, 10)))
    with pytest.raises(ValueError, match="was drawn from other labels than these 90: it is for digits, 100 examples"): read_split(path, y[:90])
    with pytest.raises(FileNotFoundError, match="write it with `mixrepro data split`"): read_split(tmp_path / "none.json")


@pytest.mark.parametrize("damage", [lambda s: s[:-40], lambda s: s.replace('"labelled": [', '"labelled": [1, '),
                                    lambda s: s.replace('"n": 100', '"n": 101'), lambda s: "[]",
                                    lambda s: s.replace('"validation": [', '"validation": [5000, ')])
def test_an_altered_split_file_is_refused(tmp_path, damage):
    path = write_split("digits", torch.arange(100) % 10, 20, 5, 10, tmp_path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match="is not a whole split file .*: write it again"): read_split(path)


def test_more_labels_than_any_integer_of_a_machine_are_refused():
    with pytest.raises(ValueError, match="class 0 has 5 examples, fewer than 10000000000000000000 labelled and 0 for validation: ask for less"):
        split(torch.arange(10).repeat(5), 10 ** 20, 0)


@given(n=st.integers(1, 60), classes=st.integers(1, 6), share=st.floats(0, 1), seed=st.integers(0, 2**40))
@settings(max_examples=40, deadline=None)
def test_labels_drawn_anew_are_so_many_and_no_more(n, classes, share, seed):
    y = torch.arange(n) % classes
    before, now = y.clone(), relabelled(y, classes, share, seeded(seed))
    assert (now != y).sum() <= round(share * n) and now.dtype == torch.int64 and torch.equal(y, before)
    assert 0 <= now.min() and now.max() < classes and torch.equal(now, relabelled(y, classes, share, seeded(seed)))


def test_every_label_and_every_image_has_its_chance():
    "Of 400 draws of half of 40 images: binomial, 200 each, sd 10; the new labels by chi-square."
    y, drawn, count = torch.zeros(40, dtype=torch.int64), torch.zeros(40), torch.zeros(5)
    for seed in range(400):
        now = relabelled(y, 5, .5, seeded(seed))
        drawn += now != 0; count += now.bincount(minlength=5)
    assert abs(drawn - 160).max() < 4 * 9.8  # a fifth keeps its 0
    assert scipy.stats.chisquare(count[1:]).pvalue > .001 and abs(count[1:].sum() - 6400) < 4 * 36


@pytest.mark.parametrize("share", [-.1, 1.1, float("nan")])
def test_a_share_of_labels_lies_between_none_and_all(share):
    with pytest.raises(ValueError, match="a share of the labels must lie in"): relabelled(torch.arange(4), 4, share, seeded())
