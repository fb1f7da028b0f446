"""The stages of a batch job, whose tasks an engine runs, and the check that nothing is lost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from recsys_ray.command_line import JobError
from recsys_ray.data.engines.base import Engine, TaskWorkers, open_engine
from recsys_ray.serving.batch.partitioned.delta import check_delta_installed
from recsys_ray.serving.batch.partitioned.output import BatchManifest, BatchOutput
from recsys_ray.serving.batch.partitioned.progress import progress_lines
from recsys_ray.serving.batch.settings import BatchConfig


def output_of(config: BatchConfig, manifest: BatchManifest) -> BatchOutput:
    """Returns the output of a job. Raises ValueError for a URL, or a format whose package is not installed."""
    if "://" in config.out:
        raise ValueError(f"--out {config.out} is a URL: wants a folder on a file system that all workers share (a mount)")
    if config.format == "delta":
        check_delta_installed()
    return BatchOutput(Path(config.out).absolute(), manifest, config.format == "delta")


@dataclass(frozen=True)
class Stage:
    """A part of a job that many tasks do."""

    name: str
    rows: int
    """The rows of all its tasks."""
    tasks: int
    missing: Callable[[], Sequence[int]]
    """Returns the numbers of the tasks whose file is not there yet."""
    few: int = 0
    """So many tasks are run in this process: they take less time than workers take to start."""

    def progress(self) -> AbstractContextManager[None]:
        """Prints how far the stage is while the body runs."""
        return progress_lines(self.name, self.rows, lambda: 1 - len(self.missing()) / self.tasks)


@dataclass(frozen=True)
class StageRunner:
    """An engine that runs the stages of one job."""

    engine: Engine
    workers: TaskWorkers

    @staticmethod
    @contextmanager
    def open(config: BatchConfig) -> Iterator[StageRunner]:
        """Opens the engine that the job asks for; it connects to its cluster when it is first used."""
        with open_engine(config.engine) as engine:
            yield StageRunner(engine, TaskWorkers(config.workers, config.device == "cuda"))

    def run(self, stage: Stage, task: Callable[[int], None]) -> None:
        """Runs the tasks that are still to be done, if any, and prints how far they are."""
        numbers = stage.missing()
        if not numbers:
            return
        with stage.progress():
            if len(numbers) > stage.few:
                self.engine.run_tasks(numbers, task, self.workers)
            else:
                for number in numbers:
                    task(number)


def check_all(counts: Counter[str], name: str, expected: int, flag: str) -> None:
    """Raises JobError unless all input rows were counted under `name`."""
    if counts[name] != expected:
        raise JobError(f"{counts[name]:,} {name} were done, not the {expected:,} of {flag}: the files changed meanwhile. Pass "
                       "--overwrite to begin again")  # fmt: skip
