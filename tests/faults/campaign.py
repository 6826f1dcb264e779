"""What a fault did: what it cost, what it changed, what was said; and the table of all of them."""

import contextlib
import csv
import io
import re
import shutil
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import small
from mixrepro.files import write_atomic

NOTHING = "(nothing was to be said)"


def read(base: Path) -> tuple[dict, str]:
    "What a reader is given, and what is said to him."
    with contextlib.redirect_stderr(io.StringIO()) as said: return small.look(base), said.getvalue()


def differing(seen: dict, expected: dict) -> set[str]:
    "What is shown as a result and is another than that of an undisturbed store."
    return {k for k, v in seen.items() if expected.get(k) != v}


def trained_again(before: dict, after: dict) -> set[str]:
    "Runs that stood, and did not stay as they were."
    return {k for k, place in before.items() if after.get(k) != place}


def last(said: str, base: Path) -> str:
    "The sentence among all that was said: a refusal, or the first word about something set aside or made again."
    lines = [line.replace(str(base), ".") for line in said.splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith("mixrepro: ")]
    notes = [line for line in lines if re.search(r"set aside|made again|begins anew|waiting for it|going on after|was changed|is gone", line)]
    return (refusals[-1:] or notes[:1] or [""])[0]


@dataclass
class Row:
    kind: str
    fault: str
    lost: set
    changed: set
    sentence: str


@dataclass
class Campaign:
    "What was tried on copies of one undisturbed store."
    whole: Path            # the undisturbed project
    empty: Path            # the same before anything was made
    expected: dict         # what its reader is given
    rows: list = field(default_factory=list)

    def copy(self, to: Path, empty: bool = False) -> Path:
        shutil.copytree(self.empty if empty else self.whole, to)
        for f in to.rglob(f"{small.NAME}.json"):  # the note names the folders of the runs that were read
            f.write_text(f.read_text().replace(str(self.whole), str(to)))
        return to

    def heal(self, base: Path, reader_first: bool = True, again: bool = False) -> tuple[set, set, str]:  # lost, changed, said
        """After a fault: a reader looks, and it is reproduced and drawn anew; what is not the undisturbed result by then is told.
        With `again` what stands is of other code or data, is named so, and is to be made again: it counts from the reproduction on."""
        changed, stood, told = set(), {}, ""
        def look(counts=True):
            nonlocal changed, told
            seen, said = read(base)
            changed, told = changed | (differing(seen, self.expected) if counts else set()), told + said
            return seen
        def call(what):
            nonlocal told
            code, said = small.apart(what, base=base)
            told += said
            assert code == 0 and "Traceback" not in said, said
        if reader_first: look(not again); stood = small.standing(base)
        call(small.reproduce)
        look()
        if not reader_first: stood = small.standing(base)
        call(small.draw)
        lost = self.expected.keys() - look().keys()
        if not again: lost |= {f"{k} (trained again)" for k in trained_again(stood, small.standing(base))}
        return lost, changed, told

    def tell(self, kind: str, fault: str, lost, changed, said: str, base: Path, expect: str = ""):
        "Write a row down; a fault that cost or changed something, or about which the expected sentence is missing, is a failure."
        assert "Traceback" not in said and "PYTHONDEVMODE" not in said, said  # a fault that nobody thought of
        sentence = last(said, base)
        self.rows.append(Row(kind, fault, set(lost), set(changed), sentence or NOTHING))
        assert not lost and not changed, (lost, changed, said)
        if expect: assert re.search(expect, said), said

    def table(self) -> list[dict]:
        "A row for each fault: how often it was tried, what it cost, what it changed, and a sentence that was said."
        found = defaultdict(list)
        for r in self.rows: found[r.kind, r.fault].append(r)
        def said(rows): return next((r.sentence for r in rows if r.sentence != NOTHING), NOTHING)
        return [dict(kind=kind, fault=fault, times=len(rows), lost=sum(len(r.lost) for r in rows),
                     changed=sum(len(r.changed) for r in rows), sentence=said(rows)) for (kind, fault), rows in found.items()]

    def total(self) -> str:
        rows = self.rows
        return (f"{len(rows)} faults of {len({r.kind for r in rows})} kinds: {sum(len(r.lost) for r in rows)} results lost, "
                f"{sum(len(r.changed) for r in rows)} changed")

    def write(self, folder: Path) -> list[Path]:
        table, out = self.table(), io.StringIO()
        writer = csv.DictWriter(out, ["kind", "fault", "times", "lost", "changed", "sentence"], lineterminator="\n")
        writer.writeheader(); writer.writerows(table)
        head = "| kind | fault | times | lost | changed | sentence |\n|---|---|---|---|---|---|\n"
        lines = "".join("| " + " | ".join(str(v).replace("|", "\\|") for v in r.values()) + " |\n" for r in table)
        return [write_atomic(folder / "faults.csv", out.getvalue()), write_atomic(folder / "faults.md", f"{self.total()}.\n\n{head}{lines}")]
