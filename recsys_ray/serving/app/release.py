"""A release: the retrieval model, the ranking model and the index that are put into service together, and how to find the newest.

Each part of a release is a Serve application of its own, named after the release. Nothing else says which release is served: it
is the newest whose parts all run. A replica that starts later, or Serve after a failure, comes to the same answer.
"""

from __future__ import annotations

import re
import time
from typing import Any, NamedTuple

from ray import serve
from ray.serve.schema import ApplicationStatus, ServeStatus

INGRESS = "recsys"
PARTS = ("retrieval", "ranking", "history")
PART_NAME = re.compile(rf"{INGRESS}-(\d+)-({'|'.join(PARTS)})")


class ReleaseHandles(NamedTuple):
    """The ways to the deployments of one release."""

    name: str
    retrieval: Any
    """A DeploymentHandle, as all three."""
    ranking: Any
    history: Any


def new_release_name() -> str:
    """Returns a name that sorts after those of earlier releases."""
    return f"{time.time_ns() // 1_000_000:015d}"


def application_name(release: str, part: str) -> str:
    """Returns the name of the application that serves a part of a release."""
    return f"{INGRESS}-{release}-{part}"


def releases(status: ServeStatus) -> dict[str, bool]:
    """Returns the names of the releases, oldest first, and whether all parts of each run."""
    running: dict[str, int] = {}
    for name, application in status.applications.items():
        if match := PART_NAME.fullmatch(name):
            running[match[1]] = running.get(match[1], 0) + (application.status == ApplicationStatus.RUNNING)
    return {name: running[name] == len(PARTS) for name in sorted(running)}


def newest_running(status: ServeStatus) -> str | None:
    """Returns the name of the newest release whose parts all run."""
    return next((name for name, runs in reversed(releases(status).items()) if runs), None)


def release_handles(release: str) -> ReleaseHandles:
    """Returns handles of the parts of a release."""
    return ReleaseHandles(release, *(serve.get_app_handle(application_name(release, part)) for part in PARTS))
