"""Measures ways to do the same work in turn in one run: machines are noisy, and only ratios within one run are meaningful."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import torch

RESULTS = Path(__file__).parents[1] / "results"
DATA = Path("runs/bench")
Rates = dict[str, list[float]]
"""Name of a way -> its rate per second in every repeat."""


@dataclass(frozen=True)
class Goal:
    """A ratio to report: `way` should reach `least` times the rate of `than`; None prints the ratio without a verdict."""

    way: str
    than: str
    least: float | None = None


def in_turn(ways: dict[str, Callable[[], float]], repeats: int = 3, unit: str = "rows") -> Rates:
    """Calls all ways once, then all of them again, and returns the rates. A way returns its rate per second."""
    found: Rates = {name: [] for name in ways}
    for number in range(repeats):
        for name, way in ways.items():
            found[name].append(way())
            print(f"  {number + 1}/{repeats}  {name:<44}{found[name][-1]:>14,.0f} {unit}/s", flush=True)
    return found


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def report(benchmark: str, rates: Rates, goals: list[Goal], facts: dict[str, Any] | None = None, unit: str = "rows") -> None:
    """Prints a table, then the same as one line of JSON, which is also appended to the results."""
    medians = {name: statistics.median(values) for name, values in rates.items()}
    repeats = len(next(iter(rates.values())))
    print(f"\n{benchmark}: {machine()['cpu']}, {machine()['cores']} cores; {unit} a second, median of {repeats}")
    print(f"{'':<48}{'median':>14}{'least':>14}{'most':>14}")
    for name, values in rates.items():
        print(f"{name:<48}{medians[name]:>14,.0f}{min(values):>14,.0f}{max(values):>14,.0f}")
    reached = []
    for goal in goals:
        ratios = [mine / its for mine, its in zip(rates[goal.way], rates[goal.than], strict=True)]
        ratio = medians[goal.way] / medians[goal.than]
        reached.append({**goal.__dict__, "ratio": ratio, "ratios": ratios})
        verdict = "" if goal.least is None else f"; wanted {goal.least:g}: {'reached' if ratio >= goal.least else 'SHORT'}"
        print(f"{goal.way} / {goal.than}: {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}){verdict}")
    keep(benchmark, {"rates": rates, "goals": reached, **(facts or {})})


def keep(benchmark: str, figures: dict[str, Any], *, append: bool = True) -> None:
    """Prints figures as one line of JSON, which is also appended to the results unless `append` is False."""
    line = json.dumps({"benchmark": benchmark, "at": datetime.now(UTC).isoformat(timespec="seconds"), **machine(), **figures})
    if append:
        RESULTS.mkdir(exist_ok=True)
        with (RESULTS / f"{benchmark}.jsonl").open("a") as file:
            file.write(line + "\n")
    print(line, flush=True)


def machine() -> dict[str, Any]:
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
    }


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else []
