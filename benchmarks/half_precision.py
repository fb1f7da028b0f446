"""Measures what bf16 arithmetic of the dense part, cross network included, does to a DLRM's test AUC.

    python benchmarks/half_precision.py [--seeds 0 1 2] [--rows 1000000] [--work runs/half-precision]

Trains the same DLRM with `--train.precision fp32` and `bf16` on MovieLens 1M and on synthetic rows, with each seed, and prints
the difference of the mean AUCs beside the spread over seeds. It takes some 20 minutes on two cores.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import ray
import tyro

from recsys_ray.config import PrepareConfig
from recsys_ray.data.prepare.pipeline import prepare
from recsys_ray.datasets import synthetic

TARGET = 0.0002
PRECISIONS = ("fp32", "bf16")
AUCs = dict[str, list[float]]
"""Precision -> the test AUC with each seed."""


@dataclass(frozen=True)
class Arguments:
    seeds: tuple[int, ...] = (0, 1, 2)
    interaction: str = "dcn"
    rows: int = 1_000_000
    """Synthetic rows, those for validation and test included."""
    work: Path = Path("runs/half-precision")


def main(arguments: Arguments) -> None:
    clicks = synthetic_dataset(arguments)
    sources = {"MovieLens 1M": [], "synthetic": ["--data.path", str(clicks), "--train.epochs", "2"]}
    found = {name: aucs(name, flags, arguments) for name, flags in sources.items()}
    print(f"\n{'test AUC, means over ' + str(len(arguments.seeds)) + ' seeds':<36}{'fp32':>10}{'bf16':>10}{'difference':>12}")
    differences = {}
    for name, values in found.items():
        exact, half = (statistics.mean(values[precision]) for precision in PRECISIONS)
        differences[name] = half - exact
        spread = statistics.stdev(values["fp32"]) if len(arguments.seeds) > 1 else float("nan")
        verdict = "within" if abs(half - exact) <= TARGET else "BEYOND"
        line = f"{name:<36}{exact:>10.5f}{half:>10.5f}{half - exact:>+12.5f}"
        print(f"{line}   {verdict} {TARGET}; fp32 differs by {spread:.5f} from seed to seed")
    print(
        json.dumps({"benchmark": "half_precision", "interaction": arguments.interaction, "auc": found, "difference": differences})
    )


def synthetic_dataset(arguments: Arguments) -> Path:
    raw = synthetic.generate_clicks(arguments.work / f"raw-{arguments.rows}", arguments.rows)
    out = arguments.work.absolute() / f"dataset-{arguments.rows}"
    if not out.exists():
        ray.init("local", ignore_reinit_error=True)
        prepare(PrepareConfig(parquet=str(raw / "interactions"), out=str(out)))
        ray.shutdown()
    return out


def aucs(name: str, flags: list[str], arguments: Arguments) -> AUCs:
    found: AUCs = {precision: [] for precision in PRECISIONS}
    for seed in arguments.seeds:
        for precision, values in found.items():
            run_dir = arguments.work / f"{name.split()[0].lower()}-{arguments.interaction}-{precision}-{seed}"
            values.append(test_auc(run_dir, [*flags, "--train.precision", precision, "--train.seed", str(seed)], arguments))
            print(f"{name}, seed {seed}, {precision}: {values[-1]:.5f}", flush=True)
    return found


def test_auc(run_dir: Path, flags: list[str], arguments: Arguments) -> float:
    """Trains, unless this run has been finished before, and returns the AUC on the test split."""
    if not (run_dir / "outcome.json").exists():
        job = ["jobs/train_dlrm.py", "--run-dir", str(run_dir), "--model.interaction", arguments.interaction]
        engine = ["--launch.engine", "local", "--launch.cpus-per-worker", "2", "--tracking.backend", "none"]
        subprocess.run([sys.executable, *job, *engine, *flags], check=True, stdout=subprocess.DEVNULL)
    return float(json.loads((run_dir / "outcome.json").read_text())["test_auc"])


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
