"""A method, its network and its training set before the first step, small and on any device."""

import torch

from helpers import seeded
from mixrepro.data.augment import AUGMENTS
from mixrepro.data.factors import factors
from mixrepro.data.images import ImageSet
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.networks.zoo import build

K = 5


def images(n=12, side=16, name="digits", shape=None) -> ImageSet:
    "Random images on the host."
    shape, rng = shape or (1, side, side), seeded()
    x = torch.randint(256, (n, *shape), dtype=torch.uint8, generator=rng)
    return ImageSet(x, torch.arange(n) % K, tuple("abcde"), name, "train")


def network(name, shape=(1, 16, 16), k=K, device="cuda", **more):
    return build(name, shape, k, seeded(), **more).to(device, memory_format=torch.channels_last)


SMALL = {"classifier": ("small-cnn", {}), "autoencoder": ("vae-small", {}), "decoder": ("decoder", dict(of="small-cnn", stage=1)),
         "class-gan": ("class-sngan-small", dict(enlarge=1))}


def ready(name: str, device="cuda", **args):
    "A method, its network and its training set; what it needs beside is made small too."
    def network_of(*asked, **more): return network(*asked, device=device, **more)
    kind, train = METHODS[name], images()
    if name == "factor-mixup": train = factors("train", size=16).subset(12)
    if name == "puzzlemix": args = dict(passes=2) | args  # one is like the other
    train = train.to(device)
    more = dict(vae=network_of("vae-small").eval()) if kind.on_vae else {}
    if args.get("labels", {}).get("name") == "genlabel-latent": more["vanilla"] = network_of("small-cnn").eval()
    if kind.unlabelled: more["labelled"] = train.subset(6)
    if kind.trains == "gan": net = network_of("sngan", (1, 32, 32), width=8); train = images(side=32).to(device)
    else:
        which, options = SMALL[kind.trains]
        if name == "kl-vae": options = dict(posterior="gaussian")
        net = network_of(which, train.shape, train.k, **options)
    if name == "fine-tune": more["source"] = network_of("small-cnn", k=K + 2)
    if name == "genmix-gan": more["gan"] = network_of("class-sngan-small", (1, 16, 16), enlarge=1).eval(); args = dict(descent=4, restarts=1, rounds=1) | args
    if kind.trains == "decoder": more["classifier"] = network_of("small-cnn"); args = dict(stage=1) | args
    made = method(name, **args).prepare(train, torch.Generator(device), augment=AUGMENTS["crop2-flip"], **more)
    made.begin(net)
    return made, net, train
