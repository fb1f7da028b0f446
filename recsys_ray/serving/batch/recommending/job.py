"""The job that recommends to all users: it groups users with their interactions, and has an engine recommend to each group."""

from __future__ import annotations

from collections import Counter
from functools import partial

from recsys_ray.data.sources.parquet_files import ParquetFiles
from recsys_ray.serving.batch.models import BatchModel
from recsys_ray.serving.batch.partitioned.output import BatchManifest, BatchOutput
from recsys_ray.serving.batch.partitioned.row_ranges import rows_fingerprint
from recsys_ray.serving.batch.partitioned.stages import Stage, StageRunner, check_all, output_of
from recsys_ray.serving.batch.recommending.batch_recommender import RecommendSizes
from recsys_ray.serving.batch.recommending.inputs import RecommendConfig, RecommendInputs, open_inputs
from recsys_ray.serving.batch.recommending.plan import (
    RecommenderFiles,
    RecommendPlan,
    UserHistory,
    recommend_bucket,
    write_item_vectors,
)
from recsys_ray.serving.batch.recommending.user_buckets import BucketedTable, missing_ranges, write_range
from recsys_ray.serving.location import pinned_location

RANGES_GROUPED_HERE = 8


def recommend(config: RecommendConfig) -> Counter[str]:
    """Recommends to all users and returns the numbers of `users`, `rows`, `users_with_popular_items` and
    `users_with_fewer_than_k`. Goes on where an earlier call was killed.

    Raises ValueError, FileNotFoundError or FileExistsError naming the flag, column or file at fault.
    """
    plan = _begun(config)
    if plan.output.work.exists():
        _run(config, plan)
    return plan.output.finished_counts()


def _begun(config: RecommendConfig) -> RecommendPlan:
    """Returns the plan, with the item vectors written unless all is done. The models are freed: tasks load their own."""
    inputs = open_inputs(config)
    output = output_of(config, _manifest(config, inputs))
    plan = _plan(config, inputs, output)
    if output.begin(config.overwrite) and output.missing():
        write_item_vectors(inputs.retriever, inputs.catalogue, plan.files.vectors)
    return plan


def _run(config: RecommendConfig, plan: RecommendPlan) -> None:
    """Groups the users and recommends to them, and puts the output in place. Does what is missing of it."""
    users, output = plan.users.files.rows, plan.output
    tables = [plan.users, *plan.interactions]
    group = Stage(
        "recommend: grouping users and interactions",
        rows=sum(table.files.rows for table in tables),
        tasks=sum(len(table.ranges) for table in tables),
        missing=partial(missing_ranges, tables),
        few=RANGES_GROUPED_HERE,
    )
    with StageRunner.open(config) as runner:
        if output.missing():
            runner.run(group, partial(write_range, tables))
        stage = Stage("recommend: recommending", users, output.manifest.partitions, output.missing)
        runner.run(stage, partial(recommend_bucket, plan))
    counts = output.counts()
    check_all(counts, "users", users, "--users")
    output.publish(counts)


def _plan(config: RecommendConfig, inputs: RecommendInputs, output: BatchOutput) -> RecommendPlan:
    retriever = BatchModel(pinned_location(config.retriever), inputs.retriever.version, config.device)
    ranker = None
    if inputs.ranker is not None:
        location, version = pinned_location(config.ranker), inputs.ranker.version
        ranker = BatchModel(location, version, config.device, config.inference, config.tables)
    request = RecommendSizes(config.candidates, config.k, config.item_columns)
    vectors = output.scratch / "item_vectors.npy"

    def bucketed(files: ParquetFiles, columns: tuple[str, ...], name: str) -> BucketedTable:
        return BucketedTable(files, columns, inputs.columns.user, output.scratch / name, output.manifest.partitions)

    return RecommendPlan(
        RecommenderFiles(retriever, ranker, inputs.dataset.root.absolute(), vectors, request),
        bucketed(inputs.users, inputs.user_columns, "users"),
        tuple(bucketed(one, inputs.columns.names, f"interactions-{number}") for number, one in enumerate(inputs.interactions)),
        inputs.columns,
        UserHistory(config.history, config.history_length) if config.history else None,
        output,
    )


def _manifest(config: RecommendConfig, inputs: RecommendInputs) -> BatchManifest:
    made_from = {
        "--retriever": inputs.retriever.version,
        "--ranker": inputs.ranker.version if inputs.ranker else "",
        "--users": rows_fingerprint([inputs.users]),
        "--interactions": rows_fingerprint(inputs.interactions),
        "--dataset": inputs.dataset.summary["fingerprint"],
        "--candidates": str(config.candidates),
        "--k": str(config.k),
        "--item-columns": ",".join(config.item_columns),
        "--history": f"{config.history} {config.history_length}" if config.history else "",
        "--users-per-file": str(config.users_per_file),
    }
    return BatchManifest("recommend", made_from, max(1, -(-inputs.users.rows // config.users_per_file)))
