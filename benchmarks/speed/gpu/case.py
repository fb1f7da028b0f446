"""One model at one batch size for the benchmark on a GPU: its batches, its figures, and how steps are timed."""

from __future__ import annotations

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.speed.workers import WORLD, stream
from recsys_ray.columns import Columns
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.models.dlrm import DLRMConfig

CUDA = torch.cuda.is_available()
DEVICE = WORLD.device
PRECISION = torch.bfloat16 if CUDA else None
WARM, STEPS, RESIDENT = (10, 60, 24) if CUDA else (1, 4, 4)
"""Steps before timing, steps timed on resident batches, and the number of those batches."""
TO_THE_END = 1 << 30
KERNELS_LISTED = 24
Interaction = Literal["dcn", "dot"]
Step = Callable[[Iterator[Any]], object]


@dataclass
class Source:
    """The batches of a dataset, `rows` rows each."""

    dataset: DatasetDirectory
    rows: int
    loaders: int | None
    """The loader processes, as data.loader_workers has them."""

    def full_batches(self, stream: BlockStream) -> int:
        """Returns how many batches of an epoch are full; compiled code of a short last one would be compiled again."""
        found = stream.blocks * stream.block_rows // self.rows
        if found <= WARM:
            raise ValueError(f"{self.dataset.root} has {found} batches of {self.rows:,} rows, and {WARM} are for warming up")
        return found

    @cached_property
    def resident(self) -> list[Columns]:
        """The columns of the first batches, on the device."""
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            train = stream(self.dataset.root, Path(folder, "shards"), self.rows, loaders=0)
            batches = islice(train, min(RESIDENT, self.full_batches(train)))
            return [{name: values.to(DEVICE) for name, values in columns.items()} for columns in batches]

    def drop_resident(self) -> None:
        """Frees the memory of the resident batches, which would count in the peaks of the next batch size."""
        vars(self).pop("resident", None)


@dataclass(frozen=True)
class Case:
    """One model at one batch size, and its figures as they are measured."""

    source: Source
    interaction: Interaction
    dim: int
    figures: dict[str, float] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"{self.interaction} {self.source.rows:,}"

    @property
    def config(self) -> DLRMConfig:
        return DLRMConfig(
            interaction=self.interaction,
            embedding_dim=self.dim,
            dense_layers=(512, 256),
            over_layers=(1024, 1024, 512, 256),
            cross_layers=3,
            cross_rank=512,
        )

    def note(self, name: str, value: float, text: str) -> None:
        """Keeps a figure and prints it."""
        self.figures[name] = value
        print(f"  {self.name:<12} {text}", flush=True)

    def note_steps(self, name: str, way: str, timing: Timing) -> None:
        """Keeps and prints the milliseconds of a step, and its rows per second."""
        step = timing.seconds / timing.steps
        self.figures[f"{name}_rows_per_second"] = self.source.rows / step
        text = f"{way:<36}{1e3 * step:>10.2f} ms a step{self.source.rows / step:>14,.0f} rows/s ({timing.steps} steps)"
        self.note(f"{name}_ms", 1e3 * step, text)

    def note_peak(self, name: str) -> None:
        if CUDA:
            peak = torch.cuda.max_memory_allocated() / 2**30
            self.note(f"{name}_peak_gib", peak, f"{'  peak GPU memory':<36}{peak:>10.2f} GiB, resident batches included")


class Timing(NamedTuple):
    """The number of steps that were done, and how long they took together."""

    steps: int
    seconds: float


def timed(step: Step, batches: Iterator[Any], steps: int = TO_THE_END) -> Timing:
    """Takes so many steps, or as many as there are batches, and waits until the device has done them."""
    synchronize()
    began, done = time.perf_counter(), 0
    with suppress(StopIteration):
        while done < steps:
            step(batches)
            done += 1
    synchronize()
    return Timing(done, time.perf_counter() - began)


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def release_memory() -> None:
    """Frees what no variable holds any more, so that the next model has the whole GPU and a peak of its own.

    Compiled code goes too: it would be compiled anew to fit any batch size where it meets a second one.
    """
    if CUDA:
        torch.compiler.reset()
    gc.collect()
    if CUDA:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def profile(step: Step, batches: Iterator[Any], steps: int) -> None:
    """Prints the kernels of a step by time; on a CPU the operators, whose times leave out those that they call."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if CUDA else [])]
    with profiler(activities=activities) as record:
        seconds = timed(step, batches, steps).seconds
    spent = "self_device_time_total" if CUDA else "self_cpu_time_total"
    kind = torch.autograd.DeviceType.CUDA if CUDA else torch.autograd.DeviceType.CPU
    events = [event for event in record.key_averages() if event.device_type == kind]
    kernels = [event for event in events if not getattr(event, "is_user_annotation", False)]
    kernels.sort(key=lambda event: getattr(event, spent), reverse=True)
    busy, count = sum(getattr(event, spent) for event in kernels) / steps / 1e3, sum(event.count for event in kernels)
    print(f"  under the profiler {1e3 * seconds / steps:.2f} ms a step; {count // steps} kernels take {busy:.2f} ms of it")
    for event in kernels[:KERNELS_LISTED]:
        print(f"  {getattr(event, spent) / steps / 1e3:>9.3f} ms {event.count / steps:>6.1f} x {event.key[:110]}", flush=True)
