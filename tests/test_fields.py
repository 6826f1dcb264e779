"""Every field says what may stand in it, and is looked at when a run is written down: before anything is trained, by the name that was typed."""

import dataclasses
import json
import math
import typing
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

from mixrepro.core import READERS, Choices, brought, lies_in
from mixrepro.data.whitening import Whitening
from mixrepro.methods.catalogue import METHODS, PARTS, method
from mixrepro.methods.mixup import Mixup
from mixrepro.networks.zoo import NETWORKS, arguments, kind_of, networks_of
from mixrepro.training import loop
from mixrepro.training.loop import train_run
from mixrepro.training.spec import Optimisation, Spec, from_json, name_of, to_json
from mixrepro.training.store import Store

SPEC = Spec("digits", "mixup", "small-cnn", epochs=3)
WHOLE = ("classifier", "vae", "source", "gan_args")  # of a method: fields of another run, looked at together
FREE = {("Spec", "split"), ("Spec", "method_args"), ("Spec", "network_args"), ("Decoder", "classifier")}  # looked at as a whole
NET = {m: networks_of(kind.trains)[0] for m, kind in METHODS.items()} | {"decoder": "decoder-small"}


def a_run(name: str, **args) -> Spec:
    "A run of a method with hyper-parameters."
    return Spec("factors-a" if name == "factor-mixup" else "digits", name, NET[name], split="digits-l100-v200" if METHODS[name].unlabelled else "", method_args=args)


def of_type(kind): return typing.get_args(kind)[0] if typing.get_origin(kind) is tuple else kind


def told(kind) -> list[tuple]:
    "The fields of a class, with their types and what is allowed."
    return [(f.name, f.type, f.metadata.get("allowed")) for f in dataclasses.fields(kind)]


FIELDS = [(m, *field) for m, kind in METHODS.items() for field in told(kind) if not (isinstance(field[1], type) and issubclass(field[1], Choices))]
ARGUMENTS = [(n, arg, *about) for n in NETWORKS for arg, about in arguments(n).items()]
RUN = [("Spec", *field) for field in told(Spec)]


def stated(kind, allowed) -> bool:
    "Whether a field's type can be read and its bounds are said; True or False has no others."
    if callable(allowed): allowed = allowed()
    if of_type(kind) in (int, float): return isinstance(allowed, range) or isinstance(lies_in(0, allowed), bool)
    return of_type(kind) is bool or (of_type(kind) is str and len(allowed) > 0)


def worded(value) -> str:
    "A part of a test's name: the same in every process, so without the addresses of functions."
    return value if isinstance(value, str) else ""

@pytest.mark.parametrize("owner, name, kind, allowed", [*FIELDS, *ARGUMENTS, *RUN], ids=worded)
def test_every_field_says_what_may_stand_in_it(owner, name, kind, allowed):
    if (owner, name) in FREE or name in WHOLE: return
    assert of_type(kind) in READERS and stated(kind, allowed), f"{name} of {owner}: declare its type, and what is allowed"


@pytest.mark.parametrize("kind", [*PARTS.values(), Whitening, Optimisation], ids=lambda k: k.__name__)
def test_every_part_too(kind): assert all(stated(t, a) for _, t, a in told(kind))


def wrong(kind, allowed) -> list:
    "What cannot stand in a field."
    if callable(allowed): allowed = allowed()
    each = of_type(kind)
    bad = {bool: ["maybe", 2, None, math.nan], int: [2.5, math.nan, math.inf, True, "many", None], float: [math.nan, True, "much", None, [1.]],
           str: ["nosuchname", 3, None, True]}[each][:]
    if isinstance(allowed, range): bad += [allowed[0] - 1]
    elif isinstance(allowed, str):
        low, high = map(float, allowed[1:-1].split(","))
        bad += [v for v in (low, low - 1, high, high + 1, -math.inf, math.inf) if not lies_in(v, allowed)]
    return [(b,) for b in bad] + [3, "01"] if each is not kind else bad


def refused(make, name, value):
    with pytest.raises(ValueError) as e: make(value)
    said = str(e.value)
    assert name in said.split(" must ")[0] or said.startswith(f"unknown {name} "), said
    assert "\n" not in said and len(said) < 400


@pytest.mark.parametrize("owner, name, kind, allowed", [f for f in FIELDS if f[1] not in WHOLE], ids=worded)
def test_what_cannot_be_is_refused_when_a_run_is_written_down(owner, name, kind, allowed):
    for value in wrong(kind, allowed): refused(lambda v: a_run(owner, **{name: v}), name, value)


@pytest.mark.parametrize("owner, name, kind, allowed", ARGUMENTS, ids=worded)
def test_an_argument_of_a_network_too(owner, name, kind, allowed):
    method = next(m for m, kind in METHODS.items() if kind.trains == kind_of(owner) and not kind.unlabelled)
    for value in wrong(kind, allowed): refused(lambda v: Spec("digits", method, owner, network_args={name: v}), name, value)


@pytest.mark.parametrize("owner, name, kind, allowed", [f for f in RUN if (f[0], f[1]) not in FREE], ids=worded)
def test_a_field_of_the_run_itself_too(owner, name, kind, allowed):
    for value in wrong(kind, allowed): refused(lambda v: replace(SPEC, **{name: v}), name, value)


@pytest.mark.parametrize("make, sentence", [
    (lambda: a_run("mixup", alhpa=1.), "unknown hyper-parameter of 'mixup' 'alhpa': did you mean 'alpha'"),
    (lambda: a_run("varmixup", per="exmaple"), "unknown per 'exmaple': did you mean 'example'"),
    (lambda: a_run("varmixup", kernel="imp"), "unknown kernel 'imp': did you mean 'imq'"),
    (lambda: a_run("adv-varmixup", start="unifrom"), "unknown start 'unifrom': did you mean 'uniform'"),
    (lambda: a_run("varmixup", vae_network="resnet18"), "unknown vae_network 'resnet18': Known: vae, vae-small"),
    (lambda: a_run("varmixup", vae_dataset="digit"), "unknown vae_dataset 'digit': did you mean 'digits"),
    (lambda: a_run("varmixup", vae=dict(epoch=1)), "unknown field of a run 'epoch': did you mean 'epochs'"),
    (lambda: a_run("varmixup", vae=dict(lr=-1)), "the vae that 'varmixup' needs: lr must be above 0"),
    (lambda: a_run("varmixup", vae=3), "vae must be names with values, got 3"),
    (lambda: a_run("varmixup", gamma="strong"), "gamma must be a number, at least 0, got 'strong'"),
    (lambda: a_run("mixup", labels=dict(name="logistic", s=0)), "s must be above 0, got 0.0: it is the width"),
    (lambda: a_run("mixup", noise=dict(name="feature-noise", factor="bata")), "unknown factor 'bata': did you mean 'beta'"),
    (lambda: a_run("decoder", classifier=dict(method="erm", network="mlpp")), "the classifier that 'decoder' needs: unknown network 'mlpp': did you mean 'mlp'"),
    (lambda: a_run("decoder", classifier=dict(method="erm", network="mlp", epoch=1)), "unknown field of a run 'epoch': did you mean 'epochs'"),
    (lambda: a_run("decoder", classifier=dict(method="erm", network="mlp", lr=math.nan)), "the classifier that 'decoder' needs: lr must be a number"),
    (lambda: a_run("fine-tune", source=dict(dataset="imagenett", method="erm")), "the source that 'fine-tune' needs: unknown dataset 'imagenett': did you mean 'imagenet'"),
    (lambda: a_run("fine-tune", source=dict(dataset="digits", method="erm", epoch=1)), "unknown field of a run 'epoch': did you mean 'epochs'"),
    (lambda: a_run("fine-tune", source=dict(dataset="digits", method="mmd-vae")), "the source that 'fine-tune' needs: the method 'mmd-vae' trains networks of the kind 'autoencoder'"),
    (lambda: a_run("fine-tune", source=dict(method="erm")), "the source must be named by its dataset and method at least"),
    (lambda: replace(SPEC, resize=8, whiten="zca"), "resize and whiten do not go together"),
    (lambda: a_run("decoder", classifier=dict(method="erm", network="vae")), "'erm' trains networks of the kind 'classifier'"),
    (lambda: replace(SPEC, network_args=dict(widht=3)), "unknown argument of 'small-cnn' 'widht': did you mean 'width'"),
    (lambda: replace(SPEC, n_train=1), "n_train must be 0, for all training images, or at least 2, got 1"),
    (lambda: replace(SPEC, optimizer="sgd", nesterov=True, momentum=0), "nesterov needs a momentum above 0"),
    (lambda: replace(SPEC, method="mmd-vae"), "but 'small-cnn' is of the kind 'classifier'"),
    (lambda: replace(SPEC, method="gan"), "such as sngan, sngan-small, but 'small-cnn'"),
    (lambda: replace(SPEC, network="sngan"), "but 'sngan' is of the kind 'gan'"),
    (lambda: a_run("genmix-gan", gan_args=dict(widht=3)), "the gan that 'genmix-gan' needs: unknown argument of 'point-gan' 'widht': did you mean 'width'"),
    (lambda: a_run("genmix-gan", gan_network="sngan"), "unknown gan_network 'sngan': did you mean"),
    (lambda: a_run("genmix", lams=(.5, 1)), r"each of lams must be in \(0, 1\), got 1.0: at 0 and 1 the point is no mixture"),
    (lambda: replace(SPEC, milestones="12"), "milestones must be a list, got '12'"), (lambda: replace(SPEC, milestones=3), "milestones must be a list, got 3"),
    (lambda: replace(SPEC, method_args=3), "method_args must be names with values, got 3"),
    (lambda: Mixup(alpha=10 ** 400), "alpha must be a number, above 0"), (lambda: Mixup(alpha=-0.), "alpha must be above 0, got 0.0: for no mixing")])
def test_sentences(make, sentence):
    with pytest.raises(ValueError, match=sentence): make()


def test_nothing_is_trained_before(tmp_path, monkeypatch):
    "Neither when a run is written down nor when what it needs does not fit: the store stays empty."
    trained = []
    monkeypatch.setattr(loop, "train_epoch", lambda *a: trained.append(a))
    store = Store(tmp_path)
    for make, sentence in [(lambda: replace(a_run("varmixup"), split="digits-l7-v0"), "must be a multiple of the 10 classes"),
                           (lambda: replace(a_run("varmixup", vae_dataset="digits-0to4"), n_train=10_000), "cannot take 10000 of 1258"),
                           (lambda: a_run("varmixup", vae_dataset="synthetic-blobs"), "got a VAE of images"),
                           (lambda: a_run("decoder", classifier=dict(method="erm", network="small-cnn"), stage=1), "states must have shape"),
                           (lambda: a_run("decoder", classifier=dict(method="erm", network="tiny-cnn"), stage=9), "has stages 0")]:
        with pytest.raises(ValueError, match=sentence): train_run(make(), store, "cpu")
    assert not trained and not list(tmp_path.glob("*/*"))


def test_a_method_that_a_user_writes_is_looked_at_by_declaration():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Mine(Mixup):
        name = "mine"
        depth: int = dataclasses.field(default=1, metadata=dict(allowed="[1, 3]"))
        def __post_init__(self): object.__setattr__(self, "twice", 2 * self.depth)  # calls no other
    assert Mine(depth="2").twice == 4
    for bad in (dict(depth=4), dict(depth=1.5), dict(alpha=math.nan), dict(per="exmaple")):
        with pytest.raises(ValueError, match=f"{next(iter(bad))}"): Mine(**bad)


# ---- equal specs have one name --------------------------------------------------------------------------------------

TYPED = [dict(lr=1), dict(lr="1"), dict(lr=np.float64(1)), dict(lr=torch.tensor(1.)), dict(lr=Fraction(1)), dict(lr=np.int32(1)), dict(lr=" 1.0 ")]


@pytest.mark.parametrize("changes", TYPED, ids=str)
def test_what_was_typed_is_brought_to_the_type_of_its_field(changes):
    one, other = replace(SPEC, lr=1.), replace(SPEC, **changes)
    assert one == other and repr(one) == repr(other) and name_of(one) == name_of(other)
    assert json.dumps(to_json(one)) == json.dumps(to_json(other)) and from_json(json.loads(json.dumps(to_json(other)))) == one


PAIRS = [(dict(epochs=3.), {}), (dict(seed=np.int64(0)), {}), (dict(seed="0"), {}), (dict(weight_decay=0), {}), (dict(weight_decay=-0.), {}),
         (dict(nesterov=0), {}), (dict(nesterov="false"), {}), (dict(dataset=np.str_("digits")), {}), (dict(milestones=[1, 2.]), dict(milestones=(1, 2))),
         (dict(milestones=np.array([1, 2])), dict(milestones=(1, 2))), (dict(milestones=range(1, 3)), dict(milestones=(1, 2))),
         (dict(network_args=dict(width=8.)), dict(network_args=dict(width=8))), (dict(method_args=dict(alpha=2)), dict(method_args=dict(alpha=2.))),
         (dict(method_args=dict(labels=dict(name="logistic", s=1))), dict(method_args=dict(labels=dict(name="logistic", s=1.)))),
         (dict(method="manifold-mixup", method_args=dict(stages=[0, 1.], blocked=0)), dict(method="manifold-mixup", method_args=dict(stages=(0, 1), blocked=False))),
         (dict(method="varmixup", method_args=dict(gamma=2, vae_epochs=5.)), dict(method="varmixup", method_args=dict(gamma=2., vae_epochs=5))),
         (dict(method="decoder", network="decoder", method_args=dict(classifier=dict(method="mixup", network="mlp", lr=1, method_args=dict(alpha=2), milestones=[3.]), noise=0)),
          dict(method="decoder", network="decoder", method_args=dict(classifier=dict(method="mixup", network="mlp", lr=1., method_args=dict(alpha=2.), milestones=(3,)), noise=0.)))]


@pytest.mark.parametrize("typed, meant", PAIRS, ids=str)
def test_equal_specs_are_one_run(typed, meant):
    one, other = replace(SPEC, **typed), replace(SPEC, **meant)
    assert one == other and repr(one) == repr(other) and name_of(one) == name_of(other)
    assert {k: name_of(s) for k, s in one.needs.items()} == {k: name_of(s) for k, s in other.needs.items()}
    assert from_json(json.loads(json.dumps(to_json(one)))) == one


NUMBERS = st.integers(1, 50)


@given(n=NUMBERS, how=st.sampled_from([int, float, str, np.int16, np.float64, torch.tensor, lambda n: f"{n}.0", lambda n: f"{n}e0"]))
def test_a_number_is_itself_however_it_was_typed(n, how):
    typed = dict(lr=how(n), epochs=how(n), method_args=dict(alpha=how(n)), network_args=dict(width=how(n)))
    meant = dict(lr=float(n), epochs=n, method_args=dict(alpha=float(n)), network_args=dict(width=n))
    assert repr(replace(SPEC, **typed)) == repr(replace(SPEC, **meant))


@pytest.mark.parametrize("name", METHODS)
def test_defaults_stand_in_their_own_types(name):
    made = method(name)
    for f in dataclasses.fields(made):
        if f.default is not dataclasses.MISSING and of_type(f.type) in READERS: assert repr(getattr(made, f.name)) == repr(f.default)


def test_an_equal_value_of_another_type_was_not_asked_before():
    "What was found right is not looked at again: 1, True and 1.0 are equal, and so are 0 and -0."
    assert brought(1, int, "steps", "[0, 2]") == 1 and type(brought(1., int, "steps", "[0, 2]")) is int
    with pytest.raises(ValueError, match="steps must be a whole number, in .0, 2., got True"): brought(True, int, "steps", "[0, 2]")
    assert brought((1, 0), tuple[bool, ...], "on") == (True, False) and brought((0, 1), tuple[int, ...], "on") == (0, 1)
    with pytest.raises(ValueError, match="each of on must be a whole number, got True"): brought((0, True), tuple[int, ...], "on")
    assert [math.copysign(1, brought(zero, float, "rate")) for zero in (0., -0.)] == [1, 1]


def test_the_arguments_of_a_users_network_are_those_of_now(monkeypatch):
    "An editor's autoreload puts new code into the same function."
    def mine(shape, classes, width: int = 1): pass
    def edited(shape, classes, depth: int = 1): pass
    monkeypatch.setitem(NETWORKS, "mine", mine)
    assert [*arguments("mine")] == ["width"]
    mine.__code__, mine.__annotations__ = edited.__code__, edited.__annotations__
    assert [*arguments("mine")] == ["depth"]
