"""Manifold Mixup at its own scale, plan by plan, against the text.

ICLR 2019 submission. Section 5.1 and appendix C, supervised runs: SGD with momentum, weight decay 1e-4, 1200 epochs, a tenth of the rate after 400 and 800.
The rate, the batch, Nesterov's momentum and the augmentation (padding 2 and flips; none on SVHN) are the released code's. Trials: five where the text says so.
"""

import pytest

from mixrepro.repro.scale import scale

from mixrepro.data.factors import ROWS
from mixrepro.papers.catalogue import find
from mixrepro.papers.manifold_mixup.settings import ARTEFACTS, Theorem
from mixrepro.repro.scale import SCALES
from plans import agree, args, every, grid, planned

THREE = ("erm", "mixup", "manifold-mixup")
SGD = dict(optimizer="sgd", momentum=.9, nesterov=True, lr=.1, schedule="step", precision="float32")
WHOLE = dict(batch=100, weight_decay=1e-4, n_train=0, split="", whiten="", network_args={}, **SGD)
LONG = dict(epochs=1200, milestones=(400, 800))
ADAM = dict(optimizer="adam", weight_decay=0., n_train=0, split="", whiten="", milestones=(), augment="none", precision="float32")
ASKED = ("fig1", "fig2", "fig3", "fig4", "fig5", "fig6", "fig7", "fig8", "fig9", "table1", "table2", "table3", "table4", "table5", "knn",
         "perexample", "blocked", "regularizers", "lowdata", "unbounded-pgd", "theorem1", "corollary1")


def trials(plan): return {len(specs) for specs in plan.values()}


def test_the_rooms_artefacts(): assert set(ARTEFACTS) >= {f"mm-{name}" for name in ASKED}


def test_hyper_parameters_of_the_three_models():
    "Captions of table 1, and appendix C: alpha 1 and 2, the input and the first two blocks; all layers: alpha 6, one block more."
    plan = {row: args(specs) for (row, column), specs in planned("mm-table1").items() if column == "cifar10 preactresnet152"}
    assert plan["mixup"]["alpha"] == 1 and plan["mixup"]["per"] == "batch"
    assert (plan["manifold-mixup"]["alpha"], plan["manifold-mixup"]["stages"]) == (2, (0, 1, 2))
    assert (plan["manifold-mixup-all"]["alpha"], plan["manifold-mixup-all"]["stages"]) == (6, (0, 1, 2, 3))


def test_table1():
    "Rows of tables 1a and 1b that the authors ran; those of AdaMix and of Zhang et al. are quoted there."
    plan = planned("mm-table1")
    words = (grid(THREE, "cifar10 preactresnet18") | grid((*THREE, "manifold-mixup-all"), "cifar10 preactresnet152")
             | grid(THREE, "cifar100 preactresnet18") | grid(THREE[1:], "cifar100 preactresnet34"))
    assert set(plan) == words | {(row, f"{column}, released code") for row, column in words} and len(words) == 12 and trials(plan) == {10}
    for (row, column), specs in plan.items():
        dataset, network = column.removesuffix(", released code").split()
        agree(specs, dataset=dataset, method=row, network=network, augment="crop2-flip", **LONG, **WHOLE)
        assert args(specs)["criterion"] == ("bce" if column.endswith("code") else "ce"), "algorithms 1 and 3; the code's BCELoss"

def test_table1s_dear_cells_at_embedded():
    "Both losses where ten seeds are cheap, and the deep network for five seeds: they have the runs of the others."
    plan = planned("mm-table1", "embedded")
    found = {column: len(specs) for (_, column), specs in plan.items()}
    assert found == {"cifar10 preactresnet18": 10, "cifar10 preactresnet152": 5, "cifar10 preactresnet18, released code": 5}
    assert {s.network for s in every(plan)} == {"small-cnn", "small-cnn-4"} and planned("mm-fig8", "embedded").keys() == grid(THREE, "cifar10")


@pytest.mark.parametrize("id", ["mm-fig2", "mm-knn", "mm-unbounded-pgd"])
def test_fig2_and_knn_and_unbounded_pgd(id):
    "Section 5.1, appendix F: PreActResNet-18 on CIFAR-10, table 1's runs."
    plan, table = planned(id), planned("mm-table1")
    assert set(plan) == grid(THREE, "cifar10")
    assert all(specs == table[row, "cifar10 preactresnet18"] for (row, _), specs in plan.items())


@pytest.mark.parametrize("id", ["mm-fig3", "mm-fig5"])
def test_fig3_and_fig5(id):
    "Mixed images, and drawings: nothing is trained."
    assert all(planned(id, at) == {} for at in SCALES)


def test_fig4():
    "Small decoders of the second block's output, from code: Adam at 1e-4, batches of 32, up to 200 epochs, noise of 0.05 on the state."
    plan, classifiers = planned("mm-fig4"), planned("mm-knn")
    assert set(plan) == grid(THREE, "cifar10") and trials(plan) == {1}
    for (row, column), (spec,) in plan.items():
        agree(spec, dataset="cifar10", method="decoder", network="decoder", epochs=200, batch=32, lr=1e-4, schedule="constant", seed=0, **ADAM)
        assert (args(spec)["stage"], args(spec)["noise"]) == (2, .05)
        assert spec.needs == {"classifier": classifiers[row, column][0]}


def test_table4():
    "Appendix A: tasks A, B and C; 64 pixels, batches of 128, 1000 iterations on new drawings and Adam at 1e-4 are the code's."
    plan = planned("mm-table4")
    assert set(plan) == grid(("erm", "mixup", "factor-mixup"), "task A", "task B", "task C") and trials(plan) == {10}
    for (row, column), specs in plan.items():
        agree(specs, dataset=f"factors-{column[-1].lower()}", method=row, network="factor-cnn", network_args={}, epochs=1, batch=128, lr=1e-4,
              schedule="constant", **ADAM)
    assert ROWS["train"] == 1000 * 128
    for row in ("mixup", "factor-mixup"):  # lambda is uniform, one for each drawing
        given = args([s for (r, _), specs in plan.items() for s in specs if r == row])
        assert (given["alpha"], given["per"]) == (1, "example")


SPIRALS = dict(dataset="spirals", network="spiral-net", epochs=40, batch=32, lr=1e-3, schedule="cosine")  # silent: ours


def test_fig1():
    "Nine fully connected layers with two units in the middle, where alone Manifold Mixup mixes; Input Mixup with alpha 1."
    plan = planned("mm-fig1")
    assert set(plan) == grid(THREE, "spirals") and trials(plan) == {10}
    for (row, _), specs in plan.items(): agree(specs, method=row, network_args={}, **SPIRALS, **ADAM)
    assert args(plan["mixup", "spirals"])["alpha"] == 1
    assert (args(plan["manifold-mixup", "spirals"])["stages"], args(plan["manifold-mixup", "spirals"])["alpha"]) == ((1,), 1)


def test_fig6():
    "Figure 1's set-up; noise in the bottleneck, half of the units dropped everywhere else, batch normalisation everywhere."
    plan, one = planned("mm-fig6"), planned("mm-fig1")
    changed = {"noise": dict(noise=.5), "dropout": dict(dropout=.5), "batch-norm": dict(batch_norm=True)}
    assert set(plan) == grid(("erm", "weight-decay", "noise", "dropout", "batch-norm", "manifold-mixup"), "spirals") and trials(plan) == {10}
    for row in ("erm", "manifold-mixup"): assert plan[row, "spirals"] == one[row, "spirals"]
    for row, network_args in changed.items(): agree(plan[row, "spirals"], method="erm", network_args=network_args, **SPIRALS, **ADAM)
    agree(plan["weight-decay", "spirals"], method="erm", network_args={}, **SPIRALS, **ADAM | dict(weight_decay=5e-4))


def test_fig7():
    "Appendix B: two layers of 1024 units, two units, two layers of 1024; the rest is the code's."
    plan = planned("mm-fig7")
    assert set(plan) == grid(THREE, "5 digits", "10 digits") and trials(plan) == {10}
    for (row, column), specs in plan.items():
        agree(specs, dataset={"5 digits": "mnist-0to4", "10 digits": "mnist"}[column], method=row, network="bottleneck-mlp", network_args={},
              epochs=30, batch=256, lr=1e-4, schedule="constant", **ADAM)
        if row != "erm": assert args(specs)["alpha"] == .5
        if row == "manifold-mixup": assert args(specs)["stages"] == (1,)


def test_fig7s_network_has_two_layers_of_1024_on_each_side():
    import torch
    from torch import nn
    from mixrepro.networks.zoo import build
    spec = planned("mm-fig7")["erm", "10 digits"][0]
    net = build(spec.network, (1, 28, 28), 10, torch.Generator().manual_seed(0), **spec.network_args)
    layers = [(m.in_features, m.out_features) for m in net.modules() if isinstance(m, nn.Linear)]
    assert layers == [(784, 1024), (1024, 1024), (1024, 2), (2, 1024), (1024, 1024), (1024, 10)]


def test_fig8():
    "PreActResNet-152 on CIFAR-10: table 1's runs."
    plan, table = planned("mm-fig8"), planned("mm-table1")
    assert set(plan) == grid(THREE, "cifar10")
    assert all(specs == table[row, "cifar10 preactresnet152"] for (row, _), specs in plan.items())


GAN = dict(dataset="cifar10", network="sngan", lr=2e-4, beta1=0., beta2=.999, batch=64, schedule="constant", **ADAM)
LISTS = {"pixel": (0,), "h1": (1,), "h1,h2": (1, 2), "h1,h2,pixel": (0, 1, 2)}


def test_fig9():
    "Appendix G, three runs: four lists of layers, four alphas; 500 epochs, 600 where pixels are mixed, a generator's step in five, from code."
    plan = planned("mm-fig9")
    rows = {f"{name}, alpha {a:g}": (name, a) for name in LISTS for a in (.1, .2, .5, 1.)}
    assert set(plan) == grid(["baseline", "judge", *rows], "cifar10") and len(plan) == 1 + 1 + 16
    agree(plan["baseline", "cifar10"], method="gan", epochs=500, **GAN)
    assert trials({k: v for k, v in plan.items() if k[0] != "judge"}) == {3} and args(plan["baseline", "cifar10"])["every"] == 5
    for row, (name, alpha) in rows.items():
        agree(plan[row, "cifar10"], method="gan-mixup", epochs=600 if name == "pixel" else 500, **GAN)
        given = args(plan[row, "cifar10"])
        assert (given["stages"], given["alpha"], given["every"], given["law"]) == (LISTS[name], alpha, 5, "uniform")


def test_fig9s_scores():
    "50,000 images are scored, from code: that of the Inception score."
    assert find("mm-fig9").settings.at("paper").samples == 50_000


def test_fig9s_judge():
    "Where Inception is not there, the classifier of table 1 looks."
    assert planned("mm-fig9")["judge", "cifar10"] == planned("mm-knn")["erm", "cifar10"][:1]


def test_table2():
    "Appendix E, five trials; dropout, leaky ReLUs and augmentation are the code's, and of SVHN 732 validation images a class for 7325."
    plan = planned("mm-table2")
    ways, rows = ("paper's words", "released code"), ("ssl-baseline", "ssl-mixup", "ssl-manifold-mixup")
    assert set(plan) == {(row, f"{dataset}, {way}") for row in rows for dataset in ("cifar10", "svhn") for way in ways} and trials(plan) == {5}
    cifar10 = dict(dataset="cifar10", epochs=1000, milestones=(500, 750, 875), augment="crop2-flip", split="cifar10-l4000-v5000")
    svhn = dict(dataset="svhn", epochs=200, milestones=(100, 150, 175), augment="crop2", split="svhn-l1000-v7320", whiten="")
    for (row, column), specs in plan.items():
        agree(specs, method=row, network="wrn28-2", network_args=dict(dropout=.3, slope=.01), batch=100, weight_decay=5e-4, n_train=0, **SGD)
        agree(specs, **cifar10 if column.startswith("cifar10") else svhn)
        if column.startswith("cifar10"): agree(specs, whiten="gcn-zca" if "words" in column else "zca-code")


@pytest.mark.parametrize("dataset, weight", [("cifar10", 1), ("svhn", 2)])
def test_table2s_hyper_parameters(dataset, weight):
    "Appendix E: alpha .1 and 2, the input and two blocks, L1 of .001, a weight that rises until .4; in code L1 on the stem, and logits as targets."
    plan = {cell: args(specs) for cell, specs in planned("mm-table2").items() if cell[1].startswith(dataset)}
    for (row, column), given in plan.items():
        code = column.endswith("code")
        assert (given["l1"], given["l1_on"]) == (.001, "stem" if code else "all")
        if row == "ssl-baseline": continue
        assert (given["alpha"], given["alpha_u"], given["weight"], given["until"]) == (.1, 2, weight, .4)
        assert given["target"] == ("logits" if code else "softmax") and given["stages"] == {"ssl-mixup": (0,), "ssl-manifold-mixup": (0, 1, 2)}[row]


def test_table3():
    "PreActResNet-18 on both CIFARs, a wide network on SVHN: there is none of 20 layers, as is printed, and the code has 28."
    plan, table = planned("mm-table3"), planned("mm-table1")
    assert set(plan) == grid(THREE, "cifar10", "cifar100", "svhn") | grid(("at",), "cifar10", "svhn") and trials(plan) == {10}
    for (row, column), specs in plan.items():
        if row == "at":
            agree(specs, dataset=column, network="wrn28-10" if column == "svhn" else "preactresnet18", **LONG, **WHOLE)
            assert {k: args(specs)[k] for k in ("steps", "eps", "step")} == dict(steps=7, eps=8 / 255, step=2 / 255), "7-step PGD"
        elif column != "svhn": assert specs == table[row, f"{column} preactresnet18"]
        else: agree(specs, dataset="svhn", method=row, network="wrn28-10", augment="crop2", **LONG, **WHOLE)


def test_table5():
    "PreActResNet-34 on CIFAR-100; Input Mixup with alpha 1 and 2."
    plan = planned("mm-table5")
    assert set(plan) == grid(("erm", "mixup", "mixup-alpha2", "manifold-mixup"), "cifar100") and trials(plan) == {10}
    for (row, _), specs in plan.items():
        agree(specs, dataset="cifar100", method=row.removesuffix("-alpha2"), network="preactresnet34", augment="crop2-flip", **LONG, **WHOLE)
    assert {row: args(specs).get("alpha") for (row, _), specs in plan.items()} == {"erm": None, "mixup": 1, "mixup-alpha2": 2, "manifold-mixup": 2}


def test_blocked():
    "Section 5.1: the blocked variant at 400 and at 1200 epochs, with its peers at both."
    plan, table = planned("mm-blocked"), planned("mm-table1")
    assert set(plan) == grid(("manifold-mixup-blocked", *THREE), "400 epochs", "1200 epochs") and trials(plan) == {10}
    for row in THREE: agree(plan[row, "400 epochs"], method=row, network="preactresnet18", epochs=400, milestones=(133, 267), **WHOLE)
    for epochs, milestones in ((400, (133, 267)), (1200, (400, 800))):
        specs = plan["manifold-mixup-blocked", f"{epochs} epochs"]
        agree(specs, dataset="cifar10", network="preactresnet18", augment="crop2-flip", epochs=epochs, milestones=milestones, **WHOLE)
        assert {k: args(specs)[k] for k in ("blocked", "alpha", "stages")} == dict(blocked=True, alpha=2, stages=(0, 1, 2))
    for row in THREE: assert plan[row, "1200 epochs"] == table[row, "cifar10 preactresnet18"]


def test_perexample():
    "Section 2: a new layer and a new lambda for each example; the network is not said."
    plan, table = planned("mm-perexample"), planned("mm-table1")
    assert set(plan) == grid(("manifold-mixup", "lambda", "lambda-layer"), "cifar10") and trials(plan) == {10}
    assert plan["manifold-mixup", "cifar10"] == table["manifold-mixup", "cifar10 preactresnet18"]
    for row, per in (("lambda", "lambda"), ("lambda-layer", "lambda and layer")):
        agree(plan[row, "cifar10"], method="manifold-mixup", network="preactresnet18", augment="crop2-flip", **LONG, **WHOLE)
        assert {k: args(plan[row, "cifar10"])[k] for k in ("per", "alpha", "stages")} == dict(per=per, alpha=2, stages=(0, 1, 2))


def test_regularizers():
    "Section 5.1: five methods, PreActResNet-50, 600 epochs, five trials; where the rate drops is not given: at the same shares."
    plan = planned("mm-regularizers")
    assert set(plan) == grid(("erm", "dropout", "cutout", "mixup", "manifold-mixup"), "cifar10") and trials(plan) == {5}
    for (row, _), specs in plan.items():
        agree(specs, dataset="cifar10", method=row, network="preactresnet50", epochs=600, milestones=(200, 400), augment="crop2-flip", **WHOLE)


def test_lowdata():
    "Section 5.2: PreActResNet-152 on 4000 labels and nothing else; its schedule is not given: that of table 1."
    plan = planned("mm-lowdata")
    assert set(plan) == grid(THREE, "cifar10") and trials(plan) == {10}
    for (row, _), specs in plan.items():
        agree(specs, dataset="cifar10", method=row, network="preactresnet152", augment="crop2-flip", **LONG, **WHOLE | dict(n_train=4000))


def test_theorem1():
    "Built, not trained."
    assert planned("mm-theorem1") == {}
    s = find("mm-theorem1").settings.at("paper")
    assert type(s) is Theorem and (s.steps, s.mixtures, s.new) == (150, (100, 1000, 10_000, 100_000), 20_000)


def test_corollary1():
    "Not measured in the paper: ten digits, below, at and above the nine dimensions that ten classes need."
    plan = planned("mm-corollary1")
    assert set(plan) == grid(("erm", "manifold-mixup"), "dim(H) = 2", "dim(H) = 9", "dim(H) = 16", "dim(H) = 32") and trials(plan) == {10}
    for (row, column), specs in plan.items():
        agree(specs, dataset="digits", method=row, network="spiral-net", network_args=dict(code=int(column.split()[-1])), epochs=50, batch=64,
              lr=1e-3, schedule="cosine", **ADAM)
        if row != "erm": assert (args(specs)["stages"], args(specs)["alpha"]) == ((1,), 1)


# ---- what other scales do otherwise -----------------------------------------------------------------------------------

def test_digits_stand_in_for_mnist_where_it_is_not_there():
    assert {s.dataset for s in every(planned("mm-fig7", "gpu"))} == {"mnist", "mnist-0to4"}
    assert {s.dataset for s in every(planned("mm-fig7", "embedded"))} == {"digits", "digits-0to4"}


@pytest.mark.parametrize("at", SCALES)
def test_the_rate_drops_at_the_same_shares_everywhere(at):
    for id in ("mm-table1", "mm-blocked", "mm-regularizers", "mm-lowdata", "mm-table5"):
        for s in every(planned(id, at)):
            if scale(at).recipe: assert (s.schedule, s.milestones) == ("cosine", ()); continue
            assert all(abs(m - s.epochs * share) <= max(1.5, s.epochs / 50) for m, share in zip(s.milestones, (1 / 3, 2 / 3), strict=True))
