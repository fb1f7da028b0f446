"""Users a second of jobs/recommend.py against plain loops over users, and the memory of the job and its Ray together.

    python benchmarks/batch_recommend.py                                  # 100 thousand users and items: ten minutes
    python benchmarks/batch_recommend.py --users 20000 --items 20000      # two minutes

Both models are hardly trained: only speed matters, and embeddings start wide enough for scores to differ. A loop finds the
candidates of one user at a time, then scores them as raw rows with `Ranker.predict`. One loop asks LanceDB, which of vectors as
random as these has to search more or less, as its clusters fall; the other multiplies with all vectors in memory. Both run
before and after the job, since machines are noisy. The job's rate is that of its partitions after the first of each worker,
without what it takes to start Ray and load models; the whole time is printed too. Memory is the proportional set size of the
job's process and all that it starts.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import tyro

from recsys_ray.config import (
    DataConfig,
    LaunchConfig,
    LoopConfig,
    ModelConfig,
    PrepareConfig,
    SplitConfig,
    TrackingConfig,
    TrainConfig,
)
from recsys_ray.data.dataset.directory import DatasetDirectory
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.schema import Categorical, Dense, Label, Schema, Timestamp
from recsys_ray.serving.bundle import load_ranker, load_retriever
from recsys_ray.serving.index.lance import write_index
from recsys_ray.serving.index.vector_index import VECTOR, IndexSource, open_index
from recsys_ray.serving.recommender.candidates import exact_candidates
from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue
from recsys_ray.serving.retriever import Retriever
from recsys_ray.training.train import train

CORES, WANTED_RATIO, WANTED_MB, INIT_RANGE = 2, 20, 4000, 0.3
SCHEMA = Schema(
    (
        Label("click"),
        Categorical("user_id", "user", encoding="vocabulary", key=True),
        Categorical("country", "user", "string", "vocabulary"),
        Dense("age", "user", "standard"),
        Categorical("item_id", "item", encoding="vocabulary", key=True),
        Categorical("kind", "item", "string", "vocabulary"),
        Dense("price", "item", "log1p"),
        Timestamp("timestamp"),
    )
)


@dataclass(frozen=True)
class BatchBenchmark:
    """The flags of this benchmark."""

    users: int = 100_000
    items: int = 100_000
    clicks_per_user: int = 30
    candidates: int = 500
    k: int = 10
    loop_users: int = 200
    """Users of each of the two loops."""
    work: Path = Path("runs/batch-recommend")


def write_tables(job: BatchBenchmark, folder: Path) -> None:
    """Writes random users, items and clicks, of which popular items have most."""
    random, clicks = np.random.default_rng(0), job.users * job.clicks_per_user
    folder.mkdir(parents=True)
    countries, kinds = [f"country {n}" for n in range(40)], [f"kind {n}" for n in range(50)]
    tables = {
        "users": {"user_id": np.arange(job.users), "country": random.choice(countries, job.users),
                  "age": random.integers(18, 80, job.users)},
        "items": {"item_id": np.arange(job.items), "kind": random.choice(kinds, job.items),
                  "price": random.lognormal(3, 1, job.items), "title": [f"item {n}" for n in range(job.items)]},
        "interactions": {"user_id": random.integers(0, job.users, clicks), "click": random.integers(0, 2, clicks),
                         "item_id": (job.items * random.random(clicks) ** 2).astype(np.int64), "timestamp": np.arange(clicks)},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    (folder / "schema.json").write_text(SCHEMA.to_json())


def make_models(job: BatchBenchmark) -> None:
    """Prepares the tables and trains both models for a few steps."""
    raw = job.work / "raw"
    write_tables(job, raw)
    tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
    split = SplitConfig(validation=1e-3, test=1e-3)
    dataset = prepare(PrepareConfig("ray", *tables, out=str(job.work / "dataset"), split=split)).root
    models: dict[str, ModelConfig] = {
        "two_tower": TwoTowerConfig(embedding_dim=64, init_range=INIT_RANGE),
        "dlrm": DLRMConfig(interaction="dcn", embedding_dim=16, init_range=INIT_RANGE),
    }
    for name, model in models.items():
        settings = TrainConfig(
            run_dir=str(job.work / name),
            model=model,
            data=DataConfig(path=str(dataset)),
            train=LoopConfig(epochs=1, max_steps=5),
            tracking=TrackingConfig(backend="none"),
            launch=LaunchConfig(engine="local"),
        )
        with launcher(settings.launch) as workers:
            workers.run(train, settings)


@dataclass(frozen=True)
class Loop:
    """A loop over users, one query at a time."""

    job: BatchBenchmark
    exact: bool
    """Multiply with all vectors in memory; else ask LanceDB."""

    def __post_init__(self) -> None:
        if self.exact:
            return
        retriever = load_retriever(self.job.work / "two_tower")
        catalogue = ServedCatalogue.load(DatasetDirectory.open(retriever.dataset), retriever.item_key)
        vectors = retriever.embed_candidates(catalogue.raw)
        column = pa.FixedSizeListArray.from_arrays(vectors.reshape(-1), retriever.dim)
        table = catalogue.raw.append_column(VECTOR, column).combine_chunks()
        users = pq.read_table(self.job.work / "raw" / "users.parquet")
        source = IndexSource(retriever.version, retriever.item_key, table.schema, iter(table.to_batches()),
                             lambda limit: retriever.embed_queries(users.slice(0, limit)))  # fmt: skip
        write_index(str(self.job.work / "index"), source)

    def rate(self) -> float:
        """Returns users a second."""
        job = self.job
        retriever, ranker = load_retriever(job.work / "two_tower"), load_ranker(job.work / "dlrm")
        find = self._finder(retriever)
        users = pq.read_table(job.work / "raw" / "users.parquet").slice(0, job.loop_users)
        clicks = pq.read_table(job.work / "raw" / "interactions.parquet", columns=["user_id", "item_id"])
        seen = [clicks.filter(pc.field("user_id") == user)["item_id"].to_pylist() for user in range(job.loop_users)]
        began = time.perf_counter()
        for number, hidden in enumerate(seen):
            user = users.slice(number, 1)
            found = find(retriever.embed_queries(user), hidden)
            for name in user.column_names:
                found = found.append_column(name, pa.repeat(user[name][0], found.num_rows))
            found.take(pa.array(np.argsort(-ranker.predict(found))[: job.k]))
        return job.loop_users / (time.perf_counter() - began)

    def _finder(self, retriever: Retriever) -> Callable[[np.ndarray, list[int]], pa.Table]:
        """Returns a function that finds one user's candidates, given the query and the items seen."""
        if not self.exact:
            index = open_index(str(self.job.work / "index"), retriever.version)
            return lambda query, hidden: index.search(query, self.job.candidates, exclude=[hidden])[0]
        catalogue = ServedCatalogue.load(DatasetDirectory.open(retriever.dataset), retriever.item_key)
        vectors = torch.from_numpy(retriever.embed_candidates(catalogue.raw))

        def find(query: np.ndarray, hidden: list[int]) -> pa.Table:
            best = exact_candidates(query, vectors, self.job.candidates, [catalogue.positions(hidden)])
            return catalogue.raw.take(pa.array(best.positions[0]))

        return find


@dataclass(frozen=True)
class JobFigures:
    """The figures of one run of the job."""

    rate: float
    """Users a second of its workers."""
    seconds: float
    """The seconds from the command to its end."""
    peak_mb: float


def run_job(job: BatchBenchmark) -> JobFigures:
    """Runs jobs/recommend.py on a Ray of its own and watches its memory."""
    out, raw = job.work / "out", job.work / "raw"
    shutil.rmtree(out, ignore_errors=True)
    flags = {"retriever": job.work / "two_tower", "ranker": job.work / "dlrm", "users": raw / "users.parquet", "out": out,
             "candidates": job.candidates, "k": job.k, "workers": CORES,
             "users-per-file": max(1, job.users // 20)}  # fmt: skip
    command = [sys.executable, "jobs/recommend.py", *(f"--{name}={value}" for name, value in flags.items())]
    command += ["--interactions", str(raw / "interactions.parquet")]
    began, peak = time.perf_counter(), [0.0]
    with subprocess.Popen(command, env={**os.environ, "RAY_ADDRESS": "local"}) as process:
        watcher = threading.Thread(target=watch_memory, args=(process, peak))
        watcher.start()
        if process.wait():
            raise RuntimeError(f"the job failed: {process.returncode}")
        seconds = time.perf_counter() - began
        watcher.join()
    parts = sorted((path.stat().st_mtime, pq.read_metadata(path).num_rows / job.k) for path in out.glob("*.parquet"))
    first = parts[CORES - 1][0]
    return JobFigures(sum(users for _, users in parts[CORES:]) / (parts[-1][0] - first), seconds, peak[0])


def watch_memory(process: subprocess.Popen[bytes], peak: list[float]) -> None:
    """Keeps the greatest proportional set size, in MB, of a process and its descendants until it ends."""
    root = psutil.Process(process.pid)
    while process.poll() is None:
        found = 0.0
        try:
            for one in [root, *root.children(recursive=True)]:
                found += one.memory_full_info().pss / 1e6
        except psutil.NoSuchProcess:  # one that has just ended
            continue
        peak[0] = max(peak[0], found)
        time.sleep(0.5)


def main(job: BatchBenchmark) -> None:
    shutil.rmtree(job.work, ignore_errors=True)
    make_models(job)
    loops = {"with LanceDB": Loop(job, exact=False), "exact": Loop(job, exact=True)}
    rates = {name: [loop.rate()] for name, loop in loops.items()}
    figures = run_job(job)
    for name, loop in loops.items():
        rates[name].append(loop.rate())
    print(f"\n{job.users:,} users, {job.items:,} items, {job.candidates} candidates, {job.k} recommended; {CORES} cores")
    print(f"{'jobs/recommend.py, its workers':<40}{figures.rate:>10,.0f} users/s")
    for name, (before, after) in rates.items():
        plain, ratio = statistics.mean((before, after)), figures.rate / statistics.mean((before, after))
        print(f"{'loop over users, ' + name:<40}{plain:>10,.0f} users/s  ({before:,.0f} before the job, {after:,.0f} after it):"
              f" the job is {ratio:.1f} times as fast (wanted {WANTED_RATIO})")  # fmt: skip
    print(f"{'from the command to the end':<40}{job.users / figures.seconds:>10,.0f} users/s, {figures.seconds:.0f} s in all")
    print(f"{'memory of all its processes, peak':<40}{figures.peak_mb:>10,.0f} MB (wanted {WANTED_MB:,})")
    print(json.dumps({"benchmark": "batch_recommend", "users": job.users, "items": job.items, "loops": rates,
                      "job": figures.__dict__}))  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(BatchBenchmark, description=__doc__))
