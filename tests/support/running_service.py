"""The online service, running on the tests' Ray with small models."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ray import serve

from recsys_ray.serving.app.body import BodyLimits
from recsys_ray.serving.app.deploy import ServiceConfig, start_service
from recsys_ray.serving.app.deployments.tasks import ModelSources
from recsys_ray.serving.app.routes import AnsweredRequest, AnswerLog
from tests.support.processes import free_ports
from tests.support.served_models import ServedRuns
from tests.support.service_client import TOKEN, ServiceClient

LOG = "answers.jsonl"
LIMITS = BodyLimits(bytes=200_000, seconds=2.0)


def sources(runs: ServedRuns, letter: str) -> ModelSources:
    users = (str(runs.raw / "users.parquet"), str(runs.raw / "interactions.parquet"))
    return ModelSources(str(runs.retrievers[letter]), str(runs.rankers[letter]), users=users)


def config(port: int, folder: Path, seconds: float = 30.0) -> ServiceConfig:
    """Returns settings with one replica of each deployment; the token's file is in `folder`, where answers are logged too."""
    (folder / "token").write_text(TOKEN + "\n")
    token, log = str(folder / "token"), folder / LOG

    def open_log() -> AnswerLog:  # within this function, so that Ray sends it by value
        import json

        def write(answered: AnsweredRequest) -> None:
            with log.open("a") as file:
                file.write(json.dumps([answered.request_id, answered.user, answered.answer, answered.seconds]) + "\n")

        return write

    # No CPUs: a batch job with one worker reserves all of a cluster.
    return ServiceConfig(
        port=port, token_file=token, replicas=1, max_replicas=1, replica_cpus=0, body=LIMITS, seconds=seconds, open_log=open_log
    )


@contextmanager
def running_service(runs: ServedRuns, folder: Path) -> Iterator[ServiceClient]:
    """Serves the models a until the block ends, and stops Serve then."""
    (port,) = free_ports(1)
    start_service(sources(runs, "a"), config(port, folder))
    client, deadline = ServiceClient(f"http://127.0.0.1:{port}"), time.monotonic() + 60
    try:
        while client.get("/readyz").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield client
    finally:
        serve.shutdown()
