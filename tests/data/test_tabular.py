"Tables: scikit-learn's and the paper's own numbers, the copies of OpenML where they are at hand, damaged files and dead addresses."
import gzip
import hashlib
import http.server
import json
import math
import re
import shutil
import threading
import urllib.error
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings, strategies as st
from scipy.stats import multivariate_normal
from sklearn import datasets as bundled
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from helpers import SHARED
from mixrepro.data import tabular as T
from mixrepro.data.tabular import COLLECTIONS, EMBEDDED, NOTE, Table, fetch_openml, tabular, to_numbers, verify_openml
from mixrepro.files import sha256


@pytest.fixture(scope="module")
def records():
    "What is known of the copies of OpenML's tables."
    path = SHARED / "openml" / "provenance.json"
    if not path.is_file(): pytest.skip("no copies of OpenML's tables at hand: set MIXREPRO_SHARED_DATA to a folder that holds openml/")
    return {r["openml_id"]: r for r in json.loads(path.read_text())}


# ---- columns into numbers -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, load", [("iris", bundled.load_iris), ("wine", bundled.load_wine), ("breast-cancer", bundled.load_breast_cancer),
                                        ("digits", bundled.load_digits)])
@pytest.mark.parametrize("seed", [0, 2021])
def test_tables_without_gaps_are_what_scikit_learn_makes_of_them(name, load, seed):
    raw = load()
    x_train, x_test, y_train, y_test = train_test_split(raw.data, raw.target, test_size=.3, random_state=seed)
    scaler, t = StandardScaler().fit(x_train), tabular(name, seed=seed)
    varies = np.ptp(x_train, axis=0) > 0
    assert len(t.y_test) == math.ceil(.3 * len(raw.target)) and t.classes == tuple(map(str, sorted(raw.target_names, key=str)))
    assert np.allclose(t.x_train, scaler.transform(x_train), atol=1e-5)
    assert np.allclose(t.x_test[:, varies], scaler.transform(x_test)[:, varies], atol=1e-5)
    assert (t.x_test[:, ~varies] == 0).all()
    for ours, theirs in ((t.y_train, y_train), (t.y_test, y_test)): assert [t.classes[i] for i in ours] == [str(raw.target_names[i]) for i in theirs]


def frames():
    "Random tables of two columns of numbers and two of categories, with gaps."
    kinds = {"i": float, "f": float, "two": object, "six": object}
    columns = st.integers(-5, 5), st.floats(-1e3, 1e3, width=32), st.sampled_from("ab"), st.sampled_from("uvwxyz")
    cells = st.tuples(*(st.none() | s for s in columns))
    return st.lists(cells, min_size=4, max_size=30).map(lambda rows: pd.DataFrame(rows, columns=[*kinds]).astype(kinds))


def by_hand(frame, train):
    "The same with loops: imputed from the training rows, one column for each category (for two of them: the second), standardised."
    columns = {}
    for c in ("i", "f"):
        seen = frame[c].iloc[train].dropna()
        if len(seen): columns[c] = frame[c].fillna(np.median(seen)).to_numpy()
    for c in ("two", "six"):
        seen = [v for v in frame[c].iloc[train] if pd.notna(v)]
        if not seen or len({v for v in frame[c] if pd.notna(v)}) == len(frame): continue
        categories = sorted(set(seen))
        common = max(categories, key=seen.count)
        values = [v if v in categories else common for v in frame[c]]
        for k in categories[1:] if len(categories) == 2 else categories: columns[f"{c}_{k}"] = np.array([float(v == k) for v in values])
    scaled = {}
    for name, a in columns.items():
        mean, std = a[train].mean(), a[train].std()
        scaled[name] = (a - mean) / std if np.ptp(a[train]) else 0 * a
    return scaled


@pytest.mark.filterwarnings("ignore:the column .* is left out")
@settings(max_examples=40, deadline=None)
@given(frame=frames(), share=st.floats(.2, .8))
def test_encoding_is_the_one_done_by_hand(frame, share):
    train, test = np.arange(max(1, int(share * len(frame)))), np.arange(max(1, int(share * len(frame))), len(frame))
    want = by_hand(frame, train)
    if not want:
        with pytest.raises(ValueError, match="no column is left"): to_numbers(frame, train, test)
        return
    x_train, x_test, names = to_numbers(frame, train, test)
    assert names == list(want) and np.isfinite(x_train).all() and np.isfinite(x_test).all()
    got, want = np.concatenate([x_train, x_test]), np.stack([*want.values()], 1)
    assert np.allclose(got, want, atol=1e-6, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:the column .* is left out")
@settings(max_examples=20, deadline=None)
@given(frame=frames(), encode=st.sampled_from(["one-hot", "ordinal"]))
def test_test_rows_decide_nothing(frame, encode):
    n = len(frame) // 2
    train, test = np.arange(n), np.arange(n, len(frame))
    other = frame.copy()
    for c, v in (("i", 1e6), ("f", np.nan), ("two", "unseen"), ("six", None)): other.loc[other.index[n:], c] = v
    try: x, _, names = to_numbers(frame, train, test, encode)
    except ValueError: return
    x_other, x_test, other_names = to_numbers(other, train, test, encode)
    if names == other_names: assert np.array_equal(x, x_other)  # a column of texts that all differ is told from the whole table
    assert np.isfinite(x_test).all()


def test_ordinal_codes_follow_the_alphabet_and_a_flag_is_a_category():
    frame = pd.DataFrame({"c": list("bcabca"), "flag": [True, False, True, True, False, False]})
    x, _, names = to_numbers(frame, np.arange(6), np.arange(0), "ordinal")
    assert names == ["c", "flag"] and np.allclose(x[:, 0], StandardScaler().fit_transform([[1], [2], [0], [1], [2], [0]])[:, 0])
    assert to_numbers(frame, np.arange(6), np.arange(0))[2] == ["c_a", "c_b", "c_c", "flag_True"]


def test_an_order_that_the_alphabet_does_not_have_is_told_of():
    "low, medium and high were 1, 2 and 0 to whoever asked for ordinal codes."
    level = pd.Categorical(["low", "high", "medium", "low", "high", "medium"], ["low", "medium", "high"], ordered=True)
    frame, rows = pd.DataFrame({"a": level}), np.arange(6)
    with pytest.warns(UserWarning, match="the column 'a' has an order, low < medium < high, but 'ordinal' .*: write column.cat.codes"):
        by_alphabet = to_numbers(frame, rows, rows[:0], "ordinal")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = to_numbers(frame.assign(a=frame.a.cat.codes), rows, rows[:0], "ordinal")[0]
        to_numbers(frame, rows, rows[:0])
        to_numbers(frame.assign(a=frame.a.cat.as_unordered()), rows, rows[:0], "ordinal")
    assert x[0] < x[2] < x[1] and not np.allclose(x, by_alphabet)


def test_scale_over_all_rows_is_that_of_all_rows():
    x_train, x_test, _ = to_numbers(pd.DataFrame({"a": [1., 2, 3, 40], "b": [5., 5, 5, 6]}), np.arange(3), np.arange(3, 4), scale="all")
    both = np.concatenate([x_train, x_test])
    assert np.allclose(both.mean(0), 0) and np.allclose(both.std(0), 1)


@pytest.mark.parametrize("text, columns, target", [
    ("a,b,class\n1,?,x\n,q,y\n", {"a": [1, np.nan], "b": [np.nan, "q"]}, ["x", "y"]),
    ("class,b,class\nNA,None,1\nnull,nan,2\n", {"class": ["NA", "null"], "b": ["None", "nan"]}, ["1", "2"]),   # words, not gaps
    ('"a, b",c\n"x,y",no\nz,"ye""s"\n', {"a, b": ["x,y", "z"]}, ["no", 'ye"s'])])
def test_a_csv_file_is_read_as_it_is_written(text, columns, target):
    frame, got = T._parse(text.encode())
    assert got.tolist() == target and list(frame) == list(columns)
    for c, want in columns.items(): pd.testing.assert_series_equal(frame[c].astype(object), pd.Series(want, name=c, dtype=object), check_dtype=False)


def test_a_table_moves_to_a_device():
    t = tabular("iris").to("cuda" if torch.cuda.is_available() else "cpu")
    assert isinstance(t, Table) and t.x_test.dtype == torch.float32 and t.y_test.dtype == torch.int64 and t.d == 4


# ---- types on disk, and odd cells --------------------------------------------------------------------------------------

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6) | st.sampled_from(
    ["", "?", "??", "NA", "nan", "None", "01", "1", "1.0", "1e0", "inf", " ", " ?", "a,b", 'say "x"', "'", "\r\n", "\n", "\r", "Ä€🎲", "a_x", "=1"])


def column(kind, n):
    "A column of n cells of a kind that ARFF knows, with gaps."
    def cells(each): return st.lists(st.none() | each, min_size=n, max_size=n)
    if kind == "nominal":
        return st.lists(TEXT, min_size=1, max_size=4, unique=True).flatmap(lambda known: cells(st.sampled_from(known)).map(
            lambda c: pd.Series(pd.Categorical(c, known))))
    if kind == "string": return cells(TEXT).map(lambda c: pd.Series(c, dtype=object))
    if kind == "integer": return cells(st.integers(-2**63, 2**63 - 1)).map(lambda c: pd.Series(c, dtype="Int64"))
    if kind == "date": return cells(st.datetimes(pd.Timestamp(1700, 1, 1), pd.Timestamp(2200, 1, 1))).map(lambda c: pd.Series(pd.to_datetime(pd.Series(c, dtype=object))).astype("datetime64[us]"))
    return cells(st.floats(allow_nan=False)).map(lambda c: pd.Series(c, dtype=float))  # numeric, real


@st.composite
def typed_tables(draw):
    "A table with a column or two of each kind, and a target of any."
    n, kinds = draw(st.integers(1, 6)), draw(st.lists(st.sampled_from(["nominal", "string", "integer", "date", "numeric"]), min_size=2, max_size=6))
    names = draw(st.lists(TEXT, min_size=len(kinds) - 1, max_size=len(kinds) - 1, unique=True))
    return pd.concat([draw(column(kind, n)) for kind in kinds], axis=1).set_axis([*names, "class"], axis=1)


@settings(max_examples=60, deadline=None)
@given(table=typed_tables())
@pytest.mark.filterwarnings("ignore:.*rows have no target")
def test_a_table_with_types_is_the_same_after_the_disk(tmp_path_factory, table):
    assume(table["class"].notna().any())  # else there is nothing to learn, which is refused
    folder = tmp_path_factory.mktemp("typed")
    file = T._store(folder, 7, dict(name="toy") | (written := T._written(table))[0], written[1])
    frame, target = T._parse(file.read_bytes(), T._records(folder)[7])
    kept = table["class"].notna().to_numpy()
    for got, want in zip([*(frame.iloc[:, k] for k in range(frame.shape[1])), target], [table.iloc[:, k][kept] for k in range(table.shape[1])]):
        if want.dtype == object: want = want.astype("category").cat.set_categories(got.cat.categories)  # a string is a category of its own
        pd.testing.assert_series_equal(got, want, check_index=False, check_names=False, check_exact=True)
    assert list(frame) == list(table)[:-1]


def openml_answers(cache, arff, columns, target, number=77):
    "openml.org is played by scikit-learn's cache: a description, a list of columns and an ARFF file."
    def put(path, content):
        (file := cache / "openml" / "openml.org" / f"{path}.gz").parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(gzip.compress(content.encode()))
    def about(i, name, kind): return dict(index=str(i), name=name, data_type=kind, is_target=str(name == target).lower(), is_ignore="false",
                                          is_row_identifier=str(name == "row").lower(), number_of_missing_values="0")
    put(f"api/v1/json/data/{number}", json.dumps({"data_set_description": dict(
        id=f"{number}", name="toy set/1", version="1", status="active", description="a toy", format="ARFF", file_id="770", licence="CC0",
        url="https://www.openml.org/data/v1/download/770/toy.arff", md5_checksum=hashlib.md5(arff.encode()).hexdigest(), default_target_attribute=target)}))
    put(f"api/v1/json/data/features/{number}", json.dumps({"data_features": {"feature": [about(i, *c) for i, c in enumerate(columns)]}}))
    put(f"api/v1/json/data/qualities/{number}", json.dumps({"data_qualities": {"quality": [dict(name="NumberOfInstances", value=str(arff.count("\n")))]}}))
    put("data/v1/download/770/toy.arff", arff)


def test_categories_that_look_like_numbers_or_gaps_stay_what_they_are(tmp_path):
    "`'?'` in quotes is a category, `?` is missing; 01, 1 and 1.0 are three codes; a category of the class may be '?' too."
    arff = "@relation toy\n@attribute code {01,1,1.0}\n@attribute mark {'?',NA,'a, b'}\n@attribute zip string\n@attribute n integer\n@attribute kind {'?',0.5,1.5}\n@data\n"
    rows = [("01", "'?'", "'007'"), ("1", "NA", "'7'"), ("1.0", "'a, b'", "'7'"), ("1", "?", "'x'")] * 10
    arff += "".join(f"{a},{b},{c},{i},{('0.5', chr(39) + '?' + chr(39), '1.5')[i % 3]}\n" for i, (a, b, c) in enumerate(rows))
    openml_answers(tmp_path / "openml" / "cache", arff, [("code", "nominal"), ("mark", "nominal"), ("zip", "string"), ("n", "integer"), ("kind", "nominal")], "kind")
    [path] = fetch_openml(77, tmp_path)
    t = tabular(77, tmp_path)
    assert t.classes == ("0.5", "1.5", "?") and len(t.y_train) + len(t.y_test) == 40 and not t.standin
    assert t.features == ("n", "code_01", "code_1", "code_1.0", "mark_?", "mark_NA", "mark_a, b", "zip_007", "zip_7", "zip_x")
    frame, _ = T._parse(path.read_bytes(), T._records(tmp_path / "openml")[77])
    assert frame["mark"].isna().sum() == 10 and (frame["mark"] == "?").sum() == 10
    fetch_openml(77, tmp_path / "copy", tmp_path)  # a copy keeps the types
    assert torch.equal(tabular(77, tmp_path / "copy").x_train, t.x_train) and tabular(77, tmp_path / "copy").features == t.features


@pytest.mark.parametrize("gap", ["NA", "nan", "NaN", " ?", "?", "", "n/a", "NULL"])
def test_a_gap_by_any_name_in_a_column_of_numbers_is_a_gap(tmp_path, gap):
    for number, cell in ((1, ""), (2, gap)):
        rows = [f"{i + .5},{'no' if i % 2 else 'yes'}" for i in range(20)]
        rows[7] = f"{cell},yes"
        (tmp_path / "openml").mkdir(exist_ok=True)
        (tmp_path / "openml" / f"{number}_t{number}.csv").write_text("a,class\n" + "\n".join(rows) + "\n")
    plain, odd = tabular(1, tmp_path), tabular(2, tmp_path)
    assert odd.features == ("a",) and torch.equal(plain.x_train, odd.x_train) and torch.equal(plain.x_test, odd.x_test)


@pytest.mark.parametrize("cell", ["1,000", "3,14", "1_000", "abc", "12 kg", "١"])
def test_an_odd_cell_in_a_column_of_numbers_is_refused_with_its_place(tmp_path, cell):
    rows = [f"{i},{'no' if i % 2 else 'yes'}" for i in range(20)]
    rows[7] = f'"{cell}",yes'
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml" / "1_t.csv").write_text("a,class\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=rf"1_t.csv: column 'a' holds numbers, but row 8 \(line 9\) has '{cell}': write a number there"): tabular(1, tmp_path)
    with pytest.raises(ValueError, match=f"column 'a' holds numbers, but row 8 has '{cell}'"):
        to_numbers(pd.DataFrame({"a": [*map(str, range(7)), cell, *map(str, range(12))]}), np.arange(15), np.arange(15, 20))
    (tmp_path / "openml" / "index.json").write_text(json.dumps([dict(id=1, name="t", file="1_t.csv", nominal=[0])]))
    with pytest.warns(UserWarning, match="the column 'a' is left out: its texts all differ"), pytest.raises(ValueError, match="no column is left"): tabular(1, tmp_path)


def test_a_target_of_decimal_commas_is_named(tmp_path):
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml" / "1_t.csv").write_text("a,class\n" + "".join(f'{i},"{i % 2},5"\n' for i in range(9)))
    with pytest.raises(ValueError, match=r"1_t.csv: column 'class' holds numbers, but row 1 \(line 2\) has '0,5'"): tabular(1, tmp_path)
    with pytest.raises(ValueError, match="column 'class' holds numbers, but row 1 has '1,000'"): T.to_labels(pd.Series(["1,000", "2,000"]))
    assert T.to_labels(pd.Series(["low", "1,000", "2,000"]))[1] == ("1,000", "2,000", "low"), "beside a word it is a class"


@pytest.mark.parametrize("cell, sentence", [("inf", "the target is inf in row 8"), ("-inf", "the target is -inf in row 8"), ("x", r"'class' holds numbers, but row 8 \(line 9\) has 'x'")])
def test_an_odd_target_is_refused(tmp_path, cell, sentence):
    rows = [f"{i},{i + .25}" for i in range(20)]
    rows[3], rows[7] = "3,NA", f"7,{cell}"
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml" / "1_t.csv").write_text("a,class\n" + "\n".join(rows) + "\n")
    with warnings.catch_warnings(action="ignore"), pytest.raises(ValueError, match=sentence): tabular(1, tmp_path)


@pytest.mark.parametrize("cell", ["nan", "NA", " ?"])
def test_a_gap_in_a_numeric_target_leaves_its_row_out_with_a_word(tmp_path, cell):
    rows = [f"{i},{i + .25}" for i in range(20)]
    rows[7] = f"7,{cell}"
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml" / "1_t.csv").write_text("a,class\n" + "\n".join(rows) + "\n")
    with pytest.warns(UserWarning, match="1 of 20 rows have no target and are left out, the first of them row 8"): t = tabular(1, tmp_path)
    assert t.classes == ("N", "P") and len(t.y_train) + len(t.y_test) == 19


def test_targets_as_pandas_hands_them():
    assert T.to_labels(pd.Series([1, 2, 1], dtype="Int64"))[1:] == (("1", "2"), False)
    assert T.to_labels(pd.Series(["1", "2", "more"]))[1] == ("1", "2", "more")  # codes and a word
    for odd in (math.nan, None):
        with pytest.raises(ValueError, match="the target is missing in row 2"): T.to_labels(pd.Series([.5, odd, 2.5, 1.5]))
    with pytest.raises(ValueError, match="the target is missing in row 2"): T.to_labels(pd.Series(["a", None, "b"]))


@pytest.mark.parametrize("columns, names", [
    ({"a_x": [1., 2, 3, 4], "a": list("xyzx")}, ["a_x", "a_x (2)", "a_y", "a_z"]),
    ({"a": list("xyzx"), "a_x": list("pqrp")}, ["a_x", "a_y", "a_z", "a_x_p", "a_x_q", "a_x_r"]),
    ({"a": ["b_c", "d", "e", "d"], "a_b": list("cdec"), "self": [1., 2, 3, 4]}, ["self", "a_b_c", "a_d", "a_e", "a_b_c (2)", "a_b_d", "a_b_e"])])
def test_names_of_one_hot_columns_are_distinct(columns, names):
    x, _, got = to_numbers(pd.DataFrame(columns), np.arange(4), np.arange(0))
    assert got == names and x.shape == (4, len(names)) and len(set(got)) == len(got)


@pytest.mark.parametrize("data, sentence", [
    ("a,b,class\n1,é,x\n".encode("latin-1"), "1_t.csv: line 2 is not UTF-8 text .byte 0xe9.: save the table as UTF-8"),
    ("a,class\n1,x\n".encode("utf-16"), "1_t.csv: line 1 is not UTF-8 text"), (b"", "1_t.csv: it is empty"),
    (b"a,class\n1,x,\n2,y,\n", "line 2 has 3 cells, but there are 2 names of columns: remove the comma at its end"),
    (b"a,class,\n1,x,\n2,y,\n", "column 3 has no name"), (b",a,class\n0,1,x\n1,2,y\n", "column 1 has no name"),
    (b"a,b,class\n1,2\n", "line 2 has 2 cells, but there are 3 names"), (b'a,class\n"1,x\n', "is not CSV"), (b"1.5,x\n2,y\n3,x\n", "1_t.csv: the first line holds a row of the table and no names .1.5, x.: write names above it"), (b"a,a,class\n1,2,x\n", "two columns are named 'a'")])
def test_a_file_that_is_no_table_is_refused_in_one_sentence(tmp_path, data, sentence):
    (tmp_path / "openml").mkdir()
    (tmp_path / "openml" / "1_t.csv").write_bytes(data)
    with pytest.raises(ValueError, match=sentence) as e: tabular(1, tmp_path)
    assert "\n" not in str(e.value)
    with pytest.raises(OSError, match=f"1 of 1 tables could not be had.*{sentence.removeprefix('1_t.csv: ')}"): fetch_openml(1, tmp_path / "new", tmp_path)


def test_a_column_of_dates_is_a_number_of_days():
    x, _, names = to_numbers(pd.DataFrame({"day": pd.to_datetime(["2020-01-01", "2020-01-03", None, "2020-01-02"])}), np.arange(4), np.arange(0))
    assert names == ["day"] and np.allclose(x[:, 0], [-np.sqrt(2), np.sqrt(2), 0, 0])


# ---- the copies of OpenML's tables ----------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore:the column .* is left out")
def test_every_copy_loads_through_the_same_interface(records):
    assert len(records) == 127
    for i, r in records.items():
        t = tabular(i, SHARED)
        n, numeric = r["rows"], not isinstance(r["classes"], dict)
        assert (t.id, t.name) == (i, r["name"]) and len(t.y_test) == math.ceil(.3 * n) and len(t.y_train) + len(t.y_test) == n
        assert bool(t.standin) == numeric and (numeric or t.classes == tuple(sorted(r["classes"])))
        count = torch.cat([t.y_train, t.y_test]).bincount(minlength=t.k).tolist()
        assert numeric or count == [r["classes"][c] for c in t.classes]
        assert t.x_train.shape[1] == t.x_test.shape[1] == len(t.features) and t.x_train.isfinite().all() and t.x_test.isfinite().all()
        std = t.x_train.double().std(0, correction=0)
        assert t.x_train.double().mean(0).abs().max() < 1e-4 and ((std - 1).abs() < 1e-4).logical_or(std == 0).all() and std.any()


def test_every_copy_is_parsed_as_its_record_says(records):
    for i, r in records.items():
        frame, target = T._parse((SHARED / "openml" / r["file"]).read_bytes())
        assert (len(frame), len(frame.columns), int(frame.isna().sum().sum())) == (r["rows"], r["features"], r["missing_cells"]), i
    assert set(verify_openml(SHARED).values()) == {""}


GM = {36: 89.75, 61: 95.56, 721: 78.33, 778: 89.47, 817: 60.00, 830: 78.67, 855: 65.33, 869: 73.33,
      885: 95.00, 907: 47.50, 915: 42.11, 925: 90.72, 938: 92.31, 1006: 77.78, 40710: 69.23, 40981: 73.91}


def gaussian_classifier(t):
    "Share of test rows in percent that one Gaussian for each class, weighted by its share, gets right."
    x, y, new = t.x_train.double().numpy(), t.y_train.numpy(), t.x_test.double().numpy()
    def score(c):
        a = x[y == c]
        return multivariate_normal(a.mean(0), np.cov(a.T, bias=True) + 1e-4 * np.eye(t.d)).logpdf(new) + np.log(len(a) / len(y))
    return f"{100 * np.mean(np.argmax([score(c) for c in range(t.k)], 0) == t.y_test.numpy()):.2f}"

@pytest.mark.parametrize("number", GM)
def test_the_notes_arrays_give_the_notes_accuracies(records, number):
    assert gaussian_classifier(tabular(number, SHARED, **NOTE)) == f"{GM[number]:.2f}"


def test_another_seed_does_not(records):
    assert sum(gaussian_classifier(tabular(i, SHARED, **NOTE | dict(seed=0))) == f"{a:.2f}" for i, a in GM.items()) < 5


@pytest.mark.parametrize("number, shape", T.FRI.items())
def test_the_tables_fri_c0_are_friedmans_first_function(records, number, shape):
    "Their columns are standardised uniform variables, so 1/2 + x / sqrt(12) is uniform again."
    frame, target = T._parse((SHARED / "openml" / records[number]["file"]).read_bytes())
    def agreement(u, p):
        y = 10 * np.sin(np.pi * u[:, 0] * u[:, 1]) + 20 * (u[:, 2] - .5) ** 2 + 10 * u[:, 3] + 5 * u[:, 4]
        return np.mean((y < y.mean()) == p)
    assert frame.shape == shape and .88 < agreement(.5 + frame.to_numpy() / math.sqrt(12), target == "P") < .97
    ours, p = T.friedman(*shape, seed=number)
    assert ours.shape == shape and .85 < agreement(ours.to_numpy(), p == "P") < .98


def test_two_rows_of_iris_differ(records):
    theirs = T._parse((SHARED / "openml" / "61_iris.csv").read_bytes())[0].to_numpy()
    assert (np.abs(theirs - bundled.load_iris().data).max(1) > 0).sum() == 2


def test_collections_are_the_ids_that_the_note_prints():
    path = SHARED.parent / "papers" / "genlabel.txt"
    if not path.is_file(): pytest.skip("the text of the GenLabel note is not at hand: it is looked for as papers/genlabel.txt beside the folder that MIXREPRO_SHARED_DATA names")
    rows = [tuple(map(int, re.findall(r"\d+", line))) for line in path.read_text().splitlines() if line.startswith("Methods \\ OpenML Dataset ID")]
    assert [a + b for a, b in zip(rows[::2], rows[1::2])] == [COLLECTIONS[k] for k in T.NOTES]
    assert set(COLLECTIONS["genlabel"]) == {i for r in rows for i in r}


def test_the_codes_list_is_the_recorded_one(records):
    assert all((i in COLLECTIONS["genlabel-code"]) == r["in_genlabel_code_list"] for i, r in records.items())
    assert len(set(COLLECTIONS["genlabel-code"])) == 133 and sum(r["in_genlabel_code_list"] for r in records.values()) == 82


# ---- fetching -------------------------------------------------------------------------------------------------------

TOYS = {1: ("one", b"a,b,class\n" + b"1,x,yes\n2,y,no\n3,x,no\n" * 4), 2: ("two", b"a,class\n" + b"1,p\n2,q\n" * 5),
        3: ("three", b"a,class\n" + b"1,p\n2,q\n" * 6)}


@pytest.fixture
def there(tmp_path):
    "A folder with three tables and their index."
    (folder := tmp_path / "there").mkdir()
    for i, (name, data) in TOYS.items(): (folder / f"{i}_{name}.csv").write_bytes(data)
    lines = [dict(openml_id=i, name=n, file=f"{i}_{n}.csv", sha256=sha256(d)) for i, (n, d) in TOYS.items()]
    (folder / "provenance.json").write_text(json.dumps(lines))
    return folder


@pytest.fixture
def address(there):
    "The same folder behind an HTTP server; (address, paths asked for, answers to give first: a status, or 0 for a cut)."
    asked, trouble = [], []
    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *a): super().__init__(*a, directory=there)
        def log_message(self, *a): pass
        def do_GET(self):
            asked.append(self.path)
            if not trouble: return super().do_GET()
            if what := trouble.pop(0): return self.send_error(what)
            self.send_response(200); self.send_header("Content-Length", "1000"); self.end_headers(); self.wfile.write(b"a,cl")  # and no more
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", asked, trouble
    server.shutdown(); server.server_close()


def test_tables_come_from_a_folder_or_an_address_bit_for_bit(tmp_path, there, address):
    shutil.copytree(there, (up := tmp_path / "up") / "openml")  # a whole data root is a source as well
    for source, root in ((there, tmp_path / "a"), (up, tmp_path / "b"), (address[0], tmp_path / "c"), (address[0] + "/", tmp_path / "d")):
        paths = fetch_openml([2, 1], root, source)
        assert [p.read_bytes() for p in paths] == [TOYS[2][1], TOYS[1][1]] and verify_openml(root) == {1: "", 2: ""}
        assert tabular("one", root).id == 1 and [r["id"] for r in json.loads((root / "openml" / "index.json").read_text())] == [1, 2]


def test_a_second_call_asks_for_what_is_missing_and_mends_what_is_damaged(tmp_path, address):
    source, asked, _ = address
    fetch_openml([1, 2], tmp_path, source)
    (tmp_path / "openml" / "2_two.csv").write_bytes(b"a,class\n1,p\n")
    with pytest.raises(ValueError, match=r"2_two.csv has SHA-256 \w+, expected \w+: run `mixrepro data get openml --root"): tabular(2, tmp_path)
    assert "has SHA-256" in verify_openml(tmp_path)[2]
    asked.clear()
    calls = []
    fetch_openml([1, 2, 3], tmp_path, source, progress=lambda *a: calls.append(a))
    assert [p for p in asked if p.endswith(".csv")] == ["/2_two.csv", "/3_three.csv"] and calls == [(1, 1, 3), (2, 2, 3), (3, 3, 3)]
    assert set(verify_openml(tmp_path).values()) == {""}


def test_a_table_that_stays_though_another_source_was_named_is_told(tmp_path, there):
    "It was passed over without a word: whoever had named the source took it for what lies there."
    shutil.copytree(there, other := tmp_path / "other")
    [index] = other.glob("*.json")
    (other / "2_two.csv").write_bytes(b"a,class\n1,p\n2,q\n")
    rows = {r["file"]: r for r in json.loads(index.read_text())}
    rows["2_two.csv"]["sha256"] = sha256(b"a,class\n1,p\n2,q\n")
    index.write_text(json.dumps([*rows.values()]))
    with warnings.catch_warnings(action="error"): fetch_openml([1, 2], tmp_path, there); fetch_openml([1, 2], tmp_path, there)
    with pytest.warns(UserWarning, match="OpenML table 2 stays as it is in .*: remove 2_two.csv there to have that one fetched"): fetch_openml([1, 2], tmp_path, other)
    (tmp_path / "openml/2_two.csv").unlink()
    assert fetch_openml([2], tmp_path, other)[0].read_bytes() == b"a,class\n1,p\n2,q\n"


@pytest.mark.parametrize("damage, sentence", [
    (lambda p: p.write_bytes(p.read_bytes()[:-4]), "2_two.csv has SHA-256"), (lambda p: p.write_text("<html>busy</html>"), "2_two.csv has SHA-256"),
    (Path.unlink, "2_two.csv is not there")])
def test_one_bad_table_does_not_keep_the_others_back(tmp_path, there, address, damage, sentence):
    damage(there / "2_two.csv")
    with pytest.raises(OSError, match=f"1 of 3 tables could not be had from {address[0]}: 2 .*{sentence}.*run this again"):
        fetch_openml([1, 2, 3], tmp_path, address[0])
    assert verify_openml(tmp_path, [1, 2, 3]) == {1: "", 2: f"OpenML table 2 is not in {tmp_path / 'openml'}", 3: ""}
    assert not list((tmp_path / "openml").glob("2_*"))


def test_a_page_instead_of_a_table_is_refused_without_an_index_too(tmp_path, there):
    (there / "provenance.json").unlink()
    (there / "2_two.csv").write_text("<html>\n<p>busy</p>\n")
    with pytest.raises(OSError, match="it is a page of HTML or XML: save the table as CSV"): fetch_openml([1, 2], tmp_path, there)
    assert [p.name for p in (tmp_path / "openml").glob("*.csv")] == ["1_one.csv"]


def test_an_index_cannot_name_a_file_elsewhere(tmp_path, there):
    (there / "index.json").write_text(json.dumps([dict(id=1, name="one", file="../provenance.json", sha256="")]))
    with pytest.raises(OSError, match="names the file '../provenance.json': expected a plain name"): fetch_openml([1], tmp_path, there)
    (there / "index.json").write_text(json.dumps([dict(id=1, name="../../one", file="1_one.csv", sha256="")]))
    assert fetch_openml([1], tmp_path, there) == [tmp_path / "openml" / "1_.._.._one.csv"]


def test_what_is_no_source_says_so(tmp_path, there):
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder: give one with CSV files"): fetch_openml([1], tmp_path, tmp_path / "nowhere")
    with pytest.raises(OSError, match="1 of 1 tables could not be had from .*: 9 .*does not have it"): fetch_openml(9, tmp_path, there)
    with pytest.raises(ValueError, match="unknown collection 'genlabl': did you mean 'genlabel'"): fetch_openml("genlabl", tmp_path, there)
    (there / "provenance.json").write_text("[{")
    with pytest.raises(ValueError, match="provenance.json is not a whole JSON file"): fetch_openml([1], tmp_path, there)
    (there / "provenance.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="provenance.json is nested deeper"): fetch_openml([1], tmp_path, there)
    (tmp_path / "openml" / "index.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match="index.json is nested deeper"): verify_openml(tmp_path)


def test_a_busy_server_is_asked_again_and_a_dead_one_not_for_ever(tmp_path, address, monkeypatch):
    source, asked, trouble = address
    monkeypatch.setattr(T, "PAUSES", (0, 0))
    trouble += [503, 429, 404, 503, 0]  # index.json is not there, the others come at the third try
    assert fetch_openml([2], tmp_path, source)[0].read_bytes() == TOYS[2][1] and len(asked) == 3 + 3 + 1
    trouble += [404, 0, 0, 0]
    with pytest.raises(ConnectionError, match="provenance.json could not be read"): fetch_openml([1], tmp_path, source)
    trouble[:] = [404] * 2
    with pytest.raises(OSError, match="1 of 1 tables could not be had from http.*does not have it"): fetch_openml([1], tmp_path, source)


def test_nobody_is_asked_a_hundred_times_when_nobody_answers(tmp_path, monkeypatch):
    asked = []
    def dead(data_id, **_):
        asked.append(data_id)
        raise urllib.error.URLError("no route")
    monkeypatch.setattr(bundled, "fetch_openml", dead)
    with pytest.raises(OSError, match=r"172 of 172 tables could not be had from openml.org: 3, 18, .*no route"): fetch_openml("openml", tmp_path)
    assert len(asked) == 3


def test_two_at_once_fetch_each_table_once(tmp_path, address):
    source, asked, _ = address
    both = [threading.Thread(target=fetch_openml, args=([1, 2, 3], tmp_path, source)) for _ in range(2)]
    for t in both: t.start()
    for t in both: t.join()
    assert sorted(p for p in asked if p.endswith(".csv")) == ["/1_one.csv", "/2_two.csv", "/3_three.csv"]
    assert set(verify_openml(tmp_path).values()) == {""}


def test_a_table_through_scikit_learns_own_reader(tmp_path):
    arff = "@relation toy\n@attribute row numeric\n@attribute size numeric\n@attribute code {1,2,3}\n@attribute kind {p,q}\n@data\n"
    arff += "".join(f"{i},{i % 7}.5,{1 + i % 3},{'pq'[i % 2]}\n" for i in range(40)) + "40,?,1,p\n"
    openml_answers(tmp_path / "openml" / "cache", arff, [("row", "numeric"), ("size", "numeric"), ("code", "nominal"), ("kind", "nominal")], "kind")
    [path] = fetch_openml(77, tmp_path)
    assert path.name == "77_toy_set_1.csv"
    t = tabular(77, tmp_path)
    assert t.features == ("size", "code_1", "code_2", "code_3") and t.classes == ("p", "q") and len(t.y_test) == math.ceil(.3 * 41)
    [line] = json.loads((tmp_path / "openml" / "index.json").read_text())
    assert (line["nominal"], line["licence"], line["rows"], line["features"], line["source"]) == ([1], "CC0", 41, 2, "openml.org/d/77")


# ---- names ----------------------------------------------------------------------------------------------------------

def test_the_embedded_collection_needs_nothing(tmp_path):
    for name in COLLECTIONS["embedded"]:
        t = tabular(name, tmp_path)
        assert t.standin and t.id == 0 and t.x_train.isfinite().all()
    assert not list(tmp_path.iterdir()) and fetch_openml("embedded", tmp_path) == [] and set(COLLECTIONS["embedded"]) == set(EMBEDDED)


def test_a_name_that_two_tables_have_asks_for_the_number(records):
    with pytest.raises(ValueError, match="'stock' names the tables 223, 841: use the number"): tabular("stock", SHARED)
    assert tabular("segment", SHARED).id == tabular("36", SHARED).id == 36
    cut, theirs = tabular(223, SHARED), tabular(841, SHARED)  # OpenML's own binary version of the same numbers
    assert cut.standin.startswith("stock (OpenML 223)") and torch.equal(cut.y_train, theirs.y_train) and cut.classes == theirs.classes == ("N", "P")


def test_drawing_a_split_leaves_global_randomness_alone():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    a, b = tabular("friedman2-500", seed=1), tabular("friedman2-500", seed=1)
    assert torch.equal(a.x_train, b.x_train) and torch.equal(torch.get_rng_state(), torch_state) and (np.random.get_state()[1] == numpy_state).all()


@pytest.mark.parametrize("bad, message", [(dict(split=5), "split must be the share of the test part"), (dict(split=0.), "above 0 and below 1"),
                                          (dict(split=1.), "above 0 and below 1"), (dict(split=float("nan")), "above 0 and below 1"),
                                          (dict(seed=-1), "seed must be a whole number"), (dict(seed=2.5), "seed must be a whole number")])
def test_a_split_that_cannot_be_is_refused(bad, message):
    with pytest.raises(ValueError, match=message): tabular("iris", **bad)


@pytest.mark.parametrize("encode", T.ENCODERS)
def test_test_rows_change_nothing_that_is_learnt_from(encode):
    "Other numbers, gaps and categories in the test rows: the training rows are the same to the last bit."
    rng, n, train = np.random.default_rng(0), 60, np.arange(40)
    table = pd.DataFrame({"a": rng.normal(size=n), "b": rng.choice(list("xyz"), n), "c": np.where(rng.random(n) < .2, np.nan, rng.normal(size=n))})
    other = table.copy()
    other.loc[40:, ["a", "b", "c"]] = [1e6, "new", np.nan]
    (x, _, names), (z, tested, again) = (to_numbers(t, train, np.arange(40, n), encode, "train") for t in (table, other))
    assert np.array_equal(x, z) and names == again and np.isfinite(tested).all()


DAYS = pd.date_range("2020-01-01", periods=10).repeat(2)


@pytest.mark.parametrize("column, way", [
    (DAYS - DAYS[0], lambda c: c / pd.Timedelta(days=1)), (DAYS.to_period("D"), lambda c: c.dt.to_timestamp()),
    (pd.Series([*DAYS.date, *[None] * 2], dtype=object), pd.to_datetime), (DAYS.astype(object), pd.to_datetime)])
def test_times_that_would_be_taken_for_words_are_refused_with_the_way_to_numbers(column, way):
    "Each length of time was a category of its own; those that all differ were left out as names of rows."
    column = pd.Series(column)
    frame = pd.DataFrame(dict(a=column, b=np.arange(len(column)) % 3.))
    train, test = np.arange(14), np.arange(14, len(frame))
    with pytest.raises(ValueError, match="column 'a' holds .* values, which would be taken for words: write "): to_numbers(frame, train, test)
    x, _, names = to_numbers(frame.assign(a=way(column)), train, test)
    assert names == ["a", "b"] and (np.diff(x[::2, 0]) > 0).all()
