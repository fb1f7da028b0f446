"""Batch inference: recommendations to all users, also after a kill. tests/online/test_agreement.py has scores of raw rows."""

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
import pyarrow.parquet as pq
import pytest
import ray
import torch

from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.engines.base import EngineFailed, TaskWorkers
from recsys_ray.data.engines.ray_data import RayEngine
from recsys_ray.models.rows import take_rows
from recsys_ray.schema import QUERY_SIDES
from recsys_ray.serving.batch.recommending.job import recommend
from recsys_ray.serving.batch.recommending.known_users import UNKNOWN_USER
from recsys_ray.serving.bundle import load_ranker
from recsys_ray.serving.precision import COMPARED, HEADER, compare_precision
from tests.support.processes import ROOT
from tests.support.recommending import K, Reference, recommend_config, write_tables
from tests.support.two_stages import (
    GLUTTON,
    LEFT,
    NAMELESS,
    STRANGER,
    USERS,
    TwoStages,
    rows_to_score,
    users_of_every_kind,
)


@pytest.mark.parametrize("engine", ["torch", "onnx"])
def test_a_pair_scores_as_the_row_of_both(two_stages: TwoStages, engine: str) -> None:
    """Items may be looked up beforehand or, as those of a very large catalogue, for each request."""
    ranker = load_ranker(two_stages.ranker, engine=engine)
    rows = rows_to_score(two_stages.raw, 200)
    users, items = (ranker.encoder.encode(rows, ranker.schema.features_of(*sides)) for sides in (QUERY_SIDES, ("item",)))
    user, item = (torch.from_numpy(np.random.default_rng(0).integers(0, 200, 500)) for _ in range(2))
    expected = load_ranker(two_stages.ranker).predict_encoded({**take_rows(users, user), **take_rows(items, item)})
    assert len(np.unique(expected)) > 100
    for catalogue in (ranker.look_up(items, "item"), items):
        found = ranker.score_pairs(ranker.look_up(users, *QUERY_SIDES), catalogue, user, item)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_smaller_numbers_lose_little_and_save_memory(two_stages: TwoStages) -> None:
    figures = list(compare_precision(str(two_stages.ranker), DatasetDirectory.open(two_stages.dataset)))
    whole, half, quarter, *_ = figures
    assert [one.precision for one in figures] == list(COMPARED)
    assert whole.weight_bytes > half.weight_bytes >= quarter.weight_bytes, "rows are padded to 16 bytes: 8 numbers are so few"
    assert whole.auc_difference == whole.largest_change == 0 < half.largest_change < quarter.largest_change
    assert all(abs(one.auc_difference) < 0.01 and one.largest_change < 0.05 and one.auc > 0.55 for one in figures), figures
    assert figures[3].largest_change < 1e-6
    assert {len(one.line()) for one in figures} == {len(HEADER)}


def test_a_killed_job_goes_on_to_the_recommendations_of_one_user_at_a_time(two_stages: TwoStages, tmp_path: Path) -> None:
    tables, users = write_tables(two_stages, tmp_path / "tables"), users_of_every_kind(two_stages.raw).to_pylist()
    settings = recommend_config(two_stages, tables, tmp_path / "out", users_per_file=8, item_columns=("title",))
    partitions = -(-(USERS + 4) // 8)
    flags = [
        f"--{name}={getattr(settings, name)}" for name in ("retriever", "ranker", "users", "out", "history", "k", "candidates")
    ]
    flags += [
        "--interactions",
        *settings.interactions,
        "--history-length=10",
        "--users-per-file=8",
        "--workers=1",
        "--item-columns=title",
    ]
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
        recommend(recommend_config(two_stages, tables, tmp_path / "out", users_per_file=8, item_columns=("title",), k=3))

    counts = recommend(settings)
    assert counts == {"users": USERS + 4, "users_with_popular_items": 1, "users_with_fewer_than_k": 1,
                      "rows": (USERS + 4) * K - (K - LEFT)}  # fmt: skip
    assert not work.exists()
    parts = sorted((tmp_path / "out").glob("*.parquet"))
    assert [path.name for path in parts] == [f"part-{number:05d}.parquet" for number in range(partitions)]
    assert {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in finished} == finished, "finished partitions stay"
    assert_recommended(pq.read_table(tmp_path / "out"), users, Reference(two_stages, tables))

    again = (tmp_path / "out" / "_SUCCESS").stat().st_mtime_ns
    assert recommend(settings) == counts and (tmp_path / "out" / "_SUCCESS").stat().st_mtime_ns == again


def test_without_interactions_nobody_has_seen_anything(two_stages: TwoStages, tmp_path: Path) -> None:
    tables = write_tables(two_stages, tmp_path / "tables")
    counts = recommend(recommend_config(two_stages, tables, tmp_path / "out", interactions=(), history=""))
    # Whom the models know by what they have seen they do not know here.
    assert counts == Counter(users=USERS + 4, rows=(USERS + 4) * K, users_with_popular_items=2)


def test_the_error_of_a_task_is_raised_with_its_cause() -> None:
    class CannotBePickled(Exception):
        def __init__(self, column: str, value: str) -> None:
            super().__init__(f"{column} is {value}")

    def fails(_: int) -> None:
        raise ValueError("column x is odd")

    def fails_oddly(_: int) -> None:
        raise CannotBePickled("column x", "odd")

    with pytest.raises(ValueError, match=r"\Acolumn x is odd\Z"):
        RayEngine().run_tasks([0], fails, TaskWorkers(1))
    with pytest.raises(EngineFailed, match="CannotBePickled: column x is odd"):
        RayEngine().run_tasks([0], fails_oddly, TaskWorkers(1))


def assert_recommended(found: pa.Table, users: list[dict[str, Any]], reference: Reference) -> None:
    """Fails unless these are the recommendations that each user gets when it is the only one."""
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
