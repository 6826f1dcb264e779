"GenLabel: the artefacts that are asked for; none has a plan yet."

from mixrepro.papers.genlabel.settings import ARTEFACTS

ASKED = ("intrusion", "logistic", "margin", "toy", "prop1", "lemma1", "theorem1", "theorem2", "openml-accuracy", "openml-fgsm",
         "relu-accuracy", "relu-fgsm", "images", "genmix-toy", "genmix-error")


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {f"gl-{name}" for name in ASKED} and not any(a.plan for a in ARTEFACTS.values())
