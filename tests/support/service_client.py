"""A client of the online service for tests: single requests, and a load of several threads that keeps every failure."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import psutil
import requests

TOKEN = "a-token-of-the-tests"


@dataclass(frozen=True)
class ServiceClient:
    """The address of a service, and the token that it wants."""

    url: str
    headers: dict[str, str] = field(default_factory=lambda: {"authorization": f"Bearer {TOKEN}"})

    def post(self, path: str, **body: Any) -> requests.Response:
        return requests.post(self.url + path, json=body, headers=self.headers, timeout=60)

    def get(self, path: str) -> requests.Response:
        return requests.get(self.url + path, headers=self.headers, timeout=60)

    def answer(self, path: str, **body: Any) -> dict[str, Any]:
        found = self.post(path, **body)
        assert found.status_code == 200, found.text
        return found.json()

    @contextmanager
    def load(self, body: dict[str, Any], threads: int = 4) -> Iterator[Load]:
        """Sends one request after another from each thread while the block runs."""
        load = Load(self, body)
        running = [threading.Thread(target=load.run) for _ in range(threads)]
        for thread in running:
            thread.start()
        try:
            yield load
        finally:
            load.stop.set()
            for thread in running:
                thread.join()


@dataclass
class Load:
    """The answers and failures of a load."""

    client: ServiceClient
    body: dict[str, Any]
    answers: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with requests.Session() as session:
            while not self.stop.is_set():
                try:
                    found = session.post(f"{self.client.url}/recommend", json=self.body, headers=self.client.headers, timeout=60)
                except requests.RequestException as error:
                    self.failures.append(repr(error))
                    continue
                if found.status_code == 200:
                    self.answers.append(found.json())
                else:
                    self.failures.append(f"{found.status_code} {found.text}")


def replica_processes(application: str) -> list[psutil.Process]:
    """Returns the processes of an application's replicas on this machine: Ray names them in their titles."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            title = " ".join(process.cmdline())
        except psutil.NoSuchProcess:
            continue
        if any(f"{start}{application}{end}" in title for start in ("ServeReplica:", "SERVE_REPLICA::") for end in (":", "#")):
            found.append(process)
    return found
