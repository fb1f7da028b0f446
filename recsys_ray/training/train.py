"""The one function `train(config)`, run on every worker by a launcher: join the process group, build the task, plan and shard,
stream blocks, train, evaluate, checkpoint, report. Run again in the same run directory, it goes on after the last checkpoint."""

from __future__ import annotations

import logging
import uuid
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from recsys_ray.columns import ROW_WEIGHT
from recsys_ray.compat.streaming_compat import separate_shared_memory
from recsys_ray.config import LoopConfig, TrainConfig, TwoTowerConfig, to_json
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.cache_janitor import shard_cache
from recsys_ray.data.loading.stream import BatchLayout, BlockStream, batch_layout
from recsys_ray.distributed import World, join_world
from recsys_ray.launch.stopping import stop_requested
from recsys_ray.models.encoded_catalogue import Catalogue
from recsys_ray.models.registry import build_task
from recsys_ray.reporting.tracking.mlflow_tracker import Tracker
from recsys_ray.sharding.planner import initialise_tables, plan_shards, plan_table, shard
from recsys_ray.training.checkpointing import Checkpoints
from recsys_ray.training.loop import Run, evaluate, fit
from recsys_ray.training.optimizers import build_optimizer
from recsys_ray.training.progress import Progress
from recsys_ray.training.startup import Startup

# Not print: Ray Train shows what its workers print twice.
log = logging.getLogger(__name__)


def train(config: TrainConfig) -> None:
    """Trains `config.model` on the dataset directory `config.data.path`; everything it makes is in `config.run_dir`.

    Raises ValueError for a configuration that cannot work, FileNotFoundError for a missing dataset, ShardError for a damaged
    one, RunNotFinite for a loss that is not finite.
    """
    startup = Startup()
    # Ray shows all that reaches the root logger; fbgemm writes its build of every table there.
    logging.getLogger().setLevel(logging.WARNING)
    with join_world(config.launch.cpus_per_worker) as world:
        startup.done("process group")
        if asked_to_stop(config):  # while these workers were on their way
            return
        dataset = DatasetDirectory.open(config.data.path)
        layout = batch_layout(config.train.global_batch, dataset.summary["block_rows"], world.size)
        autocast = autocast_type(config.train, world)
        items = catalogue(config, dataset)
        task = build_task(config.model, dataset.schema, ROW_WEIGHT, world.device, autocast, config.train.seed, items)
        model = shard(task.module, world, config.sharding, config.optimizer, layout.rows)
        initialise_tables(model, config.model.init_range, config.train.seed)
        optimizer = build_optimizer(model, config.optimizer)
        startup.done("model")
        checkpoints = Checkpoints(config, dataset, model, optimizer)
        progress, changes = checkpoints.resume()
        matches = start_warm(config, dataset, model) if config.init_from and not progress.step else []
        startup.done("checkpoint")
        tracker = start_tracking(config, world, progress, dataset, model)
        tell(world, layout, progress, changes, matches, tracker)
        separate_shared_memory(world.neighbour)
        cache = shard_cache(config.data.cache, config.run_dir, shared_token(world), world.node, world.local_rank)
        try:
            streams = open_streams(config, dataset, cache, layout)
            startup.done("data")
            run = Run(config, world, task, model, optimizer, streams, progress, tracker, checkpoints, startup)
            if not fit(run):
                tracker.end("KILLED")
                return
            best = checkpoints.best(progress)
            checkpoints.restore_weights(best)
            test = evaluate(run, "test")
            if world.rank == 0:
                # Not at the top: rank 0 alone draws.
                from recsys_ray.reporting.outcome import finish

                finish(run, dataset, test, best)
            dist.barrier()
        except BaseException:
            tracker.end("FAILED")
            raise
        finally:
            checkpoints.close()


def asked_to_stop(config: TrainConfig) -> bool:
    """By the launching process; the same on every worker."""
    asked = [stop_requested(config.run_dir)]
    dist.broadcast_object_list(asked)
    return asked[0]


def catalogue(config: TrainConfig, dataset: DatasetDirectory) -> Catalogue | None:
    """What a retrieval model recommends from."""
    if not isinstance(config.model, TwoTowerConfig):
        return None
    # Not at the top: a ranking model has no use for it and its Arrow.
    from recsys_ray.data.catalogue_reader import encoded_catalogue, group_names

    key = dataset.schema.key("item")
    columns, frequency = encoded_catalogue(dataset)
    assert key is not None
    return Catalogue(columns, frequency, key, group_names(dataset, config.model.group_by))


def start_warm(config: TrainConfig, dataset: DatasetDirectory, model: Any) -> list[str]:
    """What matched, a line each."""
    # Not at the top: a run that starts cold has no use for it and its Arrow.
    from recsys_ray.training.warm_start import warm_start

    return warm_start(config.init_from, dataset, model)


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
    tracker.text(plan, "sharding_plan.txt")
    tracker.text(dataset.schema.to_json(), "schema.json")
    tracker.tags({"dataset.fingerprint": dataset.summary["fingerprint"], "dataset.path": str(dataset.root)})
    return tracker


def tell(world: World, layout: BatchLayout, progress: Progress, changes: list[str], matches: list[str], tracker: Tracker) -> None:
    """On rank 0: where the run goes on, what has changed since, and what is unusual about it."""
    if world.rank != 0:
        return
    if progress.step:
        place = f"{progress.epoch} epochs and {progress.blocks_in_epoch} row blocks"
        log.info("going on after step %d, %s, with %d workers", progress.step, place, world.size)
    for line in [*matches, *(f"changed since the checkpoint: {change}" for change in changes), layout.padding_note()]:
        if line:
            log.info("%s", line)
    if changes:
        tracker.tags({f"changed.after_step_{progress.step}": "; ".join(changes)})


def open_streams(config: TrainConfig, dataset: DatasetDirectory, cache: Path, layout: BatchLayout) -> dict[str, BlockStream]:
    """One for each split that has rows."""
    weight = dataset.schema.weight.name if dataset.schema.weight else ""
    return {
        split: BlockStream(str(folder), cache / split, layout, config.train.seed, split == "train", config.data, weight)
        for split in ("train", "validation", "test")
        if (folder := dataset.split(split)) is not None
    }
