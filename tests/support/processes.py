"""Processes that tests start: free ports, a mark in the environment that finds them again, and the condition for Spark."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
"""The repository."""
MARK = "RECSYS_RAY_TEST_MARK"
"""The environment variable that marks the processes of one test."""
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17, and there is no java here")


def free_ports(count: int) -> list[int]:
    """Returns TCP ports of this machine that are free now."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def marked(mark: str) -> list[str]:
    """Returns ids and command lines of the live processes whose environment holds the mark."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name + " " + (process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # the process has ended
            continue
    return found


def wait_until_gone(find: Callable[[], Collection[str]], seconds: float = 20) -> list[str]:
    """Polls `find` until it returns nothing. Returns what is left after `seconds`."""
    deadline = time.monotonic() + seconds
    while (left := find()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return list(left)
