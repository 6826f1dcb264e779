"NoisyMix at its own scale: what has a plan, against the text."

import pytest

from mixrepro.metrics.catalogue import METRICS
from mixrepro.papers.noisymix.settings import ARTEFACTS, KNOWN, ROWS, SOURCES, ImageNet, Theorems, imagenet_schemes
from mixrepro.repro.scale import SCALES
from mixrepro.training.spec import name_of
from plans import agree, args, every, grid, planned

WITHOUT_RUNS = {"nm-fig3", "nm-fig5", "nm-theorem1", "nm-theorem2", "nm-theorem3"}
WITH_RUNS = {f"nm-{k}" for k in ("table2", "table3", "table4", "table7", "table8", "table9", "table10", "table13", "table14", "fig2", "fig7", "fig8")}
ON_IT = {f"nm-{k}" for k in ("table1", "table6", "table11", "table12", "fig1", "fig6")}
NUMBERED = {"table": 14, "fig": 8, "theorem": 3}  # of the text and its appendices


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {f"nm-{kind}{i}" for kind, n in NUMBERED.items() for i in range(1, n + 1)}
    assert {id for id, a in ARTEFACTS.items() if a.plan} == WITHOUT_RUNS | WITH_RUNS | ON_IT | {"nm-fig4", "nm-table5"}


@pytest.mark.parametrize("id", sorted(WITHOUT_RUNS))
def test_what_trains_nothing(id):
    "Points of the plane, corruptions of an image, theorems."
    assert all(planned(id, at) == {} for at in SCALES)


def test_theorems_have_the_experiments_constants():
    "App. D and the released code: lambda ~ Beta(1, 1), NFM's levels; eps = 2^-1 ... 2^-10."
    s = Theorems.at("embedded")
    assert (s.alpha, s.sigma_add, s.sigma_mult, s.gamma) == (1, .4, .2, 12) and s.powers == tuple(range(1, 11))


CIFAR = dict(optimizer="sgd", momentum=.9, nesterov=True, lr=.1, schedule="cosine", precision="float32", batch=128, weight_decay=5e-4, n_train=0,
             augment="crop-flip", epochs=200, whiten="", split="", network_args={})
NETWORKS = {"nm-table2": "preactresnet18", "nm-table7": "preactresnet18", "nm-table8": "preactresnet18", "nm-fig2": "preactresnet18", "nm-table13": "preactresnet18", "nm-table14": "wrn28-2",
            "nm-table3": "wrn28-2", "nm-table9": "wrn28-2", "nm-table10": "wrn28-2", "nm-fig7": "wrn28-2", "nm-fig8": "wrn28-2", "nm-table4": "wrn28-2"}
BOTH, TEN, HUNDRED = ("cifar10", "cifar100"), ("cifar10",), ("cifar100",)
WIDER = ("cifar10, wide", "cifar100, wide")  # figure 2 has both networks
RELEASED = ("cifar10, as released", "cifar100, as released")  # table 3 has the code's too: 28-4 with dropout .1
COLUMNS = {"nm-table2": BOTH, "nm-table3": (*BOTH, *RELEASED), "nm-fig2": (*BOTH, *WIDER), "nm-table7": TEN, "nm-table9": TEN, "nm-fig7": TEN, "nm-table13": TEN, "nm-table14": TEN,
           "nm-table8": HUNDRED, "nm-table10": HUNDRED, "nm-fig8": HUNDRED}


@pytest.mark.parametrize("id", sorted(WITH_RUNS))
def test_every_run_has_the_one_schedule(id):
    "Section 4.1: five seeds, 200 epochs; the rest is the command of the released code."
    for (row, column), specs in planned(id).items():
        own = dict(network="wrn28-2") if column in WIDER else dict(network="wrn28-4", network_args=dict(dropout=.1)) if column in RELEASED else dict(network=NETWORKS[id])
        if own["network"] == "preactresnet18": own |= dict(network_args=dict(identity="activated"))  # src/cifar_models/preresnet.py of NoisyMix and of NFM
        agree(specs, dataset=column.partition(",")[0], **CIFAR | own)
        assert [s.seed for s in specs] == list(range(5))


@pytest.mark.parametrize("id", ["nm-table13", "nm-table14"])
def test_films_are_of_all_test_images_or_the_name_says_of_how_many(id):
    "App. E: tables 13 and 14 are of CIFAR-10-P itself."
    films = {at: ARTEFACTS[id].settings.at(at).films for at in SCALES}
    assert films == dict(smoke="flips-on-2", embedded="flips-on-200", overnight="flips-on-500", gpu="flips", paper="flips") and set(films.values()) < set(METRICS)
    assert METRICS["flips-on-200"].keywords == dict(images=200)


@pytest.mark.parametrize("id", sorted(id for id, columns in COLUMNS.items() if columns != HUNDRED))
def test_a_night_draws_all_tables_of_cifar_10_from_the_runs_of_one(id):
    "There one small network stands for both, so that none of them trains more than table 2."
    def runs(id): return {(c, s) for c, specs in planned(id, "overnight").items() for s in map(name_of, specs)}
    assert id in SCALES["overnight"].only and runs(id) == runs("nm-table2")


@pytest.mark.parametrize("id", sorted(COLUMNS))
def test_eight_schemes_and_noisymix_twice(id):
    assert set(planned(id)) == grid(ROWS, *COLUMNS[id]) and len(ROWS) == 9


def test_what_each_scheme_has_of_its_own():
    "Each its own paper's; NFM .4 / .2 without sparsity; NoisyMix's code .5 / .5, .65 of the noise left out and levels 1, 2, 3, its words as strong."
    found = {row: args(specs) for (row, column), specs in planned("nm-table2").items() if column == "cifar10"}
    assert found["mixup"]["alpha"] == found["cutmix"]["alpha"] == found["puzzlemix"]["alpha"] == 1
    assert (found["manifold-mixup"]["alpha"], found["manifold-mixup"]["stages"]) == (2, (0, 1, 2))
    for row in ("nfm", "noisymix", "noisymix-code"): assert (found[row]["alpha"], found[row]["stages"]) == (1, (0, 1, 2, 3))
    noise = {row: [found[row]["noise"][k] for k in ("add", "mult", "sparse", "factor", "shared", "levels")] for row in ("nfm", "noisymix", "noisymix-code")}
    assert noise == {"nfm": [.4, .2, 0, "beta", False, (1,)], "noisymix": [.209, .097, 0, "none", True, (1,)], "noisymix-code": [.5, .5, .65, "beta", False, (1, 2, 3)]}
    for row in ("augmix", "noisymix", "noisymix-code"):
        assert {k: found[row]["views"][k] for k in ("count", "gamma", "severity", "width", "depth", "alpha")} == dict(count=2, gamma=12, severity=3, width=3, depth=3, alpha=1)


def test_the_ablation_has_all_that_means_something():
    "2^4 settings less the four in which views that are equal are compared."
    plan = {row: specs[0] for (row, _), specs in planned("nm-table4").items()}
    assert len(plan) == 12 and set(KNOWN.values()) < set(plan) and not {"row 6", "row 7", "row 8", "row 9"} & set(plan)
    assert plan["row 1"].method == "erm" and args(plan["row 2"])["alpha"] == 1e-8 and args(plan["row 3"])["noise"] == {}
    assert plan["row 10"] == planned("nm-table3")["noisymix", "cifar100"][0] and plan["augmentation + jsd"] == planned("nm-table3")["augmix", "cifar100"][0]


def test_at_embedded_all_tables_read_the_same_runs():
    names = [{(row, s.seed): s for (row, _), specs in planned(id, "embedded").items() for s in specs} for id in sorted(COLUMNS)]
    assert all(n == names[0] for n in names) and {s.dataset for s in every(planned("nm-table4", "embedded"))} == {"photo-digits-16"}


def test_points_of_the_plane():
    "Appendix A: one hidden layer of 32 ReLU units, Adam at .1, batches of 50, 100 epochs; six schemes in the figure's order, mixed at the input and the hidden layer."
    plan = planned("nm-fig4")
    assert [row for row, _ in plan][:6] == ["erm", "noise", "manifold-mixup", "nfm", "manifold-mixup-jsd", "noisymix"]
    for (row, _), specs in plan.items():
        agree(specs, dataset="band-star", network="mlp", network_args=dict(widths=(32,), norm=False), optimizer="adam", lr=.1, batch=50, epochs=100, schedule="constant")
        assert len(specs) == 100 and (row == "erm" or args(specs)["stages"] == (0, 1))
    assert args(plan["noisymix", "test accuracy"])["views"]["gamma"] == 12 and args(plan["noisymix, gentle", "test accuracy"])["views"]["gamma"] == 1
    assert args(plan["noise", "test accuracy"])["alpha"] == 1e-8
    own = {row: args(plan[row, "test accuracy"])["noise"]["shared"] for row in ("noisymix", "noisymix, gentle", "noisymix-code")}
    assert own == {"noisymix": True, "noisymix, gentle": True, "noisymix-code": False}, "eqs. 20, 21: one noise for both views; the code draws two"


IMAGENET = dict(network="resnet50", optimizer="sgd", momentum=.9, nesterov=True, lr=.1, schedule="cosine", weight_decay=1e-4, batch=256, n_train=0,
                augment="resized-crop", looks=0, precision="float32")


@pytest.mark.parametrize("id", sorted(ON_IT))
def test_imagenet_has_one_schedule_for_all_rows(id):
    "Section 4.1: ResNet-50; one network each. 200 epochs, batches of 256, lr .1, weight decay 1e-4, cosine: the released code."
    plan, rows = planned(id), imagenet_schemes(ImageNet())
    assert set(plan) == grid(rows, "imagenet") and len(rows) == 11
    for (row, _), specs in plan.items():
        both = row == "stylized"
        agree(specs, dataset="imagenet" + "-stylized" * both, epochs=100 if both else 200, **IMAGENET)
        assert [s.seed for s in specs] == [0]
    assert planned(id, "overnight") == planned(id, "gpu") == {}, "a scale without ImageNet plans nothing"


def test_what_each_scheme_has_of_its_own_on_imagenet():
    "Radius 4/255 and three steps from memory of Salman et al.; Mixup .2 and CutMix always, as their papers have it for ImageNet; the others' code."
    found = {row: args(specs) for (row, _), specs in planned("nm-table1").items()}
    at = found["adversarial"]
    assert (at["eps"], at["steps"], round(at["step"] * 255, 9)) == (4 / 255, 3, round(8 / 3, 9))
    assert (found["mixup"]["alpha"], found["cutmix"]["prob"], found["autoaugment"]["policy"]) == (.2, 1, "imagenet")
    assert found["erm"] == found["stylized"]
    assert [found[row]["views"]["severity"] for row in ("augmix", "noisymix", "noisymix-code")] == [1, 3, 3]  # AugMix's imagenet.py, NoisyMix's
    assert {k: found["puzzlemix"][k] for k in ("beta", "neigh", "t_size", "eta", "t_eps")} == dict(beta=1.5, neigh=2, t_size=0, eta=.2, t_eps=.8)  # its imagenet_fast
    for row in ("noisymix", "noisymix-code"):  # in units of the spread by which its code for ImageNet divides images
        assert found[row]["noise"] == args(planned("nm-table2")[row, "cifar10"])["noise"] | dict(unit=.226)


def test_the_networks_of_table_1_are_fine_tuned():
    "Section 4.5, six sources and ours; 150 epochs, batches of 64, weight decay 5e-4, a tenth of the rate after every 50, .001 or .01 for the head alone, 224 px: the released code."
    plan = planned("nm-table5")
    assert set(plan) == grid(SOURCES, "cifar10", "cifar100", "cifar10 frozen", "cifar100 frozen") and SOURCES[:6] == ("erm", "puzzlemix", "mixup", "autoaugment", "augmix", "noisymix")
    for (row, column), specs in plan.items():
        frozen = column.endswith(" frozen")
        agree(specs, dataset=column.removesuffix(" frozen"), network="resnet50", method="fine-tune", epochs=150, batch=64, optimizer="sgd", momentum=.9, lr=.01 if frozen else .001,
              weight_decay=5e-4, schedule="step", milestones=(50, 100), n_train=0, resize=224, augment="resized-crop")
        assert args(specs)["frozen"] is frozen and [s.seed for s in specs] == [0]
    assert planned("nm-table5", "overnight") == {}


@pytest.mark.parametrize("at", ["smoke", "embedded", "paper"])
def test_a_source_is_a_run_of_table_1_with_the_same_seed(at):
    parents = planned("nm-table1", at)
    for (row, _), specs in planned("nm-table5", at).items():
        assert [s.needs["source"] for s in specs] == parents[row, "imagenet"] and {s.seed == s.needs["source"].seed for s in specs} == {True}


def test_at_embedded_imagenet_is_digits_at_64_px_in_as_many_steps():
    plan = {row: specs for (row, _), specs in planned("nm-table1", "embedded").items()}
    for row, specs in plan.items():
        agree(specs, network="small-cnn-stem", dataset="photo-digits-64" + "-stylized" * (row == "stylized"), batch=32)
        assert [s.seed for s in specs] == [0, 1, 2]
    steps = {row: specs[0].epochs * -(-specs[0].n_train // 32) for row, specs in plan.items()}
    assert set(steps.values()) == {247, 228} and steps["stylized"] == 228  # six passes over twice as many, not six and a half
    assert (ImageNet.at("embedded").corruptions, ImageNet.at("paper").corruptions) == ("corruptions-on-200", "corruptions")
