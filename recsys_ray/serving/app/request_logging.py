"""Hands answered requests to the request log, from which jobs/monitor.py reads."""

from __future__ import annotations

import logging
import math
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.schema import Schema
from recsys_ray.serving.app.messages import RecommendRequest
from recsys_ray.serving.app.routes import AnsweredRequest, AnswerLog
from recsys_ray.serving.location import bundle_folder
from recsys_ray.serving.monitor.request_log.logged_request import LoggedRequest
from recsys_ray.serving.monitor.request_log.request_log import RequestLog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestLogConfig:
    """The settings of the log of requests and answers."""

    folder: str = ""
    """The folder that keeps answered requests as Parquet, for jobs/monitor.py; empty: they are not kept."""
    sample: float = 1.0
    """The share of requests that is kept."""
    max_gib: float = 1.0
    """The most that the folder may hold; the oldest requests are removed."""


def open_request_log(config: RequestLogConfig, models: tuple[str, ...]) -> AnswerLog:
    """Opens the log in this process, with the features of `models` (bundles) as its columns."""
    schemas = [Schema.load(open_bundle(bundle_folder(model)).folder / "schema.json") for model in models]
    item = next((key.name for schema in schemas if (key := schema.key("item"))), "")
    return answer_log(RequestLog(config.folder, schemas, sample=config.sample, max_bytes=int(config.max_gib * 2**30)), item)


def answer_log(requests: RequestLog, item: str) -> AnswerLog:
    """Returns what writes an answer to `requests`; `item` names the key column of items."""

    def write(answered: AnsweredRequest) -> None:
        try:
            request_id = answered.request_id or uuid.uuid4().hex
            if requests.wants(request_id):
                requests.write(logged_request(answered._replace(request_id=request_id), item))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:  # an answer must not fail for its log
            log.warning("a request cannot be logged: %s", error)

    return write


def logged_request(answered: AnsweredRequest, item: str) -> LoggedRequest:
    """Returns the row of an answered request; `item` names the key column of items."""
    request, answer = answered.request, answered.answer
    common: dict[str, Any] = {
        "request_id": answered.request_id,
        "user": request.user,
        "retriever_version": answer["versions"]["retriever"],
        "ranker_version": answer["versions"]["ranker"],
        "milliseconds": answered.seconds * 1000,
    }
    if isinstance(request, RecommendRequest):
        found = answer["items"]
        return LoggedRequest(
            kind="recommend",
            features=_raw_columns([answered.user]),
            items=[one["item"] for one in found],
            retrieval_scores=[_number(one["retrieval_score"]) for one in found],
            ranking_scores=[_number(one["ranking_score"]) for one in found],
            **common,
        )
    return LoggedRequest(
        kind="rank",
        features=_raw_columns(request.rows or [answered.user]),
        items=request.items or [row.get(item) for row in request.rows],
        ranking_scores=[_number(score) for score in answer["scores"]],
        **common,
    )


def _raw_columns(rows: Sequence[dict[str, Any]]) -> pa.Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return pa.table({name: [row.get(name) for row in rows] for name in names})


def _number(score: float | None) -> float:
    return math.nan if score is None else score
