"""What stands between a notebook and its figure, on notebooks that take no time: clocks, a person's surroundings, notebooks that end in every way."""

import contextlib
import errno
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest

from conftest import SMOKE, make_project, mixrepro, mixrepro_here, quick, sentence
from mixrepro import cli
from mixrepro.workflow import again, jobs as workflow, warm

ID, NOTEBOOK, FIGURES = "mm-theorem1", "nbs/manifold_mixup/mm-theorem1.ipynb", "figures/smoke/manifold_mixup"
AHEAD = 90  # seconds
NOWHERE = "/dev/null/x"  # no folder, and none can be made there, not by root either


def notebook(path: Path, *code: str):
    "A notebook of these code cells, after one of parameters."
    cells = [nbformat.v4.new_code_cell(c) for c in ('profile: str = "smoke"\nplan: str = ""', *code)]
    cells[0].metadata["tags"] = ["parameters"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=dict(kernelspec=dict(name="python3", language="python", display_name="python3"))), path)


def drawing(project: Path) -> Path:
    "A project whose mm-theorem1 writes other bytes each time."
    ends = '("svg", "png", "csv", "md")'
    notebook(project / NOTEBOOK, f"""import os, time
from mixrepro.files import home, write_together
write_together({{home() / "{FIGURES}" / f"{ID}.{{end}}": f"{{time.time_ns()}}" for end in {ends}}})""")
    return project


@pytest.fixture(scope="module")
def once(tmp_path_factory) -> Path:
    "A project in which mm-theorem1 was drawn; its store and its figures lie on another file system where there is one, behind links."
    project = drawing(make_project(tmp_path_factory.mktemp("once") / "project"))
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None) as elsewhere:
        for name in ("runs", "figures"):
            (Path(elsewhere) / name).mkdir()
            (project / name).symlink_to(Path(elsewhere) / name)
        done = mixrepro("reproduce", ID, *SMOKE, cwd=project)
        assert done.returncode == 0, done.stdout + done.stderr
        yield project


def figures(project: Path) -> dict: return {f.name: f.read_bytes() for f in (project / FIGURES).iterdir()}


def test_a_clock_that_runs_ahead_deletes_nothing(once):
    "The times of a notebook, its figures, the stamps and the page lie ahead; what the notebook says decides."
    first = figures(once)
    nb = nbformat.read(once / NOTEBOOK, as_version=4)
    nb.cells[-1].source += "\n# a word more"
    nbformat.write(nb, once / NOTEBOOK)
    for f in [once / NOTEBOOK, *once.glob("figures/smoke/**/*.*"), *(once / "runs/.workflow").rglob("*")]:
        if f.is_file(): os.utime(f, (time.time() + AHEAD,) * 2)
    page = (once / "figures/smoke/report.html").stat().st_mtime_ns
    done = mixrepro("reproduce", ID, *SMOKE, cwd=once)
    assert done.returncode == 0 and "draw mm-theorem1" in done.stdout, done.stdout + done.stderr
    new = figures(once)
    assert set(new) == set(first) and not set(new.values()) & set(first.values())
    assert (once / "figures/smoke/report.html").stat().st_mtime_ns != page  # of these figures
    os.utime(once / NOTEBOOK, (time.time() + AHEAD,) * 2)  # its time alone is no reason
    assert "nothing to do" in mixrepro("reproduce", ID, *SMOKE, cwd=once).stdout and figures(once) == new


def test_forced_and_left_undone_is_no_success(once, tmp_path):
    "A profile of a person's has Snakemake only touch what is there. Afterwards it is drawn without a word of force, and none of Python's warnings is a traceback."
    (tmp_path / "config.yaml").write_text("touch: true\n")
    before = figures(once)
    done = mixrepro("reproduce", ID, *SMOKE, "--force", cwd=once, SNAKEMAKE_PROFILE=str(tmp_path))
    assert done.returncode == 1 and "has not made mm-theorem1; what stands there is as old as before" in sentence(done) and figures(once) == before
    done = mixrepro("reproduce", ID, *SMOKE, cwd=once, PYTHONWARNINGS="error")
    assert done.returncode == 0 and "draw mm-theorem1" in done.stdout and "Traceback" not in done.stderr, done.stdout + done.stderr
    assert not set(figures(once).values()) & set(before.values())


class Engine:
    "A project with one group of runs and some artefacts, handed to the real Snakemake without the catalogue."

    def __init__(self, base: Path, **artefacts: str):  # id -> the code that it consists of
        self.base = base
        notebook(base / workflow.TRAIN, "pass")
        for id, code in artefacts.items(): notebook(base / f"nbs/{id}.ipynb", "import sys", code)
        (base / workflow.WORK / "plans").mkdir(parents=True)
        (base / workflow.WORK / "plans" / "g.json").write_text("[]")
        self.ids, self.say = list(artefacts), ""

    def todo(self) -> dict:
        def made_of(path): return workflow.made_of((self.base / path).read_text())
        def task(id):
            return dict(notebook=f"nbs/{id}.ipynb", paper="p", title="t", groups=["g"], runs=[], parameters=dict(profile="smoke"), made_of=made_of(f"nbs/{id}.ipynb"),
                        outputs=[f"figures/{id}.md"], stamp=f"{workflow.WORK}/drawn/smoke-{id}")
        return dict(profile="smoke", python=sys.executable, gpu=False, artefacts={i: task(i) for i in self.ids},
                    groups=dict(g=dict(needs=[], title="runs", stamp=f"{workflow.WORK}/stamps/g", made_of=made_of(workflow.TRAIN))))

    def __call__(self) -> str:
        "What it says at last: nothing where all went well."
        (self.base / workflow.WORK / "jobs.json").write_text(json.dumps(todo := self.todo()))
        with contextlib.redirect_stdout(io.StringIO()) as told:
            try: cli.handed(todo, self.base, ["--cores", "2", "--keep-going", "--rerun-incomplete", "--rerun-triggers", "software-env"]); return ""
            except RuntimeError as e: return str(e)
            finally: self.told = told.getvalue()


WRITE = "from pathlib import Path; Path('figures').mkdir(exist_ok=True); Path('figures/{}.md').write_text(''); Path('figures/{}.md').write_text('new')"


def test_stamps_and_plans_of_another_clock(tmp_path):
    "A node's clock that runs ahead of this machine's, or this machine's that was set back between two calls: a year here."
    engine = Engine(tmp_path, a=WRITE.format("a", "a"))
    for f in (tmp_path / "nbs").rglob("*.ipynb"): os.utime(f, (time.time() + 3e7,) * 2)
    os.utime(tmp_path / workflow.WORK / "plans" / "g.json", (time.time() + 3e7,) * 2)
    assert engine() == "" and "train runs" in engine.told and "draw a" in engine.told
    for f in (tmp_path / workflow.WORK).rglob("*"):
        if f.is_file(): os.utime(f, (time.time() + 3e7,) * 2)
    notebook(tmp_path / "nbs/a.ipynb", WRITE.format("a", "a"))
    assert engine() == "" and "train" not in engine.told and "draw a" in engine.told
    assert (tmp_path / "figures/a.md").read_text() == "new"


def test_an_engine_begun_in_the_background_hears_that_it_is_to_end(tmp_path):
    "A shell has what it begins with & ignore Ctrl-C, which all that is begun below inherits: it was killed after twice the patience."
    engine = Engine(tmp_path, a="open('begun', 'w').close(); import time; time.sleep(3600)")
    (tmp_path / workflow.WORK / "jobs.json").write_text(json.dumps(engine.todo()))
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try: process = workflow.snakemake(tmp_path, "--cores", "1")
    finally: signal.signal(signal.SIGINT, heard)
    while not (tmp_path / "begun").exists() and process.poll() is None: time.sleep(.1)
    cli.put_an_end(process, 300)
    assert process.returncode not in (None, 0, -signal.SIGKILL)
    assert not [p for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(tmp_path)]


ENDS = dict(  # what a cell does, and how that is told
    bare=("x = 1\nassert x == 2", "(AssertionError without a text) in code cell 3, line 2: assert x == 2"),
    texts=("sys.exit('no data here')", "(SystemExit: no data here) in code cell 3"),
    stops=("next(iter([]))", "(StopIteration without a text) in code cell 3, line 1: next(iter([]))"),
    lines=("raise ValueError('first\\n\\nKeyError: second')", "(ValueError: first KeyError: second) in code cell 3, line 1: raise ValueError('first\\n\\nKeyError: second')"),
    breaks=("def f():\n    raise KeyboardInterrupt\nf()", "(KeyboardInterrupt without a text) in code cell 3, line 3: f()"),
    own=("class Odd(Exception): pass\nraise Odd('so')", "(Odd: so) in code cell 3, line 2: raise Odd('so')"),
    syntax=("x = 1\ny = = 2", "in code cell 3, line 2: y = = 2"),
    killed=("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)", "(its kernel died: killed from outside, or for want of memory) in code cell 3"),
)


def test_a_page_whose_timings_are_others_is_drawn_again(tmp_path):
    "Those of another artefact are no matter."
    engine = Engine(tmp_path, a="""from mixrepro.files import home, write_atomic
from mixrepro.workflow.drawn import note
note(home(), "smoke-a", [write_atomic(home() / "figures/a.md", "drawn")], [])""")
    timings = tmp_path / "figures/smoke/timings.csv"
    timings.parent.mkdir(parents=True)
    timings.write_text("artefact,step_seconds\na,1\n")
    assert engine() == ""
    def stands(): return engine.todo()["artefacts"]["a"] in workflow.made(engine.todo(), tmp_path)
    assert stands()
    timings.write_text("artefact,step_seconds\na,1\nb,2\n")
    assert stands()
    for text in ("artefact,step_seconds\na,2\n", "artefact,step_seconds\n"):
        timings.write_text(text)
        assert not stands()
    timings.unlink()
    assert not stands()


def test_every_way_a_notebook_ends(tmp_path):
    "What happened and where; and one that says it went well without having written its figure did not."
    engine = Engine(tmp_path, **{id: code for id, (code, _) in ENDS.items()}, early=f"sys.exit(0)\n{WRITE.format('early', 'early')}")
    (tmp_path / "figures").mkdir()
    for id in engine.ids: (tmp_path / f"figures/{id}.md").write_text("old")
    said = engine()
    for id, (_, expected) in ENDS.items():
        assert expected in workflow.reason(tmp_path / workflow.WORK / "logs" / f"smoke-{id}.log"), id
    assert re.match(rf"({'|'.join(ENDS)}) failed \(.*; what was computed before is kept; the whole log is ", said), said
    assert all((tmp_path / f"figures/{id}.md").read_text() == "old" for id in engine.ids)
    assert sorted(f.name for f in (tmp_path / workflow.WORK / "drawn").glob("*")) == []  # none is taken for drawn
    engine.ids = ["early"]
    assert engine().startswith("early ended without writing figures/early.md (SystemExit: 0 in code cell 3): its notebook nbs/early.ipynb has to publish it")


def test_a_persons_surroundings(once):
    "None of them has a say in a reproduction; the doctor executes a notebook, starts the kernel, and says what it saw."
    (other := once / "jupyter/kernels/python3").mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps(dict(argv=["/nowhere/python", "-f", "{connection_file}"], display_name="x", language="python")))
    (once / "start.py").write_text("raise SystemExit('at the start')")
    home = dict(HOME=NOWHERE, XDG_CACHE_HOME="", MPLBACKEND="TkAgg")
    bad = home | dict.fromkeys(("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_DATA_DIR", "TMPDIR"), NOWHERE)
    bad |= dict(JUPYTER_PATH=str(once / "jupyter"), PYTHONSTARTUP=str(once / "start.py"), LC_ALL="C", PYTHONIOENCODING="ascii", PYTHONOPTIMIZE="1", ONEDNN_DEFAULT_FPMATH_MODE="BF16")
    nb = nbformat.read(once / NOTEBOOK, as_version=4)
    nb.cells[-1].source += "\nimport matplotlib.pyplot as plt; plt.subplots(); print('\\u2192')\nassert open(__import__('mixrepro').__file__).encoding == 'utf-8'\n1 / __debug__  # asserts are heeded\nassert 'ONEDNN_DEFAULT_FPMATH_MODE' not in __import__('os').environ"
    nbformat.write(nb, once / NOTEBOOK)
    before = figures(once)
    done = mixrepro("reproduce", ID, *SMOKE, cwd=once, **bad)
    assert done.returncode == 0 and not set(figures(once).values()) & set(before.values()), done.stdout + done.stderr
    done = mixrepro("doctor", cwd=once, **bad)
    lines = {l.split(None, 1)[1]: l.split()[0] for l in done.stdout.splitlines()}
    assert lines["Snakemake, papermill and the kernel execute a notebook, and matplotlib draws in it"] == "ok"
    (wrong,) = [l for l, how in lines.items() if how == "WRONG"]
    assert wrong.startswith("Jupyter kernel python3 does not start (FileNotFoundError: ") and "/nowhere/python" in wrong
    assert "ipykernel install" in wrong and "JUPYTER_PATH comes before it" in wrong and "1 of" in sentence(done)
    notes = [l for l, how in lines.items() if how == "note"]
    assert any(n.startswith(f"{NOWHERE}/.cache cannot be written") for n in notes) and any(n.startswith("MPLBACKEND=TkAgg has no say") for n in notes)


def test_folders_for_caches_are_meant_as_they_are_typed(tmp_path, monkeypatch):
    "Whoever types ~ or a relative path means the own home, or what lies here: not a folder of that name where the engine works."
    (base := tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    for name, typed in (("HOME", str(tmp_path / "home")), ("XDG_CACHE_HOME", "~/caches"), ("MPLCONFIGDIR", "here")): monkeypatch.setenv(name, typed)
    env = workflow.environment(base)
    assert (env["XDG_CACHE_HOME"], env["MPLCONFIGDIR"]) == (str(tmp_path / "home/caches"), str(tmp_path / "here"))
    assert not (tmp_path / "~").exists() and [n for _, n in cli.set_aside(base) if "XDG" in n] == []
    monkeypatch.setenv("XDG_CACHE_HOME", NOWHERE)
    assert workflow.environment(base)["XDG_CACHE_HOME"].startswith(str(base)) and any("XDG" in n for _, n in cli.set_aside(base))


def test_weights_of_inception_are_found_where_they_are_found_outside_of_a_reproduction(tmp_path, monkeypatch):
    "Of a cache that cannot be written, or by a relative path: the stand-in was taken in its place without a word, or a sentence said that they are not there."
    from mixrepro.metrics.features import FILES, find_inception
    (base := tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "home/.cache/torch/hub/checkpoints"
    cache.mkdir(parents=True)
    (cache / FILES[0]).touch(); (tmp_path / "own.pth").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "TORCH_HOME", "MIXREPRO_INCEPTION"): monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(workflow, "takes_files", lambda folder: not str(folder).startswith(str(tmp_path / "home")))
    def found():
        env = workflow.environment(base)
        with monkeypatch.context() as inside:
            inside.chdir(base)
            for k, v in env.items(): inside.setenv(k, v)
            return find_inception()
    assert found() == cache / FILES[0] == find_inception()
    monkeypatch.setenv("MIXREPRO_INCEPTION", "own.pth")
    assert found() == tmp_path / "own.pth"


def test_a_variable_that_is_misspelt_is_named_by_the_doctor(tmp_path, monkeypatch):
    def said(): return [n for _, n in cli.set_aside(tmp_path) if "MIXREPRO_DAT" in n]
    assert said() == []
    monkeypatch.setenv("MIXREPRO_DATAS", "x")
    (note,) = said()
    assert note.startswith("unknown variable 'MIXREPRO_DATAS': did you mean 'MIXREPRO_DATA'?") and note.endswith("it is not heeded")


def test_empty_variables_of_tqdm_are_none(monkeypatch, capsys):
    "tqdm would make numbers of them as it is imported."
    for name in ("TQDM_MININTERVAL", "TQDM_NCOLS"): monkeypatch.setenv(name, "")
    monkeypatch.setattr(sys, "argv", ["mixrepro", "--version"])
    with pytest.raises(SystemExit) as e: cli.main()
    assert not e.value.code and not {"TQDM_MININTERVAL", "TQDM_NCOLS"} & {*os.environ}


@pytest.mark.parametrize("text, says", [("", "[1, 2]"), ("soon", "ValueError: tqdm cannot read TQDM_MININTERVAL (could not convert string to float: 'soon'): unset what is wrong")])
def test_variables_of_tqdm_that_are_no_numbers(text, says):
    code = "from mixrepro.training.progress import with_progress; print([*with_progress([1, 2], 'run', 0.)])"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | dict(TQDM_MININTERVAL=text), text=True, capture_output=True)
    assert says in (done.stdout + done.stderr).splitlines()


@pytest.mark.parametrize("spoil", [b"", b"\xff\xfe\0", b"a,b\n1,2\n1,2,3\n"])
def test_a_damaged_table_is_named_by_who_compares(tmp_path, spoil):
    (table := tmp_path / "figures/embedded/varmixup/vm-table1.csv").parent.mkdir(parents=True)
    table.write_bytes(spoil)
    with pytest.raises(ValueError, match=f"{table} is no table .*: take it from the clone again, or draw vm-table1 again"): again.verdicts(table.parents[1])


def test_the_doctor_finds_an_engine_that_does_not_run(tmp_path, monkeypatch):
    "Snakemake or papermill are installed by name, and broken."
    for name in ("papermill", "snakemake"):
        folder = tmp_path / name
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").write_text("raise OSError('half of it is gone')")
        monkeypatch.setenv("PYTHONPATH", f"{folder}{os.pathsep}{os.environ['PYTHONPATH']}")
        ok, said = cli.trial()
        assert not ok and said.startswith("a notebook cannot be executed: ") and "half of it is gone" in said


def test_a_notebook_of_training_that_is_no_notebook(project):
    (project / workflow.TRAIN).write_text('{"cells": [\n\noops')
    said = sentence(mixrepro("reproduce", "vm-fig2", *SMOKE, cwd=project))
    assert "nbs/training/train.ipynb is no notebook: line 3 is no JSON" in said


PARAMETERS = [("(a, b) = 1, 2", 2), ("x['a'] = 1", 2), ("%time n = 1", 2), ("x: str", 2), ("n = 2 * 3", 2), ("t = (1, 2)", 2), ("n = m", 2), ("n += 1", 2), ("ls -l", 2), ("n = '", 2)]


@pytest.mark.parametrize("line, at", PARAMETERS)
def test_parameters_that_cannot_be_read(tmp_path, line, at):
    notebook(path := tmp_path / "nb.ipynb")
    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source = f'profile: str = "smoke"\n{line}\nn: int = 0'
    nbformat.write(nb, path)
    with pytest.raises(ValueError, match=re.escape(f"{path}: line {at} of its cell of parameters, {line!r}, is no NAME = VALUE")): workflow.check_parameters(path, {})


@pytest.mark.parametrize("tags", [None, 3, "parameters"])
def test_tags_that_are_no_list(tmp_path, tags):
    notebook(path := tmp_path / "nb.ipynb")
    text = json.loads(path.read_text())
    text["cells"][0]["metadata"]["tags"] = tags
    path.write_text(json.dumps(text))
    with pytest.raises(ValueError, match=f"{path} is no notebook of format 4 .TypeError: tags are a list"): workflow.check_parameters(path, {})
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match=f"{path} is no notebook of format 4 .RecursionError"): workflow.check_parameters(path, {})


@pytest.mark.parametrize("given, expected", [("false", False), ("True", True), ("0", None), ("no", None)])
def test_a_truth_value_from_the_command_line(tmp_path, given, expected):
    notebook(path := tmp_path / "nb.ipynb")
    nb = nbformat.read(path, as_version=4)
    nb.cells[0].source = "on: bool = True"
    nbformat.write(nb, path)
    if expected is not None: assert workflow.check_parameters(path, dict(on=given)) == dict(on=expected)
    else:
        with pytest.raises(ValueError, match=f"parameter 'on' of 'nb' is of type bool, got '{given}'"): workflow.check_parameters(path, dict(on=given))


def told(error: BaseException, monkeypatch, capsys) -> tuple[int, str]:
    "The exit code and the error stream of a command that ends so."
    def ends(**options): raise error
    monkeypatch.setattr(cli, "app", ends)
    with pytest.raises(SystemExit) as e: cli.main()
    return e.value.code, capsys.readouterr().err


@pytest.mark.parametrize("error, said", [
    (EOFError(), "EOFError without a text"), (AssertionError(), "AssertionError without a text"), (StopIteration(), "StopIteration without a text"),
    (ValueError(""), "ValueError without a text"), (OSError(), "OSError without a text"), (KeyError("x"), "KeyError: 'x'"),
    (EOFError("no data left\n in it"), "EOFError: no data left in it"), (MemoryError(), "MemoryError without a text"), (IndexError("too far"), "IndexError: too far"),
], ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "")
def test_an_error_that_nobody_meant_for_a_person_is_named_with_its_place(error, said, monkeypatch, capsys):
    code, err = told(error, monkeypatch, capsys)
    assert code == 1 and err.count("\n") == 1
    assert re.fullmatch(rf"mixrepro: {re.escape(said)}, in .*cli.py, line \d+ \(main\); PYTHONDEVMODE=1 shows the traceback\n", err), err


@pytest.mark.parametrize("error, said", [(ValueError("no\n\n  good"), "mixrepro: no good\n"),
                                         (cli.Interrupted("stopped"), f"mixrepro: stopped: {cli.KEPT}\n")])
def test_a_text_for_a_person_is_one_line(error, said, monkeypatch, capsys): assert told(error, monkeypatch, capsys)[1] == said


def test_the_end_of_a_file_inside_a_verb(monkeypatch, capsys):
    "Typer makes an Abort without a text of it."
    monkeypatch.setattr(cli, "rows", lambda profile: [][0] if profile != "embedded" else exec("raise EOFError"))
    monkeypatch.setattr(sys, "argv", ["mixrepro", "list", "--json"])
    with pytest.raises(SystemExit): cli.main()
    assert capsys.readouterr().err.strip().startswith("mixrepro: EOFError without a text, in ")


def test_a_name_that_the_terminal_cannot_show(tmp_path):
    "Bytes that are no text, and a terminal of ASCII alone."
    done = mixrepro("list", cwd=tmp_path, MIXREPRO_HOME=os.fsdecode(bytes(tmp_path) + b"/\xff\xc3\xa9"), PYTHONIOENCODING="ascii")
    assert "no notebooks under" in sentence(done)


@pytest.mark.parametrize("name", ["MIXREPRO_HOME", "MIXREPRO_DATA"])
@pytest.mark.parametrize("path, why", [("~nosuchuser/x", "nobody of that name has a home folder here"), ("round/x", "a link in it leads to itself")])
def test_a_variable_that_leads_nowhere(name, path, why, tmp_path):
    if path == "round/x":
        (tmp_path / "round").symlink_to(tmp_path / "round")
        try: (tmp_path / "round").resolve()
        except RuntimeError: pass
        else: pytest.skip("this Python follows it as far as it leads: whoever opens it is refused")
    assert f"{name}={path} leads nowhere, {why}" in sentence(mixrepro_here("data", "list", cwd=tmp_path, **{name: path}))


@pytest.mark.parametrize("args, message", [
    (("reproduce", "--cores", "-1"), "Invalid value for '--cores'"),
    (("reproduce", ID, *SMOKE, "-p", "word=a", "-p", "word=b"), "word is given more than once"),
    (("reproduce", ID, *SMOKE, "-p", "profile=gpu"), "profile is given more than once: give it once, the profile by --profile"),
    (("show", "../../x"), "unknown artefact '../../x'"),
    (("reproduce", "{x}$(y)"), "unknown artefact '{x}$(y)'"),
    (("compare", ""), "the other is empty: name a commit or a folder, or . for this one"),
])
def test_more_refusals(args, message, root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr(sys, "argv", ["mixrepro", *args])
    with pytest.raises(SystemExit) as e: cli.main()
    assert e.value.code and message in (err := capsys.readouterr().err) and err.count("\n") == 1, err


@pytest.mark.parametrize("name", ["runs", "runs/.workflow", "runs/.workflow/lock"])
def test_a_store_that_cannot_be_written_says_so(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    if name.endswith("lock"): (tmp_path / name).mkdir()
    else: (tmp_path / name).write_text("")
    with pytest.raises(OSError, match="cannot write to .*runs .*: free or change the folder, or set MIXREPRO_HOME"): workflow.only_one(tmp_path)


@pytest.mark.parametrize("kind", workflow.KINDS_OF_WORK)
def test_what_stands_in_the_place_of_a_folder_of_the_engine_is_named(tmp_path, kind):
    "It passed for a notebook that was killed, or was noticed only by the next thing that was to be drawn."
    (at := tmp_path / workflow.WORK / kind).parent.mkdir(parents=True)
    for put in (lambda: at.write_text(""), lambda: at.symlink_to("nowhere")):
        put()
        with pytest.raises(OSError, match=f"cannot write to {at}, which is no folder: move it away"): workflow.only_one(tmp_path)
        at.unlink()
        workflow.only_one(tmp_path).release()


def test_neither_is_a_folder_in_the_place_of_a_log_taken_for_a_killed_notebook(project):
    for place, what in (("notebooks", "no folder"), ("logs/smoke-mm-theorem1.log", "a folder"), ("notebooks/smoke-mm-theorem1.ipynb", "a folder")):
        (at := project / workflow.WORK / place).parent.mkdir(parents=True, exist_ok=True)
        at.mkdir() if what == "a folder" else at.write_text("")
        done = mixrepro_here("reproduce", "mm-theorem1", *SMOKE, cwd=project)
        assert re.fullmatch(f"mixrepro: cannot write (to )?{at}, which is {what}: move it away", sentence(done))
        at.rmdir() if what == "a folder" else at.unlink()


def test_a_log_on_a_full_disk(tmp_path, monkeypatch):
    "What it could not log is no riddle: the disk is looked at."
    log = tmp_path / workflow.WORK / "logs" / "x.log"
    log.parent.mkdir(parents=True)
    log.write_text("")
    assert workflow.reason(log) == f"({workflow.UNKNOWN})"
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 100, 0))
    assert workflow.reason(log) == f"({workflow.UNKNOWN}, and the disk of {log.parent} is full: free some space and run again)"


def test_a_failure_without_a_log_is_no_failure_before_the_notebooks(tmp_path):
    log = tmp_path / workflow.WORK / "snakemake.log"
    log.parent.mkdir(parents=True)
    late = "WorkflowError in rule a in file \"Snakefile\", line 9:\nOutput x has older modification time than input y. This could indicate a clock skew problem.\n"
    todo = dict(profile="smoke", artefacts=dict(a={}))
    for begun, when in (("", "failed before any notebook did"), ("Job 2: draw a\n", r"failed, and no notebook did \(1 were begun; what was computed before is kept\)")):
        log.write_text(begun + late)
        assert re.match(rf"Snakemake {when} \(Output x has older .* clock skew problem\.\): the whole log is ", cli.complaint([], todo, tmp_path))


@pytest.mark.parametrize("deaths", [1, 9])
def test_a_kernel_that_dies_at_its_start_is_started_once_more(project, tmp_path, deaths):
    "A kernel may lose the race for its ports to another that starts at the same moment; one that dies twice has another reason."
    died, site = tmp_path / "died", tmp_path / "site"
    site.mkdir(), died.mkdir()
    (site / "sitecustomize.py").write_text(f"""import os, sys
if "alone" in sys.orig_argv and len(os.listdir({str(died)!r})) < {deaths}:
    open(os.path.join({str(died)!r}, str(os.getpid())), "w").close(); os._exit(1)""")
    done = mixrepro("reproduce", "mm-theorem1", *SMOKE, cwd=quick(project), PYTHONPATH=os.pathsep.join([str(site), os.environ["PYTHONPATH"]]))
    if deaths == 1: assert done.returncode == 0, done.stdout + done.stderr
    else: assert "Kernel died" in sentence(done)
    assert len(list(died.iterdir())) == min(deaths, 2)
    assert (project / "figures/smoke/manifold_mixup/mm-theorem1.md").is_file() == (deaths == 1)


@pytest.mark.slow
def test_a_kernel_that_is_slow_to_start_is_waited_for(project, tmp_path):
    "Papermill's minute is not enough where others have the machine."
    (tmp_path / "sitecustomize.py").write_text("import sys, time\nif 'alone' in sys.orig_argv: time.sleep(70)")
    done = mixrepro("reproduce", "mm-theorem1", *SMOKE, cwd=quick(project), PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(not warm.able(), reason="this system does not fork as is needed")
def test_a_long_reproduction_forks_its_kernels(project, monkeypatch):
    "What Snakemake and papermill set for a job is what the forking process expects: else each kernel would be a fresh one, in silence."
    monkeypatch.setattr(warm, "ENOUGH", 1)
    notebook(project / NOTEBOOK, f"""import os, sys
from mixrepro.files import home, write_together
before = "torch" in sys.modules and "pandas" not in sys.modules
import pandas
words = f"{{sys.orig_argv[2:4]}} {{before}} {{os.environ['OMP_NUM_THREADS']}} {{pandas.get_option('display.max_columns')}} {{os.getcwd() == str(home())}} {{sys.path.count('')}}"
write_together({{home() / "{FIGURES}" / f"{ID}.{{end}}": words for end in ("svg", "png", "csv", "md")}})""")
    done = mixrepro_here("reproduce", ID, *SMOKE, cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (project / FIGURES / f"{ID}.md").read_text() == f"{[warm.__file__, 'serve']} True 1 20 True 1"


@pytest.mark.parametrize("away, asked, left", [(False, "100/1s", None), (False, "5/1s", "5/1s"), (False, None, None), (True, "100/1s", "100/1s"), (True, "5/1s", "5/1s")])
def test_a_limit_of_jobs_stays_where_somebody_asked_or_jobs_run_elsewhere(away, asked, left):
    "The rules' own lines, on a workflow that is none; the limit is Snakemake's."
    from snakemake.settings.types import MaxJobsPerTimespan
    text = (files("mixrepro") / "workflow" / "Snakefile").read_text()
    lines = text[text.index("if not workflow.non_local_exec and workflow.scheduling_settings:"):].split("\n\n")[0]
    limit = MaxJobsPerTimespan.parse_choice(asked) if asked else None
    workflow = SimpleNamespace(non_local_exec=away, scheduling_settings=SimpleNamespace(max_jobs_per_timespan=limit))
    exec(lines, dict(workflow=workflow, MaxJobsPerTimespan=MaxJobsPerTimespan))
    found = workflow.scheduling_settings.max_jobs_per_timespan
    assert found is None if left is None else vars(found) == vars(MaxJobsPerTimespan.parse_choice(left))


def test_what_snakemake_would_do_without_a_word_is_the_limit_that_is_switched_off():
    from snakemake.cli import get_argument_parser
    from snakemake.settings.types import MaxJobsPerTimespan
    usual = next(a.default for a in get_argument_parser()._actions if "--max-jobs-per-timespan" in a.option_strings)
    assert vars(usual if isinstance(usual, MaxJobsPerTimespan) else MaxJobsPerTimespan.parse_choice(usual)) == vars(MaxJobsPerTimespan.parse_choice("100/1s"))


@pytest.mark.parametrize("what", ["a notebook", "the package", "nothing"])
def test_what_was_drawn_while_its_code_was_edited_does_not_count_as_drawn(tmp_path, monkeypatch, what):
    "It was edited once the plan was made, and is as before when all has ended: its stamp vouched for figures of the edited code."
    path, code = tmp_path / "nbs/a.ipynb", "from mixrepro.files import several; several([])\n" + WRITE.format("a", "a")
    engine, real, real_follow = Engine(tmp_path, a=code), workflow.snakemake, cli.follow
    todo, before = engine.todo(), path.read_text()
    todo["artefacts"]["a"]["written"] = workflow.made_of(*workflow.written_in(path))
    engine.todo = lambda: todo
    def begin(*args, **how):
        if what == "a notebook": path.write_text(before.replace("'new'", "'edited'"))
        if what == "the package": monkeypatch.setitem(workflow.AT_FIRST, "files.py", [1, 1, 1])
        monkeypatch.setitem(workflow.AT_FIRST, "download.py", [1, 1, 1])  # nothing here reaches it
        return real(*args, **how)
    def follow(*args):
        found = real_follow(*args)
        path.write_text(before)
        return found
    monkeypatch.setattr(workflow, "snakemake", begin)
    monkeypatch.setattr(cli, "follow", follow)
    said, named = engine(), {"a notebook": "nbs/a.ipynb", "the package": "mixrepro/files.py", "nothing": ""}[what]
    assert said == (f"a was drawn while {named} was written anew, so nobody knows of which code it is: the same command draws it again" if named else "")
    assert (tmp_path / "figures/a.md").read_text() == ("edited" if what == "a notebook" else "new")
    assert (tmp_path / todo["artefacts"]["a"]["stamp"]).exists() == (what == "nothing")


def test_a_lock_that_is_a_file_is_named_with_its_holder(tmp_path, monkeypatch):
    "Where the file system keeps none, one that was left on another machine is waited for, and nothing said for what."
    import fcntl
    def lacking(*args): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    monkeypatch.setattr(fcntl, "flock", lacking)
    (lock := tmp_path / workflow.WORK / "lock").parent.mkdir(parents=True)
    lock.write_text("4000000\nnode3\n")
    with pytest.raises(workflow.Busy) as e: workflow.only_one(tmp_path)
    assert f"reproducing in {tmp_path} (process 4000000 on node3; if it has ended there, remove {lock}): wait" in str(e.value)


def test_bytes_that_are_no_text(project, monkeypatch):
    "In a page, and in the stamps of a figure and of the report: a codec's complaint named no file, and came again at each call."
    (project / FIGURES).mkdir(parents=True)
    for end in ("svg", "png", "csv", "md"): (project / FIGURES / f"{ID}.{end}").write_bytes(b"\xff")
    said = sentence(mixrepro_here("show", ID, *SMOKE, cwd=project))
    assert re.match(f"mixrepro: {FIGURES}/{ID}.md is no page .*: 'mixrepro reproduce {ID} --profile smoke' draws it again", said), said
    for name in (f"drawn/smoke-{ID}", "reports/smoke"):
        (project / workflow.WORK / name).parent.mkdir(parents=True, exist_ok=True)
        (project / workflow.WORK / name).write_bytes(b"\xff")
    assert cli.adopt_figures("smoke", project) == 1
    (project / "figures/smoke/report.html").write_text("")
    with pytest.raises(ValueError, match=f"{ID}.md is no page .*: 'mixrepro reproduce {ID}' draws it again"): cli.make_report("smoke", project)
    (project / FIGURES / f"{ID}.md").write_text("")
    class Begun(Exception): pass
    def begin(*args, **how): raise Begun
    monkeypatch.setattr(workflow, "snakemake", begin)
    with pytest.raises(Begun): cli.make_report("smoke", project)


def test_what_others_lay_beside_the_package_is_not_read(tmp_path):
    "A Mac's and an editor's files beside modules, and a folder of JupyterLab beside published numbers: nothing could be imported any more."
    shutil.copytree(Path(workflow.__file__).parents[1], tmp_path / "mixrepro", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mixrepro/._core.py").write_bytes(b"\0\5\x16\7\xff")
    (tmp_path / "mixrepro/workflow/.#jobs.py").symlink_to("somebody@host.1")
    (tmp_path / "mixrepro/reported/.ipynb_checkpoints").mkdir()
    code = """from mixrepro.workflow import jobs, warm
assert warm.sources(jobs.package_folder()) and jobs.__file__.startswith(JOBS)
print(jobs.jobs(["mm-theorem1"], "smoke", {}, BASE)["artefacts"]["mm-theorem1"]["made_of"])"""
    make_project(tmp_path / "project")
    code = f"from pathlib import Path; BASE, JOBS = Path({str(tmp_path / 'project')!r}), {str(tmp_path)!r}\n{code}"
    env = dict(os.environ) | dict(PYTHONPATH=os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, text=True, capture_output=True)
    here = workflow.jobs([ID], "smoke", {}, tmp_path / "project")["artefacts"][ID]["made_of"]
    assert done.stdout.strip() == here, done.stdout + done.stderr


def test_no_folder_is_made_for_a_user_whom_the_system_does_not_know(tmp_path, monkeypatch):
    "Of such a one, without HOME, `~` stays as it is: a folder of that name was made in the current one."
    import pwd
    def unknown(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    for name in ("HOME", "XDG_CACHE_HOME"): monkeypatch.delenv(name, raising=False)
    assert workflow.environment(tmp_path)["XDG_CACHE_HOME"] == str(tmp_path / workflow.WORK / "cache") and not [*tmp_path.iterdir()]
