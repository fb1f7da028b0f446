"""The one online service that the tests of this folder share: it takes a dozen processes, and 20 seconds to start."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.running_service import running_service
from tests.support.served_models import ServedRuns, write_served_runs
from tests.support.service_client import ServiceClient


@pytest.fixture(scope="package")
def runs(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> ServedRuns:
    return write_served_runs(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the token, in which the service logs its answers."""
    return tmp_path_factory.mktemp("service")


@pytest.fixture(scope="package")
def client(runs: ServedRuns, folder: Path) -> Iterator[ServiceClient]:
    """Serves models a, with one replica of each: a request that a killed one had must wait for the next."""
    with running_service(runs, folder) as client:
        yield client
