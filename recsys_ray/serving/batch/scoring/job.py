"""The job that scores a table of raw rows: it checks table and model, and has an engine score each partition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import partial
from typing import NamedTuple

from recsys_ray.config import LaunchConfig, ShardingConfig
from recsys_ray.data.sources.column_types import check_columns
from recsys_ray.data.sources.parquet_files import ParquetFiles, find_parquet
from recsys_ray.schema import Schema
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.batch.partitioned.output import BatchManifest
from recsys_ray.serving.batch.partitioned.row_ranges import row_ranges, rows_fingerprint
from recsys_ray.serving.batch.partitioned.stages import Stage, StageRunner, check_all, output_of
from recsys_ray.serving.batch.scoring.scorer import ADDED_BY_SCORING, ScoringPlan, score_partition
from recsys_ray.serving.batch.scoring.sharded import ShardedScoring, run_sharded
from recsys_ray.serving.batch.settings import BatchConfig, check_free
from recsys_ray.serving.bundle import load_ranker, open_ranking_bundle
from recsys_ray.serving.location import pinned_location

WITH_SHARDED = {
    "engine": "--launch.engine chooses what starts the workers",
    "workers": "--launch.workers says how many there are",
    "device": "--launch.gpus-per-worker gives each a GPU, if there are any",
    "inference": "PyTorch runs the model",
    "tables": "they are kept in fp32",
}
"""Flags of workers that each hold the whole model -> what to do instead of them with --sharded."""


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(BatchConfig):
    """The flags of a job that scores."""

    model: str
    """A finished run of a ranking model, its `model` folder, or the URL of one."""
    rows: str
    """Raw rows: a Parquet file, folder, glob or object-store URL with the columns that the model reads; null means unknown."""
    rows_per_file: int = 250_000
    """The rows of a partition, which is an output file, and what is done again when a worker is killed."""
    sharded: bool = False
    """Shard the embedding tables over the workers of --launch, as training does, for a model that no host can hold: each worker
    reads only its slices. It replaces --engine, --workers, --device, --inference and --tables."""
    sharding: ShardingConfig = field(default_factory=ShardingConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)


class ModelToUse(NamedTuple):
    """A model that was checked where the job starts, and its columns."""

    model: BatchModel
    schema: Schema


def score(config: ScoreConfig) -> Counter[str]:
    """Scores all rows and returns the number of `rows` and of those `not_scored`. Goes on where an earlier call was killed.

    Raises ValueError, FileNotFoundError or FileExistsError naming the flag, column or file at fault.
    """
    check_flags(config)
    model, schema = find_model(config)
    files = find_parquet(config.rows)
    check_columns(schema.features, files.arrow_schema, f"--rows {config.rows}")
    check_free(files.arrow_schema.names, ADDED_BY_SCORING, f"--rows {config.rows}")
    output = output_of(config, _manifest(config, files, model.version))
    if output.begin(config.overwrite):
        plan = ScoringPlan(model, files, config.rows_per_file, output)
        stage = Stage("score", files.rows, output.manifest.partitions, output.missing)
        if config.sharded:
            run_sharded(stage, ShardedScoring(plan, config.sharding, config.launch))
        else:
            with StageRunner.open(config) as runner:
                runner.run(stage, partial(score_partition, plan))
        counts = output.counts()
        check_all(counts, "rows", files.rows, "--rows")
        output.publish(counts)
    return output.finished_counts()


def check_flags(config: ScoreConfig) -> None:
    """Raises ValueError for a flag that --sharded leaves without effect, or that has none without it."""
    for flag in fields(config) if config.sharded else ():
        if flag.name in WITH_SHARDED and getattr(config, flag.name) != flag.default:
            raise ValueError(f"--{flag.name} has no effect with --sharded: {WITH_SHARDED[flag.name]}")
    if not config.sharded and (config.launch != LaunchConfig() or config.sharding != ShardingConfig()):
        raise ValueError("--launch and --sharding are for workers that share one model: add --sharded, or leave them out")


def find_model(config: ScoreConfig) -> ModelToUse:
    """Returns the model: its weights are loaded to check them, unless they are to be sharded."""
    location = pinned_location(config.model)
    if config.sharded:
        bundle, schema, _ = open_ranking_bundle(config.model)
        return ModelToUse(BatchModel(location, bundle.manifest.version), schema)
    ranker = load_ranker(config.model, device=config.device)
    return ModelToUse(BatchModel(location, ranker.version, config.device, config.inference, config.tables), ranker.schema)


def _manifest(config: ScoreConfig, files: ParquetFiles, version: str) -> BatchManifest:
    made_from = {"--model": version, "--rows": rows_fingerprint([files]), "--rows-per-file": str(config.rows_per_file)}
    return BatchManifest("score", made_from, len(row_ranges(files.rows, config.rows_per_file)))
