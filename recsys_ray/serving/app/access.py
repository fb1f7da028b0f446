"""Who may ask: on the loopback interface everybody, elsewhere those who show the token."""

from __future__ import annotations

import hmac
import ipaddress
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from recsys_ray.serving.app.body import refuse

OPEN_PATHS = ("/", "/healthz", "/readyz", "/openapi.json")
"""Paths without a token: they tell nothing of users or items."""
SHORTEST_TOKEN = 16


def read_token(file: str, host: str) -> str:
    """Returns the token in a file; empty for no file.

    Raises ValueError for a token that is too short, and for none where the service would listen beyond this machine.
    """
    if not file:
        if not is_loopback(host):
            raise ValueError(f"--host {host} can be reached from other machines: pass --token-file, or leave --host at 127.0.0.1")
        return ""
    token = Path(file).read_text().strip()
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"--token-file {file} wants one line of at least {SHORTEST_TOKEN} ASCII characters without spaces")
    return token


def is_loopback(host: str) -> bool:
    """Returns whether only this machine reaches an address; a name other than localhost may lead anywhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class BearerToken:
    """ASGI middleware that lets a request in by its token alone, unless its path is open to all."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.expected = app, f"Bearer {token}".encode() if token else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers 401 without a look at the body; the comparison takes the same time whatever was sent."""
        if scope["type"] == "http" and self.expected and scope["path"] not in OPEN_PATHS:
            shown = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not hmac.compare_digest(shown, self.expected):
                await refuse(send, 401, "wants the token, as: Authorization: Bearer ...", **{"www-authenticate": "Bearer"})
                return
        await self.app(scope, receive, send)
