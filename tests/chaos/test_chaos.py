"""One run of `make chaos`: a worker is killed while it saves, and its launcher starts the workers again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.harness import Kill, run, uninterrupted

pytestmark = pytest.mark.long


def test_killed_run_ends_in_the_same_weights_and_leaves_nothing(dataset: Path, tmp_path: Path) -> None:
    weights, seconds = uninterrupted(dataset, tmp_path / "whole", "local")
    outcome = run(Kill(11, "local", "worker", "save"), dataset, tmp_path / "killed", seconds)
    assert outcome.seconds and outcome.starts == 1
    assert outcome.weights == weights
    assert outcome.left == []
