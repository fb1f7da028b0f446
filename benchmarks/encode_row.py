"""The time to encode one raw row, by the look-up that a bundle builds once and by Arrow's search, which builds a table a call.

    python benchmarks/encode_row.py [--values 10000000]

Both are run in turns, for a vocabulary of integers and one of strings, each in two sizes. "row" is one row of a schema like
MovieLens' (six user columns, two of them lists or strings) through the whole encoder: check, transform and tensors.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tyro

from recsys_ray.data.vocabulary import ValueLookup
from recsys_ray.schema import Categorical, Label, Schema
from recsys_ray.serving.encoder import Encoder

ROUNDS = 200
ARROW_ROUNDS = 3


@dataclass(frozen=True)
class Job:
    """The flags of this benchmark."""

    values: int = 10_000_000
    """Values of the larger vocabulary; the smaller one has a tenth."""


def median_ms(call: Callable[[], object], rounds: int) -> float:
    """Returns the median milliseconds of a call."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)


def whole_row(lookup: ValueLookup, words: ValueLookup) -> Callable[[], object]:
    """Returns a call that encodes one row of six columns, each with the large vocabulary."""
    single = [Categorical(f"c{number}", dtype="int", encoding="vocabulary", table="n", num_embeddings=3) for number in range(3)]
    texts = [Categorical(f"s{number}", dtype="string", encoding="vocabulary", table="s", num_embeddings=3) for number in range(2)]
    recent = Categorical("recent", encoding="vocabulary", table="n", num_embeddings=3, multi=True)
    columns = (*single, *texts, recent)
    encoder = Encoder(Schema((Label("y"), *columns)), {"n": lookup, "s": words})
    numbers, strings = lookup.values[5:6], words.values[5:6]
    lists = pa.array([lookup.values[:20].to_pylist()])
    row = pa.table({**{c.name: numbers for c in single}, **{c.name: strings for c in texts}, "recent": lists})
    return lambda: encoder.encode(row, columns)


def main(job: Job) -> None:
    """Measures and prints the figures."""
    random, figures = np.random.default_rng(0), {}
    for size in (job.values // 10, job.values):
        numbers = pa.array(random.permutation(size))
        words = pc.binary_join_element_wise("id-", numbers.cast(pa.string()), "")
        lookups = {"integers": ValueLookup.of(numbers), "strings": ValueLookup.of(words)}
        for name, lookup in lookups.items():
            value = lookup.values[size // 2 : size // 2 + 1]
            ours = median_ms(lambda lookup=lookup, value=value: lookup.rows(value), ROUNDS)  # type: ignore[misc]
            arrow = median_ms(lambda lookup=lookup, value=value: pc.index_in(value, value_set=lookup.values), ARROW_ROUNDS)  # type: ignore[misc]
            figures[f"{name}, {size:,}"] = {"ms": round(ours, 4), "arrow_ms": round(arrow, 1), "times": round(arrow / ours)}
        row = median_ms(whole_row(*lookups.values()), ROUNDS)
        figures[f"row, {size:,}"] = {"ms": round(row, 4)}
    print(f"{'vocabulary':<28}{'ours, ms':>10}{'Arrow, ms':>12}{'times':>9}")
    for name, one in figures.items():
        print(f"{name:<28}{one['ms']:>10.4f}{one.get('arrow_ms', float('nan')):>12.1f}{one.get('times', float('nan')):>9}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
