"""Epochs: train, checkpoint, validate, until there are enough of them, none gets better, or the run is asked to stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist

from recsys_ray.columns import Columns
from recsys_ray.config import LoopConfig, TrainConfig
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.distributed import World
from recsys_ray.launch.stopping import StopRequest
from recsys_ray.models.task import Evaluation, Task
from recsys_ray.reporting.tracking.mlflow_tracker import Tracker
from recsys_ray.training.checkpointing import Checkpoints
from recsys_ray.training.not_finite import record_not_finite
from recsys_ray.training.optimizers import rate_factor
from recsys_ray.training.progress import Progress
from recsys_ray.training.startup import Startup
from recsys_ray.training.steps import Step, make_step, train_steps
from recsys_ray.training.stopping_policy import Schedule, Wish
from recsys_ray.training.timing import LossNotFinite, Meter, Waiting

log = logging.getLogger(__name__)


@dataclass
class Run:
    """What a worker has in hand while it trains."""

    config: TrainConfig
    world: World
    task: Task
    model: Any
    optimizer: Any
    streams: dict[str, BlockStream]
    progress: Progress
    tracker: Tracker
    checkpoints: Checkpoints
    startup: Startup


class StopTraining(Exception):
    """The checkpoint that was asked for is made; on every worker after the same step."""


def fit(run: Run) -> bool:
    """Trains to the end, or until it is asked to stop: then the last step is saved, and False comes back.

    A checkpoint is begun at the end of each epoch, before it is validated, and amended by what that came to: evaluation can take
    long, and fail.
    """
    config, progress = run.config, run.progress
    stop = StopRequest(config.run_dir, config.checkpoint.grace_seconds)
    schedule = Schedule(config.checkpoint, stop)
    step = make_step(run.model, run.optimizer, run.world)
    run.streams["train"].start_at(progress.epoch, progress.blocks_in_epoch)
    while not _finished(config.train, progress):
        try:
            with stop.deferring():
                train_rest_of_epoch(run, step, schedule)
        except StopTraining:
            stop.obey()
            return False
        run.checkpoints.save(progress)
        schedule.saved()
        validate(run)
        if progress.blocks_in_epoch >= run.streams["train"].blocks:
            progress.epoch, progress.blocks_in_epoch = progress.epoch + 1, 0
        run.checkpoints.amend(progress)
    return True


def _finished(loop: LoopConfig, progress: Progress) -> bool:
    stopped_early = bool(loop.patience) and progress.epochs_since_best >= loop.patience
    enough_steps = bool(loop.max_steps) and progress.step >= loop.max_steps and progress.validated_step == progress.step
    return progress.epoch >= loop.epochs or stopped_early or enough_steps


def train_rest_of_epoch(run: Run, step: Step, schedule: Schedule) -> None:
    """Leaves `run.progress` at the end of it, or of max_steps. Raises StopTraining, RunNotFinite."""
    loop, progress, stream = run.config.train, run.progress, run.streams["train"]
    blocks, blocks_a_step = progress.blocks_in_epoch, loop.global_batch // stream.block_rows
    if blocks >= stream.blocks:  # the run ended before this epoch was validated
        stream.start_at(progress.epoch + 1, 0)
        return
    batches = Waiting(run.task.to_batch(columns) for columns in stream)
    meter = Meter(batches, loop.global_batch, run.world.device)
    try:
        for loss in train_steps(step, batches, run.optimizer, progress.step, loop, run.config.optimizer, run.world.rank):
            meter.losses.append(loss)
            progress.step, blocks = progress.step + 1, blocks + blocks_a_step
            progress.blocks_in_epoch = min(blocks, stream.blocks)
            run.startup.first_step()
            wish = schedule.due(progress.step)
            if wish or progress.step % loop.log_every == 0:
                report(run, meter)
            if wish:
                with meter.paused():
                    obey(run, schedule, wish)
        if meter.losses:
            report(run, meter)
    except LossNotFinite as error:
        since = error.steps_ago
        raise not_finite(run, progress.step - since, blocks - (since + 1) * blocks_a_step) from error
    schedule.finish()
    progress.add_seconds(meter.seconds)


def obey(run: Run, schedule: Schedule, wish: Wish) -> None:
    """Of SAVE and STOP; a checkpoint at the end of an epoch is due anyway. Raises StopTraining."""
    if wish is Wish.STOP or run.progress.blocks_in_epoch < run.streams["train"].blocks:
        run.checkpoints.save(run.progress)
        schedule.saved()
    if wish is Wish.STOP:
        run.checkpoints.wait()
        raise StopTraining


def report(run: Run, meter: Meter) -> None:
    progress, rates = run.progress, run.config.optimizer
    point = meter.point(progress.step)
    point["learning_rate"] = rates.dense_learning_rate * rate_factor(progress.step - 1, rates)
    progress.training.append(point)
    run.tracker.metrics(progress.step, {f"train/{name}": value for name, value in point.items() if name != "step"})
    if run.world.rank == 0:
        log.info("%s", _line(progress.epoch, run.config.train.epochs, run.streams["train"].steps, point))


def not_finite(run: Run, step: int, first_block: int) -> Exception:
    """On every worker, once what was being written is."""
    newest = run.checkpoints.newest()
    dist.barrier()
    return record_not_finite(run.config, run.streams["train"], step, run.progress.epoch, first_block, newest)


def evaluate(run: Run, split: str) -> Evaluation | None:
    """On rank 0, where the split has rows."""

    def read(split: str) -> Iterator[Columns] | None:
        return run.streams[split].once() if split in run.streams else None

    return run.task.evaluate(run.model, split, read, run.world.device)


def validate(run: Run) -> None:
    """Measures what training has come to on the validation split."""
    progress, began = run.progress, time.perf_counter()
    progress.validated_step = progress.step
    found = evaluate(run, "validation")
    metrics = [found.metrics if found is not None else {}]
    dist.broadcast_object_list(metrics, device=run.world.device)
    progress.add_seconds({"evaluation": time.perf_counter() - began})
    if not metrics[0]:
        return
    progress.scores.append((progress.step, metrics[0][run.task.objective] * (1 if run.task.lower_is_better else -1)))
    progress.validation.append({"epoch": progress.epoch + 1, "step": progress.step, **metrics[0]})
    run.tracker.metrics(progress.step, {f"validation/{name}": value for name, value in metrics[0].items()})
    if run.world.rank == 0:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics[0].items())
        best = "  (best)" if progress.best_steps[0] == progress.step else ""
        log.info("epoch %d: validation %s%s", progress.epoch + 1, numbers, best)


def _line(epoch: int, epochs: int, steps: int, point: dict[str, float]) -> str:
    return (
        f"epoch {epoch + 1}/{epochs}  step {point['step']:>6} ({steps} an epoch)  loss {point['loss']:.4f}  "
        f"{point['rows_per_second']:>9,.0f} rows/s  waiting for data {point['data_wait_share']:.1%}"
    )
