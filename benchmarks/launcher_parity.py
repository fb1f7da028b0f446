"""Runs one training under every launcher and compares the order of rows, the loss of every step and the weights, bit by bit.

python benchmarks/launcher_parity.py                       # ray, spark on the driver, spark on two executors, local
python benchmarks/launcher_parity.py --model two_tower     # the retrieval model, on choices of rows / 20 users
python benchmarks/launcher_parity.py --rows 20000 --dense 3 --categorical 4 --engines local ray      # a short form
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from recsys_ray.bundle.reader import open_bundle
from recsys_ray.checkpoint.store import CheckpointStore
from recsys_ray.columns import Columns
from recsys_ray.config import (
    DataConfig,
    LaunchConfig,
    LoopConfig,
    PrepareConfig,
    ShardingConfig,
    SparkConfig,
    SplitConfig,
    TrainConfig,
)
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import choices, synthetic
from recsys_ray.launch.launcher import launcher
from recsys_ray.models.dlrm import DLRMConfig
from recsys_ray.models.two_tower import TwoTowerConfig
from recsys_ray.training.train import train

ORDER = "order"
CHOICES = 20
MODELS = {
    "dlrm": DLRMConfig(interaction="dcn"),
    "two_tower": TwoTowerConfig(embedding_dim=16, pooling="attention", pooled_values=10, uniform_negatives=128),
}
METRICS = {"dlrm": "test_auc", "two_tower": "test_mrr"}


@dataclass(frozen=True)
class Parity:
    model: Literal["dlrm", "two_tower"] = "dlrm"
    rows: int = 200_000
    dense: int = 13
    categorical: int = 26
    workers: int = 2
    epochs: int = 2
    global_batch: int = 2048
    engines: tuple[str, ...] = ("ray", "spark-driver", "spark-cluster", "local")
    dataset: str = ""
    """A prepared dataset directory; with it only the first engine trains, in this process, and its figures are printed."""


def main(job: Parity) -> None:
    if job.dataset:
        print(json.dumps(measure(job, job.engines[0], Path(job.dataset))))
        return
    with tempfile.TemporaryDirectory() as folder:
        dataset = prepared(job, Path(folder))
        found = {engine: in_own_process(job, engine, dataset) for engine in job.engines}
    first = next(iter(found.values()))
    same = {part: all(result[part] == first[part] for result in found.values()) for part in ("order", "losses", "weights")}
    print(f"\n{'engine':<15}{'seconds':>9}{'steps':>7}  {'order of rows':<15}{'losses':<15}{'weights':<15}{METRICS[job.model]}")
    for engine, result in found.items():
        digests = "".join(f"{result[part][:12]:<15}" for part in same)
        print(f"{engine:<15}{result['seconds']:>9.1f}{result['steps']:>7}  {digests}{result[METRICS[job.model]]:.6f}")
    print("".join(f"{part}: {'identical' if equal else 'DIFFERENT'}   " for part, equal in same.items()))
    print(json.dumps({"workers": job.workers, "identical": same, "engines": found}))
    sys.exit(0 if all(same.values()) else 1)


def prepared(job: Parity, folder: Path) -> Path:
    with launcher(LaunchConfig("ray")):
        if job.model == "two_tower":
            raw = choices.generate_choices(folder / "raw", users=job.rows // CHOICES, items=1000, choices=CHOICES)
            tables = (str(raw / f"{name}.parquet") for name in ("interactions", "users", "items"))
            split = SplitConfig(by="leave_one_out")
            return prepare(PrepareConfig("ray", *tables, out=str(folder / "dataset"), split=split, block_rows=128)).root
        raw = synthetic.generate_clicks(folder / "raw", job.rows, job.dense, job.categorical, num_embeddings=2000, multi=True)
        prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(folder / "dataset"), block_rows=128))
    return folder / "dataset"


def launch_config(engine: str, workers: int) -> LaunchConfig:
    # Executors of one core each, like a Spark cluster of small machines.
    spark = SparkConfig(mode="cluster", master=f"local-cluster[{workers},1,1024]") if engine == "spark-cluster" else SparkConfig()
    return LaunchConfig(engine.split("-")[0], workers, cpus_per_worker=0.5, spark=spark)


def in_own_process(job: Parity, engine: str, dataset: Path) -> dict[str, Any]:
    """Runs one engine in a process of its own, as a user would, so that no state of one engine can affect the next."""
    sizes = {"model": job.model, "epochs": job.epochs, "global-batch": job.global_batch, "workers": job.workers}
    command = [sys.executable, __file__, "--dataset", str(dataset), "--engines", engine]
    command += [f"--{name}={value}" for name, value in sizes.items()]
    print(f"{engine} ...", flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{engine} failed:\n{done.stdout}\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(job: Parity, engine: str, dataset: Path) -> dict[str, Any]:
    run_dir = dataset.parent / engine
    config = TrainConfig(
        run_dir=str(run_dir),
        data=DataConfig(path=str(dataset)),
        model=MODELS[job.model],
        train=LoopConfig(epochs=job.epochs, global_batch=job.global_batch, log_every=1, patience=0),
        sharding=ShardingConfig(types=("row_wise", "table_wise")),
        launch=launch_config(engine, job.workers),
    )
    began = time.perf_counter()
    with launcher(config.launch) as cluster:
        cluster.run(audited_train, config)
    outcome = json.loads((run_dir / "outcome.json").read_text())
    store = CheckpointStore(str(run_dir / "checkpoints"))
    progress = store.marker(store.committed()[0])["note"]["progress"]
    losses = [point["loss"] for point in progress["training"]]
    order = [(run_dir / f"{ORDER}-{rank}").read_text() for rank in range(job.workers)]
    return {
        "seconds": time.perf_counter() - began,
        "steps": outcome["steps"],
        METRICS[job.model]: outcome[METRICS[job.model]],
        "order": hashlib.sha256("".join(order).encode()).hexdigest(),
        "losses": hashlib.sha256(json.dumps(losses).encode()).hexdigest(),
        "weights": weights_digest(run_dir),
    }


def weights_digest(run_dir: Path) -> str:
    """Returns a digest of all tensors of a run's bundle, however many ranks wrote it."""
    bundle, digest = open_bundle(run_dir), hashlib.sha256()
    for name in sorted(bundle.manifest.tensors):
        digest.update(name.encode() + bundle.read_tensor(name).numpy().tobytes())
    return digest.hexdigest()


def audited_train(config: TrainConfig) -> None:
    """Runs train(config), and writes a digest of every batch that this worker reads to a file of its own, in order."""
    run_dir = Path(config.run_dir)
    run_dir.mkdir(parents=True, exist_ok=True)
    read = BlockStream.__iter__
    with (run_dir / f"{ORDER}-{os.environ['RANK']}").open("w") as audit:

        def audited(stream: BlockStream) -> Iterator[Columns]:
            for columns in read(stream):
                digest = hashlib.sha256()
                for name in sorted(columns):
                    digest.update(columns[name].numpy().tobytes())
                audit.write(digest.hexdigest() + "\n")
                yield columns

        BlockStream.__iter__ = audited  # type: ignore[method-assign]
        try:
            train(config)
        finally:
            BlockStream.__iter__ = read  # type: ignore[method-assign]


if __name__ == "__main__":
    main(tyro.cli(Parity, description=__doc__))
