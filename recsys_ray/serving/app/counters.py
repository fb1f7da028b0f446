"""Counts and times of requests for Prometheus, added up over all ingress replicas of a node.

Every replica writes its numbers to files of its own in one folder, and whichever replica is asked adds them up: prometheus_client
calls this its multiprocess mode. Its variable must name the folder before the library is imported, so that is done late.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Counters:
    """The counters of this replica. Create one a process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        os.environ[FOLDER_VARIABLE] = str(folder)
        from prometheus_client import Counter, Histogram

        self.requests = Counter("recsys_requests", "Requests by endpoint and status.", ["endpoint", "status"])
        self.seconds = Histogram("recsys_request_seconds", "Time to an answer.", ["endpoint"], buckets=SECONDS)
        self.tries = Counter("recsys_tries_again", "Requests that were sent to the models again, because a replica died.")
        self.popular = Counter("recsys_popular_answers", "Answers of popular items, to users of whom nothing is known.")

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts a request; `endpoint` is a path of the interface, not one that a client made up."""
        self.requests.labels(endpoint, str(status)).inc()
        self.seconds.labels(endpoint).observe(seconds)

    def text(self, versions: Mapping[str, str]) -> bytes:
        """Returns the counts of all replicas on this node and the versions that this one serves, in the format of Prometheus."""
        from prometheus_client import CollectorRegistry, Gauge, generate_latest
        from prometheus_client.multiprocess import MultiProcessCollector

        added_up, own = CollectorRegistry(), CollectorRegistry()
        MultiProcessCollector(added_up)
        if versions:
            info = Gauge("recsys_release_info", "1 for the models that are served.", list(versions), registry=own)
            info.labels(*versions.values()).set(1)
        return generate_latest(added_up) + generate_latest(own)


class Measured:
    """ASGI middleware that counts requests and times them."""

    def __init__(self, app: ASGIApp, counters: Counters, endpoints: frozenset[str]) -> None:
        self.app, self.counters, self.endpoints = app, counters, endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on."""
        began, status = time.perf_counter(), 500

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, send_on)
        finally:
            if scope["type"] == "http":
                endpoint = scope["path"] if scope["path"] in self.endpoints else "other"
                self.counters.count(endpoint, status, time.perf_counter() - began)
