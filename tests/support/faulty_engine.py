"""A preparation engine whose cluster loses a process while it writes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from recsys_ray.data.blocks.parts import PartReport, PartWriter
from recsys_ray.data.engines.base import Engine, open_engine
from recsys_ray.data.sources.table import PassInput


@contextmanager
def one_writer_killed(name: Literal["ray", "spark"], mark: Path) -> Iterator[Engine]:
    """Opens an engine on which the first write task to finish its shards is killed before it can report them.

    The engine then runs the task again. `mark` is the file that names the folder of the killed attempt.
    """
    with open_engine(name) as engine:
        yield _KillingEngine(engine, mark)


class _KillingEngine:
    def __init__(self, engine: Engine, mark: Path) -> None:
        self._engine, self._mark = engine, mark

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def write_parts(
        self, rows: PassInput, encode: Callable[[pa.Table], pa.Table], writer: PartWriter, seed: int
    ) -> list[PartReport]:
        return self._engine.write_parts(rows, encode, _killed_once(writer, self._mark), seed)


def _killed_once(writer: PartWriter, mark: Path) -> PartWriter:
    # Defined here, so that the class travels by value: tasks need not be able to import this module.
    class KilledOnce(PartWriter):
        def write(self, table: pa.Table, number: int) -> PartReport:
            part = super().write(table, number)
            if part.rows["train"] and not mark.exists():
                mark.write_text(part.folder)
                os.kill(os.getpid(), signal.SIGKILL)
            return part

    return KilledOnce(writer.root, writer.columns, writer.block_rows, writer.part_rows)
