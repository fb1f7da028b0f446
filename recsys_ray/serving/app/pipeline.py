"""A request's way through one release: retrieval, then ranking, and again where a replica dies on the way."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from recsys_ray.serving.app.deployments.tasks import Comparison, RankingTask, Refused, UserQuery
from recsys_ray.serving.app.messages import RankRequest, RecommendRequest, UserRequest
from recsys_ray.serving.app.release import ReleaseHandles, newest_running, release_handles

T = TypeVar("T")
TRIES_OF_MODELS = 5
FOLLOW_SECONDS = 1.0
log = logging.getLogger(__name__)


class RequestRefused(Exception):
    """A request that cannot be answered as it is; the text says why."""


class ServiceBusy(Exception):
    """A request that could be answered at another time; the text says why."""


class Answered(NamedTuple):
    """An answer, and what it was made from."""

    user: dict[str, Any]
    """The user's raw columns: those given, and those stored."""
    body: dict[str, Any]
    """The fields of the answer."""


class Pipeline:
    """The release that is served now. It follows the newest one, without a pause: one reference changes."""

    def __init__(self, seconds: float, on_retry: Callable[[], None]) -> None:
        self.seconds, self.on_retry = seconds, on_retry
        self.release: ReleaseHandles | None = None
        self.versions: dict[str, str] = {}

    async def follow(self) -> None:
        """Looks for a newer release every second, for ever."""
        while True:
            await asyncio.sleep(FOLLOW_SECONDS)
            await self.try_to_look()

    async def try_to_look(self) -> None:
        """Looks for a newer release, and serves the one that it has where that fails."""
        try:
            async with asyncio.timeout(self.seconds):
                await self.look()
        except Exception as error:
            log.warning("cannot look for a newer release: %r", error)

    async def look(self) -> None:
        """Changes to the newest running release, once its replicas have answered a first call."""
        newest = newest_running(await asyncio.to_thread(serve.status))
        if newest is None or (self.release is not None and self.release.name == newest):
            return
        handles = await asyncio.to_thread(release_handles, newest)
        (retriever, index), ranker = await asyncio.gather(handles.retrieval.versions.remote(), handles.ranking.versions.remote())
        self.versions = {"release": newest, "retriever": retriever, "ranker": ranker, "index": index}
        self.release = handles

    async def recommend(self, request: RecommendRequest) -> Answered:
        """Returns the fields of a RecommendAnswer. Raises RequestRefused, or ServiceBusy."""
        return await self.ask(lambda release: _recommend(release, request))

    async def rank(self, request: RankRequest) -> Answered:
        """Returns the fields of a RankAnswer. Raises RequestRefused, or ServiceBusy."""
        return await self.ask(lambda release: _rank(release, self.versions, request))

    async def ask(self, question: Callable[[ReleaseHandles], Awaitable[T]]) -> T:
        """Returns what a release answers, within the time limit. Raises RequestRefused, or ServiceBusy."""
        try:
            async with asyncio.timeout(self.seconds):
                return await self._tried(question)
        except TimeoutError as error:
            raise ServiceBusy(f"no answer within {self.seconds:g} seconds") from error

    async def _tried(self, question: Callable[[ReleaseHandles], Awaitable[T]]) -> T:
        """Asks again where a replica dies, or the release is gone: every question only reads."""
        for _ in range(TRIES_OF_MODELS):
            if self.release is None:
                raise ServiceBusy("the models are not loaded yet")
            try:
                return await question(self.release)
            except BackPressureError as error:
                raise ServiceBusy("too many requests are waiting") from error
            except (RayActorError, DeploymentUnavailableError) as error:
                log.warning("asking again: %s", type(error).__name__)
                self.on_retry()
                await self.try_to_look()
        raise ServiceBusy("replicas die faster than they answer")


async def _recommend(release: ReleaseHandles, request: RecommendRequest) -> Answered:
    where = tuple(Comparison(one.column, one.op, one.value) for one in request.where)
    query = UserQuery(request.user, request.features, request.candidates, where, request.exclude)
    found = _accepted(await release.retrieval.find.remote(query))
    task = RankingTask(found.user, found.items, found.scores, request.k, request.columns, found.personal)
    ranked = _accepted(await release.ranking.rank.remote(task))
    body = {
        "items": ranked.items,
        "strategy": "personal" if found.personal else "popular",
        "ignored": _ignored(request, found.user),
        "versions": {"release": release.name, "retriever": found.retriever, "ranker": ranked.ranker, "index": found.index_name},
    }
    return Answered(found.user, body)


async def _rank(release: ReleaseHandles, versions: dict[str, str], request: RankRequest) -> Answered:
    user: dict[str, Any] = {}
    if request.rows:
        scored = _accepted(await release.ranking.score_rows.remote(request.rows))
        ignored = scored.ignored
    else:
        query = UserQuery(request.user, request.features, 0, (), [])
        user = _accepted(await release.retrieval.complete.remote(query))
        scored = _accepted(await release.ranking.score_items.remote(user, request.items))
        ignored = _ignored(request, user)
    return Answered(user, {"scores": scored.scores, "ignored": ignored, "versions": {**versions, "ranker": scored.ranker}})


def _ignored(request: UserRequest, user: dict[str, Any]) -> list[str]:
    return [name for name in request.features if name not in user]


def _accepted(answer: Any) -> Any:
    if isinstance(answer, Refused):
        raise RequestRefused(answer.reason)
    return answer
