"""A readable sample: what some users of the test split liked, and what the index recommends to them, by title."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import torch

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.data.transform import table_rows
from recsys_ray.schema import Schema
from recsys_ray.serving.bundle import Retriever, load_retriever
from recsys_ray.serving.index.vector_index import SCORE, open_index

LINES = 10
"""Items printed of each list."""


class EarlierItems(NamedTuple):
    """Table rows of the items of one user in the splits before the test split."""

    seen: list[int]
    liked: list[int]


@dataclass(frozen=True)
class Recommended:
    """The sample of one user, ready to print."""

    user: int
    """Counted from 1."""
    seen: int
    """The number of items seen."""
    liked: list[str]
    titles: list[str]
    scores: list[float]

    def __str__(self) -> str:
        lines = [
            f"\nuser {self.user} of the test split liked {len(self.liked)} of {self.seen} items, among them",
            *(f"  {name}" for name in self.liked[:LINES]),
            "and is recommended",
            *(f"  {score:6.2f}  {name}" for score, name in zip(self.scores, self.titles, strict=True)),
        ]
        return "\n".join(lines)


def recommendations(run_dir: Path, uri: str, users: int, title: str) -> Iterator[str]:
    """Yields a text for each of the first `users` users of the test split. Reads the earlier splits once for what they chose.

    Raises ValueError where there is no test split, or no column `title` in the catalogue.
    """
    retriever = load_retriever(run_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    catalogue = load_catalogue(dataset)
    if title not in catalogue.column_names:
        raise ValueError(f"--title {title!r} is not a column of the catalogue: {', '.join(catalogue.column_names)}")
    index = open_index(uri, retriever.version)
    columns = _first_users(dataset, users)
    vectors = retriever.embed_encoded_queries(columns)
    user, item = dataset.schema.key("user"), retriever.item_key
    assert user is not None
    for position, earlier in enumerate(_earlier_items(dataset, columns[user.name], user.name, item)):
        liked, seen = (_catalogue_rows(retriever, catalogue, rows) for rows in (earlier.liked, earlier.seen))
        query, exclude = vectors[position : position + 1], [seen[item].to_pylist()]
        (found,) = index.search(query, LINES, exclude=exclude, columns=[title])
        yield str(
            Recommended(
                user=position + 1,
                seen=len(seen),
                liked=liked[title].to_pylist(),
                titles=found[title].to_pylist(),
                scores=found[SCORE].to_pylist(),
            )
        )


def _first_users(dataset: DatasetDirectory, users: int) -> Columns:
    """Returns the first rows of the test split, at most `users`."""
    columns = next(read_split(dataset, "test"), None)
    if columns is None:
        raise ValueError(f"{dataset.root} has no test split, whose users --show would show")
    return _head(dataset.schema, columns, users)


def _head(schema: Schema, columns: Columns, rows: int) -> Columns:
    kept: Columns = {}
    for column in schema.columns:
        lengths = columns.get(column.name + LENGTHS)
        if lengths is None:
            kept[column.name] = columns[column.name][:rows]
        else:
            kept[column.name + LENGTHS] = lengths[:rows]
            kept[column.name] = columns[column.name][: int(lengths[:rows].sum())]
    return kept


def _earlier_items(dataset: DatasetDirectory, users: torch.Tensor, user: str, item: str) -> list[EarlierItems]:
    """Returns for each user what the splits before the test split hold."""
    found = [EarlierItems([], []) for _ in users]
    label = dataset.schema.label
    for split in ("train", "validation"):
        for columns in read_split(dataset, split):
            for row in torch.isin(columns[user], users).nonzero().flatten().tolist():
                items = found[users.tolist().index(int(columns[user][row]))]
                items.seen.append(int(columns[item][row]))
                if label is None or columns[label.name][row] > 0:
                    items.liked.append(int(columns[item][row]))
    return found


def _catalogue_rows(retriever: Retriever, catalogue: pa.Table, rows: list[int]) -> pa.Table:
    """Returns the catalogue's entries of these table rows; items that are not in the catalogue are left out."""
    key = retriever.schema.key("item")
    assert key is not None
    known = pa.array(table_rows(key, catalogue[key.name].combine_chunks(), retriever.encoder.lookups))
    return catalogue.take(pc.index_in(pa.array(rows, pa.int32()), value_set=known).drop_null())
