"""Asks whether a Ray cluster answers at RAY_ADDRESS, before Ray itself tries for minutes and says nothing. Imports no Ray."""

from __future__ import annotations

import os
import re
import socket
import time

ANSWER_SECONDS = 10.0
"""A head that is just starting may take so long to listen."""
CONNECT_SECONDS = 5.0


def check_ray_address() -> None:
    """Raises ConnectionError when RAY_ADDRESS names a host and a port, also as ray://host:port, at which nothing listens.

    Everything else is left to Ray: `auto` is the cluster of this machine, `local` a new one, and other schemes have providers.
    """
    address = os.environ.get("RAY_ADDRESS", "")
    found = re.fullmatch(r"(?:ray://)?\[?([^/\[\]]+)\]?:(\d+)", address)
    if found is None:
        return
    deadline = time.monotonic() + ANSWER_SECONDS
    while (fault := _fault(found[1], int(found[2]))) is not None:
        if time.monotonic() > deadline:
            raise ConnectionError(
                f"no Ray cluster answers at RAY_ADDRESS={address} ({fault}): start it, set RAY_ADDRESS to one that runs, or "
                "unset it to run on this machine"
            ) from fault
        time.sleep(0.5)


def _fault(host: str, port: int) -> OSError | None:
    try:
        socket.create_connection((host, port), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None
