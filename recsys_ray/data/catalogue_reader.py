"""The catalogue of a dataset directory as a model takes it: encoded by the transform that encoded the interactions."""

from __future__ import annotations

import torch

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.blocks.records import to_block
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue, load_vocabularies
from recsys_ray.data.prepare.catalogue import item_columns
from recsys_ray.data.transform import transform


def encoded_catalogue(dataset: DatasetDirectory) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Item columns as a stream yields them, and the frequency of each item, float32 [N].

    Raises FileNotFoundError where the dataset has no catalogue.
    """
    items = load_catalogue(dataset)
    wanted = [name for name in item_columns(dataset.schema) if name in items.column_names]
    encoded = transform(items.select(wanted), dataset.schema, load_vocabularies(dataset.root, dataset.schema))
    columns = {name: torch.from_numpy(values.copy()) for name, values in to_block(encoded).items()}
    return columns, torch.from_numpy(items[FREQUENCY].to_numpy().astype("float32"))


def group_names(dataset: DatasetDirectory, column: str) -> tuple[str, ...]:
    """What each table row of a column stands for, as far as a vocabulary knows. Raises ValueError for no such column."""
    if not column:
        return ()
    found = next((one for one in dataset.schema.categorical if one.name == column and one.side == "user" and not one.multi), None)
    if found is None:
        raise ValueError(f"--model.group-by {column!r} is not a single-valued categorical user column of the schema")
    vocabulary = load_vocabularies(dataset.root, dataset.schema).get(found.table_name)
    return ("unknown", *map(str, vocabulary.to_pylist())) if vocabulary is not None else ()
