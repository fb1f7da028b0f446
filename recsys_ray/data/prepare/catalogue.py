"""The catalogue: every item that may be recommended, with its raw columns and how often training rows chose it.

It is the item table when there is one, else the items of the interactions. The dataset directory holds it as
`catalogue.parquet` with one row per item. Its columns are encoded when it is read, by the same transform as the interactions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import FREQUENCY, ROW_HASH
from recsys_ray.data.dataset.tables import item_columns
from recsys_ray.data.sources.source import Source
from recsys_ray.data.transform import canonical_ids
from recsys_ray.data.vocabulary import value_hashes
from recsys_ray.schema import Categorical, Schema

ITEMS_NAMED = 5
"""How many of the items that the item table lacks are named to the user."""


def check_item_key(source: Source, schema: Schema) -> None:
    """Raises ValueError when the item table is joined on a column other than the item key, or lacks an item column."""
    key = schema.key("item")
    if key is None or source.items is None:
        return
    path, join_key, table = source.items
    if join_key != key.name:
        raise ValueError(
            f"--items {path} is joined on --item-key {join_key!r}, but the schema's item key is {key.name!r}: name one of them"
        )
    for name in item_columns(schema):
        if name not in table.arrow_schema.names:
            raise ValueError(
                f"column {name!r} is on side item but not in {path}, so it would be unknown of items in the catalogue: put it "
                "there, or on side context"
            )


def read_item_table(source: Source, key: Categorical) -> pa.Table | None:
    """Reads the item table with all its columns, without rows that lack the key; None when there is no item table."""
    if source.items is None:
        return None
    table = source.items.table
    items = table.read(table.arrow_schema.names)
    return items.filter(canonical_ids(key, items[key.name].combine_chunks()).is_valid())


def distinct_items(rows: pa.Table, names: list[str], key: Categorical) -> pa.Table:
    """Returns item columns `names` and ROW_HASH of interactions, one row per item.

    It is the row with the smallest ROW_HASH, hence the same in whatever batches the rows come.
    """
    return _first_rows(rows.select([*names, ROW_HASH]), key)


def merge_items(key: Categorical, left: pa.Table, right: pa.Table) -> pa.Table:
    """Returns the distinct items of two tables that `distinct_items` returned."""
    return _first_rows(pa.concat_tables([left, right]), key)


def add_frequencies(items: pa.Table, key: Categorical, frequencies: pa.Table) -> tuple[pa.Table, list[str]]:
    """Returns `items` with FREQUENCY, and the items of `frequencies` that are not among them, most frequent first.

    `frequencies` has the columns value (the item key as text) and frequency; an item that it lacks has frequency 0.
    """
    ids = canonical_ids(key, items[key.name].combine_chunks()).cast(pa.string())
    counts = frequencies["frequency"].take(pc.index_in(ids, value_set=frequencies["value"].combine_chunks(), skip_nulls=True))
    absent = frequencies.filter(pc.invert(pc.is_in(frequencies["value"], value_set=ids)))
    absent = absent.sort_by([("frequency", "descending"), ("value", "ascending")])
    return items.append_column(FREQUENCY, pc.fill_null(counts, 0)), absent["value"].to_pylist()


def absent_items_note(absent: list[str], key: Categorical, path: str) -> str:
    """Returns a note for the user about items that training rows chose and the item table `path` lacks."""
    some = ", ".join(absent[:ITEMS_NAMED]) + (", ..." if len(absent) > ITEMS_NAMED else "")
    return (
        f"{len(absent):,} items of the interactions are not in {path} ({key.name} {some}): they are trained on, without the "
        "columns of that table, and never recommended; add them if they should be"
    )


def _first_rows(rows: pa.Table, key: Categorical) -> pa.Table:
    rows = rows.sort_by(ROW_HASH)
    rows = rows.filter(canonical_ids(key, rows[key.name].combine_chunks()).is_valid())
    _, first = np.unique(value_hashes(canonical_ids(key, rows[key.name].combine_chunks())), return_index=True)
    return rows.take(first)
