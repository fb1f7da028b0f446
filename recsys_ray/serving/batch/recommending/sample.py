"""A readable sample of a finished recommendation: the lists of a few users, best first, with the scores of both stages."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def recommendation_sample(out: str, users: int, k: int, columns: Sequence[str]) -> str:
    """Returns a text with the recommendations to the first `users` users of the output folder, k items each.

    `columns` are those of an item to show; without any its key is shown. The output must have a row.
    """
    with pq.ParquetFile(min(Path(out).glob("*.parquet"))) as file:
        first = next(file.iter_batches(batch_size=users * k)).to_pylist()
        user, _, item = file.schema_arrow.names[:3]
    return "\n".join(
        "\n".join([f"\n{user} {value} is recommended", *(_line(row, columns or [item]) for row in group)])
        for value, group in groupby(first, key=lambda row: row[user])
    )


def _line(row: dict[str, Any], columns: Sequence[str]) -> str:
    names = ", ".join(str(row[column]) for column in columns)
    scores = [f"{name[:-6]} {row[name]:.3f}" for name in ("ranking_score", "retrieval_score") if row[name] is not None]
    return f"  {row['place']:>3}  {names}   ({', '.join(scores) or 'popular'})"
