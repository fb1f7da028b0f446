"""`make chaos` in short: a worker killed in a save, and the job itself in a step."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import Kill, run, uninterrupted


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, float]:
    return uninterrupted(dataset, tmp_path_factory.mktemp("chaos") / "whole", "local")


@pytest.mark.parametrize(
    "kill",
    [Kill(11, "local", "worker", "save"), Kill(12, "local", "driver", "step")],
    ids=lambda kill: f"{kill.engine}-{kill.victim}-{kill.phase}",
)
def test_killed_run_ends_in_the_same_weights_and_leaves_nothing(
    dataset: Path, whole: tuple[bytes, float], tmp_path: Path, kill: Kill
) -> None:
    weights, seconds = whole
    outcome = run(kill, dataset, tmp_path / "killed", seconds)
    assert outcome.seconds and (outcome.starts == 2) == (kill.victim == "driver")
    assert outcome.weights == weights
    assert outcome.left == []
