"""What the tutorials promise: ten lines, and pictures of one's own."""

import re
from types import SimpleNamespace

import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from conftest import ROOT
from helpers import seeded
from mixrepro.methods.mixup import Mixup
from mixrepro.methods.transform import BatchTransform
from mixrepro.workflow import injected

TUTORIALS = ROOT / "nbs/tutorials"


def code(name: str) -> list[str]:
    "The code cells of a tutorial."
    return [c.source for c in nbformat.read(TUTORIALS / name, as_version=4).cells if c.cell_type == "code"]


def test_each_loop_has_ten_lines():
    loops = [[line for line in cell.splitlines() if line.strip()] for cell in code("02_own_loop.ipynb") if ".backward()" in cell]
    assert len(loops) >= 5 and {len(loop) for loop in loops if "timm" not in loop[1]} <= set(range(11))


def test_the_lines_for_lightning_do_what_they_say():
    "In a stand-in for its module, as Lightning itself is no requirement."
    class Module(nn.Module): device, global_rank = torch.device("cpu"), 0
    (text,) = (c.source for c in nbformat.read(TUTORIALS / "02_own_loop.ipynb", as_version=4).cells if "LightningModule" in c.source)
    names = dict(lightning=SimpleNamespace(LightningModule=Module), torch=torch, F=F, BatchTransform=BatchTransform)
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], names)
    net, x, y = nn.Sequential(nn.Flatten(), nn.Linear(48, 3)), torch.rand(6, 3, 4, 4, generator=seeded()), torch.arange(6) % 3
    mixed = names["Mixed"](net, Mixup(), 3)
    mixed.on_fit_start()
    assert torch.equal(mixed.training_step((x, y), 0), Mixup().loss(net, x, y, seeded(0)))


def of_ones_own(to, n: int):
    "JPEG files of all shapes, in folders of two classes."
    for part, count in (("train", n), ("test", n // 2)):
        for c, colour in enumerate(("red", "blue")):
            (to / part / colour).mkdir(parents=True)
            for i in range(count):
                pixels = torch.randint(160, (30 + i, 44 - i, 3), generator=seeded(i), dtype=torch.uint8)
                pixels[..., 2 * c] += 90
                Image.fromarray(pixels.numpy()).save(to / part / colour / f"{i}.jpg")


def run(**parameters) -> dict:
    "The first tutorial with parameters, its smallest form."
    plt.switch_backend("Agg")
    names = {}
    for cell in code("01_own_pictures.ipynb"):
        exec(compile(cell, "a cell", "exec"), names)
        if cell.startswith("folder: str"): names |= dict(quick=True) | parameters
    plt.close("all")
    return names


def test_a_folder_of_ones_own_goes_all_the_way(tmp_path):
    of_ones_own(tmp_path, 16)
    found = run(folder=str(tmp_path), size=24)
    assert found["train"].classes == ("blue", "red") and found["train"].shape == (3, 24, 24) and len(found["test"]) == 16
    assert list(found["table"].index) == ["ERM", "VarMixup", "NoisyMix", "GenLabel"] and found["table"].notna().to_numpy().all()
    assert found["noted"] and "made" not in found and sorted(p.name for p in tmp_path.iterdir()) == ["test", "train"]


def test_a_folder_that_is_half_divided_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="holds train, but neither test nor val"): run(folder=str(tmp_path))


def test_a_misspelt_parameter_of_papermills_stops_it(monkeypatch):
    "It would train on the scans in place of a person's own pictures, for minutes and without a word."
    monkeypatch.delenv("IN_TEST", raising=False)
    cells = [code("01_own_pictures.ipynb")[0], '# Parameters\nfoldr = "pictures"\n']
    monkeypatch.setattr(injected, "get_ipython", lambda: SimpleNamespace(user_ns=dict(In=cells)))
    with pytest.raises(ValueError, match="unknown parameter of this notebook 'foldr': did you mean 'folder'"): run()
