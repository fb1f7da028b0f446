"""The catalogue of a dataset directory as tensors, encoded by the same transform as the interactions."""

from __future__ import annotations

import torch

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.blocks.packing import to_block
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import item_columns, load_catalogue, load_vocabularies
from recsys_ray.data.transform import transform
from recsys_ray.data.vocabulary import build_lookups


def load_encoded_catalogue(dataset: DatasetDirectory) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Returns the item columns as a batch has them, and the frequency of each item, float32 [items].

    Raises FileNotFoundError when the dataset has no catalogue.
    """
    items = load_catalogue(dataset)
    wanted = [name for name in item_columns(dataset.schema) if name in items.column_names]
    lookups = build_lookups(load_vocabularies(dataset.root, dataset.schema))
    encoded = transform(items.select(wanted), dataset.schema, lookups)
    columns = {name: torch.from_numpy(values.copy()) for name, values in to_block(encoded).items()}
    return columns, torch.from_numpy(items[FREQUENCY].to_numpy().astype("float32"))


def value_names(dataset: DatasetDirectory, column: str) -> tuple[str, ...]:
    """Returns the raw value of each table row of a user column, by which metrics are grouped; "unknown" for row 0.

    Returns an empty tuple when `column` is empty or has no vocabulary. Raises ValueError when the schema has no such column.
    """
    if not column:
        return ()
    found = next((one for one in dataset.schema.categorical if one.name == column and one.side == "user" and not one.multi), None)
    if found is None:
        raise ValueError(f"--model.group-by {column!r} is not a single-valued categorical user column of the schema")
    vocabulary = load_vocabularies(dataset.root, dataset.schema).get(found.table_name)
    return ("unknown", *map(str, vocabulary.to_pylist())) if vocabulary is not None else ()
