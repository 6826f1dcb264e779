"An allotted time, and scales that name their artefacts by their worth."

from dataclasses import replace

import pytest

from mixrepro.workflow import jobs as workflow
from mixrepro.repro.scale import SCALES
from conftest import SMOKE, mixrepro, mixrepro_here, sentence


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf"])
def test_no_time_is_no_time(project, minutes):
    done = mixrepro_here("reproduce", "vm-fig2", *SMOKE, "--minutes", minutes, cwd=project)
    assert f"minutes must be above 0, got {minutes}: leave --minutes out for no end" in sentence(done)
    assert not (project / "runs").exists()


def test_what_would_not_end_in_time_is_not_begun(project):
    "The time is over before the first run: nothing is trained, nothing failed, and what is left is told."
    done = mixrepro("reproduce", "vm-fig2", *SMOKE, "--minutes", "0.01", cwd=project)
    assert done.returncode == 0 and done.stderr == "", done.stdout + done.stderr
    *_, late, left = done.stdout.splitlines()
    assert late == "  out of time: what was not begun is left for the next call"
    assert left.startswith("  left of vm-fig2: ") and left.endswith(" runs, never timed here")
    assert not list(project.glob("runs/*/*/done.json")) and not (project / "figures").exists()


def test_overnight_names_its_artefacts(project):
    done = mixrepro_here("reproduce", "mm-fig9", "--profile", "overnight", cwd=project)
    assert "the scale 'overnight' is not meant for mm-fig9: it is for vm-table1, mm-lowdata" in sentence(done)


def test_a_scale_without_the_data_of_an_artefact_names_them_and_draws_the_others(project, monkeypatch):
    "Nobody has ImageNet at hand here: its tables are left out of the scale, and refused by name."
    monkeypatch.setitem(SCALES, "gpu", replace(SCALES["gpu"], datasets={"cifar10": "cifar10"}))
    with pytest.raises(ValueError, match="the scale 'gpu' has nothing for nm-table1, which reads imagenet and imagenet-st"):
        workflow.jobs(["nm-table1"], "gpu", base=project)
    with pytest.raises(ValueError, match="nothing for nm-table5, which reads cifar100 and imagenet: 'mixrepro data list'"):
        workflow.jobs(["nm-table5"], "gpu", base=project)
    drawn = workflow.meant("gpu", project)
    assert "nm-table2" in drawn and not {"nm-table1", "nm-table5", "nm-fig1"} & {*drawn}


def test_overnight_without_cifar_10_says_what_to_do(project, tmp_path):
    done = mixrepro("reproduce", "mm-lowdata", "--profile", "overnight", cwd=project, MIXREPRO_DATA=str(tmp_path))
    said = sentence(done)
    assert "no file of cifar10, which mm-lowdata reads, is in" in said and "run `mixrepro data get cifar10 --root" in said
