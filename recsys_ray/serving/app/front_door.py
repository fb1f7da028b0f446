"""Middleware for the HTTP proxy of Ray Serve, which stands before every replica: limits, and another try where a replica dies.

The proxy gives up a request whose ingress replica dies before it has answered. All requests of this service only read, so they
can be sent again. Serve builds the middlewares where its variable names `middlewares`; deploy.py sets it.
"""

from __future__ import annotations

import asyncio
import os

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recsys_ray.serving.app.body import BodyLimits, BodyReader, refuse, replay

BODY_BYTES_VARIABLE = "RECSYS_RAY_BODY_BYTES"
BODY_SECONDS_VARIABLE = "RECSYS_RAY_BODY_SECONDS"
PAUSES = (0.0, 0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 1.0, 1.0)
"""Seconds before each try. Serve needs a few seconds to see that a replica is dead, and may pick the dead one until then."""
OF_THE_PROXY = (
    b"x-request-timeout-seconds",
    b"x-request-disconnect-disabled",
    b"x-session-id",
    b"serve-multiplexed-model-id",
)
"""Headers by which a client would command Serve's proxy, such as to switch off its time-out. They are dropped."""


class PlainHeaders:
    """ASGI middleware that drops headers which are meant for the proxy, and an x-request-id that is not plain text."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with the headers that remain."""
        if "headers" in scope:
            scope = {**scope, "headers": [header for header in scope["headers"] if not _unwanted(*header)]}
        await self.app(scope, receive, send)


def _unwanted(name: bytes, value: bytes) -> bool:
    plain = name.lower().replace(b"_", b"-")
    return plain in OF_THE_PROXY or (plain == b"x-request-id" and not (value.isascii() and len(value) <= 128))


class TryAgain:
    """ASGI middleware that sends a request again where no answer has begun: its replica died."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on, once after each of PAUSES at most, then answers 503.

        The body must be one message, as BodyReader makes it.
        """
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        body = (await receive()).get("body", b"")
        over = False

        async def send_on(message: Message) -> None:
            nonlocal over
            over = True
            await send(message)

        async def receive_on() -> Message:
            nonlocal over
            message = await receive()
            over = over or message["type"] == "http.disconnect"
            return message

        for pause in PAUSES:
            await asyncio.sleep(pause)
            await self.app({**scope, "headers": list(scope["headers"])}, replay(body, receive_on), send_on)
            if over:
                return
        await refuse(send, 503, "no replica could answer: try again", **{"retry-after": "1"})


def middlewares() -> list[Middleware]:
    """Returns the middlewares of the proxy, the innermost first."""
    limits = BodyLimits(int(os.environ[BODY_BYTES_VARIABLE]), float(os.environ[BODY_SECONDS_VARIABLE]))
    return [Middleware(TryAgain), Middleware(BodyReader, limits), Middleware(PlainHeaders)]
