"""The transform from raw to model columns for every kind, encoding and Arrow type; the order and limits of vocabularies."""

from __future__ import annotations

import datetime
import subprocess
import sys
from decimal import Decimal
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from recsys_ray.data.prepare.statistics import build_vocabulary, count_values, sum_by_value
from recsys_ray.data.transform import rejections, transform
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.schema import Categorical, Dense, Label, Schema, Timestamp, Weight

pytestmark = pytest.mark.unit

HASHED = Categorical("id", num_embeddings=1000)
WORDS = Categorical("id", dtype="string", num_embeddings=1000)
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64(), pa.float64(), pa.decimal128(38, 0)]
ELSEWHERE = """
import pyarrow as pa
from recsys_ray.data.transform import transform
from recsys_ray.schema import Categorical, Label, Schema

schema = Schema((Label("y"), Categorical("id", num_embeddings=1000)))
print(transform(pa.table({"id": [1, 7, None, 99]}), schema, {})["id"].to_pylist())
"""
TEXTS = [pa.string(), pa.large_string(), pa.string_view()]


def encode(column, values, vocabulary=None):
    schema = Schema((Label("y"), column) if isinstance(column, Categorical) else (Label("y"), column, HASHED))
    lookups = {} if vocabulary is None else build_lookups({column.name: vocabulary})
    return transform(pa.table({column.name: values}), schema, lookups)[column.name].to_pylist()


def faults(column, values):
    table = pa.table({"y": [0.0] * len(values), "id": [0] * len(values)} | {column.name: values})
    others = [] if isinstance(column, Label) else [Label("y")]
    others += [] if isinstance(column, Categorical) else [HASHED]
    return rejections(table, Schema((column, *others)).columns).tolist()


def test_a_hash_never_changes():
    """Stored datasets and models rely on these table rows; a change would silently spoil every old model."""
    assert encode(HASHED, pa.array([0, 1, 7, 123456789, -5, None])) == [1, 374, 371, 810, 760, 0]
    assert encode(WORDS, pa.array(["", "a", "Zürich", "日本", None])) == [494, 478, 81, 77, 0]


def test_a_hash_is_the_same_in_another_process_and_for_every_arrow_type():
    numbers, words = [1, 7, None, 99], ["a", "Zürich", None]
    elsewhere = subprocess.run([sys.executable, "-c", ELSEWHERE], capture_output=True, text=True, check=True)
    assert elsewhere.stdout.strip() == str(encode(HASHED, pa.array(numbers)))
    for kind in INTEGERS:
        assert encode(HASHED, pa.array(numbers).cast(kind)) == encode(HASHED, pa.array(numbers)), kind
    for kind in TEXTS:
        assert encode(WORDS, pa.array(words).cast(kind)) == encode(WORDS, pa.array(words)), kind
    assert encode(HASHED, pa.array(numbers).dictionary_encode()) == encode(HASHED, pa.array(numbers))
    assert encode(WORDS, pa.array(words).dictionary_encode()) == encode(WORDS, pa.array(words))
    assert encode(HASHED, pa.array([2**63 + 5], pa.uint64()))[0] > 0
    rows = np.array(encode(HASHED, pa.array(range(100_000))))
    counts = np.bincount(rows, minlength=1000)
    assert counts[0] == 0 and len(counts) == 1000 and counts[1:].min() > 40 and counts.max() < 180, "the hash is uneven"


def test_vocabulary_order_and_limits():
    column = Categorical("a", encoding="vocabulary", min_frequency=2)
    batch = pa.table({"a": [5, 10, 10, 9, 9, 7, 7, 7, None], "b": [[7], [], None, [8, 8], [], [], [], [], []]})

    def vocabulary(**limits):
        one = Categorical("a", encoding="vocabulary", table="t", **limits)
        counts = count_values(batch, {"t": [one, Categorical("b", multi=True, table="t")]})
        return build_vocabulary(sum_by_value(counts), "t", one).to_pylist()

    assert vocabulary() == [7, 8, 9, 10, 5], "most frequent over both columns first; ties by value, as numbers"
    assert vocabulary(min_frequency=2) == [7, 8, 9, 10]
    assert vocabulary(num_embeddings=3) == [7, 8], "row 0 is for the rest"
    assert encode(column, pa.array([7, 9, None, 5, 10]), pa.array([7, 9, 10])) == [1, 2, 0, 0, 3]
    words = Categorical("w", dtype="string", encoding="vocabulary")
    assert encode(words, pa.array(["b", "", None, "x"]).dictionary_encode(), pa.array(["b", ""])) == [1, 2, 0, 0]


def test_columns_of_one_table_select_the_same_rows():
    table = build_lookups({"t": pa.array([30, 10])})
    schema = Schema(
        (
            Label("y"),
            Categorical("now", encoding="vocabulary", table="t"),
            Categorical("past", encoding="vocabulary", table="t", multi=True),
        )
    )
    rows = transform(pa.table({"y": [1.0, 0.0], "now": [10, 20], "past": [[30, 10], [20]]}), schema, table)
    assert rows["now"].to_pylist() == [2, 0] and rows["past"].to_pylist() == [[1, 2], [0]]


def test_identity_is_the_id_plus_one():
    column = Categorical("id", encoding="identity", num_embeddings=5)
    assert encode(column, pa.array([0, 3, None])) == [1, 4, 0]
    reason = "id: id is not between 0 and 3 (num_embeddings - 2)"
    assert faults(column, pa.array([0, 3, 4, -1, None])) == [None, None, reason, reason, None]
    lists = Categorical("id", encoding="identity", num_embeddings=5, multi=True)
    assert faults(lists, pa.array([[0, 9], [], None, [1], [-1, 2]])) == [reason, None, None, None, reason]


@pytest.mark.parametrize("kind", [pa.list_(pa.int32()), pa.large_list(pa.int64()), pa.list_view(pa.int64())])
def test_lists_of_every_length(kind):
    column = Categorical("id", encoding="identity", num_embeddings=10, multi=True)
    values = pa.array([[9], [1, 2], [], None, [None], [3, None, 4], []], kind)
    assert encode(column, values.slice(1)) == [[2, 3], [0], [0], [0], [4, 0, 5], [0]]
    assert encode(column, values[:0]) == []


def test_lists_of_a_fixed_length_and_of_words():
    pairs = pa.array([[1, 2], None, [3, None]], pa.list_(pa.int64(), 2))
    identity = Categorical("id", encoding="identity", num_embeddings=10, multi=True)
    assert encode(identity, pairs) == [[2, 3], [0], [4, 0]]
    tags = Categorical("id", dtype="string", encoding="vocabulary", multi=True)
    assert encode(tags, pa.array([["b", "?"], [], None]), pa.array(["a", "b"])) == [[2, 0], [0], [0]]


def test_ids_that_pandas_wrote_as_doubles():
    column = Categorical("id", encoding="identity", num_embeddings=10)
    values = pa.array([1.0, float("nan"), None, 2.5, float("inf")])
    reason = "id: id is not a whole number of 64 bits"
    assert faults(column, values) == [None, None, None, reason, reason]
    assert encode(column, values.slice(0, 3)) == [2, 0, 0]
    assert faults(HASHED, pa.array([Decimal("1.5"), Decimal("2.0")])) == [reason, None]


def test_dense_scales_and_fills():
    missing = [None, float("nan")]
    assert encode(Dense("x", fill=-1.0), pa.array([2.0, *missing])) == [2.0, -1.0, -1.0]
    logs = encode(Dense("x", scale="log1p"), pa.array([np.e - 1, 1 - np.e, *missing]))
    assert logs == pytest.approx([1, -1, 0, 0])
    standard = encode(Dense("x", scale="standard", mean=10, std=2), pa.array([14, 10, None], pa.int32()))
    assert standard == [2.0, 0.0, 0.0]
    for values in ([True, None], [Decimal("1.0"), None], np.array([1.0, np.nan], np.float16)):
        assert encode(Dense("x"), pa.array(values)) == [1.0, 0.0]
    reason = "x: infinite, or too large for float32"
    assert faults(Dense("x"), pa.array([1.0, float("inf"), -float("inf"), 1e300, None])) == [None, *[reason] * 3, None]
    assert faults(Dense("x", scale="log1p"), pa.array([1e300, float("inf")])) == [None, reason]


def test_labels_and_weights():
    schema = Schema((Label("z", positive_above=3), HASHED, Weight("w")))
    rows = transform(pa.table({"z": [3, 4, 5], "id": [1, 2, 3], "w": [1, 2**24 + 2, 0]}), schema, {})
    assert rows["z"].to_pylist() == [0.0, 1.0, 1.0] and rows["w"].to_pylist() == [1.0, 2.0**24 + 2, 0.0]
    assert {rows[name].type for name in ("z", "w")} == {pa.float32()}
    missing, other = "z: missing, but it is the label", "z: not 0 or 1"
    assert faults(Label("z"), pa.array([0.0, 1.0, 2.0, 0.5, None, float("nan")])) == [None, None, other, other, missing, missing]
    assert faults(Label("z", 3.0), pa.array([5.0, None])) == [None, missing]
    assert faults(Label("z"), pa.array([True, False])) == [None, None]
    negative, absent = "w: negative, or too large for float32", "w: missing, but it is the weight"
    found = faults(Weight("w"), pa.array([0.0, -1.0, float("inf"), 1e300, None, float("nan")]))
    assert found == [None, negative, negative, negative, absent, absent]


@pytest.mark.parametrize(
    "kind", [pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ms", "UTC")]
)
def test_timestamps_become_seconds(kind):
    moment = datetime.datetime(2024, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    value = pa.array([moment.replace(tzinfo=None) if kind.tz is None else moment], kind)
    assert encode(Timestamp("t"), value) == [1704164645]
    assert faults(Timestamp("t"), pa.array([None, moment], kind)) == ["t: missing, but it is the timestamp", None]


def test_dates_and_integers_as_timestamps():
    day = datetime.date(2024, 1, 2)
    assert encode(Timestamp("t"), pa.array([day], pa.date32())) == encode(Timestamp("t"), pa.array([day], pa.date64()))
    assert encode(Timestamp("t"), pa.array([day])) == [1704153600]
    assert encode(Timestamp("t"), pa.array([7, -(2**40)])) == [7, -(2**40)]


def test_transform_of_a_whole_is_the_transforms_of_its_parts():
    random = np.random.default_rng(3)
    schema = Schema(
        (
            Label("y"),
            Dense("x", scale="log1p"),
            Categorical("id", num_embeddings=50),
            Categorical("tags", dtype="string", encoding="vocabulary", multi=True),
            Timestamp("t"),
            Weight("w"),
        )
    )
    words, n = [None, "a", "b", "c", "unseen"], 300
    lists = [None if i % 11 == 0 else [words[j] for j in random.integers(0, 5, random.integers(0, 4))] for i in range(n)]
    columns = {"y": random.integers(0, 2, n), "x": random.normal(size=n), "id": random.integers(0, 999, n), "tags": lists}
    table = pa.table(columns | {"t": random.integers(0, 99, n), "w": random.random(n)})
    vocabularies = build_lookups({"tags": pa.array(["b", "a"])})
    whole = transform(table, schema, vocabularies)
    for cuts in ([0, 1, 300], [0, 7, 7, 150, 300]):
        parts = [table.slice(a, b - a) for a, b in pairwise(cuts)]
        assert pa.concat_tables(transform(part, schema, vocabularies) for part in parts).equals(whole)
        assert transform(pa.concat_tables(parts), schema, vocabularies).equals(whole), "of chunked columns"
