"""Writes checkpoints to any fsspec store, with a checksum of every file.

It extends the writer of torch.distributed.checkpoint, tries again when the store fails, and refuses numbers that are not finite.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import xxhash
from torch.distributed.checkpoint import Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from recsys_ray.checkpoint.store import CheckpointStore, with_retries
from recsys_ray.compat.torch_compat import METADATA_AS_WRITTEN, FsspecFileSystem, FsspecWriter


@dataclass(frozen=True)
class ChecksummedResult(WriteResult):
    """The place of a tensor in a file, with the size and checksum of that file."""

    file_bytes: int = 0
    file_checksum: str = ""


class ChecksumWriter(FsspecWriter):
    """A writer of one checkpoint that collects the size and checksum of every file.

    Attributes:
        files: file name -> its bytes and checksum, on the worker that coordinates, once all have written.
    """

    def __init__(self, store: CheckpointStore, step: int) -> None:
        # Only a local disk needs syncing; for others the library would sync all disks of the machine.
        super().__init__(store.folder(step), sync_files=store.local)
        self._file_system = _ChecksumFileSystem()
        self.fs = self._file_system  # type: ignore[assignment]
        self.path = self.fs.init_path(store.folder(step))
        self.files: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Writes this worker's part. Raises ValueError for values that are not finite."""
        _check_finite(plan, planner)
        return with_retries(f"writing {self.path}", lambda: self._write_all(plan, planner))

    def _write_all(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = super().write_data(plan, planner).value()
        written: Future[list[WriteResult]] = Future()
        written.set_result([self._with_checksum(result) for result in results])
        return written

    def _with_checksum(self, result: WriteResult) -> ChecksummedResult:
        size, checksum = self._file_system.written[result.storage_data.relative_path]
        return ChecksummedResult(result.index, result.size_in_bytes, result.storage_data, size, checksum)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Writes the metadata on the worker that coordinates, and fills `files` from the results of all."""
        with_retries(f"writing {self.path}", lambda: super(ChecksumWriter, self).finish(metadata, results))
        for result in chain.from_iterable(results):
            assert isinstance(result, ChecksummedResult)
            name = result.storage_data.relative_path
            self.files[name] = {"bytes": result.file_bytes, "checksum": result.file_checksum}
        size, checksum = self._file_system.written[METADATA_AS_WRITTEN]
        self.files[".metadata"] = {"bytes": size, "checksum": checksum}


class _ChecksumFileSystem(FsspecFileSystem):
    """A file system that remembers what was written: file name -> bytes and checksum."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            counted = _ChecksumStream(stream)
            yield counted
        self.written[os.path.basename(path)] = counted.size, counted.digest.hexdigest()  # noqa: PTH119


class _ChecksumStream:
    """A file to write to, with the size and checksum of what was written so far."""

    def __init__(self, stream: Any) -> None:
        self._stream, self.size, self.digest = stream, 0, xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_finite(plan: SavePlan, planner: SavePlanner) -> None:
    """Raises ValueError for values that are not finite: a run must be able to resume from before its numbers went wrong."""
    for item in plan.items:
        if item.type == WriteItemType.BYTE_IO:
            continue
        tensor = planner.resolve_data(item)
        # The sum is not finite if any value is not, and takes no memory, unlike a mask.
        if (
            isinstance(tensor, torch.Tensor)
            and tensor.is_floating_point()
            and not torch.isfinite(tensor.sum(dtype=torch.float64))
        ):
            raise ValueError(f"{item.index.fqn} has values that are not finite")
