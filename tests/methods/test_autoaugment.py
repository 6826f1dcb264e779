"""AutoAugment is torchvision's, image by image, from the generator at hand."""

import numpy as np
import pytest
import torch

from helpers import photographs, seeded
from mixrepro.methods.autoaugment import POLICIES, AutoAugmented, auto_augment, seed_of
from mixrepro.methods.erm import ERM
from mixrepro.networks.zoo import build


@pytest.mark.parametrize("policy", POLICIES)
def test_images_are_torchvisions(policy):
    from torchvision.transforms.v2 import AutoAugment, AutoAugmentPolicy
    images, change = photographs(12, 32), AutoAugment(AutoAugmentPolicy(policy))
    ours = auto_augment(images.float() / 255, seeded(3), policy)
    with torch.random.fork_rng():
        torch.manual_seed(seed_of(seeded(3)))
        theirs = torch.stack([change(i) for i in images])
    assert torch.equal(ours, theirs.float() / 255) and not torch.equal(theirs, images)


def test_autocast_moves_no_pixel():
    "Half of a training step runs in bfloat16; places that are rounded to it lie up to a pixel away."
    x = photographs(16, 64).float() / 255
    for policy in POLICIES:
        with torch.autocast("cpu", torch.bfloat16): half = auto_augment(x, seeded(), policy)
        assert torch.equal(half, auto_augment(x, seeded(), policy))


def test_images_of_a_batch_draw_apart():
    "Copies of one photograph: how far neighbours move is not correlated, and 25 pairs, chances and signs give 84 kinds."
    x = photographs(1, 16).float().div(255).repeat(800, 1, 1, 1)
    new = auto_augment(x, seeded(), "cifar10")
    far = (new - x).abs().mean((1, 2, 3)).numpy()
    assert abs(np.corrcoef(far[:-1], far[1:])[0, 1]) < 5 / 800 ** .5 and len(new.unique(dim=0)) > 60


@pytest.mark.parametrize("c, side", [(1, 16), (3, 64)])
def test_the_loss_is_that_of_erm_on_the_changed_images(c, side):
    x, y, net = photographs(6, side)[:, :c].float() / 255, torch.arange(6) % 5, build("tiny-cnn", (c, side, side), 5, seeded()).eval()
    assert torch.equal(AutoAugmented().loss(net, x, y, seeded()), ERM().loss(net, auto_augment(x, seeded(), "cifar10"), y, seeded()))
