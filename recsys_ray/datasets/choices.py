"""Synthetic implicit feedback: users choose items by taste and by popularity, which follows a power law.

    python jobs/fetch_dataset.py choices --users 20000 --items 5000 --out data/choices

User u's n choices are drawn without replacement with P(i) proportional to popularity(i) * exp(taste(u) . style(i)). The planted
popularity is why in-batch negatives need correction; the planted taste is what a model can find.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.datasets.folder import build
from recsys_ray.datasets.histories import with_recent_items
from recsys_ray.schema import Categorical, Schema, Timestamp

LATENT, KINDS, RECENT = 8, 10, 10
BLOCK_USERS = 1000
SCHEMA = Schema(
    (
        Categorical("user_id", "user", encoding="vocabulary", key=True),
        Categorical("country", "user", "string", "vocabulary"),
        Categorical("item_id", "item", encoding="vocabulary", key=True),
        Categorical("kind", "item", "string", "vocabulary"),
        Categorical("recent_items", "user", encoding="vocabulary", multi=True, table="item_id"),
        Timestamp("timestamp"),
    )
)


def generate(out: Path, users: int = 20_000, items: int = 5_000, choices: int = 30, skew: float = 1.0, seed: int = 0) -> Path:
    """Writes interactions, users and items (`.parquet`) and schema.json to the folder `out`; returns at once when it has them.

    skew: the exponent of popularity, rank ** -skew; 0: all alike. Raises ValueError where `items` are fewer than `choices`, and
    FileExistsError when `out` holds something else.
    """
    if items < choices:
        raise ValueError(f"choices: {choices} of {items} items cannot be chosen without repeating one")

    def write(folder: Path) -> None:
        random = np.random.default_rng(seed)
        style, taste = random.normal(size=(items, LATENT)), random.normal(size=(users, LATENT))
        popularity = random.permutation(-skew * np.log(np.arange(1, items + 1)))
        parts = [
            _choices(random, taste[first : first + BLOCK_USERS], style, popularity, choices)
            for first in range(0, users, BLOCK_USERS)
        ]
        chosen = np.concatenate(parts)
        table = pa.table(
            {
                "user_id": np.repeat(np.arange(users), choices),
                "item_id": chosen.reshape(-1),
                "timestamp": np.tile(np.arange(choices), users),
            }
        )
        kinds = np.array([f"kind {number}" for number in range(KINDS)])[style[:, :KINDS].argmax(axis=1)]
        titles = [f"item {number}, {kind}" for number, kind in enumerate(kinds)]
        countries = np.where(taste[:, 0] > 0, "north", "south")
        pq.write_table(with_recent_items(table, RECENT), folder / "interactions.parquet")
        pq.write_table(pa.table({"user_id": np.arange(users), "country": countries}), folder / "users.parquet")
        pq.write_table(pa.table({"item_id": np.arange(items), "kind": kinds, "title": titles}), folder / "items.parquet")
        (folder / "schema.json").write_text(SCHEMA.to_json())

    made_from = {"users": users, "items": items, "choices": choices, "skew": skew, "seed": seed}
    return build(out, {"dataset": "choices", **made_from}, write)


def _choices(
    random: np.random.Generator, taste: np.ndarray, style: np.ndarray, popularity: np.ndarray, number: int
) -> np.ndarray:
    """int64 [users, number], in an order of chance: the largest of Gumbel-perturbed scores are such a draw (Kool et al. 2019)."""
    scores = taste @ style.T / LATENT**0.5 + popularity + random.gumbel(size=(len(taste), len(style)))
    return random.permuted(np.argpartition(-scores, number, axis=1)[:, :number], axis=1)
