"""Ten thousand requests to the online service, made from its OpenAPI document, malformed, huge and slow: 4xx, and memory flat."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.running_service import running_service
from tests.support.served_models import write_served_runs
from tests.support.service_fuzz import FuzzReport, fuzz_bodies, fuzz_connections, fuzz_document, resident_mib

ROUNDS, EXAMPLES = 3, 470
"""Examples of each of seven operations, in each round."""
PROCESSES = ("ProxyActor", "recsys:recsys", "-retrieval", "-ranking")
GROWTH_MIB = 40


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_thousand_requests(ray_session: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report, sizes = FuzzReport(), []
    with running_service(write_served_runs(tmp_path), tmp_path) as client:
        for _ in range(ROUNDS + 1):  # the first round warms caches up
            fuzz_document(client, EXAMPLES, report)
            fuzz_bodies(client, 8, report)
            fuzz_connections(client, 4, 20, report)
            sizes.append({name: resident_mib(name) for name in PROCESSES})
            with capsys.disabled():
                print(f"{report.statuses.total():,} requests, {dict(report.statuses)}, MiB {sizes[-1]}", flush=True)
    assert report.faults == [] and report.statuses.total() > 10_000
    assert {name: sizes[-1][name] - sizes[0][name] for name in PROCESSES if sizes[-1][name] - sizes[0][name] > GROWTH_MIB} == {}
