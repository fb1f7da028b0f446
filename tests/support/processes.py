"""Processes that tests start: free ports for them, a mark by which they are found again, and whether there is Java for Spark."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Collection
from contextlib import ExitStack
from pathlib import Path

import pytest

MARK = "RECSYS_RAY_TEST_MARK"
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="Spark needs Java 17, and there is no java here")


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]


def marked(mark: str) -> list[str]:
    """Command lines of the living processes that carry the mark in their environment."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            if process.name.isdigit() and f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                found.append(process.name + " " + (process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it ended meanwhile
            continue
    return found


def gone(what: Callable[[], Collection[str]], seconds: float = 20) -> list[str]:
    """What is left when time is up; empty as soon as nothing is."""
    deadline = time.monotonic() + seconds
    while (left := what()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return list(left)
