"""Answers of the online service in the request log: what jobs/monitor.py reads is what was asked and answered."""

from __future__ import annotations

from pathlib import Path

import pyarrow.dataset as ds

from recsys_ray.schema import Schema
from recsys_ray.serving.app.messages import RankRequest, RecommendRequest
from recsys_ray.serving.app.request_logging import RequestLogConfig, answer_log, open_request_log
from recsys_ray.serving.app.routes import AnsweredRequest
from recsys_ray.serving.monitor.request_log.request_log import RequestLog
from tests.support.two_stages import TwoStages

VERSIONS = {"release": "r", "retriever": "one", "ranker": "two", "index": ""}

OTHER_ROWS = [{"user_id": 8, "item_id": 3}, {"user_id": 8, "item_id": 4, "kind": "kind 4"}]


def test_answers_are_logged_as_they_were_given(two_stages: TwoStages, tmp_path: Path) -> None:
    scores = [(3, 1.5, 0.5), (4, None, 0.25)]
    found = [{"item": item, "retrieval_score": first, "ranking_score": second} for item, first, second in scores]
    user = {"user_id": 7, "country": "north", "recent_items": [5, 6]}
    answers = [
        AnsweredRequest("a", RecommendRequest(user=7), user, {"items": found, "versions": VERSIONS}, 0.25),
        AnsweredRequest("b", RankRequest(user=7, items=[3, 9]), user, {"scores": [0.5, None], "versions": VERSIONS}, 0.5),
        AnsweredRequest("", RankRequest(rows=OTHER_ROWS), {}, {"scores": [0.75, 0.5], "versions": VERSIONS}, 0.5),
        AnsweredRequest("odd", RecommendRequest(user=7), {"country": [1, "x"]}, {"items": [], "versions": VERSIONS}, 0.5),
    ]
    models = (str(two_stages.retriever), str(two_stages.ranker))
    with RequestLog(tmp_path / "log", [Schema.load(Path(model) / "model" / "schema.json") for model in models]) as requests:
        write = answer_log(requests, "item_id")
        for answered in answers:
            write(answered)
    recommended, ranked, by_rows = ds.dataset(tmp_path / "log", format="parquet").to_table().sort_by("time").to_pylist()
    assert (recommended["request_id"], recommended["kind"], recommended["user"]) == ("a", "recommend", 7)
    assert (recommended["retriever_version"], recommended["ranker_version"], recommended["milliseconds"]) == ("one", "two", 250.0)
    assert [tuple(one.values()) for one in recommended["items"]] == scores
    assert recommended["features"][0]["recent_items"] == [5, 6] and recommended["features"][0]["country"] == "north"
    assert [(one["key"], one["ranking_score"]) for one in ranked["items"]] == [(3, 0.5), (9, None)]
    assert [row["country"] for row in ranked["features"]] == ["north"], "the items were named by key"
    assert by_rows["user"] == 8 and by_rows["items"][0]["key"] == 3 and by_rows["request_id"]
    assert [row["item_id"] for row in by_rows["features"]] == [3, 4] and by_rows["features"][1]["kind"] == "kind 4"
    open_request_log(RequestLogConfig(str(tmp_path / "other")), models)(answers[0])  # reads the schemas of the bundles itself
