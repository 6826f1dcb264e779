"Figure 9: names of cells, sheets of samples against torchvision's grid, and what is drawn."
import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from torchvision.utils import make_grid

from mixrepro.papers.manifold_mixup.gans import BASE, LOOKS, against_alpha, parts, printed, sheet
from mixrepro.papers.manifold_mixup.settings import ARTEFACTS, GAN_LAYERS
from mixrepro.repro.artefact import papers_cells
from mixrepro.repro.ledger import reported

def test_every_cell_of_the_plan_is_read_back():
    rows = [c.row for c in papers_cells(ARTEFACTS["mm-fig9"]) if c.row not in ("judge", BASE)]
    assert len(rows) == 16 and {parts(row) for row in rows} == {(l, a) for l in GAN_LAYERS for a in (.1, .2, .5, 1.)}
    assert set(reported("manifold_mixup", "mm-fig9").row) < {printed(row) for row in rows} | {BASE}
    assert set(LOOKS) == set(GAN_LAYERS)

@pytest.mark.parametrize("channels", [1, 3])
def test_a_sheet_holds_what_torchvisions_grid_holds(channels):
    images = torch.rand(6, channels, 4, 5, generator=torch.Generator().manual_seed(0))
    ours, theirs = sheet(list(images.split(3))), make_grid(images, nrow=3, padding=3, pad_value=1.)[:channels]
    assert torch.equal(ours[:, 1:-2, 1:-2], theirs[:, 3:-3, 3:-3])

def test_means_and_seeds_are_drawn():
    cells = (BASE, float("nan"), 7.), ("h1", .5, .5), ("h1", 1., 1.)
    rows = pd.DataFrame([dict(layers=l, alpha=a, seed=s, fid=v + s) for l, a, v in cells for s in (0, 1, 2)])
    fig, ax = plt.subplots()
    against_alpha(ax, rows, "fid")
    (means, *_), = (c for c in ax.containers)
    assert means.get_ydata().tolist() == [1.5, 2.] and means.get_xdata().tolist() == [.5, 1.]
    assert ax.lines[0].get_ydata()[0] == 8.
    plt.close(fig)
