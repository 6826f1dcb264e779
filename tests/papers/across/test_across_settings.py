"Across the papers: the artefacts that are asked for, and what has a plan."

import torch

from mixrepro.methods.catalogue import method
from mixrepro.papers.across.settings import ARTEFACTS, PARENTS
from mixrepro.papers.catalogue import ARTEFACTS as EVERY
from mixrepro.repro.scale import SCALES
from mixrepro.training.spec import canonical, name_of
from plans import planned


def test_the_rooms_artefacts():
    assert set(ARTEFACTS) >= {"x-claims", "x-errata", "x-matrix", "x-combine", "x-cost"}
    assert [id for id, a in ARTEFACTS.items() if a.plan] == ["x-regime", "x-sizes", "x-claims", "x-errata", "x-matrix", "x-combine", "x-cost"]


def test_label_noise_is_a_candidate_for_erm_alone_and_changes_no_other_name():
    "Sets of which two fifths of the labels are drawn anew stand behind the sizes, at the embedded scale."
    noisy = {where: specs for (row, where), specs in planned("x-regime", "embedded").items() if "labels anew" in where}
    assert set(noisy) == {"all images, 40% of labels anew", "digits, 40% of labels anew"} and {len(s) for s in noisy.values()} == {3}
    assert {(s.method, s.label_noise, s.n_train) for specs in noisy.values() for s in specs} == {("erm", .4, 0)}
    clean = [s for (_, where), specs in planned("x-regime", "embedded").items() for s in specs if where not in noisy]
    assert {s.label_noise for s in clean} == {0.} and not any("label_noise" in canonical(s) for s in clean)
    assert {canonical(s)["label_noise"] for specs in noisy.values() for s in specs} == {.4}


def names(plan: dict) -> set: return {name_of(s) for specs in plan.values() for s in specs}


def test_the_matrix_shares_the_runs_of_the_rooms():
    "At the embedded scale one row is new: AugMix alone, of which an ablation has three seeds."
    plan = planned("x-matrix", "embedded")
    rooms = set().union(*(names(planned(id, "embedded")) for id, a in EVERY.items() if a.plan and a.paper != "across"))
    new = {row for (row, _), specs in plan.items() if not {name_of(s) for s in specs} <= rooms}
    assert new == {"augmix-alone"} and len(plan) == 25
    assert {row: len(specs) for (row, _), specs in plan.items() if len(specs) != 5} == {"adamixup": 3, "mixup-genlabel, gentle": 3}


def test_gaussian_vicinal_noise_is_one_noisy_view_under_the_examples_label():
    spec, = {s.method: s for s in planned("x-matrix", "paper")["gaussian", "cifar10"]}.values()
    made = method(spec.method, **spec.method_args)
    x = torch.full((4, 3, 8, 8), .5)
    view, = made.views(x, torch.Generator().manual_seed(0))
    assert view.shape == x.shape and abs((view - x).std().item() - .1) < .01 and made.views.apart([view]) == 0


def test_one_recipe_at_every_scale():
    "What is compared differs in its method, and those against an attack in their epochs."
    for at in SCALES:
        every = [s for specs in planned("x-matrix", at).values() for s in specs]
        assert len({(s.dataset, s.network, s.lr, s.batch, s.n_train, s.augment) for s in every}) == 1
        assert {s.method for s in every if s.epochs != every[0].epochs} <= {"at", "trades", "iat"}


def test_compositions_are_of_their_parents_parts():
    plan, every = planned("x-combine", "paper"), planned("x-matrix", "paper")
    assert len(PARENTS) >= 6 and names({k: v for k, v in plan.items() if k[0] not in PARENTS}) <= names(every)
    def parts(row):
        s = (plan | every)[row, "cifar10"][0]
        made = method(s.method, **s.method_args)
        return made, {k: getattr(made, k) for k in ("views", "labels", "noise") if hasattr(made, k)}
    for row, (base, other) in PARENTS.items():
        (mine, own), (first, before), (_, theirs) = map(parts, (row, base, other))
        changed = {k for k in own if own[k] != before.get(k)}
        assert type(mine) is type(first) and len(changed) == 1 and all(own[k] == theirs[k] for k in changed), row


def test_errata():
    "Computed from tables, and on points that are small enough for seconds: no run is planned."
    assert all(planned("x-errata", at) == {} for at in SCALES)
