"""jobs/monitor.py from a written log to its report, figures and exit code; labels joined to answers; what is recommended."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.monitor import ALARMED, MonitorJob, main
from recsys_ray.columns import FREQUENCY
from recsys_ray.config import TrackingConfig
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.dataset.tables import load_vocabularies
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.data.vocabulary import build_lookups
from recsys_ray.schema import Schema
from recsys_ray.serving.bundle import load_ranker
from recsys_ray.serving.monitor import LoggedRequest, RequestLog
from recsys_ray.serving.monitor.alarms import Thresholds
from recsys_ray.serving.monitor.answers.answers import Answers, read_answers
from recsys_ray.serving.monitor.answers.calibration import measure_quality, quality_alarms
from recsys_ray.serving.monitor.answers.labels import Outcomes, join_labels
from recsys_ray.serving.monitor.answers.recommended import describe_recommended
from recsys_ray.serving.monitor.drift.drift import drift_alarms, feature_drifts
from recsys_ray.serving.monitor.drift.reference import read_reference
from recsys_ray.serving.monitor.drift.served_features import ServedFeatures
from recsys_ray.serving.monitor.inspection import Inspection, WatchConfig, inspect_log
from recsys_ray.serving.monitor.report import write_monitoring_report
from recsys_ray.serving.monitor.request_log.logged_request import LogFormat
from recsys_ray.serving.ranker import Ranker
from recsys_ray.training.train import train
from tests.support.preparing import config_for, write_input
from tests.support.processes import ROOT
from tests.support.requests import NOON, SHOP, clicked, served, visits
from tests.support.runs import dlrm_config
from tests.support.workers import mlflow_uri, run_workers

SCHEMA = Schema(SHOP)


@pytest.fixture(scope="module")
def shop(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    raw = write_input(tmp_path_factory.mktemp("shop") / "raw", visits(12_000), SHOP)
    return prepare(config_for(raw)).root


@pytest.fixture(scope="module")
def run(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "dlrm"
    run_workers(train, 1, dlrm_config(shop, run_dir, epochs=2, global_batch=256))
    return run_dir


@pytest.fixture(scope="module")
def ranker(run: Path) -> Ranker:
    return load_ranker(run)


def write_log(folder: Path, requests: Sequence[LoggedRequest]) -> Path:
    with RequestLog(folder, [SCHEMA]) as log:
        for request in requests:
            log.write(request)
    assert log.written == len(requests)
    return folder


def changed(ranker: Ranker) -> list[LoggedRequest]:
    """Returns requests of older users, some of them of a new country and without a history, who get items that are gone."""
    found = served(
        ranker,
        3000,
        seed=1,
        age=lambda age: age + 0.5 * age.std(),
        country=lambda country: np.where(np.arange(len(country)) % 10 == 0, "SE", country),
        recent=lambda recent: [None if number % 5 == 0 else values for number, values in enumerate(recent)],
    )
    return [replaced(request, items=["gone", *request.items[1:]]) for request in found]


def replaced(request: LoggedRequest, **changes: Any) -> LoggedRequest:
    return LoggedRequest(**{**{name: getattr(request, name) for name in request.__dataclass_fields__}, **changes})


def inspect(log: Path, dataset: Path, **settings: Any) -> Inspection:
    return inspect_log(WatchConfig(log=str(log), data=str(dataset), **settings))


def test_changed_requests_are_named_by_the_command_and_unchanged_ones_are_not(
    shop: Path, run: Path, ranker: Ranker, tmp_path: Path
) -> None:
    usual, odd = served(ranker, 3000, seed=0), changed(ranker)
    logs = {name: write_log(tmp_path / name, requests) for name, requests in (("usual", usual), ("odd", odd))}
    pq.write_table(clicked(usual, seed=2), tmp_path / "usual.parquet")
    pq.write_table(clicked(odd, seed=2, factor=0.5), tmp_path / "odd.parquet")
    uri, compared = mlflow_uri(tmp_path), {"data": str(shop), "ranker": str(run), "baseline": str(logs["usual"])}
    job = MonitorJob(
        log=str(logs["usual"]), labels=str(tmp_path / "usual.parquet"), out=str(tmp_path / "days" / "one.html"),
        tracking=TrackingConfig(uri=uri), **compared,
    )  # fmt: skip
    assert main(job) == 0

    flags = [f"--{name}={value}" for name, value in compared.items()]
    flags += [f"--log={logs['odd']}", f"--labels={tmp_path / 'odd.parquet'}", f"--out={tmp_path / 'days' / 'two.html'}"]
    words = [sys.executable, str(ROOT / "jobs" / "monitor.py"), *flags, f"--tracking.uri={uri}"]
    said = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert said.returncode == ALARMED, said.stdout + said.stderr
    texts = defaultdict(list)
    for about, text in re.findall(r"^ALARM    (.*?): ((?:PSI|missing|unseen|\d|all).*)$", said.stdout, re.M):
        texts[about].append(text)
    assert {"age", "country", "recent", "calibration", "recommended items"} <= texts.keys()
    assert {"hour", "kind", "user_id"}.isdisjoint(texts) and "ALARM    calibration" in said.stdout
    assert re.match(r"PSI 0\.\d+ is above 0\.\d+ \(threshold 0\.02, for [\d,]+ independent requests", texts["age"][0])
    assert any(text.startswith("unseen in 10.0% of requests, 0.0%") for text in texts["country"])
    assert any(text.startswith("missing in 20.0% of requests, 0.0%") for text in texts["recent"])
    assert texts["recommended items"][0].startswith("20.0% are not in the catalogue")

    first, second = ((tmp_path / "days" / f"{name}.html").read_text() for name in ("one", "two"))
    assert "No figure has passed its threshold." in first and second.count("data:image/svg+xml") >= 9
    assert all(f"<td>{about}</td>" in second for about in texts)
    from mlflow.tracking import MlflowClient

    points = MlflowClient(uri).get_metric_history((tmp_path / "days" / ".mlflow_run_id").read_text(), "psi/age")
    assert len(points) == 2 and points[0].value < 0.05 < points[1].value


def test_over_twenty_seeds_the_same_requests_raise_no_alarm_and_older_users_do(shop: Path, ranker: Ranker) -> None:
    directory, log_format = DatasetDirectory.open(shop), LogFormat.of([SCHEMA])
    reference, lookups = read_reference(directory), build_lookups(load_vocabularies(shop, directory.schema))

    def alarms(seed: int, **changes: Any) -> set[str]:
        found = ServedFeatures(directory.schema, lookups, reference.bins)
        read_answers([log_format.to_table(served(ranker, 1500, seed, **changes))], found.add)
        return {alarm.about for alarm in drift_alarms(feature_drifts(reference, found, Thresholds()), Thresholds().psi)}

    seeds = range(10, 30)
    assert {seed: found for seed in seeds if (found := alarms(seed))} == {}
    assert {seed for seed in seeds if alarms(seed, age=lambda age: age + 0.5 * age.std()) != {"age"}} == set()


def test_a_dataset_without_keys_or_label_of_requests_is_watched_too(dataset: Path, tmp_path: Path) -> None:
    rows = pq.read_table(dataset.parent / "raw" / "interactions").slice(0, 1500)
    schema = DatasetDirectory.open(dataset).schema
    with RequestLog(tmp_path, [schema]) as log:
        for number in range(rows.num_rows):
            features = rows.slice(number, 1).append_column("unknown", pa.array([1]))
            log.write(LoggedRequest(kind="rank", request_id=str(number), features=features, items=[0], ranking_scores=[0.5]))
    found = inspect(tmp_path, dataset)
    assert (found.alarms, found.recommended, found.quality) == ([], None, None) and found.traffic.users == 1500
    assert [drift.name for drift in found.features] == [column.name for column in schema.features]
    write_monitoring_report(tmp_path / "report.html", found)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match="lacks a user or an item key"):
        inspect(tmp_path, dataset, labels=str(tmp_path / "labels.parquet"))


def test_rank_requests_that_name_items_by_key_lack_no_item_column(shop: Path, ranker: Ranker, tmp_path: Path) -> None:
    requests = served(ranker, 300, seed=6)
    by_key = [
        replaced(one, features=one.features.select(["country", "age"]).slice(0, 1)) for one in requests if one.kind == "rank"
    ]
    found = inspect(write_log(tmp_path, [one for one in requests if one.kind == "recommend"] + by_key), shop)
    assert found.not_logged == ["item_id", "kind"] and {alarm.about for alarm in found.alarms} == {"user_id", "recent", "hour"}
    assert all(alarm.text.startswith(("missing", "PSI")) for alarm in found.alarms), "these are missing, since the log lacks them"


def test_one_user_who_asks_all_day_is_no_drift(shop: Path, ranker: Ranker, tmp_path: Path) -> None:
    """Rows of one user are alike: a thousand of them are not a thousand independent rows."""
    requests = served(ranker, 600, seed=3)
    again = [replaced(requests[0], request_id=f"again {number}") for number in range(600)]
    found = inspect(write_log(tmp_path, [*requests, *again]), shop)
    age = next(drift for drift in found.features if drift.name == "age")
    assert found.alarms == [] and age.psi > 0.3 and age.current.rows < 10


def test_only_requests_of_the_time_asked_for_count(shop: Path, ranker: Ranker, tmp_path: Path) -> None:
    log = write_log(tmp_path, served(ranker, 60, seed=4))
    noon = datetime.fromtimestamp(NOON, UTC)
    since, until = (noon + timedelta(minutes=minutes) for minutes in (10, 30))
    found = inspect(log, shop, since=since.isoformat(), until=f"{until:%Y-%m-%dT%H:%M:%S}")
    assert (found.traffic.requests, found.traffic.first, found.traffic.last) == (20, since, until - timedelta(minutes=1))
    assert found.traffic.kinds == {"recommend": 10, "rank": 10} and found.scores == []
    with pytest.raises(ValueError, match="no request in this time"):
        inspect(log, shop, since="2099-01-01")
    with pytest.raises(ValueError, match="--since yesterday is no time"):
        inspect(log, shop, since="yesterday")


def test_wrong_inputs_name_the_flag(shop: Path, run: Path, ranker: Ranker, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="has no request log"):
        inspect(tmp_path / "none", shop)
    log = write_log(tmp_path / "log", served(ranker, 20, seed=5))
    other = write_input(tmp_path / "raw", visits(500, seed=1), SHOP)
    with pytest.raises(ValueError, match=r"--ranker was trained on .* not what --data"):
        inspect(log, prepare(config_for(other)).root, ranker=str(run))
    with pytest.raises(FileNotFoundError, match="--labels nowhere: there is no such file"):
        inspect(log, shop, labels="nowhere")
    pq.write_table(pa.table({"item_id": ["item 1"], "click": [1]}), tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match="lacks column user_id, timestamp: wants item_id, user_id, timestamp, or request_id"):
        inspect(log, shop, labels=str(tmp_path / "labels.parquet"))


def answers(*requests: LoggedRequest) -> Answers:
    return read_answers([LogFormat.of([SCHEMA]).to_table(requests)])


def asked(user: int | None, minute: float, *items: str, kind: Any = "recommend", **changes: Any) -> LoggedRequest:
    scores = [0.9 - 0.1 * place for place in range(len(items))]
    values = {"request_id": f"{user} {minute}", "ranking_scores": scores, "features": pa.table({"hour": [1.0]})} | changes
    return LoggedRequest(kind=kind, user=user, items=items, time=NOON + 60 * minute + 0.7, **values)


def outcomes(folder: Path, found: Answers, **columns: Any) -> Outcomes:
    pq.write_table(pa.table(columns), folder / "labels.parquet")
    return join_labels(str(folder / "labels.parquet"), SCHEMA, found, window=3600)


@pytest.mark.unit
def test_a_label_belongs_to_the_latest_request_that_showed_its_item(tmp_path: Path) -> None:
    found = answers(
        asked(1, 0, "a", "b"), asked(1, 10, "c"), asked(2, 10, "a"), asked(None, 10, "a"), asked(1, 20, "b", kind="rank")
    )
    minutes = np.array([0, 15, 15, 200, -1, 30])
    joined = outcomes(
        tmp_path,
        found,
        user_id=[1, 1, 1, 1, 2, 2],
        item_id=["a", "b", "d", "a", "a", "z"],
        click=[1, 1, 1, 1, 1, 0],
        timestamp=NOON + 60 * minutes,
    )
    assert (joined.labels, joined.joined) == (6, 4), "one is too late, and one came before the request"
    assert joined.lists.sort_index().to_dict("index") == {
        0: {"relevant": 2, "items": 2, "hits": 2, "cluster": joined.lists["cluster"][0]},
        1: {"relevant": 1, "items": 1, "hits": 0, "cluster": joined.lists["cluster"][1]},
    }, "b was shown by the first request, though the user has asked since; d was shown by none"
    assert joined.scored["score"].tolist() == pytest.approx([0.9, 0.8]) and joined.scored["label"].tolist() == [1, 1]


@pytest.mark.unit
def test_where_all_labels_are_positive_what_was_not_chosen_is_negative(tmp_path: Path) -> None:
    found = answers(asked(1, 0, "a", "b"), asked(2, 50, "a"), asked(3, 0, "a", "b", kind="rank"))
    joined = outcomes(tmp_path, found, user_id=[1, 9], item_id=["b", "b"], timestamp=[NOON + 60, NOON + 3700])
    assert joined.scored["score"].tolist() == pytest.approx([0.9, 0.8]) and joined.scored["label"].tolist() == [0, 1]
    folder = tmp_path / "labels"
    folder.mkdir()
    (tmp_path / "labels.parquet").rename(folder / "part.parquet")
    assert join_labels(str(folder), SCHEMA, found, window=3600).scored.equals(joined.scored)
    by_request = outcomes(tmp_path, found, request_id=["1 0", "2 50", "none"], item_id=["b", "a", "a"])
    assert by_request.scored["label"].tolist() == [0, 1, 1] and (by_request.labels, by_request.joined) == (3, 2)
    late = outcomes(tmp_path, found, user_id=[1], item_id=["b"], timestamp=[NOON - 9999])
    assert (late.joined, len(late.scored), len(late.lists)) == (0, 0, 0)
    quality = measure_quality(late, 0.01)
    assert list(quality_alarms(quality, Thresholds(hit_rate=1.0))) == [] and quality.calibration == ()


@pytest.mark.unit
def test_coverage_and_popularity_of_what_is_recommended() -> None:
    catalogue = pa.table({"item_id": [f"item {number}" for number in range(100)], FREQUENCY: [1000, *range(99, 0, -1)]})
    key = SCHEMA.key("item")
    assert key is not None
    requests = [asked(number, 0, "item 0", f"item {number % 20}", "gone") for number in range(40)]
    found = describe_recommended(answers(*requests, asked(1, 0), asked(1, 0, "item 99", kind="rank")), catalogue, key, 0.01)
    assert found is not None and (found.requests, found.items, found.distinct, found.coverage) == (41, 100, 20, 0.2)
    assert found.outside == pytest.approx(1 / 3) and found.empty == pytest.approx(1 / 41)
    shares = {"top 1 %": 42 / 80, "1 to 10 %": 18 / 80, "10 to 50 %": 20 / 80, "the rest": 0}
    assert found.recommended_share == pytest.approx(shares)
    assert found.chosen_share["top 1 %"] == pytest.approx(1000 / 5950)
    assert 1 < found.effective < 20
    assert describe_recommended(answers(asked(1, 0, "a", kind="rank")), catalogue, key, 0.01) is None
