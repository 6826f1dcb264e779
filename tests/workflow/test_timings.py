"What a clock says lies in one file, apart: measured once, read from then on, and named where it is damaged."
import re
import threading
from pathlib import Path

import pytest

import mixrepro
from mixrepro.workflow.timings import TIMINGS, clocked, read_timings

ASKED, ABOUT = dict(rounds=3, threads=1, device="cpu"), dict(hardware="a processor", torch="2.15.0")


class Clock:
    "A machine on which every block takes longer than the one before."
    def __init__(self, speed=1.): self.speed, self.blocks = speed, 0

    def __call__(self):
        self.blocks += 1
        return {"erm": (self.speed * self.blocks / 7, 0.), "at": (self.speed * self.blocks / 3, 1 / 3)}


def ask(folder, clock, id="x-cost", blocks=2, again=False, codes=dict(erm="e", at="a"), **asked):
    return clocked(folder, id, dict(codes), blocks, ASKED | asked, ABOUT, clock, folder / "lock", again)


def test_another_machine_reads_what_the_first_has_measured(tmp_path):
    here, there = Clock(), Clock(speed=40.)
    first = ask(tmp_path, here)
    before = (tmp_path / TIMINGS).read_bytes()
    assert ask(tmp_path, there) == first and there.blocks == 0 and (tmp_path / TIMINGS).read_bytes() == before
    assert first[0] == {"erm": (.1429, 0.), "at": (.3333, .3333)}, "four digits, the first time too"
    assert set(read_timings(tmp_path).hardware) == {"a processor"}


@pytest.mark.parametrize("change", [dict(again=True), dict(blocks=3), dict(rounds=5), dict(device="cuda"), dict(threads=2), dict(codes=dict(erm="e", at="b"))])
def test_what_is_asked_for_otherwise_is_measured_again_for_this_artefact_alone(tmp_path, change):
    clock = Clock()
    other = ask(tmp_path, clock, "vm-cost")
    first, so_far = ask(tmp_path, clock), clock.blocks
    assert ask(tmp_path, clock, **change) != first and clock.blocks == so_far + change.get("blocks", 2)
    assert ask(tmp_path, clock, "vm-cost") == other and clock.blocks == so_far + change.get("blocks", 2)


def test_a_row_that_is_gone_or_a_damaged_file_is_noticed(tmp_path):
    clock = Clock()
    ask(tmp_path, clock)
    lines = (tmp_path / TIMINGS).read_text().splitlines(keepends=True)
    (tmp_path / TIMINGS).write_text("".join(lines[:-1]))
    assert len(ask(tmp_path, clock)) == 2 and clock.blocks == 4
    for damaged in ("artefact,run\nx-cost,erm\n", "", "".join(lines).replace(".1429", "soon")):
        (tmp_path / TIMINGS).write_text(damaged)
        with pytest.raises(ValueError, match="timings.csv is no table of timings .*: take it from the clone again, or remove it"): ask(tmp_path, clock)
    (tmp_path / TIMINGS).unlink()
    assert len(ask(tmp_path, clock)) == 2


def test_a_column_that_is_not_known_here_is_not_lost(tmp_path):
    clock = Clock()
    first, path = ask(tmp_path, clock), tmp_path / TIMINGS
    path.write_text("".join(f"{line},{'watts' if k == 0 else k / 7}\n" for k, line in enumerate(path.read_text().splitlines())))
    before = path.read_bytes()
    assert ask(tmp_path, clock) == first, "what is known is read"
    for other in (dict(again=True), dict(id="vm-cost")):
        with pytest.raises(ValueError, match="timings.csv has a column 'watts', which this version of mixrepro does not know and would lose: call"):
            ask(tmp_path, clock, **other)
    assert clock.blocks == 2 and path.read_bytes() == before, "refused before anything is measured"


def test_writers_side_by_side_lose_nothing(tmp_path):
    ids = [f"a{i}" for i in range(6)]
    threads = [threading.Thread(target=ask, args=(tmp_path, Clock(), id)) for id in ids]
    for t in threads: t.start()
    for t in threads: t.join()
    assert sorted(set(read_timings(tmp_path).artefact)) == ids and len(read_timings(tmp_path)) == 6 * 4
    assert list(read_timings(tmp_path).artefact) == sorted(read_timings(tmp_path).artefact)


def test_no_room_of_a_paper_reads_a_clock_but_for_what_stays_in_the_store():
    "A second of a page would be another one on every machine: seconds come from the file of timings, by `Study.clocked`."
    rooms = Path(mixrepro.__file__).parent / "papers"
    reads = [str(f.relative_to(rooms)) for f in sorted(rooms.rglob("*.py")) if re.search(r"perf_counter|process_time|monotonic|time\.time|datetime", f.read_text())]
    assert reads == ["genlabel/openml.py"]
