"Figures: the same bytes from the same numbers, whole sets of files, a gallery that shows what is there."
import errno
import hashlib
import os
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from conftest import ROOT
from mixrepro.methods.catalogue import METHODS
from mixrepro.papers.catalogue import ARTEFACTS, PAPERS, find
from mixrepro.repro.artefact import FIGURE, TABLE, cells
from mixrepro.repro.figures import COLOURS, COLUMN, LABELS, LOOK, PAGE, STYLE, bar, gallery, line, picture, save, use_style

mpl.use("agg")
DATA = pd.DataFrame(dict(method=["erm", "mixup"], loss=[1 / 3, .25], n=[3, 5]))
CODE = """
import matplotlib; matplotlib.use("agg")
import matplotlib.pyplot as plt
from mixrepro.repro.figures import bar, line, picture, use_style
use_style()
fig, (a, b, c) = plt.subplots(1, 3, figsize=(7, 2.4))
for i, m in enumerate(("erm", "mixup", "augmix")): a.plot([0, 1, 2], [i, 2, 3 - i], **line(m)); b.bar(i, i + 1, **bar(m))
a.legend(title=r"$\\lambda$"); c.imshow([[0, 1], [2, 3]])
"""


def drawn():
    space = {}
    exec(CODE, space)
    plt.close("all")
    return space["fig"]


def test_the_same_bytes_in_this_process_and_in_others():
    ours = [hashlib.sha256(picture(fig, kind)).hexdigest() for fig in (drawn(),) for kind in ("svg", "png", "svg", "png")]
    assert ours[:2] == ours[2:] and ours[:2] == [hashlib.sha256(picture(drawn(), kind)).hexdigest() for kind in ("svg", "png")]
    code = CODE + "import hashlib\nprint(*(hashlib.sha256(picture(fig, k)).hexdigest() for k in ('svg', 'png')))"
    env = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "7", "ROOT_DATE_EPOCH": "1", "TZ": "Asia/Tokyo"}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=100)
    assert out.stdout.split() == ours[:2], out.stderr


def test_a_users_own_configuration_changes_nothing():
    plain = picture(drawn(), "svg")
    with mpl.rc_context({"font.size": 20, "svg.fonttype": "none", "svg.hashsalt": None, "axes.facecolor": "pink", "savefig.dpi": 30}):
        assert picture(drawn(), "svg") == plain


def test_svg_is_valid_has_no_text_no_date_and_the_asked_width():
    svg = picture(drawn(), "svg")
    root = ET.fromstring(svg)
    assert root.get("width") == "504pt" == f"{PAGE * 72:g}pt"
    assert not [e for e in root.iter() if e.tag.endswith(("}text", "}date", "}creator"))]


def test_png_is_opaque_and_keeps_all_shades_of_an_image(tmp_path):
    use_style()
    fig, ax = plt.subplots(figsize=(COLUMN, COLUMN))
    shades = np.random.default_rng(0).random((64, 64, 3))
    ax.imshow(shades); ax.set_axis_off(); plt.close(fig)
    (tmp_path/"a.png").write_bytes(picture(fig, "png"))
    image = Image.open(tmp_path/"a.png")
    assert image.mode == "RGB" and image.size == (525, 525) and len(image.getcolors(2**20)) > 3000
    (tmp_path/"b.png").write_bytes(picture(drawn(), "png"))


def test_drawings_lose_nothing_to_the_eye(tmp_path):
    "The 256 colours against matplotlib's own picture."
    use_style()
    fig, ax = plt.subplots()
    for i, m in enumerate(list(LOOK)[:9]): ax.plot([0, 1], [i, 9 - 2 * i], **line(m))
    plt.close(fig)
    (tmp_path/"small.png").write_bytes(picture(fig, "png"))
    fig.savefig(tmp_path/"full.png", dpi=150)
    small, full = (np.asarray(Image.open(tmp_path/f"{n}.png").convert("RGB"), dtype=float) for n in ("small", "full"))
    assert small.shape == full.shape and np.quantile(abs(small - full), .999) < 32 and abs(small - full).mean() < .5
    assert (tmp_path/"small.png").stat().st_size < .6 * (tmp_path/"full.png").stat().st_size


def test_looks_are_all_different_and_have_names():
    assert len({(v["color"], v["marker"]) for v in LOOK.values()}) == len(LOOK)
    assert len({v["label"] for v in LOOK.values()}) == len(LOOK) and set(LOOK) <= set(LABELS)
    assert set("color marker linestyle label".split()) == set(line("erm")) and "hatch" in bar("erm") and "marker" not in bar("erm")


@pytest.mark.parametrize("methods", [
    "erm mixup mixup-r manifold-mixup at trades iat varmixup adv-varmixup",
    "erm mixup manifold-mixup manifold-mixup-all dropout cutout weight-decay noise batch-norm fgsm at",
    "erm at stylized autoaugment mixup manifold-mixup cutmix puzzlemix nfm augmix augmax noisymix",
    "erm mixup no-intrusion logistic adamixup gm genlabel genlabel-gm genlabel-kde manifold-mixup genlabel-manifold-mixup"])
def test_within_a_paper_a_shared_colour_has_another_line_and_hatch(methods):
    looks = [LOOK[m] for m in methods.split()]
    assert len({(v["color"], v["linestyle"]) for v in looks}) == len({(v["color"], v["hatch"]) for v in looks}) == len(looks)


def test_every_method_that_an_artefact_shows_has_a_look():
    rows = {c.row for a in ARTEFACTS.values() if a.plan for c in cells(a, "paper")}
    assert {m for m in METHODS if m in rows} <= set(LOOK) and {"erm", "mixup", "varmixup", "manifold-mixup"} <= rows


def test_no_colour_vanishes_into_the_white():
    "3:1 by the WCAG's relative luminance."
    def luminance(c):
        return sum(w * (v / 12.92 if v <= .04045 else ((v + .055) / 1.055)**2.4) for w, v in zip((.2126, .7152, .0722), mpl.colors.to_rgb(c)))
    assert all(1.05 / (luminance(c) + .05) >= 3 for c in COLOURS.values())


def test_csv_reads_back(tmp_path):
    save(None, DATA, "x", tmp_path, "vm-table1", TABLE)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path/"vm-table1.csv"), DATA, rtol=1e-5)
    assert (tmp_path/"vm-table1.csv").read_bytes() == b"method,loss,n\nerm,0.333333,3\nmixup,0.25,5\n"


@pytest.mark.parametrize("at", [1, 4])
def test_a_full_disk_leaves_the_old_set(tmp_path, monkeypatch, at):
    files = save(drawn(), DATA, "old", tmp_path, "vm-fig1", FIGURE)
    before, real, calls = [f.read_bytes() for f in files], os.fsync, []
    def full(fd):
        calls.append(fd)
        if len(calls) == at: raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(fd)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="could not write .*vm-fig1.*: no space left on device; free some space and run again"):
        save(drawn(), DATA.assign(n=0), "new", tmp_path, "vm-fig1", FIGURE)
    assert [f.read_bytes() for f in files] == before and len(os.listdir(tmp_path)) == 4


def test_a_figure_that_cannot_be_drawn_touches_nothing(tmp_path):
    files = save(drawn(), DATA, "old", tmp_path, "vm-fig1", FIGURE)
    before = [f.read_bytes() for f in files]
    fig = drawn()
    fig.axes[0].set_title(r"$\nosuchsymbol$")
    with pytest.raises(ValueError): save(fig, DATA.assign(n=0), "new", tmp_path, "vm-fig1", FIGURE)
    assert [f.read_bytes() for f in files] == before and len(os.listdir(tmp_path)) == 4


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that nobody can write to")
def test_a_folder_nobody_can_write_to():
    with pytest.raises(OSError, match="could not write /proc/self/fdinfo/vm-table1.csv: .*; ") as e: save(None, DATA, "x", "/proc/self/fdinfo", "vm-table1", TABLE)
    assert "\n" not in str(e.value)


def test_outputs_can_be_chosen_and_are_checked(tmp_path):
    assert [f.name for f in save(drawn(), DATA, "x", tmp_path, "vm-table1", ("png", "md"))] == ["vm-table1.png", "vm-table1.md"]
    with pytest.raises(ValueError, match="unknown kind of output 'pgn': did you mean 'png'"): save(drawn(), DATA, "x", tmp_path, "vm-table1", ("pgn",))
    assert sorted(os.listdir(tmp_path)) == ["vm-table1.md", "vm-table1.png"]


@settings(max_examples=20, deadline=None)
@given(ids=st.sets(st.sampled_from(sorted(ARTEFACTS)), max_size=12), dropped=st.integers(0, 3))
def test_gallery_shows_exactly_what_is_there(tmp_path_factory, ids, dropped):
    folder = tmp_path_factory.mktemp("g")/"figures"/"smoke"
    folder.mkdir(parents=True)
    for id in ids:
        for f in find(id).files(folder)[dropped % len(find(id).outputs):]: f.parent.mkdir(exist_ok=True); f.write_text(f"text of {id}")
    text = gallery(folder, ARTEFACTS.values(), PAPERS).read_text()
    assert {h.split(":")[0][4:] for h in text.splitlines() if h.startswith("### ")} == ids
    assert {h[3:] for h in text.splitlines() if h.startswith("## ")} == {PAPERS[find(i).paper] for i in ids}
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    anchors, links = [l[1:] for l in links if l[0] == "#"], [l for l in links if l[0] != "#"]
    assert set(anchors) == ids and len(anchors) == len(ids) and all(f'<a id="{i}"></a>' in text for i in ids)
    assert all((folder/l).is_file() for l in links if not l.startswith("../../nbs/")) and sum(l.startswith("../../nbs/") for l in links) == len(ids)
    assert text.count("(missing: ") == sum(dropped % len(find(i).outputs) > 0 for i in ids)
    shown = [l for l in text.splitlines() if l.startswith("![")]
    assert len(shown) == sum(any(f.suffix in (".svg", ".png") for f in find(i).files(folder) if f.is_file()) for i in ids)
    assert gallery(folder, ARTEFACTS.values(), PAPERS).read_text() == text and [p.name for p in folder.iterdir() if p.is_file()] == ["README.md"]


def test_style_is_complete_and_legible():
    use_style()
    assert all(plt.rcParams[k] in (v, [v], list(v) if isinstance(v, tuple) else v) for k, v in STYLE.items())
    assert min(plt.rcParams[k] for k in ("font.size", "legend.fontsize")) >= 7 and plt.rcParams["figure.figsize"][0] == COLUMN
