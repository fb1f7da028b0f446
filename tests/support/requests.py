"""A small shop: its rows to train on, and the requests that its recommender answers, with or without a change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from recsys_ray.schema import Categorical, Column, Dense, Label, Timestamp
from recsys_ray.serving.monitor import LoggedRequest
from recsys_ray.serving.ranker import Ranker

USERS, ITEMS, SHOWN = 2000, 150, 5
NOON = 1_750_000_000
SHOP: tuple[Column, ...] = (
    Label("click"),
    Categorical("user_id", "user", encoding="vocabulary", key=True),
    Categorical("country", "user", "string", "vocabulary"),
    Dense("age", "user", scale="standard"),
    Categorical("recent", "user", "string", "vocabulary", multi=True, table="item_id"),
    Dense("hour"),
    Categorical("item_id", "item", "string", "vocabulary", key=True),
    Categorical("kind", "item", "string", "vocabulary"),
    Timestamp("timestamp"),
)


def item_names(numbers: np.ndarray) -> list[str]:
    return [f"item {number}" for number in numbers]


def user_columns(users: np.ndarray, random: np.random.Generator) -> dict[str, Any]:
    """Returns the columns of visits by these users."""
    recent = [item_names(random.integers(0, ITEMS, size)) for size in random.integers(1, 5, len(users))]
    return {
        "user_id": users,
        "country": np.array(["NO", "IT", "CH"])[np.minimum(users % 5, 2)],
        "age": 20 + 10 * np.abs(np.sin(users)) + users % 7,
        "recent": recent,
        "hour": random.integers(0, 24, len(users)).astype(float),
    }


def visits(rows: int, seed: int = 0) -> dict[str, Any]:
    """Returns rows to train on: each visit is of a random user to a popular item."""
    random = np.random.default_rng(seed)
    items = np.minimum(random.zipf(1.3, rows), ITEMS) - 1
    users = random.integers(0, USERS, rows)
    rate = 0.15 + 0.5 * (items % 5 == users % 5)
    return {
        "click": (random.random(rows) < rate).astype(int),
        **user_columns(users, random),
        "item_id": item_names(items),
        "kind": [f"kind {number % 5}" for number in items],
        "timestamp": NOON - rows + np.arange(rows),
    }


def served(ranker: Ranker, requests: int, seed: int, **changes: Any) -> list[LoggedRequest]:
    """Returns requests of both kinds in equal parts, one a minute, ranked by the ranker's own scores.

    `changes` replace columns of the users' rows, each a function of the unchanged values.
    """
    random = np.random.default_rng(seed)
    users = random.integers(0, USERS, requests)
    columns = user_columns(users, random)
    columns |= {name: change(columns[name]) for name, change in changes.items()}
    rows = pa.table(columns)
    items = np.minimum(random.zipf(1.3, (requests, SHOWN)), ITEMS) - 1
    pairs = rows.take(np.repeat(np.arange(requests), SHOWN))
    pairs = pairs.append_column("item_id", pa.array(item_names(items.reshape(-1))))
    pairs = pairs.append_column("kind", pa.array([f"kind {number % 5}" for number in items.reshape(-1)]))
    scores = ranker.predict(pairs).reshape(requests, SHOWN)
    return [
        LoggedRequest(
            kind="rank" if number % 2 else "recommend",
            request_id=f"{seed} {number}",
            features=pairs.slice(number * SHOWN, SHOWN) if number % 2 else rows.slice(number, 1),
            items=item_names(items[number]),
            ranking_scores=scores[number],
            retrieval_scores=None if number % 2 else scores[number] * 10,
            user=int(users[number]),
            retriever_version="r1",
            ranker_version=ranker.version,
            milliseconds=float(random.gamma(2, 5)),
            time=NOON + 60.0 * number,
        )
        for number in range(requests)
    ]


def clicked(requests: list[LoggedRequest], seed: int, factor: float = 1.0) -> pa.Table:
    """Returns a label for each item of each rank request: a click with `factor` times the predicted probability."""
    random = np.random.default_rng(seed)
    ranked = [request for request in requests if request.kind == "rank"]
    scores = np.concatenate([np.asarray(request.ranking_scores) for request in ranked])
    return pa.table(
        {
            "request_id": np.repeat([request.request_id for request in ranked], SHOWN),
            "item_id": [key for request in ranked for key in request.items],
            "click": (random.random(len(scores)) < factor * scores).astype(int),
        }
    )
