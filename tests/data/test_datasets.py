"""The registry: constants of normalisation, and no hidden randomness."""
import torch

from helpers import moments
from mixrepro.data import datasets as D
from mixrepro.data.datasets import load


def test_cifar10_constants_are_those_of_the_training_split(cifar):
    for channel, want_mean, want_std in zip(cifar[1]["train"][0].swapaxes(0, 1), *D.STATS["cifar10"]):
        mean, std = moments(channel)
        assert abs(mean - want_mean) < 3e-4 and abs(std - want_std) < 3e-4


def test_mnist_constants_are_those_of_the_training_split(digits_of_mnist):
    for got, [want] in zip(moments(digits_of_mnist[1]["train"][0]), D.STATS["mnist"]): assert abs(got - want) < 5e-5


def test_loading_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    for name in ("digits", "synthetic-blobs"): load(name, "train").subset(10, torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), before)


def test_every_name_reads_or_says_what_to_fetch(tmp_path):
    "All have constants, and what needs a file names the command that brings it."
    assert D.STATS.keys() == D.DATASETS.keys()
    for name in D.DATASETS:
        try: s = load(name, "test", tmp_path)
        except FileNotFoundError as e: assert f"run `mixrepro data get {D.tested_on(name.removesuffix('-0to4').removesuffix('-7-9'))} --root {tmp_path}`" in str(e)
        else: assert s.name == D.tested_on(name) and len(D.STATS[name][0]) in (1, s.shape[0])
