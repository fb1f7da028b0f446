"""Requests of 1,024 items for one user, scored by each way to run the dense part of a DLRM, against `module(batch)` in PyTorch.

    python benchmarks/ranking_engine.py [--threads 1]

The baseline is handed a finished batch. Ours begins with the user's encoded columns and the items of a catalogue, which were
looked up when it was loaded; it looks the user up once and returns scores as numpy. Rounds of all ways take turns, so that a
noisy machine disturbs each alike; a line has the median of the rounds. A request to a service is computed on one thread
(`--threads` of jobs/serve.py); on several, PyTorch and ONNX Runtime keep threads of their own, which wait in busy loops and
disturb each other.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import tyro

from recsys_ray.columns import LENGTHS, Columns
from recsys_ray.data.vocabulary import Lookups
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.registry import build_task
from recsys_ray.models.rows import take_rows
from recsys_ray.models.task import BuildContext
from recsys_ray.schema import QUERY_SIDES, Categorical, Dense, Label, Schema
from recsys_ray.serving.encoder import Encoder
from recsys_ray.serving.onnx_engine import PairEngine, onnx_engine
from recsys_ray.serving.pair_scores import PairScores
from recsys_ray.serving.ranker import Ranker

ITEMS, LIST_LENGTH = 1024, 20


@dataclass(frozen=True)
class Job:
    """The flags of this benchmark."""

    threads: int = 1
    rounds: int = 30
    calls: int = 5
    """Calls in a round."""
    compile: bool = True
    """Try torch.compile too, which needs a C++ compiler."""


class Case(NamedTuple):
    """A model and the columns of one request."""

    name: str
    ranker: Ranker
    users: Columns
    items: Columns


def movielens_like(interaction: Literal["dot", "dcn"], random: torch.Generator) -> Case:
    """A user of five ids and a list of twenty, an item of one id, a list of two, and a number: the demo's ranking model."""
    user = [Categorical(f"u{number}", side="user", num_embeddings=6000) for number in range(5)]
    recent = Categorical("r", side="user", num_embeddings=4000, multi=True)
    genres = Categorical("g", side="item", num_embeddings=4000, multi=True)
    item = Categorical("i", side="item", num_embeddings=4000)
    schema = Schema((Label("y"), Dense("year", side="item"), *user, recent, item, genres))
    users = {column.name: _ids(1, random) for column in user} | _lists("r", 1, LIST_LENGTH, random)
    items = {"i": _ids(ITEMS, random), "year": torch.rand(ITEMS, generator=random)} | _lists("g", ITEMS, 2, random)
    return Case(f"MovieLens {interaction}", _ranker(schema, DLRMConfig(interaction=interaction, embedding_dim=16)), users, items)


def criteo_like(interaction: Literal["dot", "dcn"], random: torch.Generator) -> Case:
    """Thirteen numbers and twenty-six ids, the first half of them the user's."""
    columns = [Dense(f"d{number}", side="user" if number < 7 else "item") for number in range(13)]
    columns += [Categorical(f"c{n}", side="user" if n < 13 else "item", num_embeddings=6000) for n in range(26)]  # type: ignore[misc]
    schema = Schema((Label("y"), *columns))
    config = DLRMConfig(interaction=interaction, embedding_dim=32, dense_layers=(128, 64), over_layers=(256, 128))

    def side(name: str, rows: int) -> Columns:
        own = [column for column in schema.features if column.side == name]
        return {c.name: torch.rand(rows, generator=random) if isinstance(c, Dense) else _ids(rows, random) for c in own}

    return Case(f"Criteo {interaction}", _ranker(schema, config), side("user", 1), side("item", ITEMS))


def _ids(rows: int, random: torch.Generator) -> torch.Tensor:
    return torch.randint(0, 4000, (rows,), generator=random, dtype=torch.int32)


def _lists(name: str, rows: int, length: int, random: torch.Generator) -> Columns:
    return {name: _ids(rows * length, random), name + LENGTHS: torch.full((rows,), length, dtype=torch.int32)}


def _ranker(schema: Schema, config: DLRMConfig) -> Ranker:
    task = build_task(config, BuildContext(schema, torch.device("cpu")))
    state = task.module.state_dict()
    drawn = {name: torch.randn(one.shape) * 0.05 if one.is_meta else one for name, one in state.items()}
    task.module.load_state_dict(drawn, assign=True)
    task.module.eval()
    lookups: Lookups = {}
    manifest: Any = None
    return Ranker(manifest, Encoder(schema, lookups), task, torch.device("cpu"))


def ways(case: Case, job: Job) -> dict[str, Callable[[], Any]]:
    """Returns the ways to score the request, by name; the first is the baseline."""
    ranker, task = case.ranker, case.ranker.task
    user, item = torch.zeros(ITEMS, dtype=torch.int64), torch.arange(ITEMS)
    assert task.split is not None
    batch = ranker._batch({**take_rows(case.users, user), **case.items})
    catalogue = ranker.look_up(case.items, "item")
    pairs = PairScores(task.split, ranker.schema).eval()

    def scored_by(engine: PairEngine | None) -> Callable[[], Any]:
        with_engine = dataclasses.replace(ranker, engine=engine)
        return lambda: with_engine.score_pairs(with_engine.look_up(case.users, *QUERY_SIDES), catalogue, user, item)

    found = {
        "module(batch)": lambda: task.module(batch),
        "pairs, PyTorch": scored_by(None),
        "pairs, ONNX Runtime": scored_by(onnx_engine(pairs, task.split.dim)),
        "pairs, ONNX Runtime, int8": scored_by(onnx_engine(pairs, task.split.dim, int8=True)),
    }
    if job.compile:
        compiled = torch.compile(pairs, dynamic=True)
        found["pairs, torch.compile"] = scored_by(lambda *inputs: compiled(*inputs).numpy())
    return found


def milliseconds(found: dict[str, Callable[[], Any]], job: Job) -> dict[str, float]:
    """Returns the median milliseconds of a call of each, in rounds that take turns."""
    times: dict[str, list[float]] = {name: [] for name in found}
    for number in range(job.rounds + 2):
        for name, call in found.items():
            began = time.perf_counter()
            for _ in range(job.calls):
                call()
            if number >= 2:
                times[name].append((time.perf_counter() - began) / job.calls * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def main(job: Job) -> None:
    """Measures every case and prints the figures."""
    torch.set_num_threads(job.threads)
    random, figures = torch.Generator().manual_seed(0), {}
    for make in (movielens_like, criteo_like):
        for interaction in ("dot", "dcn"):
            case = make(interaction, random)  # type: ignore[arg-type]
            found = milliseconds(ways(case, job), job)
            baseline = next(iter(found.values()))
            figures[case.name] = {name: {"ms": round(ms, 3), "times": round(baseline / ms, 2)} for name, ms in found.items()}
            print(case.name)
            for name, one in figures[case.name].items():
                print(f"  {name:<28}{one['ms']:>9.3f} ms  {one['times']:>5.2f} x")
    print(json.dumps({"threads": job.threads, "items": ITEMS, "cases": figures}))


if __name__ == "__main__":
    main(tyro.cli(Job, description=__doc__))
