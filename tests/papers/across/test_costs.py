"What every method costs: the theory against counted passes, and claims that turn with the numbers."
import math

import pandas as pd
import pytest

from mixrepro.metrics.cost import Bench
from mixrepro.papers.across.claims import EVERY_CLAIM
from mixrepro.papers.across.cost import HALVES, OTHERS, QUOTED, beside_theory, costed, entered, passes
from mixrepro.papers.across.settings import Costs
from mixrepro.papers.varmixup.settings import EPOCHS
from mixrepro.repro.claim import Tables, frame, ledger
from mixrepro.repro.scale import SCALES, scale
from mixrepro.training.spec import name_of
from plans import planned


def test_nothing_is_trained_and_every_method_has_one_recipe():
    assert all(planned("x-cost", at) == {} for at in SCALES)
    for at in ("smoke", "embedded", "paper"):
        specs = costed(Costs.at(at), scale(at))
        assert list(specs) == [m for m in (*EPOCHS, *OTHERS, *HALVES) if m not in Costs.at(at).without]
        assert len({(s.dataset, s.network, s.batch, s.optimizer, s.lr, s.schedule) for s in specs.values()}) == 1


@pytest.mark.parametrize("row", ["trades", "iat", "puzzlemix", "noisymix", "genlabel"])
def test_as_many_batches_enter_the_network_as_the_theory_says(row):
    spec = costed(Costs.at("smoke"), scale("smoke"))[row]
    few = type(spec)(**{**vars(spec), "n_train": 20, "batch": 16})
    bench = Bench([few], warm=1, device="cpu")
    assert entered(bench.workers[name_of(few)]) == passes(row, spec).forward


def test_the_theory_follows_the_steps_of_an_attack():
    spec = costed(Costs.at("smoke"), scale("smoke"))["at"]
    assert [passes("at", type(spec)(**{**vars(spec), "method_args": dict(steps=k)})).ratio for k in (1, 7, 10)] == pytest.approx([5 / 3, 17 / 3, 23 / 3])
    assert QUOTED["vat"].ratio == 3 and QUOTED["mean-teacher"].ratio == 8 / 3


def test_what_was_not_timed_has_no_time():
    block = pd.DataFrame({"method": ["erm", "augmix"], "time, a step": [1., 4.], "FLOPs, a step": [1., 3.]})
    specs = {m: costed(Costs.at("smoke"), scale("smoke"))[m] for m in ("erm", "augmix")}
    table = beside_theory([block, block], specs, {"vat": 3.1}).set_index("method")
    assert math.isnan(table["time, a step"]["vat"]) and table["FLOPs, a step"]["vat"] == 3.1 and table["time, a step: low"]["augmix"] == pytest.approx(4)


ROWS = ("erm", "mixup", "manifold-mixup", "varmixup", "adv-varmixup", "at", "trades", "augmix", "noisymix", "ssl-baseline", "ssl-manifold-mixup", "consistency", "vat", "mean-teacher")


def verdicts(**changed) -> dict:
    "What the claims of cost come to, where all methods cost as much but for some."
    one = {"FLOPs, a step": 1., "memory, a step": 1., "FLOPs, a run, paper's network": 1., "time, a step, AugMix = 1": 1., "blocks": 5,
           "time, a step, AugMix = 1: low": .99, "time, a step, AugMix = 1: high": 1.01, "paper (hours)": 1.}
    tables = Tables("nowhere")
    tables.files["x-cost"], tables.read["x-cost"] = None, pd.DataFrame([dict(method=m) | one | changed.get(m.replace("-", "_"), {}) for m in ROWS])
    claims = tuple(c for c in EVERY_CLAIM if c.artefact == "x-cost")
    return dict(zip((c.says for c in claims), frame(ledger(claims, tables, "embedded")).verdict))


def test_a_claim_of_cost_turns_with_the_numbers():
    same, dear = verdicts(), dict({"FLOPs, a run, paper's network": 9., "FLOPs, a step": 9., "memory, a step": 9.})
    of = lambda found, words: next(v for k, v in found.items() if words in k)
    assert of(same, "NoisyMix costs about") == "holds" == of(verdicts(erm=dear), "NoisyMix costs about") and len(same) == 8
    assert of(verdicts(noisymix=dear), "NoisyMix costs about") == "does not hold"
    assert of(same, "VarMixup costs less than AT") == "does not hold" and of(verdicts(at=dear, trades=dear), "VarMixup costs less than AT") == "holds"
    assert of(same, "less computation than VAT") == "does not hold" and of(verdicts(vat=dear), "less computation than VAT") == "holds"
    assert of(same, "to a consistency step") == "holds" and of(verdicts(ssl_manifold_mixup=dear), "to a consistency step") == "does not hold"
    assert of(verdicts(noisymix={"time, a step, AugMix = 1: low": .8, "time, a step, AugMix = 1: high": 1.2}), "NoisyMix costs about") == "undecided"
