"""Reads the body of a request whole, before the application sees it: at most so many bytes, within so many seconds."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send


@dataclass(frozen=True)
class BodyLimits:
    """The limits of a request's body."""

    bytes: int = 1 << 20
    seconds: float = 10.0


class BodyReader:
    """ASGI middleware that answers 413 and 408 in place of the application, and 400 where a client says two things at once."""

    def __init__(self, app: ASGIApp, limits: BodyLimits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes the request on with its body as one message."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if declared_length(scope) > self.limits.bytes:
            await refuse(send, 413, f"the body is larger than {self.limits.bytes} bytes")
            return
        try:
            async with asyncio.timeout(self.limits.seconds):
                body = await self._read(receive)
        except TimeoutError:
            await refuse(send, 408, f"the body did not arrive within {self.limits.seconds:g} seconds")
            return
        if body is None:
            await refuse(send, 413, f"the body is larger than {self.limits.bytes} bytes")
        else:
            await self.app(scope, replay(body, receive), send)

    async def _read(self, receive: Receive) -> bytes | None:
        parts, size, more = [], 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self.limits.bytes:
                return None
            more = message.get("more_body", False)
        return b"".join(parts)


def declared_length(scope: Scope) -> int:
    """Returns the Content-Length of a request; 0 where it has none that is a number."""
    value = next((value for name, value in scope["headers"] if name == b"content-length"), b"")
    return int(value) if value.isdigit() and len(value) < 20 else 0


def replay(body: bytes, receive: Receive) -> Receive:
    """Returns a `receive` that yields the whole body once, and after that what the client does next: disconnect."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return messages.pop() if messages else await receive()

    return receive_again


async def refuse(send: Send, status: int, error: str, **headers: str) -> None:
    """Answers with an error, and closes the connection, on which the rest of a body may still come."""
    body = json.dumps({"error": error, "details": []}).encode()
    listed = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"} | headers
    pairs = [(name.encode(), value.encode()) for name, value in listed.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
    await send({"type": "http.response.body", "body": body})
