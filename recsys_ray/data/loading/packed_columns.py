"""The columns of a batch end to end, those of one type in one buffer: few tensors travel between processes, and to a GPU.

A batch of 40 columns as 40 tensors took DataLoader 30 ms to hand over, mostly for their file descriptors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

from recsys_ray.columns import Columns


@dataclass(frozen=True)
class PackedColumns:
    """The columns of a batch, packed by type."""

    buffers: tuple[torch.Tensor, ...]
    """One for each type of number."""
    sizes: tuple[dict[str, int], ...]
    """Column name -> numbers, in the order in which they lie in each buffer."""

    def columns(self) -> Columns:
        """Returns the columns as views of the buffers."""
        return {
            name: part
            for buffer, sizes in zip(self.buffers, self.sizes, strict=True)
            for name, part in zip(sizes, buffer.split(list(sizes.values())), strict=True)
        }

    def to(self, device: torch.device) -> PackedColumns:
        """Copies the columns to a device; the copy may go on when this returns."""
        return PackedColumns(tuple(buffer.to(device, non_blocking=True) for buffer in self.buffers), self.sizes)

    def clone(self) -> PackedColumns:
        """Returns a copy in memory of its own."""
        return PackedColumns(tuple(buffer.clone() for buffer in self.buffers), self.sizes)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Keeps the memory of the columns until `stream` has used it."""
        for buffer in self.buffers:
            buffer.record_stream(stream)


def group_by_type(columns: Columns) -> dict[torch.dtype, dict[str, int]]:
    """Returns the names of the columns of each type, and how many numbers each has."""
    sizes: dict[torch.dtype, dict[str, int]] = {}
    for name, values in columns.items():
        sizes.setdefault(values.dtype, {})[name] = len(values)
    return sizes


def pack(columns: Columns) -> PackedColumns:
    """Packs the columns of a batch, which it copies."""
    sizes = tuple(group_by_type(columns).values())
    return PackedColumns(tuple(torch.cat([columns[name] for name in names]) for names in sizes), sizes)


class _Copy(NamedTuple):
    packed: PackedColumns
    done: torch.cuda.Event

    def ready(self) -> Columns:
        """Returns the columns for the current CUDA stream, which waits for the copy to end."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self.done)
        self.packed.record_stream(stream)
        return self.packed.columns()


def copied_ahead(batches: Iterable[PackedColumns], device: torch.device) -> Iterator[Columns]:
    """Yields the columns of each batch on a GPU, and copies the next batch meanwhile, on a CUDA stream of its own.

    The copy of a batch has ended before the next but one is asked for.
    """
    copying, coming = torch.cuda.Stream(device), None
    for packed in batches:
        ready, coming = coming, _copy(packed, device, copying)
        if ready is not None:
            ready.done.synchronize()  # of the step before: it has long ended
            yield ready.ready()
    if coming is not None:
        yield coming.ready()


def _copy(packed: PackedColumns, device: torch.device, copying: torch.cuda.Stream) -> _Copy:
    with torch.cuda.stream(copying):
        copy, done = packed.to(device), torch.cuda.Event()
        done.record(copying)
    return _Copy(copy, done)
