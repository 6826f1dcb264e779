"Where training costs hours, a table says what was trained; written anew it loses nothing."
import csv
import json
from pathlib import Path

import pytest

from mixrepro.papers.catalogue import find
from mixrepro.repro import scale as scales
from mixrepro.repro.artefact import cells, trials
from mixrepro.repro.figures import RUNS
from mixrepro.training.loop import train_run
from mixrepro.training.spec import name_of
from mixrepro.training.store import Store
from mixrepro.workflow import trained
from mixrepro.workflow.trained import COLUMNS, list_runs, places


def read(path: Path) -> list[dict]:
    with path.open(newline="") as f: return list(csv.DictReader(f))


@pytest.fixture
def dear(monkeypatch):
    "The smallest scale, as if it took hours."
    monkeypatch.setattr(trained, "is_dear", lambda profile: True)


def test_the_small_scales_have_no_such_table(tmp_path):
    for name in scales.SCALES:
        if not trained.is_dear(name): assert list_runs(name, tmp_path, ["vm-fig3"]) is None
    assert not (tmp_path / "figures").exists()


def test_a_row_says_what_the_run_itself_has_written_down(tmp_path, dear):
    (place, spec), *rest = places(["vm-fig3"], "smoke").values()
    run = train_run(spec, Store(tmp_path / "runs"))
    row, = read(list_runs("smoke", tmp_path, ["vm-fig3"]))
    assert [*row] == [*COLUMNS] and row["artefact"] == "vm-fig3" and row["run"] == name_of(spec) == run.folder.name
    said = json.loads((run.folder / "environment.json").read_text())
    assert {k: row[k] for k in ("torch", "processor", "wall_seconds", "threads")} == {k: str(said[k]) for k in ("torch", "processor", "wall_seconds", "threads")}
    last = read(run.folder / "history.csv")[-1]
    assert (row["accuracy"], row["nll"]) == (last["accuracy"], last["nll"]) and row["seed"] == str(place["seed"])
    assert rest, "the others are not trained, so they have no row"


def test_seeds_beyond_the_settings_have_their_rows(tmp_path, dear):
    "A page may be drawn with more."
    n, store = trials(find("vm-fig3"), "smoke"), Store(tmp_path / "runs")
    further = next(c.spec for c in cells(find("vm-fig3"), "smoke", n + 1) if c.spec.seed == n and c.row == "erm")
    assert list_runs("smoke", tmp_path, ["vm-fig3"]) is None
    train_run(further, store)
    row, = read(list_runs("smoke", tmp_path, ["vm-fig3"]))
    assert (row["run"], row["seed"], row["row"]) == (name_of(further), str(n), "erm")


def test_rows_of_other_machines_stay_also_of_a_run_that_was_made_again(tmp_path, dear):
    "Pages that nobody has drawn since stand on it."
    (_, spec), (_, second), *_ = places(["vm-fig3"], "smoke").values()
    store = Store(tmp_path / "runs")
    train_run(spec, store)
    path = list_runs("smoke", tmp_path, ["vm-fig3"])
    mine, = read(path)
    theirs = mine | dict(run=name_of(second), processor="another", wall_seconds="7")
    older = mine | dict(wall_seconds="9")
    with path.open("w", newline="") as f:
        writer = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        writer.writeheader(); writer.writerows([theirs, older])
    assert read(list_runs("smoke", tmp_path, ["vm-fig3"])) == [theirs, older, mine]
    before = path.stat().st_mtime_ns
    list_runs("smoke", tmp_path, ["vm-fig3"])
    assert path.stat().st_mtime_ns == before, "nothing has changed, so nothing is written"


def test_a_run_stands_where_the_scale_wants_it_first_whatever_is_asked_for(tmp_path, dear, monkeypatch):
    (_, spec), *_ = places(["vm-fig3"], "smoke").values()
    train_run(spec, Store(tmp_path / "runs"))
    monkeypatch.setattr(trained, "meant", lambda profile, base: ["vm-fig2", "vm-fig3"])
    first = next(id for id in ("vm-fig2", "vm-fig3") if (spec.dataset, name_of(spec)) in places([id], "smoke"))
    for asked in ([], ["vm-fig3"], ["vm-fig2"]):
        row, = read(list_runs("smoke", tmp_path, asked))
        assert row["artefact"] == first


def test_a_table_with_more_in_it_is_left_alone(tmp_path, dear):
    (_, spec), *_ = places(["vm-fig3"], "smoke").values()
    train_run(spec, Store(tmp_path / "runs"))
    path = tmp_path / "figures/smoke" / RUNS
    path.parent.mkdir(parents=True)
    for text in (",".join([*COLUMNS, "energy"]) + "\n", ",".join(COLUMNS) + "\ncut off", '"'):
        path.write_text(text)
        with pytest.raises(ValueError, match="runs.csv is not as it was written .*: take it from the clone again, or move it away"): list_runs("smoke", tmp_path, ["vm-fig3"])
        assert path.read_text() == text


def test_every_run_of_a_dear_scale_has_a_place():
    for name in filter(trained.is_dear, scales.SCALES):
        for id in scales.scale(name).only[:3] or ("mm-table1",):
            found = places([id], name)
            assert {name_of(c.spec) for c in cells(find(id), name)} <= {run for _, run in found} == {name_of(s) for _, s in found.values()}


def test_the_committed_tables_name_runs_of_the_plans():
    "By the names that specs have now; rows of before stand for pages that are of before, too."
    for path in (Path(__file__).resolve().parents[2] / "figures").glob("*/runs.csv"):
        rows = read(path)
        assert [*rows[0]] == [*COLUMNS] and len({(r["dataset"], r["run"], r["wall_seconds"]) for r in rows}) == len(rows)
        planned = places({r["artefact"]: 0 for r in rows}, path.parent.name)
        known = [r for r in rows if (r["dataset"], r["run"]) in planned]
        assert known and all(float(r["wall_seconds"]) > 0 and r["torch"] and r["processor"] for r in rows)
