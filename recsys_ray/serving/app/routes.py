"""The FastAPI application of an ingress replica: endpoints, the token that opens them, and errors as JSON."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, Response
from fastapi.security import HTTPBearer
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from recsys_ray.serving.app.access import BearerToken
from recsys_ray.serving.app.body import BodyLimits, BodyReader
from recsys_ray.serving.app.counters import Counters, Measured
from recsys_ray.serving.app.messages import HistoryRequest, Problem, RankAnswer, RankRequest, RecommendAnswer, RecommendRequest
from recsys_ray.serving.app.pipeline import Answered, Pipeline, RequestRefused, ServiceBusy

PAGE = Path(__file__).with_name("page.html")
VALUES_SHOWN = 50
SHOWN_ERRORS = 5
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The body is not JSON.",
        401: "The token is missing or wrong.",
        408: "The body did not arrive in time.",
        413: "The body is too large.",
        415: "The body is not said to be JSON.",
        422: "The request cannot be answered as it is; the error says why.",
        503: "The models are not ready, or too busy: try again.",
    }.items()
}
HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
log = logging.getLogger(__name__)


class AnsweredRequest(NamedTuple):
    """A request for models that was answered, for a log of requests."""

    request_id: str
    """The client has it in the header x-request-id of the answer."""
    request: RecommendRequest | RankRequest
    user: dict[str, Any]
    """The user's raw columns: those given, and those stored."""
    answer: dict[str, Any]
    """The fields of a RecommendAnswer or a RankAnswer."""
    seconds: float


AnswerLog = Callable[[AnsweredRequest], None]
"""Takes every answer as it is given. It must return at once, and must not raise."""


@dataclass(frozen=True)
class IngressSettings:
    """The settings of every ingress replica."""

    token: str = ""
    """The bearer token that clients must show; empty: none."""
    body: BodyLimits = field(default_factory=BodyLimits)
    seconds: float = 10.0
    """The longest time to an answer."""
    open_log: Callable[[], AnswerLog] | None = None
    """Opens the log of requests; called once in every ingress replica."""


def create_app(settings: IngressSettings, metrics: Path) -> FastAPI:
    """Returns the application, which counts its requests in the folder `metrics`. It serves once a release runs."""
    counters = Counters(metrics)
    pipeline = Pipeline(settings.seconds, counters.tries.inc)
    write = settings.open_log() if settings.open_log else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await pipeline.try_to_look()  # a replica that begins to serve knows its release
        following = asyncio.create_task(pipeline.follow())
        yield
        following.cancel()

    app = FastAPI(title="recsys_ray", description=str(__doc__), lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_health(app, pipeline, counters)
    _add_models(app, pipeline, counters, write)
    _add_page(app, pipeline)
    app.add_middleware(BodyReader, limits=settings.body)
    app.add_middleware(BearerToken, token=settings.token)
    app.add_middleware(Measured, counters=counters, endpoints=frozenset(app.openapi()["paths"]))
    return app


GUARDED: dict[str, Any] = {"responses": PROBLEMS, "dependencies": [Depends(HTTPBearer(auto_error=False))]}


def _add_models(app: FastAPI, pipeline: Pipeline, counters: Counters, write: AnswerLog | None) -> None:
    def log_answer(http: Request, request: RecommendRequest | RankRequest, answered: Answered, began: float) -> None:
        if write is not None:
            request_id = http.headers.get("x-request-id", "")
            write(AnsweredRequest(request_id, request, answered.user, answered.body, time.perf_counter() - began))

    @app.post("/recommend", response_model=RecommendAnswer, **GUARDED)
    async def recommend(request: RecommendRequest, http: Request) -> Response:
        """Returns the k best items for a user."""
        began = time.perf_counter()
        answered = await pipeline.recommend(request)
        if answered.body["strategy"] == "popular":
            counters.popular.inc()
        log_answer(http, request, answered, began)
        return _json(answered.body)

    @app.post("/rank", response_model=RankAnswer, **GUARDED)
    async def rank(request: RankRequest, http: Request) -> Response:
        """Returns the ranking model's scores of items for a user, or of rows of raw columns."""
        began = time.perf_counter()
        answered = await pipeline.rank(request)
        log_answer(http, request, answered, began)
        return _json(answered.body)


def _add_health(app: FastAPI, pipeline: Pipeline, counters: Counters) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Says that the service runs."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: PROBLEMS[503]})
    async def readyz() -> dict[str, str]:
        """Says whether the models are loaded, and which."""
        if pipeline.release is None:
            raise ServiceBusy("the models are not loaded yet")
        return pipeline.versions

    @app.get("/metrics", response_class=Response, **GUARDED)
    async def metrics() -> Response:
        """Returns counts of requests, their times and the models' versions, in Prometheus' text format."""
        return Response(counters.text(pipeline.versions), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI, pipeline: Pipeline) -> None:
    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def page() -> HTMLResponse:
        """Returns the page for people."""
        return HTMLResponse(PAGE.read_text(encoding="utf-8"), headers=HEADERS)

    @app.get("/users", **GUARDED)
    async def users() -> dict[str, Any]:
        """Returns a sample of users whose history is known."""
        return await pipeline.ask(lambda release: release.history.users.remote())

    @app.post("/history", **GUARDED)
    async def history(request: HistoryRequest) -> Response:
        """Returns what a user of the sample has seen and liked."""
        return _json(await pipeline.ask(lambda release: release.history.of_user.remote(request.user)))

    @app.get("/columns", **GUARDED)
    async def columns() -> Response:
        """Returns the columns of items, by which one can filter."""
        return _json(await pipeline.ask(lambda release: release.retrieval.item_columns.remote(VALUES_SHOWN)))


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        found = error.errors()
        status = 400 if any(one["type"] == "json_invalid" for one in found) else 422
        # Without the input: it may be long, and need not be text that JSON can hold.
        details = [f"{'.'.join(map(str, one['loc'][:4]))[:200]}: {one['msg'][:500]}" for one in found[:SHOWN_ERRORS]]
        return _problem(status, "the request is not valid", details)

    @app.exception_handler(RequestRefused)
    async def refused(_: Request, error: RequestRefused) -> Response:
        return _problem(422, str(error))

    @app.exception_handler(ServiceBusy)
    async def busy(_: Request, error: ServiceBusy) -> Response:
        return _problem(503, str(error), headers={"retry-after": "1"})

    @app.exception_handler(HTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, str(error.detail), headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def bug(_: Request, error: Exception) -> Response:
        return _problem(500, "an error in the service, which its log describes")


def _json(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = to_json(body, inf_nan_mode="null", serialize_unknown=True)
    return Response(content, status, media_type="application/json", headers=headers)


def _problem(status: int, error: str, details: list[str] | None = None, headers: dict[str, str] | None = None) -> Response:
    # Escaped to ASCII, because what it quotes of the request need not be valid text.
    text = [one.encode("ascii", "backslashreplace").decode() for one in [error, *(details or [])]]
    return _json({"error": text[0], "details": text[1:]}, status, headers)
