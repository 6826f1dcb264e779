"GenLabel: the artefacts that are asked for, those with a plan, and the note's printed numbers."

from dataclasses import replace

import pandas as pd
import pytest

from mixrepro.metrics.catalogue import METRICS
from mixrepro.papers.genlabel.settings import ARTEFACTS, GENTLE, IMAGE_SETS, OVER, Images, Theory, image_methods, images
from mixrepro.repro.ledger import reported
from mixrepro.repro.scale import scale

ASKED = ("intrusion", "logistic", "margin", "toy", "prop1", "lemma1", "theorem1", "theorem2", "openml-accuracy", "openml-fgsm",
         "relu-accuracy", "relu-fgsm", "images", "genmix-toy", "genmix-error")


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {f"gl-{name}" for name in ASKED}
    assert {id for id, a in ARTEFACTS.items() if a.plan} >= {"gl-prop1", "gl-lemma1", "gl-theorem1", "gl-theorem2"}
    assert all(not a.plan(a.settings(), None) for a in ARTEFACTS.values() if a.plan and a.settings is Theory), "theory trains nothing"


@pytest.fixture(scope="module")
def printed(): return pd.concat([reported("genlabel", id) for id in ARTEFACTS])


def test_the_notes_345_numbers(printed):
    assert len(printed) == 345 and set(printed.artefact) <= set(ARTEFACTS) and printed.n.isna().all()
    assert not printed.duplicated(["artefact", "row", "column"]).any() and (printed.spread.dropna() >= 0).all()
    counts = printed.groupby("artefact").size().to_dict()
    assert counts == {"gl-openml-accuracy": 16 * 6 + 15, "gl-openml-fgsm": 48, "gl-relu-accuracy": 80, "gl-relu-fgsm": 48, "gl-images": 42,
                      "gl-genmix-error": 12, "gl-intrusion": 2, "gl-logistic": 2}


def test_what_the_printed_tables_say_of_themselves(printed):
    "The best mean of every printed OpenML column is a GenLabel row's, in one column shared; the shares of 109 add up."
    openml = printed[printed.artefact.str.contains("openml|relu") & ~printed.column.str.contains("109")]
    best = [set(t.row[t["mean"] == t["mean"].max()]) for _, t in openml.groupby(["artefact", "column"])]
    assert len(best) == 64 and all(any(r.startswith("genlabel") for r in b) for b in best)
    assert sum(not all(r.startswith("genlabel") for r in b) for b in best) == 1
    shares = printed[printed.column.str.contains("109")].groupby("row")["mean"].sum()
    assert len(shares) == 5 and (abs(shares - 100) < .11).all()
    images = printed[printed.artefact == "gl-images"].set_index(["row", "column"])["mean"].unstack("row")
    for base in ("mixup", "manifold-mixup"): assert (images[f"{base}-genlabel"] > images[base]).all()


def test_what_the_images_need():
    "GenLabel differs from its base by its labels alone, and what stands in for AutoAttack is a metric."
    s, rows = Images(), image_methods(Images())
    for ours, base in (*OVER, GENTLE): assert replace(rows[ours], labels=rows[base].labels) == rows[base] and rows[ours].labels.name == "genlabel-online"
    assert rows[GENTLE[0]].labels.gamma == s.gentle != s.gamma == rows["mixup-genlabel"].labels.gamma
    for name in ("smoke", "embedded", "gpu", "paper"):
        at, mine = scale(name), Images.at(name)
        found = images(mine, at, 0)
        assert mine.attack in METRICS and {c.column for c in found} == {"mnist", *(d for d in IMAGE_SETS if d in at.datasets)}
        assert all((c.row not in ("adamixup", GENTLE[0])) or c.column in IMAGE_SETS[:2] for c in found)
    assert len(images(Images.at("embedded"), scale("embedded"), 3)) == 10 and len(images(Images.at("embedded"), scale("embedded"), 2)) == 14
