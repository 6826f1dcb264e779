"The ledger of claims asked of the committed tables, and of the same tables as someone might have changed them."

import io

import pandas as pd
import pytest

from mixrepro.files import home
from mixrepro.papers.across.claims import EVERY_CLAIM
from mixrepro.repro import claim as asked
from mixrepro.repro.claim import Tables, alone, answered, frame, ledger, shown

TABLES = home() / "figures" / "embedded"


class Changed(Tables):
    "Tables of which one, or each, was changed."
    def __init__(self, change, id=None):
        super().__init__(TABLES)
        for i in [id] if id else self.files: self.read[i] = change(pd.read_csv(self.files[i]))


@pytest.fixture(scope="module")
def found(): return ledger(EVERY_CLAIM, Tables(TABLES), "embedded")


def test_the_committed_ledger_is_the_one_that_these_claims_give(found):
    "A bound, a rival or a column that changes is another formula: x-claims is then drawn anew, and its difference read."
    now = pd.read_csv(io.StringIO(frame(found).to_csv(index=False, float_format="%.6g")))
    committed = pd.read_csv(TABLES / "across/x-claims.csv")
    pd.testing.assert_frame_equal(now, committed[now.columns], rtol=1e-4, check_dtype=False)


def test_the_order_of_the_rows_says_nothing(found):
    shuffled = ledger(EVERY_CLAIM, Changed(lambda d: d.sample(frac=1, random_state=1, ignore_index=True)), "embedded")
    columns = ["verdict", "alone", "effect", "low", "high", "n", "p"]
    pd.testing.assert_frame_equal(frame(found)[columns], frame(shuffled)[columns], rtol=1e-6, check_dtype=False)


def test_a_word_and_its_p_value_agree(found):
    for f in found:
        word, p = alone(f)
        ps = [q for w, q in map(asked.tested, f.ran) if w == "holds" and q is not None]
        if word == "holds" and ps: assert p == max(ps), f.claim.says
        if p is not None and word in ("holds", "does not hold"): assert p < .05, f.claim.says
        if word != "not run" and word != "undecided": assert asked.tested(shown(f))[0] == word, f.claim.says


@pytest.mark.parametrize("id", ["vm-transfer", "vm-fig4", "gl-genmix-toy"])
def test_a_headline_says_of_a_claim_what_the_ledger_says_of_it_alone(id, found):
    mine = [f for f in found if f.claim.artefact == id]
    said = answered(EVERY_CLAIM, id, Tables(TABLES)[id], {}, "embedded")
    assert mine and [s.partition(", uncorrected (")[0] for s in said] == [f"{f.claim.says.rstrip('.')}: {alone(f)[0]}" for f in mine]
    assert all(f"; {len(f.ran)} of {len(f.effects)} comparisons run)" in s for f, s in zip(mine, said) if len(f.ran) < len(f.effects))


def of(says): return next(c for c in EVERY_CLAIM if c.says == says)

CORRUPTED = of("VarMixup is more robust to corruptions than Mixup.")
FLOPS = of("VarMixup costs less than AT and TRADES.")
PLANE = of("Manifold Mixup has low confidence in wider regions of the hidden plane.")
GAIN, LOW, HIGH = "our gain (points)", "gain low (points)", "gain high (points)"


def gain(**values):
    "The change that writes values into the row of VarMixup's gain over Mixup."
    def change(d):
        mine = (d.method == "varmixup over mixup") & (d.column == "cifar10-c")
        return d.assign(**{c: d[c].where(~mine, v) for c, v in values.items()})
    return change


@pytest.mark.parametrize("values, word", [((3., 1., 5., .004), "holds"), ((-3., -5., -1., .004), "does not hold"),
                                          ((.1, -2., 2.2, .9), "undecided")])
def test_another_number_is_another_word(values, word):
    change = gain(**dict(zip((GAIN, LOW, HIGH, "p"), values)))
    assert alone(ledger((CORRUPTED,), Changed(change, "vm-table1"), "embedded")[0])[0] == word


@pytest.mark.parametrize("claim, id, change, why", [
    (CORRUPTED, "vm-table1", gain(**{GAIN: float("inf")}), "ours is inf, which is no measurement"),
    (CORRUPTED, "vm-table1", gain(**{GAIN: -8., LOW: 1., HIGH: 5.}), "-8.0 does not lie in its interval"),
    (CORRUPTED, "vm-table1", gain(**{HIGH: float("nan")}), "does not lie in its interval"),
    (CORRUPTED, "vm-table1", gain(**{"our n": 1}), "an interval of 1 seeds"),
    (CORRUPTED, "vm-table1", lambda d: pd.concat([gain(**{GAIN: -3.})(d), d]), "a row of vm-table1 stands twice"),
    (CORRUPTED, "vm-table1", lambda d: d.rename(columns=lambda c: c.replace("points", "share")), "in share"),
    (CORRUPTED, "vm-table1", lambda d: d.drop(columns="method"), "vm-table1 lacks the column method"),
    (FLOPS, "x-cost", lambda d: d.assign(**{"FLOPs, a run, paper's network": float("nan")}), "ours is nan"),
    (FLOPS, "x-cost", lambda d: d.drop(columns="FLOPs, a run, paper's network"), "x-cost lacks"),
    (FLOPS, "x-cost", lambda d: pd.concat([d, d.assign(blocks=9)]), "a row of x-cost stands twice: erm"),
    (PLANE, "mm-fig1", lambda d: pd.concat([d, d.assign(low_hidden=-9.)]), "a row of mm-fig1 stands twice"),
])
def test_what_is_no_measurement_is_refused_in_a_sentence(claim, id, change, why):
    with pytest.raises(ValueError, match=why): ledger((claim,), Changed(change, id), "embedded")


def test_a_gain_without_its_p_value_still_counts_among_all():
    f, = ledger((CORRUPTED,), Changed(gain(p=float("nan")), "vm-table1"), "embedded")
    assert alone(f)[0] == "does not hold" and 0 < f.holm < .05


@pytest.mark.parametrize("spoil", [b"", b"\xff\xfe", b"a,b\n1,2\n1,2,3\n"])
def test_a_damaged_table_is_named(tmp_path, spoil):
    (path := tmp_path / "varmixup/vm-table1.csv").parent.mkdir()
    path.write_bytes(spoil)
    with pytest.raises(ValueError, match=f"{path} is no table .*: take it from the clone again, or draw vm-table1 again"): Tables(tmp_path)["vm-table1"]
