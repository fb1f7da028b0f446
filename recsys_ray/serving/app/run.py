"""Runs the service for the one who started it: on the cluster that there is, or on one of this machine, until it is stopped."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

import ray

from recsys_ray.ray_address import check_ray_address
from recsys_ray.serving.app.deploy import ServiceConfig, bundle_manifest, start_service
from recsys_ray.serving.app.deployments.tasks import ModelSources
from recsys_ray.serving.index.manifest import read_manifest
from recsys_ray.serving.index.vector_index import INDEXES


def run_service(sources: ModelSources, config: ServiceConfig, follow_seconds: float = 0.0) -> None:
    """Puts the models into service and says where.

    Where the cluster was there before, the service stays on it when this returns. With `follow_seconds` it never returns: it
    looks that often whether the runs or the index hold another version, and swaps. Raises as `start_service`.
    """
    with _connected() as own_cluster:
        served = content(sources)
        _announce(start_service(sources, config), config, own_cluster or follow_seconds > 0)
        while own_cluster or follow_seconds:
            time.sleep(follow_seconds or 60)
            if follow_seconds and content(sources) not in (served, None):
                served = _swap(sources, config) or served


def content(sources: ModelSources) -> tuple[str, str, str] | None:
    """Returns the versions of the two models and the table of the index; None while they do not belong together."""
    try:
        retriever, ranker = (bundle_manifest(location).version for location in (sources.retriever, sources.ranker))
        scheme, _, path = sources.index.rpartition(":") if sources.index.split(":")[0] in INDEXES else ("", "", sources.index)
        index = read_manifest(path) if path and scheme != "databricks" else None  # Databricks keeps no manifest
    except (ValueError, OSError):
        return None
    if index is not None and index.model_version != retriever:
        return None
    return retriever, ranker, index.table if index is not None else ""


def _swap(sources: ModelSources, config: ServiceConfig) -> tuple[str, str, str] | None:
    found = content(sources)
    try:
        print(f"release  {start_service(sources, config)} is served from now on", flush=True)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"the models that were served are served on: {error}", flush=True)
        return None
    return found


def _announce(release: str, config: ServiceConfig, stays_here: bool) -> None:
    print(f"release  {release} is served")
    print(f"page     http://{config.host}:{config.port}/")
    print(f"stop     {'Ctrl-C' if stays_here else 'serve shutdown'}", flush=True)


@contextmanager
def _connected() -> Iterator[bool]:
    """Connects to a cluster that runs already, or starts one on this machine; yields whether it was started here.

    Raises ConnectionError where no cluster answers at RAY_ADDRESS, rather than serve elsewhere than was asked.
    """
    check_ray_address()
    try:
        ray.init("auto", logging_level=logging.ERROR, log_to_driver=False)
        own_cluster = False
    except ConnectionError:
        ray.init("local", logging_level=logging.ERROR, log_to_driver=False)
        own_cluster = True
    try:
        yield own_cluster
    finally:
        ray.shutdown()
