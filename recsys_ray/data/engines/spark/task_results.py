"""The results and errors of Spark's Python tasks, on their way to the driver. Imports no Spark.

A task of `DataFrame.mapInArrow` returns pickled results in a binary column named `result`, which holds nothing else. Its error
reaches the driver as part of a text in which Spark also quotes cell values: what is read from there is words, and never code.
"""

from __future__ import annotations

import base64
import json
import pickle
import re
import secrets
from collections.abc import Callable, Iterable, Iterator
from functools import cache, reduce
from typing import Any

import pyarrow as pa

from recsys_ray.command_line import JobError

RecordBatches = Iterator[pa.RecordBatch]
CARRIED_TYPES = {
    kind.__name__: kind
    for kind in (JobError, pa.ArrowInvalid, pa.ArrowException, FileNotFoundError, FileExistsError, OSError, ValueError)
}
"""The types of errors that callers tell apart; one of a subclass is raised on the driver as the first of these that it is."""


def to_result_column(results: Iterable[Any]) -> RecordBatches:
    """Yields each result, pickled, as a record batch with one row."""
    for result in results:
        yield pa.RecordBatch.from_pydict({"result": pa.array([pickle.dumps(result)], pa.binary())})


def from_result_column(batches: RecordBatches) -> Iterator[Any]:
    """Yields the results that other tasks returned by `to_result_column`."""
    return unpickled(result.as_buffer() for batch in batches for result in batch.column(0))


def unpickled(results: Iterable[bytes | pa.Buffer]) -> Iterator[Any]:
    """Yields the results from the values of the column `result`, which only tasks of this job write."""
    return map(pickle.loads, results)


def merge_results(results: Iterator[Any], merge: Callable[[Any, Any], Any]) -> Iterator[Any]:
    """Yields all results merged into one, or nothing when there are none."""
    for first in results:
        yield reduce(merge, results, first)


def carrying_errors(task: Callable[[RecordBatches], RecordBatches]) -> Callable[[RecordBatches], RecordBatches]:
    """Returns `task`, whose errors `carried_error` can restore on the driver: Spark passes on nothing but their text."""
    mark = _mark_of_this_job()

    def run(batches: RecordBatches) -> RecordBatches:
        try:
            yield from task(batches)
        except Exception as error:
            raise RuntimeError(f"{mark}{base64.b64encode(json.dumps(_described(error)).encode()).decode()};") from error

    return run


def carried_error(text: str) -> Exception | None:
    """Returns the error that a `carrying_errors` task of this job raised, from the text of Spark's error; None without one."""
    found = re.search(f"{_mark_of_this_job()}([A-Za-z0-9+/=]+);", text)
    if found is None:
        return None
    name, arguments = json.loads(base64.b64decode(found[1]))
    return CARRIED_TYPES.get(name, RuntimeError)(*arguments)


@cache
def _mark_of_this_job() -> str:
    """Returns what a carried error follows, made on the driver: no value of a table can contain it."""
    return f"recsys_ray error {secrets.token_hex(16)} "


def _described(error: Exception) -> tuple[str, list[Any]]:
    """Returns the name of one of CARRIED_TYPES and its arguments as JSON has them; an error of no such type is told in words."""
    name = next((name for name, kind in CARRIED_TYPES.items() if isinstance(error, kind)), "")
    if isinstance(error, OSError) and error.errno is not None:  # which tells a full disk from other faults
        return name, [error.errno, error.strerror, None if error.filename is None else str(error.filename)]
    return name, [str(error) if name else f"{type(error).__name__}: {error}"]
