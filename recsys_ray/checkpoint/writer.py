"""torch.distributed.checkpoint's writer for any fsspec store, which besides knows the checksum of every file it wrote, tries
again where the store fails, and refuses numbers that are not finite."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch.distributed.checkpoint import Metadata, SavePlan, SavePlanner
from torch.distributed.checkpoint._fsspec_filesystem import FileSystem, FsspecWriter
from torch.distributed.checkpoint.planner import WriteItemType
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from recsys_ray.checkpoint.store import CheckpointStore, with_retries


@dataclass(frozen=True)
class Written(WriteResult):
    """A tensor's place in a file, with what that file came to."""

    file_bytes: int = 0
    file_checksum: str = ""


class ChecksumWriter(FsspecWriter):
    """`files`, on the worker that coordinates and once all have written: file name -> its bytes and checksum."""

    def __init__(self, store: CheckpointStore, step: int) -> None:
        # Elsewhere than on a local disk there is nothing to sync, and the library would sync all disks of the machine.
        super().__init__(store.folder(step), sync_files=store.local)
        self._through = _ChecksumFileSystem()
        self.fs = self._through  # type: ignore[assignment]
        self.path = self.fs.init_path(store.folder(step))
        self.files: dict[str, dict[str, Any]] = {}

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        _check_finite(plan, planner)
        return with_retries(f"writing {self.path}", lambda: self._write_all(plan, planner))

    def _write_all(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        results = super().write_data(plan, planner).value()
        written: Future[list[WriteResult]] = Future()
        written.set_result([self._with_checksum(result) for result in results])
        return written

    def _with_checksum(self, result: WriteResult) -> Written:
        size, checksum = self._through.written[result.storage_data.relative_path]
        return Written(result.index, result.size_in_bytes, result.storage_data, size, checksum)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        with_retries(f"writing {self.path}", lambda: super(ChecksumWriter, self).finish(metadata, results))
        for result in (result for of_worker in results for result in of_worker):
            assert isinstance(result, Written)
            name = result.storage_data.relative_path
            self.files[name] = {"bytes": result.file_bytes, "checksum": result.file_checksum}
        size, checksum = self._through.written[".metadata.tmp"]  # which the library then renames
        self.files[".metadata"] = {"bytes": size, "checksum": checksum}


class _ChecksumFileSystem(FileSystem):
    """`written`: file name -> bytes and checksum."""

    def __init__(self) -> None:
        super().__init__()
        self.written: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            if mode != "wb":
                yield stream
                return
            through = _ChecksumStream(stream)
            yield through
        self.written[os.path.basename(path)] = through.size, through.digest.hexdigest()  # noqa: PTH119


class _ChecksumStream:
    def __init__(self, stream: Any) -> None:
        self._stream, self.size, self.digest = stream, 0, xxhash.xxh3_128()

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += memoryview(data).nbytes
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _check_finite(plan: SavePlan, planner: SavePlanner) -> None:
    """A run must be able to go back to before its numbers went wrong."""
    for item in plan.items:
        if item.type == WriteItemType.BYTE_IO:
            continue
        tensor = planner.resolve_data(item)
        # The sum is not finite where any value is not, and takes no memory, as a mask would.
        if (
            isinstance(tensor, torch.Tensor)
            and tensor.is_floating_point()
            and not torch.isfinite(tensor.sum(dtype=torch.float64))
        ):
            raise ValueError(f"{item.index.fqn} has values that are not finite")
