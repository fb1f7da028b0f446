"""The schema file: its round trip, what is inferred from Arrow types, and the message for each mistake."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from recsys_ray.columns import FREQUENCY, RECORD, ROW_HASH, ROW_WEIGHT, SPLIT_COLUMN
from recsys_ray.data.prepare.schema_inference import infer_schema
from recsys_ray.data.sources.column_types import TableColumns, check_columns, check_join_key
from recsys_ray.schema import Categorical, Dense, Label, Schema, Timestamp, Weight

pytestmark = pytest.mark.unit

TABLE = pa.schema(
    [
        ("rating", pa.float32()),
        ("user_id", pa.int64()),
        ("item_city", pa.dictionary(pa.int32(), pa.string())),
        ("genres", pa.large_list(pa.string())),
        ("codes", pa.list_(pa.int32(), 3)),
        ("account", pa.decimal128(38, 0)),
        ("price", pa.decimal128(10, 2)),
        ("note", pa.string_view()),
        ("at", pa.timestamp("us", "UTC")),
        ("later", pa.date32()),
        ("nothing", pa.null()),
        ("blob", pa.binary()),
        ("deep", pa.struct([("a", pa.int32())])),
        ("moments", pa.list_(pa.timestamp("s"))),
        ("vector", pa.list_(pa.float32())),
    ]
)
HASH_ROWS = 1 << 18
OWN = ["clip.lengths", RECORD, SPLIT_COLUMN, ROW_HASH, ROW_WEIGHT, FREQUENCY]


def test_inferred_schema_survives_json():
    schema = infer_schema(TABLE)
    assert schema.columns == (
        Label("rating", positive_above=3.0),
        Categorical("user_id", "user", "int", "vocabulary", key=True),
        Categorical("item_city", "item", "string", "vocabulary"),
        Categorical("genres", dtype="string", encoding="vocabulary", multi=True),
        Categorical("codes", num_embeddings=HASH_ROWS, multi=True),
        Categorical("account", num_embeddings=HASH_ROWS),
        Dense("price", scale="standard"),
        Categorical("note", dtype="string", encoding="vocabulary"),
        Timestamp("at"),
    )
    assert Schema.from_json(schema.to_json()) == schema
    assert len(schema.to_json().splitlines()) == len(schema.columns) + 2, "one column a line"
    check_columns(schema.columns, TABLE, "x.parquet")
    weighted = Schema((*schema.columns, Weight("w")))
    assert Schema.from_json(weighted.to_json()) == weighted


def test_a_label_is_found_or_asked_for():
    assert infer_schema(pa.schema([("click", pa.bool_()), ("u", pa.int32())])).label == Label("click")
    assert infer_schema(pa.schema([("bought", pa.bool_()), ("u", pa.int32())]), "bought").label == Label("bought")
    with pytest.raises(ValueError, match=r"name the label with --label \(bought, u\)"):
        infer_schema(pa.schema([("bought", pa.bool_()), ("u", pa.int32())]))
    assert infer_schema(pa.schema([("at", pa.date32()), ("u", pa.int32())]), "none").label is None
    with pytest.raises(ValueError, match="--label 'buy' is not a column: the table has bought, u"):
        infer_schema(pa.schema([("bought", pa.bool_()), ("u", pa.int32())]), "buy")


LABEL, COLUMN = {"kind": "label", "name": "y"}, {"kind": "categorical", "name": "c", "num_embeddings": 10}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([LABEL, {**COLUMN, "key": True}], r"column 'c': a key holds one value a row and is on side user or item"),
        ([{**COLUMN, "key": True, "side": "item", "multi": True}], r"column 'c': a key holds one value a row"),
        (
            [{**COLUMN, "key": True, "side": "item"}, {**COLUMN, "name": "d", "key": True, "side": "item"}],
            "columns 'c' and 'd' are both the key of side item",
        ),
        ([LABEL, {**LABEL, "name": "z"}, COLUMN], r"label columns found: \['y', 'z'\]; wants at most one"),
        ([LABEL], "no categorical column"),
        ([LABEL, COLUMN, COLUMN], "column 'c' appears more than once"),
        *(([LABEL, {**COLUMN, "name": name}], f"column {name!r} has a name, .*: rename it") for name in ("", *OWN)),
        ([LABEL, "c"], 'a column must be like {"kind": "dense", "name": "price"}, but one is "c"'),
        ([LABEL, {"kind": "dense"}], "a column must be like"),
        ([LABEL, {**COLUMN, "kind": "sparse"}], "column 'c': kind is 'sparse'; wants one of label, dense, categorical"),
        ([LABEL, {**COLUMN, "size": 3}], "column 'c': a categorical has no 'size', only name, side, dtype"),
        ([LABEL, {**COLUMN, "encoding": "vocab"}], "column 'c': encoding is 'vocab'; wants hash, vocabulary, identity"),
        ([LABEL, {**COLUMN, "num_embeddings": "10"}], "column 'c': num_embeddings is '10'; wants int"),
        ([LABEL, {**COLUMN, "multi": 1}], "column 'c': multi is 1; wants bool"),
        ([LABEL, {**COLUMN, "num_embeddings": 1}], "column 'c': num_embeddings is 1; wants 2 to"),
        ([LABEL, {**COLUMN, "num_embeddings": 2**31}], "column 'c': num_embeddings is 2147483648; wants 2 to"),
        ([LABEL, {**COLUMN, "encoding": "identity", "dtype": "string"}], "encoding identity wants dtype int"),
        ([LABEL, COLUMN, {**COLUMN, "name": "d", "num_embeddings": 20, "table": "c"}], "'c' and 'd' share table 'c' but differ"),
        ([{**LABEL, "positive_above": "3"}, COLUMN], "column 'y': positive_above is '3'; wants float | None"),
    ],
)
def test_mistakes_in_a_schema_file(columns, message, tmp_path):
    (tmp_path / "schema.json").write_text(json.dumps({"columns": columns}))
    with pytest.raises(ValueError, match=message.replace("|", r"\|")) as error:
        Schema.load(tmp_path / "schema.json")
    assert str(error.value).startswith(str(tmp_path / "schema.json"))


def test_no_schema_or_no_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no schema file at .*: write a first one with"):
        Schema.load(tmp_path / "schema.json")
    for text in ("{", "[]", '{"fields": []}'):
        with pytest.raises(ValueError, match=r'x.json is not a schema: it wants \{"columns"'):
            Schema.from_json(text, "x.json")


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (Dense("c"), pa.string(), "string, but a dense column must be a number or boolean: cast it"),
        (Dense("c"), pa.null(), "every value is null, so leave it out of the schema, or write it with its real type"),
        (Label("c"), pa.string(), "a label column must be a number or boolean: cast it when you write the Parquet"),
        (Timestamp("c"), pa.time32("s"), "must be a timestamp, date or integer: cast it"),
        (Timestamp("c"), pa.float64(), "must be a timestamp, date or integer: cast it"),
        (Categorical("c", num_embeddings=9), pa.string(), 'must be a whole number .*say "dtype": "string" in the schema'),
        (Categorical("c", dtype="string", num_embeddings=9), pa.int8(), 'must be a string .*say "dtype": "int" in the schema'),
        (Categorical("c", num_embeddings=9), pa.list_(pa.int64()), 'list<.*: say "multi": true in the schema'),
        (Categorical("c", num_embeddings=9, multi=True), pa.int64(), 'must be a list .*: say "multi": false in the schema'),
        (Categorical("c", num_embeddings=9, multi=True), pa.list_(pa.string()), 'say "dtype": "string" in the schema'),
        (Categorical("c", num_embeddings=9, multi=True), pa.struct([("a", pa.int8())]), "or leave it out of the schema"),
        (Categorical("c", num_embeddings=9), pa.binary(), "cast it when you write the Parquet, or leave it out of the schema"),
        (Categorical("c", num_embeddings=9), pa.null(), "every value is null"),
    ],
)
def test_types_that_a_kind_cannot_take(column, kind, message):
    columns = [Categorical("z", num_embeddings=9), column] + ([] if isinstance(column, Label) else [Label("y")])
    table = pa.schema([("y", pa.float32()), ("z", pa.int64()), ("c", kind)])
    with pytest.raises(ValueError, match=f"column 'c' in x.parquet has type .*{message}"):
        check_columns(Schema(tuple(columns)).columns, table, "x.parquet")


def test_join_keys_must_be_alike():
    def table(origin: str, kind: pa.DataType) -> TableColumns:
        return TableColumns(pa.schema([("k", kind)]), origin)

    ids, words = table("a", pa.int64()), table("a", pa.large_string())
    check_join_key("k", ids, table("b", pa.float64()))
    check_join_key("k", words, table("b", pa.dictionary(pa.int8(), pa.string())))
    with pytest.raises(ValueError, match="join key 'k' has type int64 in a but large_string in b"):
        check_join_key("k", ids, table("b", pa.large_string()))
    with pytest.raises(ValueError, match="join key 'u' is not a column of a, which has: k"):
        check_join_key("u", ids, table("b", pa.int64()))
    with pytest.raises(ValueError, match="join key 'k' of b has type list<"):
        check_join_key("k", ids, table("b", pa.list_(pa.int8())))
