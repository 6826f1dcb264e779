"""VarMixup at its own scale, plan by plan, against the text.

Pattern Recognition Letters 2021, section 4: Adam at 1e-3 throughout, ResNet-34, ten trials; ERM 100 epochs, Mixup, Mixup-R and Manifold Mixup 150,
AT and TRADES 250, IAT 350. Of the batch, the augmentation and the autoencoder the text says nothing.
"""

import pytest

from mixrepro.papers.catalogue import find
from mixrepro.papers.varmixup.settings import ARTEFACTS, AUTOENCODERS, FEW, Cost, Horseshoe, whole
from mixrepro.repro.artefact import cells, papers_cells
from mixrepro.repro.scale import SCALES, scale
from mixrepro.training.spec import name_of
from plans import agree, args, every, grid, planned

EPOCHS = {"erm": 100, "mixup": 150, "mixup-r": 150, "manifold-mixup": 150, "at": 250, "trades": 250, "iat": 350,
          "varmixup": 150, "adv-varmixup": 150}  # the last two are not given: as Mixup
ALWAYS = dict(network="resnet34", optimizer="adam", lr=1e-3, schedule="constant", milestones=(), weight_decay=0., n_train=0,
              batch=128, augment="crop-flip", split="", whiten="", precision="float32", network_args={})
VAE = dict(network="vae", optimizer="adam", lr=1e-3, epochs=100, batch=128, augment="none", schedule="constant", n_train=0)
SHOWN = ("erm", "mixup", "varmixup", "adv-varmixup")  # figures 2 and 3


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {"vm-table1", "vm-fig1", "vm-fig2", "vm-fig3", "vm-fig4", "vm-fig5", "vm-cost", "vm-transfer",
                              "vm-autoencoders", "vm-kl", "vm-offmanifold"}


def test_table1():
    "Nine methods on three data sets, but for Manifold Mixup on Tiny-ImageNet, where the paper has a dash; and noise."
    plan = planned("vm-table1")
    noise = {column: plan.pop(("gaussian", column)) for column in ("cifar10", "cifar100", "tiny-imagenet")}
    assert {(s.method, s.epochs, len(specs)) for specs in noise.values() for s in specs} == {("erm", 100, 10)}
    every_cell = grid(EPOCHS, "cifar10", "cifar100", "tiny-imagenet")
    assert set(plan) == every_cell - {("manifold-mixup", "tiny-imagenet")} and {len(specs) for specs in plan.values()} == {10}
    for (row, column), specs in plan.items(): agree(specs, dataset=column, method=row, epochs=EPOCHS[row], **ALWAYS)


def test_table1s_hyper_parameters():
    "Beta(1, 1), but Beta(2, 2) for Manifold Mixup; radius 8/255, step 2/255; steps are not given: ten, IAT seven; TRADES 6."
    plan = {row: args(specs) for (row, column), specs in planned("vm-table1").items() if column == "cifar100"}
    assert plan["mixup"]["alpha"] == plan["mixup-r"]["alpha"] == plan["iat"]["alpha"] == 1
    assert plan["manifold-mixup"]["alpha"] == 2 and plan["varmixup"]["eta"] == plan["adv-varmixup"]["eta"] == 1
    steps = {"at": 10, "trades": 10, "iat": 7, "adv-varmixup": 10}
    for row, n in steps.items():
        assert (plan[row]["eps"], plan[row]["step"], plan[row]["steps"]) == (8 / 255, 2 / 255, n)
    assert plan["trades"]["beta"] == 6


def test_table1s_autoencoders():
    "Not given: as ERM, without augmentation; the adversary's ball is that of the classifiers."
    for (row, column), specs in planned("vm-table1").items():
        if row not in ("mixup-r", "varmixup", "adv-varmixup"):
            assert all(not s.needs for s in specs)
            continue
        vaes = [s.needs["vae"] for s in specs]
        agree(vaes, dataset=column, method="adv-mmd-vae" if row == "adv-varmixup" else "mmd-vae", **VAE)
        assert [v.seed for v in vaes] == list(range(10))
    robust = args([s.needs["vae"] for s in planned("vm-table1")["adv-varmixup", "cifar10"]])
    assert (robust["eps"], robust["step"], robust["target"]) == (8 / 255, 2 / 255, "adversarial")  # x* is what eq. 10 reconstructs


def test_dear_methods_have_fewer_runs_where_a_scale_says_so():
    "So has the row of noise. Each of the other methods has all of them; every seed of a dear one is one of ERM's."
    found = {row: [s.seed for s in specs] for (row, column), specs in planned("vm-table1", "embedded").items()}
    assert {row for row, seeds in found.items() if seeds == list(range(5))} == {*FEW, "gaussian"}
    assert all(seeds == list(range(10)) for row, seeds in found.items() if row not in (*FEW, "gaussian"))


def test_fig1():
    "A drawing in the paper: nothing of it is given, and nothing is trained before."
    assert planned("vm-fig1") == {}
    settings = find("vm-fig1").settings.at("paper")
    assert type(settings) is Horseshoe and (settings.steps, settings.lr, settings.gamma) == (3000, 5e-3, .02)


@pytest.mark.parametrize("id, more", [("vm-fig2", ("manifold-mixup",)), ("vm-fig3", ())])
def test_fig2_and_fig3(id, more):
    "Calibration and linearity of four methods, on both CIFARs; section 1 speaks of Manifold Mixup's calibration too."
    plan, table = planned(id), planned("vm-table1")
    assert set(plan) == grid((*SHOWN, *more), "cifar10", "cifar100") and all(specs == table[cell] for cell, specs in plan.items())


def test_fig4():
    "Autoencoders of table 1, and an ERM network for each data set to see with; one that all seeds share stands there once."
    assert [s.method for s in every(planned("vm-fig4", "embedded"))] == ["erm", "mmd-vae", "adv-mmd-vae"]
    plan = planned("vm-fig4")
    assert set(plan) == grid(("varmixup", "adv-varmixup", "erm"), "cifar10", "cifar100")
    for (row, column), specs in plan.items():
        if row == "erm":
            assert [s.seed for s in specs] == [0]
            agree(specs, dataset=column, method="erm", epochs=100, **ALWAYS)
        else:
            assert len(specs) == 10
            agree(specs, dataset=column, method={"varmixup": "mmd-vae", "adv-varmixup": "adv-mmd-vae"}[row], **VAE)


def test_fig5():
    "Samples on CIFAR-10, of one autoencoder of each kind."
    plan = planned("vm-fig5")
    assert set(plan) == grid(("varmixup", "adv-varmixup"), "cifar10") and [s.seed for s in every(plan)] == [0, 0]
    agree(plan["varmixup", "cifar10"], dataset="cifar10", method="mmd-vae", **VAE)
    agree(plan["adv-varmixup", "cifar10"], dataset="cifar10", method="adv-mmd-vae", **VAE)


def test_cost():
    "Whole runs: no share of the epochs and no recipe, at any scale."
    assert planned("vm-cost") == {}
    for at in SCALES:
        s = find("vm-cost").settings.at(at)
        assert type(s) is Cost and s.epochs == EPOCHS and s.vae_epochs == 100 and s.vae == {}
        assert (s.share, s.attack_share, s.vae_share, s.robust_share, s.attack_steps, s.n_train) == (1, 1, 1, 1, 0, 0)
        for method, epochs in EPOCHS.items():
            agree(whole(s, scale(at), method), epochs=epochs, n_train=0, lr=1e-3, schedule="constant", looks=0)
    s = find("vm-cost").settings.at("paper")
    assert (s.network, s.batch, s.augment, s.vae_network, s.rounds * s.blocks) == ("resnet34", 128, "crop-flip", "vae", 15)


def test_transfer():
    "Section 5: both CIFARs with a VAE of Tiny-ImageNet; beside them ERM and a VAE of their own."
    plan = planned("vm-transfer")
    assert {c[:2]: c.spec for c in papers_cells(find("vm-transfer"))} == {cell: specs[0] for cell, specs in plan.items()}
    assert set(plan) == grid(("erm", "varmixup", "varmixup-transfer"), "cifar10", "cifar100")
    for (row, column), specs in plan.items():
        kind = "erm" if row == "erm" else "varmixup"
        assert len(specs) == 10
        agree(specs, dataset=column, method=kind, epochs=EPOCHS[kind], **ALWAYS)
        if kind == "varmixup":
            agree([s.needs["vae"] for s in specs], dataset="tiny-imagenet" if "transfer" in row else column, method="mmd-vae", **VAE)


@pytest.mark.parametrize("at", ["smoke", "embedded"])
def test_a_vae_of_a_half_sees_that_half_only(at):
    plan = planned("vm-transfer", at)
    theirs, ours = (plan[row, "cifar10"][0] for row in ("varmixup-transfer", "varmixup"))
    assert ours.needs["vae"].dataset == ours.dataset == theirs.dataset and theirs.dataset.endswith("5to9")
    assert theirs.needs["vae"].dataset == theirs.dataset.replace("5to9", "0to4")


@pytest.mark.parametrize("at", SCALES)
def test_the_curve(at):
    "Not in the paper: three trainings on each autoencoder, which differ in it alone; the first autoencoder is table 1's."
    plan = planned("vm-autoencoders", at)
    names = {row.partition(":")[2] for row, _ in plan} - {""}
    assert {"own"} < names <= set(AUTOENCODERS) and len(plan) == 2 + 3 * len(names)
    assert plan["varmixup:own", "cifar10"][0] == planned("vm-table1", at)["varmixup", "cifar10"][0]
    for name in names:
        mixed, half, plain = (plan[f"{row}:{name}", "cifar10"][0] for row in ("varmixup", "varmixup-half", "erm-r"))
        assert mixed.needs == half.needs == plain.needs and half.method_args["share"] == .5
        assert (mixed.method, half.method, plain.method) == ("varmixup", "varmixup", "erm-r")
        assert "share" not in mixed.method_args


@pytest.mark.parametrize("at", SCALES)
def test_the_kinds_of_autoencoder_differ_in_their_objective_alone(at):
    vaes = [specs[0].needs["vae"] for specs in planned("vm-kl", at).values()]
    assert [v.method for v in vaes] == ["mmd-vae", "kl-vae", "adv-mmd-vae"]
    for field in ("dataset", "network", "epochs", "batch", "lr", "schedule", "n_train", "seed", "augment"):
        assert len({getattr(v, field) for v in vaes}) == 1, field
    assert [v.network_args.get("posterior", "deterministic") for v in vaes] == ["deterministic", "gaussian", "deterministic"]


@pytest.mark.parametrize("at", SCALES)
def test_nothing_is_trained_for_the_question_of_the_manifold_alone(at):
    def names(*ids): return {name_of(c.spec) for id in ids for c in cells(find(id), at)}
    assert names("vm-offmanifold") <= names("vm-autoencoders", "vm-table1")
