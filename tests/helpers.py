"""What several test files need: seeded generators, crops of photographs, and where real data lies if it is at hand."""
import os
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.optim.optimizer import register_optimizer_step_post_hook

SHARED = Path(os.environ.get("MIXREPRO_SHARED_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def seeded(seed=0, device="cpu") -> torch.Generator:
    "A generator with a seed."
    return torch.Generator(device).manual_seed(seed)


class Steps:
    "A hook of optimisers that ends the process at a step."
    def __init__(self, end): self.end, self.made = end, 0

    def __call__(self, *_):
        self.made += 1
        if self.made == self.end: os.kill(os.getpid(), signal.SIGKILL)


class Forked:
    """A function in a fork of this process, as if in another that had imported everything; what it prints can be read line by line. With
    `steps` the process gets a SIGKILL as soon as an optimiser has made so many: the same moment on every machine, however busy."""

    def __init__(self, target, *args, steps=0):
        read, write = os.pipe()
        self.returncode = None
        if not (pid := os.fork()):
            code = 1
            try:
                for number in (1, 2): os.dup2(write, number)
                sys.stdout = sys.stderr = os.fdopen(write, "w", buffering=1)
                if steps: register_optimizer_step_post_hook(Steps(steps))
                target(*args)
                code = 0
            except BaseException: traceback.print_exc()
            finally: os._exit(code)
        os.close(write)
        self.pid, self.stdout = pid, os.fdopen(read)

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.wait()

    def wait(self) -> int:
        self.stdout.close()
        if self.returncode is None: self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode


def weights(run) -> bytes:
    "The file of a run's weights."
    return (run.folder / "weights.safetensors").read_bytes()


def cut_off(spec, store, epoch: int, monkeypatch):
    "Train a run, and have it end by an error in an epoch of its own: 0, 1, ..."
    import pytest

    from mixrepro.training import loop
    real = loop.train_epoch
    def cut(net, ready, train, of, *rest):
        if of == spec and rest[-1] == epoch: raise RuntimeError("cut")
        return real(net, ready, train, of, *rest)
    with monkeypatch.context() as m:
        m.setattr(loop, "train_epoch", cut)
        with pytest.raises(RuntimeError, match="cut"): loop.train_run(spec, store, "cpu")


def goes_on_alike(spec, folder, monkeypatch, epoch=1, remembers=True) -> bool:
    "Whether a run that was cut off ends with the weights of one that was not; `remembers`: its method takes up what it had learned."
    from mixrepro.training import loop
    from mixrepro.training.store import Store
    whole, store = loop.train_run(spec, Store(folder / "whole"), "cpu"), Store(folder / "cut")
    cut_off(spec, store, epoch, monkeypatch)
    if not remembers: monkeypatch.setattr(loop, "restore", lambda *_: None)
    return weights(loop.train_run(spec, store, "cpu")) == weights(whole)


def photographs(n, side, seed=0):
    "Crops of the two photographs of scikit-learn, uint8 (n, 3, side, side)."
    from sklearn.datasets import load_sample_images
    rng, images = np.random.default_rng(seed), load_sample_images().images
    def crop(k):
        s, a = rng.integers(100, 400), images[k % 2]
        y, x = rng.integers(0, a.shape[0] - s), rng.integers(0, a.shape[1] - s)
        return np.asarray(Image.fromarray(a[y:y + s, x:x + s]).resize((side, side), Image.LANCZOS))
    return torch.from_numpy(np.stack([crop(k) for k in range(n)])).permute(0, 3, 1, 2).contiguous()


def moments(x):
    "Mean and deviation of grey levels in [0, 1], exact: from their counts."
    count, level = np.bincount(x.ravel(), minlength=256), np.arange(256) / 255
    mean = np.average(level, weights=count)
    return mean, np.average((level - mean) ** 2, weights=count) ** .5


def write_tiny_imagenet(root):
    "Tiny-ImageNet with two classes of flat images, complete."
    folder = root / "tiny-imagenet-200"
    (folder / "val" / "images").mkdir(parents=True)
    (folder / "wnids.txt").write_text("n02\nn01\n")
    (folder / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\ttree frog\nn03\tabsent\n")
    lines = []
    for c, w in enumerate(("n01", "n02")):
        (images := folder / "train" / w / "images").mkdir(parents=True)
        for i in range(500):
            mode, level = ("L", i % 256) if i % 7 == 0 else ("RGB", (i % 256, 100 * c, 9))
            Image.new(mode, (64, 64), level).save(images / f"{w}_{i}.JPEG")
        for i in range(50):
            Image.new("RGB", (64, 64), (4 * i, 100 * c, 50)).save(folder / "val" / "images" / f"val_{2 * i + c}.JPEG")
            lines.append(f"val_{2 * i + c}.JPEG\t{w}\t0\t0\t63\t63\n")
    (folder / "val" / "val_annotations.txt").write_text("".join(lines))


def write_c(folder, kind="fog", n=10_000, k=10, size=32, made=False):
    "A set in the layout of CIFAR-10-C, full of holes on the disk: a few images of each block hold its number and theirs."
    import json
    folder.mkdir(parents=True, exist_ok=True)
    x = np.lib.format.open_memmap(folder / f"{kind}.npy", "w+", np.uint8, (5 * n, size, size, 3))
    for i in (0, 7, n - 1):
        for block in range(5): x[block * n + i, 0, 0] = 1 + block, i % 251, 9
    x.flush()
    np.save(folder / "labels.npy", np.tile(np.arange(n) % k, 5).astype(np.uint8))
    if made: (folder / "made.json").write_text(json.dumps(dict(made="here", same={}, files={kind: ""})))


def forget(begin: str):  # how the names of the user's modules begin
    "Modules from outside as they are in a new process: not imported, not found by name, not read."
    import importlib

    from mixrepro import fingerprint, outside
    from mixrepro.methods.catalogue import METHODS, PARTS
    from mixrepro.networks.zoo import NETWORKS, telling
    from mixrepro.training import made
    for name in [n for n in sys.modules if n.startswith(begin)]: del sys.modules[name]
    for name in [*fingerprint.OUTSIDE]: fingerprint.CODE.texts.pop(name), fingerprint.CODE.modules.pop(name, None)
    for where in [w for w in fingerprint.CODE.known if w.startswith(begin)]: del fingerprint.CODE.known[where]
    for found in (fingerprint.OUTSIDE, METHODS.found, NETWORKS.found, PARTS.found): found.clear()
    for cached in (made.reached_by, outside.entered, outside.brought_in, telling): cached.cache_clear()
    importlib.invalidate_caches()
