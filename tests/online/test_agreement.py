"""Compares all that score a raw row, which must agree, and the items that users get from either engine of the batch jobs."""

from __future__ import annotations

from pathlib import Path

import mlflow
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jobs.register import RegisterJob
from jobs.register import main as register_job
from recsys_ray.reporting.registry.address import RegistryAddress, connected
from recsys_ray.serving.batch.recommending.job import recommend
from recsys_ray.serving.batch.recommending.known_users import UNKNOWN_USER
from recsys_ray.serving.batch.scoring.job import ScoreConfig, score
from recsys_ray.serving.bundle import load_ranker
from tests.support.processes import needs_java
from tests.support.recommending import K, Reference, recommend_config, write_tables
from tests.support.runs import evaluated_predictions
from tests.support.served_models import ServedRuns
from tests.support.service_client import ServiceClient
from tests.support.two_stages import NAMELESS, STRANGER, TwoStages
from tests.support.workers import mlflow_uri

BAD_ROW, ROWS_A_REQUEST = 1234, 500


@needs_java
def test_a_row_has_the_same_score_whatever_scores_it(
    client: ServiceClient, runs: ServedRuns, spark_session: object, tmp_path: Path
) -> None:
    """The evaluation in training, Ranker.predict, MLflow, HTTP, and the job on Ray and on Spark, within 1e-6."""
    run, rows = runs.rankers["a"], runs.test_rows
    features = rows.select([column.name for column in load_ranker(run).schema.features])
    assert len(rows) == 10_000 and all(column.null_count > 800 for column in features.columns)
    expected = load_ranker(run).predict(rows)
    assert len(np.unique(expected)) > 8000 and np.ptp(expected) > 0.3
    for found in (evaluated(run), mlflow_scores(run, features), http_scores(client, features)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)

    with_bad_row = write_with_bad_row(tmp_path / "rows", rows)
    for engine in ("ray", "spark"):
        found = job_output(run, tmp_path / "rows", tmp_path / engine, engine)
        assert found.select(rows.column_names).equals(with_bad_row), "all columns of every row, in the order of the input"
        scores = found["score"].to_numpy()
        np.testing.assert_allclose(np.delete(scores, BAD_ROW), expected, rtol=0, atol=1e-6)
        assert np.isnan(scores[BAD_ROW]) and found["reason"][BAD_ROW].as_py() == "size: infinite, or too large for float32"
        assert found["reason"].null_count == len(rows)
        assert set(found["model_version"].to_pylist()) == {load_ranker(run).version}
        assert found["scored_at"].null_count == 0


def evaluated(run: Path) -> np.ndarray:
    """Returns what the evaluation predicted, in the order of the raw rows: the weight is the number of a row."""
    found = evaluated_predictions(run)
    order = np.argsort(found.weights)
    assert np.array_equal(found.weights[order], np.arange(1, len(order) + 1))
    return found.probabilities[order]


def mlflow_scores(run: Path, features: pa.Table) -> np.ndarray:
    register_job(RegisterJob(str(run), "agreement"))
    with connected(RegistryAddress(mlflow_uri(run.parent))):
        return mlflow.pyfunc.load_model("models:/agreement@candidate").predict(features.to_pandas())


def http_scores(client: ServiceClient, features: pa.Table) -> np.ndarray:
    sent = features.to_pylist()
    parts = [
        client.answer("/rank", rows=[{**row, "label": 1} for row in sent[first : first + ROWS_A_REQUEST]])
        for first in range(0, len(sent), ROWS_A_REQUEST)
    ]
    assert all(part["ignored"] == ["label"] for part in parts)
    return np.array([score for part in parts for score in part["scores"]])


def write_with_bad_row(folder: Path, rows: pa.Table) -> pa.Table:
    """Writes and returns the rows with one more that cannot be scored, in files whose row groups do not fit the partitions."""
    bad = rows.slice(0, 1).set_column(rows.column_names.index("size"), "size", pa.array([np.inf]))
    table = pa.concat_tables([rows.slice(0, BAD_ROW), bad, rows.slice(BAD_ROW)])
    folder.mkdir()
    for number, start in enumerate((0, 6100)):
        pq.write_table(table.slice(start, 6100), folder / f"{number}.parquet", row_group_size=999)
    return table


def job_output(run: Path, rows: Path, out: Path, engine: str) -> pa.Table:
    config = ScoreConfig(model=str(run), rows=str(rows), out=str(out), engine=engine, rows_per_file=2800, workers=1)
    assert score(config) == {"rows": 10_001, "not_scored": 1}
    parts = [f"part-{number:05d}.parquet" for number in range(4)]
    assert sorted(path.name for path in out.iterdir()) == ["_SUCCESS", "_manifest.json", *parts]
    return pq.read_table(out)


@needs_java
def test_spark_recommends_what_ray_does_by_retrieval_alone(two_stages: TwoStages, spark_session: object, tmp_path: Path) -> None:
    tables = write_tables(two_stages, tmp_path / "tables")
    for engine in ("ray", "spark"):
        settings = {"engine": engine, "ranker": "", "history": "", "users_per_file": 200}
        recommend(recommend_config(two_stages, tables, tmp_path / engine, **settings))
    ours, theirs = (pq.read_table(tmp_path / engine).drop_columns(["recommended_at"]) for engine in ("ray", "spark"))
    assert ours.equals(theirs)
    assert ours["ranking_score"].null_count == ours["ranker_version"].null_count == ours.num_rows
    for user in (1, 2, NAMELESS):
        scores = ours.filter(pc.field("user_id") == user)["retrieval_score"].to_pylist()
        assert scores == sorted(scores, reverse=True) and len(scores) == K
    stranger = ours.filter(pc.field("user_id") == STRANGER)
    assert set(stranger["reason"].to_pylist()) == {UNKNOWN_USER}, "without history nothing is known of them"
    reference = Reference(two_stages, tables)
    assert stranger["item_id"].to_pylist() == reference.popular({"user_id": STRANGER}) != reference.popular({"user_id": None})
