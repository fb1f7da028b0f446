"""Starts the service on the connected Ray cluster, and puts a new release in the place of the one that is served."""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, ControllerOptions
from ray.serve.schema import LoggingConfig

from recsys_ray.bundle.manifest import Manifest
from recsys_ray.bundle.reader import open_bundle
from recsys_ray.command_line import JobError
from recsys_ray.compat.serve_compat import PROXY_CALLBACK_VARIABLE, running_http_options
from recsys_ray.serving.app.access import is_loopback, read_token
from recsys_ray.serving.app.body import BodyLimits
from recsys_ray.serving.app.deployments.history import History
from recsys_ray.serving.app.deployments.ranking import Ranking
from recsys_ray.serving.app.deployments.retrieval import Retrieval, schema_of
from recsys_ray.serving.app.deployments.tasks import REQUESTS_AT_ONCE, ModelSources
from recsys_ray.serving.app.front_door import BODY_BYTES_VARIABLE, BODY_SECONDS_VARIABLE, middlewares
from recsys_ray.serving.app.pipeline import FOLLOW_SECONDS
from recsys_ray.serving.app.release import INGRESS, PARTS, application_name, new_release_name, releases
from recsys_ray.serving.app.routes import AnswerLog, IngressSettings, create_app
from recsys_ray.serving.bundle import task_without_weights
from recsys_ray.serving.index.vector_index import open_index
from recsys_ray.serving.location import bundle_folder, pinned_location

SERVE_LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
ONGOING_A_REPLICA = 8
"""Requests at work in a replica, above which the autoscaler adds another: together they still make a small batch."""
QUEUED = 512
ONE_THREAD = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0", "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"}
"""Settings of Serve for processes that compute nothing: all of a request on one event loop, without a change of threads."""


@dataclass(frozen=True)
class ServiceConfig:
    """The settings of the service, besides the models."""

    host: str = "127.0.0.1"
    port: int = 8000
    token_file: str = ""
    replicas: int = 2
    """The fewest replicas of ingress, retrieval and ranking; with two of each, a killed one fails no request."""
    max_replicas: int = 4
    replica_cpus: float = 0.1
    """CPUs that the cluster sets aside for each replica; while a release is swapped, both are there."""
    body: BodyLimits = field(default_factory=BodyLimits)
    seconds: float = 10.0
    """The longest time to an answer."""
    open_log: Callable[[], AnswerLog] | None = None
    """Opens the log of requests in every ingress replica."""


def start_service(sources: ModelSources, config: ServiceConfig) -> str:
    """Puts the models into service, as a first release or in the place of another, and returns the release's name.

    Returns when the release answers and the one before is gone. Raises ValueError or FileNotFoundError for what cannot be served,
    and JobError where the cluster fails at it; the release that was served before is then served still.
    """
    token = read_token(config.token_file, config.host)
    # A replica that starts later, after a crash or when load grows, must load what its release began with.
    sources = dataclasses.replace(sources, retriever=pinned_location(sources.retriever), ranker=pinned_location(sources.ranker))
    check_sources(sources)
    _start_serve(config)
    before = set(releases(serve.status()))
    release = _deploy_release(sources, config)
    if INGRESS not in serve.status().applications:
        serve.run(_ingress(config, token), name=INGRESS, route_prefix="/", logging_config=SERVE_LOGGING)
    time.sleep(2 * FOLLOW_SECONDS)  # every ingress replica has changed to it by now
    if before:
        time.sleep(config.seconds)  # requests that the earlier release still answers
    for name in before:
        _delete_release(name)
    return release


def check_sources(sources: ModelSources) -> None:
    """Raises ValueError or FileNotFoundError for models that are not there or do not belong together."""
    ranker = schema_of(sources.ranker)
    if not retrieves(sources.retriever):
        raise ValueError(f"--retriever {sources.retriever} holds a model that ranks: name a run of a Two Tower")
    if retrieves(sources.ranker):
        raise ValueError(f"--ranker {sources.ranker} holds a model that retrieves: name a run of a DLRM")
    if not ranker.features_of("item"):
        raise ValueError(f"--ranker {sources.ranker} reads no column of side item: it would score all items of a user alike")
    if sources.index:
        open_index(sources.index, bundle_manifest(sources.retriever).version)


def retrieves(location: str) -> bool:
    """Returns whether a bundle holds a retrieval model. It reads settings and schema, and no weights."""
    return task_without_weights(open_bundle(bundle_folder(location)), schema_of(location)).towers is not None


def bundle_manifest(location: str) -> Manifest:
    """Reads the manifest of a run, a folder or a URL."""
    return open_bundle(bundle_folder(location)).manifest


def _start_serve(config: ServiceConfig) -> None:
    """Starts Serve with our middlewares before its proxy, unless it runs. Raises JobError where it listens elsewhere."""
    found = running_http_options()
    if found is not None:
        if (found.host, found.port) != (config.host, config.port):
            raise JobError(
                f"Ray Serve already listens at {found.host}:{found.port} on this cluster: pass --host {found.host} --port "
                f"{found.port}, or stop it first (serve shutdown)"
            )
        return
    variables = {
        PROXY_CALLBACK_VARIABLE: f"{middlewares.__module__}:{middlewares.__name__}",
        BODY_BYTES_VARIABLE: str(config.body.bytes),
        BODY_SECONDS_VARIABLE: str(config.body.seconds),
        **ONE_THREAD,
    }
    serve.start(
        proxy_location="HeadOnly" if is_loopback(config.host) else "EveryNode",
        http_options={"host": config.host, "port": config.port, "request_timeout_s": 2 * config.seconds + config.body.seconds},
        logging_config=SERVE_LOGGING,
        controller_options=ControllerOptions(runtime_env={"env_vars": variables}),
    )


def _deploy_release(sources: ModelSources, config: ServiceConfig) -> str:
    """Deploys all parts of a release and returns its name when they run. Raises JobError, and leaves nothing, where one fails."""
    name, dataset = new_release_name(), bundle_manifest(sources.retriever).dataset["path"]
    key = schema_of(sources.retriever).key("item")
    assert key is not None
    parts = {
        "retrieval": serve.deployment(**_options(config))(Retrieval).bind(sources),
        "ranking": serve.deployment(**_options(config))(Ranking).bind(sources, dataset, key.name),
        "history": serve.deployment(ray_actor_options={"num_cpus": 0}, logging_config=SERVE_LOGGING.model_dump())(History).bind(
            sources, dataset
        ),
    }
    targets = [serve.RunTarget(parts[part], name=application_name(name, part), route_prefix=None) for part in PARTS]
    try:
        serve.run_many(targets)
    except (RuntimeError, TimeoutError) as error:
        reason = _reason(name) or str(error)
        _delete_release(name)
        raise JobError(f"the models do not start: {reason}") from error
    return name


def _reason(release: str) -> str:
    """Returns the last line of what the first failed replica of a release said: the text of its exception."""
    applications = serve.status().applications
    said = [
        deployment.message.strip().splitlines()
        for name, application in applications.items()
        if name in {application_name(release, part) for part in PARTS}
        for deployment in application.deployments.values()
    ]
    errors = [line for lines in said for line in lines if re.match(r"[\w.]*(Error|Exception)\b.*: ", line)]
    return errors[-1] if errors else ""


def _options(config: ServiceConfig) -> dict[str, Any]:
    most = max(config.replicas, config.max_replicas)
    return {
        "ray_actor_options": {"num_cpus": config.replica_cpus},
        "autoscaling_config": AutoscalingConfig(
            min_replicas=config.replicas, max_replicas=most, target_ongoing_requests=ONGOING_A_REPLICA, upscale_delay_s=10
        ),
        "max_ongoing_requests": 2 * REQUESTS_AT_ONCE,
        "max_queued_requests": QUEUED,
        "health_check_period_s": 2,
        "graceful_shutdown_wait_loop_s": 0.5,
        "max_constructor_retry_count": 1,
        "logging_config": SERVE_LOGGING.model_dump(),
    }


def _ingress(config: ServiceConfig, token: str) -> serve.Application:
    settings = IngressSettings(token, config.body, config.seconds, config.open_log)

    def build() -> Any:
        context = ray.get_runtime_context()
        return create_app(settings, Path(context.get_temp_dir(), context.get_session_name(), "recsys_ray_metrics"))

    options = _options(config)
    options["ray_actor_options"] |= {"runtime_env": {"env_vars": ONE_THREAD}}
    return serve.deployment(name=INGRESS, **options)(serve.ingress(build)()).bind()


def _delete_release(name: str) -> None:
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    for part in PARTS:
        serve.delete(application_name(name, part))
