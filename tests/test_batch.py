"""Batch inference on Ray and Spark: scores of raw rows, and recommendations to all users, also after a kill."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ray
import torch

from recsys_ray.columns import FREQUENCY
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_catalogue
from recsys_ray.models.rows import take_rows
from recsys_ray.schema import QUERY_SIDES
from recsys_ray.serving.batch.recommending.inputs import RecommendConfig
from recsys_ray.serving.batch.recommending.job import recommend
from recsys_ray.serving.batch.recommending.known_users import UNKNOWN_USER
from recsys_ray.serving.batch.scoring.job import ScoreConfig, score
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.precision import COMPARED, HEADER, compare_precision
from tests.support import two_stages
from tests.support.processes import ROOT, needs_java
from tests.support.two_stages import GLUTTON, LEFT, NAMELESS, STRANGER, USERS, TwoStages

K, CANDIDATES, ROWS = 5, 40, 3000


@pytest.fixture(scope="module")
def runs(two_stages: TwoStages) -> TwoStages:
    return two_stages


@pytest.fixture(scope="module")
def tables(runs: TwoStages) -> Path:
    """Writes users and what they have seen, in several files and small row groups."""
    folder = runs.raw.parent / "tables"
    (folder / "users").mkdir(parents=True)
    users = two_stages.users_of_every_kind(runs.raw)
    for number, start in enumerate((0, 170)):
        pq.write_table(users.slice(start, 170), folder / "users" / f"{number}.parquet", row_group_size=64)
    pq.write_table(two_stages.seen_by_every_kind(runs.raw), folder / "seen.parquet")
    return folder


def config(runs: TwoStages, tables: Path, out: Path, **settings: Any) -> RecommendConfig:
    common = {
        "retriever": str(runs.retriever), "ranker": str(runs.ranker), "users": str(tables / "users"), "out": str(out),
        "interactions": (str(tables / "seen.parquet"),), "candidates": CANDIDATES, "k": K, "history": "recent_items",
        "history_length": 10, "users_per_file": 100, "workers": 1, "inference": "torch",
    }  # fmt: skip
    return RecommendConfig(**{**common, **settings})


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_pair_scores_as_the_row_of_both(runs: TwoStages, engine: str) -> None:
    """Whether items are looked up beforehand or, as those of a very large catalogue, for each request."""
    ranker = load_ranker(runs.ranker, engine=engine)
    rows = two_stages.rows_to_score(runs.raw, 200)
    users, items = (ranker.encoder.encode(rows, ranker.schema.features_of(*sides)) for sides in (QUERY_SIDES, ("item",)))
    user, item = (torch.from_numpy(np.random.default_rng(0).integers(0, 200, 500)) for _ in range(2))
    expected = load_ranker(runs.ranker).predict_encoded({**take_rows(users, user), **take_rows(items, item)})
    assert len(np.unique(expected)) > 100
    for catalogue in (ranker.look_up(items, "item"), items):
        found = ranker.score_pairs(ranker.look_up(users, *QUERY_SIDES), catalogue, user, item)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_smaller_numbers_lose_little_and_save_memory(runs: TwoStages) -> None:
    figures = list(compare_precision(str(runs.ranker), DatasetDirectory.open(runs.dataset)))
    whole, half, quarter, *_ = figures
    assert [one.precision for one in figures] == list(COMPARED)
    assert whole.weight_bytes > half.weight_bytes > quarter.weight_bytes
    assert whole.auc_difference == whole.largest_change == 0 < half.largest_change < quarter.largest_change
    assert all(abs(one.auc_difference) < 0.01 and one.largest_change < 0.05 and one.auc > 0.55 for one in figures), figures
    assert figures[3].largest_change < 1e-6
    assert {len(one.line()) for one in figures} == {len(HEADER)}


@needs_java
def test_a_row_has_the_same_score_whatever_scores_it(runs: TwoStages, spark_session: object, tmp_path: Path) -> None:
    """Ranker.predict, and the job on Ray and on Spark, in files whose row groups have nothing to do with the partitions."""
    rows = two_stages.rows_to_score(runs.raw, ROWS)
    prices = rows["price"].to_pylist()
    prices[1234] = float("inf")
    rows = rows.set_column(rows.column_names.index("price"), "price", pa.array(prices))
    for number, start in enumerate((0, 1700)):
        (tmp_path / "rows").mkdir(exist_ok=True)
        pq.write_table(rows.slice(start, 1700), tmp_path / "rows" / f"{number}.parquet", row_group_size=333)
    good = np.arange(ROWS) != 1234
    expected = load_ranker(runs.ranker).predict(rows.filter(pa.array(good)))
    assert len(np.unique(expected)) > ROWS // 2
    for engine in ("ray", "spark"):
        out = tmp_path / engine
        counts = score(
            ScoreConfig(
                model=str(runs.ranker), rows=str(tmp_path / "rows"), out=str(out), engine=engine, rows_per_file=800, workers=1
            )
        )
        assert counts == {"rows": ROWS, "not_scored": 1}
        found = pq.read_table(out)
        assert found.select(rows.column_names).equals(rows), "all columns of every row, in the order of the input"
        scores = found["score"].to_numpy()
        np.testing.assert_allclose(scores[good], expected, atol=1e-6)
        assert np.isnan(scores[1234]) and found["reason"][1234].as_py() == "price: infinite, or too large for float32"
        assert found["reason"].null_count == ROWS - 1
        assert set(found["model_version"].to_pylist()) == {load_ranker(runs.ranker).version}
        assert found["scored_at"].null_count == 0 and sorted(path.name for path in out.iterdir()) == [
            "_SUCCESS", "_manifest.json", *(f"part-{number:05d}.parquet" for number in range(4))
        ]  # fmt: skip


class Reference:
    """Recommendations computed one user at a time, with raw columns."""

    def __init__(self, runs: TwoStages, tables: Path) -> None:
        self.retriever, self.ranker = load_retriever(runs.retriever), load_ranker(runs.ranker)
        catalogue = load_catalogue(DatasetDirectory.open(runs.dataset))
        self.frequency, self.items = catalogue[FREQUENCY].to_numpy(), catalogue.drop_columns([FREQUENCY])
        self.vectors = self.retriever.embed_candidates(self.items)
        self.seen: dict[Any, list[int]] = {}
        seen = pq.read_table(tables / "seen.parquet").sort_by("timestamp").to_pylist()
        for row in seen:
            self.seen.setdefault(row["user_id"], []).append(row["item_id"])

    def popular(self, user: dict[str, Any]) -> list[int]:
        order = np.argsort(-self.frequency, kind="stable")
        return [item for item in order.tolist() if item not in self.seen.get(user["user_id"], [])][:K]

    def scores(self, user: dict[str, Any]) -> dict[int, tuple[float, float]]:
        """Returns retrieval and ranking score of each candidate."""
        seen = self.seen.get(user["user_id"], [])
        row = pa.Table.from_pylist([{**user, "recent_items": seen[::-1][:10]}])
        scores = self.retriever.embed_queries(row)[0] @ self.vectors.T
        scores[seen] = -np.inf
        chosen = [item for item in np.argsort(-scores)[:CANDIDATES].tolist() if scores[item] > -np.inf]
        pairs = self.items.take(chosen)
        for name in row.column_names:
            pairs = pairs.append_column(name, pa.concat_arrays([row[name].chunk(0)] * len(chosen)))
        return dict(zip(chosen, zip(scores[chosen], self.ranker.predict(pairs), strict=True), strict=True))


def test_recommendations_are_those_of_one_user_at_a_time(runs: TwoStages, tables: Path, tmp_path: Path) -> None:
    counts = recommend(config(runs, tables, tmp_path / "out", item_columns=("title",)))
    assert counts == {"users": USERS + 4, "users_with_popular_items": 1, "users_with_fewer_than_k": 1,
                      "rows": (USERS + 4) * K - (K - LEFT)}  # fmt: skip
    found = pq.read_table(tmp_path / "out")
    reference, users = Reference(runs, tables), two_stages.users_of_every_kind(runs.raw).to_pylist()
    assert Counter(found["user_id"].to_pylist()) == Counter(user["user_id"] for user in users for _ in range(K)) - Counter(
        [GLUTTON]
    )
    lists: dict[Any, list[dict[str, Any]]] = {}
    for row in found.to_pylist():
        lists.setdefault(row["user_id"], []).append(row)
    for user in users:
        rows = lists[user["user_id"]][:K]
        items = [row["item_id"] for row in rows]
        assert [row["place"] for row in rows] == list(range(1, len(rows) + 1)) and len(set(items)) == len(items)
        assert not set(items) & set(reference.seen.get(user["user_id"], []))
        if user["user_id"] is None:
            assert items == reference.popular(user)
            assert all(row["popular"] and row["reason"] == UNKNOWN_USER and row["ranking_score"] is None for row in rows)
            continue
        scores = reference.scores(user)
        best = sorted((ranking for _, ranking in scores.values()), reverse=True)[:K]
        np.testing.assert_allclose([row["ranking_score"] for row in rows], best, atol=1e-6)
        np.testing.assert_allclose([(row["retrieval_score"], row["ranking_score"]) for row in rows],
                                   [scores[item] for item in items], atol=1e-5)  # fmt: skip
        assert not any(row["popular"] for row in rows)
    assert STRANGER in lists, "whom the models know by what they have seen"
    assert len(lists[3]) == 2 * K and len(lists[GLUTTON]) == LEFT and NAMELESS in lists
    assert set(zip(*(found[name].to_pylist() for name in ("retriever_version", "ranker_version")), strict=True)) == {
        (reference.retriever.version, reference.ranker.version)
    }
    assert all(title.startswith(f"item {item},") for title, item in
               zip(found["title"].to_pylist(), found["item_id"].to_pylist(), strict=True))  # fmt: skip


@needs_java
def test_spark_recommends_what_ray_does_by_retrieval_alone(
    runs: TwoStages, tables: Path, spark_session: object, tmp_path: Path
) -> None:
    for engine in ("ray", "spark"):
        recommend(config(runs, tables, tmp_path / engine, engine=engine, ranker="", history="", users_per_file=200))
    ours, theirs = (pq.read_table(tmp_path / engine).drop_columns(["recommended_at"]) for engine in ("ray", "spark"))
    assert ours.equals(theirs)
    assert ours["ranking_score"].null_count == ours["ranker_version"].null_count == ours.num_rows
    for user in (1, 2, NAMELESS):
        scores = ours.filter(pc.field("user_id") == user)["retrieval_score"].to_pylist()
        assert scores == sorted(scores, reverse=True) and len(scores) == K
    stranger = ours.filter(pc.field("user_id") == STRANGER)
    assert set(stranger["reason"].to_pylist()) == {UNKNOWN_USER}, "without history nothing is known of them"
    reference = Reference(runs, tables)
    assert stranger["item_id"].to_pylist() == reference.popular({"user_id": STRANGER}) != reference.popular({"user_id": None})


def test_a_killed_job_goes_on_with_what_is_missing(runs: TwoStages, tables: Path, tmp_path: Path) -> None:
    settings = config(runs, tables, tmp_path / "out", users_per_file=8)
    partitions = -(-(USERS + 4) // 8)
    flags = [
        f"--{name}={getattr(settings, name)}" for name in ("retriever", "ranker", "users", "out", "history", "k", "candidates")
    ]
    flags += ["--interactions", *settings.interactions, "--history-length=10", "--users-per-file=8", "--workers=1"]
    environment = {**os.environ, "RAY_ADDRESS": ray.get_runtime_context().gcs_address}
    command = [sys.executable, "jobs/recommend.py", *flags, "--inference=torch"]
    with (tmp_path / "log").open("w") as log:
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    work = tmp_path / ".out.partial"
    deadline = time.monotonic() + 120
    while len(list(work.glob("part-*"))) < 3:
        assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
        time.sleep(0.01)
    job.send_signal(signal.SIGKILL)
    job.wait()
    finished = {path.name: path.stat().st_mtime_ns for path in work.glob("part-*")}
    assert 3 <= len(finished) < partitions and not (tmp_path / "out").exists()
    with pytest.raises(FileExistsError, match=r"was begun with other values \(--k\): pass --overwrite to begin again"):
        recommend(config(runs, tables, tmp_path / "out", users_per_file=8, k=3))

    counts = recommend(settings)
    assert counts["users"] == USERS + 4 and not work.exists()
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [path.name for path in parts] == [f"part-{number:05d}.parquet" for number in range(partitions)]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished, "finished partitions stay"
    users = Counter(user["user_id"] for user in two_stages.users_of_every_kind(runs.raw).to_pylist() for _ in range(K))
    assert Counter(pq.read_table(tmp_path / "out")["user_id"].to_pylist()) == users - Counter([GLUTTON] * (K - LEFT))

    again = (tmp_path / "out" / "_SUCCESS").stat().st_mtime_ns
    assert recommend(settings) == counts and (tmp_path / "out" / "_SUCCESS").stat().st_mtime_ns == again
