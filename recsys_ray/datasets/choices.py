"""Synthetic implicit feedback: users choose items by taste and by popularity, which follows a power law.

    python jobs/fetch_dataset.py choices --users 20000 --items 5000 --out data/choices

The choices of user u are drawn without replacement with P(i) proportional to popularity(i) * exp(taste(u) . style(i)). Because of
the popularity, in-batch negatives need correction; the taste is what a model can learn.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_ray.datasets.folder import build_once
from recsys_ray.datasets.histories import with_recent_items
from recsys_ray.schema import Categorical, Schema, Timestamp

LATENT_DIM = 8
"""The length of the vectors of taste and style."""
ITEM_KINDS = 10
RECENT_CHOICES = 10
"""The number of recent items of a user in each row."""
USERS_AT_ONCE = 1000
CHOICES_SCHEMA = Schema(
    (
        Categorical("user_id", "user", encoding="vocabulary", key=True),
        Categorical("country", "user", "string", "vocabulary"),
        Categorical("item_id", "item", encoding="vocabulary", key=True),
        Categorical("kind", "item", "string", "vocabulary"),
        Categorical("recent_items", "user", encoding="vocabulary", multi=True, table="item_id"),
        Timestamp("timestamp"),
    )
)


def generate_choices(
    out: Path, users: int = 20_000, items: int = 5_000, choices: int = 30, *, skew: float = 1.0, seed: int = 0
) -> Path:
    """Writes interactions, users and items (`.parquet`) and schema.json to the folder `out`; returns at once when it has them.

    `choices` is the number of interactions of each user. Popularity is rank ** -skew, hence equal for all items with skew 0.
    Raises ValueError when there are fewer `items` than `choices`, and FileExistsError when `out` holds something else.
    """
    if items < choices:
        raise ValueError(f"choices: {choices} of {items} items cannot be chosen without repeating one")

    def write(folder: Path) -> None:
        random = np.random.default_rng(seed)
        style, taste = random.normal(size=(items, LATENT_DIM)), random.normal(size=(users, LATENT_DIM))
        popularity = random.permutation(-skew * np.log(np.arange(1, items + 1)))
        chosen = [
            _choose(random, taste[first : first + USERS_AT_ONCE] @ style.T / LATENT_DIM**0.5 + popularity, choices)
            for first in range(0, users, USERS_AT_ONCE)
        ]
        pq.write_table(_interactions(np.concatenate(chosen)), folder / "interactions.parquet")
        pq.write_table(_users(taste), folder / "users.parquet")
        pq.write_table(_items(style), folder / "items.parquet")
        (folder / "schema.json").write_text(CHOICES_SCHEMA.to_json())

    made_from = {"users": users, "items": items, "choices": choices, "skew": skew, "seed": seed}
    return build_once(out, {"dataset": "choices", **made_from}, write)


def _interactions(chosen: np.ndarray) -> pa.Table:
    """Returns the interactions of users who choose the items `chosen` [users, choices] one after the other."""
    users, choices = chosen.shape
    table = pa.table(
        {
            "user_id": np.repeat(np.arange(users), choices),
            "item_id": chosen.reshape(-1),
            "timestamp": np.tile(np.arange(choices), users),
        }
    )
    return with_recent_items(table, RECENT_CHOICES)


def _users(taste: np.ndarray) -> pa.Table:
    return pa.table({"user_id": np.arange(len(taste)), "country": np.where(taste[:, 0] > 0, "north", "south")})


def _items(style: np.ndarray) -> pa.Table:
    kinds = np.array([f"kind {number}" for number in range(ITEM_KINDS)])[style[:, :ITEM_KINDS].argmax(axis=1)]
    titles = [f"item {number}, {kind}" for number, kind in enumerate(kinds)]
    return pa.table({"item_id": np.arange(len(style)), "kind": kinds, "title": titles})


def _choose(random: np.random.Generator, logits: np.ndarray, number: int) -> np.ndarray:
    """Draws `number` items for each user without replacement, int64 [users, number] in random order.

    The items with the largest Gumbel-perturbed logits [users, items] are such a draw (Kool et al. 2019).
    """
    scores = logits + random.gumbel(size=logits.shape)
    return random.permuted(np.argpartition(-scores, number, axis=1)[:, :number], axis=1)
