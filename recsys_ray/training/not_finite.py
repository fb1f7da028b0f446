"""A loss that is not finite ends the run. What is left of it in the run directory is enough to look into it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recsys_ray.config import TrainConfig
from recsys_ray.data.loading.stream import BlockStream

FILE = "not_finite.json"


class RunNotFinite(RuntimeError):
    """Which step and batch, what is kept, and the command that replays it."""


def record_not_finite(
    config: TrainConfig, stream: BlockStream, step: int, epoch: int, first_block: int, newest: int
) -> RunNotFinite:
    """Writes not_finite.json. The step's batch begins at `first_block` of the epoch; `newest` is the checkpoint to go back to."""
    blocks = [f"train/{shard}:{number}" for shard, number in stream.places(epoch, first_block)]
    replay = f"python jobs/replay.py --run-dir {shlex.quote(config.run_dir)}"
    found = {
        "step": step,
        "epoch": epoch,
        "first_block": first_block,
        "dataset": config.data.path,
        "blocks": blocks,
        "checkpoint": newest,
        "replay": replay,
    }
    if dist.get_rank() == 0:
        Path(config.run_dir, FILE).write_text(json.dumps(found, indent=2) + "\n")
    shown = ", ".join(blocks[:2]) + (f" and {len(blocks) - 2} more" if len(blocks) > 2 else "")
    return RunNotFinite(
        f"the loss of step {step} is not finite (epoch {epoch + 1}, batch of row blocks {shown}). The checkpoint of step {newest}"
        f" is kept. Look at it with `{replay}`; then lower a learning rate or mend the data, and run again"
    )


def read_not_finite(run_dir: Path) -> dict[str, Any]:
    """Raises FileNotFoundError where the run has had no such loss."""
    if not (run_dir / FILE).exists():
        raise FileNotFoundError(f"{run_dir} has no {FILE}: no loss of that run was anything but finite")
    return json.loads((run_dir / FILE).read_text())
