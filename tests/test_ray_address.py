"""A RAY_ADDRESS at which no cluster answers is named in one line, before Ray is asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys_ray import ray_address
from recsys_ray.ray_address import check_ray_address
from tests.support.preparing import write_input
from tests.support.processes import ROOT, free_ports


@pytest.mark.unit
@pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "localhost:{}", "[::1]:{}", "no-such-host.invalid:{}"])
def test_a_cluster_that_is_gone_is_named(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_address, "ANSWER_SECONDS", 0)
    monkeypatch.setenv("RAY_ADDRESS", address := address.format(*free_ports(1)))
    with pytest.raises(ConnectionError) as raised:
        check_ray_address()
    assert f"no Ray cluster answers at RAY_ADDRESS={address} (" in str(raised.value) and "unset it" in str(raised.value)


@pytest.mark.unit
@pytest.mark.parametrize("address", ["", "auto", "local", "anyscale://cluster", "nonsense"])
def test_what_names_no_port_is_left_to_ray(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    check_ray_address()


@pytest.mark.unit
def test_a_cluster_that_answers_is_asked_for_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for scheme in ("", "ray://"):
            monkeypatch.setenv("RAY_ADDRESS", f"{scheme}127.0.0.1:{server.getsockname()[1]}")
            check_ray_address()


def test_a_job_ends_in_one_line_within_half_a_minute(tmp_path: Path) -> None:
    source, started = write_input(tmp_path / "in"), time.monotonic()
    command = [sys.executable, ROOT / "jobs" / "prepare_data.py", "--parquet", source, "--out", tmp_path / "dataset"]
    environment = {**os.environ, "RAY_ADDRESS": f"127.0.0.1:{free_ports(1)[0]}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and time.monotonic() - started < 30, done.stderr
    assert done.stderr.startswith("prepare_data: no Ray cluster answers at RAY_ADDRESS=127.0.0.1:")
    assert len(done.stderr.splitlines()) == 1 and [path.name for path in tmp_path.iterdir()] == ["in"]
