"""The leave-one-out split as pure functions of batches, with duplicated rows and users without an id."""

from __future__ import annotations

import pyarrow as pa
import pytest

from recsys_ray.columns import ROW_HASH
from recsys_ray.data.prepare.catalogue import distinct_items
from recsys_ray.data.prepare.leave_one_out import LatestRows, latest_rows
from recsys_ray.schema import Categorical, Schema, Timestamp

pytestmark = pytest.mark.unit

ITEM = Categorical("item", "item", encoding="vocabulary", key=True)
SCHEMA = Schema((Categorical("user", "user", encoding="vocabulary", key=True), ITEM, Timestamp("at")))


def table(users: list[float], times: list[int], hashes: list[int]) -> pa.Table:
    return pa.table({"user": users, "item": users, "at": times, ROW_HASH: pa.array(hashes, pa.uint64())})


def held_out(*batches: pa.Table) -> tuple[list[int], list[int]]:
    found = LatestRows()
    for batch in batches:
        found = found.merge(latest_rows(batch, SCHEMA))
    return found.held_out().validation.tolist(), found.held_out().test.tolist()


def test_latest_and_the_one_before_of_users_with_three_rows_in_any_batches() -> None:
    rows = table([1, 1, 1, 2, 2, 3, 3, 3, 3], [5, 9, 7, 1, 2, -4, -1, -3, -2], [10, 11, 12, 13, 14, 15, 16, 17, 18])
    assert held_out(rows) == held_out(rows.slice(4), rows.slice(0, 4)) == ([12, 18], [11, 16])


def test_rows_that_are_alike_count_once_and_users_without_an_id_not_at_all() -> None:
    """A Spark table identifies rows by their values, so a duplicated row must not be in both test and validation."""
    rows = table([1.0, 1.0, 1.0, 1.0, *[float("nan")] * 3], [5, 7, 9, 9, 1, 2, 3], [10, 12, 11, 11, 20, 21, 22])
    assert held_out(rows) == ([12], [11])
    assert distinct_items(rows, ["item"], ITEM)["item"].to_pylist() == [1.0]
