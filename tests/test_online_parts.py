"""The parts of the online service, without a service: filters, stored users, bodies, tokens and the front door."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import lancedb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_ray.schema import Categorical, Dense
from recsys_ray.serving.app import front_door
from recsys_ray.serving.app.access import is_loopback, read_token
from recsys_ray.serving.app.body import BodyLimits, BodyReader
from recsys_ray.serving.app.deployments.filters import eligible_items, sql_condition
from recsys_ray.serving.app.deployments.tasks import Comparison
from recsys_ray.serving.app.deployments.users import UserTable, raw_table
from recsys_ray.serving.app.front_door import PAUSES, PlainHeaders, TryAgain

ITEMS = pa.table({
    "id": pa.array(range(6), pa.int64()),
    "title": ["It's a \"Wonderful\" Life", "Alien", "aliens", None, "Brazil -- 1=1", "Ali_n%"],
    "year": pa.array([1946, 1979, 1986, None, 1985, 2000], pa.int64()),
    "price": [1.5, 2.0, None, 3.25, -1.0, 0.0],
    "genres": [["Drama"], ["Horror", "Sci-Fi"], ["Sci-Fi", "Action"], [], None, ["O'Hara"]],
    "sizes": [[1, 2], [2], [], None, [3], [12]],
    "new": [True, False, None, True, False, True],
})  # fmt: skip
FILTERS: list[tuple[str, str, Any, list[int]]] = [
    ("title", "=", "Alien", [1]),
    ("title", "!=", "Alien", [0, 2, 4, 5]),
    ("title", "contains", "ALIEN", [1, 2]),
    ("title", "contains", "n%", [5]),
    ("title", "contains", "it's a \"w", [0]),
    ("title", "=", "x' OR '1'='1", []),
    ("title", "in", ["Alien", "aliens", "'"], [1, 2]),
    ("year", ">=", 1985, [2, 4, 5]),
    ("year", "<", 1979, [0]),
    ("year", "in", [1946, 1979], [0, 1]),
    ("price", ">", 1, [0, 1, 3]),
    ("price", "<=", 0.0, [4, 5]),
    ("genres", "contains", "Sci-Fi", [1, 2]),
    ("genres", "contains", "O'Hara", [5]),
    ("new", "=", True, [0, 3, 5]),
    ("sizes", "contains", 2, [0, 1]),
]


@pytest.mark.unit
@pytest.mark.parametrize(("column", "op", "value", "expected"), FILTERS)
def test_filters_keep_the_items_that_meet_them(column: str, op: str, value: Any, expected: list[int]) -> None:
    assert np.flatnonzero(eligible_items(ITEMS, [Comparison(column, op, value)])).tolist() == expected


def test_filters_mean_the_same_to_an_index(tmp_path: Path) -> None:
    """LanceDB's SQL finds the items that the filter in memory finds, whatever is in the text."""
    table = lancedb.connect(tmp_path).create_table("items", ITEMS)
    for column, op, value, expected in FILTERS:
        condition = sql_condition(ITEMS.schema, [Comparison(column, op, value)])
        assert table.search().where(condition).to_arrow()["id"].to_pylist() == expected, condition
    both = [Comparison("year", ">", 1980), Comparison("genres", "contains", "Action")]
    assert np.flatnonzero(eligible_items(ITEMS, both)).tolist() == [2]
    assert table.search().where(sql_condition(ITEMS.schema, both)).to_arrow()["id"].to_pylist() == [2]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("comparison", "message"),
    [
        (Comparison("nothing", "=", 1), "items have no column 'nothing', only id, title"),
        (Comparison("year", "=", "1985"), "year holds int64, which cannot be asked = '1985'"),
        (Comparison("year", "=", 1.5), "year holds int64"),
        (Comparison("year", "=", None), "year holds int64"),
        (Comparison("price", "=", float("nan")), "price holds double"),
        (Comparison("new", ">", False), "new holds bool"),
        (Comparison("title", ">", 5), "title holds string"),
        (Comparison("year", "contains", 1), "year holds int64"),
        (Comparison("year", "in", 1985), "a list goes with `in`"),
        (Comparison("year", "=", [1985]), "a list goes with `in`"),
        (Comparison("genres", "=", "Drama"), "genres holds lists: ask by `contains`"),
        (Comparison("genres", "contains", 7), "genres holds list"),
    ],
)
def test_filters_that_cannot_be_asked_are_named(comparison: Comparison, message: str) -> None:
    for ask in (lambda: eligible_items(ITEMS, [comparison]), lambda: sql_condition(ITEMS.schema, [comparison])):
        with pytest.raises(ValueError, match="where: .*" + message):
            ask()


USER = Categorical("user", "user", "string", "vocabulary", key=True)
COLUMNS = (USER, Dense("age", "user"), Categorical("recent", "user", multi=True, num_embeddings=10))


def test_users_come_from_several_tables_and_their_latest_rows(tmp_path: Path) -> None:
    few = pa.table({"user": ["a", "b"], "age": pa.array([31, None], pa.int32()), "other": [1, 2]})
    rows = {"user": ["a", "c", "a", None], "at": [5, 1, 3, 9], "recent": [[5], [1, 2], [3], [9]], "age": [0.0, 7.0, 0.0, 1.0]}
    pq.write_table(few, tmp_path / "users.parquet")
    pq.write_table(pa.table(rows), tmp_path / "rows.parquet")
    tables = (str(tmp_path / "users.parquet"), str(tmp_path / "rows.parquet"))
    users = UserTable.load(tables, USER, COLUMNS, "at")
    assert users.find("a") == {"user": "a", "age": 31.0, "recent": [5]}
    assert users.find("b") == {"user": "b", "age": None, "recent": None}
    assert users.find("c") == {"user": "c", "age": None, "recent": [1, 2]}
    assert users.find("nobody") == {}
    with pytest.raises(ValueError, match="user: ids are of type string"):
        users.find(5)
    with pytest.raises(ValueError, match=r"rows.parquet has 1 users twice and no timestamp column"):
        UserTable.load(tables[1:], USER, COLUMNS)
    with pytest.raises(ValueError, match=r"users.parquet has no column 'item'"):
        UserTable.load(tables[:1], Categorical("item", "user", num_embeddings=5, key=True), COLUMNS)
    assert UserTable.load((), USER, COLUMNS).find("a") == {}


@pytest.mark.unit
def test_rows_of_requests_become_typed_columns() -> None:
    table = raw_table([{"user": "a", "age": 3, "recent": [1]}, {"age": None}], COLUMNS)
    assert table.to_pylist() == [{"user": "a", "age": 3.0, "recent": [1]}, {"user": None, "age": None, "recent": None}]
    for bad in ({"user": 5}, {"age": "old"}, {"age": True}, {"recent": [2**70]}, {"recent": 3}, {"user": ["a"]}):
        with pytest.raises(ValueError, match=f"column '{next(iter(bad))}' cannot be read as"):
            raw_table([bad], COLUMNS)


@pytest.mark.unit
def test_tokens(tmp_path: Path) -> None:
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8")] == [True] * 4
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))
    (tmp_path / "token").write_text("  a-long-enough-token\n")
    assert read_token(str(tmp_path / "token"), "0.0.0.0") == "a-long-enough-token" and read_token("", "127.0.0.1") == ""
    for text in ("short", "two words that are long", "ein-schlüssel-mit-umlaut", ""):
        (tmp_path / "token").write_text(text)
        with pytest.raises(ValueError, match="wants one line of at least 16"):
            read_token(str(tmp_path / "token"), "127.0.0.1")


def sent_by(app: Any, messages: list[dict[str, Any]], headers: list[tuple[bytes, bytes]] | None = None) -> list[dict[str, Any]]:
    """Returns what an ASGI application sends to a client that sends `messages`, and then nothing for ever."""
    sent: list[dict[str, Any]] = []
    waiting = list(messages)

    async def receive() -> dict[str, Any]:
        if not waiting:
            await asyncio.sleep(3600)
        return waiting.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {"type": "http", "path": "/", "method": "POST", "headers": headers or []}
    asyncio.run(app(scope, receive, send))
    return sent


async def echo(scope: Any, receive: Any, send: Any) -> None:
    body = (await receive())["body"]
    await send({"type": "http.response.start", "status": 200, "headers": scope["headers"]})
    await send({"type": "http.response.body", "body": body})


def part(body: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.unit
def test_bodies_are_read_whole_or_refused() -> None:
    reader = BodyReader(echo, BodyLimits(bytes=10, seconds=0.05))
    assert sent_by(reader, [part(b"abc"), part(b"def", more=False)])[1]["body"] == b"abcdef"
    endless = [part(b"x" * 6) for _ in range(1000)]
    assert sent_by(reader, endless)[0]["status"] == 413
    assert sent_by(reader, [part(b"")], [(b"content-length", b"11")])[0]["status"] == 413
    assert sent_by(reader, [part(b"abc")])[0]["status"] == 408
    assert sent_by(reader, [part(b"", more=False)], [(b"content-length", b"-5 \xff")])[0]["status"] == 200


@pytest.mark.unit
def test_a_request_without_an_answer_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same body; not to a client that has gone, and not for ever."""
    monkeypatch.setattr(front_door, "PAUSES", (0.0,) * len(PAUSES))
    bodies = []

    async def dying(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        scope["headers"].append((b"added", b"once"))
        if len(bodies) == 2:
            await send({"type": "http.response.start", "status": 200, "headers": scope["headers"]})

    assert sent_by(TryAgain(dying), [part(b"abc", more=False)]) == [
        {"type": "http.response.start", "status": 200, "headers": [(b"added", b"once")]}
    ]
    assert bodies == [b"abc", b"abc"]

    async def dead(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])

    assert sent_by(TryAgain(dead), [part(b"abc", more=False)])[0]["status"] == 503 and len(bodies) == 2 + len(PAUSES)

    async def noticing(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])
        assert (await receive())["type"] == "http.disconnect"

    assert sent_by(TryAgain(noticing), [part(b"abc", more=False), {"type": "http.disconnect"}]) == [] and len(bodies) == 3 + len(
        PAUSES
    )


@pytest.mark.unit
def test_headers_for_the_proxy_are_dropped() -> None:
    kept = [(b"host", b"x"), (b"x-request-id", b"7")]
    dropped = [(b"X-Request-Timeout-Seconds", b"0"), (b"serve_multiplexed_model_id", b"\xff"), (b"x-request-id", b"\xff")]
    assert sent_by(PlainHeaders(echo), [part(b"", more=False)], kept + dropped)[0]["headers"] == kept
