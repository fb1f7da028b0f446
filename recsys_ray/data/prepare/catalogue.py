"""The catalogue: every item that may be recommended, with its raw columns, and how often training rows chose it.

It is the item table where there is one, else the items of the interactions. `catalogue.parquet` holds it in the dataset
directory, one row an item; the columns are encoded when it is read, by the transform that encoded the interactions.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_ray.columns import FREQUENCY, ROW_HASH
from recsys_ray.data.sources.source import Source
from recsys_ray.data.transform import canonical, value_hashes
from recsys_ray.schema import Categorical, Schema

EXAMPLES = 5


def items_of(batch: pa.Table, names: list[str], key: Categorical) -> pa.Table:
    """Item columns `names` of the interactions in the batch, one row an item: that of the smallest ROW_HASH, hence the same in
    whatever batches the rows come."""
    return first_of_each(batch.select([*names, ROW_HASH]), key)


def first_of_each(rows: pa.Table, key: Categorical) -> pa.Table:
    rows = rows.sort_by(ROW_HASH)
    rows = rows.filter(canonical(key, rows[key.name].combine_chunks()).is_valid())
    _, first = np.unique(value_hashes(canonical(key, rows[key.name].combine_chunks())), return_index=True)
    return rows.take(first)


def merged_items(key: Categorical, left: pa.Table, right: pa.Table) -> pa.Table:
    return first_of_each(pa.concat_tables([left, right]), key)


def item_columns(schema: Schema) -> list[str]:
    return [column.name for column in schema.features if column.side == "item"]


def check_item_key(source: Source, schema: Schema) -> None:
    """Raises ValueError where the item table is joined by another column than the item key, or lacks an item column."""
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


def item_table(source: Source, key: Categorical) -> pa.Table | None:
    """The items given, with all their columns; None where the interactions are all there is."""
    if source.items is None:
        return None
    _, _, table = source.items
    items = table.read(table.arrow_schema.names)
    return items.filter(canonical(key, items[key.name].combine_chunks()).is_valid())


def with_frequencies(items: pa.Table, key: Categorical, frequencies: pa.Table) -> tuple[pa.Table, list[str]]:
    """`items` with FREQUENCY, and those of `frequencies` (columns value, as text, and frequency) that are not among them."""
    ids = canonical(key, items[key.name].combine_chunks()).cast(pa.string())
    counts = frequencies["frequency"].take(pc.index_in(ids, value_set=frequencies["value"].combine_chunks(), skip_nulls=True))
    absent = frequencies.filter(pc.invert(pc.is_in(frequencies["value"], value_set=ids)))
    absent = absent.sort_by([("frequency", "descending"), ("value", "ascending")])
    return items.append_column(FREQUENCY, pc.fill_null(counts, 0)), absent["value"].to_pylist()


def absence(absent: list[str], key: Categorical, path: str) -> str:
    """What to tell the user of items that training rows chose and `path`, the item table, lacks."""
    some = ", ".join(absent[:EXAMPLES]) + (", ..." if len(absent) > EXAMPLES else "")
    return (
        f"{len(absent):,} items of the interactions are not in {path} ({key.name} {some}): they are trained on, without the "
        "columns of that table, and never recommended; add them if they should be"
    )
