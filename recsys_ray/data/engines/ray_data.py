"""The Ray Data engine: preparation and batch inference on the connected cluster, or on a Ray of its own on this machine."""

from __future__ import annotations

import functools
import logging
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import ray
import ray.data
from ray.data import Datasink
from ray.data.block import Block as RayBlock
from ray.data.block import BlockAccessor
from ray.data.datasource.datasink import WriteResult
from ray.exceptions import RayError

from recsys_ray.data.blocks.parts import MIN_ROWS_PER_PART, PartReport, PartWriter
from recsys_ray.data.engines.base import EngineFailed, TaskWorkers
from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.data.sources.table import InputTable, PassInput
from recsys_ray.host_memory import keep_freed_memory
from recsys_ray.ray_address import check_ray_address

log = logging.getLogger(__name__)
MAX_ROWS_PER_RAY_TASK = 1 << 18
RETRY_ADVICE = "\nFailed to apply UDF transform after "
T = TypeVar("T")


class RayEngine:
    """An Engine on Ray Data, which reads Parquet but no tables of Spark."""

    def open_table(self, name: str) -> InputTable:
        """Raises ValueError: Ray Data has no catalog of tables."""
        raise ValueError(f"table:{name} is a table of Spark's: add --engine spark")

    def broadcast(self, value: T) -> Callable[[], T]:
        """Puts `value` into Ray's object store and returns a function that gets it there."""
        _ensure_ray()
        reference = ray.put(value)
        return lambda: ray.get(reference)

    def reduce(self, rows: PassInput, measure: Callable[[pa.Table], T], merge: Callable[[T, T], T]) -> T:
        """Returns the merged results of `measure` for every table of rows; the driver merges them."""

        def report(batch: pa.Table) -> pa.Table:
            return pa.table({"result": pa.array([pickle.dumps(measure(batch))], pa.large_binary())})

        with _ray_data_settings():
            return functools.reduce(merge, (pickle.loads(row["result"]) for row in _map_batches(rows, report).iter_rows()))

    def write_parts(
        self, rows: PassInput, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int
    ) -> list[PartReport]:
        """Encodes the rows, shuffles them by Ray Data's random_shuffle and writes them in parts."""
        datasink = MDSDatasink(writer)
        with _ray_data_settings():
            _map_batches(rows, encode).random_shuffle(seed=seed).write_datasink(datasink)
        return datasink.parts

    def write_parquet(self, rows: PassInput, keep: Callable[[pa.Table], pa.Table], folder: Path) -> None:
        """Writes the rows that `keep` returns as Parquet files in `folder`."""
        with _ray_data_settings():
            _map_batches(rows, keep).write_parquet(str(folder))

    def run_tasks(self, numbers: Sequence[int], task: Callable[[int], None], workers: TaskWorkers) -> None:
        """Runs the tasks in a pool of actors, which share the cluster's free cores evenly: each has as many threads as cores."""
        _ensure_ray()
        gpus = int(ray.cluster_resources().get("GPU", 0))
        if workers.gpu and not gpus:
            raise ValueError("--device cuda: this Ray cluster has no GPU")
        count = min(workers.count or (gpus if workers.gpu else _free_cores()) or 1, len(numbers))
        with _ray_data_settings():
            tasks = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
            tasks.map_batches(
                _TaskActor,
                fn_constructor_args=(task,),
                batch_size=1,
                compute=ray.data.ActorPoolStrategy(size=count),
                num_cpus=_cores_each(count),
                num_gpus=1 if workers.gpu else None,
            ).materialize()


class _TaskActor:
    """A worker process of `run_tasks`, which Ray Data hands one number after the other."""

    def __init__(self, task: Callable[[int], None]) -> None:
        self._task = task

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["number"]:
            self._task(int(number))
        return batch


@contextmanager
def engine() -> Iterator[RayEngine]:
    """Yields the engine; a Ray that it starts lives as long as this process."""
    yield RayEngine()


class MDSDatasink(Datasink[PartReport]):
    """A Ray Data sink that writes row blocks with a PartWriter and collects the reports of its tasks in `parts`."""

    def __init__(self, writer: PartWriter) -> None:
        self._writer = writer
        self.parts: list[PartReport] = []

    @property
    def min_rows_per_write(self) -> int:
        """The number of rows below which Ray Data gives a write task more blocks."""
        return MIN_ROWS_PER_PART

    def write(self, blocks: Iterable[RayBlock], ctx: Any) -> PartReport:
        """Writes the blocks of one write task as one part."""
        table = pa.concat_tables([BlockAccessor.for_block(block).to_arrow() for block in blocks])
        return self._writer.write(table, ctx.task_idx)

    def on_write_complete(self, write_result: WriteResult[PartReport]) -> None:
        """Keeps the reports of the attempts that succeeded."""
        self.parts = write_result.write_returns


def _ensure_ray() -> None:
    if not ray.is_initialized():
        check_ray_address()
        ray.init(logging_level=logging.ERROR, log_to_driver=False)


def _free_cores() -> int:
    """Returns the cores that nobody has reserved, such as a service on the same cluster."""
    return int(ray.available_resources().get("CPU", 0))


def _cores_each(actors: int) -> int:
    """Returns how many cores each of some actors can reserve without waiting for one that is never free."""
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"]), default=1)
    shared = ray.available_resources().get("CPU", 0) < ray.cluster_resources().get("CPU", 0)
    if (free := _free_cores()) < actors:
        log.warning("%d of %d workers wait: the cluster has only %d free cores", actors - free, actors, free)
    # Of a node that other work shares, the last core may not be free as a whole.
    return max(1, min(free // actors, largest - shared))


def _map_batches(rows: PassInput, function: Callable[[pa.Table], pa.Table]) -> ray.data.Dataset:
    """Reads and joins the rows and applies `function` to each batch, in the tasks that read them."""
    _ensure_ray()
    assert isinstance(rows.table, ParquetFiles)
    read = ray.data.read_parquet(
        list(rows.table.paths),
        filesystem=rows.table.filesystem,
        columns=rows.columns,
        include_row_hash=True,
        partitioning=None,
        file_extensions=None,
        override_num_blocks=_read_tasks(rows.table),
    )

    def joined(batch: pa.Table) -> pa.Table:
        keep_freed_memory()
        return function(rows.join(batch))

    return read.map_batches(joined, batch_format="pyarrow", batch_size=None)


def _read_tasks(files: ParquetFiles) -> int:
    """Returns the number of read and write tasks, equally many per core when there are enough rows.

    Ray Data would start at least 200, at 30 ms each, and shuffle every piece of each.
    """
    cores = max(1, int(ray.cluster_resources().get("CPU", 1)))
    rounds = max(2, -(-files.rows // (MAX_ROWS_PER_RAY_TASK * cores)))
    return max(1, min(rounds * cores, files.rows // MIN_ROWS_PER_PART))


@contextmanager
def _ray_data_settings() -> Iterator[None]:
    """Sets Ray Data up for the pipeline in the body, and raises an error of one of its tasks as itself.

    Progress bars are drawn on a terminal only: in a log file their lines every few seconds would drown ours. Failures are not
    logged, since they are raised. The newer reader (v2, the default in Ray 2.60) starts actors for every read, 3 seconds of a
    core each, and puts small files into one block, so that one writer writes all: 2,000 rows took 22 s rather than 3, a
    million 13 s rather than 4. Errors of tasks are not wrapped, since what a wrapper wraps is lost on its way. Resources reserved
    for concurrent operators would leave half of a host of two cores idle: our operators run one after the other.
    """
    settings = {
        "use_datasource_v2": False,
        "op_resource_reservation_enabled": False,
        "raise_original_map_exception": True,
        "enable_progress_bars": sys.stderr.isatty(),
    }
    logger, context = logging.getLogger("ray.data"), ray.data.DataContext.get_current()
    level, before = logger.level, {name: getattr(context, name) for name in settings}
    logger.setLevel(logging.CRITICAL)
    try:
        _set_attributes(context, settings)
        yield
    except RayError as error:
        raise _root_cause(error) from error
    finally:
        logger.setLevel(level)
        _set_attributes(context, before)


def _set_attributes(context: ray.data.DataContext, settings: dict[str, bool]) -> None:
    for name, value in settings.items():
        setattr(context, name, value)


def _root_cause(error: BaseException) -> BaseException:
    """Returns the error that a task raised, without the advice to Ray Data's own users that is appended to its message."""
    while isinstance(error, RayError):
        cause = getattr(error, "cause", None)
        if cause is None:
            return EngineFailed(f"Ray: {error}")
        error = cause
    if error.args and isinstance(error.args[0], str):
        error.args = (error.args[0].partition(RETRY_ADVICE)[0], *error.args[1:])
    return error
