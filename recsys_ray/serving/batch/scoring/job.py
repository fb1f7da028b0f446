"""The job that scores a table of raw rows: it checks table and model, and has an engine score each partition."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import partial

from recsys_ray.data.sources.column_types import check_columns
from recsys_ray.data.sources.parquet_files import ParquetFiles, find_parquet
from recsys_ray.serving.batch.models import BatchModel, absolute_location
from recsys_ray.serving.batch.partitioned.output import BatchManifest
from recsys_ray.serving.batch.partitioned.row_ranges import row_ranges, rows_fingerprint
from recsys_ray.serving.batch.partitioned.stages import Stage, StageRunner, check_all, output_of
from recsys_ray.serving.batch.scoring.scorer import ADDED_BY_SCORING, ScoringPlan, score_partition
from recsys_ray.serving.batch.settings import BatchConfig, check_free
from recsys_ray.serving.bundle import load_ranker


@dataclass(frozen=True, kw_only=True)
class ScoreConfig(BatchConfig):
    """The flags of a job that scores."""

    model: str
    """A finished run of a ranking model, its `model` folder, or the URL of one."""
    rows: str
    """Raw rows: a Parquet file, folder, glob or object-store URL with the columns that the model reads; null means unknown."""
    rows_per_file: int = 250_000
    """The rows of a partition, which is an output file, and what is done again when a worker is killed."""


def score(config: ScoreConfig) -> Counter[str]:
    """Scores all rows and returns the number of `rows` and of those `not_scored`. Goes on where an earlier call was killed.

    Raises ValueError, FileNotFoundError or FileExistsError naming the flag, column or file at fault.
    """
    ranker = load_ranker(config.model, device=config.device)
    files = find_parquet(config.rows)
    check_columns(ranker.schema.features, files.arrow_schema, f"--rows {config.rows}")
    check_free(files.arrow_schema.names, ADDED_BY_SCORING, f"--rows {config.rows}")
    model = BatchModel(absolute_location(config.model), ranker.version, config.device, config.inference, config.tables)
    output = output_of(config, _manifest(config, files, ranker.version))
    if output.begin(config.overwrite):
        plan = ScoringPlan(model, files, config.rows_per_file, output)
        stage = Stage("score", files.rows, output.manifest.partitions, output.missing)
        with StageRunner.open(config) as runner:
            runner.run(stage, partial(score_partition, plan))
        counts = output.counts()
        check_all(counts, "rows", files.rows, "--rows")
        output.publish(counts)
    return output.finished_counts()


def _manifest(config: ScoreConfig, files: ParquetFiles, version: str) -> BatchManifest:
    made_from = {"--model": version, "--rows": rows_fingerprint([files]), "--rows-per-file": str(config.rows_per_file)}
    return BatchManifest("score", made_from, len(row_ranges(files.rows, config.rows_per_file)))
