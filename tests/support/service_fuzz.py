"""Fuzzing of the online service: requests made from its OpenAPI document, and malformed, huge and slow ones besides."""

from __future__ import annotations

import socket
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field

import psutil
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import Case, GenerationMode

from tests.support.service_client import ServiceClient

GARBAGE = (
    b"", b"{", b"[", b"null", b"[]", b'"text"', b"1e999", b"{}" * 50, b"\x00" * 64, b"\xff\xfe{", b"[" * 50_000,
    b'{"k":' * 20_000, b'{"k": 1' + b"0" * 10_000 + b"}", b'{"features": {"a": NaN}}',
    b'{"features": {"a": Infinity}}', b'{"user": "\\ud800"}',
    b'{"user": -9223372036854775809}', b'{"where": [{"column": "kind", "value": "\'; DROP TABLE items; --"}]}',
    b'{"exclude": [' + b"1," * 4999 + b"1]}", b'{"features": {"a": [' + b"[]," * 100_000 + b"[]]}}",
    b'{"rows": [' + b"{}," * 999 + b"{}]}", b'{"rows": [' + b'{"a": {}},' * 20_000 + b"{}]}", b'{"k": 5, "k": 6, "k": "x"}',
)  # fmt: skip
RAW = (
    b"\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
    b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n{}",
    b"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    b"POST /recommend HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nZZ\r\n{}\r\n0\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nx: " + b"y" * 200_000 + b"\r\n\r\n",
    b"GET /%00%ff%fe/../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03",
    b"GET / HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
)  # fmt: skip


@dataclass
class FuzzReport:
    """The statuses of all answers, and what must not be in any."""

    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def keep(self, what: str, status: int, text: str) -> None:
        """Counts an answer; an error of the server, or a stack trace, is a fault."""
        self.statuses[status] += 1
        if status >= 500 or "Traceback" in text or 'File "' in text or "site-packages" in text:
            self.faults.append(f"{status} for {what[:300]}: {text[:500]}")


def fuzz_document(client: ServiceClient, examples: int, report: FuzzReport) -> None:
    """Sends `examples` requests to each operation of the OpenAPI document, half of them against its rules."""
    document = client.get("/openapi.json").json()
    with requests.Session() as session:
        for found in schemathesis.openapi.from_dict(document).get_all_operations():
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                requests_of = found.ok().as_strategy(generation_mode=mode)

                @settings(max_examples=examples // 2, deadline=None, database=None, phases=[Phase.generate],
                          suppress_health_check=list(HealthCheck))  # fmt: skip
                @given(case=requests_of)
                def send(case: Case) -> None:
                    answer = case.call(base_url=client.url, headers=client.headers, session=session, timeout=60)
                    report.keep(f"{case.method} {case.path} {case.body!r}", answer.status_code, answer.text)

                with suppress(Unsatisfiable):  # an operation without parameters can be asked in no wrong way
                    send()


def fuzz_bodies(client: ServiceClient, rounds: int, report: FuzzReport) -> None:
    """Sends malformed and huge bodies to every endpoint that takes one."""
    with requests.Session() as session:
        for number in range(rounds):
            for body in GARBAGE:
                path = ("/recommend", "/rank", "/history")[number % 3]
                kind = ("application/json", "text/plain", "application/json; charset=utf-16", "x")[number % 4]
                sent = client.headers | {"content-type": kind}
                answer = session.post(client.url + path, data=body, headers=sent, timeout=60)
                report.keep(f"{path} {body[:100]!r}", answer.status_code, answer.text)
            huge = (b" " * 65_536 for _ in range(1000))
            with suppress(requests.ConnectionError):  # the connection may be closed before all is sent
                answer = session.post(f"{client.url}/recommend", data=huge, headers=client.headers, timeout=60)
                report.keep("64 MB", answer.status_code, answer.text)


def fuzz_connections(client: ServiceClient, rounds: int, slow: int, report: FuzzReport) -> None:
    """Sends what is no HTTP, and then `slow` bodies at a time that come too slowly to end."""
    host, port = client.url.removeprefix("http://").split(":")
    for _ in range(rounds):
        for raw in RAW:
            with socket.create_connection((host, int(port)), timeout=60) as connection, suppress(OSError):
                connection.sendall(raw)
                connection.shutdown(socket.SHUT_WR)
                _keep_raw(report, raw, connection.recv(1 << 20))
    head = (
        f"POST /recommend HTTP/1.1\r\nhost: x\r\ncontent-length: 9999\r\nauthorization: {client.headers['authorization']}\r\n\r\n"
    )
    waiting = [socket.create_connection((host, int(port)), timeout=60) for _ in range(slow)]
    for connection in waiting:
        connection.sendall(head.encode())
    for connection in waiting:
        with connection:
            _keep_raw(report, b"a slow body", connection.recv(1 << 20))


def _keep_raw(report: FuzzReport, sent: bytes, answer: bytes) -> None:
    if answer.startswith(b"HTTP/1.1 "):
        report.keep(repr(sent[:100]), int(answer[9:12]), answer.decode("latin-1"))


def resident_mib(title: str) -> float:
    """Returns the memory of the processes of this machine's Ray whose title contains `title`, in MiB."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(process.cmdline()):
                found += process.memory_info().rss
    return found / 2**20
