"""The Parquet files of a dataset directory: its vocabularies, and the catalogue of its items."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.vocabulary import Vocabularies
from recsys_ray.schema import Schema

CATALOGUE = "catalogue.parquet"


def item_columns(schema: Schema) -> list[str]:
    """Returns the names of the columns on side item, which describe an item of the catalogue to a model."""
    return [column.name for column in schema.features_of("item")]


def write_catalogue(root: Path, items: pa.Table) -> None:
    """Writes the catalogue of a dataset directory: one row per item, its raw columns and FREQUENCY."""
    pq.write_table(items, root / CATALOGUE)


def load_catalogue(dataset: DatasetDirectory) -> pa.Table:
    """Reads raw item columns and FREQUENCY, one row per item. Raises FileNotFoundError when the dataset has no item key."""
    if not (dataset.root / CATALOGUE).exists():
        raise FileNotFoundError(
            f'{dataset.root} has no {CATALOGUE}: retrieval wants "key": true in the schema at the columns that tell users and '
            "items apart; then prepare the dataset again"
        )
    return pq.read_table(dataset.root / CATALOGUE)


def write_vocabularies(root: Path, vocabularies: Vocabularies) -> None:
    """Writes one Parquet file per vocabulary, with its values in the order of their table rows."""
    for name, values in vocabularies.items():
        (root / "vocabularies").mkdir(exist_ok=True)
        pq.write_table(pa.table({"value": values}), _vocabulary_file(root, name))


def load_vocabularies(root: Path, schema: Schema) -> Vocabularies:
    """Reads the vocabulary of every table that has one. Raises ValueError naming a file that cannot be read."""
    names = [name for name, columns in schema.tables.items() if columns[0].encoding == "vocabulary"]
    return {name: _read_vocabulary(_vocabulary_file(root, name)) for name in names}


def _read_vocabulary(file: Path) -> pa.Array:
    try:
        return pq.read_table(file)["value"].combine_chunks()
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{file} cannot be read as a vocabulary ({error}): prepare the dataset again") from error


def _vocabulary_file(root: Path, table: str) -> Path:
    return root / "vocabularies" / f"{quote(table, safe=' ')}.parquet"
