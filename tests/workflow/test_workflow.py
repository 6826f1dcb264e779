"""The main job, end to end and at smoke scale: the real Snakemake, papermill, Jupyter kernel and scikit-learn, and everything that can go wrong on the way."""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pandas as pd
import psutil
import pytest

from conftest import BY_THE_ENGINE, COMMAND, ROOT, SMOKE, check_pages, make_project, mixrepro, mixrepro_here, quick, sentence
from mixrepro import cli
from mixrepro.data import sources
from mixrepro.files import write_atomic
from mixrepro.workflow import jobs as workflow
from mixrepro.papers.catalogue import find
from mixrepro.repro.artefact import cells
from mixrepro.repro.scale import banner
from mixrepro.training.spec import name_of



def tree(folder: Path, pattern: str = "*") -> dict:
    "Every file with its content and time of change."
    return {p.relative_to(folder): (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob(pattern)) if p.is_file()}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Path: return make_project(tmp_path_factory.mktemp("pristine") / "project")


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    "A project in which a few artefacts were reproduced once, at smoke scale."
    project = make_project(tmp_path_factory.mktemp("e2e") / "project")
    return project, mixrepro("reproduce", *BY_THE_ENGINE, *SMOKE, cwd=project, timeout=900, fresh=True)


def listed(project: Path) -> list[dict]:
    return json.loads(mixrepro_here("list", "--json", *SMOKE, cwd=project).stdout)


def test_everything_asked_for_is_written(reproduced):
    project, done = reproduced
    assert done.returncode == 0, done.stdout + done.stderr + "".join(p.read_text()[-3000:] for p in (project / "runs/.workflow/logs").glob("*.log"))
    rows = [r for r in listed(project) if r["id"] in BY_THE_ENGINE]
    assert len(rows) == len(BY_THE_ENGINE) and all(r["state"] == "ready" for r in rows)
    for r in rows:
        for suffix in ("csv", "md"): assert (project / "figures/smoke" / r["paper"] / f"{r['id']}.{suffix}").stat().st_size > 0
        for run in r["runs"]: assert (project / "runs" / run / "done.json").is_file()
    assert (project / "figures/smoke/varmixup/vm-fig2.svg").stat().st_size > 1000
    page = (project / "figures/smoke/README.md").read_text()
    assert all(r["id"] in page for r in rows)
    report = (project / "figures/smoke/report.html").read_text()
    assert report.count('"mime_type": "text/html"') == len(rows) and "text/markdown" not in report, "a page can be read in the report"


@pytest.mark.slow
def test_without_a_name_everything_ready_is_written(project):
    done = mixrepro("reproduce", *SMOKE, cwd=project, timeout=3600)
    assert done.returncode == 0, done.stdout + done.stderr
    for r in listed(project):
        if r["state"] == "ready": assert (project / "figures/smoke" / r["paper"] / f"{r['id']}.md").stat().st_size > 0
    assert "nothing to do" in mixrepro("reproduce", *SMOKE, cwd=project).stdout


def test_without_a_name_everything_ready_is_meant(project):
    done = mixrepro("reproduce", *SMOKE, "--", "--list-rules", cwd=project)
    assert sorted(done.stdout.split()) == sorted(["all", "train", *(r["id"] for r in listed(project) if r["state"] == "ready")])


def test_progress_is_told(reproduced):
    said = reproduced[1].stdout
    assert "never timed here" in said and "varmixup, adv-varmixup" in said and "draw vm-table1" in said and "[1/" in said


def test_the_table_holds_what_the_runs_say(reproduced):
    project, _ = reproduced
    data = pd.read_csv(project / "figures/smoke/varmixup/vm-table1.csv")
    row = data[(data.method == "mixup") & (data["column"] == "cifar10")].iloc[0]
    values = [100 * json.loads(p.read_text())["value"]["accuracy"] for p in (project / "runs/digits-few" / name_of(s) / "metrics/clean.json" for s in (c.spec for c in cells(find("vm-table1"), "smoke")) if s.method == "mixup")]
    assert row["our n"] == len(values) == 2 and row["our mean (%)"] == pytest.approx(sum(values) / 2, rel=1e-5)  # the CSV keeps six digits
    assert row["paper mean (%)"] == 95.5 and row["paper sd (%)"] == .35 and row["paper n"] == 10
    assert row["value"] == "stand-in" and row["direction"] == "withheld"
    text = (project / "figures/smoke/varmixup/vm-table1.md").read_text()
    assert "95.50" in text and "tand-in" in text


def test_every_page_says_that_it_is_a_check_and_none_holds_a_verdict(reproduced):
    check_pages(reproduced[0], map(find, BY_THE_ENGINE))
    assert (reproduced[0] / "figures/smoke/README.md").read_text().splitlines()[2] == banner("smoke")


def test_a_second_call_recomputes_nothing(reproduced):
    project, _ = reproduced
    before = tree(project / "runs/digits-few"), tree(project / "figures")
    done = mixrepro("reproduce", *BY_THE_ENGINE, *SMOKE, cwd=project)
    assert done.returncode == 0 and "nothing to do" in done.stdout and "to train" not in done.stdout
    assert (tree(project / "runs/digits-few"), tree(project / "figures")) == before


def test_what_a_part_has_drawn_stands_in_the_whole(reproduced):
    "How runs are put in groups depends on what is asked for, and what is drawn does not."
    project, _ = reproduced
    before = tree(project / "runs/digits-few"), tree(project / "figures")
    alone = mixrepro("reproduce", "vm-fig2", *SMOKE, cwd=project)
    assert alone.returncode == 0 and "nothing to do" in alone.stdout and (tree(project / "runs/digits-few"), tree(project / "figures")) == before
    more = mixrepro("reproduce", *BY_THE_ENGINE, "mm-lowdata", *SMOKE, cwd=project)
    assert more.returncode == 0 and re.findall("^  draw (.+)", more.stdout, re.M) == ["mm-lowdata"], more.stdout


def test_forced_it_draws_the_same_bytes(reproduced):
    project, _ = reproduced
    before = {k: v[0] for k, v in tree(project / "figures/smoke/varmixup").items() if k.suffix != ".png"}
    weights = tree(project / "runs/digits-few", "*.safetensors")
    done = mixrepro("reproduce", "vm-fig2", *SMOKE, "--force", cwd=project)
    assert done.returncode == 0, done.stderr
    assert {k: v[0] for k, v in tree(project / "figures/smoke/varmixup").items() if k.suffix != ".png"} == before
    assert tree(project / "runs/digits-few", "*.safetensors") == weights


def test_show_and_report(reproduced):
    project, _ = reproduced
    assert "VarMixup" in mixrepro_here("show", "vm-table1", *SMOKE, cwd=project).stdout
    assert mixrepro("report", *SMOKE, cwd=project).returncode == 0
    assert "not there yet: make it with" in sentence(mixrepro_here("show", "vm-table1", "--profile", "gpu", cwd=project))


def test_papermill_alone(reproduced, tmp_path):
    project, _ = reproduced
    out = tmp_path / "out.ipynb"
    done = subprocess.run([sys.executable, "-m", "papermill", "nbs/varmixup/vm-table1.ipynb", str(out), "-p", "profile", "smoke", "--no-progress-bar"],
                          cwd=project, env=os.environ | dict(MIXREPRO_HOME=str(project)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("stand-in" in json.dumps(c.get("outputs", "")).lower() for c in nbformat.read(out, as_version=4).cells)


def test_opened_alone_it_finds_the_project_from_its_own_folder(reproduced):
    "JupyterLab starts the kernel in the notebook's folder, and nothing tells it where the project is."
    project, _ = reproduced
    runs = tree(project / "runs/digits-few", "*.safetensors")
    env = {k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"}
    notebook = project / "nbs/varmixup/at-smoke.ipynb"  # by itself it would open at the embedded scale
    notebook.write_text((project / "nbs/varmixup/vm-fig2.ipynb").read_text().replace('profile: str = \\"embedded', 'profile: str = \\"smoke'))
    assert "str = \\\"smoke" in notebook.read_text()
    done = subprocess.run([Path(sys.executable).with_name("jupyter"), "nbconvert", "--to", "notebook", "--execute", "--stdout", str(notebook)],
                          cwd=project, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert tree(project / "runs/digits-few", "*.safetensors") == runs and not (project / "nbs/varmixup/runs").exists()


@pytest.mark.parametrize("args, message", [
    (("reproduce", "vm-tabel1", *SMOKE), "unknown artefact 'vm-tabel1': did you mean 'vm-table1'"),
    (("reproduce", "--profile", "smok"), "unknown profile 'smok': did you mean 'smoke'"),
    (("reproduce", "vm-table1", *SMOKE, "-p", "seed=1"), "unknown parameter of 'vm-table1' 'seed': did you mean 'seeds'"),
    (("reproduce", "vm-table1", *SMOKE, "-p", "seeds=three"), "parameter 'seeds' of 'vm-table1' is of type int, got 'three'"),
    (("reproduce", "vm-table1", *SMOKE, "-p", "seeds=-1"), "seeds must be a number of runs"),
    (("reproduce", "vm-table1", *SMOKE, "-p", "seeds"), "a parameter is written NAME=VALUE"),
    (("show", "vm-tabl1"), "did you mean 'vm-table1'"),
    (("report", *SMOKE), "run 'mixrepro reproduce'"),
])
def test_refusals(pristine, args, message): assert message in sentence(mixrepro_here(*args, cwd=pristine))


def test_an_artefact_whose_notebook_is_not_there_is_planned(project):
    (project / "nbs/genlabel/gl-toy.ipynb").unlink()
    assert "'gl-toy' is planned, not ready" in sentence(mixrepro_here("reproduce", "gl-toy", *SMOKE, cwd=project))


ODD = ("a b'c é", "$(touch X)", "x{y}z", 'a;b"c', "-n $HOME *?[ab] #%d")  # names of folders, and texts for a notebook


@pytest.mark.parametrize("name", ["/".join(ODD), ODD[1]], ids=["all", "$"])
def test_folders_with_odd_names(tmp_path, name):
    "The clone and the data lie in such folders, and the notebook is given such texts: nothing is run as shell code, nothing is taken for a wildcard."
    project = quick(make_project(tmp_path / name / "clone"))
    word = "-x " + " ".join(ODD)
    done = mixrepro("reproduce", "mm-theorem1", *SMOKE, "-p", f"word={word}", "-p", "other=", "-p", "n=-3", cwd=tmp_path, MIXREPRO_HOME=str(project), MIXREPRO_DATA="my {data}")
    assert done.returncode == 0, done.stdout + done.stderr + (project / "runs/.workflow/snakemake.log").read_text()[-3000:]
    said = json.loads((project / "figures/smoke/manifold_mixup/mm-theorem1.md").read_text())
    assert said == dict(word=word, other="", n=-3, data=str(tmp_path / "my {data}"))
    assert (project / "figures/smoke/report.html").stat().st_size > 100_000
    assert not list(tmp_path.rglob("X"))
    assert "nothing to do" in mixrepro("reproduce", "mm-theorem1", *SMOKE, "-p", f"word={word}", "-p", "other=", "-p", "n=-3", cwd=project).stdout


def test_a_text_stays_a_text(project):
    given = ("-p", "word=1e5", "-p", "other=None")
    done = mixrepro("reproduce", "mm-theorem1", *SMOKE, *given, cwd=quick(project))
    assert done.returncode == 0, done.stderr
    assert json.loads((project / "figures/smoke/manifold_mixup/mm-theorem1.md").read_text()) == dict(word="1e5", other="None", n=0, data=os.environ.get("MIXREPRO_DATA"))


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path: return quick(make_project(tmp_path_factory.mktemp("untouched") / "project"))


@pytest.mark.parametrize("args, said", [
    (("mm-theorem1", *SMOKE, "--", "-n", "-p"), r"papermill nbs/manifold_mixup/mm-theorem1\.ipynb [\s\S]*dry-run"),
    ((*SMOKE, "mm-theorem1", "--cores", "1", "--", "--dry-run", "--cores", "2", "--forceall", "--set-threads=train=2", "--", "mm-theorem1"), r"total +1\n[\s\S]*dry-run"),
    (("--profile=smoke", "mm-theorem1", "--", "--list-rules"), r"\Aall\nmm-theorem1\ntrain\n\Z"),
    ((*SMOKE, "mm-theorem1", "--", "--dag"), r"\Adigraph [\s\S]*mm-theorem1[\s\S]*\}"),
    ((*SMOKE, "mm-theorem1", "--", "--version"), r"\A\d+\.\d+\.\d+\n\Z"),
])
def test_what_follows_the_dashes_is_answered_by_snakemake(untouched, args, said):
    "Only that on the standard output, and no report of nothing."
    done = mixrepro("reproduce", *args, cwd=untouched)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(said, done.stdout), done.stdout
    assert "reproducing mm-theorem1" in done.stderr and not (untouched / "figures").exists()


def test_what_snakemake_says_on_its_error_stream_is_shown(untouched):
    assert "Unlocked working directory" in mixrepro("reproduce", "mm-theorem1", *SMOKE, "--", "--unlock", cwd=untouched).stderr


@pytest.mark.parametrize("args, message", [
    (("--frobnicate", "vm-fig2"), "unrecognized arguments: --frobnicate"),  # vm-fig2 is a target of Snakemake's here
    (("--executor", "nope"), "invalid choice: 'nope'"),
    (("--until", "vm-table1"), "No rule to produce vm-table1"),
])
def test_what_snakemake_refuses(untouched, args, message):
    said = sentence(mixrepro("reproduce", "mm-theorem1", *SMOKE, "--", *args, cwd=untouched))
    assert message in said and "snakemake.log" in said and not (untouched / "figures").exists()


def test_one_notebook_at_a_time_has_the_gpu(tmp_path):
    "The limit is no option of the command line, where a user's --resources would take its place; a user's own limit goes first."
    project = quick(make_project(tmp_path / "project"))
    todo = workflow.jobs(["mm-theorem1", "vm-fig1"], "smoke", {}, project) | dict(python=shutil.which("true"))  # what is executed is no matter
    (project / "runs/.workflow").mkdir(parents=True)
    def side_by_side(gpu: bool, *args) -> tuple[set, list]:
        (project / "runs/.workflow/jobs.json").write_text(json.dumps(todo | dict(gpu=gpu)))
        process = workflow.snakemake(project, "--cores", "2", "--forceall", *args)
        said = process.communicate()[1]
        assert process.returncode == 0, said
        return {m.split("=")[0] for m in re.findall(r"(\w+)=Resource", said)}, re.findall(r"Execute (\d) jobs", said)[:2]
    assert side_by_side(True, "--resources", "mem_mb=500") == ({"device", "mem_mb"}, ["1", "1"])
    assert side_by_side(True, "--resources", "device=2")[1] == ["2", "1"]  # both, then `all`
    assert side_by_side(False)[1] == ["2", "1"]


def test_outside_a_clone(tmp_path): assert "no notebooks under" in sentence(mixrepro_here("reproduce", *SMOKE, cwd=tmp_path))


def test_a_store_that_cannot_be_written(project):
    (project / "runs").write_text("a file where the folder should be")
    assert "cannot write to" in sentence(mixrepro_here("reproduce", "vm-fig2", *SMOKE, cwd=project))


def test_a_data_set_that_is_missing(project):
    said = sentence(mixrepro("reproduce", "vm-fig2", "--profile", "gpu", "-p", "seeds=1", "--on-cpu", cwd=project, MIXREPRO_DATA=str(project / "nowhere")))
    assert "cifar10" in said and "nowhere" in said


def waiting(project: Path, **options) -> subprocess.Popen:
    "A reproduction whose notebook is under way, and comes to its end when there is a file `go`."
    path = quick(project) / "nbs/manifold_mixup/mm-theorem1.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(1, nbformat.v4.new_code_cell("import os, time\nopen('begun', 'w').close()\nwhile not os.path.exists('go'): time.sleep(.05)"))
    nbformat.write(nb, path)
    one = subprocess.Popen([COMMAND, "reproduce", "mm-theorem1", *SMOKE], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                           env={k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"}, **options)
    while not (project / "begun").exists(): assert one.poll() is None, one.stderr.read(); time.sleep(.05)
    return one


def test_two_at_once(project):
    one = waiting(project)
    assert "another process is reproducing in" in sentence(mixrepro_here("reproduce", "vm-fig2", *SMOKE, cwd=project))
    (project / "go").touch()
    rest = one.communicate(timeout=400)
    assert one.returncode == 0, rest
    assert (project / "figures/smoke/manifold_mixup/mm-theorem1.svg").is_file()


def test_killed_and_called_again(project):
    "SIGKILL to everything in the middle of the work: the same command goes on, and no finished run is trained again."
    asked = "reproduce", "mm-lowdata", *SMOKE, "-p", "seeds=1"
    one = subprocess.Popen([COMMAND, *asked], cwd=project, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                           start_new_session=True, env={k: v for k, v in os.environ.items() if k != "MIXREPRO_HOME"})
    deadline = time.time() + 200
    while not list((project / "runs").glob("digits-few/*/done.json")) and time.time() < deadline: time.sleep(.05)
    os.killpg(one.pid, signal.SIGKILL); one.wait()
    for p in psutil.process_iter():  # Snakemake gives jobs sessions of their own
        with contextlib.suppress(psutil.Error):
            if p.cwd() == str(project) or str(project) in " ".join(p.cmdline()): p.kill()
    done = {p: p.stat().st_mtime_ns for p in (project / "runs").glob("digits-few/*/weights.safetensors") if (p.parent / "done.json").is_file()}
    assert done
    again = mixrepro(*asked, cwd=project)
    assert again.returncode == 0, again.stdout + again.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in done.items())
    assert not list((project / "runs").rglob("checkpoint.pt")) and (project / "figures/smoke/manifold_mixup/mm-lowdata.md").is_file()


def test_figures_that_came_with_a_clone_are_drawn_here(project):
    "A fresh clone holds figures as new as its notebooks or newer, and no runs."
    folder = project / "figures/smoke/manifold_mixup"
    folder.mkdir(parents=True)
    for end in ("svg", "png", "csv", "md"): (folder / f"mm-theorem1.{end}").write_text("from elsewhere")
    later = time.time() + 60
    for f in folder.iterdir(): os.utime(f, (later, later))
    done = mixrepro("reproduce", "mm-theorem1", *SMOKE, cwd=quick(project))
    assert done.returncode == 0 and "draw mm-theorem1" in done.stdout, done.stdout + done.stderr
    assert all("from elsewhere" not in f.read_bytes().decode(errors="ignore") for f in folder.glob("mm-theorem1.*"))
    assert "nothing to do" in mixrepro("reproduce", "mm-theorem1", *SMOKE, cwd=project).stdout


def test_a_notebook_that_fails_keeps_the_old_figure(reproduced, tmp_path):
    project = tmp_path / "project"
    shutil.copytree(reproduced[0], project, symlinks=True)
    path = project / "nbs/varmixup/vm-fig2.ipynb"
    nb = nbformat.read(path, as_version=4)
    nb.cells.insert(3, nbformat.v4.new_code_cell("raise ValueError('the cell that fails')"))
    nbformat.write(nb, path)
    before = {k: v[0] for k, v in tree(project / "figures/smoke/varmixup").items()}
    said = sentence(mixrepro("reproduce", *BY_THE_ENGINE, *SMOKE, cwd=project))  # whose groups of runs are there
    assert "vm-fig2 failed (ValueError: the cell that fails) in code cell 3, line 1: raise ValueError('the cell that fails'); what" in said and "vm-fig2.log" in said
    assert {k: v[0] for k, v in tree(project / "figures/smoke/varmixup").items()} == before


def test_list_names_every_artefact(pristine):
    rows = json.loads(mixrepro_here("list", "--json", cwd=pristine).stdout)
    assert len(rows) == len({r["id"] for r in rows}) and {r["state"] for r in rows} <= {"ready", "planned"}
    assert all(set(r) == {"id", "paper", "title", "notebook", "runs", "state"} for r in rows)
    assert all((pristine / r["notebook"]).is_file() == (r["state"] == "ready") for r in rows)
    assert all(r["runs"] for r in rows if r["id"] in ("vm-table1", "vm-fig2"))


def test_doctor(project):
    done = mixrepro("doctor", cwd=project)  # in a Python of its own: test_readme.py
    assert done.returncode == 0 and "torch" in done.stdout and "WRONG" not in done.stdout, done.stdout
    assert "checks failed" in sentence(mixrepro("doctor", cwd=project.parent))


@pytest.mark.parametrize("args, message", [
    (("reproduce", "--profil", "smoke"), "No such option: --profil"),
    (("reproduce", "--cores", "two"), "Invalid value for '--cores'"),
    (("lst",), "No such command 'lst'"),
    (("show",), "Missing argument 'id'"),
    (("data", "get"), "Missing argument 'names'"),
])
def test_a_wrong_usage_is_one_sentence(tmp_path, args, message):
    done = mixrepro_here(*args, cwd=tmp_path)
    said = sentence(done)
    assert message in said and re.search(r"see 'mixrepro( \w+)* --help'$", said) and done.returncode == 2 and done.stderr.count("\n") == 1


def test_the_module_is_the_command(tmp_path):
    done = subprocess.run([sys.executable, "-m", "mixrepro", "show", "vm-tabl1"], cwd=ROOT, capture_output=True, text=True)
    assert "did you mean 'vm-table1'" in sentence(done)


def test_nobody_reads_on(project):
    "The reader goes after the first line, or before it: no word about it, and no success."
    command = f"set -o pipefail; {{ {shlex.quote(str(COMMAND))} list; echo \"rc $?\" >&2; }} | head -c 1 > /dev/null"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True)
    assert done.stderr in ("rc 1\n", "rc 0\n"), done.stderr  # 0 where the pipe took it all before the reader went
    done = subprocess.run(["bash", "-c", f"{shlex.quote(str(COMMAND))} list > /dev/full"], cwd=project, capture_output=True, text=True)
    assert "the standard output cannot be written: no space left" in sentence(done)
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([COMMAND, "list"], cwd=project, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("number, to, code, why", [
    (signal.SIGINT, os.killpg, 130, "interrupted"),  # Ctrl-C
    (signal.SIGINT, os.kill, 130, "interrupted"),
    (signal.SIGTERM, os.kill, 143, "ended by SIGTERM")])
def test_ended_from_outside_it_says_what_is_kept(project, number, to, code, why):
    "And nothing works on."
    def hears(): signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background is deaf to it, and so are its children
    one = waiting(project, start_new_session=True, preexec_fn=hears)
    to(one.pid, number)
    _, said = one.communicate(timeout=200)
    assert one.returncode == code and said.splitlines()[-1] == f"mixrepro: {why}: what is trained is kept, the same command goes on", said
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(project)]


def test_no_reader_of_a_reproduction(project):
    "One sentence, and no process stays behind."
    train = project / "nbs/training/train.ipynb"
    nb = nbformat.read(train, as_version=4)
    nb.cells = [c for c in nb.cells if "parameters" in c.metadata.get("tags", [])]  # nothing is trained: it only begins and ends
    nbformat.write(nb, train)
    command = f"{shlex.quote(str(COMMAND))} reproduce vm-fig2 --profile smoke | head -1"
    done = subprocess.run(["bash", "-c", command], cwd=project, capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("reproducing vm-fig2") and done.stderr == "mixrepro: nobody reads on: what is trained is kept, the same command goes on\n"
    assert not (project / "figures").exists() and len(list((project / "runs/.workflow/plans").iterdir())) == 2
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(project)]


@pytest.mark.parametrize("shell, said", [
    ('mkdir gone && cd gone && rmdir ../gone && "$@" list', "the current folder is gone: change to one that is there"),
    ('"$@" list > /dev/full', "the standard output cannot be written: no space left on device; free some space and run again"),
    ('"$@" --version > /dev/full', "the standard output cannot be written: no space left on device; free some space and run again"),
    ('COLUMNS=99999999999999999999 "$@" lits', "No such command 'lits'. Did you mean 'list'?: see 'mixrepro --help'")])
def test_a_place_where_nothing_can_be_done_is_one_sentence(tmp_path, shell, said):
    done = subprocess.run(["sh", "-c", shell, "sh", sys.executable, "-m", "mixrepro"], cwd=tmp_path, capture_output=True, text=True, timeout=120,
                          env=dict(os.environ, PYTHONPATH=str(ROOT), MIXREPRO_HOME="" if "gone" in shell else str(ROOT)))
    lines = [line for line in done.stderr.splitlines() if "getcwd() failed" not in line]  # the shell's own
    assert lines == [f"mixrepro: {said}"] and done.returncode, done.stderr


def test_what_is_started_has_an_input_stream_also_where_it_was_closed(tmp_path):
    "Papermill ends at its import without one."
    code = ("import subprocess, sys; from mixrepro import cli; asked = 'import os; [os.fstat(k) for k in range(3)]'\n"
            "cli.app = lambda **_: subprocess.run([sys.executable, '-c', asked]).returncode; cli.main()")
    for closed in ("<&-", "<&- >&- 2>&-"):
        assert subprocess.run(f"{shlex.quote(sys.executable)} -c {shlex.quote(code)} {closed}", shell=True, timeout=100).returncode == 0, closed


def test_a_page_is_older_than_the_data_that_were_fetched_since(tmp_path, monkeypatch):
    "Tables of OpenML, images that are looked at without a run, the released corruptions: no run changes with them, and 'nothing to do' was said."
    project, data = make_project(tmp_path / "project"), tmp_path / "data"
    monkeypatch.setenv("MIXREPRO_DATA", str(data))
    def of(id, profile): return workflow.jobs([id], profile, {}, project)["artefacts"][id]["made_of"]
    first = {(id, p): of(id, p) for id, p in (("gl-openml-accuracy", "paper"), ("gl-openml-accuracy", "embedded"), ("mm-fig3", "paper"),
                                              ("nm-table2", "overnight"), ("mm-table1", "overnight"))}
    def changed():
        now = {k: of(*k) for k in first}
        return [k for k in first if now[k] != first[k]]
    assert changed() == []
    (data / "openml").mkdir(parents=True)
    (data / "openml/31_mine.csv").write_text("a,class\n1,x\n")
    assert changed() == [("gl-openml-accuracy", "paper")]
    first["gl-openml-accuracy", "paper"] = of("gl-openml-accuracy", "paper")
    (data / "openml/31_mine.csv").write_text("a,class\n2,x\n")
    assert changed() == [("gl-openml-accuracy", "paper")]
    for odd in ("[" * 100_000, "{", '[{"id": 3}]'):
        (data / "openml/index.json").write_text(odd)
        changed()  # the notebook says what is wrong
    shutil.rmtree(data / "openml")
    (data / "cifar-10-batches-bin").mkdir()
    (data / "cifar-10-batches-bin/data_batch_1.bin").write_bytes(b"0")
    assert changed() == [("gl-openml-accuracy", "paper"), ("mm-fig3", "paper")]
    shutil.rmtree(data / "cifar-10-batches-bin")
    monkeypatch.setattr(workflow, "corruption_source", lambda name, say: sources.Source(sources.RELEASED, name))
    assert changed() == [("gl-openml-accuracy", "paper"), ("nm-table2", "overnight")]


def test_a_page_is_older_than_the_judge_that_was_put_there_since(tmp_path, monkeypatch):
    "Weights of Inception: distances stayed those of the network that stands in for it."
    project, weights = make_project(tmp_path / "project"), tmp_path / "inception.pth"
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    def of(id): return workflow.jobs([id], "smoke", {}, project)["artefacts"][id]["made_of"]
    before = {id: of(id) for id in ("mm-fig9", "vm-fig4", "vm-fig3")}
    weights.write_text("weights")
    monkeypatch.setenv("MIXREPRO_INCEPTION", str(weights))
    assert [id for id in before if of(id) != before[id]] == ["mm-fig9", "vm-fig4"]
    weights.unlink()
    assert {id: of(id) for id in before} == before, "the notebook says what is wrong"
    monkeypatch.setenv("MIXREPRO_INCEPTION", "~nobody-of-that-name/weights")
    assert {id: of(id) for id in before} == before


def test_the_ledger_is_told_of_tables_of_other_code(tmp_path, monkeypatch, capsys):
    "Drawn alone after an edit, it took the tables that older code had drawn for those of now."
    project = make_project(tmp_path / "project")
    def told(*ids):
        cli.announce(workflow.jobs(list(ids), "smoke", {}, project), project)
        return [line for line in capsys.readouterr().out.splitlines() if "by other code" in line]
    task = workflow.jobs(["mm-theorem1"], "smoke", {}, project)["artefacts"]["mm-theorem1"]
    assert told("x-claims") == [], "nothing was drawn here"
    write_atomic(project / task["stamp"], task["made_of"])
    assert told("x-claims") == []
    write_atomic(project / task["stamp"], "other")
    assert told("x-claims") == ["  figures/smoke/manifold_mixup/mm-theorem1.csv, which is read, was drawn by other code, from other data or with other "
                                "parameters: reproduce mm-theorem1 to have it drawn again"]
    assert told("x-claims", "mm-theorem1") == told("mm-theorem1") == []
