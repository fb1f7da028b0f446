"""The results and errors of Spark's Python tasks, on their way to the driver. Imports no Spark.

A task of `DataFrame.mapInArrow` returns pickled results in a binary column named `result`.
"""

from __future__ import annotations

import base64
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import Any

import pyarrow as pa

RecordBatches = Iterator[pa.RecordBatch]
ERROR_MARK = "recsys_ray error "
"""What the pickled error follows in the text of an exception that a task raises."""


def to_result_column(results: Iterable[Any]) -> RecordBatches:
    """Yields each result, pickled, as a record batch with one row."""
    for result in results:
        yield pa.RecordBatch.from_pydict({"result": pa.array([pickle.dumps(result)], pa.binary())})


def from_result_column(batches: RecordBatches) -> Iterator[Any]:
    """Yields the results that other tasks returned by `to_result_column`."""
    return (pickle.loads(result.as_buffer()) for batch in batches for result in batch.column(0))


def merge_results(results: Iterator[Any], merge: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """Yields all results merged into one, or nothing when there are none."""
    for first in results:
        yield reduce(merge, results, first)


def carrying_errors(task: Callable[[RecordBatches], RecordBatches]) -> Callable[[RecordBatches], RecordBatches]:
    """Returns `task`, whose errors `carried_error` can restore on the driver: Spark passes on nothing but their text."""

    def run(batches: RecordBatches) -> RecordBatches:
        try:
            yield from task(batches)
        except Exception as error:
            raise RuntimeError(f"{ERROR_MARK}{base64.b64encode(pickle.dumps(_portable(error))).decode()};") from error

    return run


def carried_error(text: str) -> Exception | None:
    """Returns the error that a `carrying_errors` task raised, from the text of Spark's error; None when there is none in it."""
    found = re.search(f"{ERROR_MARK}([A-Za-z0-9+/=]+);", text)
    return pickle.loads(base64.b64decode(found[1])) if found else None


def _portable(error: Exception) -> Exception:
    """Returns the error, or one with its text when it cannot be pickled, as when it holds a lock."""
    try:
        return pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
