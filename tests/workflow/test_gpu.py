"One call on a machine with a GPU: parts that die, run out of time or lack their data, and what stays."

import csv
import sys

import pytest
import torch

from conftest import ROOT, mixrepro_here, sentence
from mixrepro.training.spec import Spec
from mixrepro.training.standing import seconds_of
from mixrepro.training.store import Store
from mixrepro.repro.artefact import Cell
from mixrepro.workflow import gpu


def rows(path) -> list[dict]: return list(csv.DictReader(path.open(newline="")))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_one_sentence(tmp_path, project):
    said = sentence(mixrepro_here("bench", "gpu", cwd=project))
    assert "no CUDA device is here" in said and "--device cpu" in said and not (project / "figures").exists()


@pytest.mark.parametrize("args, said", [(("gpus",), "unknown bench 'gpus': did you mean 'gpu'"), (("gpu", "--part", "epoch", "--device", "cpu"), "unknown part 'epoch': did you mean 'epochs'"),
    (("gpu", "--minutes", "tests=0", "--device", "cpu"), "minutes must be above 0, got 0.0"), (("gpu", "--device", "tpu"), "unknown device 'tpu'")])
def test_bad_input_is_one_sentence(args, said, project): assert said in sentence(mixrepro_here("bench", *args, cwd=project))


def test_a_part_that_dies_leaves_the_others_and_what_it_measured(tmp_path, monkeypatch, capfd):
    code = ("import os, sys, time; from mixrepro.workflow.gpu import Table, folder_of; from pathlib import Path; part, device, base = sys.argv[1:]\n"
            "Table(part, device, folder_of(device, Path(base))).add(test='a', network='n', run='r', seconds=1)\n"
            "if part == 'tests': os.abort()\nif part == 'epochs': time.sleep(600)")
    monkeypatch.setattr(gpu, "CODE", code)
    with pytest.raises(RuntimeError, match=r"^tests died of SIGABRT: what was measured stays in"): gpu.bench_gpu(tmp_path, minutes=["5", "epochs=.12"], device="cpu")
    said = capfd.readouterr().out
    assert "tests: died of SIGABRT" in said and "epochs: stopped after 0.12 minutes" in said and "cells: complete" in said
    for part in gpu.KEYS: assert [r["seconds"] for r in rows(tmp_path / f"runs/.workflow/bench/bench-{part}.csv")] == ["1"]
    assert not (tmp_path / "figures").exists()


@pytest.mark.parametrize("spoil", [b"", b"test,watts\na,1\n", b"test,outcome\na\n", b"\xff\xfe", b'test,outcome\n"a,1\n', b"test,outcome\na,1\n<<<<<<< HEAD\n"])
def test_a_table_that_would_lose_something_is_not_written_anew(tmp_path, spoil):
    (path := tmp_path / "bench-tests.csv").write_bytes(spoil)
    with pytest.raises(ValueError, match=f"{path} is not as it was written .*: take it from the clone again, or move it away"): gpu.Table("tests", "cpu", tmp_path)
    assert path.read_bytes() == spoil


def test_a_table_comes_back(tmp_path):
    for k in range(2): gpu.Table("tests", "cpu", tmp_path).add(test=f"t{k}", outcome="failed", why='é "x",\r\ny')
    assert [(r["test"], r["why"]) for r in gpu.Table("tests", "cpu", tmp_path).rows] == [(f"t{k}", 'é "x",\r\ny') for k in range(2)]


def test_a_part_that_is_named_twice_is_measured_once(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(gpu, "CODE", "")
    gpu.bench_gpu(tmp_path, ["cells", "tests", "cells"], device="cpu")
    assert capfd.readouterr().out.count("cells: complete") == 1


def test_cells_go_through_the_store_and_absent_data_are_said_once(tmp_path):
    spec = lambda dataset, seed: Spec(dataset, "erm", "tiny-cnn", seed=seed, epochs=1, n_train=40, batch=20, augment="none")
    plan = [("vm-table1", Cell("erm", d, spec(d, s))) for s in (0, 1) for d in ("svhn", "digits")]
    runs, trained = [Store(tmp_path / "runs").run(c.spec) for _, c in plan if c.spec.dataset == "digits"], set()
    for again in range(2):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("MIXREPRO_DATA", str(tmp_path / "none"))
            gpu.measure_cells("cpu", tmp_path, table := gpu.Table("cells", "cpu", tmp_path), plan)
        kept = rows(tmp_path / "bench-cells.csv")
        assert [(r["dataset"], r["seed"], r["n"]) for r in kept] == [("svhn", "0", "0"), ("digits", "0", "1"), ("digits", "1", "2")]
        assert "svhn" in kept[0]["why"] and all(r["accuracy"] and r["nll"] and not r["why"] and "a check of the code" in r["device"] for r in kept[1:])
        assert [float(r["seconds"]) for r in kept[1:]] == [seconds_of(run) for run in runs], "a run that is only read takes no time: that is not what its training takes"
        trained |= {(run.folder / "done.json").stat().st_mtime_ns for run in runs}
    assert len(trained) == 2, "what is trained is read"


def test_the_tests_of_a_clone_become_rows(tmp_path):
    (tmp_path / "tests").mkdir()
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = cuda: a GPU\n")
    (tmp_path / "tests/test_x.py").write_text("import pytest\npytestmark = pytest.mark.cuda\ndef test_a(): pass\ndef test_b(): assert 1 == 2, 'no'\n@pytest.mark.skip(reason='why not')\ndef test_c(): pass\n")
    assert gpu.within([sys.executable, "-c", gpu.CODE, "tests", "cpu", str(tmp_path)], 3, tmp_path) == 0
    found = {r["test"].rpartition("::")[2]: (r["outcome"], r["why"]) for r in rows(tmp_path / "runs/.workflow/bench/bench-tests.csv")}
    assert found["test_a"] == ("passed", "") and found["test_b"][0] == "failed" and found["test_c"] == ("skipped", "Skipped: why not")


def test_tests_that_cannot_be_read_are_no_complete_part(tmp_path):
    "An import that fails ends pytest before any test: the part was called complete."
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_odd.py").write_text("import pytest, no_such_module\n@pytest.mark.cuda\ndef test_it(): pass\n")
    with pytest.raises(RuntimeError, match="tests failed with exit code 1, see above"): gpu.bench_gpu(tmp_path, ["tests"], ["3"], device="cpu")


def test_every_test_of_cuda_is_marked_and_says_why_it_waits():
    text = (ROOT / "tests/training/test_cuda.py").read_text()
    assert "pytestmark = pytest.mark.cuda" in text
    marked = [p for p in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in p.read_text()]
    assert len(marked) >= 7 and not any("skipif(not torch.cuda" in p.read_text() for p in (ROOT / "tests").rglob("test_*.py") if p.name != "test_gpu.py")
