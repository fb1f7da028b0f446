"""Measures the online service beside the same pipeline written plainly in one FastAPI process: latency, throughput, failures.

    python benchmarks/serving.py [--items 100000] [--seconds 15]

A request retrieves 500 candidates of all items and ranks them to 10. The client has its own process and talks over loopback: one
request after another on each of its connections. Both services run during the whole benchmark and take turns. Then, under load of
8 connections, the models are swapped, and one replica of each deployment is killed with SIGKILL; all failed requests are counted.
The models are trained for a few steps only. Ray starts its workers with a lower priority than other processes; here both have the
same (RAY_worker_niceness), so that what else runs on the machine is in nobody's favour.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("RAY_worker_niceness", "0")

import aiohttp
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tyro
from ray import serve

from recsys_ray.config import DataConfig, LaunchConfig, LoopConfig, PrepareConfig, SplitConfig, TrackingConfig, TrainConfig
from recsys_ray.config.run import ModelConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.schema import Label, Schema
from recsys_ray.serving.app.deploy import ServiceConfig, start_service
from recsys_ray.serving.app.deployments.tasks import ModelSources
from recsys_ray.serving.app.messages import RecommendRequest
from recsys_ray.serving.app.release import INGRESS, application_name, newest_running
from recsys_ray.training.train import train

K, CANDIDATES = 10, 500
CONNECTIONS = (1, 16)
UNDER_LOAD = 8
AFTERWARDS, MOST_SECONDS = 15.0, 400.0
WARM_UP = 40
OURS, PLAIN = "Ray Serve", "plain FastAPI"


@dataclass(frozen=True)
class Arguments:
    """The flags of this benchmark."""

    items: int = 100_000
    users: int = 2_000
    seconds: float = 15.0
    """The seconds that each load lasts."""
    rounds: int = 2
    """The number of times that the services take turns."""
    replicas: int = 2
    index: str = ""
    """The index of the service, as in jobs/serve.py; empty: exact search in memory."""
    work: Path = Path("runs/serving")


# The models.


def raw_tables(work: Path, users: int, items: int) -> Path:
    """Writes choices with a label: as many items that a user did not choose as ones that the user did."""
    raw = choices.generate_choices(work / f"raw-{users}-{items}", users, items)
    path = raw / "labelled.parquet"
    if not path.exists():
        chosen = pq.read_table(raw / "interactions.parquet")
        others = chosen.set_column(1, "item_id", pa.array(np.random.default_rng(0).integers(0, items, len(chosen))))
        both = [table.append_column("chosen", pa.array([label] * len(table))) for label, table in ((1, chosen), (0, others))]
        pq.write_table(pa.concat_tables(both), path)
        (raw / "labelled.json").write_text(Schema((Label("chosen"), *choices.CHOICES_SCHEMA.columns)).to_json())
    return raw


def trained(work: Path, dataset: Path, model: ModelConfig, seed: int) -> str:
    """Returns a run directory with the model, trained for a few steps."""
    run_dir = (work / f"{type(model).__name__}-{dataset.name}-{seed}").absolute()
    if not (run_dir / "model").exists():
        config = TrainConfig(
            run_dir=str(run_dir),
            data=DataConfig(path=str(dataset.absolute())),
            model=model,
            train=LoopConfig(epochs=1, global_batch=1024, max_steps=20, patience=0, seed=seed),
            launch=LaunchConfig(engine="local"),
            tracking=TrackingConfig(backend="none"),
        )
        with launcher(config.launch) as engine:
            engine.run(train, config)
    return str(run_dir)


def models(arguments: Arguments) -> dict[str, ModelSources]:
    """Returns two releases, a and b."""
    raw = raw_tables(arguments.work, arguments.users, arguments.items)
    tables = (str(raw / f"{name}.parquet") for name in ("labelled", "users", "items"))
    out, schema = str(arguments.work / f"dataset-{arguments.users}-{arguments.items}"), str(raw / "labelled.json")
    dataset = prepare(PrepareConfig("ray", *tables, out=out, schema=schema, split=SplitConfig(by="random"))).root
    users = (str(raw / "users.parquet"), str(raw / "interactions.parquet"))
    retriever, ranker = TwoTowerConfig(embedding_dim=64, query_layers=(128,), candidate_layers=()), DLRMConfig()
    return {
        letter: ModelSources(
            trained(arguments.work, dataset, retriever, seed),
            trained(arguments.work, dataset, ranker, seed),
            arguments.index,
            users,
        )
        for seed, letter in enumerate("ab")
    }


# The same pipeline, plainly.


def plain_service(sources: ModelSources, port: int) -> None:
    """Serves POST /recommend in this process: each request by itself, in FastAPI's pool of threads."""
    import uvicorn
    from fastapi import FastAPI

    from recsys_ray.data.dataset.directory import DatasetDirectory
    from recsys_ray.serving.app.deployments.retrieval import embedded_items, schema_of
    from recsys_ray.serving.app.deployments.users import UserTable, raw_table
    from recsys_ray.serving.bundle import load_ranker, load_retriever
    from recsys_ray.serving.recommender.candidates import exact_candidates
    from recsys_ray.serving.recommender.recommender import Recommender
    from recsys_ray.serving.recommender.served_catalogue import ServedCatalogue

    retriever, ranker = load_retriever(sources.retriever), load_ranker(sources.ranker)
    catalogue = ServedCatalogue.load(DatasetDirectory.open(retriever.dataset), retriever.item_key, ranker)
    recommender = Recommender(retriever, ranker, catalogue)
    vectors, schema = embedded_items(recommender), schema_of(sources.ranker)
    columns, key = [column for column in schema.features if column.side == "user"], schema.key("user")
    assert key is not None
    users = UserTable.load(sources.users, key, columns, "timestamp")
    app = FastAPI()

    @app.post("/recommend")
    def recommend(request: RecommendRequest) -> dict[str, Any]:
        row = raw_table([users.find(request.user) | {key.name: request.user}], columns)
        found = exact_candidates(recommender.queries(row), vectors, request.candidates, [])
        best = recommender.recommend(row, found, request.k)
        keys = catalogue.keys(best.positions[0]).to_pylist()
        scores = (best.retrieval[0].tolist(), best.ranking[0].tolist())
        return {
            "items": [dict(zip(("item", "retrieval", "ranking"), one, strict=True)) for one in zip(keys, *scores, strict=True)]
        }

    uvicorn.run(app, port=port, log_level="error", access_log=False)


# The client.


@dataclass
class Measured:
    """The answers to one load."""

    milliseconds: list[float]
    failures: Counter[str]
    releases: Counter[str]
    seconds: float

    def row(self) -> dict[str, float]:
        """Returns the figures of the load."""
        p50, p99 = np.percentile(self.milliseconds, (50, 99))
        count = len(self.milliseconds)
        return {"p50_ms": p50, "p99_ms": p99, "max_ms": max(self.milliseconds), "requests_per_second": count / self.seconds,
                "requests": count, "failures": self.failures.total()}  # fmt: skip


def load(port: int, connections: int, seconds: float, users: int, stop: str = "") -> Measured:
    """Asks for recommendations of random users, on each connection one after another, until the file `stop` is there."""
    return asyncio.run(_load(port, connections, seconds, users, stop=Path(stop) if stop else None))


async def _load(port: int, connections: int, seconds: float, users: int, *, stop: Path | None) -> Measured:
    measured = Measured([], Counter(), Counter(), 0.0)
    timeout = aiohttp.ClientTimeout(total=60)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=connections), timeout=timeout) as session:

        async def ask(number: random.Random, keep: bool) -> None:
            body = {"user": number.randrange(users), "k": K, "candidates": CANDIDATES}
            began = time.perf_counter()
            try:
                async with session.post(f"http://127.0.0.1:{port}/recommend", json=body) as answer:
                    found = await answer.json()
                    fault = "" if answer.status == 200 and len(found["items"]) == K else f"{answer.status} {found.get('error')}"
            except (aiohttp.ClientError, TimeoutError, ValueError) as error:
                found, fault = {}, type(error).__name__
            if keep:
                measured.milliseconds.append(1000 * (time.perf_counter() - began))
                measured.releases[found.get("versions", {}).get("release", "")] += 1
            if fault:
                measured.failures[fault] += 1

        async def connection(seed: int) -> None:
            number = random.Random(seed)
            while time.perf_counter() < end and not (stop and stop.exists()):
                await ask(number, keep=True)

        warm = random.Random(0)
        for _ in range(WARM_UP):
            await ask(warm, keep=False)
        began = time.perf_counter()
        end = began + seconds
        await asyncio.gather(*(connection(seed) for seed in range(connections)))
        measured.seconds = time.perf_counter() - began
    return measured


# The services under these loads.


class Disturbed(NamedTuple):
    """The figures of a load, and how many releases answered it."""

    row: dict[str, float]
    releases: int


def wait_for(port: int) -> None:
    """Returns when a service answers. Raises TimeoutError after two minutes."""
    deadline = time.monotonic() + 120
    while load(port, 1, 0.0, 1).failures:
        if time.monotonic() > deadline:
            raise TimeoutError(f"nothing answers on port {port}")
        time.sleep(0.5)


def killed(application: str) -> int:
    """Kills the first replica of an application with SIGKILL, and returns how many there were."""
    found = []
    for process in psutil.Process().children(recursive=True):
        title = " ".join(process.cmdline())
        if any(f"{start}{application}{end}" in title for start in ("ServeReplica:", "SERVE_REPLICA::") for end in (":", "#")):
            found.append(process)
    found[0].kill()
    return len(found)


def merged(rows: list[dict[str, float]]) -> dict[str, float]:
    """Returns the figures of all rounds: the median of each, and the sum of the failures."""
    return {name: float((np.sum if name == "failures" else np.median)([row[name] for row in rows])) for name in rows[0]}


def compared(arguments: Arguments, clients: ProcessPoolExecutor, ports: dict[str, int]) -> dict[str, dict[str, float]]:
    """Returns the figures of both services, in turns, by service and number of connections."""
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(arguments.rounds):
        for connections in CONNECTIONS:
            for name, port in ports.items():
                found = clients.submit(load, port, connections, arguments.seconds, arguments.users).result()
                rows.setdefault(f"{name}, {connections} client{'s' * (connections > 1)}", []).append(found.row())
    return {name: merged(found) for name, found in rows.items()}


def disturbed(arguments: Arguments, clients: ProcessPoolExecutor, port: int, disturb: Callable[[], object]) -> Disturbed:
    """Returns the figures of a load that begins before `disturb()` is called and ends some seconds after it returns."""
    stop = arguments.work / "stop"
    stop.unlink(missing_ok=True)
    running = clients.submit(load, port, UNDER_LOAD, MOST_SECONDS, arguments.users, str(stop))
    time.sleep(3)
    disturb()
    time.sleep(AFTERWARDS)
    stop.touch()
    found = running.result()
    if found.failures:
        print(f"failures: {dict(found.failures)}")
    return Disturbed(found.row(), len(found.releases))


def main(arguments: Arguments) -> None:
    arguments.work.mkdir(parents=True, exist_ok=True)
    ray.init("local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="error")
    releases = models(arguments)
    ports = {OURS: 8461, PLAIN: 8462}
    config = ServiceConfig(port=ports[OURS], replicas=arguments.replicas, max_replicas=arguments.replicas, seconds=20.0)
    spawn = get_context("spawn")
    with ExitStack() as stack:
        clients = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawn))
        plain = spawn.Process(target=plain_service, args=(releases["a"], ports[PLAIN]), daemon=True)
        plain.start()
        stack.callback(plain.terminate)
        start_service(releases["a"], config)
        stack.callback(serve.shutdown)
        for port in ports.values():
            wait_for(port)
        print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores before the measurement")
        rows = compared(arguments, clients, ports)
        swap = disturbed(arguments, clients, ports[OURS], lambda: start_service(releases["b"], config))
        rows["swap of models, 8 clients"] = swap.row
        release = newest_running(serve.status())
        for name in (application_name(str(release), "retrieval"), application_name(str(release), "ranking"), INGRESS):
            part = name.rsplit("-", 1)[-1].replace(INGRESS, "ingress")
            rows[f"{part} replica killed, 8 clients"] = disturbed(arguments, clients, ports[OURS], partial(killed, name)).row
    show(arguments, rows, swap.releases)


def show(arguments: Arguments, rows: dict[str, dict[str, float]], served: int) -> None:
    """Prints the table, the targets, and a line of JSON."""
    print(f"\n{arguments.items:,} items, {CANDIDATES} retrieved, {K} ranked; index {arguments.index or 'exact, in memory'}")
    print(f"{'':<36}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'requests/s':>12}{'requests':>10}{'failures':>10}")
    for name, row in rows.items():
        figures = (row["p50_ms"], row["p99_ms"], row["max_ms"], row["requests_per_second"])
        print(f"{name:<36}" + "".join(f"{one:>{width}.1f}" for one, width in zip(figures, (9, 9, 9, 12), strict=True))
              + f"{row['requests']:>10,.0f}{row['failures']:>10.0f}")  # fmt: skip
    print(f"releases that answered during the swap: {served}")
    one, many = (rows[f"{OURS}, {clients}"] for clients in ("1 client", "16 clients"))
    print(f"p99 at 1 client: {one['p99_ms']:.1f} ms (target: 50)")
    print(f"requests/s at 16 clients: {many['requests_per_second']:.0f} (target: 60)")
    print(json.dumps({"benchmark": "serving", "items": arguments.items, "replicas": arguments.replicas, "rows": rows}))


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
