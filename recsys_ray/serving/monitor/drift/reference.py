"""The reference that requests are compared with: the rows that a model was trained and tested on.

It is computed anew from a sample of the row blocks, which takes seconds whatever the size of the dataset: preparation shuffles
the rows of a split, so the first blocks are a random sample, and the same every time. So nothing is stored that could be stale.

Bins are decided by training rows, and filled with rows of the validation and test splits. Training rows cannot be both: a
vocabulary knows every value of theirs, and the values that happen to be frequent among them are less so among other rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.loading.split_reader import read_split
from recsys_ray.data.vocabulary import Vocabularies
from recsys_ray.schema import Schema
from recsys_ray.serving.monitor.drift.bins import Bins, frequency_bins, quantile_bins
from recsys_ray.serving.monitor.stability import independent_rows

if TYPE_CHECKING:
    from recsys_ray.serving.ranker import Ranker

SAMPLED_ROWS = 1 << 17
"""Rows that are read of each split."""
REFERENCE_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Sample:
    """Rows by bin, float64 [bins], which add up to the number of independent rows."""

    counts: np.ndarray

    @staticmethod
    def of(counts: np.ndarray, independent: float) -> Sample:
        """Scales weighted counts."""
        total = counts.sum()
        return Sample(counts * (independent / total) if total else counts)

    @property
    def rows(self) -> float:
        """The number of independent rows."""
        return float(self.counts.sum())


@dataclass(frozen=True)
class Reference:
    """The distribution of every feature in a dataset."""

    splits: tuple[str, ...]
    """The splits whose rows are compared with."""
    independent: float
    """The number of independent rows among them."""
    bins: dict[str, Bins]
    samples: dict[str, Sample]
    missing: dict[str, float]
    """The share of missing raw values in all rows of the dataset."""
    unseen: dict[str, float]
    """The share of rows that hold a value which the vocabulary lacks, of each column that has one."""


def read_reference(dataset: DatasetDirectory) -> Reference:
    """Reads a sample of the blocks of a dataset."""
    schema, vocabularies = dataset.schema, load_vocabularies(dataset.root, dataset.schema)
    bins = _bins_of(_whole(read_split_rows(dataset, ("train",))), schema, vocabularies)
    splits = tuple(split for split in REFERENCE_SPLITS if dataset.summary["rows"][split]) or ("train",)
    counts, users = {name: np.zeros(len(one.labels)) for name, one in bins.items()}, []
    for block in read_split_rows(dataset, splits):
        for column in schema.features:
            values = block[column.name].numpy()
            counts[column.name] += bins[column.name].count(values, value_weights(block, column.name))
        users.append(_users(block, schema))
    independent = independent_rows(_distinct_unknowns(np.concatenate(users)))
    missing = {name: counted["missing_rate"] for name, counted in dataset.summary["columns"].items()}
    samples = {name: Sample.of(found, independent) for name, found in counts.items()}
    unseen = {
        column.name: max(0.0, samples[column.name].counts[0] / independent - missing[column.name])
        for column in schema.categorical
        if column.encoding == "vocabulary"
    }
    return Reference(splits, independent, bins, samples, missing, unseen)


def read_split_rows(dataset: DatasetDirectory, splits: tuple[str, ...]) -> Iterator[Columns]:
    """Yields blocks of the splits, SAMPLED_ROWS of each."""
    for split in splits:
        rows = 0
        for block in read_split(dataset, split):
            yield block
            rows += dataset.summary["block_rows"]
            if rows >= SAMPLED_ROWS:
                break


def reference_scores(dataset: DatasetDirectory, ranker: Ranker, splits: tuple[str, ...]) -> np.ndarray:
    """Returns the ranking model's scores of the reference rows, float32 [rows].

    Raises ValueError where the model was trained on another dataset.
    """
    trained, found = ranker.manifest.dataset.get("fingerprint"), dataset.summary["fingerprint"]
    if trained != found:
        raise ValueError(
            f"--ranker was trained on {ranker.manifest.dataset.get('path')} (fingerprint {trained}), which is not what --data "
            f"{dataset.root} holds ({found}): name the dataset that it was trained on"
        )
    return np.concatenate([ranker.predict_encoded(block) for block in read_split_rows(dataset, splits)])


def value_weights(block: Columns | dict[str, np.ndarray], name: str) -> np.ndarray:
    """Returns the weight of each value of a column: 1, or its share of the row's values where the column is multi-valued."""
    if name + LENGTHS not in block:
        return np.ones(len(block[name]))
    lengths = np.asarray(block[name + LENGTHS])
    return np.repeat(1 / lengths, lengths)


def _whole(blocks: Iterator[Columns]) -> dict[str, np.ndarray]:
    parts: dict[str, list[np.ndarray]] = defaultdict(list)
    for block in blocks:
        for name, values in block.items():
            parts[name].append(values.numpy())
    return {name: np.concatenate(values) for name, values in parts.items()}


def _bins_of(rows: dict[str, np.ndarray], schema: Schema, vocabularies: Vocabularies) -> dict[str, Bins]:
    bins = {column.name: quantile_bins(rows[column.name], column) for column in schema.dense}
    for column in schema.categorical:
        counts = np.bincount(rows[column.name], value_weights(rows, column.name), column.num_embeddings)
        bins[column.name] = frequency_bins(counts, column, vocabularies.get(column.table_name))
    return bins


def _users(block: Columns, schema: Schema) -> np.ndarray:
    """Returns the user of each row; 0 where it is unknown, or where no column tells users apart."""
    if key := schema.key("user"):
        return block[key.name].numpy().astype(np.int64)
    name = schema.features[0].name
    return np.zeros(len(block.get(name + LENGTHS, block[name])), np.int64)


def _distinct_unknowns(users: np.ndarray) -> np.ndarray:
    """Returns the users with a number of its own for each that is unknown."""
    return np.where(users == 0, -1 - np.arange(len(users)), users)
