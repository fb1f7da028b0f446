"""The batches of a stream on the device that trains on them: on a GPU a thread reads and copies them ahead of the step.

The thread decodes blocks, makes the batch in page-locked memory and starts the copy on a CUDA stream of its own, so that disk,
host and copy all work beside the kernels of the step. DataLoader's worker processes took two and a half times as long as a step
of 16,384 rows: they hand each column of a batch through shared memory.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch

from recsys_ray.columns import Columns
from recsys_ray.data.loading.read_ahead import read_ahead
from recsys_ray.models.task import Batch

AHEAD = 2
"""Batches that are on the GPU before they are used, while another one is being made."""


class _Copy(NamedTuple):
    batch: Batch
    done: torch.cuda.Event

    def ready(self) -> Batch:
        """Returns the batch for the current CUDA stream, which waits for the copy to end."""
        stream = torch.cuda.current_stream()
        stream.wait_event(self.done)
        self.batch.record_stream(stream)
        return self.batch


@contextmanager
def batches_on_device(
    stream: Iterable[Columns], to_batch: Callable[[Columns], Batch], device: torch.device
) -> Iterator[Iterator[Batch]]:
    """Yields an iterator over the batches of a stream on `device`; nothing reads the stream any more when the block ends.

    On a CPU nothing is read ahead, since a thread for it would take a core from the step.
    """
    if device.type == "cpu":
        yield map(to_batch, stream)
        return
    with read_ahead(_copies(stream, to_batch, device), AHEAD) as copies:
        yield (copy.ready() for copy in copies)


def _copies(stream: Iterable[Columns], to_batch: Callable[[Columns], Batch], device: torch.device) -> Generator[_Copy]:
    torch.cuda.set_device(device)  # of this thread
    copying = torch.cuda.Stream(device)
    for columns in stream:
        batch = to_batch(columns).pin_memory()
        with torch.cuda.stream(copying):
            on_device, done = batch.to(device, non_blocking=True), torch.cuda.Event()
            done.record(copying)
        yield _Copy(on_device, done)
