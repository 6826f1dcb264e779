"""A run, a metric, a split and a data set of other content are noticed and named; what decides nothing is not; nothing that was copied passes for another's."""

import json
import os
import resource
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

import mixrepro
from mixrepro import cli
from mixrepro.data.datasets import load
from mixrepro.data.readers import CIFAR10
from mixrepro.data.splits import write_split
from mixrepro.fingerprint import Code, differences
from mixrepro.metrics import catalogue
from mixrepro.methods.catalogue import METHODS, method
from mixrepro.training import allotted, loop, made, store as store_module
from mixrepro.training.loop import train_run
from mixrepro.training.made import AS_IT_IS, WAY, OtherCode, caveats, code_of
from mixrepro.training.spec import Spec, to_json
from mixrepro.training.standing import lines_on, other, seconds_of
from mixrepro.training.store import Run, Store, keep, keep_arrays, kept, kept_arrays, weights_of

SPEC = Spec("digits", "mixup", "tiny-cnn", epochs=1, n_train=60, augment="crop", batch=30)


@pytest.fixture
def edited(monkeypatch):
    "The package with other text in some module, as a process that starts later would read it."
    def edit(module, old, new):
        module = f"mixrepro.{module}"
        assert old in made.CODE.texts[module], "the edit fits"
        code = Code(made.CODE.texts | {module: made.CODE.texts[module].replace(old, new)})
        monkeypatch.setattr(made, "CODE", code)
        made.reached_by.cache_clear()
    monkeypatch.delenv(WAY, raising=False)
    yield edit
    monkeypatch.undo()
    made.reached_by.cache_clear(); AS_IT_IS.clear()


@pytest.fixture(scope="module")
def first(tmp_path_factory) -> Run: return train_run(SPEC, Store(tmp_path_factory.mktemp("made")), "cpu")


@pytest.fixture
def run(first, tmp_path) -> Run:
    shutil.copytree(first.folder.parents[1], tmp_path / "runs")
    return Store(tmp_path / "runs").run(SPEC)


def of_metric(name, run): return catalogue.code_of_metric(name, run)


ALPHA = ("methods.vicinal", "alpha + 1., dtype", "8 * alpha + 1., dtype")


def test_alpha_times_eight_in_draw_lambda(run, edited, capsys):
    assert run.done and other(run) == "" and run.made["torch"] and run.made["torchvision"]
    edited(*ALPHA)
    assert other(run) == "methods.vicinal.draw_lambda changed" and lines_on([run]) == ["1 run of other code: methods.vicinal.draw_lambda changed"]
    before = run.made["code"]
    assert train_run(SPEC, Store(run.folder.parents[1]), "cpu") == run and run.made["code"] != before and other(run) == ""
    assert "methods.vicinal.draw_lambda changed, so it is made again" in capsys.readouterr().out


RELOADS = """
import importlib, json, sys
from pathlib import Path
from mixrepro.methods import vicinal
from mixrepro.training.loop import train_run
from mixrepro.training.spec import from_json
from mixrepro.training.store import Store
spec, path, root = from_json(json.loads(sys.argv[1])), Path(vicinal.__file__), sys.argv[2]
train_run(spec, Store(root + "/one"), "cpu")
path.write_text(path.read_text().replace("alpha + 1., dtype", "8 * alpha + 1., dtype"))
train_run(spec, Store(root + "/two"), "cpu")  # what was imported is as it was
importlib.reload(vicinal)
train_run(spec, Store(root + "/three"), "cpu")
"""


def test_a_module_that_was_read_anew_trains_nothing_under_the_fingerprint_of_before(tmp_path):
    "As %autoreload does: the edit taken back, the run would pass for one of the code of before."
    shutil.copytree(Path(mixrepro.__file__).parent, tmp_path / "mixrepro", ignore=shutil.ignore_patterns("__pycache__"))
    env = os.environ | dict(PYTHONPATH=str(tmp_path), MIXREPRO_HOME=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", RELOADS, json.dumps(to_json(SPEC)), tmp_path], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert "vicinal.py was edited after this process had read it, and may have been read anew, as %autoreload does: start Python again" in done.stderr, done.stdout + done.stderr
    one, two, three = (Store(tmp_path / k).run(SPEC) for k in ("one", "two", "three"))
    assert weights_of(one.folder) == weights_of(two.folder) != "" and one.made["code"] == two.made["code"] and not three.done


@pytest.mark.parametrize("last", ["history.csv", "weights.safetensors", "environment.json", "done.json"])
def test_a_run_that_is_just_being_written_is_no_damaged_one(run, edited, monkeypatch, capsys, last):
    "Another process looks at it between two of its files, of which one is new and one is old: nothing is set aside, and the run ends well."
    edited(*ALPHA)
    real, seen = store_module.write_atomic, []
    def looking(path, data):
        if Path(path).parent == run.folder and Path(path).name == last: seen.append(Run(SPEC, run.folder).done)
        return real(path, data)
    monkeypatch.setattr(store_module, "write_atomic", looking)
    train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    assert seen == [False] and run.done and other(run) == "" and "corrupt" not in capsys.readouterr().err


def test_a_run_that_was_written_while_it_was_looked_at_is_no_damaged_one(run, monkeypatch, capsys):
    "What is read against its sums is new by then, and so are they."
    real = store_module.sha256
    def writing(what):
        if what == run.folder / "history.csv":
            monkeypatch.setattr(store_module, "sha256", real)
            (run.folder / "history.csv").write_text("epoch,loss\n1,0.5\n")
            store_module.vouch(run, run.made)
        return real(what)
    monkeypatch.setattr(store_module, "sha256", writing)
    assert not run.done and run.done and "corrupt" not in capsys.readouterr().err


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_though_their_checksum_fits(bad, run):
    weights = safetensors.torch.load_file(run.folder / "weights.safetensors")
    name = next(k for k, v in weights.items() if v.is_floating_point())
    weights[name].view(-1)[0] = bad
    (run.folder / "weights.safetensors").write_bytes(safetensors.torch.save(weights))
    store_module.vouch(run, run.made)
    assert run.done
    with pytest.raises(store_module.Corrupt, match=f"holds weights that are no numbers: {name} has NaN or infinity in it; remove .*, and the run is trained again"): store_module.open_net(run)


def test_what_was_dear_waits_for_a_decision(run, edited, monkeypatch):
    monkeypatch.setattr(made, "CHEAP", 0.)
    edited(*ALPHA)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=f"unknown value of {WAY} 'as is': did you mean 'as-is'"):
        patch.setenv(WAY, "as is")
        train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    with pytest.raises(OtherCode, match="draw_lambda changed; call with --refresh to make it again .* or with --as-is"): train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    monkeypatch.setenv(WAY, "as-is")
    old = (run.folder / "done.json").read_bytes()
    train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    assert (run.folder / "done.json").read_bytes() == old and caveats() == [f"Of other code, shown as it is (methods.vicinal.draw_lambda changed): {run}."]
    monkeypatch.setenv(WAY, "refresh")
    train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    assert other(run) == ""


@pytest.mark.parametrize("module, old, new, metric, named", [
    ("metrics.calibration", "bins: int = 15", "bins: int = 10", "calibration", "metrics.calibration.ece, metrics.calibration.reliability changed"),
    ("data.corruptions", "/ (255 * sigma)", "/ (200 * sigma)", "corruptions", "data.corruptions._gaussian_law changed"),
    ("data.corruptions", '"fog": [(.2, 3)', '"fog": [(.3, 3)', "corruptions", "data.corruptions.CIFAR changed"),
    ("metrics.linearity", "def linearity(", "def linearity(more=1, *, ", "linearity", "metrics.linearity.linearity changed")], ids=["bins", "gaussian-noise", "table", "metric"])
def test_a_metric_of_other_code(module, old, new, metric, named, run, edited):
    "And only that one, and not the run."
    before = {name: of_metric(name, run) for name in (metric, "clean", "fgsm")}
    edited(module, old, new)
    assert made.sentence_of(differences(before[metric].parts, of_metric(metric, run).parts)) == named
    assert all(of_metric(name, run).name == before[name].name for name in ("clean", "fgsm")) and other(run) == ""


def test_a_metric_of_other_code_is_measured_again(run, edited, capsys, monkeypatch):
    first = catalogue.measure([run], "linearity-on-50", "cpu")
    monkeypatch.setattr(catalogue, "fill", None)
    assert catalogue.measure([run], "linearity-on-50", "cpu") == first, "it is read"
    monkeypatch.undo()
    edited("metrics.catalogue", "metric(nets, test.subset(balanced(test.y, n)))", "metric(nets, test.subset(n))")
    assert catalogue.measure([run], "linearity-on-50", "cpu") == first
    assert "linearity-on-50 of 1 run: metrics.catalogue.on_first changed, so it is made again" in capsys.readouterr().out
    edited("metrics.catalogue", "metric(nets, test.subset(n))", "metric(nets, test)")
    monkeypatch.setattr(made, "CHEAP", 0.)
    with pytest.raises(OtherCode, match="linearity-on-50 of 1 run: metrics.catalogue.on_first changed; call with --refresh"): catalogue.measure([run], "linearity-on-50", "cpu")
    monkeypatch.setenv(WAY, "as-is")
    monkeypatch.setattr(catalogue, "fill", None)
    assert catalogue.measure([run], "linearity-on-50", "cpu") == first and "linearity-on-50 of 1 run" in caveats()[0]


def test_a_change_of_cutout_is_no_change_of_any_other_method(edited):
    specs = {m: Spec("digits", m, "tiny-cnn") for m, kind in METHODS.items() if kind.trains == "classifier" and not kind.unlabelled and not method(m).needs()}
    before = {m: code_of(s).name for m, s in specs.items()}
    edited("methods.cutout", "class Cutout(", "class Cutout(object, ")
    changed = {m for m, s in specs.items() if code_of(s).name != before[m]}
    assert changed == {"cutout"} and {"erm", "mixup", "manifold-mixup", "cutmix"} <= before.keys()


@pytest.mark.parametrize("module, old, new", [
    ("methods.vicinal", '"Mixing coefficients from Beta(alpha, alpha)."', '"Shares."'), ("methods.vicinal", "# of the draw; () is", "# () is"),
    ("methods.vicinal", "    g = torch._standard_gamma", "\n    # drawn\n\n    g = torch._standard_gamma"), ("training.loop", 'print(f"{run}: going on after', 'print(f"{run}: on after'),
    ("training.loop", '"One pass over the training set."', '"A pass."'),
    ("training.store", "content = {\"spec.json\"", "# what it is made of\n    content = {\"spec.json\"")], ids=["docstring", "comment", "blank", "print", "another docstring", "store"])
def test_what_decides_no_weight_is_no_change(module, old, new, run, edited):
    edited(module, old, new)
    assert other(run) == "" == "".join(lines_on([run]))


@pytest.mark.parametrize("module, old, new, name", [("training.store", "{k: v.detach().to(\"cpu\", copy=True).contiguous() for k, v in net.state_dict().items()}", "{k: v.half() for k, v in net.state_dict().items()}", "finish"),
                                                    ("training.store", "writer.writerows(rows)", "writer.writerows(rows[:-1])", "to_csv"), ("training.loop", "_train(run, *parts, device, made)", "_train(run, *parts, 'cpu', made)", "train_run")])
def test_what_writes_a_run_down_counts_once_it_is_another(module, old, new, name, run, edited):
    assert made.written_otherwise() == {}, "keep the numbers as they are and write the new digest into AS_EVER, or all runs are made again"
    edited(module, old, new)
    assert other(run) == f"{module}.{name} changed"


def test_whatever_runs_is_in_the_fingerprint(tmp_path):
    "Each function of the package that trains or measures, as Python's own profiler sees it; what only checks or keeps is told by name."
    folder = Path(mixrepro.__file__).parent
    def executed(call):
        seen = set()
        def note(frame, event, arg):
            code = frame.f_code
            if event == "call" and code.co_filename.startswith(str(folder)):
                seen.add(f"{'.'.join(Path(code.co_filename).relative_to(folder).with_suffix('').parts)}:{code.co_qualname.split('.')[0]}")
        sys.setprofile(note)
        try: call()
        finally: sys.setprofile(None)
        return {k for k in seen if "<" not in k}
    beside = {b.removeprefix("mixrepro.") for b in made.BESIDE} | {"networks.zoo:arguments", "networks.zoo:builder_of", "data.datasets:tested_on", "data.images:typed", "training.loop:commit", "methods.attacks:faint", "methods.base:kept_by"}  # the last two only within checks
    keeping = ("core:", "files:", "guards:", "outside:", "fingerprint:", "data.contents:", "data.sources:", "metrics.catalogue:", *(f"training.{m}:" for m in ("made", "store", "standing", "spec", "allotted", "progress")))
    def missed(seen, parts): return {k for k in seen - parts.keys() - beside if not k.startswith(keeping) and not k.partition(":")[2].lstrip("_").startswith(("check", "need", "warn"))}
    store, few = Store(tmp_path), dict(epochs=1, augment="crop", batch=20)
    for spec in (SPEC, Spec("digits", "cutout", "mlp", n_train=40, **few), Spec("photo-digits-16", "manifold-mixup", "small-cnn", n_train=40, **few),
                 Spec("digits", "varmixup", "tiny-cnn", n_train=40, **few, method_args=dict(vae_network="vae-small", vae_epochs=1)),
                 Spec("digits", "ssl-mixup", "tiny-cnn", split="digits-l50-v1100", **few)):
        for s in spec.needs.values(): train_run(s, store, "cpu")
        seen = executed(lambda: train_run(spec, store, "cpu"))
        assert len(seen) > 90 and not missed(seen, code_of(spec).parts), spec.method
    run = store.run(SPEC)
    for name in ("clean", "corruptions-on-10", "fgsm-pixels-on-50", "flips-on-2"):
        seen = executed(lambda: catalogue.measure([run], name, "cpu"))
        parts = of_metric(name, run).parts | of_metric("logits", run).parts
        assert len(seen) > 20 and not missed(seen, parts), name


def test_a_checkpoint_of_other_code_is_not_gone_on_from(tmp_path, edited, monkeypatch, capsys):
    store, real, spec = Store(tmp_path), loop.train_epoch, replace(SPEC, epochs=2)
    def stop(*args):
        if args[-1] == 1: raise RuntimeError("stopped")
        return real(*args)
    monkeypatch.setattr(loop, "train_epoch", stop)
    with pytest.raises(RuntimeError, match="stopped"): train_run(spec, store, "cpu")
    monkeypatch.setattr(loop, "train_epoch", real)
    edited(*ALPHA)
    run = train_run(spec, store, "cpu")
    said = capsys.readouterr().out
    assert "set aside as checkpoint.pt.other-code-1 and the run begins anew: methods.vicinal.draw_lambda changed" in said and "going on after" not in said
    assert run.done and other(run) == "" and len(store_module.history(run)) == 2


def test_a_changed_data_file(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    folder = tmp_path / CIFAR10[0].folder
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(bytes(1000))
    spec = Spec("cifar10", "erm", "tiny-cnn")
    then = made.made_now(spec)
    assert then["data"] and made.since(tmp_path, spec, then) == ""
    (folder / "data_batch_1.bin").write_bytes(bytes(999) + b"1")
    assert made.since(tmp_path, spec, then) == "the files of cifar10 changed"
    shutil.rmtree(folder)
    assert made.since(tmp_path, spec, then) == "", "where the data are not, nobody knows"


def test_a_split_that_changes_while_a_run_is_prepared(tmp_path, monkeypatch):
    "What is written down is what was read, not what stands there once the networks that it needs are trained."
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    y = load("digits", "train").y
    mine = write_split("digits", y, 50, 1).rename(tmp_path / "splits" / "digits-lmine.json")
    spec, was, real = replace(SPEC, n_train=0, split="digits-lmine"), made.indices_of(mine), loop.start
    def start(*args):
        parts = real(*args)
        write_split("digits", y, 50, 2).rename(mine)
        return parts
    monkeypatch.setattr(loop, "start", start)
    run = train_run(spec, Store(tmp_path / "runs"), "cpu")
    assert run.made["split"] == was and other(run) == "the split digits-lmine changed"


def test_a_changed_split_file(tmp_path, monkeypatch):
    "Under its own name it is noticed; under a name that says which indices it holds it is refused."
    monkeypatch.setenv("MIXREPRO_DATA", str(tmp_path))
    y = load("digits", "train").y
    mine = write_split("digits", y, 50, 1).rename(tmp_path / "splits" / "digits-lmine.json")
    spec = replace(SPEC, n_train=0, split="digits-lmine")
    then = made.made_now(spec)
    mine.write_text(write_split("digits", y, 50, 2).read_text())
    assert made.since(tmp_path, spec, then) == "the split digits-lmine changed"
    for text in ("", "null", "[]", "{"):
        mine.write_text(text)
        assert made.since(tmp_path, spec, then) == "the split digits-lmine changed", "a damaged one is another"
    mine.unlink()
    assert made.since(tmp_path, spec, then) == "", "one that is gone changes no run that stands"
    twice = json.loads(write_split("digits", y, 50, 1).read_text())
    mine.write_text(json.dumps(twice | dict(validation=twice["labelled"][:1])))
    with pytest.raises(ValueError, match="digits-lmine.json names .* more than once"): train_run(spec, Store(tmp_path / "runs"), "cpu")
    mine.unlink()
    write_split("digits", y, 50, 1).rename(mine)
    named = write_split("digits", y, 50, 3)
    named.write_text(mine.read_text())
    with pytest.raises(ValueError, match="digits-l50-v0-s3.json holds other indices than its name draws: give it a name of its own"):
        train_run(replace(spec, split="digits-l50-v0-s3"), Store(tmp_path / "runs"), "cpu")


def test_a_folder_of_another_seed_is_not_this_run(run, capsys):
    twin = Store(run.folder.parents[1]).run(replace(SPEC, seed=1))
    shutil.copytree(run.folder, twin.folder)
    assert not twin.done and f"is corrupt (it is the run {run}): it was set aside" in capsys.readouterr().err
    assert run.done and not twin.folder.exists() and [r.id for r in Store(run.folder.parents[1]).runs()] == [str(run)]


@pytest.mark.parametrize("sealed", [True, False], ids=["", "of an older version"])
def test_an_edited_spec_whose_sum_was_mended_is_not_this_run(sealed, run, capsys):
    said, path = json.loads((run.folder / "done.json").read_text()), run.folder / "spec.json"
    if not sealed: said = {f: said[f] for f in store_module.WRITTEN}
    what = json.loads(path.read_text())
    what["spec"]["lr"] = .5
    path.write_text(json.dumps(what))
    said["spec.json"] = store_module.sha256(path)
    (run.folder / "done.json").write_text(json.dumps(said))
    assert not run.done
    assert ("done.json is corrupt (its checksum does not match)" if sealed else "is corrupt (its spec.json is that of digits/mixup-tiny-cnn-s0-") in capsys.readouterr().err


def test_a_metric_of_another_run_or_of_other_weights_is_not_this_ones(run, capsys):
    twin = Store(run.folder.parents[1]).run(replace(SPEC, seed=1))
    keep(run, "clean", dict(accuracy=1.)); keep_arrays(run, "clean", dict(a=torch.ones(2)))
    shutil.copytree(run.folder / "metrics", twin.folder / "metrics")
    assert kept(twin, "clean") is None and kept_arrays(twin, "clean") is None
    assert capsys.readouterr().err.count(f"is corrupt (it is {run}/clean)") == 2
    assert kept(run, "clean") and kept_arrays(run, "clean")
    net = store_module.network_of(SPEC, (1, 32, 32), 10)
    store_module.finish(run, net, [dict(epoch=1)], {}, run.made)
    assert run.done and kept(run, "clean") is None and kept_arrays(run, "clean") is None, "trained again"


def test_a_store_of_before_works_and_is_adopted_once(run, capsys):
    "As an older version left it: no names, no seals."
    said = json.loads((run.folder / "done.json").read_text())
    (run.folder / "done.json").write_text(json.dumps({f: said[f] for f in store_module.WRITTEN}))
    shutil.rmtree(run.folder.parents[1] / ".code")
    sealed = dict(sha256=store_module.sha256(json.dumps(dict(accuracy=.5)).encode()), value=dict(accuracy=.5))
    (run.folder / "metrics").mkdir()
    (run.folder / "metrics" / "linearity.json").write_text(json.dumps(sealed))
    store = Store(run.folder.parents[1])
    assert train_run(SPEC, store, "cpu") == run and kept(run, "linearity", "any") == dict(accuracy=.5) and other(run) == ""
    assert "1 run without a fingerprint" in lines_on([run])[0] and "mixrepro adopt" in lines_on([run])[0]
    assert catalogue.adopt(store) == 1 and catalogue.adopt(store) == 0 and lines_on([run]) == []
    assert run.done and run.made["code"] == code_of(SPEC).name and kept(run, "linearity", of_metric("linearity", run).name) == dict(accuracy=.5)
    assert kept(run, "linearity", "other") is None and capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["[]", "null", "[" * 100_000, "{", '"x"', "3"])
def test_a_damaged_done_json_is_set_aside(text, run, capsys):
    (run.folder / "done.json").write_text(text)
    assert not run.done and weights_of(run.folder) == "" and "done.json is corrupt" in capsys.readouterr().err
    assert run.folder.is_dir(), "its other files stay"


@pytest.mark.parametrize("made", [3, [1], "x", dict(code=["a"]), dict(needs=[1]), dict(needs=dict(vae=1)), dict(code="", data=None)], ids=str)
def test_a_run_that_says_nothing_of_what_made_it_is_set_aside_though_it_is_sealed(made, run, capsys):
    said = json.loads((run.folder / "done.json").read_text()) | dict(made=made)
    said.pop("sealed")
    (run.folder / "done.json").write_text(json.dumps(said | dict(sealed=store_module.sha256(json.dumps(said, sort_keys=True).encode()))))
    assert lines_on([run]) == [] and not run.done and "done.json is corrupt (it is not what was written)" in capsys.readouterr().err


def made_newer(run, where):
    "Have a newer version have made it: a later field that has its default is no part of the name, which is the same in both."
    what, said = (json.loads((run.folder / f).read_text()) for f in ("spec.json", "done.json"))
    if where == "a field of the run": what["spec"]["of_a_newer_version"] = 0
    elif where == "a hyper-parameter": what["spec"]["method_args"]["of_a_newer_version"] = 0
    else: said["made"]["of_a_newer_version"] = [1]
    (run.folder / "spec.json").write_text(json.dumps(what))
    said = {k: v for k, v in said.items() if k != "sealed"} | {"spec.json": store_module.sha256(run.folder / "spec.json")}
    (run.folder / "done.json").write_text(json.dumps(said | dict(sealed=store_module.sha256(json.dumps(said, sort_keys=True).encode()))))


WHERE = pytest.mark.parametrize("where", ["a field of the run", "a hyper-parameter", "what made it"])


@WHERE
def test_a_run_of_a_newer_version_is_neither_set_aside_nor_trained_again(where, run, capsys):
    made_newer(run, where)
    before = {f.name: f.read_bytes() for f in run.folder.iterdir() if f.is_file()}
    with pytest.raises(store_module.Newer, match=f"of a newer version of mixrepro.*of_a_newer_version.*call that one, or move {run.folder} away"):
        train_run(SPEC, Store(run.folder.parents[1]), "cpu")
    assert {f.name: f.read_bytes() for f in run.folder.iterdir() if f.is_file()} == before and capsys.readouterr().err == ""


@WHERE
def test_the_doctor_names_runs_of_a_newer_version(where, run, capsys, monkeypatch):
    base, train = run.folder.parents[2], run.folder.parents[2] / "nbs/training/train.ipynb"
    train.parent.mkdir(parents=True)
    train.write_text("{}")
    monkeypatch.setattr(cli, "absent", lambda extra: ["papermill"])  # no notebook is executed
    def said(): return [what for ok, what in cli.checks(base) if ok is None and "cannot read" in what]
    assert said() == []
    made_newer(run, where)
    (line,) = said()
    assert line.startswith(f"1 run that this version cannot read and leaves alone, {run}: {run.folder}") and "of_a_newer_version" in line
    assert Store(base / "runs").runs() == [] and catalogue.adopt(Store(base / "runs")) == 0 and capsys.readouterr().err == ""


def test_a_run_that_is_made_again_meanwhile_has_no_time_of_its_end(run, monkeypatch):
    there = Store(run.folder.parents[1]).runs()
    monkeypatch.setattr(Store, "runs", lambda self: there)
    (run.folder / "done.json").unlink()
    assert allotted.timed(Store(run.folder.parents[1])).keys() == {allotted.kind(SPEC)}


def test_a_spec_that_is_nested_too_deep_is_passed_over(run):
    (run.folder / "spec.json").write_text("[" * 100_000)
    assert Store(run.folder.parents[1]).runs() == [] and Store(run.folder.parents[1]).unread() == {}


@pytest.mark.parametrize("payload", [b"", b"no archive", b"PK\x03\x04" + bytes(50)])
def test_a_sealed_checkpoint_that_cannot_be_read_is_set_aside(payload, run, capsys):
    (run.folder / "checkpoint.pt").write_bytes(store_module.seal(payload))
    assert store_module.load_checkpoint(run) is None and "checkpoint.pt is corrupt (PyTorch cannot read it" in capsys.readouterr().err


@pytest.mark.parametrize("lacks", ["net", "opt", "rngs", "rows", "spent"])
def test_a_checkpoint_that_lacks_something_is_set_aside(lacks, run, capsys):
    "As one of another version would: the run begins anew, and how much is left of it can still be said."
    whole = dict(net={}, opt={}, rngs={}, rows=[{}], spent=1.)
    store_module.save_checkpoint(run, {k: v for k, v in whole.items() if k != lacks})
    assert allotted.seconds_left(run, {allotted.kind(run.spec): 2.}) in (0., 2.)
    assert loop.to_go_on(run, {}) is None and f"checkpoint.pt is corrupt (it has no {lacks})" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [dict(made=[1]), dict(made="x"), dict(rows=3), dict(rows=[{}] * 9)], ids=str)
def test_a_checkpoint_of_another_form_is_set_aside(wrong, run, capsys):
    store_module.save_checkpoint(run, dict(net={}, opt={}, rngs={}, rows=[{}], spent=1.) | wrong)
    assert loop.to_go_on(run, {}) is None and "checkpoint.pt is corrupt (it " in capsys.readouterr().err


def test_what_cannot_be_set_aside_is_named(run, monkeypatch):
    "In a store that can be read only."
    def refuse(*_): raise PermissionError(13, "Permission denied", "x")
    keep(run, "clean", dict(accuracy=1.))
    path = run.folder / "metrics" / "clean.json"
    for text in ("{}", '{"made": {}, "sha256": "0"}', "null", "3"):
        path.write_text(text)
        with monkeypatch.context() as patch, pytest.raises(PermissionError) as e:
            patch.setattr(os, "replace", refuse)
            kept(run, "clean")
        assert "clean.json is corrupt (it is not what was written) and cannot be set aside, permission denied: make its folder writable" in str(e.value)
        assert kept(run, "clean") is None and not path.exists()


def claiming(made="{}", **tensor) -> bytes:
    "A safetensors file with the head of a hostile writer."
    head = json.dumps(dict(__metadata__=dict(made=made, sha256="0" * 64), a=dict(dtype="F32", shape=[3], data_offsets=[0, 12]) | tensor)).encode()
    return len(head).to_bytes(8, "little") + head + bytes(12)


HEADS = {"terabytes": claiming(shape=[10 ** 12], data_offsets=[0, 4 * 10 ** 12]), "more than there is": claiming(shape=[10 ** 12]), "more than an integer holds": claiming(shape=[2 ** 62, 2 ** 62]),
         "a head of terabytes": (1 << 40).to_bytes(8, "little"), "objects": claiming(dtype="O"), "numbers of four bits": claiming(dtype="F4", shape=[24]), "other numbers": claiming(dtype="I32"), "fewer than none": claiming(shape=[-3]),
         "cut": claiming()[:-1], "an owner nested deeply": claiming("[" * 100_000), "an owner that is a number": claiming("3"), "an owner that is a list": claiming("[]"), "an owner that is no JSON": claiming("{")}


@pytest.mark.parametrize("what", HEADS)
def test_the_head_of_stored_arrays_is_not_believed(what, run, capsys):
    (path := run.folder / "metrics/logits.safetensors").parent.mkdir(exist_ok=True)
    path.write_bytes(HEADS[what])
    assert kept_arrays(run, "logits") is None and not path.exists() and capsys.readouterr().err.count("logits.safetensors is corrupt (it") == 1


@pytest.mark.parametrize("which", ["done.json", "spec.json", "environment.json", "metrics/clean.json"])
def test_a_text_of_gigabytes_is_not_read_into_memory(which, run, capsys):
    keep(run, "clean", dict(accuracy=1.))
    with open(run.folder / which, "wb") as f: f.truncate(5 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (kept(run, "clean") is None) == (which in ("done.json", "metrics/clean.json"))
    assert seconds_of(run) is None or which != "environment.json"
    lines_on([run]); Store(run.folder.parents[1]).runs()
    said = capsys.readouterr().err
    assert "it is larger than 64 MiB" in said or which in ("spec.json", "environment.json")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400 << 10


@pytest.mark.parametrize("name", store_module.WRITTEN)
def test_a_file_that_goes_while_it_is_looked_at_is_no_fault(name, run, monkeypatch, capsys):
    "Another process makes the run again."
    real = store_module.sha256
    def going(what):
        if isinstance(what, Path) and what.name == name: what.unlink(missing_ok=True)
        return real(what)
    monkeypatch.setattr(store_module, "sha256", going)
    assert not run.done and capsys.readouterr().err == "" and (run.folder / "done.json").is_file()


def test_what_was_measured_says_with_which_packages(run):
    keep(run, "clean", dict(accuracy=1.)); keep_arrays(run, "clean", dict(a=torch.ones(2)))
    one, two = store_module.read_metric(run.folder / "metrics/clean.json"), store_module.read_arrays(run.folder / "metrics/clean.safetensors")
    assert all({"torch", "numpy", "scipy"} <= found[1]["versions"].keys() and all(found[1]["versions"].values()) for found in (one, two))
    assert run.made["numpy"] and run.made["scipy"] and kept(run, "clean") == dict(accuracy=1.)


def test_stored_arrays_that_nobody_sealed_are_not_read(run, capsys):
    "Five gigabytes of holes."
    size = 5 << 30
    head = json.dumps(dict(a=dict(dtype="U8", shape=[size], data_offsets=[0, size]))).encode()
    (path := run.folder / "metrics/logits.safetensors").parent.mkdir(exist_ok=True)
    with open(path, "wb") as f: f.write(len(head).to_bytes(8, "little") + head); f.truncate(8 + len(head) + size)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert kept_arrays(run, "logits") is None and "its checksum does not match" in capsys.readouterr().err
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
