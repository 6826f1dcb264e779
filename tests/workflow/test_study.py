"What a study refuses before anything begins."

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from mixrepro.repro.ledger import HOLM, reported, sheet
from mixrepro.training.store import Store
from mixrepro.workflow import injected, study

OURS = "profile: str = 'smoke'  # scale\nseeds: int = 0  # runs of a cell"


@pytest.mark.parametrize("cell, said", [
    ('# Parameters\nprofle = "embedded"\n', "unknown parameter of this notebook 'profle': did you mean 'profile'? Known: profile, seeds"),
    ('# Parameters\nprofile = "smoke"\nlabels = {"a": 1}\n', "unknown parameter of this notebook 'labels'")])
def test_a_parameter_that_papermill_hands_in_and_nobody_knows(cell, said, monkeypatch, tmp_path):
    monkeypatch.setattr(injected, "get_ipython", lambda: SimpleNamespace(user_ns=dict(In=["", OURS, cell, "import json\nx = json.dumps(1)"])))
    with pytest.raises(ValueError) as e: study.Study("vm-table1", "smoke", 1, Store(tmp_path / "runs"))
    assert str(e.value).startswith(said)


def test_parameters_that_are_known(monkeypatch, tmp_path):
    cells = ["", OURS, '# Parameters\nprofile = "smoke"\nseeds = 1\n', "labels = {}"]
    monkeypatch.setattr(injected, "get_ipython", lambda: SimpleNamespace(user_ns=dict(In=cells)))
    assert study.Study("vm-table1", "smoke", 1, Store(tmp_path / "runs")).seeds == 1


@pytest.mark.parametrize("row", ["a|b", "two\nlines", "", " ", 3, "mine over erm"])
def test_a_row_whose_name_would_break_the_table(row, tmp_path):
    page = study.Study("vm-table1", "smoke", store=Store(tmp_path))
    with pytest.raises(ValueError, match=r"a row's name is a text without \|, line ends and . over ., .*, got"): page.add(row, "mixup")


def test_in_another_folder_no_store_is_begun(monkeypatch, tmp_path):
    monkeypatch.delenv("MIXREPRO_HOME", raising=False); monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="no notebooks under .*: they come with a clone"): study.Study("vm-table1", "smoke")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("metric, some, said", [("interpolation", "interpolation-on-2000", 2000), ("deformed-mean", "deformed-mean-on-2000", 2000), ("linearity", "linearity-on-2000", 2000),
                                                ("flips", "flips-on-500", 500), ("clean", "clean", 0)])
def test_a_scale_that_measures_a_part_says_so_under_everything(metric, some, said, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(study.metrics, "measure", lambda runs, name: asked.append(name) or [])
    page = study.Study("mm-fig2", "smoke", 1, Store(tmp_path / "runs"))
    page.values(metric)
    assert "first of each class" not in " ".join(page.caption()) and asked == [metric], "all test images"
    page.scale = replace(page.scale, damaged=2000)
    page.values(metric)
    assert (f"Measured on {said:,} test images, the first of each class." in page.caption()) == bool(said) and asked[1] == some


def test_a_file_says_of_a_comparison_what_its_page_says():
    "The page may show more than its file holds, or less: what stands in both has one corrected p-value."
    rng = np.random.default_rng(3)
    values = [dict(method=m, dataset="digits", metric=c, seed=s, value=50 + rng.normal(0, 1) + 2 * (m == "mixup"))
              for c in "abcd" for m in ("erm", "mixup") for s in range(5)]
    def page(columns): return study.Page.of(sheet(reported("varmixup", "vm-fig2"), pd.DataFrame(values), {c: ("digits", c) for c in columns}, at="embedded"))
    def corrected(data): return {c: p for c, p in zip(data.column, data[HOLM]) if p == p}
    for shown, held in (("abc", "a"), ("ab", "abcd"), ("abc", "abc")):
        parts, data = study.one_family(tuple(map(page, shown)), page(held).data)
        on_page = {c: p for part in parts[:-1] for c, p in corrected(part.data).items()}
        assert {c: p for c, p in corrected(data).items() if c in shown} == {c: p for c, p in on_page.items() if c in held}
        assert list(corrected(data)) == list(held) and len({*on_page}) == len(shown)
