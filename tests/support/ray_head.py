"""A Ray head started with `ray start`, isolated by its own folder and ports, and stopped with everything that it started."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from tests.support.processes import ROOT, free_ports

BIN = Path(sys.executable).parent
START_SECONDS = 120


@dataclass(frozen=True)
class Head:
    """A running Ray head."""

    address: str
    """URL of the job server and the state API."""
    gcs: str
    """A driver's RAY_ADDRESS."""
    environment: dict[str, str]
    """Environment of the head, for those who submit jobs to it."""


@contextmanager
def ray_head(log: Path, arguments: Callable[[str], list[str]], **environment: str) -> Iterator[Head]:
    """Starts a head and stops it at the end, and fails if a process is left.

    `arguments` returns further arguments of `ray start`, given the head's address. The head is stopped by signal, because
    `ray stop` would stop every other Ray on this machine too.
    """
    folder = tempfile.mkdtemp(prefix="ray-head-")  # short, because sockets live there
    port, dashboard, agent = free_ports(3)
    gcs = f"{ray.util.get_node_ip_address()}:{port}"
    command = [BIN / "ray", "start", "--head", "--block", f"--port={port}", f"--dashboard-port={dashboard}"]
    # Its default port belongs to this session's own Ray, and without an agent no job can run.
    command += [f"--dashboard-agent-listen-port={agent}", *arguments(gcs)]
    # RAY_TMPDIR keeps the head's address to itself, or every later ray.init() on this machine would look for it.
    own = {"RAY_TMPDIR": folder, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0", "PATH": f"{BIN}:{os.environ['PATH']}"}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    everything = {**inherited, **own, **environment}
    with log.open("w") as output:
        process = subprocess.Popen(command, env=everything, stdout=output, stderr=output)
    try:
        yield Head(f"http://127.0.0.1:{dashboard}", gcs, everything)
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(60)
        left = _end_all_of(folder)
        shutil.rmtree(folder, ignore_errors=True)
        assert not left


def _end_all_of(folder: str) -> list[psutil.Process]:
    """Kills what outlives the head, such as the log monitors of fake nodes. Returns the processes that do not end."""
    mine = [process for process in psutil.process_iter() if _belongs(process, folder)]
    for process in mine:
        process.kill()
    return psutil.wait_procs(mine, timeout=20)[1]


def _belongs(process: psutil.Process, folder: str) -> bool:
    try:
        return process.environ().get("RAY_TMPDIR") == folder
    except psutil.Error:
        return False


def submit(head: Head, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs `ray job submit`, and repeats it until the head's agent, which takes jobs, is up."""
    command = [BIN / "ray", "job", "submit", "--address", head.address, "--working-dir", ".", *arguments]
    deadline = time.monotonic() + START_SECONDS
    while True:
        done = subprocess.run(command, cwd=ROOT, env=head.environment, capture_output=True, text=True)
        too_early = "No available agent" in done.stderr or "Failed to connect" in done.stderr
        if not too_early or time.monotonic() > deadline:
            return done
        time.sleep(1)


def get(url: str) -> Any:
    """Returns the JSON at a URL."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def listed(head: Head, what: str) -> list[dict[str, Any]]:
    """Returns the state API's list of "nodes", "actors", "jobs" or "placement_groups"."""
    return get(f"{head.address}/api/v0/{what}")["data"]["result"]["result"]
