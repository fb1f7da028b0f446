"""The one function `train(config)`, run on every worker by a launcher: join the process group, build the task, plan and shard,
stream blocks, train, evaluate, checkpoint, report. Run again in the same run directory, it goes on after the last checkpoint."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.config import LoopConfig, TrainConfig, TwoTowerConfig, to_json
from recsys_ray.data.dataset_directory import DatasetDirectory
from recsys_ray.data.encoded_catalogue import encoded_catalogue, group_names
from recsys_ray.data.mosaic import separate_shared_memory
from recsys_ray.data.shard_cache import shard_cache
from recsys_ray.data.stream import ROW_WEIGHT, BatchLayout, BlockStream, batch_layout, check_elastic
from recsys_ray.models.build import build_task
from recsys_ray.models.catalogue import Catalogue
from recsys_ray.models.task import Batch, Columns, Evaluation, Task
from recsys_ray.training import progress as run_progress
from recsys_ray.training.loop import Meter, make_step, train_epoch
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.progress import Progress
from recsys_ray.training.sharding import initialise_tables, plan_shards, plan_table, shard
from recsys_ray.training.tracking import Tracker
from recsys_ray.training.world import World, join_world

# Not print: Ray Train shows what its workers print twice.
log = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Trains `config.model` on the dataset directory `config.data.path`; everything it makes is in `config.run_dir`.

    Raises ValueError for a configuration that cannot work, FileNotFoundError for a missing dataset.
    """
    began = time.perf_counter()
    # Ray shows all that reaches the root logger; fbgemm writes its build of every table there.
    logging.getLogger().setLevel(logging.WARNING)
    with join_world(config.launch.cpus_per_worker) as world:
        dataset = DatasetDirectory.open(config.data.path)
        block_rows, launch = dataset.summary["block_rows"], config.launch
        if launch.min_workers is not None:
            check_elastic(config.train.global_batch, block_rows, launch.min_workers, launch.workers)
        layout = batch_layout(config.train.global_batch, block_rows, world.size)
        autocast = autocast_type(config.train, world)
        items = catalogue(config, dataset)
        task = build_task(config.model, dataset.schema, ROW_WEIGHT, world.device, autocast, config.train.seed, items)
        model = shard(task.module, world, config.sharding, config.optimizer, layout.rows)
        initialise_tables(model, config.model.init_range, config.train.seed)
        optimizer = build_optimizer(model, config.optimizer)
        progress = run_progress.resume(checkpoints(config), model, optimizer)
        tracker = start_tracking(config, world, progress, dataset, model)
        separate_shared_memory(world.neighbour)
        cache = shard_cache(config.data.cache, config.run_dir, shared_token(world), world.node, world.local_rank)
        try:
            streams = open_streams(config, dataset, cache, layout)
            progress.add_seconds({"setup": time.perf_counter() - began})
            fit(config, world, task, model, optimizer, streams, progress, tracker)
            run_progress.restore_weights(checkpoints(config) / progress.best, model)
            test = evaluate(task, model, "test", streams, world)
            if world.rank == 0:
                # Not at the top: rank 0 alone draws.
                from recsys_ray.training.outcome import finish

                finish(config, world, task, model, dataset, test, progress, tracker)
            dist.barrier()
        except BaseException:
            tracker.end("FAILED")
            raise


def checkpoints(config: TrainConfig) -> Path:
    return Path(config.run_dir) / "checkpoints"


def catalogue(config: TrainConfig, dataset: DatasetDirectory) -> Catalogue | None:
    """What a retrieval model recommends from."""
    if not isinstance(config.model, TwoTowerConfig):
        return None
    key = dataset.schema.key("item")
    columns, frequency = encoded_catalogue(dataset)
    assert key is not None
    return Catalogue(columns, frequency, key, group_names(dataset, config.model.group_by))


def autocast_type(loop: LoopConfig, world: World) -> torch.dtype | None:
    wanted = loop.precision == "bf16" or (
        loop.precision == "auto" and world.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.bfloat16 if wanted else None


def shared_token(world: World) -> str:
    """Random, and the same on every worker."""
    token = [uuid.uuid4().hex[:8]]
    dist.broadcast_object_list(token, device=world.device)
    return token[0]


def start_tracking(config: TrainConfig, world: World, progress: Progress, dataset: DatasetDirectory, model: Any) -> Tracker:
    run_dir = Path(config.run_dir)
    tracker = Tracker(config, run_dir, world, progress.mlflow_run_id)
    progress.mlflow_run_id = tracker.run_id
    plan = plan_table(plan_shards(model))
    if world.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.json").write_text(to_json(config))
        log.info("%s", plan)
        if progress.step:
            place = f"{progress.epoch} epochs and {progress.steps_in_epoch} steps"
            log.info("going on after step %d, %s, with %d workers", progress.step, place, world.size)
    tracker.text(plan, "sharding_plan.txt")
    tracker.text(dataset.schema.to_json(), "schema.json")
    tracker.tags({"dataset.fingerprint": dataset.summary["fingerprint"], "dataset.path": str(dataset.root)})
    return tracker


def open_streams(config: TrainConfig, dataset: DatasetDirectory, cache: Path, layout: BatchLayout) -> dict[str, BlockStream]:
    """One for each split that has rows."""
    weight = dataset.schema.weight.name if dataset.schema.weight else ""
    return {
        split: BlockStream(str(folder), cache / split, layout, config.train.seed, split == "train", config.data, weight)
        for split in ("train", "validation", "test")
        if (folder := dataset.split(split)) is not None
    }


def batches(task: Task, stream: BlockStream) -> Iterator[Batch]:
    return (task.to_batch(columns) for columns in stream)


def evaluate(task: Task, model: Any, split: str, streams: dict[str, BlockStream], world: World) -> Evaluation | None:
    """On rank 0, where the split has rows."""

    def read(split: str) -> Iterator[Columns] | None:
        return streams[split].once() if split in streams else None

    return task.evaluate(model, split, read, world.device)


def fit(
    config: TrainConfig,
    world: World,
    task: Task,
    model: Any,
    optimizer: Any,
    streams: dict[str, BlockStream],
    progress: Progress,
    tracker: Tracker,
) -> None:
    """Epochs until the last, max_steps, or `patience` epochs without a better validation metric; a checkpoint after each, and
    every checkpoint_every steps within."""
    loop = config.train
    step = make_step(model, optimizer, world)
    meter = Meter(step=progress.step, points=progress.training)
    streams["train"].start_at(progress.epoch, progress.steps_in_epoch)
    before_epoch = progress.step - progress.steps_in_epoch

    def report(point: dict[str, float]) -> None:
        tracker.metrics(meter.step, {f"train/{name}": value for name, value in point.items() if name != "step"})
        if world.rank == 0:
            log.info("%s", _line(progress.epoch, loop.epochs, streams["train"].steps, point))

    def checkpoint() -> None:
        done = meter.step - before_epoch
        if done < streams["train"].steps:  # else the one at the end of the epoch is due
            progress.step, progress.steps_in_epoch = meter.step, done
            run_progress.save(checkpoints(config), model, optimizer, progress)

    while not _finished(loop, progress):
        rest = batches(task, streams["train"])
        seconds = train_epoch(step, rest, optimizer, meter, world, loop, config.optimizer, report, checkpoint)
        progress.epoch, progress.step, progress.steps_in_epoch = progress.epoch + 1, meter.step, 0
        before_epoch = meter.step
        progress.add_seconds(seconds)
        began = time.perf_counter()
        validate(task, model, streams, world, progress, tracker)
        evaluated = time.perf_counter()
        run_progress.save(checkpoints(config), model, optimizer, progress)
        progress.add_seconds({"evaluation": evaluated - began, "checkpoint": time.perf_counter() - evaluated})


def _finished(loop: LoopConfig, progress: Progress) -> bool:
    stopped_early = bool(loop.patience) and progress.worse_epochs >= loop.patience
    return progress.epoch >= loop.epochs or stopped_early or bool(loop.max_steps and progress.step >= loop.max_steps)


def validate(task: Task, model: Any, streams: dict[str, BlockStream], world: World, progress: Progress, tracker: Tracker) -> None:
    """Measures the epoch on the validation split, and whether it is the best so far; without that split the last is best."""
    found = evaluate(task, model, "validation", streams, world)
    metrics = [found.metrics if found is not None else {}]
    dist.broadcast_object_list(metrics, device=world.device)
    here = f"step_{progress.step}"
    if not metrics[0]:
        progress.best = here
        return
    score = metrics[0][task.objective] * (1 if task.lower_is_better else -1)
    if score < progress.best_score or not progress.best:
        progress.best, progress.best_score, progress.worse_epochs = here, score, 0
    else:
        progress.worse_epochs += 1
    progress.validation.append({"epoch": progress.epoch, "step": progress.step, **metrics[0]})
    tracker.metrics(progress.step, {f"validation/{name}": value for name, value in metrics[0].items()})
    if world.rank == 0:
        numbers = "  ".join(f"{name} {value:.4f}" for name, value in metrics[0].items())
        log.info("epoch %d: validation %s%s", progress.epoch, numbers, "  (best)" if progress.best == here else "")


def _line(epoch: int, epochs: int, steps: int, point: dict[str, float]) -> str:
    return (
        f"epoch {epoch + 1}/{epochs}  step {point['step']:>6} ({steps} an epoch)  loss {point['loss']:.4f}  "
        f"{point['rows_per_second']:>9,.0f} rows/s  waiting for data {point['data_wait_share']:.1%}"
    )
