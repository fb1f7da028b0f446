"""Runs training jobs with a SIGKILL at a random moment each, and checks that all end in the weights of an undisturbed run.

    make chaos                                           # ten under local, ten under Ray
    python -m tests.chaos --engines local --runs 40 --first-seed 1000

Prints a line for each kill, and a table of the time from the kill to the first new step; the last line is JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

from tests.chaos.harness import Kill, Outcome, run, uninterrupted
from tests.support.preparing import SYNTHETIC_ROWS, synthetic_dataset

PARTS = ("detection", "restart", "join and build", "load", "first batch and step", "all")


@dataclass(frozen=True)
class Chaos:
    """Settings of the command line."""

    engines: tuple[str, ...] = ("local", "ray")
    runs: int = 10
    """Runs on each engine."""
    first_seed: int = 1
    rows: int = SYNTHETIC_ROWS


def main(chaos: Chaos) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        synthetic_dataset(folder, chaos.rows)
        outcomes = [outcome for engine in chaos.engines for outcome in _kill_all(chaos, engine, folder)]
    good = sum(outcome.killed and outcome.weights == b"same" and not outcome.left for outcome in outcomes)
    print(f"\n{good} of {len(outcomes)} were killed, ended in the same weights, bit by bit, and left nothing")
    table = {engine: _medians([found for found in outcomes if found.kill.engine == engine]) for engine in chaos.engines}
    print(f"\nseconds from the kill to the first new step, median\n{'':<8}" + "".join(f"{part:>22}" for part in PARTS))
    for engine, medians in table.items():
        print(f"{engine:<8}" + "".join(f"{medians.get(part, float('nan')):>22.2f}" for part in PARTS))
    print(json.dumps({"runs": len(outcomes), "good": good, "median_seconds": table}))
    sys.exit(good != len(outcomes))


def _kill_all(chaos: Chaos, engine: str, folder: Path) -> list[Outcome]:
    expected, seconds = uninterrupted(folder / "dataset", folder / f"whole-{engine}", engine)
    print(f"{engine}: uninterrupted in {seconds:.1f} s")
    outcomes = []
    for seed in range(chaos.first_seed, chaos.first_seed + chaos.runs):
        kill = Kill.drawn(seed, engine)
        found = run(kill, folder / "dataset", folder / f"{engine}-{seed}", seconds)
        same = found.weights == expected
        found.weights = b"same" if same else b"other"
        how = f"{found.seconds['all']:5.1f} s to a new step" if found.seconds else "no step was left"
        print(
            f"seed {seed:>4}  {engine:<6} {kill.victim:<7} in {kill.phase:<11} {'same weights' if same else 'OTHER WEIGHTS'}  "
            f"{how if found.killed else 'done before it could be killed':<20}  left: {found.left or 'nothing'}",
            flush=True,
        )
        outcomes.append(found)
    return outcomes


def _medians(outcomes: list[Outcome]) -> dict[str, float]:
    """Returns the median seconds of each part, over the kills after which a step was left to train."""
    timed = [found.seconds for found in outcomes if found.seconds]
    return {part: round(statistics.median(seconds[part] for seconds in timed), 2) for part in PARTS} if timed else {}


if __name__ == "__main__":
    main(tyro.cli(Chaos, description=__doc__))
