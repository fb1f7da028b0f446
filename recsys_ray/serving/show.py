"""For people: what some users of the test split liked, and what the index recommends to them, by title."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

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
from recsys_ray.serving.index.build import open_any_index
from recsys_ray.serving.index.lance import SCORE

LINES = 10


def recommendations(run_dir: Path, uri: str, users: int, title: str) -> Iterator[str]:
    """A page for each of the first `users` users of the test split: the training rows are read once for what they chose.

    Raises ValueError where there is no test split, or no column `title` in the catalogue.
    """
    retriever = load_retriever(run_dir)
    dataset = DatasetDirectory.open(retriever.dataset)
    catalogue = load_catalogue(dataset)
    if title not in catalogue.column_names:
        raise ValueError(f"--title {title!r} is not a column of the catalogue: {', '.join(catalogue.column_names)}")
    index = open_any_index(uri, retriever, [retriever.item_key, title])
    columns = _first_users(dataset, users)
    vectors = retriever.embed_encoded_queries(columns)
    user, item = dataset.schema.key("user"), retriever.item_key
    assert user is not None
    for place, (seen, liked) in enumerate(_choices(dataset, columns[user.name], user.name, item)):
        shown, known = (_entries(retriever, catalogue, rows) for rows in (liked, seen))
        found = index.search(vectors[place : place + 1], LINES, exclude=[known[item].to_pylist()])[0]
        yield _page(place + 1, shown[title].to_pylist(), len(known), found[title].to_pylist(), found[SCORE].to_pylist())


def _first_users(dataset: DatasetDirectory, users: int) -> Columns:
    """The first rows of the test split: `users` at most."""
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


def _choices(dataset: DatasetDirectory, users: torch.Tensor, user: str, item: str) -> list[tuple[list[int], list[int]]]:
    """For each user the table rows of all items of earlier splits, and of those that were liked."""
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in users]
    label = dataset.schema.label
    for split in ("train", "validation"):
        for columns in read_split(dataset, split):
            for row in torch.isin(columns[user], users).nonzero().flatten().tolist():
                seen, liked = found[users.tolist().index(int(columns[user][row]))]
                seen.append(int(columns[item][row]))
                if label is None or columns[label.name][row] > 0:
                    liked.append(int(columns[item][row]))
    return found


def _entries(retriever: Retriever, catalogue: pa.Table, rows: list[int]) -> pa.Table:
    """Of the catalogue, by table row."""
    key = retriever.schema.key("item")
    assert key is not None
    known = pa.array(table_rows(key, catalogue[key.name].combine_chunks(), retriever.vocabularies))
    return catalogue.take(pc.index_in(pa.array(rows, pa.int32()), value_set=known).drop_null())


def _page(user: int, liked: list[str], seen: int, found: list[str], scores: list[float]) -> str:
    lines = [
        f"\nuser {user} of the test split liked {len(liked)} of {seen} items, among them",
        *(f"  {name}" for name in liked[:LINES]),
    ]
    return "\n".join(
        [*lines, "and is recommended", *(f"  {score:6.2f}  {name}" for score, name in zip(scores, found, strict=True))]
    )
