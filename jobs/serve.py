r"""Serves a retrieval model and a ranking model over HTTP, on Ray Serve: POST /recommend, POST /rank, and a page for people.

    python jobs/serve.py --retriever runs/two_tower --ranker runs/dlrm              # http://127.0.0.1:8000, until Ctrl-C
    python jobs/serve.py --retriever runs/two_tower --ranker runs/tuesday           # again, elsewhere: swaps without a pause
    python jobs/serve.py --retriever runs/two_tower --ranker models:/clicks@champion --follow-seconds 60    # swaps when it moves
    python jobs/serve.py --retriever runs/two_tower --ranker runs/dlrm --index runs/two_tower/index \
        --users data/users.parquet --host 0.0.0.0 --token-file /run/secrets/token
    ray job submit --working-dir . -- python jobs/serve.py --retriever /shared/two_tower --ranker /shared/dlrm

On a cluster that already runs the job returns when the models answer, and the service stays (`serve shutdown` ends it). Without
one it starts a cluster on this machine and serves until it is interrupted. Running the job again puts other models in the place
of those that are served; no request fails. docs/serving.md describes the interface.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

import tyro

from recsys_ray.command_line import readable_errors
from recsys_ray.serving.app.body import BodyLimits
from recsys_ray.serving.app.deploy import ServiceConfig
from recsys_ray.serving.app.deployments.tasks import ModelSources
from recsys_ray.serving.app.request_logging import RequestLogConfig, open_request_log
from recsys_ray.serving.app.run import run_service
from recsys_ray.serving.bundle import InferenceEngine, TablePrecision


@dataclass(frozen=True)
class ServeJob:
    """The flags of this job."""

    retriever: str
    """A run of jobs/train_two_tower.py, or its bundle, or a URL of that, or models:/NAME@ALIAS of MLflow."""
    ranker: str
    """A run of jobs/train_dlrm.py, or its bundle, or a URL of that, or models:/NAME@ALIAS of MLflow."""
    index: str = ""
    """The retriever's index, as for jobs/build_index.py; empty: exact search in memory, good for some hundred thousand items."""
    users: tuple[str, ...] = ()
    """Parquet tables of raw user columns, so that a request needs an id alone; of several rows of a user the latest counts."""
    interactions: str = ""
    """A Parquet table of what users did, which the page shows; empty: the splits of the retriever's dataset."""
    host: str = "127.0.0.1"
    """The address to listen at. One that other machines reach wants --token-file."""
    port: int = 8000
    token_file: str = ""
    """A file with the bearer token that requests must show."""
    replicas: int = 2
    """The fewest replicas of each deployment; with two a killed one fails no request."""
    max_replicas: int = 4
    replica_cpus: float = 0.1
    """CPUs that the cluster sets aside for each replica. While models are swapped, both pairs are there."""
    threads: int = 1
    """Threads on which each replica computes."""
    inference: InferenceEngine = "auto"
    """Chooses the engine of the ranking model's dense part: torch, onnx, onnx-int8; auto: onnx if it is there and can run it."""
    tables: TablePrecision = "fp32"
    """The type of the ranking model's embeddings in memory: fp16 halves and int8 quarters them, at a small loss."""
    timeout_seconds: float = 10.0
    """The longest time to an answer."""
    max_body_bytes: int = 1 << 20
    follow_seconds: float = 0.0
    """Looks this often whether the runs or the index hold another version, and swaps; 0: never."""
    log: RequestLogConfig = field(default_factory=RequestLogConfig)


def main(job: ServeJob) -> None:
    """Puts the models into service."""
    sources = ModelSources(
        job.retriever, job.ranker, job.index, job.users, job.interactions, job.threads, job.inference, job.tables
    )
    config = ServiceConfig(
        host=job.host,
        port=job.port,
        token_file=job.token_file,
        replicas=job.replicas,
        max_replicas=job.max_replicas,
        replica_cpus=job.replica_cpus,
        body=BodyLimits(job.max_body_bytes, job.timeout_seconds),
        seconds=job.timeout_seconds,
        open_log=partial(open_request_log, job.log, (job.retriever, job.ranker)) if job.log.folder else None,
    )
    run_service(sources, config, job.follow_seconds)


if __name__ == "__main__":
    with readable_errors(when_interrupted="a service on a cluster that was there before is served on"):
        main(tyro.cli(ServeJob, description=__doc__))
