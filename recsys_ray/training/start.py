"""The parts of a run's start: facts of the dataset, weights to start from, the tracker, and the streams of row blocks."""

from __future__ import annotations

import logging
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recsys_ray.columns import SPLITS, Columns
from recsys_ray.compat.streaming_compat import separate_shared_memory
from recsys_ray.config import LoopConfig, TrainConfig
from recsys_ray.config.serialization import flatten, to_json, to_values
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.loading.cache_janitor import shard_cache
from recsys_ray.data.loading.stream import BatchLayout, BlockStream
from recsys_ray.distributed import World, broadcast_value
from recsys_ray.models.registry import model_name
from recsys_ray.reporting.tracking.tracker import Tracker, open_tracker
from recsys_ray.sharding.placement import placement_text, table_shards
from recsys_ray.training.checkpointing.progress import Progress
from recsys_ray.training.loop import Run

# Not print: Ray Train shows printed lines of its workers twice.
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DirectoryFacts:
    """The DatasetFacts of a dataset directory."""

    dataset: DatasetDirectory

    def catalogue(self) -> tuple[Columns, torch.Tensor]:
        """Returns the encoded item columns, and how many positive training rows each item has."""
        # Not at the top: a ranking model has no use for it and its Arrow.
        from recsys_ray.data.catalogue_reader import load_encoded_catalogue

        return load_encoded_catalogue(self.dataset)

    def value_names(self, column: str) -> tuple[str, ...]:
        """Returns what each table row of a user column stands for."""
        from recsys_ray.data.catalogue_reader import value_names

        return value_names(self.dataset, column)


def start_warm(config: TrainConfig, dataset: DatasetDirectory, model: Any) -> list[str]:
    """Starts from the weights of another run, and returns a line for each tensor that says what matched."""
    # Not at the top: a run that starts cold has no use for it and its Arrow.
    from recsys_ray.training.checkpointing.warm_start import warm_start

    return warm_start(config.init_from, dataset, model)


def autocast_type(loop: LoopConfig, world: World) -> torch.dtype | None:
    """Returns the type of the dense part's arithmetic; None for float32."""
    wanted = loop.precision == "bf16" or (
        loop.precision == "auto" and world.device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.bfloat16 if wanted else None


def start_tracking(config: TrainConfig, world: World, progress: Progress, *, dataset: DatasetDirectory, model: Any) -> Tracker:
    """Opens the tracker, and records configuration, sharding plan and dataset there and in the run directory."""
    run_dir, name = Path(config.run_dir), model_name(config.model)
    tracker = open_tracker(config, flatten(to_values(config, name)), progress.tracking_run_id, world.rank)
    progress.tracking_run_id = tracker.run_id
    plan = placement_text(table_shards(model))
    if world.rank == 0:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "config.json").write_text(to_json(config, name))
        log.info("%s", plan)
    tracker.log_text(plan, "sharding_plan.txt")
    tracker.log_text(dataset.schema.to_json(), "schema.json")
    tracker.set_tags({"dataset.fingerprint": dataset.summary["fingerprint"], "dataset.path": str(dataset.root)})
    return tracker


def log_start(run: Run, changes: list[str], notes: list[str]) -> None:
    """Logs on rank 0 where the run resumes, which settings have changed since, and every note that is not empty."""
    progress = run.progress
    if changes:
        run.tracker.set_tags({f"changed.after_step_{progress.step}": "; ".join(changes)})
    if run.world.rank != 0:
        return
    if progress.step:
        place = f"{progress.epoch} epochs and {progress.blocks_in_epoch} row blocks"
        log.info("resuming after step %d, %s, with %d workers", progress.step, place, run.world.size)
    for note in [*notes, *(f"changed since the checkpoint: {change}" for change in changes)]:
        if note:
            log.info("%s", note)


def open_streams(config: TrainConfig, dataset: DatasetDirectory, world: World, layout: BatchLayout) -> dict[str, BlockStream]:
    """Opens a stream for each split that has rows. Every worker calls it."""
    separate_shared_memory(world.same_host_offset)
    cache = shard_cache(config.data.cache, config.run_dir, attempt=shared_token(), node=world.node, local_rank=world.local_rank)
    weight = dataset.schema.weight.name if dataset.schema.weight else ""
    return {
        split: BlockStream(
            str(folder),
            cache / split,
            layout,
            seed=config.train.seed,
            shuffle=split == "train",
            config=config.data,
            weight=weight,
        )
        for split in SPLITS
        if (folder := dataset.split(split)) is not None
    }


def shared_token() -> str:
    """Returns a random text that is the same on every worker."""
    return broadcast_value(uuid.uuid4().hex[:8])
