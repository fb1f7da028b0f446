"""The teacher: a known logistic model that labels the rows of `synthetic.py`, and the best AUC that any model can reach on them.

Everything random is a hash of (seed, column, row number), so that a row is the same in whatever batch and process it is computed.
The logit is the sum of an effect of each id, a linear effect of each dense column, and products of the effects of two ids. With
the defaults, a DLRM in plain torch came within .005 of the best AUC in one epoch over a million rows.
Imports only numpy and Arrow, so that benchmarks can use it anywhere.
"""

from __future__ import annotations

import functools
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

MAX_LIST = 4
"""The longest list in the multi-valued column; lists of 1 to this many ids are equally likely."""
BINS = 1 << 16
"""The number of equal intervals of probability in which labels are counted."""


@dataclass(frozen=True)
class Teacher:
    """The parameters of the model and of its columns.

    Columns: label, i1, i2, ... (float32, nearly normal), c1, c2, ... (int64 ids from 0) and, with `multi`, m1 (lists of ids).
    """

    dense: int = 13
    categorical: int = 26
    num_embeddings: int = 10_000
    """Rows of the largest table, one of them for missing ids; sizes grow geometrically from 11 rows for c1 to this many."""
    exponent: float = 1.5
    """The frequency of an id is proportional to (id + 1) ** -exponent."""
    effective_ids: int = 20
    """How many ids of a column have an effect, the most frequent ones: so few that a model can learn almost all of them."""
    interactions: int = 2
    """The number of pairs of columns, (c1, c2), (c3, c4), ..., for which the effects of the two ids are multiplied."""
    multi: bool = False
    logit_std: float = 1.3
    bias: float = -1.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.exponent <= 1:
            raise ValueError(f"synthetic: exponent is {self.exponent}; wants more than 1")
        if self.categorical < 1 or self.dense < 0 or self.num_embeddings < 3:
            raise ValueError("synthetic: wants categorical 1 or more, dense 0 or more, num_embeddings 3 or more")

    @property
    def ids(self) -> dict[str, int]:
        """The number of ids of each id column by name."""
        largest = self.num_embeddings - 1
        sizes = np.geomspace(min(10, largest), largest, self.categorical).round().astype(int)
        columns = {f"c{number}": int(size) for number, size in enumerate(sizes, 1)}
        return columns | ({"m1": max(2, largest // 10)} if self.multi else {})

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """The pairs of columns with a joint effect."""
        return [(f"c{2 * number + 1}", f"c{2 * number + 2}") for number in range(min(self.interactions, self.categorical // 2))]


def load_teacher(folder: Path) -> Teacher:
    """Reads the teacher of the data set in `folder`. Raises FileNotFoundError when the set is not a synthetic one."""
    return Teacher(**json.loads((Path(folder) / "teacher.json").read_text())["teacher"])


def generate_rows(teacher: Teacher, numbers: np.ndarray) -> pa.Table:
    """Returns the rows with these numbers (integers from 0, in any order), label first."""
    numbers = numbers.astype(np.uint64)
    columns: dict[str, pa.Array | np.ndarray] = {}
    for number in range(1, teacher.dense + 1):
        columns[f"i{number}"] = _normal(teacher, f"i{number}", numbers).astype(np.float32)
    for name, size in teacher.ids.items():
        column = _lists if name == "m1" else _power_law
        columns[name] = column(teacher, name, numbers, size)
    table = pa.table(columns)
    label = (_uniform(teacher, "label", numbers) < teacher_probability(table, teacher)).astype(np.int8)
    return table.add_column(0, "label", pa.array(label))


def teacher_probability(table: pa.Table, teacher: Teacher) -> np.ndarray:
    """Returns the true probability of label 1 for each row, float64 [rows]; no model can rank better, except by luck.

    `table` has the columns i*, c* and m1 as they were written. Raises KeyError for a missing one.
    """
    dense, direct, paired = _effects(teacher)
    logit = np.full(len(table), teacher.bias)
    for name, weight in dense.items():
        logit += weight * table[name].to_numpy()
    for name, effect in direct.items():
        logit += _mean_effect(table[name], effect) if name == "m1" else effect[_clip(table[name], effect)]
    for first, second in teacher.pairs:
        left, right = paired[first], paired[second]
        logit += left[_clip(table[first], left)] * right[_clip(table[second], right)]
    return 1 / (1 + np.exp(-logit))


class LabelCounts(NamedTuple):
    """The number of rows with label 1 and label 0 in each of BINS intervals of true probability; parts of a set add up."""

    positive: np.ndarray
    negative: np.ndarray


def count_labels(table: pa.Table, teacher: Teacher) -> LabelCounts:
    """Counts the labels of rows by their true probability."""
    bins = (teacher_probability(table, teacher) * BINS).astype(np.int64)
    label = table["label"].to_numpy() == 1
    return LabelCounts(np.bincount(bins[label], minlength=BINS), np.bincount(bins[~label], minlength=BINS))


def auc_of_counts(counts: LabelCounts) -> float:
    """Returns the area under the ROC curve, NaN without both labels; rows of one interval count half (an error below 1e-6)."""
    positive, negative = counts.positive.astype(np.float64), counts.negative.astype(np.float64)
    below = np.cumsum(negative) - negative / 2
    total = positive.sum() * negative.sum()
    return float((positive * below).sum() / total) if total else float("nan")


class _Effects(NamedTuple):
    dense: dict[str, float]
    """The weight of each dense column: together a fifth of the variance of the logit."""
    direct: dict[str, np.ndarray]
    """The effects of the ids of each column: three fifths of the variance."""
    paired: dict[str, np.ndarray]
    """The effects of ids within pairs, by column: a fifth of the variance."""


@functools.lru_cache(maxsize=8)
def _effects(teacher: Teacher) -> _Effects:
    names = [f"i{number}" for number in range(1, teacher.dense + 1)]
    draws = _normal(teacher, "dense weights", np.arange(teacher.dense, dtype=np.uint64))
    scale = teacher.logit_std / max(float(np.linalg.norm(draws)), 1e-9)
    dense = {name: float(draw * scale * 0.2**0.5) for name, draw in zip(names, draws, strict=True)}
    share = teacher.logit_std * (0.6 / len(teacher.ids)) ** 0.5
    direct = {name: share * _id_effects(teacher, name, size) for name, size in teacher.ids.items()}
    each = (teacher.logit_std * (0.2 / max(len(teacher.pairs), 1)) ** 0.5) ** 0.5
    paired = {name: each * _id_effects(teacher, name, teacher.ids[name], " in pairs") for pair in teacher.pairs for name in pair}
    return _Effects(dense, direct, paired)


def _id_effects(teacher: Teacher, name: str, size: int, use: str = "") -> np.ndarray:
    """Returns effects with mean 0 and variance 1 over rows; the last entry, 0, is for all ids that have no effect."""
    number = min(size, teacher.effective_ids)
    effect = _normal(teacher, f"{name} effects{use}", np.arange(number, dtype=np.uint64))
    share = -np.diff((1.0 + np.arange(number + 1)) ** (1 - teacher.exponent))
    share /= 1 - (1.0 + size) ** (1 - teacher.exponent)
    effect -= (share * effect).sum() / share.sum()
    return np.append(effect / np.sqrt((share * effect**2).sum()), 0.0)


def _clip(ids: pa.ChunkedArray, effect: np.ndarray) -> np.ndarray:
    return np.minimum(ids.to_numpy(), len(effect) - 1)


def _mean_effect(lists: pa.ChunkedArray, effect: np.ndarray) -> np.ndarray:
    array = lists.combine_chunks()
    offsets = array.offsets.to_numpy()
    running = np.append(0.0, np.cumsum(effect[np.minimum(array.values.to_numpy(), len(effect) - 1)]))
    return (running[offsets[1:]] - running[offsets[:-1]]) / np.maximum(np.diff(offsets), 1)


def _power_law(teacher: Teacher, name: str, numbers: np.ndarray, size: int) -> np.ndarray:
    """Returns ids from 0 to size - 1, int64: draws of the continuous power law on [1, size + 1), rounded down."""
    power = 1 - teacher.exponent
    quantile = 1 - _uniform(teacher, name, numbers) * (1 - (1.0 + size) ** power)
    return np.minimum(quantile ** (1 / power) - 1, size - 1).astype(np.int64)


def _lists(teacher: Teacher, name: str, numbers: np.ndarray, size: int) -> pa.ListArray:
    lengths = 1 + (_bits(teacher, f"{name} length", numbers) >> np.uint64(62)).astype(np.int64)
    values = np.stack([_power_law(teacher, f"{name} {place}", numbers, size) for place in range(MAX_LIST)], axis=1)
    offsets = np.append(0, np.cumsum(lengths)).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values[np.arange(MAX_LIST) < lengths[:, None]])


def _normal(teacher: Teacher, name: str, numbers: np.ndarray) -> np.ndarray:
    """Returns nearly normal numbers with mean 0 and variance 1: sums of four uniform 16-bit numbers, cheaper than logarithms."""
    bits = _bits(teacher, name, numbers)
    total = np.zeros(len(bits))
    for shift in (0, 16, 32, 48):
        total += bits >> np.uint64(shift) & np.uint64(0xFFFF)
    return (total - 2 * 65535) * (3**0.5 / 65536)


def _uniform(teacher: Teacher, name: str, numbers: np.ndarray) -> np.ndarray:
    return (_bits(teacher, name, numbers) >> np.uint64(11)) * 2.0**-53


def _bits(teacher: Teacher, name: str, numbers: np.ndarray) -> np.ndarray:
    """Returns 64 random bits for each row number: splitmix64 (Steele et al. 2014) from a start that depends on seed and name."""
    key = int.from_bytes(hashlib.blake2b(f"{teacher.seed} {name}".encode(), digest_size=8).digest(), "little")
    bits = numbers * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    return bits
