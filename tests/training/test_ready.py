"""What a method needs, fitted in one's own loop; any data set of pairs as an image set."""

import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image

from helpers import seeded
from mixrepro.data.datasets import load
from mixrepro.data.pairs import image_set
from mixrepro.methods.adamixup import AdaMixup
from mixrepro.methods.finetune import FineTune
from mixrepro.methods.genlabel import LatentGenLabels, OnlineGenLabels
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.semi_supervised import SSLMixup
from mixrepro.methods.transform import BatchTransform
from mixrepro.methods.varmixup import VarMixup
from mixrepro.networks.zoo import build
from mixrepro.training import ready as home
from mixrepro.training.fit import fit
from mixrepro.training.ready import made_ready

TRAIN = load("photo-digits-16", "train").subset(30)
SMALL = dict(vae_network="vae-small", vae_epochs=2)


def test_the_vae_is_fitted_as_long_as_the_method_says(monkeypatch):
    asked = []
    monkeypatch.setattr(home, "fit", lambda net, method, x, y, rng, steps, batch, lr: asked.append((method.name, method.gamma, steps, batch, lr)))
    way = made_ready(VarMixup(**SMALL, gamma=3., vae=dict(lr=.01)), TRAIN, seeded(), batch=8)
    assert asked == [("mmd-vae", 3., 8, 8, .01)]  # two passes over 30 images in batches of 8
    assert way.made.vae.choices.latent == 32 and not way.made.vae.training


@pytest.mark.parametrize("field, value", [("batch", 16), ("weight_decay", 1e-4), ("augment", "crop"), ("schedule", "cosine"), ("seed", 3), ("clip", 1.)])
def test_fields_of_the_vaes_run_that_play_no_part_here_are_refused(field, value):
    "The VAE was fitted without them, and nothing said so."
    with pytest.raises(ValueError, match=f"'vae' is fitted here by Adam .* and {field}={value!r} plays no part in it"):
        made_ready(VarMixup(**SMALL, vae={field: value}), TRAIN, seeded())
    made_ready(VarMixup(**SMALL, vae=dict(weight_decay=0., method="kl-vae", method_args={}, network_args=dict(latent=4, posterior="gaussian"))), TRAIN, seeded())


def test_a_vanilla_network_is_the_loops_own():
    net = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded())
    way = made_ready(Mixup(labels=LatentGenLabels(density="gm-spherical")), TRAIN, seeded(), vanilla=net)
    assert way.labels.made.vanilla is net


def test_the_store_is_never_touched(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXREPRO_HOME", str(tmp_path)); monkeypatch.chdir(tmp_path)
    way = made_ready(VarMixup(**SMALL), TRAIN, seeded())
    BatchTransform(way, TRAIN.k, seeded())(TRAIN.floats(), TRAIN.y)
    assert [*tmp_path.iterdir()] == []


@given(seed=st.integers(0, 999), mode=st.sampled_from(("L", "RGB", "P")), as_floats=st.booleans())
@settings(max_examples=20, deadline=None)
def test_pixels_come_back_exactly(seed, mode, as_floats):
    from torchvision.transforms.v2.functional import pil_to_tensor, to_dtype
    x = torch.randint(256, (4, 3, 6, 7), generator=seeded(seed), dtype=torch.uint8)
    pictures = [Image.fromarray(a.permute(1, 2, 0).numpy()).convert(mode) for a in x]
    wanted = torch.stack([pil_to_tensor(p if mode != "P" else p.convert("RGB")) for p in pictures])
    given = [to_dtype(w, torch.float32, scale=True) for w in wanted] if as_floats else pictures
    found = image_set([(image, i % 3) for i, image in enumerate(given)])
    assert torch.equal(found.x, wanted) and found.classes == ("0", "1", "2")


def test_an_image_set_of_pairs_is_the_one_it_came_from():
    again = image_set([(TRAIN.floats(i), int(TRAIN.y[i])) for i in range(len(TRAIN))], classes=TRAIN.classes)
    assert torch.equal(again.x, TRAIN.x) and torch.equal(again.y, TRAIN.y) and again.classes == TRAIN.classes


@pytest.mark.parametrize("value", [-.1, 1.1, float("nan")])
def test_a_pixel_outside_is_found(value):
    image = torch.full((1, 4, 4), .5)
    image[0, 2, 2] = value
    with pytest.raises(ValueError, match="example 1 has values from"): image_set([(torch.zeros(1, 4, 4), 0), (image, 1)])


@pytest.mark.parametrize("way", [Mixup(labels=OnlineGenLabels()), AdaMixup(), FineTune(), SSLMixup()], ids=lambda way: type(way).__name__)
def test_fit_refuses_what_has_to_be_told_how_far_the_training_is(way):
    "Else GenLabel's densities would have no say, a policy would learn nothing, and fine-tuning would start from scratch."
    net = build("tiny-cnn", TRAIN.shape, TRAIN.k, seeded())
    with pytest.raises(TypeError, match="changes as it trains, or starts the network, and `fit` tells it nothing: write the loop"):
        fit(net, way, TRAIN.floats(), TRAIN.y, seeded(), steps=1, batch=4)
