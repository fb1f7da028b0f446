"""The training loop: epochs of steps, checkpoints and validation, until enough are done, none improves, or the run is stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.columns import Columns
from recsys_ray.config import LoopConfig, TrainConfig
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.distributed import World, broadcast_value
from recsys_ray.launch.stopping import StopRequest
from recsys_ray.models.task import Batch, Evaluation, Task
from recsys_ray.reporting.tracking.tracker import Tracker
from recsys_ray.training.checkpointing.checkpoints import Checkpoints
from recsys_ray.training.checkpointing.progress import Progress
from recsys_ray.training.not_finite import record_not_finite
from recsys_ray.training.optimizers import rate_factor
from recsys_ray.training.steps import Step, make_step, train_steps
from recsys_ray.training.stopping_policy import CheckpointAction, StoppingPolicy
from recsys_ray.training.timing import EpochMeter, LossNotFinite, StartupTimes, TimedBatches

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Run:
    """Everything that a worker holds while it trains."""

    config: TrainConfig
    world: World
    task: Task
    model: Any
    optimizer: Any
    streams: dict[str, BlockStream]
    """Split name -> its rows; a split without rows is missing."""
    progress: Progress
    resumed_step: int
    """The step of the checkpoint that training resumed from; 0 without one."""
    tracker: Tracker
    checkpoints: Checkpoints
    startup: StartupTimes


class StopTraining(Exception):
    """Raised on every worker after the same step, once the checkpoint before a requested stop is written."""


def train_epochs(run: Run) -> bool:
    """Trains to the end and returns True, or until a stop is requested: then the last step is saved, and it returns False.

    A checkpoint is written at the end of each epoch before it is validated, since validation can take long and fail; the result
    of the validation is added to the checkpoint afterwards.
    """
    config, progress = run.config, run.progress
    stop = StopRequest(config.run_dir, config.checkpoint.grace_seconds)
    policy = StoppingPolicy(config.checkpoint, stop)
    graphed_rows = config.train.global_batch if config.train.compile else 0
    step = make_step(run.model, run.optimizer, run.world, split=run.task.split, graphed_rows=graphed_rows)
    run.streams["train"].start_at(progress.epoch, progress.blocks_in_epoch)
    if not _finished(config.train, progress):
        run.checkpoints.reserve()
    while not _finished(config.train, progress):
        try:
            with stop.deferring_sigterm():
                train_rest_of_epoch(run, step, policy)
        except StopTraining:
            stop.end_stopped_worker()
            return False
        run.checkpoints.save(progress)
        policy.saved()
        validate(run)
        if progress.blocks_in_epoch >= run.streams["train"].blocks:
            progress.epoch, progress.blocks_in_epoch = progress.epoch + 1, 0
        run.checkpoints.amend(progress)
    return True


def _finished(loop: LoopConfig, progress: Progress) -> bool:
    stopped_early = bool(loop.patience) and progress.epochs_since_best >= loop.patience
    enough_steps = bool(loop.max_steps) and progress.step >= loop.max_steps and progress.validated_step == progress.step
    return progress.epoch >= loop.epochs or stopped_early or enough_steps


def train_rest_of_epoch(run: Run, step: Step, policy: StoppingPolicy) -> None:
    """Trains to the end of the epoch or to max_steps, and keeps `run.progress` up to date. Raises StopTraining, RunNotFinite."""
    loop, progress, stream = run.config.train, run.progress, run.streams["train"]
    blocks, blocks_per_step = progress.blocks_in_epoch, loop.global_batch // stream.block_rows
    if blocks >= stream.blocks:  # the run ended after this epoch was trained and before it was validated
        stream.start_at(progress.epoch + 1, 0)
        return
    batches = TimedBatches(batches_of(run.task, stream, run.world.device))
    meter = EpochMeter(batches, loop.global_batch, run.world.device)
    losses = train_steps(
        step, batches, run.optimizer, loop=loop, rates=run.config.optimizer, done=progress.step, rank=run.world.rank
    )
    try:
        for loss in losses:
            meter.losses.append(loss)
            progress.step, blocks = progress.step + 1, blocks + blocks_per_step
            progress.blocks_in_epoch = min(blocks, stream.blocks)
            run.startup.first_step()
            after_step(run, meter, policy)
        if meter.losses:
            record_point(run, meter)
    except LossNotFinite as error:
        since = error.steps_ago
        raise not_finite(run, progress.step - since, blocks - (since + 1) * blocks_per_step) from error
    policy.finish()
    progress.add_seconds(meter.seconds)


def batches_of(task: Task, stream: BlockStream, device: torch.device) -> Iterator[Batch]:
    """Yields the training batches of the rest of an epoch, on `device`."""
    if not task.batches_on_host:
        return map(task.to_batch, stream.on_device(device))
    if device.type == "cpu":
        return map(task.to_batch, stream)
    return (task.to_batch(columns).pin_memory().to(device, non_blocking=True) for columns in stream)


def after_step(run: Run, meter: EpochMeter, policy: StoppingPolicy) -> None:
    """Records a point where one is due, then saves or stops where all ranks do."""
    action = policy.action_after(run.progress.step)
    if action is not CheckpointAction.CONTINUE or run.progress.step % run.config.train.log_every == 0:
        record_point(run, meter)
    if action is not CheckpointAction.CONTINUE:
        with meter.paused():
            save_or_stop(run, policy, action)


def save_or_stop(run: Run, policy: StoppingPolicy, action: CheckpointAction) -> None:
    """Saves a checkpoint unless the epoch has just ended, which saves one too; on STOP waits for it and raises StopTraining."""
    if action is CheckpointAction.STOP or run.progress.blocks_in_epoch < run.streams["train"].blocks:
        run.checkpoints.save(run.progress)
        policy.saved()
    if action is CheckpointAction.STOP:
        run.checkpoints.wait()
        raise StopTraining


def record_point(run: Run, meter: EpochMeter) -> None:
    """Adds loss and throughput since the last point to the progress and the tracker, and logs them. Raises LossNotFinite."""
    progress, rates = run.progress, run.config.optimizer
    point = meter.point(progress.step)
    point["learning_rate"] = rates.dense_learning_rate * rate_factor(progress.step - 1, rates)
    progress.training.append(point)
    run.tracker.log_metrics(progress.step, {f"train/{name}": value for name, value in point.items() if name != "step"})
    if run.world.rank == 0:
        epoch = f"epoch {progress.epoch + 1}/{run.config.train.epochs}"
        step = f"step {point['step']:>6} ({run.streams['train'].steps} an epoch)"
        speed = f"{point['rows_per_second']:>9,.0f} rows/s  waiting for data {point['data_wait_share']:.1%}"
        log.info("%s  %s  loss %.4f  %s", epoch, step, point["loss"], speed)


def not_finite(run: Run, step: int, first_block: int) -> Exception:
    """Returns the error to raise for a loss that is not finite, once pending checkpoints are written. Every worker calls it."""
    newest = run.checkpoints.newest()
    dist.barrier()
    train_stream = run.streams["train"]
    return record_not_finite(
        run.config, train_stream, step=step, epoch=run.progress.epoch, first_block=first_block, newest=newest
    )


def evaluate(run: Run, split: str) -> Evaluation | None:
    """Evaluates a split. Every worker calls it; rank 0 gets the result, or None where the split has no rows."""

    def read(split: str) -> Iterable[Columns] | None:
        return run.streams[split].once() if split in run.streams else None

    return run.task.evaluate(run.model, split, read, run.world.device)


def validate(run: Run) -> None:
    """Evaluates the validation split, and records the result as that of the current step."""
    progress, began = run.progress, time.perf_counter()
    progress.validated_step = progress.step
    found = evaluate(run, "validation")
    metrics = broadcast_value(found.metrics if found is not None else {})
    progress.add_seconds({"evaluation": time.perf_counter() - began})
    if not metrics:
        return
    progress.scores.append((progress.step, metrics[run.task.objective] * (1 if run.task.lower_is_better else -1)))
    progress.validation.append({"epoch": progress.epoch + 1, "step": progress.step, **metrics})
    run.tracker.log_metrics(progress.step, {f"validation/{name}": value for name, value in metrics.items()})
    if run.world.rank == 0:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        best = "  (best)" if progress.best_steps[0] == progress.step else ""
        log.info("epoch %d: validation %s%s", progress.epoch + 1, numbers, best)
