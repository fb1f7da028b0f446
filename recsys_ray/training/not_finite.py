"""A loss that is not finite ends the run, and leaves in the run directory what is needed to reproduce it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import torch.distributed as dist

from recsys_ray.config import TrainConfig
from recsys_ray.data.loading.stream import BlockStream
from recsys_ray.files.json_text import json_text

NOT_FINITE_FILE = "not_finite.json"


class RunNotFinite(RuntimeError):
    """A loss that is not finite; the text names the step, the batch, the checkpoint that is kept and the command to replay it."""


def record_not_finite(
    config: TrainConfig, stream: BlockStream, *, step: int, epoch: int, first_block: int, newest: int
) -> RunNotFinite:
    """Writes not_finite.json and returns the error to raise.

    The batch of `step` begins at row block `first_block` of the epoch; `newest` is the step of the checkpoint to resume from.
    """
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
        Path(config.run_dir, NOT_FINITE_FILE).write_text(json_text(found))
    shown = ", ".join(blocks[:2]) + (f" and {len(blocks) - 2} more" if len(blocks) > 2 else "")
    return RunNotFinite(
        f"the loss of step {step} is not finite (epoch {epoch + 1}, batch of row blocks {shown}). The checkpoint of step {newest}"
        f" is kept. Look at it with `{replay}`; then lower a learning rate or mend the data, and run again"
    )


def read_not_finite(run_dir: Path) -> dict[str, Any]:
    """Returns what not_finite.json holds. Raises FileNotFoundError where the run has had no such loss."""
    if not (run_dir / NOT_FINITE_FILE).exists():
        raise FileNotFoundError(f"{run_dir} has no {NOT_FINITE_FILE}: no loss of that run was anything but finite")
    return json.loads((run_dir / NOT_FINITE_FILE).read_text())
